"""An environment of your own: trained with PPO, asked for actions, saved and loaded again.

Shown: a Gymnasium class as a task, `predict` for one observation and for several, `evaluate`, and `anypo.load` in two ways: with the
environment, and without it, which is enough to act.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium import spaces

import anypo


class Catch(gymnasium.Env):
    """A ball falls down a grid of 5 x 5; the player moves below it. +1 if it is caught, else -1."""

    observation_space = spaces.Box(-4.0, 4.0, (2,), np.float32)  # how far right of the player the ball is, and how high
    action_space = spaces.Discrete(3)  # left, stay, right

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.ball, self.row, self.player = int(self.np_random.integers(5)), 0, 2
        return self.look(), {}

    def look(self):
        return np.array([self.ball - self.player, 4 - self.row], np.float32)

    def step(self, action):
        self.row, self.player = self.row + 1, int(np.clip(self.player + action - 1, 0, 4))
        over = self.row == 4
        reward = (1.0 if self.ball == self.player else -1.0) if over else 0.0
        return self.look(), reward, over, False, {}


def play(run: anypo.TrainedRun, seed: int) -> float:
    """Return the reward of one episode."""
    env = Catch()
    (observation, _), reward, over = env.reset(seed=seed), 0.0, False
    while not over:
        observation, reward, over, _, _ = env.step(run.predict(observation))
    return reward


def main(folder: Path) -> None:
    """Train, predict, load, and compare what is loaded with what was trained."""
    run = anypo.train("ppo", task=Catch, steps=20_480, out=folder / "run")
    print(f"return: {run.result['before']:.2f} before, {run.result['after']:.2f} after")
    caught = sum(play(run, seed) > 0 for seed in range(20))
    print(f"caught {caught} of 20")
    assert caught >= 18

    observations = np.array([[-2, 2], [2, 2], [0, 1]], np.float32)
    actions = run.predict(observations)
    print("the ball is left, right, above:", actions)
    assert actions.tolist() == [0, 2, 1]

    loaded = anypo.load(folder / "run", task=Catch)
    assert loaded.evaluate() == run.evaluate()
    only_acts = anypo.load(folder / "run")
    assert only_acts.predict(observations).tolist() == actions.tolist()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
