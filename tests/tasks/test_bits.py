"""MultiBinary actions: independent bits, from the distribution to the exported program."""

from __future__ import annotations

import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import anypo
from anypo.errors import UsageError
from anypo.policies.control.distributions import Categoricals
from anypo.policies.control.mlp import MLPPolicy
from anypo.policies.control.off_policy import GaussianActor
from anypo.policies.control.spaces import from_space, to_space
from anypo.rng import BatchRng
from anypo.tasks.control.columns import read_actions


class Lights(gymnasium.Env):
    """Shows three bits; every switch that equals its bit pays 1/3."""

    observation_space = spaces.MultiBinary(3)
    action_space = spaces.MultiBinary(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.look(), {}

    def look(self):
        self.shown = self.np_random.integers(0, 2, 3).astype(np.int8)
        return self.shown

    def step(self, action):
        assert self.action_space.contains(action)
        self.t += 1
        reward = float((action == self.shown).mean())
        return self.look(), reward, False, self.t == 8, {}


class StuckLights(Lights):
    """The first switch cannot be on, the last one cannot be off."""

    observation_space = spaces.Dict({"shown": spaces.MultiBinary(3), "action_mask": spaces.MultiBinary(6)})

    def look(self):
        return {"shown": super().look(), "action_mask": np.array([1, 0, 1, 1, 0, 1], np.int8)}

    def step(self, action):
        assert (action[0], action[2]) == (0, 1)
        return super().step(action)


def test_log_probability_and_entropy_are_the_sums_over_independent_bits():
    chance = torch.tensor([0.25, 0.5, 0.9], dtype=torch.float64)
    logits = torch.stack([(1 - chance).log(), chance.log()], -1).flatten()[None]
    bits = Categoricals(logits, [2, 2, 2])
    logp = bits.logp(torch.tensor([[1, 0, 1]]))
    assert logp.item() == pytest.approx(math.log(0.25) + math.log(0.5) + math.log(0.9))
    binary = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in chance.tolist()]
    assert bits.entropy().item() == pytest.approx(sum(binary))
    assert bits.mode().tolist() == [[0, 0, 1]]
    drawn = Categoricals(logits.expand(40_000, -1), [2, 2, 2]).sample(
        BatchRng(torch.Generator().manual_seed(0), 40_000)
    )
    torch.testing.assert_close(drawn.double().mean(0), chance, atol=0.01, rtol=0)
    torch.testing.assert_close(torch.corrcoef(drawn.double().T), torch.eye(3).double(), atol=0.02, rtol=0)


def test_the_policys_bits_are_those_of_torchs_bernoulli():
    policy = MLPPolicy(spaces.Box(-1, 1, (4,)), spaces.MultiBinary(3), seed=2).double()
    with torch.no_grad():
        policy.actor[-1].weight.mul_(300)
    obs = torch.rand(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    off, on = policy.actor(obs).unflatten(-1, (3, 2)).unbind(-1)
    reference = torch.distributions.Independent(torch.distributions.Bernoulli(logits=on - off), 1)
    decided = policy.act(obs, BatchRng(torch.Generator().manual_seed(1), 50))
    torch.testing.assert_close(decided.logp, reference.log_prob(decided.action.double()).detach())
    torch.testing.assert_close(policy.distribution(obs, None).entropy(), reference.entropy())


def test_actions_arrive_as_the_space_has_them_and_come_back_from_data():
    space = spaces.MultiBinary((2, 2))
    stored = torch.tensor([[0, 1, 1, 0], [1, 1, 0, 0]])
    actions = to_space(space, stored)
    assert actions.tolist() == [[[0, 1], [1, 0]], [[1, 1], [0, 0]]]
    assert all(space.contains(action) for action in actions)
    assert actions.dtype == space.dtype
    assert torch.equal(from_space(space, actions), stored)
    assert torch.equal(read_actions("here", space, actions, 2), stored)
    with pytest.raises(UsageError, match=r"actions of row 1: .* is no choice"):
        read_actions("here", space, actions + np.array([[[0]], [[1]]]), 2)


def test_bits_are_learned_predicted_and_exported(tmp_path):
    settings = {"step": {"epochs": 8, "minibatch": 128, "lr": 3e-3}, "episodes": 10}
    run = anypo.train("ppo", task={"env": Lights, "envs": 4}, steps=6144, **settings, out=tmp_path / "r")
    assert run.result["before"] < 6 < 7.9 < run.evaluate()["return"]
    shown = np.array([[0, 0, 1], [1, 0, 0], [1, 1, 1]], np.int8)
    assert run.predict(shown).tolist() == shown.tolist()
    assert Lights.action_space.contains(run.predict(shown[0], deterministic=False))
    program = torch.export.load(run.export()).module()
    assert program(torch.from_numpy(shown)).tolist() == shown.tolist()
    assert program(torch.from_numpy(shown)).dtype == torch.int8


def test_masked_bits_are_never_taken(tmp_path):
    run = anypo.train(
        "ppo", task={"env": StuckLights, "envs": 2}, steps=100, episodes=2, step={"epochs": 1}, out=tmp_path / "r"
    )
    observations = [StuckLights().reset(seed=seed)[0] for seed in range(20)]
    actions = run.predict(observations)
    assert (actions[:, 0] == 0).all()
    assert (actions[:, 2] == 1).all()
    batch = {name: torch.from_numpy(np.stack([o[name] for o in observations])) for name in observations[0]}
    program = torch.export.load(run.export()).module()
    assert program(batch).tolist() == actions.tolist()


def test_policies_of_one_choice_refuse_bits():
    with pytest.raises(UsageError, match="the policy gaussian cannot act in the action space MultiBinary"):
        GaussianActor(Lights.observation_space, Lights.action_space)
