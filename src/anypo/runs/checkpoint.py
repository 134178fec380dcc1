"""Checkpoints: the whole state of a run."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from anypo.errors import UsageError
from anypo.policies.weights import trainable_state
from anypo.runs.files import (
    MANIFEST,
    check_digest,
    file_digest,
    folder_digests,
    read_record,
    read_tensors,
    sync,
    sync_tree,
    write_record,
    write_tensors,
    write_text,
    writing,
)
from anypo.runs.phases import bind_phase
from anypo.runs.run import Run
from anypo.views import Refresh

KEEP = 2
"""Checkpoints kept beside the best: the newest and the one before it."""
METRICS = "metrics.jsonl"
TIMING = "timing.jsonl"


def fixed_anchors(run: Run) -> list[str]:
    """Return the anchors that never change: written once, the others with every checkpoint."""
    return [name for name, rule in run.rules.items() if rule == Refresh()]


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first."""
    candidates = (folder / "checkpoints").glob("batch-*")
    return sorted(path for path in candidates if re.fullmatch(r"batch-\d{8,}", path.name) and path.is_dir())


def newest(folder: Path) -> Path:
    """Return the newest checkpoint of a run."""
    return find_checkpoint(folder, "last")


def find_checkpoint(folder: Path, name: str) -> Path:
    """Return the checkpoint `last`, `best` (by the held-out measure), or that of a batch's number.

    Raises:
        UsageError: there is none.
    """
    kept = checkpoints(folder)
    if not kept:
        raise UsageError(f"{folder} has no checkpoint yet; `anypo resume {folder}` goes on")
    if name == "last":
        return kept[-1]
    if name == "best":
        return best(kept) or kept[-1]
    numbers = {str(int(path.name.removeprefix("batch-"))): path for path in kept}
    if name not in numbers:
        raise UsageError(f"{folder} keeps no checkpoint {name!r}; there are best, last, {', '.join(numbers)}")
    return numbers[name]


def best(kept: list[Path]) -> Path | None:
    """Return the checkpoint with the highest held-out measure, the first of equal ones; None where none was measured."""
    measured = [(measure, path) for path in kept if (measure := measure_of(path)) is not None]
    return max(measured, key=lambda pair: pair[0])[1] if measured else None


def measure_of(path: Path) -> float | None:
    """Return the held-out measure of a checkpoint; None where it was not taken, or its manifest is damaged."""
    try:
        return read_manifest(path)["measure"]
    except UsageError:
        return None


