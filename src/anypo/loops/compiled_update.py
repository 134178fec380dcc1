"""Updates that are traced once and replayed. Control makes thousands of equal small updates, and what Python and autograd
add to each costs more than its arithmetic. A trace is the list of tensor operations of one update, from the views (value
learning) or the forward pass to the gradient; weights, anchors, knobs and the minibatch are its inputs. Replayed, it gives
the same numbers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from anypo import kernels
from anypo.kernels.compiler import compile_graph, trace
from anypo.loops.minibatches import fits
from anypo.method.method import Method
from anypo.numbers import Knob, TracedScalar
from anypo.policies.weights import swap_params, trainable_state
from anypo.runs.run import Run
from anypo.stages import CHAINS
from anypo.types import Trajectories, whole

OFTEN, MOST = 64, 8
"""Minibatches of a size after which it is compiled, as that takes seconds, and sizes that are compiled in a run."""


Loss = Callable[[Run, Method, Trajectories], tuple[Tensor, dict[str, Tensor]]]
"""A run's loss and metrics on rows that were drawn, with their random numbers."""


@dataclass
class Recording:
    """Called with a minibatch, it leaves the gradient on the parameters and returns the loss's metrics."""

    run: Run
    knobs: list[Knob]
    play: Callable[..., Sequence[Tensor]]
    learned: list[str]
    metrics: list[str]

    def __call__(self, batch: Trajectories) -> dict[str, float]:
        with torch.no_grad():
            *slopes, numbers = self.play(*inputs(self.run, self.knobs, batch))
        live = trainable_state(self.run.policy)
        for name, slope in zip(self.learned, slopes, strict=True):
            live[name].grad = slope
        return dict(zip(self.metrics, numbers.tolist(), strict=True))


def recording(run: Run, method: Method, batch: Trajectories, loss: Loss) -> Recording | None:
    """The recording for minibatches like this one, made where it is missing; None where an update cannot be recorded."""
    key = signature(method, batch)
    if key not in run.recordings:
        recipe = method.stages["step"]
        whole_batch = (recipe.epochs or 1) == 1 and (not recipe.minibatch or method.level == "batch")
        possible = method.traits["replays"] and whole_batch and recordable(run, method, batch)
        run.recordings[key] = trace_update(run, method, batch, loss) if possible else None
    return run.recordings[key]


def compile_if_frequent(run: Run, method: Method, batch: Trajectories, loss: Loss) -> Recording | None:
    """The recording for minibatches of prepared single decisions, where the run compiles: made once their size has come often.
    Without machine code replaying them is no faster."""
    if run.config.compile != "on" or method.traits["replays"] or not run.policy.independent:
        return None
    key = signature(method, batch)
    seen = run.recordings.get(key, 0)
    if isinstance(seen, int):
        run.recordings[key] = seen = seen + 1
        if seen > OFTEN and sum(isinstance(made, Recording) for made in run.recordings.values()) < MOST:
            run.recordings[key] = seen = (
                trace_update(run, method, batch, loss) if recordable(run, method, batch) else None
            )
    return seen if isinstance(seen, Recording) else None


def signature(method: Method, batch: Trajectories) -> tuple[Any, ...]:
    """What updates that share a recording have in common."""
    return method.switched, tuple(
        [(name, tensor.shape, tensor.stride()) for name, tensor in batch_tensors(batch).items()]
    )


def batch_tensors(batch: Trajectories) -> dict[str, Tensor]:
    """The batch by name, without a mask that has no gap."""
    found = batch.to_dict()
    if "mask" in found and whole(found["mask"]):
        del found["mask"]
    return found


def recordable(run: Run, method: Method, batch: Trajectories) -> bool:
    """Whether a minibatch is one forward pass in which every decision counts, of a method that stays as it is; never with plain kernels."""
    plain = not (
        kernels.plain() or method.later or method.late_views or any(view.ablate for view in method.views.values())
    )
    counted = batch.mask is None or whole(batch.mask)
    return plain and counted and run.stepper.pieces == 1 and fits(batch, run.config.micro)


def trace_update(run: Run, method: Method, batch: Trajectories, loss: Loss) -> Recording | None:
    """Make an update with stand-ins for all inputs and note its operations; None where it has to know a number on its way, or reads
    tensors that are no inputs."""
    knobs = list({id(knob): knob for _, knob in method.knobs() if not getattr(knob, "rests", False)}.values())
    live = trainable_state(run.policy)
    learned, told, rows = [name for name, p in live.items() if p.requires_grad], [], batch_tensors(batch)

    def operations(*given: Tensor) -> list[Tensor]:
        left = iter(given)
        weights = {name: next(left).detach().requires_grad_(name in learned) for name in live}
        anchors = {of: {name: next(left) for name in live} for of in run.anchors}
        stood = trace_knobs(method, {id(knob): next(left) for knob in knobs})
        drawn = Trajectories.from_dict({name: next(left) for name in rows})
        with torch.enable_grad(), swap_params(run.policy, weights):
            total, metrics = loss(replace(run, anchors=anchors), stood, drawn)
            slopes = torch.autograd.grad(total, [weights[name] for name in learned], allow_unused=True)
        moved = {name: slope.contiguous() for name, slope in zip(learned, slopes, strict=True) if slope is not None}
        learned[:], told[:] = moved, metrics
        return [*moved.values(), torch.stack([torch.as_tensor(m).detach().double() for m in metrics.values()])]

    given = inputs(run, knobs, batch)
    try:
        play = trace(operations, given)
    except (RuntimeError, TypeError, AssertionError):  # the plain update says what is wrong, where something is
        if run.config.compile == "on":
            warnings.warn(
                f"--compile on changes no update of {method.card.id}: it has to know numbers on its way", stacklevel=2
            )
        return None
    return Recording(run, knobs, compile_graph(play, given) if run.config.compile == "on" else play, learned, told)


def inputs(run: Run, knobs: list[Knob], batch: Trajectories) -> list[Tensor]:
    """What an update depends on, in the recording's order."""
    live = trainable_state(run.policy)
    return [
        *(tensor.detach() for tensor in live.values()),
        *(anchor[name] for anchor in run.anchors.values() for name in live),
        *(torch.tensor(float(knob)) for knob in knobs),
        *batch_tensors(batch).values(),
    ]


def trace_knobs(method: Method, values: dict[int, Tensor]) -> Method:
    """The method with these tensors in the places of its knobs."""

    def stood(part: Any) -> Any:
        found = {f.name: values[id(knob)] for f in fields(part) if id(knob := getattr(part, f.name)) in values}
        return replace(part, **{name: TracedScalar(value) for name, value in found.items()}) if found else part

    changed: dict[str, Any] = {
        slot: tuple(map(stood, held)) if slot in CHAINS else None if held is None else stood(held)
        for slot, held in method.stages.items()
    }
    return Method(method.card, **changed)
