"""Gymnasium's action spaces, and masks of choices."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from anypo.errors import UsageError
from anypo.types import MASK


def choices(action_space: Any) -> list[int]:
    """Choices of every component of a discrete action, two of a bit; empty where actions are numbers."""
    from gymnasium.spaces import Discrete, MultiBinary, MultiDiscrete

    if isinstance(action_space, Discrete):
        return [int(action_space.n)]
    if isinstance(action_space, MultiBinary):
        return [2] * math.prod(action_space.shape)
    return [int(n) for n in action_space.nvec.ravel()] if isinstance(action_space, MultiDiscrete) else []


def first_choice(action_space: Any) -> np.ndarray:
    """Return the first choice of every component of a discrete action, in the space's shape and type."""
    start = getattr(action_space, "start", None)  # a MultiBinary has none
    return np.zeros(action_space.shape, action_space.dtype) if start is None else np.asarray(start)


def without_mask(observation_space: Any, action_space: Any) -> Any:
    """Return the observation space without its `action_mask`, which is no feature where actions are choices."""
    from gymnasium.spaces import Dict

    if not (choices(action_space) and isinstance(observation_space, Dict) and MASK in observation_space.spaces):
        return observation_space
    return Dict({name: space for name, space in observation_space.items() if name != MASK})


def to_space(space: Any, action: Shaped[Tensor, "batch *action"]) -> Shaped[np.ndarray, "batch *shape"]:
    """Convert actions to a space's: choices count from its first, [-1, 1] is mapped onto the bounds of a Box and clipped to them."""
    from gymnasium.spaces import Box, MultiBinary

    taken = action.numpy().reshape(-1, *space.shape)
    if not isinstance(space, Box):
        return taken.astype(space.dtype) if isinstance(space, MultiBinary) else taken + space.start
    low, high = action_bounds(space)
    return np.clip(low + (taken + 1) / 2 * (high - low), space.low, space.high).astype(space.dtype)


def from_space(space: Any, action: Shaped[np.ndarray, "batch *shape"]) -> Shaped[Tensor, "batch *action"]:
    """Convert a dataset's actions to those that policies store: the inverse of `to_space`."""
    from gymnasium.spaces import Box

    if not isinstance(space, Box):
        taken = torch.as_tensor(np.asarray(action) - first_choice(space), dtype=torch.long)
        return taken if space.shape == () else taken.reshape(len(taken), -1)
    low, high = action_bounds(space)
    width = np.where(high > low, high - low, 1)
    flat = np.where(high > low, 2 * (np.asarray(action, np.float64).reshape(-1, *space.shape) - low) / width - 1, 0)
    return torch.as_tensor(flat.reshape(len(flat), -1), dtype=torch.float32)


def action_bounds(space: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return what -1 and 1 are mapped to: the bounds of a Box; [low, low + 2] or [high - 2, high] where one is missing, else themselves.

    A bound beyond a quarter of the largest number of its type counts as missing: the width between two such overflows.
    """
    usable = np.finfo(space.dtype).max / 4
    has_low, has_high = np.abs(space.low) <= usable, np.abs(space.high) <= usable
    with np.errstate(over="ignore", invalid="ignore"):
        low = np.where(has_low, space.low, np.where(has_high, space.high - 2, -1))
        high = np.where(has_high, space.high, np.where(has_low, space.low + 2, 1))
    return low, high


def describe_bounds(space: Any) -> str | None:
    """Say which range [-1, 1] is mapped onto where a Box lacks bounds; None where it has them all."""
    from gymnasium.spaces import Box

    if not isinstance(space, Box) or not np.issubdtype(space.dtype, np.floating):
        return None
    low, high = (np.ravel(x) for x in action_bounds(space))
    missing = np.flatnonzero((low != np.ravel(space.low)) | (high != np.ravel(space.high)))
    if not missing.size:
        return None
    parts = ", ".join(f"[{low[i]:g}, {high[i]:g}]" for i in missing[:3]) + (", ..." if len(missing) > 3 else "")
    which = ", ".join(map(str, missing[:3])) + (", ..." if len(missing) > 3 else "")
    return (
        f"actions: {space} has no bounds on both sides in component {which}; [-1, 1] is mapped onto {parts}, and only a Gaussian policy"
        " (mlp, gaussian) reaches beyond"
    )


def require_floats(action_space: Any) -> None:
    """Raise UsageError for an action space that is no Box of floats."""
    from gymnasium.spaces import Box

    if not isinstance(action_space, Box) or not np.issubdtype(action_space.dtype, np.floating):
        raise UsageError(
            f"the action space {action_space} is not supported; use Discrete, MultiDiscrete, MultiBinary or a Box of floats"
        )


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
