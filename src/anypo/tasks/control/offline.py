"""Offline data as a task: Minari data sets, .npz and Parquet files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anypo.errors import UsageError
from anypo.policies.control.observations import Flat
from anypo.policies.control.spaces import without_mask
from anypo.ranges import Seed
from anypo.tasks.control.columns import make_table
from anypo.tasks.control.data_files import read_file
from anypo.tasks.control.gym import Gym
from anypo.tasks.control.minari_data import read_minari


class Dataset(Gym):
    """Recorded transitions. Policies learn from them, and may collect more in the environment they come from.

    data: columns, see `read_table`. env: id or specification of the environment. expert: a second data set, of an expert, added
    and marked. The length of a run counts updates. Options of the environment are those of `gym:`.
    """

    unit = "updates"

    def __init__(
        self, name: str, data: dict[str, Any], env: Any, *, expert: dict[str, Any] | None = None, **options: Any
    ):
        super().__init__(env, **options)
        self.name = name
        table = make_table(name, data, self.observation_space, self.action_space)
        if expert is not None:
            other = make_table(f"{name} (expert)", expert, self.observation_space, self.action_space)
            other["episode"] = other["episode"] + int(table["episode"].max()) + 1
            table["expert"], other["expert"] = torch.zeros_like(table["reward"]), torch.ones_like(other["reward"])
            table = {name: torch.cat([table[name], other[name]]) for name in table.keys() & other.keys()}
        self.table = table
        self.low, self.high = data.get("low"), data.get("high")

    def transitions(self) -> dict[str, Tensor]:
        """Return the data as columns: obs, action, next, reward, terminal, episode."""
        return self.table

    def numbers(self) -> dict[str, Tensor]:
        """Return the same columns with every observation as numbers, for measures of the data."""
        expand = Flat(without_mask(self.observation_space, self.action_space)).expand
        return {name: expand(x) if name in ("obs", "next") else x for name, x in self.table.items()}

    def recipe(self, traits: dict[str, Any]) -> dict[str, Any]:
        """Loop settings, steps in updates."""
        if not traits.get("replays"):
            raise UsageError(
                f"{self.name}: the method learns from what it samples itself; use a method for offline data"
            )
        return super().recipe(traits) | {"steps": 20_000}


def make_minari(
    dataset_id: str, *, expert: str | None = None, seed: Seed = 0, env: str | None = None, **options: Any
) -> Dataset:
    """Make the task `minari:ID` of a local data set in Minari's format (below MINARI_DATASETS_PATH).

    Args:
        dataset_id: its id.
        expert: a data set of an expert, a file or a Minari id, see `read_table`.
        seed: of the environment.
        env: the environment's id, instead of the data set's own environment with all its settings.
        options: of the environment; `env_kwargs` win over the data set's.

    Raises:
        UsageError: there is no such data set, or it names no environment.
    """
    data = read_minari(dataset_id)
    spec = env or data["env"]
    if spec is None:
        raise UsageError(f"minari:{dataset_id} does not name its environment; give --task.env ENV_ID")
    other = None if expert is None else read_table(expert)
    return Dataset(f"minari:{dataset_id}", data, spec, expert=other, seed=seed, **options)


def make_file(
    file: str, *, env: str | None = None, expert: str | None = None, seed: Seed = 0, **options: Any
) -> Dataset:
    """Make the task `data:FILE.npz` or `data:FILE.parquet`.

    Args:
        file: the file.
        env: id of the environment the data come from.
        expert: a data set of an expert, a file or a Minari id, see `read_table`.
        seed: of the environment.
        options: of the environment.

    Raises:
        UsageError: there is no such file, or no environment is named.
    """
    if env is None:
        raise UsageError(f"data:{file} needs the environment to be measured in: --task.env ENV_ID")
    other = None if expert is None else read_table(expert)
    return Dataset(f"data:{file}", read_file(Path(file)), env, expert=other, seed=seed, **options)


def read_table(source: str) -> dict[str, Any]:
    """Read a data set by its name: a file's path, or a Minari id."""
    kind, _, rest = source.partition(":")
    if kind in ("minari", "data"):
        source = rest
    return read_file(Path(source)) if source.endswith((".npz", ".parquet")) else read_minari(source)
