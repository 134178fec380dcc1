"""The learning loop: collect - score - store - credit - minibatches - step, the same for every method, policy and task."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch

from anypo.errors import RunError, UsageError
from anypo.loops.record import recording, recurring
from anypo.loops.run import Run, append, dump, write_checkpoint
from anypo.loops.update import (
    LOGP,
    cut,
    disagreement,
    evaluate,
    first_nonfinite,
    gradient,
    loosened,
    minibatches,
    objective,
    propose,
    standing,
    with_noise,
)
from anypo.method import Method
from anypo.parts.statistics import group_stats, index_groups
from anypo.policies.anchor import blend, refreshed
from anypo.policies.curvature import Moments
from anypo.stages import View
from anypo.types import Request, Trajectories

PATIENCE = 5
"""Updates in a row that may be skipped for numbers that are not finite before the run stops."""

TOLERANCE = 0.02
"""Nats per decision by which sampling and evaluation may differ before somebody is told, beside the rounding of logits."""
ROUNDED = 4
"""Size of the logit whose rounding is tolerated: 0.03 in bfloat16, nothing in float32."""

Watch = Callable[[dict[str, Any]], None]


def learn(run: Run, watch: Watch = lambda record: None) -> dict[str, Any]:
    """Train until the run's length or its target is reached; returns the last record.

    Every batch is one line in metrics.jsonl (and one call of `watch`); wall-clock times go to timing.jsonl, so that
    equal seeds give equal metrics.
    """
    record: dict[str, Any] = {}
    if run.batch == 0:
        record = {"batch": 0, "done": 0, **held_out(run)}
        report(run, record, watch)
        write_checkpoint(run)
    while not run.finished:
        clock = time.perf_counter()
        method, run.pool.batches = run.enter(), run.batch + 1
        with run.stepper.ahead():
            batch, metrics = collect(run, method)
            sampled = time.perf_counter()
            if batch is not None:
                run.pool.decisions += int(batch.valid.sum())
                run.store.add(batch)
            made: list[dict[str, float]] = []
            for draw in range(run.store.draws()):
                batch = run.store.draw(run.generator)
                if draw == 0 and batch.logp_old is not None and not evaluated_anyway(run, method):
                    metrics["mismatch"] = mismatch(run, batch)
                batch = with_noise(run.policy, batch, method.views | method.live, run.generator)
                # what is told of a batch, and what renews anchors, comes between its views and its update
                if draw == 0:
                    batch = method.prepare(viewed(run, method, batch))
                    metrics |= describe(method, batch)
                    refresh(run)
                    made.append(update(run, method, batch))
                elif replay := recording(run, method, batch, drawn_loss):
                    made.append(update(run, method, batch, replay))
                else:
                    made.append(update(run, method, method.prepare(viewed(run, method, batch))))
            metrics |= together(made)
            if run.batch == 0 and "mismatch" in metrics:
                warn_of(metrics["mismatch"], precision(run))
        if batch is not None and made:
            run.policy.observe(batch)
        run.batch += 1
        lasted = {"batches": 1.0, "environment steps": metrics.get("env_steps"), "updates": metrics["updates"]}
        before, run.done = run.done, run.done + int(lasted[run.task.unit] or 0)
        run.stepper.progress = min(1.0, run.done / run.steps)
        if batch is not None:
            method.update("batch", metrics, run.stepper.progress, batch)
        updated = time.perf_counter()
        run.finished = run.done >= run.steps
        record = {"batch": run.batch, "done": run.done, **metrics}
        if run.finished or due(run, before, run.config.evaluate_every):
            record |= held_out(run)
        if run.config.target is not None and record.get(f"eval/{run.task.metric}", -math.inf) >= run.config.target:
            run.finished = True
        report(run, record, watch)
        seconds = {"rollout": sampled - clock, "update": updated - sampled, "rest": time.perf_counter() - updated}
        append(run, "timing.jsonl", {"batch": run.batch, **seconds})
        if run.finished or due(run, before, run.config.checkpoint_every):
            write_checkpoint(run)
    return record


def together(made: list[dict[str, float]]) -> dict[str, float]:
    """Metrics of several draws as those of one batch: sums of what is counted, else means over the draws that have them."""
    if len(made) == 1:
        return made[0]
    found: dict[str, list[float]] = {}
    for metrics in made:
        for name, value in metrics.items():
            found.setdefault(name, []).append(value)
    means = {name: sum(values) / len(values) for name, values in found.items()}
    return {**means, **{name: float(sum(found.get(name, ()))) for name in ("skipped", "updates")}}


def collect(run: Run, method: Method) -> tuple[Trajectories | None, dict[str, float]]:
    """Drive the collect stage: answer its requests with scored rows, numbering the groups, until it returns the batch;
    None where it asks for nothing."""
    conversation = method.stages["collect"](run.pool, run.want)
    requests = next(conversation, None)
    if requests is None:
        return None, {}
    offset, totals = 0, {}
    while True:
        with torch.no_grad(), autocast(run):
            if requests[0].expert:
                rows, metrics = demonstrate(run, requests), {}
            else:
                rows, metrics = run.task.rollout(run.policy, requests, run.generator)
        assert rows.group is not None
        index, count = index_groups(rows.group)
        if count == len(requests) and requests[0].start is not None:
            rows = rows.but(start=torch.tensor([r.start for r in requests], device=index.device)[index])
        groups = index + offset
        offset = int(groups.max()) + 1
        for name, value in metrics.items():
            totals.setdefault(name, []).append(value)
        try:
            requests = conversation.send(rows.but(group=groups))
        except StopIteration as finished:
            means = {name: sum(values) / len(values) for name, values in totals.items()}
            counts = {name: sum(totals[name]) for name in ("env_steps", "tokens") if name in totals}
            return finished.value, {**means, **counts}


def demonstrate(run: Run, requests: list[Request]) -> Trajectories:
    """The task's own answers to requests for demonstrations."""
    if not hasattr(run.task, "demonstrate"):
        raise UsageError(
            f"the method {run.method.card.id} learns from demonstrations, and the task {run.task.name} has none"
        )
    return run.task.demonstrate(run.policy, requests)


