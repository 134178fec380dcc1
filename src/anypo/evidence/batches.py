"""Random batches of hard cases: gaps, left padding, empty rows, unequal and single groups,
ties, missing outcomes, rewards per decision, cut rows, extreme log-ratios."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anypo.method.method import Method
from anypo.policies.control import off_policy  # noqa: F401
from anypo.policies.generative import denoiser  # noqa: F401 - policies register what their functionals look like
from anypo.types import FIELDS, STEP_FIELDS, Trajectories
from anypo.views import Functional

LEAVES = ("logp", "value", "entropy")
"""What a loss may be differentiable through."""
FLAGS = ("terminal", "expert")
"""Further inputs that are 0 or 1."""
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
    extra: Iterable[str | Functional] = (),
) -> Trajectories:
    """Draw a batch that is a function of its arguments alone.

    Args:
        seed: of everything drawn.
        rows: number of rows N.
        steps: decisions per row T.
        dtype: of every float field.
        spread: log-ratios are in [-3 spread, 3 spread] or, from 10 on, in [-spread, spread].
        holes: share of masked slots.
        outcome: score | scores (channels, some missing) | reward (per decision).
        optional: fields that may be missing are left out at random.
        extra: further inputs, by their names or by what they hold.
    """
    rng = np.random.default_rng(seed)

    def maybe(value: Any) -> Any:
        return value if not optional or rng.random() < 0.5 else None

    mask = _random_mask(rng, rows, steps, holes)
    arrays = _random_log_probs(rng, rows, steps, spread)
    arrays["entropy"] = np.abs(rng.standard_normal((rows, steps)))
    arrays["value"] = rng.standard_normal((rows, steps))
    arrays["weight"] = maybe(rng.integers(0, 3, (rows, steps)) / 2)
    arrays |= _random_outcome(rng, rows, steps, outcome)
    if (bootstrap := maybe(rng.standard_normal(rows))) is not None:
        arrays["bootstrap"] = bootstrap
        arrays["done"] = maybe(rng.random(rows) < 0.5)
    tensors: dict[str, Any] = {k: torch.as_tensor(v) for k, v in arrays.items() if v is not None}
    b = Trajectories(
        mask=torch.as_tensor(mask),
        group=torch.as_tensor(rng.integers(0, rows // 2 + 1, rows) * 7 - 3),  # interleaved, ids with gaps
        segment=torch.as_tensor(np.sort(rng.integers(0, 3, (rows, steps)), 1)),
        truncated=None if (cut := maybe(rng.random(rows) < 0.3)) is None else torch.as_tensor(cut),
        budget=maybe(steps + 3),
        **{k: t.to(dtype) if t.is_floating_point() else t for k, t in tensors.items()},
    )
    described = [Functional(item) if isinstance(item, str) else item for item in extra]
    inputs = {functional.name: _random_input(rng, functional, rows, steps) for functional in described}
    return b.but(extra={name: torch.as_tensor(x).to(dtype) for name, x in inputs.items()})


def _random_mask(rng: np.random.Generator, rows: int, steps: int, holes: float) -> np.ndarray:
    """Mask slots anywhere, sometimes a row without a decision, and left padding."""
    mask = rng.random((rows, steps)) >= holes
    if holes and rows > 1 and rng.random() < 0.4:
        mask[rng.integers(rows)] = False
    if holes and steps > 1:
        mask[rng.integers(rows), : rng.integers(steps)] = False
    return mask


def _random_log_probs(rng: np.random.Generator, rows: int, steps: int, spread: float) -> dict[str, Any]:
    """Draw logp, and logp_old and logp_ref at random log-ratios from it."""
    logp = -np.abs(rng.standard_normal((rows, steps)))
    if spread >= 10:
        logp -= spread
        old, ref = (logp - rng.uniform(-spread, spread, (rows, steps)) for _ in range(2))
    else:
        old, ref = (logp - rng.standard_normal((rows, steps)).clip(-3, 3) * spread for _ in range(2))
    return {"logp": logp, "logp_old": old, "logp_ref": ref}


def _random_outcome(rng: np.random.Generator, rows: int, steps: int, outcome: str) -> dict[str, Any]:
    """Draw a reward per decision, two channels with missing scores, or right and wrong rows: ties, and groups without variance."""
    if outcome == "reward":
        return {"reward": rng.standard_normal((rows, steps))}
    if outcome == "scores":
        scores = rng.standard_normal((rows, 2)).round(1)
        scores[rng.random((rows, 2)) < 0.3] = np.nan
        return {"scores": scores}
    return {"score": rng.integers(0, 2, rows).astype(float)}


def _random_input(rng: np.random.Generator, described: Functional, rows: int, steps: int) -> np.ndarray:
    """Draw a further input: a flag, by its name, a positive scale or a normal number."""
    if described.name in FLAGS:
        return (rng.random((rows, steps)) < 0.5).astype(float)
    x = rng.standard_normal((rows, steps, *described.sizes()))
    return np.abs(x) + 0.1 if described.positive else x


def all_reads(method: Method) -> set[str]:
    """Return the fields that any stage of the method reads."""
    return method.reads(*method.stages)


def needs(method: Method) -> dict[str, Any]:
    """Return the arguments of `random_batch` that give what the method reads: further inputs, rewards per decision."""
    reads = all_reads(method)
    needed: dict[str, Any] = {"extra": [method.functional(name) for name in sorted(reads - set(FIELDS))]}
    return needed | ({"outcome": "reward"} if "reward" in reads else {})


def random_advantage(b: Trajectories) -> Trajectories:
    """Return b with a random advantage that is nowhere zero on valid decisions."""
    generator = torch.Generator().manual_seed(int(b.valid.sum()) + 1)
    a = torch.randn(b.shape, generator=generator, dtype=torch.float64)
    a = a.sign() * (a.abs() + 0.1)
    dtype = torch.float64 if b.logp is None else b.logp.dtype
    return b.but(advantage=torch.where(b.valid, a, 0.0).to(dtype))


def leaves_of(method: Method) -> list[str]:
    """Return the fields a method's loss may be differentiated through."""
    return list(dict.fromkeys((*LEAVES, *method.live)))


