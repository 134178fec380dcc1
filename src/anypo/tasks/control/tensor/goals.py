"""Two small environments with goals: a point mass that is sent to one of several places, and a grid of two rooms."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from anypo.tasks.control.tensor.classic import advance_clock, start_state, uniform_state
from anypo.tasks.control.tensor.environment import Actions, Flags, Observations, Rewards, State

GOALS = torch.tensor([[0.8, 0.8], [-0.8, 0.8], [-0.8, -0.8], [0.8, -0.8]])


class PointMass:
    """A point in [-1, 1]^2 accelerated by a in [-1, 1]^2 towards one of four goals, drawn for every episode and observed:

    v' = 0.9 v + 0.1 a,  x' = clip(x + 0.1 v', -1, 1),  reward = -0.1 |x' - goal|, and 1 more within 0.1 of it, where it ends
    """

    limit: ClassVar[int] = 100

    @property
    def observation_space(self) -> Any:
        from gymnasium.spaces import Box

        return Box(-1, 1, (6,), np.float32)

    @property
    def action_space(self) -> Any:
        from gymnasium.spaces import Box

        return Box(-1, 1, (2,), np.float32)

    def reset(self, generator: torch.Generator, n: int) -> State:
        place = uniform_state(generator, 2, n, -0.5, 0.5)
        goal = GOALS[torch.randint(len(GOALS), (n,), generator=generator)].T
        return start_state(torch.cat([place, torch.zeros_like(place), goal]))

    def step(self, state: State, action: Actions) -> tuple[State, Rewards, Flags, Flags]:
        x, v, goal = state[0:2], state[2:4], state[4:6]
        v = 0.9 * v + 0.1 * action.T.to(state.dtype).clamp(-1, 1)
        x = (x + 0.1 * v).clamp(-1, 1)
        distance = (x - goal).norm(dim=0)
        there = distance < 0.1
        after, truncated = advance_clock([*x, *v, *goal], state[6], self.limit)
        return after, there.to(state.dtype) - 0.1 * distance, there, truncated

    def observe(self, state: State) -> Observations:
        return state[:6].T


class GridWorld:
    """Nine by nine cells in two rooms: a wall at x = 4 with a door at y = 4. Moves right, left, up, down; into a wall none.

    Start and goal are drawn from the free cells of every episode. Reward -0.02 a step and 1 more at the goal, where it ends.
    Observed are the places of both, in [-1, 1].
    """

    limit: ClassVar[int] = 60
    size: ClassVar[int] = 9

    @property
    def observation_space(self) -> Any:
        from gymnasium.spaces import Box

        return Box(-1, 1, (4,), np.float32)

    @property
    def action_space(self) -> Any:
        from gymnasium.spaces import Discrete

        return Discrete(4)

    def free(self, x: Tensor, y: Tensor) -> Tensor:
        """Whether a cell can be entered."""
        return (x >= 0) & (x < self.size) & (y >= 0) & (y < self.size) & ((x != 4) | (y == 4))

    def reset(self, generator: torch.Generator, n: int) -> State:
        x, y = torch.meshgrid(torch.arange(self.size), torch.arange(self.size), indexing="ij")
        cells = torch.stack([x, y])[:, self.free(x, y)].float()
        start = torch.randint(cells.shape[1], (n,), generator=generator)
        away = torch.randint(1, cells.shape[1], (n,), generator=generator)  # never the start itself
        return start_state(torch.cat([cells[:, start], cells[:, (start + away) % cells.shape[1]]]))

    def step(self, state: State, action: Actions) -> tuple[State, Rewards, Flags, Flags]:
        x, y, goal_x, goal_y, clock = state.unbind(0)
        move = 1 - 2 * (action % 2).to(state.dtype)
        across = action < 2
        new_x, new_y = torch.where(across, x + move, x), torch.where(across, y, y + move)
        free = self.free(new_x, new_y)
        x, y = torch.where(free, new_x, x), torch.where(free, new_y, y)
        there = (x == goal_x) & (y == goal_y)
        after, truncated = advance_clock([x, y, goal_x, goal_y], clock, self.limit)
        return after, there.to(state.dtype) - 0.02, there, truncated

    def observe(self, state: State) -> Observations:
        return state[:4].T / 4 - 1
