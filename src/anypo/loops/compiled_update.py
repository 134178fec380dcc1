"""Updates that are traced once and replayed. Control makes thousands of equal small updates, and what Python and autograd
add to each costs more than its arithmetic. A trace is the list of tensor operations of one update, from the views (value
learning) or the forward pass to the gradient; weights, anchors, knobs and the minibatch are its inputs. Replayed, it gives
the same numbers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor

from anypo import kernels
from anypo.kernels.compiler import compile_graph, trace
from anypo.loops.gradients import minibatch_loss, replay_loss
from anypo.loops.minibatches import fits
from anypo.method.method import Method
from anypo.numbers import Knob, Switch, TracedScalar
from anypo.parts.ops.settings import change_settings
from anypo.policies.weights import swap_params, trainable_state
from anypo.runs.run import Run
from anypo.types import Trajectories

OFTEN, MOST = 64, 8
"""Minibatches of a size after which it is compiled, as that takes seconds, and sizes that are compiled in a run."""

Loss = Callable[[Run, Method, Trajectories], tuple[Tensor, dict[str, Tensor]]]
"""A run's loss and metrics on rows that were drawn, with their random numbers."""


@dataclass
class Trace:
    """The operations of one update. Called with a minibatch, it leaves the gradient on the parameters and returns the metrics."""

    run: Run
    knobs: list[Knob]
    play: Callable[..., Sequence[Tensor]]
    learned: list[str]
    metrics: list[str]

    def __call__(self, batch: Trajectories) -> dict[str, float]:
        with torch.no_grad():
            *grads, numbers = self.play(*inputs(self.run, self.knobs, batch))
        live = trainable_state(self.run.policy)
        for name, grad in zip(self.learned, grads, strict=True):
            live[name].grad = grad
        return dict(zip(self.metrics, numbers.tolist(), strict=True))


@dataclass
class Traces:
    """The strategy for updates that repeat: traced once per signature of minibatch and phase, and replayed.

    traces: by signature; a count while the signature is not frequent enough to be compiled, None where an update cannot be
    traced. reported: whether a warning has said why.
    """

    traces: dict[Any, Trace | int | None] = field(default_factory=dict)
    reported: bool = False

    @staticmethod
    def of(run: Run) -> Traces:
        """Return the strategy of a run, begun where it is missing."""
        if run.strategy is None:
            run.strategy = Traces()
        return run.strategy

    def of_rows(self, run: Run, method: Method, rows: Trajectories) -> Trace | None:
        """Return the trace for rows drawn from a store of transitions, from their views to the gradient; None where none is possible."""
        if not method.traits["replays"]:
            return None
        key = signature(method, rows)
        if key not in self.traces:
            recipe = method.stages["step"]
            once = (recipe.epochs or 1) == 1 and (not recipe.minibatch or method.level == "batch")
            reason = cannot_trace(run, method, rows) if once else "a batch is used for several updates"
            self.traces[key] = self.trace(run, method, rows, replay_loss, reason)
        trace = self.traces[key]
        return trace if isinstance(trace, Trace) else None

    def of_minibatch(self, run: Run, method: Method, rows: Trajectories) -> Trace | None:
        """Return the compiled trace for minibatches of prepared single decisions, made once their size is frequent; None without
        `--compile on`: replaying them uncompiled is no faster."""
        if run.config.compile != "on" or method.traits["replays"] or not run.policy.independent:
            return None
        key = signature(method, rows)
        trace = self.traces.get(key, 0)
        if isinstance(trace, int):
            self.traces[key] = trace = trace + 1
            if trace > OFTEN and sum(isinstance(t, Trace) for t in self.traces.values()) < MOST:
                self.traces[key] = trace = self.trace(
                    run, method, rows, minibatch_loss, cannot_trace(run, method, rows)
                )
        return trace if isinstance(trace, Trace) else None

    def trace(self, run: Run, method: Method, rows: Trajectories, loss: Loss, reason: str | None) -> Trace | None:
        """Trace an update, or warn once why it is computed step by step instead.

        Args:
            run, method, rows: what the update is made of.
            loss: from these to the loss and its metrics.
            reason: why it cannot be traced, where that is known beforehand.
        """
        traced = None
        if reason is None:
            try:
                traced = trace_update(run, method, rows, loss)
            except (RuntimeError, TypeError, AssertionError):  # the plain update says what is wrong, where something is
                reason = "it needs host values (data-dependent control flow)"
        compiles = run.config.compile == "on"
        if traced is None and not self.reported:
            self.reported = True
            kind = "compiled" if compiles else "replayed from a trace"
            warnings.warn(f"the updates of {method.card.id} are not {kind}: {reason}", stacklevel=2)
        if traced is not None and compiles:
            traced.play = compile_graph(cast(Any, traced.play), inputs(run, traced.knobs, rows))
        return traced


