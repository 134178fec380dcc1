"""Gymnasium spaces as flat tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Shaped
from torch import Tensor

from anypo.errors import UsageError


class Flat:
    """An observation space as a float32 vector: numbers as they are, choices one-hot, nested parts one after the other.

    Dict entries are in alphabetical order of their names and are looked up by name; tuples keep their order.
    `boxed` marks the entries that are numbers rather than one-hot choices.
    """

    def __init__(self, space: Any):
        from gymnasium.spaces import Box, flatdim

        self.space = _sorted(space)
        self.boxed = np.concatenate([np.full(flatdim(s), isinstance(s, Box)) for s in _leaves(self.space)])
        self.plain = isinstance(space, Box)

    def __call__(self, observation: Any) -> Float32[np.ndarray, " dim"]:
        if self.plain:
            return np.array(observation, np.float32).ravel()
        from gymnasium.spaces import flatten

        return np.asarray(flatten(self.space, observation), np.float32)

    def rows(self, observations: Sequence[Any]) -> Float32[np.ndarray, "observation dim"]:
        """Flatten several observations, one a row."""
        if self.plain:
            return np.array(observations, np.float32).reshape(len(observations), -1)
        return np.stack([self(observation) for observation in observations])


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


def _leaves(space: Any) -> list[Any]:
    from gymnasium.spaces import Dict, Tuple

    if isinstance(space, Dict):
        return [leaf for part in space.values() for leaf in _leaves(part)]
    if isinstance(space, Tuple):
        return [leaf for part in space for leaf in _leaves(part)]
    return [space]


def to_space(space: Any, action: Shaped[Tensor, "batch *action"]) -> Shaped[np.ndarray, "batch *shape"]:
    """Convert actions to a space's: choices count from its first, [-1, 1] is mapped onto the bounds of a Box and clipped to them."""
    from gymnasium.spaces import Box

    taken = action.numpy().reshape(-1, *space.shape)
    if not isinstance(space, Box):
        return taken + space.start
    low, high = action_bounds(space)
    return np.clip(low + (taken + 1) / 2 * (high - low), space.low, space.high).astype(space.dtype)


def from_space(space: Any, action: Shaped[np.ndarray, "batch *shape"]) -> Shaped[Tensor, "batch *action"]:
    """Convert a dataset's actions to those that policies store: the inverse of `to_space`."""
    from gymnasium.spaces import Box

    if not isinstance(space, Box):
        taken = torch.as_tensor(np.asarray(action) - space.start, dtype=torch.long)
        return taken if space.shape == () else taken.reshape(len(taken), -1)
    low, high = action_bounds(space)
    flat = 2 * (np.asarray(action, np.float64).reshape(-1, *space.shape) - low) / (high - low) - 1
    return torch.as_tensor(flat.reshape(len(flat), -1), dtype=torch.float32)


def action_bounds(space: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return what -1 and 1 are mapped to: the bounds of a Box, or themselves where a bound is missing."""
    bounded = np.isfinite(space.low) & np.isfinite(space.high)
    return np.where(bounded, space.low, -1), np.where(bounded, space.high, 1)


def is_batch(space: Any, observation: Any) -> bool:
    """Return whether an observation is a batch of observations of the space, by the number of its dimensions.

    Raises:
        UsageError: it is neither.
    """
    from gymnasium.spaces import Dict, Tuple

    if isinstance(space, Dict | Tuple):  # a batch of nested observations is a list of them
        return not isinstance(observation, dict | tuple)
    extra = np.ndim(observation) - len(space.shape)
    if extra not in (0, 1) or np.shape(observation)[extra:] != space.shape:
        raise UsageError(
            f"an observation has shape {space.shape}, or one more dimension for a batch; not {np.shape(observation)}"
        )
    return extra == 1


def space_to_dict(space: Any) -> dict[str, Any]:
    """Return a space as plain values, of which `space_from_dict` makes it again."""
    from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete

    if isinstance(space, Box):
        bounds = {"low": space.low.ravel().tolist(), "high": space.high.ravel().tolist()}
        return {"kind": "Box", **bounds, "shape": list(space.shape), "dtype": str(space.dtype)}
    if isinstance(space, Discrete):
        return {"kind": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, MultiDiscrete):
        return {"kind": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": space.start.tolist()}
    if isinstance(space, MultiBinary):
        return {"kind": "MultiBinary", "n": np.array(space.n).tolist()}
    if isinstance(space, Dict):
        return {"kind": "Dict", "spaces": {name: space_to_dict(part) for name, part in space.items()}}
    return {"kind": "Tuple", "spaces": [space_to_dict(part) for part in space]}


def space_from_dict(saved: dict[str, Any]) -> Any:
    """Return the space that `space_to_dict` wrote."""
    from gymnasium import spaces

    values = {name: value for name, value in saved.items() if name != "kind"}
    if saved["kind"] == "Box":
        low, high = (np.array(saved[end], saved["dtype"]).reshape(saved["shape"]) for end in ("low", "high"))
        return spaces.Box(low, high, dtype=np.dtype(saved["dtype"]).type)
    if saved["kind"] == "Dict":
        return spaces.Dict({name: space_from_dict(part) for name, part in saved["spaces"].items()})
    if saved["kind"] == "Tuple":
        return spaces.Tuple([space_from_dict(part) for part in saved["spaces"]])
    if saved["kind"] == "MultiDiscrete":
        return spaces.MultiDiscrete(np.array(saved["nvec"]), start=np.array(saved["start"]))
    return getattr(spaces, saved["kind"])(**values)
