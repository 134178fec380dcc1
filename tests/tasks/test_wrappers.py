"""Gymnasium wrappers by name, and the files that an environment comes from."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import yaml
from gymnasium import spaces

import anypo
from anypo.errors import UsageError
from anypo.flags import parse_flags
from anypo.tasks import make_task
from anypo.tasks.control.gym import Gym

OWN = """
import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Shifted(gym.ObservationWrapper):
    def __init__(self, env, by=1.0):
        super().__init__(env)
        self.by = by

    def observation(self, observation):
        return (observation + self.by).astype(np.float32)


def twice(env):
    return gym.wrappers.TransformReward(env, lambda reward: 2 * reward)


def nothing(env):
    return None


class Line(gym.Env):
    observation_space, action_space = spaces.Box(-9.0, 9.0, (2,), np.float32), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.full(2, self.t, np.float32), 1.0, self.t == 4, False, {}


gym.register("Line-v0", entry_point="lines:Line")
"""


class Painted(gymnasium.Env):
    """Colours that do not move."""

    observation_space, action_space = spaces.Box(0, 255, (40, 40, 3), np.uint8), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.full((40, 40, 3), 100, np.uint8), {}

    def step(self, action):
        self.t += 1
        return np.full((40, 40, 3), 100 + self.t, np.uint8), 1.0, self.t == 4, False, {}


gymnasium.register("Painted-v0", entry_point=Painted)
STACK = ["GrayscaleObservation", {"FrameStackObservation": {"stack_size": 4}}]


@pytest.fixture
def lines(tmp_path, monkeypatch):
    """A working directory with the module `lines`, which is forgotten afterwards."""
    (tmp_path / "lines.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "lines", raising=False)
    return tmp_path


def space_of(wrappers, env="Painted-v0"):
    return Gym(env, envs=1, wrappers=wrappers).observation_space


def test_wrappers_are_put_round_every_copy_the_first_one_innermost():
    assert space_of(STACK).shape == (4, 40, 40)
    assert space_of("FlattenObservation").shape == (4800,)
    task = Gym("Painted-v0", envs=2, wrappers=[*STACK, "FlattenObservation"], eval_episodes=1)
    assert [copy.env.observation_space.shape for copy in task.copies] == [(6400,)] * 2
    assert Gym("Painted-v0", envs=1, wrappers={"TimeLimit": {"max_episode_steps": 3}}).limit == 3


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("FlattenObservation", "FlattenObservation"),
        ("[GrayscaleObservation, {FrameStackObservation: {stack_size: 4}}]", STACK),
        ("{FrameStackObservation: {stack_size: 2}}", {"FrameStackObservation": {"stack_size": 2}}),
        ("[w.py:Own, lines:Shifted]", ["w.py:Own", "lines:Shifted"]),
    ],
)
def test_wrappers_are_written_as_names_or_with_their_keywords(text, value):
    assert parse_flags(["--task.wrappers", text])[1] == {"task": {"wrappers": value}}


@pytest.mark.parametrize(
    ("wrappers", "sentence"),
    [
        ("FrameStack", "unknown wrapper 'FrameStack'; did you mean 'FrameStackObservation'"),
        ("GreyscaleObservation", "did you mean 'GrayscaleObservation'"),
        ("VecFrameStack", "unknown wrapper 'VecFrameStack'; known: AddRenderObservation"),
        ("FrameStackObservation", "the wrapper FrameStackObservation cannot be made: TypeError: .* 'stack_size'"),
        ([{"FrameStackObservation": {"stack_size": -1}}], "cannot be made with {'stack_size': -1}: ValueError"),
        (
            [{"FrameStackObservation": 4}],
            r"has the arguments 4; they are written {FrameStackObservation: {KEYWORD: value}}",
        ),
        (
            "NormalizeObservation",
            "keeps statistics that no checkpoint holds; the policy normalizes observations itself",
        ),
        ("nothing.py:Own", "there is no file nothing.py to take the wrapper 'Own' from"),
        ("no_such_module:Own", "gym:Painted-v0: there is no module 'no_such_module'"),
        ("lines:Shiftet", "unknown name in the module lines: 'Shiftet'; did you mean 'Shifted'"),
        ("lines.py:nothing", "the wrapper lines.py:nothing made a NoneType, which is no environment"),
        (3, "task.wrappers is 3; it takes text, a dictionary, a list of text, a dictionary"),
        ([3], "task.wrappers is .*; it takes text, a dictionary, a list of text, a dictionary"),
    ],
)
def test_a_wrapper_that_cannot_be_used_is_one_sentence(wrappers, sentence, lines):
    with pytest.raises(UsageError, match=sentence) as caught:
        make_task({"name": "gym:Painted-v0", "envs": 1, "wrappers": wrappers}, seed=0)
    assert "\n" not in str(caught.value)


def test_wrappers_of_files_and_modules_are_taken_from_there(lines):
    task = Gym("lines:Line-v0", envs=1, wrappers=[{"lines.py:Shifted": {"by": 5.0}}, "lines:Shifted", "lines.py:twice"])
    copy = task.copies[0]
    copy.reset(0)
    assert copy.observation.tolist() == [6, 6]
    assert copy.step(0) == 2


def test_environments_from_python_are_wrapped_too(tmp_path):
    run = anypo.train(
        "a2c", task={"env": Painted, "envs": 1, "wrappers": STACK}, steps=4, episodes=1, out=tmp_path / "r"
    )
    assert run.predict(np.zeros((4, 40, 40), np.uint8)) in (0, 1)
    assert yaml.safe_load((tmp_path / "r" / "config.yaml").read_text())["task"]["wrappers"] == STACK


def test_atari_is_an_environment_with_two_wrappers():
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    wrappers = ["AtariPreprocessing", {"FrameStackObservation": {"stack_size": 4}}]
    task = Gym("ale_py:ALE/Pong-v5", envs=1, env_kwargs={"frameskip": 1}, wrappers=wrappers)
    assert task.observation_space == spaces.Box(0, 255, (4, 84, 84), np.uint8)


# ------------------------------------------------------------------------------------------- what a run was made of


def train(lines, **task):
    return anypo.train("a2c", task={"envs": 1, "eval_episodes": 1, **task}, steps=8, out=lines / "r")


def change(file):
    file.write_text(file.read_text() + "\n# another line\n")


def test_the_module_of_an_environment_is_recorded_and_a_changed_one_is_refused(lines):
    train(lines, name="gym:lines:Line-v0")
    assert list(json.loads((lines / "r" / "inputs.json").read_text())["code"]) == [str(lines / "lines.py")]
    assert anypo.resume(lines / "r", steps=16).result["done"] >= 16
    change(lines / "lines.py")
    with pytest.raises(UsageError, match=f"{lines / 'lines.py'} changed since the run in .* started; .* --allow-code"):
        anypo.resume(lines / "r", steps=24)


def test_the_files_of_wrappers_are_recorded_with_their_whole_path(lines):
    (lines / "own.py").write_text(OWN.replace("lines:", "own:").replace("Line-v0", "Other-v0"))
    train(lines, name="gym:CartPole-v1", wrappers=["lines:Shifted", {"own.py:Shifted": {"by": 2.0}}])
    assert sorted(json.loads((lines / "r" / "inputs.json").read_text())["code"]) == [
        str(lines / "lines.py"),
        str(lines / "own.py"),
    ]
    written = yaml.safe_load((lines / "r" / "config.yaml").read_text())["task"]["wrappers"]
    assert written == ["lines:Shifted", {f"{lines / 'own.py'}:Shifted": {"by": 2.0}}]
    change(lines / "own.py")
    with pytest.raises(UsageError, match=r"own\.py changed since"):
        anypo.resume(lines / "r", steps=16)


@pytest.mark.parametrize("module", ["lines", "shop.lines"])
def test_a_run_is_opened_from_another_directory_than_that_of_its_module(module, lines, monkeypatch):
    (lines / "shop").mkdir()
    (lines / "shop" / "lines.py").write_text(OWN.replace("lines:", "shop.lines:"))
    file = lines / f"{module.replace('.', '/')}.py"
    train(lines, name=f"gym:{module}:Line-v0")
    (lines / "elsewhere").mkdir()
    monkeypatch.chdir(lines / "elsewhere")
    sys.path.remove(str(lines))
    for name in ("lines", "shop", "shop.lines"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert anypo.load(lines / "r").evaluate()["length"] == 4
    sys.path.remove(str(lines))
    change(file)
    with pytest.raises(UsageError, match=f"{file} changed since"):
        anypo.load(lines / "r")
    file.unlink()
    with pytest.raises(UsageError, match=f"{file} changed since"):
        anypo.load(lines / "r")


def test_a_module_inside_a_package_is_found_without_importing_it(lines):
    from anypo.plugins import module_file

    package = lines / "market"
    package.mkdir()
    (package / "__init__.py").write_text("1 / 0\n")
    (package / "envs.py").write_text("")
    assert module_file("market") == package / "__init__.py"
    assert module_file("market.envs") == package / "envs.py"
    assert module_file("market.nothing") is None
    assert module_file("gymnasium.wrappers") is None
    assert "market" not in sys.modules
    assert isinstance(module_file("lines"), Path)
