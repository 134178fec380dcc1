"""Environments that break Gymnasium's protocol, fail, or cannot be found: one sentence that names them, and no traceback."""

import sys

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from anypo.cli.app import main
from anypo.errors import RunError, UsageError
from anypo.policies.control.mlp import MLPPolicy
from anypo.tasks.control.gym import Gym
from anypo.tasks.control.make_env import describe_error
from anypo.types import Request


class Base(gymnasium.Env):
    """Three random numbers, eight steps."""

    observation_space = spaces.Box(-1.0, 1.0, (3,), np.float32)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.obs(), {}

    def obs(self):
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)

    def reward(self):
        return 1.0

    def step(self, action):
        self.t += 1
        return self.obs(), self.reward(), False, self.t >= 8, {}


def variant(name, **changes):
    """Register an environment that differs from Base; `limited` wraps it in a time limit, which unpacks what it returns."""
    limit = changes.pop("limit", None)
    cls = type(name, (Base,), changes)
    gymnasium.register(f"{name}-v0", entry_point=cls, max_episode_steps=limit)
    return f"{name}-v0"


def old_step(self, action):
    o, r, te, tr, i = Base.step(self, action)
    return o, r, te or tr, i


def old_reset(self):
    return Base.reset(self)[0]


def late(first, then):
    """The value at step 5 of an episode, and the one before."""
    return lambda self: then if self.t == 5 else first


X = np.zeros(3, np.float32)
DICT = spaces.Dict({"a": spaces.Box(-1.0, 1.0, (2,), np.float32), "c": spaces.Discrete(4)})
GOOD = {"a": X[:2], "c": 3}
BROKEN = {
    "NoneReward": ({"reward": lambda self: None}, "step returned None as reward, which must be one number"),
    "TwoRewards": ({"reward": lambda self: np.ones(2)}, r"step returned array\(\[1., 1.\]\) as reward"),
    "HugeReward": ({"reward": lambda self: 10**400}, "as reward, which must be one number"),
    "LateNone": ({"reward": late(1.0, None)}, "step returned None as reward"),
    "OldStep": ({"step": old_step}, r"step returned 4 values; Gymnasium's has 5 \(observation, reward, terminated, trunc"),
    "OldStepLimited": ({"step": old_step, "limit": 5}, "step returned 4 values"),
    "OldReset": ({"reset": old_reset}, r"reset takes no seed; Gymnasium's is reset\(\*, seed=None, options=None\)"),
    "NoInfo": ({"reset": lambda self, seed=None, options=None: Base.reset(self)[0]}, "reset returned 1 value; Gymnas"),
    "NoneInfo": ({"reset": lambda self, **_: (Base.reset(self)[0], None)}, "reset returned None as info"),
    "ArrayFlag": ({"step": lambda self, a: (X, 1.0, np.zeros(1), False, {})}, r"array\(\[0.\]\) as terminated"),
    "FourNumbers": ({"obs": lambda self: np.zeros(4)}, r"reset returned an observation that has the shape \(4,\)"),
    "Scalar": ({"obs": lambda self: 0.5}, r"reset returned an observation that has the shape \(\)"),
    "Nothing": ({"obs": lambda self: None}, "reset returned an observation that is None, which is no number"),
    "DictForBox": ({"obs": lambda self: {"a": 1}}, "reset returned an observation that is {'a': 1}, which is no number"),
    "Ragged": ({"obs": lambda self: [[1.0], [1.0, 2.0]]}, "which has no shape"),
    "LateShape": ({"obs": late(X, np.zeros(2))}, r"gave an observation at step 5 of an episode that has the shape \(2,\)"),
    "LateScalar": ({"obs": late(X, 1.0)}, r"gave an observation at step 5 of an episode that has the shape \(\)"),
    "NoKey": ({"observation_space": DICT, "obs": lambda self: {"a": X[:2]}}, "lacks the key 'c'; the space has 'a', 'c'"),
    "ExtraKey": ({"observation_space": DICT, "obs": lambda self: GOOD | {"z": 1}}, "has the key 'z'"),
    "FarChoice": ({"observation_space": DICT, "obs": lambda self: GOOD | {"c": 4}}, r"at 'c' is 4; the space is Discrete"),
    "NotADict": ({"observation_space": DICT, "obs": lambda self: X}, "the space is a Dict with 'a', 'c'"),
    "LateKey": ({"observation_space": DICT, "obs": late(GOOD, {"a": X[:2]})}, "step 5 of an episode that lacks the key 'c'"),
    "NoTuple": (
        {"observation_space": spaces.Tuple((spaces.Discrete(2),)), "obs": lambda self: (1, 2)},
        "the space is a Tuple of 1",
    ),
}  # fmt: skip


def play(env_id, steps=20):
    task = Gym(env_id, envs=2, scale_reward=False)
    policy = MLPPolicy(task.observation_space, task.action_space)
    return task.rollout(policy, [Request(None, horizon=steps)], 0)[0]


@pytest.mark.parametrize("name", BROKEN)
def test_what_breaks_the_protocol_is_one_sentence_with_environment_and_method(name):
    changes, sentence = BROKEN[name]
    env_id = variant(name, **changes)
    with pytest.raises(UsageError, match=sentence) as caught:
        play(env_id)
    assert str(caught.value).startswith(f"gym:{env_id}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "reward", "value"),
    [("One", np.array([2.5], np.float32), 2.5), ("Tensor", torch.tensor([[3.0]]), 3.0), ("Bool", np.True_, 1.0)],
)
def test_an_array_of_one_reward_is_that_number(name, reward, value):
    assert set(play(variant(f"{name}Reward", reward=lambda self: reward)).reward.flatten().tolist()) <= {value, 0.0}


