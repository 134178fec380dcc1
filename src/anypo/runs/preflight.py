"""What a run's settings mean before it starts: options that cannot bind, and proof that a replaced part is in force."""

from __future__ import annotations

import math
from dataclasses import fields

import torch
from torch import Tensor

from anypo.method.method import Method
from anypo.method.registry import method as registered
from anypo.parts.registry import describe
from anypo.policies.control.images import NatureCNN
from anypo.policies.control.observations import describe_images
from anypo.policies.control.spaces import describe_bounds
from anypo.protocols import HasActionSpace
from anypo.runs.run import Run
from anypo.stages import LEVELS
from anypo.types import FIELDS, Trajectories

PROBED = ("score", "critic", "credit", "ratio", "trust", "reduce", "terms")
"""The stages whose parts reach the gradient of the objective; the others say how rows are made and parameters move."""


def notes(run: Run) -> list[str]:
    """One sentence per option that cannot act, and one per replaced stage: by how much it changes the gradient."""
    return space_notes(run) + cannot_bind(run) + replacements(run)


def space_notes(run: Run) -> list[str]:
    """Say where actions lack bounds, how images are read, and where pixels are features of a perceptron."""
    if not isinstance(run.task, HasActionSpace):
        return []
    bounds = describe_bounds(run.task.action_space)
    pixels = describe_images(getattr(run.task, "observation_space", None))
    planes = dict.fromkeys(m.image.planes for m in run.policy.modules() if isinstance(m, NatureCNN))
    images = [f"observations: convolutions read images of {h}x{w} pixels with {n} channels" for n, h, w in planes]
    return [text for text in (bounds, pixels, *images) if text]


def cannot_bind(run: Run) -> list[str]:
    """With one update per batch the policy is the one that sampled, so every ratio is 1 and no bound on it is met."""
    trust, ratio = run.method.stages["trust"], run.method.stages["ratio"]
    bounds = [
        name for name in ("low", "high") if name in (f.name for f in fields(trust)) and getattr(trust, name) is not None
    ]
    if not bounds or ratio is None or "logp_old" not in ratio.reads or updates_per_batch(run) != 1:
        return []
    return [
        f"trust: {describe(trust)} cannot bind: with one update per batch the ratio is exactly 1; "
        "use more --step.epochs or a smaller --step.minibatch"
    ]


def replacements(run: Run) -> list[str]:
    """For each stage filled otherwise than registered: what that does to dF/dlogp (and the other views) on a probe batch."""
    base = registered(run.config.method)
    mine, theirs = run.method.texts(), base.texts()
    sentences = []
    for slot in PROBED:
        if mine[slot] == theirs[slot]:
            continue
        name = " -> ".join(mine[slot]) or "none"
        without = probe(run.method.but(**{slot: base.stages[slot]}), len(run.task.channels))
        change = apart(probe(run.method, len(run.task.channels)), without)
        if change > 1e-6:
            sentences.append(f"{slot}: {name} changes the gradient by {100 * change:.3g}%")
        else:
            sentences.append(
                f"warning: {slot}: {name} changes nothing; on a probe batch the gradient is the one without it"
            )
    return sentences


def apart(some: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return |some - other| / |other| over all views; a view that one of them lacks, or has in another shape, differs wholly."""
    gap = 0.0
    for name in some.keys() | other.keys():
        one, two = some.get(name), other.get(name)
        if one is not None and two is not None and one.shape == two.shape:
            parts = [one - two]
        else:
            parts = [x for x in (one, two) if x is not None]
        gap += sum(float(x.square().sum()) for x in parts)
    size = sum(float(x.square().sum()) for x in other.values())
    return math.sqrt(gap / max(size, 1e-24))


def probe(method: Method, channels: int) -> dict[str, Tensor]:
    """dF/d(logp, entropy, value, and what else it is differentiated through) on a synthetic batch that has every field, ratios
    well off 1 and gaps in its mask."""
    rows, steps = 24, 12
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    logp = -normal(rows, steps).abs() - 0.1
    mask = torch.rand(rows, steps, generator=g) < 0.9
    mask[:, 0] = True
    leaves = {"logp": logp, "entropy": normal(rows, steps).abs(), "value": normal(rows, steps)}
    scores = (torch.rand(rows, channels, generator=g) < 0.5).double() + 0.1 * normal(rows, channels)
    needed = [method.functional(name) for name in sorted(method.reads(*method.stages) - set(FIELDS))]
    others = {f.name: normal(rows, steps, *f.sizes()) if f.shape else logp - 0.5 * normal(rows, steps) for f in needed}
    others |= {f.name: others[f.name].abs() + 0.1 for f in needed if f.positive}
    reward = normal(rows, steps) if "reward" in method.reads(*PROBED) else None
    batch = Trajectories(
        logp=leaves["logp"],
        entropy=leaves["entropy"],
        value=leaves["value"],
        logp_old=logp - 0.5 * normal(rows, steps),
        logp_ref=logp - 0.5 * normal(rows, steps),
        mask=mask,
        score=scores.sum(1),
        scores=scores,
        group=torch.arange(rows) // 8,
        segment=(torch.arange(steps) // 4).expand(rows, steps),
        value_old=leaves["value"] + 0.3 * normal(rows, steps),
        bootstrap=normal(rows),
        done=torch.arange(rows) % 2 == 0,
        truncated=torch.arange(rows) % 5 == 0,
        budget=steps,
        reward=reward,
        extra=others,
    )
    heads = {getattr(part, "head", "value") for part in method.parts("credit")} - {"value"}
    batch = batch.put({f"bootstrap.{name}": normal(rows) for name in sorted(heads)})
    prepared = method.prepare(batch)
    leaves |= {name: others[name] for name in method.live if name in others}
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in leaves.items()}
    loss, _ = method.loss(prepared.put(leaves))
    slopes = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, slopes, strict=True))


def updates_per_batch(run: Run) -> int:
    """Optimizer steps one full batch leads to."""
    step = run.method.stages["step"]
    epochs = step.epochs or 1
    rows, decisions = batch_size(run)
    single = run.method.level == "decision" and run.policy.independent
    if not step.minibatch or run.method.level == LEVELS[-1]:
        return epochs
    return epochs * max(1, round((decisions if single else rows) / step.minibatch))


def batch_size(run: Run) -> tuple[int, int]:
    """(rows, decisions at most) of a full batch."""
    if run.pool.continuing:
        return run.task.envs, run.task.envs * (run.want.horizon or 1)
    rows = run.want.requests * run.want.samples
    horizon = run.want.horizon or getattr(run.task, "max_new", None) or getattr(run.task, "limit", 1)
    return rows, rows * horizon


def workload(run: Run) -> tuple[int, int]:
    """(decisions at most, optimizer steps) of the whole run."""
    decisions = batch_size(run)[1]
    store, count = run.method.stages["store"], batches(run)
    if not run.method.traits["replays"]:
        return count * decisions * getattr(run.method.stages["collect"], "rounds", 1), count * updates_per_batch(run)
    if run.method.traits["offline"]:
        return 0, count * store.idle * updates_per_batch(run)
    return count * decisions, int(count * decisions * store.ratio) * updates_per_batch(run)


def batches(run: Run) -> int:
    """Batches the run takes; at least so many where its length counts environment steps."""
    if run.task.unit == "batches":
        return run.steps
    if run.task.unit == "updates":
        return math.ceil(run.steps / max(1, run.method.stages["store"].idle))
    return math.ceil(run.steps / batch_size(run)[1])
