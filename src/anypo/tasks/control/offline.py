"""Offline data as a task: Minari data sets, .npz and Parquet files."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from anypo.errors import UsageError
from anypo.policies.control.spaces import Flat, from_space
from anypo.tasks.control.gym import Gym

COLUMNS = ("observations", "actions", "rewards", "terminals")
"""Columns of a data file; `next_observations` and `timeouts` are optional, and `expert` (1 on transitions of an expert)."""


class Dataset(Gym):
    """Recorded transitions. Policies learn from them, and may collect more in the environment they come from.

    data: columns, see `read_table`. expert: a second data set, of an expert, added and marked. The length of a run counts
    updates. Options of the environment are those of `gym:`.
    """

    unit = "updates"

    def __init__(
        self, name: str, data: dict[str, Any], env_id: str, *, expert: dict[str, Any] | None = None, **options: Any
    ):
        super().__init__(env_id, **options)
        self.name = name
        table = self._table(data)
        if expert is not None:
            other = self._table(expert)
            other["episode"] = other["episode"] + int(table["episode"].max()) + 1
            table["expert"], other["expert"] = torch.zeros_like(table["reward"]), torch.ones_like(other["reward"])
            table = {name: torch.cat([table[name], other[name]]) for name in table.keys() & other.keys()}
        self.table = table
        self.low, self.high = data.get("low"), data.get("high")

    def transitions(self) -> dict[str, Tensor]:
        """The data as columns: obs, action, next, reward, terminal, episode."""
        return self.table

    def recipe(self, traits: dict[str, Any]) -> dict[str, Any]:
        """Loop settings, steps in updates."""
        if not traits.get("replays"):
            raise UsageError(
                f"{self.name}: the method learns from what it samples itself; use a method for offline data"
            )
        return super().recipe(traits) | {"steps": 20_000}

    def _table(self, data: dict[str, Any]) -> dict[str, Tensor]:
        encode = Flat(self.observation_space)
        n = len(data["rewards"])
        for name in ("observations", "actions", "next_observations", "terminals", "timeouts"):
            if len(data[name]) != n:
                raise UsageError(f"{self.name}: {name} has {len(data[name])} rows, rewards {n}")
        if n == 0:
            raise UsageError(f"{self.name} is empty")

        def encode_rows(rows: Any) -> Tensor:
            if encode.plain:
                obs = torch.as_tensor(np.asarray(rows, np.float32).reshape(n, -1))
            else:
                obs = torch.as_tensor(np.stack([encode(row) for row in rows]))
            if obs.shape[1] != len(encode.boxed):
                raise UsageError(
                    f"{self.name}: observations have {obs.shape[1]} numbers, {self.env_id} gives {len(encode.boxed)}"
                )
            return obs

        rewards = np.asarray(data["rewards"], np.float32)
        if not np.isfinite(rewards).all():
            raise UsageError(
                f"{self.name}: the reward of row {int(np.flatnonzero(~np.isfinite(rewards))[0])} is not finite"
            )
        terminal = np.asarray(data["terminals"], bool)
        ends = terminal | np.asarray(data["timeouts"], bool)
        episode = np.concatenate([[0], np.cumsum(ends)[:-1]])
        table = {
            "obs": encode_rows(data["observations"]),
            "action": from_space(self.action_space, np.asarray(data["actions"])),
            "next": encode_rows(data["next_observations"]),
            "reward": torch.as_tensor(rewards),
            "terminal": torch.as_tensor(terminal.astype(np.float32)),
            "episode": torch.as_tensor(episode),
        }
        if "expert" in data:
            table["expert"] = torch.as_tensor(np.asarray(data["expert"], np.float32))
        return table


def make_minari(
    dataset_id: str, *, expert: str | None = None, seed: int = 0, env: str | None = None, **options: Any
) -> Dataset:
    """Make the task `minari:ID` of a local data set in Minari's format (below MINARI_DATASETS_PATH).

    Args:
        dataset_id: its id.
        expert: a data set of an expert, a file or a Minari id, see `read_table`.
        seed: of the environment.
        env: the environment's id, where the data do not name it.
        options: of the environment.

    Raises:
        UsageError: there is no such data set, or it names no environment.
    """
    data = read_minari(dataset_id)
    env_id = env or data["env"]
    if env_id is None:
        raise UsageError(f"minari:{dataset_id} does not name its environment; give --task.env ENV_ID")
    other = None if expert is None else read_table(expert)
    return Dataset(f"minari:{dataset_id}", data, env_id, expert=other, seed=seed, **options)


def make_file(
    file: str, *, env: str | None = None, expert: str | None = None, seed: int = 0, **options: Any
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


def read_minari(dataset_id: str) -> dict[str, Any]:
    """Read the columns of a Minari data set, and from its metadata `env`, `low` and `high` (returns of a random and an expert
    policy), None where missing."""
    try:
        import minari
    except ImportError as error:
        raise UsageError('Minari data need the package minari; run `pip install "anypo[offline]"`') from error
    try:
        dataset = minari.load_dataset(dataset_id)
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(
            f"there is no Minari data set {dataset_id!r} here ({error.__class__.__name__}); `anypo collect` makes one,"
            " MINARI_DATASETS_PATH says where they are"
        ) from None
    episodes = list(dataset.iterate_episodes())
    if not episodes:
        raise UsageError(f"the Minari data set {dataset_id} is empty")

    def concatenate(parts: list[Any]) -> Any:
        return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else [row for part in parts for row in part]

    spec = dataset.env_spec
    metadata = dataset.storage.metadata
    return {
        "observations": concatenate([e.observations[:-1] for e in episodes]),
        "next_observations": concatenate([e.observations[1:] for e in episodes]),
        "actions": concatenate([e.actions for e in episodes]),
        "rewards": concatenate([e.rewards for e in episodes]),
        "terminals": concatenate([e.terminations for e in episodes]),
        "timeouts": np.concatenate([mark_end(e.truncations) for e in episodes]),
        "env": None if spec is None else spec.id,
        "low": metadata.get("ref_min_score"),
        "high": metadata.get("ref_max_score"),
    }


def mark_end(truncations: Any) -> np.ndarray:
    """The truncation flags of an episode with the last one set, however it ended."""
    flags = np.array(truncations, bool)
    flags[-1] = True
    return flags


def read_file(path: Path) -> dict[str, Any]:
    """Read the columns of an .npz or Parquet file."""
    if not path.exists():
        raise UsageError(f"there is no data file {path}")
    try:
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                data: dict[str, Any] = {name: arrays[name] for name in arrays.files}
        else:
            import pyarrow.parquet

            table = pyarrow.parquet.read_table(path)
            data = {name: np.array(table[name].to_pylist()) for name in table.column_names}
    except (OSError, ValueError, BadZipFile) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    for name in COLUMNS:
        if name not in data:
            raise UsageError(f"{path} has no column {name!r}; it needs {', '.join(COLUMNS)}")
    n = len(data["rewards"])
    data.setdefault("timeouts", np.zeros(n, bool))
    if "next_observations" not in data:
        follow = np.concatenate([data["observations"][1:], data["observations"][-1:]])
        data["next_observations"] = follow
        cut = np.asarray(data["timeouts"], bool) & ~np.asarray(data["terminals"], bool)
        cut[-1] = cut[-1] or not data["terminals"][-1]
        keep = ~cut  # what followed the last step before a cut is not known
        ends = np.asarray(data["timeouts"], bool).copy()
        ends[:-1] |= cut[1:]
        data["timeouts"] = ends
        data = {name: column[keep] for name, column in data.items()}
    return data


def write_minari(dataset_id: str, task: Gym, rows: Any, low: float, high: float, method: str) -> None:
    """Write whole episodes as a Minari data set; one of that id is replaced.

    Args:
        dataset_id: its id.
        task: the environment the episodes were played in.
        rows: the episodes.
        low, high: returns of a random and of an expert policy.
        method: name of the method that made the policy.

    Raises:
        UsageError: observations are no Box.
    """
    import minari
    from minari.data_collector import EpisodeBuffer

    if not Flat(task.observation_space).plain:
        raise UsageError(f"{task.name}: only observations that are a Box can be written as a Minari data set")
    shape = task.observation_space.shape
    buffers = []
    for i, length in enumerate(rows.lengths.tolist()):
        obs = torch.cat([rows.trace["obs"][i, :length], rows.extra["last"][i : i + 1]]).numpy()
        done = bool(rows.done[i])
        flags = np.zeros(length, bool)
        last = flags.copy()
        last[-1] = True
        buffers.append(
            EpisodeBuffer(
                id=i,
                observations=list(obs.reshape(length + 1, *shape).astype(task.observation_space.dtype)),
                actions=list(rows.extra["env_action"][i, :length].numpy().reshape(length, *task.action_space.shape)),
                rewards=rows.reward[i, :length].tolist(),
                terminations=(last if done else flags).tolist(),
                truncations=(flags if done else last).tolist(),
            )
        )
    if dataset_id in minari.list_local_datasets():
        minari.delete_dataset(dataset_id)
    minari.create_dataset_from_buffers(
        dataset_id,
        buffers,
        env=task.env_id,
        algorithm_name=method,
        ref_min_score=low,
        ref_max_score=high,
        observation_space=task.observation_space,
        action_space=task.action_space,
    )
