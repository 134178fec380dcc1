"""Reward channels of a Gymnasium environment, each with a value head and an advantage of its own."""

from __future__ import annotations

import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from anypo import Trajectories
from anypo.config import from_dict
from anypo.errors import RunError, UsageError
from anypo.loops.learn import learn
from anypo.parts.credit import AddAdvantage, ExtendedGae, Gae
from anypo.parts.critic import Value
from anypo.policies.control.mlp import MLPPolicy
from anypo.runs.folder import create
from anypo.tasks.control.gym import Gym
from anypo.types import Request

F64 = torch.float64


class Errand(gym.Env):
    """Action 1 earns 1 and costs 0.5 a step; twelve steps, cut there; `info` has both amounts and a text."""

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observe(), {}

    def observe(self):
        return np.array([self.t / 12, 1.0], np.float32)

    def step(self, action):
        self.t += 1
        info = {"gain": float(action), "cost": 0.5 * action, "note": "fine"}
        return self.observe(), info["gain"] - info["cost"], False, self.t >= 12, info


class Broken(Errand):
    def step(self, action):
        observation, reward, over, cut, info = super().step(action)
        return observation, reward, over, cut, info | {"cost": float("nan")}


@pytest.fixture(autouse=True)
def environments():
    for name, env in (("Errand-v0", Errand), ("Broken-v0", Broken)):
        gym.register(name, env)
    yield
    for name in ("Errand-v0", "Broken-v0"):
        del gym.registry[name]


def test_rows_have_the_channels_of_info_and_the_bootstrap_of_every_head() -> None:
    task = Gym("Errand-v0", envs=3, info_rewards=["gain", "cost"], scale_reward=False)
    policy = MLPPolicy(task.observation_space, task.action_space, value=("value", "cost"))
    rows, metrics = task.rollout(policy, [Request(None, horizon=5)], 0)
    torch.testing.assert_close(rows.extra["reward.gain"], rows.trace["action"].float())
    torch.testing.assert_close(rows.extra["reward.gain"] - rows.extra["reward.cost"], rows.reward)
    torch.testing.assert_close(rows.extra["bootstrap.cost"], policy.values(policy.features(rows.extra["last"]))[:, 1])
    assert metrics["train/cost"] == pytest.approx(float(rows.extra["reward.cost"].mean()))
    measures = task.evaluate(policy, 0, episodes=2)
    assert measures["gain"] - measures["cost"] == pytest.approx(measures["return"])


def test_channels_are_on_the_scale_of_the_reward() -> None:
    task = Gym("Errand-v0", envs=2, info_rewards=["gain", "cost"])
    policy = MLPPolicy(task.observation_space, task.action_space, value=True)
    rows, _ = task.rollout(policy, [Request(None, horizon=12)], 0)
    assert float(rows.reward.max()) < 0.1
    torch.testing.assert_close(rows.extra["reward.gain"] - rows.extra["reward.cost"], rows.reward)


def test_a_task_without_channels_and_a_policy_of_one_head_have_none() -> None:
    task = Gym("Errand-v0", envs=2)
    policy = MLPPolicy(task.observation_space, task.action_space, value=True)
    rows, metrics = task.rollout(policy, [Request(None, horizon=4)], 0)
    assert set(rows.extra) == {"last"}
    assert "train/cost" not in metrics


def test_an_unknown_channel_and_one_that_is_not_finite_are_refused_in_one_sentence() -> None:
    task = Gym("Errand-v0", envs=1, info_rewards=["costs"])
    policy = MLPPolicy(task.observation_space, task.action_space, value=True)
    with pytest.raises(
        UsageError, match="unknown reward channel in the `info` of gym:Errand-v0: 'costs'; did you mean 'cost'"
    ):
        task.rollout(policy, [Request(None, horizon=4)], 0)
    with pytest.raises(RunError, match=r"gave the channels \[nan\] at step 0 of an episode"):
        Gym("Broken-v0", envs=1, info_rewards=["cost"]).rollout(policy, [Request(None, horizon=4)], 0)


def rows_of_channels() -> Trajectories:
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=F64)

    fields = {name: normal(3, 6) for name in ("reward.gain", "reward.cost", "gain", "cost")}
    ends = {f"bootstrap.{name}": normal(3) for name in ("gain", "cost")}
    return Trajectories(
        mask=torch.arange(6) < torch.tensor([[6], [4], [1]]),
        reward=fields["reward.gain"] - fields["reward.cost"],
        value=fields["gain"] - fields["cost"],
        bootstrap=ends["bootstrap.gain"] - ends["bootstrap.cost"],
        done=torch.tensor([False, True, False]),
        extra=fields | ends,
    ).clean()


@pytest.mark.parametrize("estimator", [Gae, ExtendedGae])
def test_advantages_of_channels_add_up_to_that_of_their_sum(estimator) -> None:
    """GAE is linear in rewards and values."""
    b = rows_of_channels()
    whole = estimator()(b)
    for name in ("gain", "cost"):
        b = estimator(head=name, channel=name)(b)
    apart = b.get("advantage.gain") - b.get("advantage.cost")
    torch.testing.assert_close(apart, whole.advantage)
    torch.testing.assert_close(b.get("returns.gain") - b.get("returns.cost"), whole.returns)
    mixed = AddAdvantage("cost", -1.0)(b.but(advantage=b.get("advantage.gain")))
    torch.testing.assert_close(mixed.advantage, whole.advantage)
    assert set(b.extra) >= {"bootstrap.gain", "bootstrap.cost"}


def test_a_value_of_any_name_learns_its_own_returns() -> None:
    b = rows_of_channels()
    b = Gae(head="cost", channel="cost")(b)
    b = b.put({"cost": b.need("cost").clone().requires_grad_()})
    loss, metrics = Value(head="cost", clip=0.1)(b)
    (slope,) = torch.autograd.grad(loss, b.need("cost"))
    torch.testing.assert_close(
        slope, 0.5 * (b.need("cost") - b.need("returns.cost")).detach() * b.valid / b.valid.sum()
    )
    assert set(metrics) == {"cost_loss", "explained_variance.cost"}
    assert set(Value(head="cost", clip=0.1).reads) == {"cost", "returns.cost", "value_old.cost"}


@pytest.mark.entry("ppo")
@pytest.mark.parametrize(("weight", "pays"), [(0.0, True), (-4.0, False)])
def test_a_method_learns_channels_with_a_head_each_and_obeys_their_weights(
    weight: float, pays: bool, tmp_path: Path
) -> None:
    """Action 1 earns 1 and costs 0.5: it pays by its reward, and not where the cost counts five times."""
    credit = ["gae", {"part": "gae", "channel": "cost", "head": "cost"}]
    credit += [{"part": "add-advantage", "weight": weight}, "whiten"]
    settings = {
        "method": "ppo",
        "task": {"name": "gym:Errand-v0", "envs": 4, "info_rewards": ["cost"]},
        "policy": {"name": "mlp", "hidden": [16]},
        "credit": credit,
        "critic": [{"part": "value", "clip": 0.2}, {"part": "value", "head": "cost"}],
        "step": {"lr": 0.02, "epochs": 4},
        "steps": 5120,
    }
    learn(create(from_dict(settings | {"out": str(tmp_path / "run"), "threads": 1, "episodes": 2})))
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"value_loss", "cost_loss", "explained_variance", "explained_variance.cost"} <= set(record)
    assert (record["train/cost"] > 0.35) if pays else (record["train/cost"] < 0.2)  # 0.25 before
