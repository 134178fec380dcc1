"""Gymnasium's classic control problems as functions of tensors: the same equations, constants and limits, many at once."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from anypo.tasks.control.tensor.environment import Actions, Flags, Observations, Rewards, State


def uniform_state(generator: torch.Generator, quantities: int, n: int, low: float, high: float) -> Tensor:
    """Draw x[quantity, env] = low + (high - low) u, u from U(0, 1)."""
    return low + (high - low) * torch.rand(quantities, n, generator=generator)


def start_state(quantities: Tensor) -> State:
    """Return the states of episodes that begin: the clock is 0."""
    return torch.cat([quantities, quantities.new_zeros(1, quantities.shape[1])])


def advance_clock(quantities: list[Tensor], clock: Tensor, limit: int) -> tuple[State, Flags]:
    """Return the states with clock = clock + 1, and which of them the time limit truncates."""
    clock = clock + 1
    return torch.stack([*quantities, clock]), clock >= limit


class CartPole:
    """x, dx, theta, dtheta of a pole on a cart that is pushed left (0) or right (1); 1 a step until it falls or leaves.

    Source: Barto, Sutton and Anderson 1983; constants and explicit Euler steps of 0.02 s as in CartPole-v1.
    """

    limit: ClassVar[int] = 500

    @property
    def observation_space(self) -> Any:
        from gymnasium.spaces import Box

        high = np.array([4.8, np.inf, 0.4188790204786391, np.inf], np.float32)
        return Box(-high, high, dtype=np.float32)

    @property
    def action_space(self) -> Any:
        from gymnasium.spaces import Discrete

        return Discrete(2)

    def reset(self, generator: torch.Generator, n: int) -> State:
        return start_state(uniform_state(generator, 4, n, -0.05, 0.05))

    def step(self, state: State, action: Actions) -> tuple[State, Rewards, Flags, Flags]:
        x, dx, theta, dtheta, clock = state.unbind(0)
        force = action.to(state.dtype).mul(20).sub(10)
        cos, sin = theta.cos(), theta.sin()
        # total mass 1.1, the pole's 0.1, half its length 0.5
        pushed = force.addcmul(dtheta * dtheta, sin, value=0.05) / 1.1
        turning = (9.8 * sin).addcmul(cos, pushed, value=-1) / (2 / 3 - (0.05 / 1.1) * (cos * cos))
        moving = pushed.addcmul(turning, cos, value=-0.05 / 1.1)
        x, theta = x.add(dx, alpha=0.02), theta.add(dtheta, alpha=0.02)
        speeds = dx.add(moving, alpha=0.02), dtheta.add(turning, alpha=0.02)
        after, truncated = advance_clock([x, speeds[0], theta, speeds[1]], clock, self.limit)
        fallen = (x.abs() > 2.4) | (theta.abs() > 12 * 2 * math.pi / 360)
        return after, torch.ones_like(x), fallen, truncated

    def observe(self, state: State) -> Observations:
        return state[:4].T


class Pendulum:
    """theta and dtheta of a pendulum under a torque in [-2, 2]; reward -(theta^2 + 0.1 dtheta^2 + 0.001 torque^2), theta in
    [-pi, pi) from upright. It never ends by itself. Steps of 0.05 s, as in Pendulum-v1.
    """

    limit: ClassVar[int] = 200

    @property
    def observation_space(self) -> Any:
        from gymnasium.spaces import Box

        high = np.array([1, 1, 8], np.float32)
        return Box(-high, high, dtype=np.float32)

    @property
    def action_space(self) -> Any:
        from gymnasium.spaces import Box

        return Box(-2, 2, (1,), np.float32)

    def reset(self, generator: torch.Generator, n: int) -> State:
        spread = torch.tensor([[math.pi], [1.0]])
        return start_state(spread * uniform_state(generator, 2, n, -1.0, 1.0))

    def step(self, state: State, action: Actions) -> tuple[State, Rewards, Flags, Flags]:
        theta, dtheta, clock = state.unbind(0)
        torque = action[:, 0].to(state.dtype).clamp(-2, 2)
        error = (theta + math.pi) % (2 * math.pi) - math.pi
        reward = -(error**2 + 0.1 * dtheta**2 + 0.001 * torque**2)
        dtheta = (dtheta + (15 * theta.sin() + 3 * torque) * 0.05).clamp(-8, 8)
        after, truncated = advance_clock([theta + dtheta * 0.05, dtheta], clock, self.limit)
        return after, reward, torch.zeros_like(truncated), truncated

    def observe(self, state: State) -> Observations:
        return torch.stack([state[0].cos(), state[0].sin(), state[1]], 1)


class Acrobot:
    """Angles and angular velocities of two links, torque -1, 0 or 1 between them; -1 a step until the tip is a link's length
    above the bar. Source: Sutton 1996; the book's equations, one Runge-Kutta step of 0.2 s, as in Acrobot-v1.
    """

    limit: ClassVar[int] = 500

    @property
    def observation_space(self) -> Any:
        from gymnasium.spaces import Box

        high = np.array([1, 1, 1, 1, 4 * np.pi, 9 * np.pi], np.float32)
        return Box(-high, high, dtype=np.float32)

    @property
    def action_space(self) -> Any:
        from gymnasium.spaces import Discrete

        return Discrete(3)

    def reset(self, generator: torch.Generator, n: int) -> State:
        return start_state(uniform_state(generator, 4, n, -0.1, 0.1))

    @staticmethod
    def slope(s: Tensor, torque: Tensor) -> Tensor:
        """ds/dt of s = (theta1, theta2, dtheta1, dtheta2); masses, lengths and moments are 1, centres of mass at 1/2."""
        one, two, done, dtwo = s.unbind(0)
        cos, sin = two.cos(), two.sin()
        d1 = 3.5 + cos
        d2 = 1.25 + 0.5 * cos
        phi2 = 4.9 * (one + two - math.pi / 2).cos()
        phi1 = -0.5 * dtwo**2 * sin - dtwo * done * sin + 14.7 * (one - math.pi / 2).cos() + phi2
        second = (torque + d2 / d1 * phi1 - 0.5 * done**2 * sin - phi2) / (1.25 - d2**2 / d1)
        return torch.stack([done, dtwo, -(d2 * second + phi1) / d1, second])

    def step(self, state: State, action: Actions) -> tuple[State, Rewards, Flags, Flags]:
        s, torque, dt = state[:4], (action - 1).to(state.dtype), 0.2
        k1 = self.slope(s, torque)
        k2 = self.slope(s + dt / 2 * k1, torque)
        k3 = self.slope(s + dt / 2 * k2, torque)
        k4 = self.slope(s + dt * k3, torque)
        s = s + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        turns = ((s[:2].abs() - math.pi) / (2 * math.pi)).ceil().clamp(min=0)
        one, two = (s[:2] - 2 * math.pi * turns * s[:2].sign()).unbind(0)
        done, dtwo = s[2].clamp(-4 * math.pi, 4 * math.pi), s[3].clamp(-9 * math.pi, 9 * math.pi)
        after, truncated = advance_clock([one, two, done, dtwo], state[4], self.limit)
        high = -one.cos() - (two + one).cos() > 1
        return after, high.to(state.dtype) - 1, high, truncated

    def observe(self, state: State) -> Observations:
        one, two = state[0], state[1]
        return torch.stack([one.cos(), one.sin(), two.cos(), two.sin(), state[2], state[3]], 1)


class MountainCarContinuous:
    """Position and velocity of a car too weak for the hill; -0.1 action^2 a step, 100 at the flag. Source: Moore 1990; as in
    MountainCarContinuous-v0.
    """

    limit: ClassVar[int] = 999

    @property
    def observation_space(self) -> Any:
        from gymnasium.spaces import Box

        return Box(np.array([-1.2, -0.07], np.float32), np.array([0.6, 0.07], np.float32), dtype=np.float32)

    @property
    def action_space(self) -> Any:
        from gymnasium.spaces import Box

        return Box(-1, 1, (1,), np.float32)

    def reset(self, generator: torch.Generator, n: int) -> State:
        position = uniform_state(generator, 1, n, -0.6, -0.4)
        return start_state(torch.cat([position, torch.zeros_like(position)]))

    def step(self, state: State, action: Actions) -> tuple[State, Rewards, Flags, Flags]:
        position, velocity, clock = state.unbind(0)
        action = action[:, 0].to(state.dtype)
        velocity = velocity + (action.clamp(-1, 1) * 0.0015 - 0.0025 * (3 * position).cos())
        velocity = velocity.clamp(-0.07, 0.07)
        position = (position + velocity).clamp(-1.2, 0.6)
        velocity = torch.where((position == -1.2) & (velocity < 0), 0.0, velocity)
        there = (position >= 0.45) & (velocity >= 0)
        after, truncated = advance_clock([position, velocity], clock, self.limit)
        return after, 100 * there - 0.1 * action**2, there, truncated

    def observe(self, state: State) -> Observations:
        return state[:2].T
