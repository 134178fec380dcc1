"""The plan printed before training: rows per batch, updates, length, memory."""

from __future__ import annotations

import math

from anypo.parts.store.transitions import OpenTransitions
from anypo.protocols import ShowsPrompt, WrapsModel
from anypo.runs.preflight import batch_size, batches, notes, workload
from anypo.runs.run import Run

PER_DECISION = 200
"""Bytes of a decision in a batch or a store: some twenty numbers beside its observation, and copies of them in an update."""


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
    if method.traits["offline"]:
        store = method.stages["store"]
        rows = f"{store.idle} minibatches of {store.batch} recorded transitions"
    elif run.pool.continuing:
        envs = run.task.envs
        rows = f"{envs} environments x {want.horizon} steps = {envs * (want.horizon or 0):,} decisions"
    else:
        count, longest = batch_size(run)
        rows = f"{want.requests} starts x {want.samples} samples = {count:,} rows, at most {longest:,} decisions"
    return [
        ("method", f"{method.card.id}{adjusted}: {method.card.title}"),
        ("task", f"{run.task.name}{starts}"),
        ("policy", f"{run.config.policy['name']}, {total:,} parameters, {trainable:,} trainable"),
        ("batch", rows),
        ("update", f"{epochs} over {per}, {type(step).__name__} at {float(step.lr):g}"),
        *(("prompt", text) for text in first_prompt(run)),
        ("length", length(run)),
        ("measure", measured(run)),
        ("memory", f"about {estimate_memory(run) / 2**20:,.0f} MiB, activations of language models included"),
        *(("note", text) for text in (*run.remarks, *notes(run))),
    ]


def first_prompt(run: Run) -> list[str]:
    """Return the first prompt as the model reads it, of a task that has prompts."""
    if not isinstance(run.task, ShowsPrompt):
        return []
    text = repr(run.task.show_prompt(run.policy))
    return [text if len(text) <= 200 else f"{text[:120]} ... {text[-60:]}"]


def measured(run: Run) -> str:
    """Say what is measured on how many held-out starts."""
    known = run.config.episodes or getattr(run.task, "eval_episodes", None) or len(getattr(run.task, "heldout", ()))
    return f"{run.metric}{f' on {known:,} held-out starts' if known else ''}"


def length(run: Run) -> str:
    """Say how long the run is, and what it amounts to; a batch is never cut."""
    text = f"{run.steps:,} {run.task.unit}"
    if run.task.unit == "environment steps" and run.pool.continuing and run.steps % batch_size(run)[1]:
        text += f", rounded up to {batches(run) * batch_size(run)[1]:,}"
    decisions, updates = workload(run)
    return f"{text}: {f'at most {decisions:,} decisions and ' if decisions else ''}about {updates:,} updates"


def estimate_memory(run: Run) -> int:
    """Estimate bytes: weights, gradients, two moments, anchors, rows, replayed transitions, and for language models the activations
    of one micro-batch.

    Activations are about 68 bytes per token, hidden unit and layer in float32: Korthikanti et al. 2022, arXiv 2205.05198, eq. 2.
    """
    size = sum(p.numel() * p.element_size() for p in run.policy.parameters())
    trainable = sum(p.numel() * p.element_size() for p in run.policy.parameters() if p.requires_grad)
    decisions = batch_size(run)[1]
    tokens = min(run.config.micro, decisions)
    shape = run.policy.inner.config if isinstance(run.policy, WrapsModel) else None
    activations = 0 if shape is None else 68 * tokens * shape.hidden_size * shape.num_hidden_layers
    return size + (3 + len(run.anchors)) * trainable + activations + PER_DECISION * decisions + estimate_store(run)


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