def signature(method: Method, batch: Trajectories) -> tuple[Any, ...]:
    """Return what updates that share a trace have in common: active parts, and shapes and strides of the rows."""
    return method.switched, tuple([(name, tensor.shape, tensor.stride()) for name, tensor in batch.to_dict().items()])


def cannot_trace(run: Run, method: Method, batch: Trajectories) -> str | None:
    """Say why updates on such minibatches cannot be traced; None where they can.

    Args:
        run: the run.
        method: the present phase.
        batch: traced are single forward passes in which every decision counts.
    """
    if kernels.plain():
        return "the kernels are plain"
    if method.later:
        return "the method has phases"
    if method.late_views:
        return "minibatch links look at the policy before every update"
    if any(view.ablate for view in method.views.values()):
        return "a part of the input is hidden at random"
    if batch.mask is not None:
        return "some decisions are masked"
    if run.stepper.splits != 1:
        return "the step takes several gradients"
    return None if fits(batch, run.config.micro) else "a minibatch takes several forward passes (--micro)"


def trace_update(run: Run, method: Method, batch: Trajectories, loss: Loss) -> Trace:
    """Trace an update: run it once on stand-ins for all its inputs and keep the tensor operations.

    Args:
        run: the run; its weights, anchors and knobs are inputs of the trace.
        method: the present phase.
        batch: rows like those the trace is for.
        loss: from run, method and rows to the loss and its metrics.

    Raises:
        RuntimeError, TypeError, AssertionError: the update needs a host value, or reads tensors that are no inputs.
    """
    knobs = list({id(knob): knob for _, knob in method.knobs() if not isinstance(knob, Switch)}.values())
    live = trainable_state(run.policy)
    learned, names, columns = [name for name, p in live.items() if p.requires_grad], [], batch.to_dict()

    def operations(*tensors: Tensor) -> list[Tensor]:
        left = iter(tensors)
        weights = {name: next(left).detach().requires_grad_(name in learned) for name in live}
        anchors = {of: {name: next(left) for name in live} for of in run.anchors}
        traced = trace_knobs(method, {id(knob): next(left) for knob in knobs})
        rows = Trajectories.from_dict({name: next(left) for name in columns})
        with torch.enable_grad(), swap_params(run.policy, weights):
            total, metrics = loss(replace(run, anchors=anchors), traced, rows)
            grads = torch.autograd.grad(total, [weights[name] for name in learned], allow_unused=True)
        moved = {name: grad.contiguous() for name, grad in zip(learned, grads, strict=True) if grad is not None}
        learned[:], names[:] = moved, metrics
        return [*moved.values(), torch.stack([torch.as_tensor(m).detach().double() for m in metrics.values()])]

    return Trace(run, knobs, trace(operations, inputs(run, knobs, batch)), learned, names)


def inputs(run: Run, knobs: list[Knob], batch: Trajectories) -> list[Tensor]:
    """Return the inputs of an update, in the order of the trace: weights, anchors, knobs, rows.

    Args:
        run: its weights and anchors.
        knobs: read as host values.
        batch: the rows.
    """
    live = trainable_state(run.policy)
    return [
        *(tensor.detach() for tensor in live.values()),
        *(anchor[name] for anchor in run.anchors.values() for name in live),
        *(torch.tensor(float(knob)) for knob in knobs),
        *batch.to_dict().values(),
    ]


def trace_knobs(method: Method, values: dict[int, Tensor]) -> Method:
    """Return the method with these tensors in the places of its knobs."""

    def traced(setting: Any) -> Any:
        return TracedScalar(values[id(setting)]) if id(setting) in values else setting

    changed = {slot: change_settings(content, traced) for slot, content in method.stages.items()}
    return Method(method.card, **changed)
