"""Random batches with everything in them that goes wrong: gaps, left padding, empty rows, unequal and single groups,
ties, missing outcomes, rewards per decision, cut rows, extreme log-ratios."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anypo.method.method import Method
from anypo.types import FIELDS, STEP_FIELDS, Trajectories

LEAVES = ("logp", "value", "entropy")
"""What a loss may be differentiable through."""
POSITIVE = ("step_std", "step_width", "noise_share")
"""Further inputs that are scales."""
FLOAT_STEP_FIELDS = tuple(n for n in STEP_FIELDS if n not in ("mask", "segment"))


def random_batch(
    seed: int,
    rows: int = 6,
    steps: int = 5,
    *,
    dtype: torch.dtype = torch.float64,
    spread: float = 0.3,
    holes: float = 0.3,
    outcome: str = "score",
    optional: bool = True,
    extra: Iterable[str] | Mapping[str, tuple[int, ...]] = (),
) -> Trajectories:
    """One batch, a function of its arguments alone.

    spread: log-ratios lie in [-3 spread, 3 spread] or, from 10 on, in [-spread, spread]. holes: share of masked slots.
    outcome: score | scores (channels, some missing) | reward (per decision). optional: fields may be present or not.
    extra: names of further [row, step] inputs, or these with the sizes of further dimensions.
    """
    rng = np.random.default_rng(seed)
    maybe = (lambda value: value if rng.random() < 0.5 else None) if optional else (lambda value: value)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape)

    def apart() -> np.ndarray:
        return rng.uniform(-spread, spread, (rows, steps)) if spread >= 10 else normal(rows, steps).clip(-3, 3) * spread

    mask = rng.random((rows, steps)) >= holes
    if holes and rows > 1 and rng.random() < 0.4:
        mask[rng.integers(rows)] = False
    if holes and steps > 1:
        mask[rng.integers(rows), : rng.integers(steps)] = False
    logp = -np.abs(normal(rows, steps))
    if spread >= 10:
        logp -= spread
    arrays: dict[str, Any] = {
        "logp": logp,
        "logp_old": logp - apart(),
        "logp_ref": logp - apart(),
        "entropy": np.abs(normal(rows, steps)),
        "value": normal(rows, steps),
        "weight": maybe(rng.integers(0, 3, (rows, steps)) / 2),
    }
    if outcome == "reward":
        arrays["reward"] = normal(rows, steps)
    elif outcome == "scores":
        scores = normal(rows, 2).round(1)
        scores[rng.random((rows, 2)) < 0.3] = np.nan
        arrays["scores"] = scores
    else:  # right or wrong: ties, and groups without variance
        arrays["score"] = rng.integers(0, 2, rows).astype(float)
    if (bootstrap := maybe(normal(rows))) is not None:
        arrays["bootstrap"] = bootstrap
        arrays["done"] = maybe(rng.random(rows) < 0.5)
    found: dict[str, Any] = {k: torch.as_tensor(v) for k, v in arrays.items() if v is not None}
    made = Trajectories(
        mask=torch.as_tensor(mask),
        group=torch.as_tensor(rng.integers(0, rows // 2 + 1, rows) * 7 - 3),  # interleaved, ids with gaps
        segment=torch.as_tensor(np.sort(rng.integers(0, 3, (rows, steps)), 1)),
        truncated=None if (cut := maybe(rng.random(rows) < 0.3)) is None else torch.as_tensor(cut),
        budget=maybe(steps + 3),
        **{k: t.to(dtype) if t.is_floating_point() else t for k, t in found.items()},
    )
    tails = dict(extra) if isinstance(extra, Mapping) else dict.fromkeys(extra, ())
    flags = ("terminal", "expert")
    more = {
        name: (rng.random((rows, steps)) < 0.5).astype(float) if name in flags else normal(rows, steps, *tail)
        for name, tail in tails.items()
    }
    positive = {name for name in more if name in POSITIVE or name.endswith("_std")}
    more = {name: np.abs(x) + 0.1 if name in positive else x for name, x in more.items()}
    return made.but(extra={name: torch.as_tensor(x).to(dtype) for name, x in more.items()})


def all_reads(method: Method) -> set[str]:
    return method.reads(*method.stages)


def needs(method: Method) -> dict[str, Any]:
    """Arguments of `random_batch` without which a batch would lack what the method reads: further inputs, rewards per decision."""
    reads = all_reads(method)
    needed: dict[str, Any] = {"extra": {name: method.tail(name) for name in sorted(reads - set(FIELDS))}}
    return needed | ({"outcome": "reward"} if "reward" in reads else {})


def random_advantage(b: Trajectories) -> Trajectories:
    """b with an advantage that is nowhere zero on valid decisions: what `loss` is to take as it finds it."""
    generator = torch.Generator().manual_seed(int(b.valid.sum()) + 1)
    a = torch.randn(b.shape, generator=generator, dtype=torch.float64)
    a = a.sign() * (a.abs() + 0.1)
    dtype = torch.float64 if b.logp is None else b.logp.dtype
    return b.but(advantage=torch.where(b.valid, a, 0.0).to(dtype))


def leaves_of(method: Method) -> list[str]:
    """The fields a method's loss may be differentiated through."""
    return list(dict.fromkeys((*LEAVES, *method.live)))


def gradients(method: Method, b: Trajectories) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """loss, metrics, and dloss/dfield for every leaf in the batch (zeros where the loss does not depend on it)."""
    leaves = {n: t.detach().clone().requires_grad_() for n in leaves_of(method) if (t := b.get(n)) is not None}
    loss, metrics = method.loss(b.put(leaves))
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    zeros = [torch.zeros_like(t) for t in leaves.values()]
    grads = [z if g is None else g for g, z in zip(found, zeros, strict=True)]
    return loss.detach(), metrics, dict(zip(leaves, grads, strict=True))


def polluted(b: Trajectories, rubbish: float) -> Trajectories:
    """b with `rubbish` in every masked slot of every [row, step] float field."""
    changes = {n: t.masked_fill(~b.valid, rubbish) for n in FLOAT_STEP_FIELDS if (t := getattr(b, n)) is not None}
    hidden = ~b.valid
    extra = {
        k: t.masked_fill(hidden.reshape(*b.shape, *[1] * (t.ndim - 2)), rubbish) if t.shape[:2] == b.shape else t
        for k, t in b.extra.items()
    }
    return b.but(**changes, extra=extra)


def same_bits(x: Tensor, y: Tensor) -> bool:
    """Equal to the last bit; NaN equals NaN."""
    return x.dtype == y.dtype and torch.equal(x.isnan(), y.isnan()) and torch.equal(x.nan_to_num(), y.nan_to_num())


def drawn(method: Method, seed: int, **fixed: Any) -> Trajectories:
    """One random batch that holds whatever the method reads, a function of the seed."""
    rng = np.random.default_rng([seed, 7])
    arguments: dict[str, Any] = {
        "rows": int(rng.integers(1, 9)),
        "steps": int(rng.integers(1, 7)),
        "holes": float(rng.choice([0.0, 0.3, 0.7])),
        "outcome": str(rng.choice(["score", "scores", "reward"])),
        "spread": float(rng.choice([0.0, 0.3, 2.0])),
    }
    return random_batch(seed, **(arguments | needs(method) | fixed))
