"""Checkpoints: the whole state of a run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from anypo.errors import UsageError
from anypo.policies.weights import trainable_state
from anypo.runs.files import write_text
from anypo.runs.run import Run
from anypo.views import Refresh

KEEP = 2
"""Checkpoints kept: the newest and the one before it."""


def fixed_anchors(run: Run) -> list[str]:
    """The anchors that never change: written once, the others with every checkpoint."""
    return [name for name, rule in run.rules.items() if rule == Refresh()]


def plain_tensors(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights as safetensors writes them: detached and contiguous."""
    return {name: tensor.detach().contiguous() for name, tensor in weights.items()}


def newest(folder: Path) -> Path:
    """The newest checkpoint of a run."""
    checkpoints = sorted(p for p in (folder / "checkpoints").glob("batch-*") if p.is_dir())
    if not checkpoints:
        raise UsageError(f"{folder} has no checkpoint yet, so there is nothing to resume or evaluate")
    return checkpoints[-1]


def write_checkpoint(run: Run) -> Path | None:
    """Write the whole state beside the older checkpoints, then make it visible in one rename; a kill loses nothing."""
    if run.folder is None:
        return None
    final = run.folder / "checkpoints" / f"batch-{run.batch:08d}"
    if final.exists():
        return final
    temporary = final.with_name(f".{final.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file(plain_tensors(trainable_state(run.policy)), temporary / "policy.safetensors")
    for name in run.anchors.keys() - set(fixed_anchors(run)):
        save_file(plain_tensors(run.anchors[name]), temporary / f"anchor-{name}.safetensors")
    torch.save(run.state(), temporary / "state.pt")
    digests = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(temporary.iterdir())}
    write_text(temporary / "manifest.json", json.dumps({"method": run.config.method, "files": digests}))
    for path in temporary.iterdir():
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
    temporary.rename(final)
    for old in sorted(final.parent.glob("batch-*"))[:-KEEP]:
        shutil.rmtree(old)
    return final


def read_checkpoint(run: Run, path: Path) -> None:
    """Load a checkpoint into a run; a damaged file, or one of another method, is refused before anything is changed."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        contents = {name: (path / name).read_bytes() for name in manifest["files"]}
    except (OSError, ValueError) as error:
        raise UsageError(
            f"the checkpoint {path} is incomplete ({error.__class__.__name__}); delete it to use the one before"
        ) from None
    for name, digest in manifest["files"].items():
        if hashlib.sha256(contents[name]).hexdigest() != digest:
            raise UsageError(f"{path / name} is damaged or truncated; delete {path} to use the checkpoint before it")
    if manifest["method"] != run.config.method:
        raise UsageError(
            f"the checkpoint {path} is of the method {manifest['method']!r}, the run is of {run.config.method!r}"
        )
    live, saved = trainable_state(run.policy), load_file(path / "policy.safetensors")
    if set(live) != set(saved) or any(live[n].shape != saved[n].shape for n in live):
        raise UsageError(f"the weights in {path} do not fit the policy {run.config.policy['name']!r} of config.yaml")
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(saved[name])
    for name in manifest["files"]:
        if name.startswith("anchor-"):
            weights = load_file(path / name, device=str(next(run.policy.parameters()).device))
            run.anchors[name.removeprefix("anchor-").removesuffix(".safetensors")] = weights
    run.restore(torch.load(path / "state.pt", weights_only=True))