def test_a_reward_that_is_infinite_as_a_float32_stops_the_run():
    with pytest.raises(RunError, match=r"gave the reward 1e\+300 at step 0 of an episode"):
        play(variant("FarReward", reward=lambda self: 1e300))


def test_the_methods_are_checked_once_and_then_left_alone():
    env_id = variant("Plain")
    task = Gym(env_id, envs=1)
    inner = task.copies[0].env.unwrapped
    policy = MLPPolicy(task.observation_space, task.action_space)
    task.rollout(policy, [Request(None, horizon=3)], 0)
    assert inner.step == Base.step.__get__(inner)
    assert inner.reset == Base.reset.__get__(inner)


def raising(error):
    def step(self, action):
        if self.t == 3:
            raise error
        return Base.step(self, action)

    return step


@pytest.mark.parametrize("error", [KeyError("price"), SystemExit(0), GeneratorExit(), ValueError("two\nlines")])
def test_an_error_of_the_environment_names_it_and_the_step(error):
    env_id = variant(f"Raising{type(error).__name__}", step=raising(error))
    with pytest.raises(RunError, match=f"gym:{env_id}: step 3 of an episode raised {type(error).__name__}") as caught:
        play(env_id)
    assert "test_environments.py, line" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is error


def test_an_interrupt_stays_an_interrupt():
    with pytest.raises(KeyboardInterrupt):
        play(variant("Interrupted", step=raising(KeyboardInterrupt())))


# ------------------------------------------------------------------------------------------------ modules

MODULE = """
import gymnasium as gym
from gymnasium import spaces


class Own(gym.Env):
    observation_space, action_space = spaces.Discrete(2), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return 0, {}

    def step(self, action):
        return 1, 1.0, False, False, {}


gym.register("Own-v0", entry_point="own_env:Own", max_episode_steps=3)
"""


def train(env_id, monkeypatch, out="r"):
    """Exit code of `anypo train`, in this process."""
    words = ["train", "a2c", "--task", f"gym:{env_id}", "--steps", "8", "--episodes", "1", "--out", out]
    monkeypatch.setattr(sys, "argv", ["anypo", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code


def test_a_module_in_the_working_directory_is_found(tmp_path, monkeypatch):
    (tmp_path / "own_env.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert Gym("own_env:Own-v0").observation_space == spaces.Discrete(2)
    with pytest.raises(UsageError, match="unknown environment 'Owm-v0'; did you mean 'Own-v0'"):
        Gym("own_env:Owm-v0")


@pytest.mark.parametrize(
    ("text", "env_id", "sentence"),
    [
        (None, "no_such:Thing-v0", "gym:no_such:Thing-v0: there is no module 'no_such', neither in the working directory"),
        ("import nothing_here", "mod_a:T-v0", "importing the module mod_a raised ModuleNotFoundError: No module named 'nothin"),
        ("1 / 0", "mod_b:T-v0", r"the module mod_b raised ZeroDivisionError: division by zero \(mod_b.py, line 1\)"),
        ("x = = 1", "mod_c:T-v0", r"mod_c raised SyntaxError: invalid syntax \(mod_c.py, line 1\)"),
        ("", "mod_d:Thing-v0", "unknown environment 'Thing-v0'"),
    ],
)  # fmt: skip
def test_a_module_that_cannot_be_imported_says_why(text, env_id, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    if text is not None:
        (tmp_path / f"{env_id.partition(':')[0]}.py").write_text(text)
    with pytest.raises(UsageError, match=sentence) as caught:
        Gym(env_id)
    assert "\n" not in str(caught.value)


def test_an_environment_that_cannot_be_built_says_why():
    def broken(self):
        raise KeyError("market")

    with pytest.raises(UsageError, match="gym:Unbuilt-v0 cannot be made: KeyError: 'market'"):
        Gym(variant("Unbuilt", __init__=broken))
    with pytest.raises(UsageError, match="gym:Spaceless-v0 has no action_space"):
        Gym(variant("Spaceless", action_space=None))
    with pytest.raises(UsageError, match=r"nothing installed here registers Maze/...; .* gym:MODULE:Maze/Nine-v0"):
        Gym("Maze/Nine-v0")


def test_a_run_in_a_broken_environment_ends_in_one_sentence_and_keeps_the_traceback(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    steps = []

    def step(self, action):
        steps.append(action)
        if len(steps) > 8 and self.t == 3:  # the untrained policy was measured before
            raise KeyError("price")
        return Base.step(self, action)

    assert train(variant("Market", step=step), monkeypatch) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(
        "anypo: gym:Market-v0: step 3 of an episode raised KeyError: 'price' (test_environments.py, line "
    )
    assert "KeyError: 'price'" in (tmp_path / "r" / "traceback.txt").read_text()
    assert train(variant("Uninformed", reset=lambda self, **_: Base.reset(self)[0]), monkeypatch, "s") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("folder", ["anypo", "gymnasium", "importlib"])
def test_an_error_in_a_file_below_a_folder_that_is_called_as_a_library_names_its_line(folder, tmp_path):
    file = tmp_path / folder / "shop.py"
    with pytest.raises(KeyError) as error:
        exec(compile("prices = {}\nprices['apple']", file, "exec"))
    assert describe_error(error.value) == "KeyError: 'apple' (shop.py, line 2)"
