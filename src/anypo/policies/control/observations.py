"""Observations of any space as vectors: stored in few bytes, expanded to numbers where a network reads them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from anypo.errors import UsageError
from anypo.policies.control.images import MIN_SIDE, Image, image_of

BYTES = (np.uint8, np.int8, np.float16)
"""Types of numbers that are stored as they are; bool as uint8, all others as float32."""


@dataclass(frozen=True)
class Leaf:
    """One space without parts. path: keys that lead to it. count: stored numbers, of type `dtype`. sizes: choices of each number,
    which count from `start`; empty where the numbers are no choices. boxed: the space is a Box. image: how they lie in an image."""

    path: tuple[Any, ...]
    count: int
    dtype: np.dtype
    boxed: bool
    sizes: tuple[int, ...] = ()
    start: np.ndarray | int = 0
    image: Image | None = None

    @property
    def width(self) -> int:
        """Numbers a network reads: one per choice."""
        return sum(self.sizes) or self.count

    def store(self, values: Any) -> Shaped[np.ndarray, "row count"]:
        """Convert one value per row; ValueError where a shape differs or a choice does not exist."""
        if not self.sizes:
            return np.array(values, self.dtype).reshape(len(values), self.count)
        index = np.array(values).reshape(len(values), self.count) - self.start
        if ((index < 0) | (index >= self.sizes)).any():
            raise ValueError("there is no such choice")
        return index.astype(self.dtype)

    def expand(self, stored: Shaped[Tensor, "*row count"]) -> Float[Tensor, "*row width"]:
        """Numbers as float32, choices one-hot."""
        if not self.sizes:
            return stored.float()
        parts = zip(stored.unbind(-1), self.sizes, strict=True)
        return torch.cat([(x.unsqueeze(-1) == torch.arange(n, device=x.device)).float() for x, n in parts], -1)

    def restore(self, stored: Shaped[np.ndarray, "row count"]) -> np.ndarray:
        """Return the inverse of `store`, up to the shape of a row."""
        return stored.astype(np.int64) + self.start if self.sizes else stored


class Flat:
    """An observation space as vectors, nested parts one after the other.

    Stored: numbers in the space's own type where it has at most two bytes, else as float32; the index of a choice. Parts with different
    types are stored as bytes. Expanded: float32, choices one-hot. Dict entries are in alphabetical order of their names and are
    looked up by name; tuples keep their order.

    boxed: which expanded entries are numbers rather than choices. images: expanded columns of each image, and how it lies there. others:
    the other columns. compact: stored vectors differ from expanded ones.
    """

    def __init__(self, space: Any):
        from gymnasium.spaces import Box

        self.space = _sorted(space)
        self.plain = isinstance(space, Box)
        self.leaves = list(_leaves(self.space, ()))
        self.boxed = np.concatenate([np.full(leaf.width, leaf.boxed) for leaf in self.leaves])
        starts = np.cumsum([0, *(leaf.width for leaf in self.leaves)]).tolist()
        columns = zip(self.leaves, starts, strict=False)
        self.images = [(slice(a, a + leaf.width), leaf.image) for leaf, a in columns if leaf.image]
        self.others = np.flatnonzero(np.concatenate([np.full(leaf.width, leaf.image is None) for leaf in self.leaves]))
        dtypes = {leaf.dtype for leaf in self.leaves}
        self.mixed = len(dtypes) > 1
        self.compact = self.mixed or dtypes != {np.dtype(np.float32)}
        sizes = [leaf.count * (leaf.dtype.itemsize if self.mixed else 1) for leaf in self.leaves]
        self.ends = np.cumsum(sizes).tolist()

    @property
    def nbytes(self) -> int:
        """Bytes of a stored vector."""
        return sum(leaf.count * leaf.dtype.itemsize for leaf in self.leaves)

    def __call__(self, observation: Any) -> Shaped[np.ndarray, " stored"]:
        return self.rows([observation])[0]

    def rows(self, observations: Sequence[Any]) -> Shaped[np.ndarray, "observation stored"]:
        """Store several observations, one a row."""
        if self.plain:
            return self.leaves[0].store(observations)
        return self.join([leaf.store([_dig(o, leaf.path) for o in observations]) for leaf in self.leaves])

    def join(self, parts: Sequence[Shaped[np.ndarray, "row _"]]) -> Shaped[np.ndarray, "row stored"]:
        """Put the stored parts of rows, one per leaf, beside each other."""
        if self.mixed:
            parts = [np.ascontiguousarray(part).view(np.uint8) for part in parts]
        return np.concatenate(parts, 1) if len(parts) > 1 else parts[0]

    def expand(self, stored: Shaped[Tensor, "*row stored"]) -> Float[Tensor, "*row width"]:
        """Expand stored vectors; expanded ones pass."""
        if stored.dtype in (torch.float32, torch.float64):
            return stored
        return torch.cat([leaf.expand(part) for leaf, part in zip(self.leaves, self._split(stored), strict=True)], -1)

    def restore(self, stored: Shaped[Tensor, "row stored"]) -> Any:
        """Rows as the space has them: an array, or a dict or tuple of arrays, with one row per observation."""
        parts = [leaf.restore(x.numpy()) for leaf, x in zip(self.leaves, self._split(stored), strict=True)]
        return _nest(self.space, iter(parts))

    def _split(self, stored: Tensor) -> list[Tensor]:
        parts = [stored[..., a:b] for a, b in zip([0, *self.ends], self.ends, strict=False)]
        if not self.mixed:
            return parts
        types = [torch.from_numpy(np.empty(0, leaf.dtype)).dtype for leaf in self.leaves]
        return [part.clone(memory_format=torch.contiguous_format).view(t) for part, t in zip(parts, types, strict=True)]


def _sorted(space: Any) -> Any:
    from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

    if isinstance(space, Dict):
        return Dict([(name, _sorted(space[name])) for name in sorted(space)])
    if isinstance(space, Tuple):
        return Tuple([_sorted(s) for s in space])
    if isinstance(space, Box | Discrete | MultiDiscrete | MultiBinary):
        return space
    raise UsageError(
        f"the observation space {space} is not supported; use Box, Discrete, MultiDiscrete, MultiBinary, "
        "or a Dict or Tuple of them"
    )


def _leaves(space: Any, path: tuple[Any, ...]) -> list[Leaf]:
    from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Tuple

    if isinstance(space, Dict | Tuple):
        parts = space.items() if isinstance(space, Dict) else enumerate(space)
        return [leaf for key, part in parts for leaf in _leaves(part, (*path, key))]
    if isinstance(space, Discrete | MultiDiscrete):
        sizes = (int(space.n),) if isinstance(space, Discrete) else tuple(int(n) for n in space.nvec.ravel())
        dtype = next(t for t, most in ((np.uint8, 2**8), (np.int16, 2**15), (np.int32, 2**31)) if max(sizes) <= most)
        start = int(space.start) if isinstance(space, Discrete) else space.start.ravel()
        return [Leaf(path, len(sizes), np.dtype(dtype), False, sizes, start)]
    small = np.uint8 if space.dtype == np.bool_ or not isinstance(space, Box) else space.dtype.type
    dtype = np.dtype(small if small in BYTES else np.float32)
    boxed = isinstance(space, Box)
    return [Leaf(path, math.prod(space.shape), dtype, boxed, image=image_of(space) if boxed else None)]


def _dig(observation: Any, path: tuple[Any, ...]) -> Any:
    """Return the part of an observation that a path leads to."""
    for key in path:
        observation = observation[key]
    return observation


def _nest(space: Any, parts: Any) -> Any:
    """Arrays, one per leaf and in their order, in the shape of the space."""
    from gymnasium.spaces import Dict, Tuple

    if isinstance(space, Dict):
        return {name: _nest(space[name], parts) for name in space}
    if isinstance(space, Tuple):
        return tuple(_nest(part, parts) for part in space)
    rows = next(parts)
    return rows.reshape(len(rows), *space.shape).astype(space.dtype)


def has_images(space: Any) -> bool:
    """Return whether convolutions read a part of an observation space."""
    from gymnasium.spaces import Box, Dict, Tuple

    if isinstance(space, Dict | Tuple):
        return any(map(has_images, space.values() if isinstance(space, Dict) else space))
    return isinstance(space, Box) and image_of(space) is not None


def describe_images(space: Any) -> str | None:
    """Say which part of an observation space holds images too small for convolutions; None without any."""
    from gymnasium.spaces import Box, Dict, Tuple

    if isinstance(space, Dict | Tuple):
        parts = space.values() if isinstance(space, Dict) else space
        return next((text for part in parts if (text := describe_images(part))), None)
    if not isinstance(space, Box) or space.dtype != np.uint8 or len(space.shape) < 2 or image_of(space):
        return None
    size = "x".join(map(str, space.shape))
    return (
        f"observations: {size} pixels are {math.prod(space.shape):,} single features of a perceptron; convolutions read images of at"
        f" least {MIN_SIDE}x{MIN_SIDE} (a wrapper can resize them)"
    )


def nested_leaves(space: Any, values: Any, where: str, other: Sequence[str] = ()) -> list[tuple[str, Any]]:
    """Name and values of every leaf of a nested table.

    Args:
        space: whose parts the table has.
        values: an array per leaf, in dicts and tuples as the space.
        where: name of the table, for messages.
        other: keys that are allowed beside the space's.

    Raises:
        UsageError: the parts are not the space's.
    """
    from gymnasium.spaces import Dict, Tuple

    if isinstance(space, Dict):
        keys = set(values) - set(other) if isinstance(values, Mapping) else None
        if keys != set(space):
            has = "have no keys" if keys is None else f"have the keys {', '.join(map(repr, sorted(keys)))}"
            raise UsageError(f"{where} {has}, the environment's {', '.join(map(repr, space))}")
        return [
            leaf for name in space for leaf in nested_leaves(space[name], values[name], f"{where}[{name!r}]", other)
        ]
    if isinstance(space, Tuple):
        if not isinstance(values, tuple) or len(values) != len(space):
            raise UsageError(f"{where} are no tuple of {len(space)}, as the environment's are")
        parts = enumerate(zip(space, values, strict=True))
        return [leaf for i, (part, x) in parts for leaf in nested_leaves(part, x, f"{where}[{i}]", other)]
    return [(where, values)]
