"""Metrics and warnings about a batch that no method needs."""

from __future__ import annotations

import warnings
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from anypo.loops.precision import autocast, precision
from anypo.loops.views import LOGP, views_without_grad
from anypo.method.method import Method
from anypo.parts.ops.groups import group_stats, index_groups
from anypo.parts.ops.masked import masked_mean
from anypo.runs.run import Run
from anypo.types import Trajectories
from anypo.views import View

TOLERANCE = 0.02
"""Nats per decision by which sampling and evaluation may differ before somebody is told, beside the rounding of logits."""


ROUNDED = 4
"""Size of the logit whose rounding is tolerated: 0.03 in bfloat16, nothing in float32."""


@runtime_checkable
class Observer(Protocol):
    """Measures a batch on its way through `absorb`; what it returns joins the batch's metrics. It changes nothing."""

    def drawn(self, run: Run, rows: Trajectories) -> dict[str, float]:
        """Called with the first rows drawn from the store."""
        ...

    def prepared(self, run: Run, rows: Trajectories) -> dict[str, float]:
        """Called with the same rows after credit was assigned."""
        ...

    def updated(self, run: Run, metrics: dict[str, float]) -> None:
        """Called with the metrics after the updates."""
        ...


class Diagnostics:
    """Measures the mismatch of sampling and evaluation, and describes the batch; warns of a mismatch in the first batch."""

    def drawn(self, run: Run, rows: Trajectories) -> dict[str, float]:
        known = rows.logp_old is None or first_loss_is_on_policy(run, run.phase)
        return {} if known else {"mismatch": sampled_mismatch(run, rows)}

    def prepared(self, run: Run, rows: Trajectories) -> dict[str, float]:
        return describe_batch(run.phase, rows)

    def updated(self, run: Run, metrics: dict[str, float]) -> None:
        if run.batch == 0 and "mismatch" in metrics:
            warn_of_mismatch(metrics["mismatch"], precision(run))


DIAGNOSTICS: tuple[Observer, ...] = (Diagnostics(),)
"""The observers of every run."""


def merge_metrics(made: list[dict[str, float]]) -> dict[str, float]:
    """Metrics of several draws as those of one batch: sums of what is counted, else means over the draws that have them."""
    if len(made) == 1:
        return made[0]
    found: dict[str, list[float]] = {}
    for metrics in made:
        for name, value in metrics.items():
            found.setdefault(name, []).append(value)
    means = {name: sum(values) / len(values) for name, values in found.items()}
    return {**means, **{name: float(sum(found.get(name, ()))) for name in ("skipped", "updates")}}


def describe_batch(method: Method, batch: Trajectories) -> dict[str, float]:
    """What the batch looks like before the update: size, and the shares of groups that teach nothing and of rows that do."""
    found = {"rows": float(batch.shape[0]), "decisions": float(batch.valid.sum())}
    if method.traits["grouped"] and batch.score is not None and batch.group is not None:
        std = group_stats(batch.score, batch.group)[2]
        index, groups = index_groups(batch.group)
        dead = torch.zeros(groups, device=index.device).index_fill_(0, index[std == 0], 1.0)
        found["dead_groups"] = float(dead.mean())
    if (hint := batch.get("hint")) is not None:
        found["hint"] = float(hint.mean())
    if batch.advantage is not None:
        found["advantage_std"] = (
            float(batch.advantage[batch.valid].std(correction=0)) if bool(batch.valid.any()) else 0.0
        )
        found["live_rows"] = float(((batch.advantage != 0) & batch.valid).any(1).float().mean())
    return found


def first_loss_is_on_policy(run: Run, method: Method) -> bool:
    """Whether the loss of a batch's first minibatch evaluates log pi as it was when the batch was sampled. Minibatches of single
    decisions may be recordings, which only do what is needed for the gradient."""
    return not run.policy.independent and method.live.get("logp") == View()


def sampled_mismatch(run: Run, batch: Trajectories) -> float:
    """`disagreement` on a few rows before the update: 0 up to rounding, as nothing has changed since sampling."""
    rows = max(1, min(8, 256 // max(batch.shape[1], 1)))
    own = torch.arange(batch.shape[0]) if batch.expert_mask is None else (~batch.expert_mask).nonzero()[:, 0]
    some = batch.rows(own[:rows])
    with autocast(run):
        return float(mismatch(views_without_grad(run.policy, some, LOGP, run.config.micro)["logp"], some))


def warn_of_mismatch(mismatch: float, dtype: torch.dtype) -> None:
    """More than rounding is a mistake in the policy."""
    if mismatch > TOLERANCE + ROUNDED * torch.finfo(dtype).eps:
        warnings.warn(
            f"sampling and evaluation disagree by {mismatch:.2g} nats per decision before any update; likely causes: another"
            " temperature, top-k or top-p on one side, dropout, bfloat16 (--autocast off), or a truncated input",
            stacklevel=2,
        )


@torch.no_grad()
def mismatch(logp: Tensor, batch: Trajectories) -> Tensor:
    """Mean |log pi - log pi_old| (nats) over the policy's own decisions."""
    assert batch.logp_old is not None
    own = batch.valid if batch.expert_mask is None else batch.valid & ~batch.expert_mask[:, None]
    return masked_mean((logp - batch.logp_old).abs(), own)


def first_nonfinite(batch: Trajectories, metrics: dict[str, Any]) -> str:
    """Name of the first tensor of a batch, or metric, that is not finite where it counts."""
    valid = batch.valid
    for name in ("logp_old", "logp_ref", "reward", "score", "value", "value_old", "returns", "advantage", "weight"):
        tensor = batch.get(name)
        if tensor is not None:
            bad = ~tensor.isfinite()
            if bool((bad & valid).any() if bad.ndim == 2 else bad.any()):
                return f"the batch's {name}"
    for name, value in metrics.items():
        if not torch.isfinite(torch.as_tensor(value, dtype=torch.float64)):
            return f"the metric {name}"
    return "the gradient"
