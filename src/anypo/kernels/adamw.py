"""AdamW in one fused call, and the norm of many tensors."""

from __future__ import annotations

import torch

from anypo.kernels import kernel


class FusedAdamW(torch.optim.AdamW):
    """AdamW that on a CPU can call the fused kernel itself: for a small network, what torch does around it takes most of a step."""

    @torch.no_grad()
    def step_fused(self) -> bool:
        """Make one step by one call of the kernel per group; return False, changing nothing, where that is not possible."""
        groups = [(g, params) for g in self.param_groups if (params := [p for p in g["params"] if p.grad is not None])]
        if not all(g["fused"] and p.device.type == "cpu" and p in self.state for g, params in groups for p in params):
            return False
        for group, params in groups:
            states = [self.state[p] for p in params]
            first, second, steps = ([s[name] for s in states] for name in ("exp_avg", "exp_avg_sq", "step"))
            torch._foreach_add_(steps, 1)
            fused = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
            fused(
                params,
                [p.grad for p in params],
                first,
                second,
                [],
                steps,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )
        return True


def plain_optimizer_step(optimizer: torch.optim.Optimizer) -> None:
    """Make one step of torch's own optimizer, parameter by parameter."""
    fused = [group.get("fused") for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        if "fused" in group:
            group["fused"] = False
    optimizer.step()
    for group, before in zip(optimizer.param_groups, fused, strict=True):
        if "fused" in group:
            group["fused"] = before


@kernel(plain_optimizer_step)
def optimizer_step(optimizer: torch.optim.Optimizer) -> None:
    """Make one step, of AdamW on a CPU by one fused call."""
    if not (isinstance(optimizer, FusedAdamW) and optimizer.step_fused()):
        optimizer.step()


def plain_total_norm(tensors: list[torch.Tensor]) -> float:
    """Euclidean norm of all tensors together."""
    return float(torch.nn.utils.get_total_norm(tensors))


@kernel(plain_total_norm)
def total_norm(tensors: list[torch.Tensor]) -> float:
    """Euclidean norm of all tensors together; on one device in two calls."""
    if len({t.device for t in tensors}) != 1:
        return plain_total_norm(tensors)
    return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors))))
