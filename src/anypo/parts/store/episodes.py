"""Returns and first states of recorded episodes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

Table = dict[str, Tensor]
"""Columns of transitions: obs, next [n, D]; action [n] or [n, A]; reward, terminal [n]; `episode` [n] and `expert` [n] of data;
action_mask, next_action_mask [n, choice] where choices are constrained."""


Expand = Callable[[Tensor], Tensor]
"""Makes numbers of stored observations."""


def trajectory_values(data: Table, by: str, expand: Expand = torch.Tensor.float) -> Float[Tensor, " episode"]:
    """Undiscounted returns of the episodes, or (`advantage`) these minus their linear regression on the first state.

    Args:
        data: whole episodes.
        by: `return` or `advantage`.
        expand: makes numbers of the stored observations.
    """
    returns, first = episode_returns(data), expand(first_states(data))
    if by == "return":
        return returns
    design = torch.cat([first.double(), torch.ones(len(first), 1, dtype=torch.float64)], 1)
    fit = torch.linalg.lstsq(design, returns.unsqueeze(1), driver="gelsd").solution
    return returns - (design @ fit).squeeze(1)


def episode_returns(data: Table) -> Float[Tensor, " episode"]:
    """Sum of the rewards of every episode."""
    episode = data["episode"]
    total = torch.zeros(int(episode.max()) + 1, dtype=torch.float64)
    return total.index_add_(0, episode, data["reward"].double())


def first_states(data: Table) -> Shaped[Tensor, "episode dim"]:
    """Return the observation every episode begins with."""
    episode = data["episode"]
    new = torch.cat([torch.ones(1, dtype=torch.bool), episode[1:] != episode[:-1]])
    return data["obs"][new]


def scaled(x: Float[Tensor, " any"]) -> Float[Tensor, " any"]:
    """(x - min) / (max - min); 0 where all are equal."""
    return (x - x.min()) / (x.max() - x.min()) if bool(x.max() > x.min()) else torch.zeros_like(x)