def drawn_loss(run: Run, method: Method, rows: Trajectories) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and metrics of rows from the store that are used once, in one pass."""
    rows = method.prepare(viewed(run, method, rows))
    with autocast(run):
        return objective(method, run.policy, rows)


def kept_loss(run: Run, method: Method, rows: Trajectories) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and metrics of a minibatch of prepared rows, in one pass."""
    with autocast(run):
        return objective(method, run.policy, rows)


def with_views(run: Run, method: Method, rows: Trajectories) -> Trajectories:
    """The rows with random numbers for what is proposed, and their views."""
    return viewed(run, method, with_noise(run.policy, rows, method.views | method.live, run.generator))


def viewed(run: Run, method: Method, rows: Trajectories) -> Trajectories:
    """The rows with what the method's parts declare to need beside what sampling kept. Equal views run once."""
    wanted = dict(method.views)
    for name in [n for n, view in wanted.items() if view == View(n) and rows.get(n) is not None]:
        del wanted[name]  # sampling kept it
    found: dict[str, torch.Tensor] = {}
    for ablate in dict.fromkeys(view.ablate for view in wanted.values()):
        views = {name: view for name, view in wanted.items() if view.ablate == ablate}
        shown = run.policy.ablated(rows, ablate, run.generator) if ablate else rows
        with autocast(run), torch.no_grad():
            found |= observe(run, shown, views)
    return rows.put(found)


def observe(run: Run, rows: Trajectories, views: dict[str, View]) -> dict[str, torch.Tensor]:
    """Views on one input: functionals of the decisions, and probes: functions of the policy, or of the store."""
    plain = {name: view for name, view in views.items() if view.functional in {*run.policy.functionals, "action"}}
    anchors = {view.of for view in plain.values()} | {view.draw.of for view in plain.values() if view.draw}
    for of in anchors - {"now"}:
        run.anchor(of)
    found = evaluate(run.policy, rows, plain, run.config.micro, run.anchors) if plain else {}
    for name in views.keys() - plain.keys():
        view = views[name]
        probe = getattr(run.policy, view.functional, None) or getattr(run.store, view.functional, None)
        if probe is None and view.optional:
            continue
        if probe is None:
            raise UsageError(
                f"the policy {run.config.policy['name']} cannot give {view.functional!r}, which"
                f" {run.method.card.id} needs"
            )
        shown = rows
        if view.draw is not None:
            shown = rows.but(trace={**rows.trace, "action": propose(run.policy, rows, view.draw)[0]})
        with standing(run.policy, run.anchors, view.of):
            found[name] = probe(shown)
    return found


