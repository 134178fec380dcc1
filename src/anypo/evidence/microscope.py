"""The microscope: a method's gradient, measured on probes rather than read off its formula."""

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
from anypo.protocols import LinearReduce, Scaled, SelectsRows, Silent
from anypo.types import FIELDS, Trajectories

SIGNS = (1.0, -1.0)


@dataclass(frozen=True)
class Reading:
    """All measurements of one method.

    curve: rows (log r, W at A = +1, W at A = -1), W = -dF/dlogp of one decision over its coefficient in the mean.
    gain: length of dF/dlogp at ratio 1 over that of plain REINFORCE with the same advantages and mean. A method whose policy learns
    from no advantage has neither. dead: terms without gradient. idle: terms switched off by a coefficient of 0.
    quality: bias and cosine on enumerable sequences, None where the method reads more than those offer.
    """

    curve: list[tuple[float, float, float]]
    gain: float | None
    dead: list[str]
    idle: list[str]
    quality: dict[str, float] | None


def measure_gradient(method: Method) -> Reading:
    """Take all measurements of one method."""
    dead, idle = find_dead_terms(method)
    if "logp" not in method.live or "advantage" not in method.reads("trust"):  # it learns through values alone
        return Reading([], None, dead, idle, None)
    return Reading(
        weight_curve(method), gain(method), dead, idle, None if method.traits["replays"] else gradient_bias(method)
    )


def probe_batch(method: Method, seed: int, rows: int, steps: int, spread: float, holes: float) -> Trajectories:
    """Draw a random batch with all that the method reads.

    Args:
        method: decides which fields there are.
        seed: of everything drawn.
        rows: number of rows N.
        steps: decisions per row T.
        spread: log-ratios are in [-3 spread, 3 spread] or, from 10 on, in [-spread, spread].
        holes: share of masked slots.
    """
    extra = [method.functional(name) for name in sorted(all_reads(method) - set(FIELDS))]
    outcome = "reward" if method.traits["replays"] and "reward" in all_reads(method) else "score"
    return random_batch(seed, rows, steps, spread=spread, holes=holes, optional=False, outcome=outcome, extra=extra)


def on_policy_batch(method: Method, rows: int = 8, steps: int = 4) -> Trajectories:
    """Draw two groups, half of each right, at ratio r = 1, with advantages of +1 and -1 and all that the method reads."""
    b = probe_batch(method, 0, rows, steps, spread=0.0, holes=0.0)
    right = (torch.arange(rows) % 2 == 0).double()
    b = b.but(
        score=right, scores=None, weight=None, group=torch.arange(rows) // (rows // 2), truncated=None, fresh=None
    )
    b = method.prepare(b)
    a = (2 * right - 1).unsqueeze(1).expand(rows, steps).clone()
    returns = None if b.returns is None or b.value is None else b.value + a
    anchored = {
        f"{name}_{of}": x for name, x in b.extra.items() for of in ("old", "ref", "ema") if f"{name}_{of}" in b.extra
    }
    b = b.put(anchored)
    logp_ref = b.need("logp").clone()
    return b.but(advantage=a, returns=returns, mask=torch.ones_like(a, dtype=torch.bool), logp_ref=logp_ref)


def surrogate_gradient(method: Method, b: Trajectories) -> Tensor:
    """Return dF/dlogp of the main surrogate alone, without the terms."""
    logp = b.need("logp").detach().clone().requires_grad_()
    loss, _ = method.but(terms=[], critic=[]).loss(b.but(logp=logp))
    if not loss.requires_grad:
        return torch.zeros_like(logp)
    return torch.autograd.grad(loss, logp, materialize_grads=True)[0]


def gain(method: Method) -> float:
    """Return |dF/dlogp| at ratio 1 over that of plain REINFORCE: 1 for every surrogate r A."""
    b = on_policy_batch(method)
    advantage, reduce = b.need("advantage"), method.stages["reduce"]
    if isinstance(reduce, LinearReduce):
        plain = advantage * reduce.coefficients(b)
    else:  # one number per group: compared with the mean of row means
        plain = advantage / (b.shape[0] * b.shape[1])
    return float(surrogate_gradient(method, b).norm() / plain.norm())


