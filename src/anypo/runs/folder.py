"""The folder of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anypo.config import Config
from anypo.parts.knobs.schedules import Linear
from anypo.plain_yaml import dump_yaml
from anypo.runs.build import NO_OBJECTS, build
from anypo.runs.checkpoint import checkpoints, drop_old, find_checkpoint, fixed_anchors, read_checkpoint, rewind
from anypo.runs.claim import CONFIG, ClaimedFolder, claim, lock_folder
from anypo.runs.files import file_digest, publish, read_tensors, write_record, write_tensors, write_text, writing
from anypo.runs.inputs import (
    INPUTS,
    absolute_paths,
    check_code,
    check_fingerprints,
    describe_inputs,
    read_inputs,
    remarks,
)
from anypo.runs.objects import Objects
from anypo.runs.origin import saved_config
from anypo.runs.run import Run


def create(config: Config, objects: Objects = NO_OBJECTS) -> Run:
    """Start a new run in its own folder, claimed before anything is built; the configuration is written there."""
    claimed = claim(config)
    try:
        run = build(config, claimed.folder, objects)
        run.config, run.claim = absolute_paths(run.config), claimed
        write_start(run, claimed.folder)
    except BaseException:
        claimed.withdraw()
        raise
    return run


def write_start(run: Run, folder: Path) -> None:
    """Write what a run starts with, its configuration last: a folder with that is a run."""
    anchors = {}
    with writing(folder):
        (folder / "checkpoints").mkdir(exist_ok=True)
        for name in fixed_anchors(run):
            path = anchor_path(folder, name)
            write_tensors(path, run.anchors[name])
            publish(path)
            anchors[name] = file_digest(path)
        write_record(folder / INPUTS, describe_inputs(run, anchors))
        write_config(run, folder)


def write_config(run: Run, folder: Path) -> None:
    """Write config.yaml, which builds the run again."""
    write_text(folder / CONFIG, dump_yaml(run.config.to_dict()))


def anchor_path(folder: Path, name: str) -> Path:
    """Return the file of an anchor that never changes."""
    return folder / f"anchor-{name}.safetensors"


def rebuild(config: Config, folder: Path, recorded: dict[str, Any], objects: Objects, *, fresh: bool = False) -> Run:
    """Build a run from its folder as it was before its first batch.

    Args:
        config: the run's.
        folder: the run's.
        recorded: content of its inputs.json.
        objects: given instead of names.
        fresh: no checkpoint will be read, so the weights have to be those the run starts with.
    """
    run = build(config, folder, objects, fresh=fresh)
    check_fingerprints(folder, run, recorded)
    for name, expected in recorded["anchors"].items():
        again = "restore the file, or start a new run"
        run.anchors[name] = read_tensors(anchor_path(folder, name), expected, again, str(run.device))
    return run


def reopen(folder: Path, checkpoint: str = "last", objects: Objects = NO_OBJECTS, *, allow_code: bool = False) -> Run:
    """Return a run as one of its checkpoints left it, to be measured or used.

    Args:
        folder: the run's.
        checkpoint: `last`, `best`, or the number of a batch.
        objects: given instead of names.
        allow_code: execute files that are not those the run started with.

    Raises:
        UsageError: there is no such run or checkpoint, a file is damaged, or one that would be executed changed.
    """
    config, path, recorded = saved_config(folder), find_checkpoint(folder, checkpoint), read_inputs(folder)
    executed = check_code(folder, config, recorded, allow_code)
    run = rebuild(config, folder, recorded, objects)
    run.remarks += executed
    read_checkpoint(run, path)
    return run


def continue_run(
    folder: Path, steps: int | None = None, objects: Objects = NO_OBJECTS, *, allow_code: bool = False
) -> Run:
    """Return a run as its newest checkpoint left it, to be trained further; one without a checkpoint starts over.

    Args:
        folder: the run's; it is locked, and lines of metrics after the checkpoint are dropped.
        steps: a new total length.
        objects: given instead of names.
        allow_code: execute files that are not those the run started with.

    Raises:
        UsageError: there is no such run, it is being trained, a file is damaged, or what it depends on changed.
    """
    config = saved_config(folder)
    with writing(folder):
        lock = lock_folder(folder)
    recorded = read_inputs(folder)
    executed = check_code(folder, config, recorded, allow_code)
    config.steps = steps or config.steps
    saved = checkpoints(folder)
    run = rebuild(config, folder, recorded, objects, fresh=not saved)
    run.claim = ClaimedFolder(folder, lock)
    if saved:
        rewind(run, read_checkpoint(run, saved[-1]))
        with writing(folder):
            drop_old(folder)
    else:
        write_start(run, folder)
        rewind(run, None)
    if run.steps != recorded["config"]["steps"]:
        set_length(run, folder, recorded)
    run.remarks += executed + remarks(run, recorded)
    return run


def set_length(run: Run, folder: Path, recorded: dict[str, Any]) -> None:
    """Let a run's schedules follow its new length, and record that.

    Args:
        run: built with the new length.
        folder: the run's.
        recorded: content of its inputs.json, whose length is brought up to date.
    """
    before, recorded["config"]["steps"] = recorded["config"]["steps"], run.steps
    run.finished = run.done >= run.steps
    run.stepper.progress = min(1.0, run.done / run.steps)
    for _, knob in run.method.knobs():
        if isinstance(knob, Linear):
            knob.progress = run.stepper.progress
    with writing(folder):
        write_record(folder / INPUTS, recorded)
        write_config(run, folder)
        (folder / "result.json").unlink(missing_ok=True)
    run.remarks.append(
        f"the length changes from {before:,} to {run.steps:,} {run.task.unit} after {run.done:,}; schedules follow, so numbers"
        f" differ from those of a run of {run.steps:,} from the start"
    )
