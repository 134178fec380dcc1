"""A run: everything that has state, and the folder it lives in. Nothing here is global; a checkpoint is the whole of it."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import sys
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from anypo import __version__, policies, tasks
from anypo.config import Config, from_dict, load
from anypo.errors import UsageError, unknown
from anypo.machine import look_for_compiler
from anypo.method import Method
from anypo.method import method as find_method
from anypo.parts._register import kebab
from anypo.policies.anchor import moving, snapshot
from anypo.stages import CHAINS, SLOTS, Knob, OpenStore, Refresh, Stepper, Want
from anypo.tasks.pool import StartPool

KEEP = 2
"""Checkpoints kept: the newest and the one before it."""


@dataclass
class Run:
    """The live objects of a run; `state` and `restore` are what a checkpoint holds."""

    config: Config
    method: Method
    task: Any
    policy: Any
    pool: StartPool
    store: OpenStore
    stepper: Stepper
    want: Want
    generator: torch.Generator
    folder: Path | None
    steps: int
    anchors: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    recordings: dict[Any, Any] = field(default_factory=dict)
    """Updates that are replayed, by the shapes of their minibatches (`loops/record.py`)."""
    batch: int = 0
    done: int = 0
    finished: bool = False
    """Batches finished, and the same in the task's unit (environment steps); the run is finished when
    done reaches steps, or earlier at its target."""

    @cached_property
    def device(self) -> torch.device:
        """Where the policy is."""
        return next(self.policy.parameters()).device

    @cached_property
    def following(self) -> dict[str, Refresh]:
        """The anchors that follow every so many parameter updates."""
        return {name: rule for name, rule in self.rules.items() if rule.per == "update"}

    @cached_property
    def rules(self) -> dict[str, Refresh]:
        """The anchors of every phase, with their refresh rules."""
        phases = (self.method, *(self.method.at(after) for after, _ in self.method.later))
        return {name: rule for phase in phases for name, rule in phase.anchors.items()}

    def anchor(self, name: str) -> dict[str, torch.Tensor]:
        """An anchor's weights; one that nobody read so far begins as the policy is now."""
        if name not in self.anchors:
            self.anchors[name] = snapshot(self.policy)
        return self.anchors[name]

    def enter(self) -> Method:
        """The phase the coming batch is in; a phase with a store of its own begins with an empty one."""
        now = self.method.at(self.batch)
        before = self.method.at(self.batch - 1)
        if now.stages["store"] is not before.stages["store"]:
            self.store = now.stages["store"].open()
        return now

    def state(self) -> dict[str, Any]:
        return {
            "batch": self.batch,
            "done": self.done,
            "finished": self.finished,
            "generator": self.generator.get_state(),
            "stepper": self.stepper.state_dict(),
            "knobs": self.method.state_dict(),
            "pool": self.pool.state_dict(),
            "store": self.store.state_dict(),
            "task": self.task.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.batch, self.done, self.finished = state["batch"], state["done"], state["finished"]
        self.generator.set_state(state["generator"])
        self.stepper.load_state_dict(state["stepper"])
        self.method.load_state_dict(state["knobs"])
        self.pool.load_state_dict(state["pool"])
        if self.method.later:
            self.store = self.method.at(self.batch - 1).stages["store"].open()
        self.store.load_state_dict(state["store"])
        self.task.load_state_dict(state["task"])


def build(config: Config, folder: Path | None = None) -> Run:
    """Make the live objects of a run from its configuration; settings left open become the task's recommendation.

    The configuration is completed in place, so that the file written from it reproduces the run.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    keep_memory()
    method = find_method(config.method).configure(config.stages)
    task = tasks.make(config.task, seed=config.seed)
    recipe = task.recipe(method.traits)
    step, collect = method.stages["step"], method.stages["collect"]
    method = method.configure({"step": _open(step, recipe), "collect": _open(collect, recipe)})
    kind = method.policy if hasattr(task, "action_space") else None
    config.policy.setdefault("name", kind or getattr(task, "default_policy", None))
    policy = policies.make(config.policy, task, value=method.heads, networks=method.networks, seed=config.seed)
    policy.to(_device(config.device))
    if config.compile == "on":
        look_for_compiler()
        if not policy.independent and next(policy.parameters()).device.type == "cpu":
            raise UsageError("--compile on takes minutes for a language model and gains nothing on a CPU; leave it out")
        for part in (policy, task):
            if hasattr(part, "to_machine_code"):
                part.to_machine_code()
    config.steps = steps = config.steps or int(recipe["steps"])
    config.stages = {slot: _spec(slot, method) for slot in SLOTS}
    if hasattr(task, "prepare"):  # text: every prompt has to fit the model
        task.prepare(policy)
    collect = method.stages["collect"]
    want = Want(collect.requests, collect.samples, recipe.get("horizon"))
    standing = task.standing and not method.traits["whole"]
    groups = learned(policy)
    if not groups:
        raise UsageError(f"the policy {config.policy['name']!r} has no trainable parameter")
    run = Run(
        config=config,
        method=method,
        task=task,
        policy=policy,
        pool=StartPool(task.starts, config.seed, standing),
        store=stocked(method, task, policy),
        stepper=method.stages["step"].bind(groups),
        want=want,
        generator=torch.Generator().manual_seed(config.seed),
        folder=folder,
        steps=steps,
    )
    run.anchors = {name: snapshot(policy) for name in run.rules}
    return run


TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""As in glibc's malloc.h."""


def keep_memory() -> None:
    """Let freed memory stay with the process. glibc would give the tensors of half a megabyte an update is made of back to the
    system after it, and making their pages anew for the next one can take longer than computing them."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter, size in ((TRIM_THRESHOLD, 256 << 20), (MMAP_THRESHOLD, 32 << 20)):
            mallopt(parameter, size)


def stocked(method: Method, task: Any, policy: Any) -> OpenStore:
    """The method's store, with the task's data in it where both know of transitions."""
    store = method.stages["store"].open()
    if getattr(method.stages["collect"], "offline", False) and not hasattr(task, "transitions"):
        raise UsageError(
            f"the method {method.card.id} learns from data, and the task {task.name} has none: --task minari:ID or data:FILE"
        )
    if method.traits["replays"] and hasattr(task, "transitions"):
        data = task.transitions()
        store.fill(data)  # pyright: ignore[reportAttributeAccessIssue]
        policy.standardize(data["obs"])
    return store


def learned(policy: Any) -> list[dict[str, Any]]:
    """What training changes, in groups: value networks (`critics`) apart from the policy itself."""
    groups: dict[str, list[Any]] = {"policy": [], "critics": []}
    for name, p in policy.named_parameters():
        if p.requires_grad:
            groups["critics" if name.startswith("critics.") else "policy"].append(p)
    return [{"params": params, "name": name} for name, params in groups.items() if params]


def _open(part: Any, recipe: dict[str, Any]) -> dict[str, Any]:
    """The part's settings that it leaves to the task."""
    names = [f.name for f in fields(part) if getattr(part, f.name) is None]
    return {name: recipe[name] for name in names if recipe.get(name) is not None}


def _spec(slot: str, method: Method) -> Any:
    """A slot as configuration values that build it again."""

    def plain(value: Any) -> Any:
        if isinstance(value, Knob):
            initial = {f.name: getattr(value, f.name) for f in fields(value) if f.init}  # pyright: ignore[reportArgumentType]
            return {"knob": kebab(type(value).__name__), **initial}
        return list(value) if isinstance(value, tuple) else value

    specs = [
        {"part": kebab(type(p).__name__), **{f.name: plain(getattr(p, f.name)) for f in fields(p)}}
        for p in method.parts(slot)
    ]
    return specs if slot in CHAINS else (specs[0] if specs else None)


def _device(name: str) -> torch.device:
    capable = torch.cuda.is_available()
    try:
        device = torch.device(("cuda" if capable else "cpu") if name == "auto" else name)
    except RuntimeError:
        raise unknown("device", name, ("auto", "cpu", "cuda")) from None
    if device.type == "cuda" and not capable:
        raise UsageError("the device cuda was asked for, but torch sees no GPU here; use --device cpu")
    return device


# -------------------------------------------------------------------- the folder


def create(config: Config) -> Run:
    """Start a new run in its own folder; the configuration is written there."""
    folder = Path(config.out) if config.out else _fresh(config)
    if (folder / "config.yaml").exists():
        raise UsageError(
            f"{folder} already holds a run; resume it with `anypo resume {folder}` or choose another --out"
        )
    run = build(config, folder)
    versions = {"anypo": __version__, "torch": torch.__version__, "data": fingerprint(run.task)}
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        _write(folder / "versions.json", json.dumps(versions))
        for name in fixed(run):
            save_file(_plain(run.anchors[name]), folder / f"anchor-{name}.safetensors")
        # last: a folder with a config.yaml is a run
        _write(folder / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False))
    except OSError as error:
        raise UsageError(f"cannot write the run to {folder}: {error.strerror}; choose another --out") from None
    return run


