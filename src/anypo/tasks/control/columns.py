"""Columns of recorded transitions, in any common layout, checked row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from anypo.errors import UsageError
from anypo.policies.control.observations import Flat, Leaf, nested_leaves
from anypo.policies.control.spaces import choices, first_choice, from_space, without_mask
from anypo.types import MASK, NEXT_MASK


def read_numbers(source: str, name: str, values: Any) -> np.ndarray:
    """Return a column as an array of numbers.

    Args:
        source: where the column comes from, for messages.
        name: of the column.
        values: an array, or one value per row.

    Raises:
        UsageError: text, objects, missing values or rows of different lengths.
    """
    try:
        array = np.asarray(values)
    except ValueError:
        raise UsageError(
            f"{source}: the rows of the column {name!r} have different lengths; every row needs as many"
        ) from None
    if array.dtype.kind not in "biuf" or array.ndim == 0:
        raise UsageError(
            f"{source}: the column {name!r} has the type {array.dtype} and the shape {array.shape}; it must hold numbers,"
            " one a row"
        )
    return array


def read_scalars(source: str, name: str, values: Any) -> np.ndarray:
    """Return a column of one number a row, written as (n,) or (n, 1).

    Args:
        source: where the column comes from, for messages.
        name: of the column.
        values: an array, or one value per row.

    Raises:
        UsageError: another shape.
    """
    array = read_numbers(source, name, values)
    if array.size != len(array):
        raise UsageError(f"{source}: the column {name!r} has the shape {array.shape}; it needs one number a row")
    return array.reshape(-1)


def read_flags(source: str, name: str, values: Any) -> np.ndarray:
    """Return a column of one truth value a row.

    Args:
        source: where the column comes from, for messages.
        name: of the column.
        values: an array, or one value per row.

    Raises:
        UsageError: a number is neither 0 nor 1.
    """
    array = read_scalars(source, name, values)
    if (bad := np.flatnonzero((array != 0) & (array != 1))).size:
        raise UsageError(f"{source}: {name} of row {bad[0]} is {array[bad[0]]}; it must be 0 or 1")
    return array.astype(bool)


def make_table(source: str, data: dict[str, Any], observation_space: Any, action_space: Any) -> dict[str, Tensor]:
    """Return transitions as policies and stores hold them, see `parts.store.episodes.Table`.

    Args:
        source: where the data come from, for messages.
        data: columns by name.
        observation_space, action_space: the environment's.

    Raises:
        UsageError: a column has other rows than the rewards, another width than its space, a number that is not finite or an
            action outside the space.
    """
    rewards = read_scalars(source, "rewards", data["rewards"]).astype(np.float32)
    n = len(rewards)
    if n == 0:
        raise UsageError(f"{source} is empty")
    refuse_nonfinite(source, "rewards", rewards)
    flags = {name: read_flags(source, name, data[name]) for name in ("terminals", "timeouts")}
    for name, column in flags.items():
        require_rows(source, name, column, n)
    ends = flags["terminals"] | flags["timeouts"]
    encode = Flat(without_mask(observation_space, action_space))
    table = {
        "obs": read_observations(source, "observations", encode, data["observations"], n),
        "action": read_actions(source, action_space, data["actions"], n),
        "next": read_observations(source, "next_observations", encode, data["next_observations"], n),
        "reward": torch.from_numpy(rewards),
        "terminal": torch.from_numpy(flags["terminals"].astype(np.float32)),
        "episode": torch.from_numpy(np.concatenate([[0], np.cumsum(ends)[:-1]])),
    }
    if "expert" in data:
        table["expert"] = torch.from_numpy(read_flags(source, "expert", data["expert"]).astype(np.float32))
    if isinstance(data["observations"], dict) and MASK in data["observations"] and choices(action_space):
        for key, name in ((MASK, "observations"), (NEXT_MASK, "next_observations")):
            mask = read_numbers(source, f"{name}[{MASK!r}]", data[name][MASK])
            table[key] = torch.from_numpy(mask.reshape(n, -1).astype(bool))
    return table


def read_observations(source: str, name: str, encode: Flat, values: Any, n: int) -> Tensor:
    """Return a column of observations as `Flat` stores them.

    Args:
        source: where the column comes from, for messages.
        name: of the column.
        encode: of the environment's observation space.
        values: an array, or dicts and tuples of arrays; choices as numbers or one-hot.
        n: rows.
    """
    leaves = nested_leaves(encode.space, values, f"{source}: {name}", (MASK,))
    parts = [
        leaf.store(read_leaf(source, where.removeprefix(f"{source}: "), leaf, x, n))
        for leaf, (where, x) in zip(encode.leaves, leaves, strict=True)
    ]
    return torch.from_numpy(encode.join(parts))


def read_leaf(source: str, name: str, leaf: Leaf, values: Any, n: int) -> np.ndarray:
    """Return the numbers [n, count] of one part of the observations, checked.

    Args:
        source: where they come from, for messages.
        name: of the part.
        leaf: its space.
        values: an array.
        n: rows.
    """
    array = read_numbers(source, name, values)
    require_rows(source, name, array, n)
    array = array.reshape(n, -1)
    if leaf.sizes:
        return read_choices(source, name, array, leaf.sizes, leaf.start)
    if array.shape[1] != leaf.count:
        raise UsageError(f"{source}: {name} have {array.shape[1]} numbers, the environment's {leaf.count}")
    refuse_nonfinite(source, name, array)
    if leaf.dtype.kind in "iu" and not np.array_equal(array, array.astype(leaf.dtype)):
        raise UsageError(f"{source}: {name} hold numbers that the environment's {leaf.dtype} cannot hold")
    return array


def read_actions(source: str, space: Any, values: Any, n: int) -> Tensor:
    """Return a column of the environment's actions as policies store them.

    Args:
        source: where the column comes from, for messages.
        space: the environment's action space.
        values: an array; choices as numbers or one-hot.
        n: rows.
    """
    from gymnasium.spaces import Box

    array = read_numbers(source, "actions", values)
    require_rows(source, "actions", array, n)
    array = array.reshape(n, -1)
    if sizes := choices(space):
        start = first_choice(space)
        return from_space(space, read_choices(source, "actions", array, sizes, start).reshape(n, *space.shape))
    if not isinstance(space, Box):
        raise UsageError(
            f"{source}: actions of {space} are not supported; use Discrete, MultiDiscrete, MultiBinary or a Box"
        )
    width = int(np.prod(space.shape))
    if array.shape[1] != width:
        raise UsageError(f"{source}: actions have {array.shape[1]} numbers, the environment's {width}")
    refuse_nonfinite(source, "actions", array)
    low, high = np.ravel(space.low).astype(np.float64), np.ravel(space.high).astype(np.float64)
    slack = 1e-5 * (1 + np.maximum(np.abs(low, where=np.isfinite(low), out=np.zeros(width)), 1))
    outside = ((array < low - slack) | (array > high + slack)).any(1)
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise UsageError(
            f"{source}: the action of row {row} is {array[row].tolist()}, outside {space}; clip the actions"
        )
    return from_space(space, array.reshape(n, *space.shape))


def read_choices(source: str, name: str, array: np.ndarray, sizes: Any, start: Any) -> np.ndarray:
    """Return choices [n, component], from their numbers or from one-hot columns.

    Args:
        source, name: of the column, for messages.
        array: [n, component] or [n, choices of all components].
        sizes: choices of every component.
        start: the first choice of every component.
    """
    refuse_nonfinite(source, name, array)
    start = np.broadcast_to(np.ravel(start), len(sizes))
    if array.shape[1] == sum(sizes) != len(sizes):
        parts = np.split(array, np.cumsum(sizes)[:-1], 1)
        if all(((part == 0) | (part == 1)).all() and (part.sum(1) == 1).all() for part in parts):
            return np.stack([part.argmax(1) for part in parts], 1) + start
        raise UsageError(f"{source}: {name} have {array.shape[1]} columns that are not one-hot")
    if array.shape[1] != len(sizes):
        raise UsageError(f"{source}: {name} have {array.shape[1]} numbers, the environment's {len(sizes)}")
    wrong = ((array != np.floor(array)) | (array < start) | (array >= start + np.asarray(sizes))).any(1)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        span = ", ".join(f"{a} to {a + k - 1}" for a, k in zip(start, sizes, strict=True))
        raise UsageError(f"{source}: {name} of row {row}: {array[row].tolist()} is no choice ({span})")
    return array.astype(np.int64)


def require_rows(source: str, name: str, array: np.ndarray, n: int) -> None:
    """Refuse a column that has not as many rows as the rewards.

    Args:
        source: where the column comes from, for messages.
        name: of the column.
        array: the column.
        n: rows of the rewards.
    """
    if len(array) != n:
        raise UsageError(f"{source}: {name} has {len(array)} rows, rewards {n}")


def refuse_nonfinite(source: str, name: str, array: np.ndarray) -> None:
    """Refuse numbers that are not finite, naming the row.

    Args:
        source: where the column comes from, for messages.
        name: of the column.
        array: the column.
    """
    bad = ~np.isfinite(array.reshape(len(array), -1)).all(1)
    if bad.any():
        raise UsageError(
            f"{source}: the {name.removesuffix('s').replace('_', ' ')} of row {int(np.flatnonzero(bad)[0])} is not finite"
        )
