"""The folder of a run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from anypo import __version__
from anypo.config import Config, from_dict
from anypo.errors import UsageError
from anypo.plain_yaml import dump_yaml, load_yaml
from anypo.protocols import HasRecords
from anypo.runs.build import build
from anypo.runs.checkpoint import fixed_anchors, newest, plain_tensors, read_checkpoint
from anypo.runs.files import write_text
from anypo.runs.run import Run


def create(config: Config) -> Run:
    """Start a new run in its own folder; the configuration is written there."""
    folder = Path(config.out) if config.out else fresh_folder(config)
    if (folder / "config.yaml").exists():
        raise UsageError(
            f"{folder} already holds a run; resume it with `anypo resume {folder}` or choose another --out"
        )
    run = build(config, folder)
    versions = {"anypo": __version__, "torch": torch.__version__, "data": fingerprint(run.task)}
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        write_text(folder / "versions.json", json.dumps(versions))
        for name in fixed_anchors(run):
            save_file(plain_tensors(run.anchors[name]), folder / f"anchor-{name}.safetensors")
        # last: a folder with a config.yaml is a run
        write_text(folder / "config.yaml", dump_yaml(run.config.to_dict()))
    except OSError as error:
        raise UsageError(f"cannot write the run to {folder}: {error.strerror}; choose another --out") from None
    return run


def fresh_folder(config: Config) -> Path:
    """runs/METHOD-TASK-SEED, with a number behind it where that is taken."""
    name = "".join(c if c.isalnum() or c in "-." else "-" for c in config.task["name"])[-40:]
    base = Path("runs") / f"{config.method}-{name}-{config.seed}"
    number = 1
    while (folder := base if number == 1 else base.with_name(f"{base.name}-{number}")).exists():
        number += 1
    return folder


def reopen(folder: Path) -> Run:
    """A run as its newest checkpoint left it."""
    if not (folder / "config.yaml").exists():
        raise UsageError(f"{folder} holds no run: there is no config.yaml in it")
    run = build(from_dict(load_yaml(folder / "config.yaml")), folder)
    if json.loads((folder / "versions.json").read_text())["data"] != fingerprint(run.task):
        raise UsageError(f"the data of {run.task.name} are not those the run in {folder} started with")
    for name in fixed_anchors(run):
        run.anchors[name] = load_file(
            folder / f"anchor-{name}.safetensors", device=str(next(run.policy.parameters()).device)
        )
    read_checkpoint(run, newest(folder))
    return run


def fingerprint(task: Any) -> str | None:
    """Digest of a task's training and held-out records; None where there are none."""
    if not isinstance(task, HasRecords):
        return None
    return hashlib.sha256(json.dumps([task.records, task.heldout], default=str).encode()).hexdigest()
