"""Films of held-out episodes."""

from __future__ import annotations

from itertools import pairwise

import gymnasium
import imageio
import numpy as np
import pytest
from gymnasium import spaces
from typer.testing import CliRunner

import anypo
from anypo.cli.app import app
from anypo.errors import UsageError


class Drawn(gymnasium.Env):
    """A place from 0 to 4, drawn as a white column; ends after six steps."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    observation_space = spaces.Box(0.0, 4.0, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.time = int(self.np_random.integers(5)), 0
        return np.array([self.place], np.float32), {}

    def step(self, action):
        self.place, self.time = int(np.clip(self.place + 2 * action - 1, 0, 4)), self.time + 1
        return np.array([self.place], np.float32), float(self.place == 4), False, self.time == 6, {}

    def render(self):
        picture = np.zeros((16, 80, 3), np.uint8)
        picture[:, 16 * self.place : 16 * (self.place + 1)] = 255
        return picture


gymnasium.register("Drawn-v0", Drawn)
SHORT = {"steps": 1, "episodes": 1, "step": {"epochs": 1}}


def test_a_film_shows_every_state_of_the_first_held_out_episode(tmp_path):
    run = anypo.train("ppo", task={"name": "gym:Drawn-v0", "envs": 1}, **SHORT, out=tmp_path / "r")
    assert run.evaluate(video=tmp_path / "film.gif") == run.evaluate()
    frames = imageio.mimread(tmp_path / "film.gif")
    assert len(frames) <= 7  # equal pictures in a row become one
    places = [int(np.asarray(frame)[8, :, 0].argmax()) // 16 for frame in frames]
    assert all(abs(a - b) == 1 for a, b in pairwise(places))
    shown = CliRunner().invoke(app, ["evaluate", str(tmp_path / "r"), "--video", str(tmp_path / "again.gif")])
    assert shown.exit_code == 0
    assert (tmp_path / "again.gif").read_bytes() == (tmp_path / "film.gif").read_bytes()


def test_what_cannot_be_filmed_is_one_sentence(tmp_path):
    run = anypo.train("ppo", task={"env": Drawn, "envs": 1}, **SHORT, out=tmp_path / "r")
    with pytest.raises(UsageError, match="Drawn cannot be filmed: its render_mode is None, not 'rgb_array'"):
        run.evaluate(video=tmp_path / "film.gif")
    bandit = anypo.train("ppo", task="bandit", steps=1, out=tmp_path / "b")
    with pytest.raises(UsageError, match="bandit cannot be filmed; a video needs an environment of Gymnasium"):
        bandit.evaluate(video=tmp_path / "film.gif")
    drawn = anypo.train("ppo", task={"name": "gym:Drawn-v0", "envs": 1}, **SHORT, out=tmp_path / "d")
    with pytest.raises(UsageError, match=r"imageio cannot write .*film.unknown"):
        drawn.evaluate(video=tmp_path / "film.unknown")
