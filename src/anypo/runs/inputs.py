"""What a run depends on beside its own files, as digests: a run goes on only with what it started with."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anypo import __version__
from anypo.config import Config
from anypo.errors import OBJECT, UsageError
from anypo.plugins import absolute_name, module_sources, names_file, with_neighbours
from anypo.policies.control.spaces import space_to_dict
from anypo.protocols import HasActionSpace, HasRecords, HasTokenizer, HasTransitions
from anypo.runs.files import MANIFEST, check_digest, file_digest, read_record
from anypo.runs.run import Run
from anypo.tasks.control.make_env import find_again
from anypo.tasks.control.wrappers import map_names, wrapper_specs
from anypo.tasks.text.rewards import is_unscored

FILES = ("jsonl", "pairs", "data")
"""Kinds of tasks whose argument is a file."""
LIBRARIES = ("torch", "numpy", "transformers", "gymnasium")
INPUTS = "inputs.json"
FORMAT = 3
"""Of the run's folder; folders of another one are refused in one sentence."""


def absolute_paths(config: Config) -> Config:
    """Return the configuration with every path of a file or folder absolute, so that it means the same in any working directory."""
    task, policy = dict(config.task), dict(config.policy)
    for named in (task, policy):
        named["name"] = absolute_name(named["name"])
    kind, colon, rest = task["name"].partition(":")
    if colon and kind in FILES:
        task["name"] = f"{kind}:{Path(rest).resolve()}"
    for option in ("heldout", "expert"):
        if isinstance(task.get(option), str) and Path(task[option]).exists():
            task[option] = str(Path(task[option]).resolve())
    if task.get("reward"):
        task["reward"] = [absolute_reward(spec) for spec in reward_specs(config)]
    kind, _, rest = policy.get("name", "").partition(":")
    if kind == "hf" and Path(rest).is_dir():
        policy["name"] = f"hf:{Path(rest).resolve()}"
    if task.get("wrappers"):
        task["wrappers"] = map_names(task["wrappers"], absolute_name)
    return replace(config, method=absolute_name(config.method), task=task, policy=policy, out=None)


def reward_specs(config: Config) -> list[Any]:
    """Return the rewards of a task as they are named."""
    specs = config.task.get("reward") or []
    return specs if isinstance(specs, list) else [specs]


def absolute_reward(spec: Any) -> Any:
    """FILE.py:FUNCTION or model:RUN with an absolute path; other rewards as they are."""
    if not isinstance(spec, str):
        return spec
    kind, _, rest = spec.partition(":")
    if kind == "model":
        return f"model:{Path(rest).resolve()}"
    file, _, name = spec.rpartition(":")
    return f"{Path(file).resolve()}:{name}" if file.endswith(".py") else spec


def code_files(config: Config) -> dict[str, str]:
    """Digest of every file that a run executes: those of its method, parts, task, policy, wrappers and rewards unless these are not
    loaded, what they import from their own folders, the modules of its environment and wrappers, and the weights of reward models."""
    parts = [name for path, name in flatten(config.stages).items() if path.rpartition(".")[2] == "part"]
    wrappers = [name for name, _ in wrapper_specs(config.task.get("wrappers"))]
    names = [config.method, config.task["name"], config.policy.get("name"), *parts, *wrappers]
    files = [Path(name.rpartition(":")[0]) for name in names if isinstance(name, str) and names_file(name)]
    rewards = [] if is_unscored() else reward_specs(config)
    for spec in filter(lambda spec: isinstance(spec, str), rewards):
        kind, _, rest = spec.partition(":")
        file = spec.rpartition(":")[0]
        if kind == "model":
            files += sorted((Path(rest) / "model").glob("*.safetensors"))
        elif file.endswith(".py"):
            files.append(Path(file))
    present = [path.resolve() for path in files if path.is_file()]
    executed = [file for path in present for file in (with_neighbours(path) if path.suffix == ".py" else [path])]
    executed += [source for module in env_modules(config) for source in module_sources(module)]
    return {str(path): file_digest(path) for path in executed}


def env_modules(config: Config) -> list[str]:
    """Return the modules that a task's environment and wrappers are taken from."""
    task = config.task
    kind, _, rest = task["name"].partition(":")
    names = [rest] * (kind == "gym") + [str(task.get("env") or "")]
    names += [name for name, _ in wrapper_specs(task.get("wrappers"))]
    return [name.rpartition(":")[0] for name in names if ":" in name and not names_file(name)]


def check_models(config: Config) -> None:
    """Refuse a model written by a run, for the policy or a reward, of which a file was changed."""
    kind, _, rest = str(config.policy.get("name", "")).partition(":")
    specs = [spec.partition(":") for spec in reward_specs(config) if isinstance(spec, str)]
    folders = [Path(run) / "model" for name, _, run in specs if name == "model"]
    for folder in folders + [Path(rest)] * (kind == "hf"):
        if (folder / MANIFEST).is_file():
            remedy = f"restore it, or delete {folder / MANIFEST} if the change is meant"
            for name, expected in (
                read_record(folder / MANIFEST, "delete it if the change is meant").get("files", {}).items()
            ):
                check_digest(folder / name, expected, remedy)


def fingerprints(run: Run) -> dict[str, str | None]:
    """Digests of the data, of the weights that are not trained (the base below adapters), and of the tokenizer."""
    frozen = {name: p for name, p in run.policy.named_parameters() if not p.requires_grad}
    return {
        "data": data_digest(run.task),
        "base weights": tensor_digest(frozen) if frozen else None,
        "tokenizer": tokenizer_digest(run.policy),
    }


