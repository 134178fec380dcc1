"""PPO on pixels: an environment that draws itself, two wrappers by name, and a policy that reads images by convolutions.

Shown: a Gymnasium class with image observations; wrappers by name, of which `FrameStackObservation` shows where the ball goes, as
no single image does; and `predict` with images.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import FrameStackObservation, GrayscaleObservation

import anypo

SIDE = 40
"""Pixels of an image's side."""


class Catch(gymnasium.Env):
    """A ball falls slantwise over eight rows of a drawn field; the player moves at the bottom. +1 if it is caught, else -1."""

    observation_space = spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)
    action_space = spaces.Discrete(3)  # left, stay, right

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.ball, self.drift = self.np_random.integers(8), self.np_random.integers(-1, 2)
        self.row, self.player = 0, 4
        return self.draw(), {}

    def draw(self):
        image = np.zeros((8, 8, 3), np.uint8)
        image[self.row, self.ball] = 255, 200, 0
        image[7, self.player] = 0, 100, 255
        return image.repeat(SIDE // 8, 0).repeat(SIDE // 8, 1)

    def step(self, action):
        self.row += 1
        self.player = np.clip(self.player + action - 1, 0, 7)
        if not 0 <= self.ball + self.drift < 8:
            self.drift = -self.drift
        self.ball += self.drift
        over = self.row == 7
        reward = (1.0 if self.ball == self.player else -1.0) if over else 0.0
        return self.draw(), reward, over, False, {}


def main(folder: Path) -> None:
    """Train, and play with the policy."""
    wrappers = ["GrayscaleObservation", {"FrameStackObservation": {"stack_size": 2}}]
    step = {"lr": 1e-3, "epochs": 4, "minibatch": 128}
    run = anypo.train("ppo", task={"env": Catch, "wrappers": wrappers}, steps=40_960, step=step, out=folder / "run")
    print(f"return: {run.result['before']:.2f} before, {run.result['after']:.2f} after")
    assert run.result["after"] >= 0.7

    env = FrameStackObservation(GrayscaleObservation(Catch()), 2)
    caught = 0
    for seed in range(50):
        (images, _), reward, over = env.reset(seed=seed), 0.0, False
        while not over:
            images, reward, over, _, _ = env.step(run.predict(images))
        caught += reward > 0
    print(f"caught {caught} of 50, from images of shape {images.shape}")
    assert caught >= 40


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
