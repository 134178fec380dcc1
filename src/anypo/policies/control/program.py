"""A control policy as one function of tensors, raw observation -> action of the environment, that is saved without its classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Shaped
from torch import Tensor, nn

from anypo import kernels
from anypo.errors import UsageError
from anypo.policies.control.actor_critic import ActorCritic
from anypo.policies.control.distributions import Categoricals
from anypo.policies.control.observations import Flat
from anypo.policies.control.spaces import action_bounds, first_choice
from anypo.types import MASK


class GreedyProgram(nn.Module):
    """The greedy action of a batch of raw observations, inside the action space: encoding, normalization, network, mode, bounds.

    An observation is a tensor [batch, ...], or a dictionary or tuple of them as its space says, names in the space's order; an
    `action_mask` in a dictionary is obeyed. Actions are [batch, ...] with the space's type.
    """

    first: Tensor
    low: Tensor
    high: Tensor
    least: Tensor
    most: Tensor

    def __init__(self, policy: ActorCritic, action_space: Any):
        from gymnasium.spaces import Box

        super().__init__()
        self.policy, self.shape = policy, action_space.shape
        self.space = policy.encode.space if isinstance(policy.encode, Flat) else None
        ends = {}
        if isinstance(action_space, Box):
            low, high = action_bounds(action_space)
            ends = {"low": low, "high": high, "least": action_space.low, "most": action_space.high}
        else:
            ends = {"first": first_choice(action_space)}
        for name, values in ends.items():
            self.register_buffer(name, torch.from_numpy(np.array(values)))
        self.bounded = "low" in ends

    def forward(self, obs: Any) -> Shaped[Tensor, "batch *shape"]:
        encoded = obs if self.space is None else flatten_tensors(self.space, obs)
        distribution = self.policy.distribution(self.policy.features(encoded), None)
        mask = obs[MASK].bool() if isinstance(obs, dict) and MASK in obs else None
        taken = (distribution.mode() if mask is None else masked_mode(distribution, mask)).reshape(-1, *self.shape)
        if not self.bounded:
            return (taken + self.first).to(self.first.dtype)
        mapped = self.low + (taken + 1) / 2 * (self.high - self.low)
        return torch.minimum(torch.maximum(mapped, self.least), self.most).to(self.least.dtype)


def masked_mode(distribution: Any, mask: Bool[Tensor, "batch choice"]) -> Tensor:
    """Return the best allowed choice of every component, or of a policy that acts by values."""
    scores = distribution.logps if isinstance(distribution, Categoricals) else [distribution.values]
    allowed = mask.split([x.shape[-1] for x in scores], -1)
    return torch.stack([torch.where(m, x, -torch.inf).argmax(-1) for x, m in zip(scores, allowed, strict=True)], -1)


def flatten_tensors(space: Any, obs: Any) -> Float32[Tensor, "batch dim"]:
    """Flatten a batch of observations as `Flat` does single ones.

    Args:
        space: of an observation, as `Flat` keeps it.
        obs: tensors [batch, ...] in the space's structure.
    """
    from gymnasium.spaces import Dict, Discrete, MultiDiscrete, Tuple

    if isinstance(space, Dict):
        return torch.cat([flatten_tensors(part, obs[name]) for name, part in space.items()], 1)
    if isinstance(space, Tuple):
        return torch.cat([flatten_tensors(part, x) for part, x in zip(space, obs, strict=True)], 1)
    if isinstance(space, Discrete):
        return one_hot(obs, range(space.start, space.start + space.n))
    if isinstance(space, MultiDiscrete):
        columns = zip(obs.flatten(1).unbind(1), space.start.ravel(), space.nvec.ravel(), strict=True)
        return torch.cat([one_hot(x, range(start, start + n)) for x, start, n in columns], 1)
    return obs.to(torch.float32).flatten(1)


def one_hot(choice: Shaped[Tensor, " batch"], choices: range) -> Float32[Tensor, "batch choice"]:
    """Return 1 in the column of each choice, else 0."""
    return (choice.unsqueeze(1) == torch.arange(choices.start, choices.stop)).to(torch.float32)


def map_space(space: Any, make: Callable[[Any], Any]) -> Any:
    """Return what `make` makes of each leaf of a space, in the structure of its observations."""
    from gymnasium.spaces import Dict, Tuple

    if isinstance(space, Dict):
        return {name: map_space(part, make) for name, part in space.items()}
    if isinstance(space, Tuple):
        return tuple(map_space(part, make) for part in space)
    return make(space)


def save_torch(program: GreedyProgram, example: Any, batch: Any, path: Path) -> None:
    """Write a program that `torch.export.load(path).module()` gives back.

    Args:
        program: of a policy.
        example: observations that it is traced with.
        batch: the dynamic first dimension, in the observations' structure.
        path: of the file.
    """
    traced = torch.export.export(program, (example,), dynamic_shapes=(batch,), strict=False)
    torch.export.save(traced, path)


def save_onnx(program: GreedyProgram, example: Any, batch: Any, path: Path) -> None:
    """Write a program for ONNX.

    Args:
        program, example, batch, path: as in `save_torch`.

    Raises:
        UsageError: the packages are not installed.
    """
    try:
        import onnxscript  # noqa: F401 - what torch.onnx translates with
    except ImportError as error:
        raise UsageError('--to onnx needs onnx and onnxscript; run `pip install "anypo[onnx]"`') from error
    torch.onnx.export(
        program, (example,), path, dynamic_shapes=(batch,), output_names=["action"], external_data=False, verbose=False
    )


FORMATS: dict[str, tuple[str, Callable[[GreedyProgram, Any, Any, Path], None]]] = {
    "torch": ("pt2", save_torch),
    "onnx": ("onnx", save_onnx),
}
"""Ending of a file, and what writes it."""


@torch.no_grad()
def save_program(policy: Any, observation_space: Any, action_space: Any, to: str, path: Path) -> None:
    """Write the greedy action of a policy as a program.

    Args:
        policy: what acts.
        observation_space, action_space: of its task.
        to: a key of FORMATS.
        path: of the file.

    Raises:
        UsageError: the policy's greedy action is no function of tensors, or packages are missing.
    """
    from anypo.policies.tabular import SoftmaxTable

    kind = type(policy).__name__
    if not isinstance(policy, ActorCritic) or not (isinstance(policy.encode, Flat) or isinstance(policy, SoftmaxTable)):
        raise UsageError(f"the policy {kind} encodes observations in its own way, which cannot be exported")
    if policy.implicit:
        raise UsageError(
            f"the greedy action of {kind} begins with noise, so there is no function of the observation to export"
        )
    example = map_space(observation_space, lambda part: torch.from_numpy(np.zeros((2, *part.shape), part.dtype)))
    batch = map_space(observation_space, lambda part: {0: torch.export.Dim("batch")})
    with kernels.using("plain"):
        FORMATS[to][1](GreedyProgram(policy, action_space).eval(), example, batch, path)
