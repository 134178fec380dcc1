"""Data sets in Minari's format."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from anypo.errors import UsageError
from anypo.policies.control.observations import Flat
from anypo.policies.control.spaces import without_mask
from anypo.tasks.control.gym import Gym
from anypo.types import LAST_MASK, MASK


def read_minari(dataset_id: str) -> dict[str, Any]:
    """Read the columns of a Minari data set, and from its metadata `env`, the specification of the environment to be measured in
    with all its settings, and `low` and `high` (returns of a random and an expert policy), None where missing."""
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
    episodes = [episode for episode in dataset.iterate_episodes() if len(episode.rewards)]
    if not episodes:
        raise UsageError(f"the Minari data set {dataset_id} is empty")
    metadata = dataset.storage.metadata
    return {
        "observations": join_tables([map_table(lambda x: x[:-1], e.observations) for e in episodes]),
        "next_observations": join_tables([map_table(lambda x: x[1:], e.observations) for e in episodes]),
        "actions": join_tables([e.actions for e in episodes]),
        "rewards": np.concatenate([e.rewards for e in episodes]),
        "terminals": np.concatenate([e.terminations for e in episodes]),
        "timeouts": np.concatenate([mark_end(e.truncations) for e in episodes]),
        "env": getattr(dataset, "_eval_env_spec", None) or dataset.env_spec,
        "low": metadata.get("ref_min_score"),
        "high": metadata.get("ref_max_score"),
    }


def map_table(fn: Callable[[Any], Any], table: Any) -> Any:
    """Apply fn to every array of nested dicts and tuples."""
    if isinstance(table, dict):
        return {name: map_table(fn, part) for name, part in table.items()}
    return tuple(map_table(fn, part) for part in table) if isinstance(table, tuple) else fn(table)


def join_tables(tables: Sequence[Any]) -> Any:
    """Put the rows of tables with the same parts below each other."""
    first = tables[0]
    if isinstance(first, dict):
        return {name: join_tables([table[name] for table in tables]) for name in first}
    if isinstance(first, tuple):
        return tuple(join_tables(parts) for parts in zip(*tables, strict=True))
    return np.concatenate([np.asarray(table) for table in tables])


def mark_end(truncations: Any) -> np.ndarray:
    """Return the truncation flags of an episode with the last one set, however it ended."""
    flags = np.array(truncations, bool)
    flags[-1] = True
    return flags


def write_minari(dataset_id: str, task: Gym, rows: Any, low: float, high: float, method: str) -> None:
    """Write whole episodes as a Minari data set with the specification of their environment; one of that id is replaced.

    Args:
        dataset_id: its id.
        task: the environment the episodes were played in.
        rows: the episodes.
        low, high: returns of a random and of an expert policy.
        method: name of the method that made the policy.
    """
    import minari
    from minari.data_collector import EpisodeBuffer

    encode = Flat(without_mask(task.observation_space, task.action_space))
    masked = not encode.plain and MASK in getattr(task.observation_space, "spaces", {}) and MASK in rows.trace
    buffers = []
    for i, length in enumerate(rows.lengths.tolist()):
        observations = encode.restore(torch.cat([rows.trace["obs"][i, :length], rows.extra["last"][i : i + 1]]))
        if masked:
            mask = torch.cat([rows.trace[MASK][i, :length], rows.extra[LAST_MASK][i : i + 1]]).numpy()
            space = task.observation_space[MASK]
            observations[MASK] = mask.reshape(length + 1, *space.shape).astype(space.dtype)
        done = bool(rows.done[i])
        flags = np.zeros(length, bool)
        last = flags.copy()
        last[-1] = True
        buffers.append(
            EpisodeBuffer(
                id=i,
                observations=map_table(list, observations),
                actions=list(rows.extra["env_action"][i, :length].numpy().reshape(length, *task.action_space.shape)),
                rewards=rows.reward[i, :length].tolist(),
                terminations=(last if done else flags).tolist(),
                truncations=(flags if done else last).tolist(),
            )
        )
    if dataset_id in minari.list_local_datasets():
        minari.delete_dataset(dataset_id)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", category=UserWarning, module="minari"
        )  # of authors and links that are not known here
        minari.create_dataset_from_buffers(
            dataset_id,
            buffers,
            env=writable_spec(task.env_spec),
            algorithm_name=method,
            ref_min_score=low,
            ref_max_score=high,
            observation_space=task.observation_space,
            action_space=task.action_space,
            jpeg_encoding=False,
        )


def writable_spec(spec: Any) -> Any:
    """Return an environment's specification, or None where it cannot be written as text (a class as its entry point)."""
    try:
        spec.to_json()
    except (TypeError, ValueError):
        return None
    return spec
