"""The microscope: what a method's gradient is made of, measured on probes rather than read off its formula."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anypo.errors import UsageError
from anypo.evidence.batches import LEAVES, all_reads, random_batch
from anypo.evidence.experiments.gradients import gradient_quality
from anypo.method.method import Method
from anypo.parts.registry import describe
from anypo.types import FIELDS, Trajectories

SIGNS = (1.0, -1.0)


@dataclass(frozen=True)
class Reading:
    """curve: rows (log r, W at A = +1, W at A = -1), W = -dF/dlogp of one decision over its coefficient in the mean.
    gain: length of dF/dlogp at ratio 1 over that of plain REINFORCE with the same advantages and mean. A method whose policy learns
    from no advantage has neither. dead: terms without any
    gradient; idle: terms switched off by a coefficient of 0. quality: bias and cosine on enumerable sequences, None where the
    method needs more than those offer."""

    curve: list[tuple[float, float, float]]
    gain: float | None
    dead: list[str]
    idle: list[str]
    quality: dict[str, float] | None


def look(method: Method) -> Reading:
    """All measurements of one method."""
    dead, idle = lifeless(method)
    if "logp" not in method.live or "advantage" not in method.reads("trust"):  # learns through values alone
        return Reading([], None, dead, idle, None)
    return Reading(
        weight_curve(method), gain(method), dead, idle, None if method.traits["replays"] else quality(method)
    )


def probe_batch(method: Method, seed: int, rows: int, steps: int, spread: float, holes: float) -> Trajectories:
    """A random batch with everything the method reads."""
    extra = {name: method.tail(name) for name in sorted(all_reads(method) - set(FIELDS))}
    outcome = "reward" if method.traits["replays"] and "reward" in all_reads(method) else "score"
    return random_batch(seed, rows, steps, spread=spread, holes=holes, optional=False, outcome=outcome, extra=extra)


def on_policy(method: Method, rows: int = 8, steps: int = 4) -> Trajectories:
    """A batch of two groups, half of each right, at ratio 1, with advantages of +1 and -1 and everything the method reads."""
    b = probe_batch(method, 0, rows, steps, spread=0.0, holes=0.0)
    right = (torch.arange(rows) % 2 == 0).double()
    b = b.but(
        score=right, scores=None, weight=None, group=torch.arange(rows) // (rows // 2), truncated=None, fresh=None
    )
    b = method.prepare(b)
    a = (2 * right - 1).unsqueeze(1).expand(rows, steps).clone()
    returns = None if b.returns is None or b.value is None else b.value + a
    same = {
        f"{name}_{of}": x for name, x in b.extra.items() for of in ("old", "ref", "ema") if f"{name}_{of}" in b.extra
    }
    b = b.put(same)
    assert b.logp is not None
    return b.but(advantage=a, returns=returns, mask=torch.ones_like(a, dtype=torch.bool), logp_ref=b.logp.clone())


def slope(method: Method, b: Trajectories) -> Tensor:
    """dF/dlogp of the main surrogate alone, the terms left out."""
    assert b.logp is not None
    logp = b.logp.detach().clone().requires_grad_()
    loss, _ = method.but(terms=[], critic=[]).loss(b.but(logp=logp))
    if not loss.requires_grad:
        return torch.zeros_like(logp)
    return torch.autograd.grad(loss, logp, materialize_grads=True)[0]


def gain(method: Method) -> float:
    """How long the method's on-policy gradient is beside that of plain REINFORCE: 1 for every surrogate r A."""
    b = on_policy(method)
    assert b.advantage is not None
    reduce = method.stages["reduce"]
    if hasattr(reduce, "coefficients"):
        plain = b.advantage * reduce.coefficients(b)
    else:  # one number per group: beside the mean of row means
        plain = b.advantage / (b.shape[0] * b.shape[1])
    return float(slope(method, b).norm() / plain.norm())


