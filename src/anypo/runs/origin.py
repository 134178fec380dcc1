"""Start a run from the policy of another one: `--policy run:RUN`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from anypo.config import Config, from_dict
from anypo.errors import UsageError
from anypo.plain_yaml import load_yaml
from anypo.policies.weights import trainable_state
from anypo.runs.checkpoint import find_checkpoint, read_manifest
from anypo.runs.claim import CONFIG
from anypo.runs.files import read_tensors

START = "start"
"""Option of a policy: the checkpoint whose weights it starts with."""
VALUES = ("critic.", "critics.", "value_head.", "table")
"""Beginnings of the names of value networks, which a method may have or not."""


def saved_config(folder: Path) -> Config:
    """Return the configuration of a run."""
    if not (folder / CONFIG).exists():
        raise UsageError(f"{folder} holds no run: there is no {CONFIG} in it")
    return from_dict(load_yaml(folder / CONFIG))


def resolve_origin(config: Config) -> Config:
    """Return the configuration with `run:RUN` replaced by that run's policy and the checkpoint to start from.

    Args:
        config: its policy may have the option `checkpoint`: `best`, `last` (the default) or the number of a batch.

    Raises:
        UsageError: there is no such run or checkpoint.
    """
    kind, _, rest = str(config.policy.get("name", "")).partition(":")
    if kind != "run":
        return config
    folder = Path(rest).resolve()
    options = {key: value for key, value in config.policy.items() if key != "name"}
    path = find_checkpoint(folder, str(options.pop("checkpoint", "last"))) if rest else None
    if path is None:
        raise UsageError("this policy is written run:RUN")
    return replace(config, policy={**saved_config(folder).policy, **options, START: str(path)})


def load_origin(policy: Any, path: Path) -> None:
    """Copy the weights of another run's checkpoint into a policy; value networks that only one of the two has are left alone.

    Args:
        policy: changed in place.
        path: of the checkpoint.

    Raises:
        UsageError: the weights do not fit.
    """
    expected = read_manifest(path)["files"]["policy.safetensors"]
    saved = read_tensors(path / "policy.safetensors", expected, f"delete {path} to start from the checkpoint before it")
    live = trainable_state(policy)
    fitting = {name for name in live.keys() & saved.keys() if live[name].shape == saved[name].shape}
    wrong = sorted(name for name in (live.keys() | saved.keys()) - fitting if not name.startswith(VALUES))
    if wrong:
        raise UsageError(
            f"the weights in {path} do not fit this policy and task: {wrong[0]} differs; for a language model that is trained"
            f" otherwise, take --policy hf:{path.parents[1]}/model"
        )
    with torch.no_grad():
        for name in fitting:
            live[name].copy_(saved[name])