def with_late_views(run: Run, method: Method, part: Trajectories) -> Trajectories:
    """A minibatch with what its minibatch links need to know about the policy as it is now, and the coming step's size."""
    views = method.late_views
    if not views:
        return part
    chunks, memory = cut(part, run.config.micro), moments(run)
    pieces = [run.policy.step_products(part.rows(rows), memory) for rows in chunks]
    back = torch.cat(chunks).argsort()
    found = {name: torch.cat([piece[name] for piece in pieces])[back] for name in pieces[0]}
    lr = torch.full((part.shape[0],), run.stepper.lr(), device=part.valid.device)
    return part.put({name: found[view.functional] for name, view in views.items()} | {"lr": lr})


def moments(run: Run) -> Moments | None:
    """What the optimizer remembers about the policy's last layer; None where it remembers nothing (plain descent)."""
    weight, across = run.policy.last_layer()
    optimizer = getattr(run.stepper, "optimizer", None)
    state = optimizer.state.get(weight, {}) if optimizer is not None else {}
    if not isinstance(optimizer, torch.optim.Adam):
        return None
    zero = torch.zeros_like(weight)
    first, second = (state.get(name, zero).detach() for name in ("exp_avg", "exp_avg_sq"))
    group = optimizer.param_groups[0]
    if across:
        first, second = first.T, second.T
    return Moments(first, second, int(state.get("step", 0)), tuple(group["betas"]), group["eps"])


def follow(run: Run) -> None:
    """Renew the anchors that count parameter updates, after each of them."""
    for name, rule in run.following.items():
        if rule.every and run.stepper.updates % rule.every == 0:
            blend(run.anchor(name), run.policy, rule.decay)


def refresh(run: Run) -> None:
    """Renew the anchors whose turn it is, from the policy as it is before this batch's update."""
    for name, rule in run.rules.items():
        if (
            name in run.anchors
            and rule.per == "batch"
            and (rule.at == run.batch + 1 or (rule.every and (run.batch + 1) % rule.every == 0))
        ):
            run.anchors[name] = refreshed(run.anchors[name], run.policy, rule.decay)


def slope_of(run: Run, method: Method, fresh: bool, piece: Trajectories) -> dict[str, Any]:
    """Back-propagate the loss on a minibatch; gives its metrics."""
    with autocast(run):
        return gradient(method, run.policy, piece, run.config.micro, fresh)


def update(
    run: Run, method: Method, batch: Trajectories, replay: Callable[[Trajectories], dict[str, float]] | None = None
) -> dict[str, float]:
    """All epochs and minibatches of one batch; returns the mean of every metric over the updates made. replay: gives the
    gradient of the whole batch instead."""
    recipe = method.stages["step"]
    totals: dict[str, list[float]] = {}
    if batch.mask is not None and not bool(batch.valid.any()):
        return {"updates": 0.0}
    skipped, fresh = 0, replay is None and batch.logp_old is not None and evaluated_anyway(run, method)
    before = None if run.batch else [p.detach().clone() for p in run.policy.parameters() if p.requires_grad]
    batch = loosened(batch, method, run.policy.independent, recipe.minibatch)  # once for all epochs
    for _ in range(recipe.epochs or 1):
        for part in minibatches(batch, method, recipe.minibatch, run.generator):
            part = with_late_views(run, method, part)
            size = math.ceil(part.shape[0] / run.stepper.pieces) if run.stepper.pieces > 1 else None
            pieces = minibatches(part, method, size, run.generator)
            slope = replay or recurring(run, method, part, kept_loss) or partial(slope_of, run, method, fresh)
            metrics = run.stepper.update(*(partial(slope, piece) for piece in pieces))
            method.update("update", metrics, run.stepper.progress, part)
            fresh = False
            follow(run)
            if metrics["skipped"]:
                skipped += 1
                cause = first_nonfinite(part, metrics)
                path = dump(run, part, cause)
                if skipped >= PATIENCE:
                    raise RunError(
                        f"{skipped} updates in a row were not finite: {cause} is the first bad tensor; the batch is in {path},"
                        " the last healthy checkpoint is untouched"
                    )
            else:
                skipped = 0
            for name, value in metrics.items():
                totals.setdefault(name, []).append(value)
    if before is not None:
        moved = any(
            not torch.equal(b, p)
            for b, p in zip(before, (p for p in run.policy.parameters() if p.requires_grad), strict=True)
        )
        made = [norm for norm, skip in zip(totals["grad_norm"], totals["skipped"], strict=True) if not skip]
        if not moved and max(made, default=0.0) > 0 and max(totals["lr"]) > 0:
            raise RunError(
                "no trainable parameter changed in the first update although neither gradient nor learning rate is zero"
            )
    means = {name: sum(values) / len(values) for name, values in totals.items()}
    return {**means, "skipped": sum(totals["skipped"]), "updates": float(len(totals["loss"]))}


