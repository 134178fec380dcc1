"""Action masks hold for every method, exploring or not, wherever an environment gives them."""

import warnings

import gymnasium
import numpy as np
import pytest
import torch
from entries import entries
from gymnasium import spaces

from anypo.config import from_dict
from anypo.errors import RunError, UsageError
from anypo.loops.learn import learn
from anypo.loops.record_datasets import record_episodes
from anypo.policies.control.actor_critic import FORBIDDEN
from anypo.policies.control.off_policy import GaussianActor, Greedy
from anypo.policies.weights import snapshot
from anypo.rng import BatchRng
from anypo.runs.build import build
from anypo.tasks.control.gym import Gym
from anypo.types import MASK, NEXT_MASK, Request
from anypo.views import Network

ALLOWED = np.array([1, 0, 1, 0], np.int8)


class Masked(gymnasium.Env):
    """Choices 1 and 3 are forbidden from step `late` on; `taken` counts all actions, `forbidden` those that were not allowed."""

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Discrete(4)
    late = 0
    taken = forbidden = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.see(), self.info()

    def number(self):
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)

    def see(self):
        return self.number()

    def masked(self):
        return self.t >= self.late

    def info(self):
        return {"action_mask": ALLOWED} if self.masked() else {}

    def step(self, action):
        type(self).taken += 1
        type(self).forbidden += int(self.masked() and not ALLOWED[action])
        self.t += 1
        return self.see(), float(action), False, self.t >= 8, self.info()


class ByMethod(Masked):
    """As sb3-contrib has it."""

    def info(self):
        return {}

    def action_masks(self):
        return ALLOWED.astype(bool).tolist()


class Observed(Masked):
    observation_space = spaces.Dict(
        {"x": spaces.Box(-1.0, 1.0, (2,), np.float32), "action_mask": spaces.MultiBinary(4)}
    )

    def info(self):
        return {}

    def see(self):
        return {"x": self.number(), "action_mask": ALLOWED}


class Late(Masked):
    """No mask at `reset`."""

    late = 1


class Later(Masked):
    """No mask in the first three steps."""

    late = 3


class Several(Masked):
    """Two components, each with a mask of its own."""

    action_space = spaces.MultiDiscrete([2, 3])

    def info(self):
        return {"action_mask": (np.array([0, 1]), np.array([1, 0, 1]))}

    def step(self, action):
        type(self).forbidden += int(action[0] != 1 or action[1] == 1)
        type(self).taken += 1
        self.t += 1
        return self.see(), 1.0, False, self.t >= 8, self.info()


class Nothing(Masked):
    """From step 2 on no action is allowed, except at the end, where none is needed."""

    def info(self):
        return {"action_mask": np.zeros(4)} if self.t >= 2 else {}


class AtTheEnd(Masked):
    """After the last step of an episode no action is allowed."""

    def info(self):
        return {"action_mask": np.zeros(4) if self.t >= 8 else ALLOWED}


KINDS = {cls.__name__: cls for cls in (Masked, ByMethod, Observed, Late, Later, Several, Nothing, AtTheEnd)}
for name, cls in KINDS.items():
    gymnasium.register(f"{name}Choices-v0", entry_point=cls)


def run_of(method, kind, steps=200, **values):
    KINDS[kind].taken = KINDS[kind].forbidden = 0
    task = {"name": f"gym:{kind}Choices-v0", "eval_episodes": 2, **values.pop("task", {})}
    small = {"policy": {"hidden": [8]}, "evaluate_every": 1000, **values}
    return build(from_dict({"method": method, "task": task, "steps": steps, **small}))


ONCE = {"task": {"envs": 2}, "step": {"epochs": 1, "minibatch": 256}}
REPLAY = {"collect": {"first": 50, "random": 0.5}, "store": {"batch": 16, "start": 50}}


@pytest.mark.parametrize("kind", ["Masked", "ByMethod", "Observed", "Late", "Later", "AtTheEnd"])
@pytest.mark.parametrize("method", entries(["ppo", "dqn", "grpo"]))
def test_no_forbidden_action_is_taken_while_training_exploring_or_evaluating(method, kind):
    values = REPLAY if method == "dqn" else ONCE
    record = learn(run_of(method, kind, **values))
    assert KINDS[kind].taken >= 200
    assert KINDS[kind].forbidden == 0
    assert all(np.isfinite(value) for value in record.values())


@pytest.mark.entry("ppo")
def test_every_component_of_a_choice_has_its_mask():
    learn(run_of("ppo", "Several", **ONCE))
    assert (Several.taken > 200, Several.forbidden) == (True, 0)


