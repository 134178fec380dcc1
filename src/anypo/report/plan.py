"""The plan printed before training: rows per batch, updates, length, memory."""

from __future__ import annotations

import math

from anypo.parts.store.transitions import OpenTransitions
from anypo.protocols import WrapsModel
from anypo.runs.preflight import notes
from anypo.runs.run import Run


def plan_lines(run: Run) -> list[tuple[str, str]]:
    """Return the plan as (label, text) lines."""
    method, want, step = run.method, run.want, run.method.stages["step"]
    total = sum(p.numel() for p in run.policy.parameters())
    trainable = sum(p.numel() for p in run.policy.parameters() if p.requires_grad)
    starts = f", {run.task.starts:,} training starts" if run.task.starts else ""
    changed = [slot for slot in method.diff(method.card.id) if slot not in ("step", "collect")]
    adjusted = f" with {', '.join(changed)} replaced" if changed else ""
    epochs = f"{step.epochs or 1} epoch{'s' * ((step.epochs or 1) > 1)}"
    per = "the whole batch" if not step.minibatch else f"minibatches of {step.minibatch}"
    if run.pool.continuing:
        envs = run.task.envs
        rows = f"{envs} environments x {want.horizon} steps = {envs * (want.horizon or 0):,} decisions"
    else:
        longest = want.requests * want.samples * (want.horizon or 1)
        rows = f"{want.requests} starts x {want.samples} samples = {want.requests * want.samples:,} rows"
        rows += f", at most {longest:,} decisions"
    return [
        ("method", f"{method.card.id}{adjusted}: {method.card.title}"),
        ("task", f"{run.task.name}{starts}"),
        ("policy", f"{run.config.policy['name']}, {total:,} parameters, {trainable:,} trainable"),
        ("batch", rows),
        ("update", f"{epochs} over {per}, {type(step).__name__} at {float(step.lr):g}"),
        ("length", f"{run.steps:,} {run.task.unit}"),
        ("memory", f"about {estimate_memory(run) / 2**20:,.0f} MiB, activations of language models included"),
        *(("note", text) for text in notes(run)),
    ]


def estimate_memory(run: Run) -> int:
    """Estimate bytes: weights, gradients, two moments, anchors, replayed transitions, and for language models the activations of
    one micro-batch.

    Activations are about 68 bytes per token, hidden unit and layer in float32: Korthikanti et al. 2022, arXiv 2205.05198, eq. 2.
    """
    size = sum(p.numel() * p.element_size() for p in run.policy.parameters())
    trainable = sum(p.numel() * p.element_size() for p in run.policy.parameters() if p.requires_grad)
    tokens = min(run.config.micro, run.want.requests * run.want.samples * (run.want.horizon or 1))
    shape = run.policy.inner.config if isinstance(run.policy, WrapsModel) else None
    activations = 0 if shape is None else 68 * tokens * shape.hidden_size * shape.num_hidden_layers
    return size + (3 + len(run.anchors)) * trainable + activations + estimate_store(run)


def estimate_store(run: Run) -> int:
    """Estimate bytes of a store of transitions as full as the run will make it, with the data it begins with."""
    recipe = run.method.stages["store"]
    if not isinstance(run.store, OpenTransitions):
        return 0
    data = sum(column.numel() * column.element_size() for column in run.store.data.values())
    if run.method.traits["offline"]:
        return data
    collected = run.steps if run.task.unit == "environment steps" else math.ceil(run.steps / recipe.ratio)
    room = min(recipe.capacity, 1024 * 2 ** max(0, math.ceil(math.log2(max(collected, 1) / 1024))))
    action = run.task.action_space
    actions = math.prod(action.shape) * (8 if run.policy.sizes else 4)
    return data + room * (2 * run.policy.encode.nbytes + actions + 8)