def weight_curve(method: Method, points: int = 25, reach: float = 3.0) -> list[tuple[float, float, float]]:
    """W over log r for A = +1 and A = -1, one decision at a time in an otherwise on-policy batch."""
    b = on_policy(method)
    assert b.logp is not None and b.logp_old is not None
    reduce = method.stages["reduce"]
    counted = reduce.coefficients(b).expand(b.shape) if hasattr(reduce, "coefficients") else None
    found = []
    for x in torch.linspace(-reach, reach, points).tolist():
        weights = []
        for row in (0, 1):  # a right row, a wrong row
            old = b.logp_old.clone()
            old[row, 0] = b.logp[row, 0] - x
            size = 1 / b.logp.numel() if counted is None else float(counted[row, 0])
            weights.append(-float(slope(method, b.but(logp_old=old))[row, 0]) / size)
        found.append((x, *weights))
    return found  # pyright: ignore[reportReturnType]


def lifeless(method: Method) -> tuple[list[str], list[str]]:
    """(dead, idle): parts of the loss whose gradient in log-probs, entropies and values is exactly 0 on every one of several
    off-policy batches, and which of them a coefficient of 0 has switched off."""
    dead: list[str] = []
    idle: list[str] = []
    silent = method.but(terms=[], critic=[])
    # a part that is meant to have no objective is not dead
    candidates: list[tuple[str, Any]] = [] if getattr(method.stages["trust"], "silent", False) else [("trust", None)]
    candidates += [(slot, part) for slot in ("terms", "critic") for part in method.stages[slot]]
    for slot, part in candidates:
        name = f"{slot}: {describe(part if part is not None else method.stages['trust'])}"
        if part is not None and hasattr(part, "coef") and not float(part.coef):
            idle.append(name)
        else:
            probe = silent if part is None else silent.but(None, **{slot: [part]})
            if not any(
                has_gradient(method, probe, slot, *far) for far in itertools.product(range(3), (0.3, 2.0, 10.0))
            ):
                dead.append(name)
    return dead, idle


def has_gradient(method: Method, probe: Method, slot: str, seed: int, spread: float) -> bool:
    """Whether a term, alone beside the main surrogate, changes the gradient on a batch that far from every anchor."""
    b = probe_batch(method, seed, 12, 6, spread=spread, holes=0.1)
    b = (
        b.but(expert_mask=torch.arange(12) % 3 == 0)
        if any(getattr(p, "rows", "") == "expert" for p in method.stages["terms"])
        else b
    )
    b = method.prepare(b)
    assert b.logp is not None
    b = b.but(logp_ref=b.logp_ref - 8.0 if b.logp_ref is not None else None)  # beyond any threshold
    names = {*LEAVES, *method.live}
    leaves = {n: t.detach().clone().requires_grad_() for n in sorted(names) if (t := b.get(n)) is not None}
    loss, _ = probe.loss(b.put(leaves))
    if slot != "trust":
        loss = loss - method.but(terms=[], critic=[]).loss(b.put(leaves))[0]
    if not loss.requires_grad:
        return False
    slopes = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return any(float(s.abs().max()) > 1e-12 for s in slopes)


def quality(method: Method, seeds: int = 3) -> dict[str, float] | None:
    """Bias, cosine and variance of the gradient on enumerable sequences, on-policy; means over seeds."""
    try:
        found = [gradient_quality(method, seed) for seed in range(seeds)]
    except UsageError:  # it looks at something that a table of logits does not have
        return None
    return {name: sum(f[name] for f in found) / seeds for name in found[0]}


def picture(reading: Reading, title: str, target: Path) -> None:
    """The weight curve."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    x, up, down = zip(*reading.curve, strict=True)
    figure, axes = pyplot.subplots(figsize=(6, 3.8), layout="constrained")
    axes.plot(x, up, label="A = +1")
    axes.plot(x, down, label="A = -1")
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.set(xlabel="log ratio", ylabel="W = -dF/dlogp", title=title)
    axes.set_ylim(*(min(max(v, -6), 6) for v in (min((*up, *down)) - 0.2, max((*up, *down)) + 0.2)))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(target, dpi=130)
    pyplot.close(figure)