def gradients(method: Method, b: Trajectories) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Return loss, metrics, and dloss/dfield for every leaf in the batch (zeros where the loss does not depend on it)."""
    leaves = {n: t.detach().clone().requires_grad_() for n in leaves_of(method) if (t := b.get(n)) is not None}
    loss, metrics = method.loss(b.put(leaves))
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return loss.detach(), metrics, dict(zip(leaves, grads, strict=True))


def fill_masked(b: Trajectories, rubbish: float) -> Trajectories:
    """Return b with `rubbish` in every masked slot of every [row, step] float field."""
    changes = {n: t.masked_fill(~b.valid, rubbish) for n in FLOAT_STEP_FIELDS if (t := b.get(n)) is not None}
    hidden = ~b.valid
    extra = {
        k: t.masked_fill(hidden.reshape(*b.shape, *[1] * (t.ndim - 2)), rubbish) if t.shape[:2] == b.shape else t
        for k, t in b.extra.items()
    }
    return b.but(**changes, extra=extra)


def same_bits(x: Tensor, y: Tensor) -> bool:
    """Compare to the last bit; NaN equals NaN."""
    return x.dtype == y.dtype and torch.equal(x.isnan(), y.isnan()) and torch.equal(x.nan_to_num(), y.nan_to_num())


def draw_batch(method: Method, seed: int, **fixed: Any) -> Trajectories:
    """Draw a batch with all that the method reads, a function of the seed; `fixed` are arguments of `random_batch`."""
    rng = np.random.default_rng([seed, 7])
    arguments: dict[str, Any] = {
        "rows": int(rng.integers(1, 9)),
        "steps": int(rng.integers(1, 7)),
        "holes": float(rng.choice([0.0, 0.3, 0.7])),
        "outcome": str(rng.choice(["score", "scores", "reward"])),
        "spread": float(rng.choice([0.0, 0.3, 2.0])),
    }
    return random_batch(seed, **(arguments | needs(method) | fixed))