def write_checkpoint(run: Run, measure: float | None = None) -> Path | None:
    """Write the whole state beside the older checkpoints, then make it visible in one rename; a kill loses nothing.

    Args:
        run: without a folder nothing is written.
        measure: the held-out measure after this batch, where it was taken.
    """
    if run.folder is None:
        return None
    final = run.folder / "checkpoints" / f"batch-{run.batch:08d}"
    if final.exists():
        return final
    with writing(run.folder):
        temporary = final.with_name(f".{final.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write_tensors(temporary / "policy.safetensors", trainable_state(run.policy))
        for name in run.anchors.keys() - set(fixed_anchors(run)):
            write_tensors(temporary / f"anchor-{name}.safetensors", run.anchors[name])
        with (temporary / "state.pt").open("wb") as handle:
            torch.save(canonical(run.state()), handle)
        metrics = run.folder / METRICS
        sync(metrics)
        sync(run.folder)
        manifest = {
            "method": run.config.method,
            "batch": run.batch,
            "measure": measure,
            "files": folder_digests(temporary),
        }
        manifest["metrics"] = {"bytes": metrics.stat().st_size, "sha256": file_digest(metrics)}
        write_record(temporary / MANIFEST, manifest)
        sync_tree(temporary)
        temporary.rename(final)
        sync(final.parent)
        drop_old(run.folder)
    return final


def canonical(value: Any) -> Any:
    """Return the same content without shared objects, so that equal states are pickled to equal bytes."""
    if isinstance(value, dict):
        return {canonical(key): canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(canonical(item) for item in value)
    if isinstance(value, torch.Tensor):
        whole = value.untyped_storage().nbytes() == value.numel() * value.element_size()
        return value.detach() if whole and value.is_contiguous() else value.detach().contiguous().clone()
    return sys.intern(value) if type(value) is str else value


def drop_old(folder: Path) -> None:
    """Remove all checkpoints but the newest `KEEP` and the best; what is half removed is no checkpoint."""
    kept = checkpoints(folder)
    stay = {*kept[-KEEP:], best(kept)}
    for path in kept:
        if path not in stay:
            path.rename(path.with_name(f".{path.name}"))
    for path in (folder / "checkpoints").glob(".batch-*"):
        shutil.rmtree(path)


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint."""
    return read_record(path / MANIFEST, f"delete {path} to use the checkpoint before it")


def read_checkpoint(run: Run, path: Path) -> dict[str, Any]:
    """Load a checkpoint into a run and return its manifest; a damaged file, or one of another method, is refused before anything
    is changed."""
    manifest = read_manifest(path)
    remedy = f"delete {path} to use the checkpoint before it"
    for name, expected in manifest["files"].items():
        check_digest(path / name, expected, remedy)
    if manifest["method"] != run.config.method:
        raise UsageError(
            f"the checkpoint {path} is of the method {manifest['method']!r}, the run is of {run.config.method!r}"
        )
    read_weights(run.policy, path, manifest, run.config.policy["name"])
    for name, expected in manifest["files"].items():
        if name.startswith("anchor-"):
            weights = read_tensors(path / name, expected, remedy, str(run.device))
            run.anchors[name.removeprefix("anchor-").removesuffix(".safetensors")] = weights
    state = torch.load(path / "state.pt", weights_only=True)
    bind_phase(run, state["phase"]["number"])
    run.restore(state)
    return manifest


def read_weights(policy: Any, path: Path, manifest: dict[str, Any], name: str) -> None:
    """Copy the weights of a checkpoint into a policy.

    Args:
        policy: changed in place.
        path: of the checkpoint.
        manifest: of the checkpoint.
        name: of the policy, for the sentence.

    Raises:
        UsageError: they are of another shape, or damaged.
    """
    remedy = f"delete {path} to use the checkpoint before it"
    live = trainable_state(policy)
    saved = read_tensors(path / "policy.safetensors", manifest["files"]["policy.safetensors"], remedy)
    if set(live) != set(saved) or any(live[n].shape != saved[n].shape for n in live):
        raise UsageError(f"the weights in {path} do not fit the policy {name!r} of config.yaml")
    with torch.no_grad():
        for key, tensor in live.items():
            tensor.copy_(saved[key])


def rewind(run: Run, manifest: dict[str, Any] | None) -> None:
    """Drop the lines of batches after the checkpoint: they will be made again.

    Args:
        run: as the checkpoint left it.
        manifest: of the checkpoint; None before the first one.

    Raises:
        UsageError: the lines up to the checkpoint are not those it was written after.
    """
    if run.folder is None:
        return
    metrics, timing = run.folder / METRICS, run.folder / TIMING
    content = metrics.read_bytes() if metrics.exists() else b""
    written = {"bytes": 0, "sha256": hashlib.sha256().hexdigest()} if manifest is None else manifest["metrics"]
    content = content[: written["bytes"]]
    if hashlib.sha256(content).hexdigest() != written["sha256"]:
        raise UsageError(f"{metrics} is not as the checkpoint of batch {run.batch} left it; restore the file")
    with writing(run.folder):
        write_text(metrics, content.decode())
        if timing.exists():
            write_text(timing, "".join(line + "\n" for line in timing.read_text().splitlines() if is_before(line, run)))


def is_before(line: str, run: Run) -> bool:
    """Whether a line of timing.jsonl is complete and of a batch the run has finished."""
    try:
        return json.loads(line)["batch"] <= run.batch
    except ValueError:
        return False
