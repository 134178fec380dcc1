"""Environments in other processes: the same numbers, the same sentences, and nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time

import gymnasium
import numpy as np
import pytest
import yaml
from gymnasium import spaces
from killed import FORKS, Command, train_and_kill

import anypo
from anypo.errors import RunError, UsageError
from anypo.policies.control.mlp import MLPPolicy
from anypo.tasks.control.factory import MadeEnvironments
from anypo.tasks.control.gym import Gym
from anypo.types import Request

MODULE = """
import os
import signal

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Walk(gym.Env):
    \"\"\"Random numbers for up to nine steps, with a mask where actions are choices; dies or fails where that is asked for.\"\"\"

    observation_space, action_space = spaces.Box(-9.0, 9.0, (2,), np.float32), spaces.MultiDiscrete([2, 3])

    def __init__(self, fails=None, dies=None):
        self.fails, self.dies = fails, dies

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.length = 0, self.np_random.integers(4, 10)
        return self.look()

    def look(self):
        mask = np.array([1, 1, 1, self.t % 2, 1])
        return self.np_random.normal(size=2).astype(np.float32), {"action_mask": mask}

    def step(self, action):
        self.t += 1
        if self.t == self.fails:
            raise KeyError("price")
        if self.t == self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        observation, info = self.look()
        return observation, float(observation.sum() * action[1]), self.t == self.length, False, info


def shifted(env):
    return gym.wrappers.TransformObservation(env, lambda x: x + 1, env.observation_space)


gym.register("Walk-v0", entry_point="walks:Walk")
"""


@pytest.fixture(scope="module", autouse=True)
def server():
    """The server of processes is that of the other tests, with what they import."""
    process = FORKS.Process(target=os.getpid)
    process.start()
    process.join()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with the module `walks`."""
    (tmp_path / "walks.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def walk(**options):
    return Gym("walks:Walk-v0", envs=3, scale_reward=False, eval_episodes=4, **options)


def played(task, requests, times=2):
    policy = MLPPolicy(task.observation_space, task.action_space)
    rows = [task.rollout(policy, requests, seed)[0] for seed in range(times)]
    return rows, task.evaluate(policy, 0), task.state_dict()


def test_rows_and_states_are_those_of_one_process(folder):
    for requests in ([Request(None, horizon=7)], [Request(start, samples=2, horizon=6) for start in range(4)]):
        one, other = (played(walk(workers=workers, wrappers="walks.py:shifted"), requests) for workers in (None, 2))
        for a, b in zip(one[0], other[0], strict=True):
            assert json.dumps(tolist(a.to_dict())) == json.dumps(tolist(b.to_dict()))
        assert one[1] == other[1]
        assert json.dumps(tolist(one[2])) == json.dumps(tolist(other[2]))


def tolist(x):
    """Nested tensors as lists, numbers as their text."""
    if isinstance(x, dict):
        return {name: tolist(value) for name, value in x.items()}
    if isinstance(x, list | tuple):
        return [tolist(value) for value in x]
    return str(x.tolist()) if hasattr(x, "tolist") else str(x)


def words(out, *more):
    task = ("--task", "gym:walks:Walk-v0", "--task.envs", 3, "--task.eval_episodes", 2)
    return ("train", "ppo", *task, "--steps", 1600, "--out", out, "--step.epochs", 1, "--collect.requests", 3, *more)


def metrics(folder):
    return (folder / "metrics.jsonl").read_text()


def test_a_run_with_workers_has_the_metrics_of_one_without_also_when_it_is_killed_and_resumed(folder):
    plain, apart = Command(folder, *words("one")), Command(folder, *words("two", "--task.workers", 2))
    assert plain.end()[0] == apart.end()[0] == 0
    assert len(metrics(folder / "one").splitlines()) > 1
    assert metrics(folder / "one") == metrics(folder / "two")
    values = yaml.safe_load((folder / "two" / "config.yaml").read_text()) | {"out": str(folder / "three")}
    train_and_kill({**values, "checkpoint_every": 1}, lambda out: any((out / "checkpoints").glob("*")))
    assert len(metrics(folder / "three").splitlines()) < len(metrics(folder / "one").splitlines())
    assert Command(folder, "resume", "three").end()[0] == 0
    assert metrics(folder / "three") == metrics(folder / "one")


def working_in(folder):
    """Return the processes whose working directory is the folder."""
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            found |= {int(name)} if os.readlink(f"/proc/{name}/cwd") == str(folder) else set()
    return found - {os.getpid()}


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="processes are listed in /proc")
def test_workers_end_with_the_process_that_asked_for_them(folder):
    command = Command(folder, *words("r", "--task.workers", 2, "--steps", 10**6))
    while command.process.is_alive() and not (folder / "r" / "metrics.jsonl").exists():
        time.sleep(0.01)
    assert len(working_in(folder)) >= 3
    command.process.kill()
    command.process.join()
    end = time.monotonic() + 60
    while working_in(folder) and time.monotonic() < end:
        time.sleep(0.05)
    assert not working_in(folder)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"fails": 2}, "gym:walks:Walk-v0: step 1 of an episode raised KeyError: 'price' .walks.py, line"),
        ({"dies": 3}, "gym:walks:Walk-v0: a worker process ended unexpectedly: it was killed, ran out of memory"),
    ],
    ids=["raises", "dies"],
)
def test_what_goes_wrong_in_a_worker_is_one_sentence(folder, options, sentence):
    task = walk(workers=2, env_kwargs=options)
    for _ in range(2 if "dies" in options else 1):
        with pytest.raises(RunError, match=sentence) as caught:
            played(task, [Request(None, horizon=8)])
        assert "\n" not in str(caught.value)


class Counting(gymnasium.Env):
    observation_space, action_space = spaces.Box(-1.0, 1.0, (1,)), spaces.Discrete(2)

    def __init__(self, length):
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(1, np.float32), float(action), self.t == self.length, False, {}


def test_environments_made_by_a_function_of_this_process_are_made_in_workers_too(tmp_path):
    length = 5
    task = {"env": lambda: Counting(length), "envs": 2, "workers": 2, "eval_episodes": 1}
    run = anypo.train("a2c", task=task, steps=8, out=tmp_path / "r")
    assert run.evaluate()["length"] == 5


def test_an_environment_that_cannot_be_sent_to_another_process_is_one_sentence():
    lock = threading.Lock()
    with pytest.raises(UsageError, match="gym:Counting cannot be sent to another process: TypeError"):
        MadeEnvironments(lambda: Counting(5 if lock else 6), "Counting", envs=1, workers=1)


def test_settings_of_a_specification_hold_in_workers():
    spec = gymnasium.make("FrozenLake-v1", map_name="8x8", is_slippery=False).spec
    task = Gym(spec, envs=1, workers=1)
    policy = MLPPolicy(task.observation_space, task.action_space)
    task.rollout(policy, [Request(None, horizon=2)], 0)
    assert task.observation_space.n == 64
    state = task.copies[0].state_dict()
    assert state is None or len(state["observation"]) == 64


def test_a_task_asks_for_at_least_one_worker(folder):
    with pytest.raises(UsageError, match=r"task.workers is 0, it must be from 1 to 512"):
        anypo.train("ppo", task={"name": "gym:walks:Walk-v0", "workers": 0}, out=folder / "r")