def fixed(run: Run) -> list[str]:
    """The anchors that never change: written once, the others with every checkpoint."""
    return [name for name, rule in run.rules.items() if rule == Refresh()]


def _plain(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in weights.items()}


def _fresh(config: Config) -> Path:
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
    run = build(from_dict(load(folder / "config.yaml")), folder)
    if json.loads((folder / "versions.json").read_text())["data"] != fingerprint(run.task):
        raise UsageError(f"the data of {run.task.name} are not those the run in {folder} started with")
    for name in fixed(run):
        run.anchors[name] = load_file(
            folder / f"anchor-{name}.safetensors", device=str(next(run.policy.parameters()).device)
        )
    read_checkpoint(run, newest(folder))
    return run


def fingerprint(task: Any) -> str | None:
    """Digest of a task's training and held-out records; None where there are none."""
    if not hasattr(task, "records"):
        return None
    return hashlib.sha256(json.dumps([task.records, task.heldout], default=str).encode()).hexdigest()


def newest(folder: Path) -> Path:
    """The newest checkpoint of a run."""
    found = sorted(p for p in (folder / "checkpoints").glob("batch-*") if p.is_dir())
    if not found:
        raise UsageError(f"{folder} has no checkpoint yet, so there is nothing to resume or evaluate")
    return found[-1]


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
    save_file(_plain(moving(run.policy)), temporary / "policy.safetensors")
    for name in run.anchors.keys() - set(fixed(run)):
        save_file(_plain(run.anchors[name]), temporary / f"anchor-{name}.safetensors")
    torch.save(run.state(), temporary / "state.pt")
    digests = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(temporary.iterdir())}
    _write(temporary / "manifest.json", json.dumps({"method": run.config.method, "files": digests}))
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
    live, saved = moving(run.policy), load_file(path / "policy.safetensors")
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


def append(run: Run, name: str, record: dict[str, Any]) -> None:
    """One line of JSON at the end of a file of the run."""
    if run.folder is not None:
        with (run.folder / name).open("a") as handle:
            handle.write(json.dumps(record) + "\n")


def rewind(run: Run, name: str) -> None:
    """Drop the lines of batches after the checkpoint: they will be made again."""
    assert run.folder is not None
    path = run.folder / name
    if path.exists():
        lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
        kept = [line for line in lines if json.loads(line)["batch"] <= run.batch]
        _write(path, "".join(line + "\n" for line in kept))


def dump(run: Run, batch: Any, what: str) -> Path | None:
    """Keep the batch that led to numbers that are not finite."""
    if run.folder is None:
        return None
    path = run.folder / "nonfinite" / f"batch-{run.batch:08d}.pt"
    path.parent.mkdir(exist_ok=True)
    tensors = {f.name: getattr(batch, f.name) for f in fields(batch)}
    torch.save({"cause": what, **tensors}, path)
    return path


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    temporary.replace(path)
