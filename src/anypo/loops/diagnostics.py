"""Metrics and warnings about a batch that no method needs."""

from __future__ import annotations

import warnings
from typing import Protocol, runtime_checkable

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
"""Nats per decision by which sampling and evaluation may differ before a warning, beside the rounding of logits."""


ROUNDED = 4
"""Size of the logit whose rounding is tolerated: 0.03 in bfloat16, nothing in float32."""


@runtime_checkable
class Observer(Protocol):
    """Measures a batch on its way through `absorb`; what it returns joins the batch's metrics. It changes nothing."""

    def drawn(self, run: Run, rows: Trajectories) -> dict[str, float]:
        """Take the first rows drawn from the store."""
        ...

    def prepared(self, run: Run, rows: Trajectories) -> dict[str, float]:
        """Take the same rows after credit was assigned."""
        ...

    def updated(self, run: Run, metrics: dict[str, float]) -> None:
        """Take the metrics after the updates."""
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


def merge_metrics(draws: list[dict[str, float]]) -> dict[str, float]:
    """Merge the metrics of several draws: sums of counts, else means over the draws that have them."""
    if len(draws) == 1:
        return draws[0]
    columns: dict[str, list[float]] = {}
    for metrics in draws:
        for name, value in metrics.items():
            columns.setdefault(name, []).append(value)
    means = {name: sum(values) / len(values) for name, values in columns.items()}
    return {**means, **{name: float(sum(columns.get(name, ()))) for name in ("skipped", "updates")}}


def describe_batch(method: Method, batch: Trajectories) -> dict[str, float]:
    """Describe a batch before its update: its size, the share of groups without variance and of rows with an advantage."""
    metrics = {"rows": float(batch.shape[0]), "decisions": float(batch.valid.sum())}
    if method.traits["grouped"] and batch.score is not None and batch.group is not None:
        std = group_stats(batch.score, batch.group)[2]
        index, groups = index_groups(batch.group)
        dead = torch.zeros(groups, device=index.device).index_fill_(0, index[std == 0], 1.0)
        metrics["dead_groups"] = float(dead.mean())
    if (hint := batch.get("hint")) is not None:
        metrics["hint"] = float(hint.mean())
    if batch.advantage is not None:
        metrics["advantage_std"] = (
            float(batch.advantage[batch.valid].std(correction=0)) if bool(batch.valid.any()) else 0.0
        )
        metrics["live_rows"] = float(((batch.advantage != 0) & batch.valid).any(1).float().mean())
    return metrics


def first_loss_is_on_policy(run: Run, method: Method) -> bool:
    """Whether the loss of a batch's first minibatch evaluates log pi as it was when the batch was sampled. Minibatches of single
    decisions may be recordings, which only do what is needed for the gradient."""
    return not run.policy.independent and method.live.get("logp") == View()


def sampled_mismatch(run: Run, batch: Trajectories) -> float:
    """`mismatch` on a few rows before the update: 0 up to rounding, as nothing has changed since sampling."""
    rows = max(1, min(8, 256 // max(batch.shape[1], 1)))
    expert = batch.get("expert_mask")
    sampled = torch.arange(batch.shape[0]) if expert is None else (~expert).nonzero()[:, 0]
    few = batch.rows(sampled[:rows])
    with autocast(run):
        return float(mismatch(views_without_grad(run.policy, few, LOGP, run.config.micro)["logp"], few))


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
    expert = batch.get("expert_mask")
    sampled = batch.mask if expert is None else batch.valid & ~expert[:, None]
    return masked_mean((logp - batch.need("logp_old")).abs(), sampled)