def data_digest(task: Any) -> str | None:
    """Digest of a task's training and held-out records, or of its transitions; None where there are none."""
    if isinstance(task, HasRecords):
        return hashlib.sha256(json.dumps([task.records, task.heldout], default=str).encode()).hexdigest()
    return tensor_digest(task.transitions()) if isinstance(task, HasTransitions) else None


def tensor_digest(tensors: dict[str, Tensor] | dict[str, nn.Parameter]) -> str:
    """Digest of tensors by name: their types, shapes and bytes."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def tokenizer_digest(policy: Any) -> str | None:
    """Digest of vocabulary, special tokens and chat template; None for a policy without a tokenizer."""
    if not isinstance(policy, HasTokenizer):
        return None
    tokenizer = policy.tokenizer
    core = getattr(tokenizer, "backend_tokenizer", None)
    content = [
        core.to_str() if core is not None else sorted(tokenizer.get_vocab().items()),
        tokenizer.special_tokens_map,
        tokenizer.chat_template,
    ]
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of anypo and of the libraries whose numbers it uses."""
    present = {"anypo": __version__}
    for name in LIBRARIES:
        try:
            present[name] = version(name)
        except PackageNotFoundError:
            continue
    return present


def describe_inputs(run: Run, anchors: dict[str, str]) -> dict[str, Any]:
    """Return what inputs.json holds.

    Args:
        run: at its start.
        anchors: digests of the anchors' files.
    """
    return {
        "versions": versions(),
        "config": json.loads(json.dumps(run.config.to_dict())),
        "format": FORMAT,
        "code": code_files(run.config),
        "fingerprints": fingerprints(run),
        "anchors": anchors,
        "spaces": spaces_of(run),
    }


def spaces_of(run: Run) -> dict[str, Any] | None:
    """Return the spaces of an environment that was given from Python, so that the policy can act without it; None for other tasks."""
    task = run.task
    if not (isinstance(task, HasActionSpace) and task.name.startswith(OBJECT)):
        return None
    return {"obs": space_to_dict(task.observation_space), "action": space_to_dict(task.action_space)}


def read_inputs(folder: Path) -> dict[str, Any]:
    """Return what was recorded when the run started.

    Raises:
        UsageError: another version of anypo wrote the folder, in another format.
    """
    if (folder / "versions.json").exists():
        raise UsageError(f"{folder} has the format 1 of an older anypo, this one reads {FORMAT}; start a new run")
    recorded = read_record(folder / INPUTS, f"without it nothing tells what {folder} started with; start a new run")
    if recorded.get("format") != FORMAT:
        raise UsageError(
            f"{folder} has the format {recorded.get('format')} of another anypo, this one reads {FORMAT}; start a new run"
        )
    return recorded


def check_code(folder: Path, config: Config, recorded: dict[str, Any], allow_code: bool) -> list[str]:
    """Refuse to execute files that are not those the run started with, before any of them is; say which are executed.

    Args:
        folder: the run's.
        config: the run's.
        recorded: content of its inputs.json.
        allow_code: execute them all the same.
    """
    for module in env_modules(config):
        find_again(module, list(recorded["code"]))
    present = code_files(config)
    changed = [name for name, value in present.items() if recorded["code"].get(name) != value]
    for name, value in recorded["code"].items():
        gone = name not in present and not (Path(name).is_file() and file_digest(Path(name)) == value)
        changed += [name] * (gone and not is_unscored())
    if changed and not allow_code:
        raise UsageError(
            f"{' and '.join(changed)} changed since the run in {folder} started; {what_to_do(folder)}, or look at what would be"
            " executed and add --allow-code (in Python, allow_code=True)"
        )
    executed = [name for name in sorted(present) if name.endswith(".py")]
    return [f"executes {' and '.join(executed)}"] if executed else []


def check_fingerprints(folder: Path, run: Run, recorded: dict[str, Any]) -> None:
    """Refuse to go on with other data, base weights or another tokenizer.

    Args:
        folder: the run's.
        run: built again.
        recorded: content of its inputs.json.
    """
    present = fingerprints(run)
    changed = [name for name, value in recorded["fingerprints"].items() if present.get(name) != value]
    if changed:
        names = (
            f"the {' and the '.join(changed)} of {run.task.name if changed == ['data'] else run.config.policy['name']}"
        )
        raise UsageError(f"{names} are not those the run in {folder} started with; {what_to_do(folder)}")


def what_to_do(folder: Path) -> str:
    """Return what to do about a changed input."""
    return f"restore them, or start a new run from its weights with --policy run:{folder}"


def remarks(run: Run, recorded: dict[str, Any]) -> list[str]:
    """One sentence per change since the start that is allowed: of config.yaml, and of libraries."""
    lines = []
    before, now = flatten(recorded["config"]), flatten(json.loads(json.dumps(run.config.to_dict())))
    edited = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    if edited:
        changes = ", ".join(f"{key} {before.get(key)} -> {now.get(key)}" for key in edited)
        lines.append(f"config.yaml was edited since the run started: {changes}")
    present = versions()
    moved = [f"{n} {v} -> {present.get(n)}" for n, v in recorded["versions"].items() if present.get(n) != v]
    if moved:
        lines.append(f"libraries changed since the run started, so numbers may differ: {', '.join(moved)}")
    return lines


def flatten(values: Any, path: str = "") -> dict[str, Any]:
    """Nested dictionaries and lists as {dotted path: value}."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else None
    if items is None:
        return {path: values}
    return {k: v for key, item in items for k, v in flatten(item, f"{path}.{key}" if path else str(key)).items()}
