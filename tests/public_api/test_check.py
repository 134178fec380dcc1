"""`anypo check` tries objects of a user's file, and says in sentences what they lack."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from anypo.cli.app import app
from anypo.errors import UsageError
from anypo.evidence.check import check_object

FILE = """
from dataclasses import dataclass

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

import anypo
from anypo.parts.ops.log_ratio import importance_ratio
from anypo.parts.ops.surrogate import advantage_at
from anypo.policies.control.mlp import MLPPolicy
from anypo.policies.tabular import SoftmaxTable
from anypo.tasks.bandit import Bandit


@dataclass(frozen=True)
class SquaredTrust:
    coef: float = 0.5
    level = "decision"
    reads = ("advantage",)

    def __call__(self, x, b):
        r = importance_ratio(x)
        return r * advantage_at(x, b) - self.coef * (r - 1).square(), {}


@dataclass(frozen=True)
class Leaky(SquaredTrust):
    def __call__(self, x, b):
        return importance_ratio(x) * advantage_at(x, b) - x.mean(), {}


@dataclass(frozen=True)
class Undefined:
    coef: float
    level = "pair"

    def __call__(self, b):
        return b


@dataclass(frozen=True)
class Centred:
    reads = ("score",)

    def __call__(self, b):
        return b.but(advantage=(b.need("score") - b.need("score").mean())[:, None].expand(b.shape))


gentler = anypo.method("grpo").but(trust=SquaredTrust(0.25), terms=[])
leaky = anypo.method("grpo").but(trust=Leaky(), terms=[])


class Coins(Bandit):
    name = "coins"

    def __init__(self, *, sides=2, seed=0):
        super().__init__(contexts=3, arms=sides, seed=seed)


class Shaky(Coins):
    def rollout(self, policy, requests, seed):
        return super().rollout(policy, requests, int(torch.randint(1000, ())))


class Unmeasured(Coins):
    metric = "profit"


class Half:
    def rollout(self, policy, requests, seed): ...


def table(observations, actions, *, value=True, seed=0):
    return SoftmaxTable(int(observations.n), int(actions.n), value=value, seed=seed)


class Wrong(MLPPolicy):
    def evaluate(self, b, want, **more):
        return {name: x + 1 for name, x in super().evaluate(b, want, **more).items()}


def nothing(observations, actions, *, value=True, seed=0):
    return torch.nn.Linear(1, 1)


class Corridor(gymnasium.Env):
    observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.time = 0, 0
        return self.look(), {}

    def look(self):
        return np.array([self.place / 4], np.float32)

    def step(self, action):
        self.place, self.time = max(0, self.place + (1 if action == 1 else -1)), self.time + 1
        return self.look(), float(self.place == 4), self.place == 4, self.time == 20, {}


def make_corridor():
    return Corridor()


class Four(Corridor):
    def step(self, action):
        return super().step(action)[:4]


class Unpaid(Corridor):
    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, None, *rest


class Restless(Corridor):
    def look(self):
        return np.random.rand(1).astype(np.float32)


class Outside(Corridor):
    def look(self):
        return np.array([7.0], np.float32)


class Unseeded(Corridor):
    def reset(self):
        return super().reset()


class Loose:
    reset = step = Corridor.step


def right(completions, answer, **columns):
    return [float(c == a) for c, a in zip(completions, answer)]


def chatty(completions, **columns):
    return [float(len(c[0]["content"])) for c in completions]


def total(completions):
    return 3.0


number = 3
"""


@pytest.fixture(scope="module")
def mine(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("mine") / "mine.py"
    path.write_text(FILE)
    return path


@pytest.mark.parametrize(
    ("name", "kind", "holds"),
    [
        ("gentler", "method", "12 of 12 properties hold"),
        ("SquaredTrust", "part", "as trust of grpo: 12 of 12 properties hold"),
        ("Centred", "part", "as credit of grpo: 12 of 12 properties hold"),
        ("Coins", "task", "a rollout of 4 rows can be repeated; reward is measured"),
        ("table", "policy", "bandit: reinforce trains a batch"),
        ("Corridor", "environment", "reinforce trains a batch"),
        ("make_corridor", "environment", "steps lie in its spaces and follow from the seed and the actions"),
        ("right", "reward", "as text score [1.0, 1.0]"),
        ("chatty", "reward", "as chat messages score [1.0, 1.0]"),
    ],
)
def test_what_follows_the_protocols_passes(mine, name, kind, holds):
    findings = check_object(f"{mine}:{name}")
    assert (findings.kind, findings.missing) == (kind, [])
    assert any(holds in sentence for sentence in findings.holds), findings.holds


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("leaky", "rows of weight zero change nothing: the loss depends on rows of weight 0"),
        ("Leaky", "as trust of grpo: rows of weight zero change nothing"),
        ("Undefined", "the field coef has no default, so the name alone does not make it"),
        ("Undefined", "level is 'pair'; it is one of decision, segment, row, group, batch"),
        ("Shaky", "the same requests, seed and state give another rollout"),
        ("Unmeasured", "evaluate returns no 'profit', the task's metric"),
        ("Half", "it lacks `channels`, `continuing`, `default_policy`, `evaluate`"),
        ("Wrong", "bandit: the policy is `exact`, but evaluate and rollout differ in logp by up to 1"),
        ("nothing", "it lacks `ablated`, `evaluate`, `exact`"),
        ("Four", "step returns no five values (observation, reward, terminated, truncated, info)"),
        ("Unpaid", "step returns the reward None; it must be a finite number"),
        ("Restless", "the same seed and actions give another episode"),
        ("Outside", "reset returns ndarray [7.0], which is not in Box(0.0, 1.0, (1,), float32)"),
        ("Unseeded", "an episode raises TypeError: Unseeded.reset() got an unexpected keyword argument 'seed'"),
        ("Loose", "it does not inherit from gymnasium.Env"),
        ("total", "returned 3.0; it must return a list of one number or None per completion"),
    ],
)
@pytest.mark.filterwarnings("ignore:sampling and evaluation disagree")
def test_what_is_missing_is_a_sentence(mine, name, sentence):
    missing = check_object(f"{mine}:{name}").missing
    assert any(sentence in text for text in missing), missing
    assert not any("\n" in text for text in missing)


def test_what_anypo_takes_nowhere_is_refused(mine):
    with pytest.raises(
        UsageError, match="is a int; check takes a method, procedure, part, reward, environment, task or policy"
    ):
        check_object(f"{mine}:number")
    with pytest.raises(UsageError, match=r"'grpo' is no FILE\.py:NAME"):
        check_object("grpo")


def test_the_exit_code_says_whether_something_is_missing(mine):
    fine, lacking = (CliRunner().invoke(app, ["check", f"{mine}:{name}"]) for name in ("gentler", "Four"))
    assert (fine.exit_code, lacking.exit_code) == (0, 1)
    assert "gentler: a method\n  12 of 12 properties" in fine.output
    assert "  MISSING step returns no five values" in lacking.output