@pytest.mark.entry("awac")
def test_a_likelihood_method_that_explores_obeys_masks_and_proposes_allowed_actions():
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # masked updates are replayed from a trace as others are
        learn(run_of("awac", "Late", collect={"part": "explore", "first": 50, "random": 0.3}, store=REPLAY["store"]))
    assert (Late.taken > 200, Late.forbidden) == (True, 0)


@pytest.mark.entry("dqn")
@pytest.mark.parametrize("random", [1.0, 0.3])
def test_recorded_data_of_random_and_noisy_policies_obey_masks(random):
    run = run_of("dqn", "Masked", **REPLAY)
    record_episodes(run, snapshot(run.policy), 20, random)
    assert (Masked.taken, Masked.forbidden) == (160, 0)


@pytest.mark.parametrize("method", entries(["ppo", "dqn"]))
def test_a_mask_that_forbids_everything_ends_the_run_in_one_sentence(method):
    sentence = "gym:NothingChoices-v0: the action_mask at step 2 of an episode forbids every action; allow at least one"
    with pytest.raises(RunError, match=sentence):
        learn(run_of(method, "Nothing"))
    policy = Greedy(spaces.Box(-1, 1, (2,)), spaces.Discrete(4), hidden=(4,), networks={"q": Network("action")})
    obs = torch.zeros(2, 2)
    with pytest.raises(RunError, match="action_mask forbids every action in row 1"):
        policy.act(obs, BatchRng(torch.Generator(), 2), action_mask=torch.tensor([[True] * 4, [False] * 4]))


def test_a_mask_of_the_wrong_length_is_one_sentence(monkeypatch):
    monkeypatch.setattr(Masked, "info", lambda self: {"action_mask": np.ones(3)})
    task = Gym("MaskedChoices-v0", envs=1)
    with pytest.raises(UsageError, match="gave an action_mask of 3 entries for 4 choices"):
        task.evaluate(None, 0, 1)


def test_uniform_choices_are_uniform_over_those_allowed():
    policy = GaussianActor(spaces.Box(-1, 1, (2,)), spaces.Discrete(5), hidden=(4,))
    mask = torch.tensor([True, False, True, True, False]).expand(30_000, 5)
    drawn = policy.uniform_action(torch.zeros(30_000, 1), BatchRng(torch.Generator().manual_seed(0), 30_000), mask)
    share = torch.bincount(drawn[:, 0], minlength=5) / 30_000
    torch.testing.assert_close(share, torch.tensor([1.0, 0, 1, 1, 0]) / 3, atol=0.01, rtol=0)


@pytest.mark.parametrize("cls", [Greedy, GaussianActor])
def test_an_observed_mask_is_no_feature(cls):
    assert (
        len(cls(Observed.observation_space, Observed.action_space, networks={"q": Network("action")}).encode.boxed) == 2
    )


@pytest.mark.entry("dqn")
def test_replayed_transitions_keep_their_masks_and_targets_are_over_allowed_actions():
    run = run_of("dqn", "Later", **REPLAY)
    rows, _ = run.task.rollout(run.policy, [Request(None, horizon=24)], 0)
    run.store.add(rows)
    kept = {name: run.store.kept[name][:24] for name in (MASK, NEXT_MASK)}
    constrained = (torch.arange(24) % 8 >= 3, torch.arange(24) % 8 + 1 >= 3)
    for column, where in zip(kept.values(), constrained, strict=True):
        assert torch.equal(column.all(1), ~where)
        assert torch.equal(column[where], torch.tensor([True, False, True, False]).expand(int(where.sum()), 4))
    batch = run.store.draw(torch.Generator().manual_seed(0))
    values = run.policy.evaluate(batch, {"q_all"})["q_all"][:, 0, :, 0]
    assert torch.equal(values == FORBIDDEN, ~batch.trace[MASK][:, 0])


@pytest.mark.entry("dqn")
def test_experience_without_masks_allows_everything_beside_experience_with_them():
    run = run_of("dqn", "Late", **REPLAY)
    first, _ = run.task.rollout(run.policy, [Request(None, horizon=1)], 0)
    run.store.add(first.but(trace={k: x for k, x in first.trace.items() if k != MASK}))
    run.store.add(run.task.rollout(run.policy, [Request(None, horizon=7)], 0)[0])
    assert run.store.kept[MASK][:8].sum(1).tolist() == [4, *[2] * 7]
