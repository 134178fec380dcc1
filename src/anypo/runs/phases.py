"""Begin the phases of a run: what a phase changes is bound anew, the rest goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from anypo.method.method import Method
from anypo.method.phase import Phase, next_phase
from anypo.policies.weights import snapshot
from anypo.runs.binding import open_store, param_groups
from anypo.runs.run import Run
from anypo.stages import SLOTS


def begin_phase(run: Run) -> Method:
    """Return the phase of the coming batch; where it is another than before, bind what it changes."""
    run.pool.batches = run.batch + 1
    number, method = run.number, run.method
    if method.length is not None and run.batch - run.turn >= method.length:
        run.turn, number, run.seen = run.batch, 0, {}
    number = next_phase(method.later, number, run.batch - run.turn, run.seen)
    if number != run.number:
        change_phase(run, number)
    phase = method.phases[number]
    same = all(run.phase.stages[slot] is phase.stages[slot] for slot in SLOTS)
    run.phase = (run.phase if same else phase).current()
    return run.phase


def watch_phases(run: Run, record: Mapping[str, Any]) -> None:
    """Keep the metrics of a batch that the next phase waits for."""
    waited = {phase.metric for phase in run.method.later[run.number : run.number + 1]}
    run.seen |= {name: float(record[name]) for name in waited if name is not None and name in record}


def change_phase(run: Run, number: int) -> None:
    """Bind the stages that differ from those of the present phase; carry on what the new one names, and renew its anchors.

    Args:
        run: in another phase.
        number: of the new one, from 0.
    """
    store, stepper = run.store, run.stepper
    phase = run.method.later[number - 1] if number else Phase(after=0)
    bind_phase(run, number)
    if run.store is not store and "store" in phase.carry:
        run.store.load_state_dict(store.state_dict())
    if run.stepper is not stepper:
        run.stepper.progress = stepper.progress
        if "step" in phase.carry:
            run.stepper.load_state_dict(stepper.state_dict())
    run.anchors |= {name: snapshot(run.policy) for name in phase.renew}
    run.seen = {}


def bind_phase(run: Run, number: int) -> None:
    """Set the phase, with a store of its own where that differs, and its step bound to the parameters it moves.

    Args:
        run: in any phase.
        number: of the new one, from 0.
    """
    before, phase = run.phase, run.method.phases[number]
    run.number, run.phase = number, phase
    if phase.stages["store"] is not before.stages["store"]:
        run.store = open_store(phase, run.task, run.policy)
    if phase.stages["step"] is not before.stages["step"] or phase.moves != before.moves:
        run.stepper = phase.stages["step"].bind(param_groups(run.policy, phase.moves))
    collect = phase.stages["collect"]
    sizes = {name: size for name in ("requests", "samples") if (size := getattr(collect, name, None)) is not None}
    run.want = replace(run.want, **sizes)