def describe(method: Method, batch: Trajectories) -> dict[str, float]:
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


def evaluated_anyway(run: Run, method: Method) -> bool:
    """Whether the loss of a batch's first minibatch evaluates log pi as it was when the batch was sampled. Minibatches of single
    decisions may be recordings, which only do what is needed for the gradient."""
    return not run.policy.independent and method.live.get("logp") == View()


def mismatch(run: Run, batch: Trajectories) -> float:
    """`disagreement` on a few rows before the update: 0 up to rounding, as nothing has changed since sampling."""
    rows = max(1, min(8, 256 // max(batch.shape[1], 1)))
    own = torch.arange(batch.shape[0]) if batch.expert_mask is None else (~batch.expert_mask).nonzero()[:, 0]
    some = batch.rows(own[:rows])
    with autocast(run):
        return float(disagreement(evaluate(run.policy, some, LOGP, run.config.micro)["logp"], some))


def warn_of(mismatch: float, dtype: torch.dtype) -> None:
    """More than rounding is a mistake in the policy."""
    if mismatch > TOLERANCE + ROUNDED * torch.finfo(dtype).eps:
        warnings.warn(
            f"sampling and evaluation disagree by {mismatch:.2g} nats per decision before any update; likely causes: another"
            " temperature, top-k or top-p on one side, dropout, bfloat16 (--autocast off), or a truncated input",
            stacklevel=2,
        )


def held_out(run: Run) -> dict[str, float]:
    """The task's measures on held-out starts, greedy, with randomness of its own so that training is not disturbed."""
    with torch.no_grad(), autocast(run):
        found = run.task.evaluate(run.policy, torch.Generator().manual_seed(run.config.seed), run.config.episodes)
    return {f"eval/{name}": float(value) for name, value in found.items()}


def report(run: Run, record: dict[str, Any], watch: Watch) -> None:
    append(run, "metrics.jsonl", record)
    watch(record)


def precision(run: Run) -> torch.dtype:
    """What the network's products are rounded to."""
    weight = next(run.policy.parameters())
    with autocast(run):
        kind = weight.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def autocast(run: Run) -> contextlib.AbstractContextManager[Any]:
    """bfloat16 autocast of the network where it is wanted and the hardware is fast at it; the weights stay what they are."""
    device = run.device.type
    if run.config.autocast == "on" or (run.config.autocast == "auto" and fast_in_bfloat16(device, run.policy)):
        return torch.autocast(device, torch.bfloat16)
    return contextlib.nullcontext()


def fast_in_bfloat16(device: str, policy: Any) -> bool:
    """Whether the hardware multiplies bfloat16 several times as fast as float32: GPUs that can, and CPUs with AMX or
    AVX512-bf16 where the policy's products are large."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    return device == "cpu" and getattr(policy, "large", False) and cpu_has_bfloat16()


@cache
def cpu_has_bfloat16() -> bool:
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)


def due(run: Run, before: int, every: int | None) -> bool:
    """Whether something done every so many batches, or else ten times a run, is due after this batch."""
    if every is not None:
        return run.batch % every == 0
    return 10 * run.done // run.steps > 10 * before // run.steps