def weight_curve(method: Method, points: int = 25, reach: float = 3.0) -> list[tuple[float, float, float]]:
    """Return rows (log r, W at A = +1, W at A = -1), one decision at a time in an otherwise on-policy batch."""
    b = on_policy_batch(method)
    logp, logp_old, reduce = b.need("logp"), b.need("logp_old"), method.stages["reduce"]
    coefficients = reduce.coefficients(b).expand(b.shape) if isinstance(reduce, LinearReduce) else None
    curve = []
    for x in torch.linspace(-reach, reach, points).tolist():
        weights = []
        for row in (0, 1):  # a right row, a wrong row
            old = logp_old.clone()
            old[row, 0] = logp[row, 0] - x
            size = 1 / logp.numel() if coefficients is None else float(coefficients[row, 0])
            weights.append(-float(surrogate_gradient(method, b.but(logp_old=old))[row, 0]) / size)
        curve.append((x, weights[0], weights[1]))
    return curve


def find_dead_terms(method: Method) -> tuple[list[str], list[str]]:
    """Return (dead, idle): parts of the loss whose gradient in log-probs, entropies and values is exactly 0 on each of several
    off-policy batches, and the ones a coefficient of 0 has switched off."""
    dead: list[str] = []
    idle: list[str] = []
    trust_alone = method.but(terms=[], critic=[])
    # a part without an objective is not dead
    trust = method.stages["trust"]
    candidates: list[tuple[str, Any]] = [] if isinstance(trust, Silent) and trust.silent else [("trust", None)]
    candidates += [(slot, part) for slot in ("terms", "critic") for part in method.stages[slot]]
    for slot, part in candidates:
        name = f"{slot}: {describe(trust if part is None else part)}"
        if isinstance(part, Scaled) and not float(part.coef):
            idle.append(name)
        else:
            probe = trust_alone if part is None else trust_alone.but(None, **{slot: [part]})
            if not any(
                has_gradient(method, probe, slot, *far) for far in itertools.product(range(3), (0.3, 2.0, 10.0))
            ):
                dead.append(name)
    return dead, idle


def has_gradient(method: Method, probe: Method, slot: str, seed: int, spread: float) -> bool:
    """Check whether a term, alone beside the main surrogate, changes the gradient.

    Args:
        method: credit and main surrogate.
        probe: the method with that term only.
        slot: the term's stage.
        seed: of the batch.
        spread: distance of the batch from its anchors, as log-ratio.
    """
    b = probe_batch(method, seed, 12, 6, spread=spread, holes=0.1)
    if any(isinstance(p, SelectsRows) and p.rows == "expert" for p in method.stages["terms"]):
        b = b.but(expert_mask=torch.arange(12) % 3 == 0)
    b = method.prepare(b)
    b = b.but(logp_ref=b.logp_ref - 8.0 if b.logp_ref is not None else None)  # beyond any threshold
    names = {*LEAVES, *method.live}
    leaves = {n: t.detach().clone().requires_grad_() for n in sorted(names) if (t := b.get(n)) is not None}
    loss, _ = probe.loss(b.put(leaves))
    if slot != "trust":
        loss = loss - method.but(terms=[], critic=[]).loss(b.put(leaves))[0]
    if not loss.requires_grad:
        return False
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return any(float(g.abs().max()) > 1e-12 for g in grads)


def gradient_bias(method: Method, seeds: int = 3) -> dict[str, float] | None:
    """Return bias, cosine and variance of the on-policy gradient on enumerable sequences, means over seeds; None where the method
    reads more than those offer."""
    try:
        measures = [gradient_quality(method, seed) for seed in range(seeds)]
    except UsageError:
        return None
    return {name: sum(m[name] for m in measures) / seeds for name in measures[0]}


def plot_weights(reading: Reading, title: str, target: Path) -> None:
    """Plot W = -dF/dlogp over the log-ratio into the file `target`."""
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
