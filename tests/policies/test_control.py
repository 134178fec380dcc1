"""Control policies: probabilities, what is stored, what environments get, how observations become vectors."""

import shutil
from collections import OrderedDict

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from anypo.errors import RunError, UsageError
from anypo.policies.control.distributions import Categoricals
from anypo.policies.control.mlp import MLPPolicy
from anypo.policies.control.normalize import RunningNorm
from anypo.rng import BatchRng
from anypo.types import Trajectories

BOX = spaces.Box(-np.inf, np.inf, (3,), np.float32)
ACTIONS = {
    "discrete": spaces.Discrete(4),
    "multidiscrete": spaces.MultiDiscrete([2, 3, 5]),
    "multibinary": spaces.MultiBinary((2, 2)),
    "box": spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 10.0], np.float32)),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rng(obs, seed=0):
    return BatchRng(generator(seed), len(obs))


def sampled(policy, rows=3, steps=7, mask=None, seed=0):
    """A batch of decisions on random observations; `mask` marks the valid ones."""
    obs = torch.randn(rows * steps, len(policy.encode.boxed), generator=generator(seed))
    decided = policy.act(obs, rng(obs, seed + 1))
    shape = (rows, steps)
    return Trajectories(
        logp_old=decided.logp.view(shape),
        value=decided.value.view(shape),
        mask=torch.ones(shape, dtype=torch.bool) if mask is None else mask,
        trace={
            "obs": obs.view(*shape, -1),
            "action": decided.action.view(*shape, *decided.action.shape[1:]),
        },
    )


@pytest.mark.parametrize("kind", ACTIONS)
def test_an_unchanged_policy_gives_ratio_one(kind):
    policy = MLPPolicy(BOX, ACTIONS[kind], seed=3)
    policy.observe(sampled(policy, seed=9))
    b = sampled(policy)
    again = policy.evaluate(b, ("logp", "entropy", "value"))
    torch.testing.assert_close(again["logp"], b.logp_old, atol=1e-6, rtol=0)
    torch.testing.assert_close(again["value"], b.value, atol=1e-6, rtol=0)
    alone = policy.evaluate(b.decisions(), ("logp",))["logp"]
    torch.testing.assert_close(alone[:, 0], b.logp_old.flatten(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ACTIONS)
def test_logp_and_entropy_equal_torch_distributions(kind):
    policy = MLPPolicy(BOX, ACTIONS[kind], seed=1).double()
    if kind == "box":
        policy.log_std.data = torch.tensor([-0.7, 0.4], dtype=torch.float64)
    b = sampled(policy)
    out = policy.actor(policy.features(b.trace["obs"].flatten(0, 1)))
    action = b.trace["action"].flatten(0, 1)
    if kind == "box":
        reference = torch.distributions.Independent(torch.distributions.Normal(out, policy.log_std.exp()), 1)
        logp, entropy = reference.log_prob(action), reference.entropy()
    else:
        parts = [torch.distributions.Categorical(logits=x) for x in out.split(policy.sizes, -1)]
        columns = action.reshape(len(action), -1).unbind(-1)
        logp = sum(p.log_prob(a) for p, a in zip(parts, columns, strict=True))
        entropy = sum(p.entropy() for p in parts)
    again = policy.evaluate(b, ("logp", "entropy"))
    torch.testing.assert_close(again["logp"].flatten(), logp, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(again["entropy"].flatten(), entropy, atol=1e-12, rtol=1e-10)


def test_samples_follow_the_stated_probabilities():
    policy = MLPPolicy(BOX, spaces.Discrete(4), seed=0)
    with torch.no_grad():
        policy.actor[-1].bias.copy_(torch.tensor([0.0, 1.0, 2.0, -1.0]))
    obs = torch.zeros(40_000, 3)
    decided = policy.act(obs, rng(obs))
    frequency = torch.bincount(decided.action, minlength=4) / len(obs)
    torch.testing.assert_close(frequency, torch.tensor([0.0, 1.0, 2.0, -1.0]).softmax(0), atol=0.01, rtol=0)


def test_samples_are_those_of_torch_multinomial():
    logits = torch.randn(500, 9, generator=torch.Generator().manual_seed(1))
    logits[:, 3] = -torch.inf
    drawn = Categoricals(logits, [5, 4]).sample(BatchRng(torch.Generator().manual_seed(2), 500))
    g = torch.Generator().manual_seed(2)
    each = [torch.multinomial(x.softmax(-1), 1, generator=g) for x in logits.split([5, 4], -1)]
    assert torch.equal(drawn, torch.cat(each, -1))
    assert not (drawn[:, 0] == 3).any()


def test_evaluate_returns_only_what_is_wanted_and_reaches_every_parameter():
    policy = MLPPolicy(BOX, ACTIONS["box"])
    b = sampled(policy)
    assert set(policy.evaluate(b, ("value",))) == {"value"}
    found = policy.evaluate(b, {"logp", "entropy", "value"})
    sum(x.sum() for x in found.values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.parameters())


@pytest.mark.parametrize("kind", ACTIONS)
def test_padded_slots_may_hold_anything(kind):
    policy = MLPPolicy(BOX, ACTIONS[kind])
    mask = torch.rand(3, 7, generator=generator(5)) > 0.4
    mask[1] = False
    b = sampled(policy, mask=mask)
    poisoned = b.but(trace={k: t.clone() for k, t in b.trace.items()})
    poisoned.trace["obs"][~mask] = torch.nan
    poisoned.trace["action"][~mask] = 999
    grads = []
    for batch in (b, poisoned):
        policy.zero_grad()
        found = policy.evaluate(batch, ("logp", "entropy", "value"))
        assert all((x[~mask] == 0).all() for x in found.values())
        sum(x.sum() for x in found.values()).backward()
        grads.append([p.grad.clone() for p in policy.parameters()])
    assert all(torch.equal(x, y) for x, y in zip(*grads, strict=True))
    policy.observe(poisoned)
    assert torch.isfinite(policy.norm.mean).all()
    assert policy.norm.count == mask.sum()


def test_the_stored_gaussian_action_is_unclipped_and_the_environment_gets_one_within_its_bounds():
    space = ACTIONS["box"]
    policy = MLPPolicy(BOX, space)
    b = sampled(policy, rows=20, steps=20)
    action = b.trace["action"].flatten(0, 1)
    assert action.abs().max() > 1.5
    given_to_env = policy.env_action(action)
    assert given_to_env.dtype == space.dtype
    assert all(space.contains(a) for a in given_to_env)
    ends = policy.env_action(torch.tensor([[-1.0, 1.0], [0.0, 0.0], [7.0, -7.0]]))
    np.testing.assert_allclose(ends, [[-2, 10], [0, 5], [2, 0]])


def test_box_actions_keep_their_shape_and_are_only_clipped_where_a_bound_is_missing():
    space = spaces.Box(np.array([[0.0], [-np.inf]]), np.array([[np.inf], [np.inf]]), dtype=np.float64)
    policy = MLPPolicy(BOX, space)
    action = policy.env_action(torch.tensor([[-3.0, -3.0], [5.0, 5.0]]))
    np.testing.assert_array_equal(action, [[[0.0], [-3.0]], [[6.0], [5.0]]])
    assert action.dtype == np.float64


def test_shifted_and_multi_dimensional_discrete_actions_reach_the_environment_as_it_numbers_them():
    assert MLPPolicy(BOX, spaces.Discrete(3, start=-1)).env_action(torch.tensor([0, 2])).tolist() == [-1, 1]
    space = spaces.MultiDiscrete(np.array([[2, 3], [4, 5]]), start=np.array([[0, 1], [0, 0]]))
    action = MLPPolicy(BOX, space).env_action(torch.tensor([[1, 2, 3, 4]]))
    assert action.tolist() == [[[1, 3], [3, 4]]]
    assert space.contains(action[0])


@pytest.mark.parametrize(
    "space", [spaces.Text(3), spaces.Dict({"a": spaces.Discrete(2)}), spaces.Box(0, 9, (2,), np.int64)]
)
def test_an_unsupported_action_space_is_refused_in_one_sentence(space):
    with pytest.raises(
        UsageError, match=r"action space .* is not supported; use Discrete, MultiDiscrete, MultiBinary or a Box"
    ):
        MLPPolicy(BOX, space)


def test_an_unsupported_observation_space_is_refused_in_one_sentence():
    with pytest.raises(UsageError, match=r"observation space .* is not supported"):
        MLPPolicy(spaces.Dict({"a": BOX, "b": spaces.Sequence(BOX)}), spaces.Discrete(2))


def test_a_masked_action_has_probability_exactly_zero():
    policy = MLPPolicy(BOX, spaces.Discrete(4))
    mask = torch.tensor([True, False, True, False]).expand(5000, 4)
    obs = torch.randn(5000, 3, generator=generator())
    decided = policy.act(obs, rng(obs, 1), action_mask=mask)
    assert set(decided.action.tolist()) == {0, 2}
    every = torch.arange(4)
    b = Trajectories(
        mask=torch.ones(4, 1, dtype=torch.bool),
        trace={"obs": obs[:1].expand(4, 1, 3), "action": every[:, None], "action_mask": mask[:4, None]},
    )
    found = policy.evaluate(b, ("logp", "entropy"))
    assert found["logp"].exp()[[1, 3]].eq(0).all()
    torch.testing.assert_close(found["logp"].exp().sum(), torch.tensor(1.0))
    p = found["logp"].detach()[[0, 2], 0]
    torch.testing.assert_close(found["entropy"][0, 0].detach(), -(p.exp() * p).sum())
    (found["entropy"].sum() + found["logp"][[0, 2]].sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in policy.actor.parameters())
    assert policy.actor[-1].bias.grad[[1, 3]].eq(0).all()
    greedy = policy.act(obs, rng(obs), greedy=True, action_mask=~mask)
    assert set(greedy.action.tolist()) <= {1, 3}


def test_a_row_whose_actions_are_all_masked_is_named_unless_it_is_padding():
    policy = MLPPolicy(BOX, spaces.Discrete(2))
    mask = torch.tensor([[True, True], [False, False]])
    with pytest.raises(RunError, match="forbids every action in row 1"):
        policy.act(torch.zeros(2, 3), rng(torch.zeros(2, 3)), action_mask=mask)
    trace = {"obs": torch.zeros(2, 1, 3), "action": torch.zeros(2, 1, dtype=torch.long), "action_mask": mask[:, None]}
    with pytest.raises(RunError, match="row 1"):
        policy.evaluate(Trajectories(mask=torch.ones(2, 1), trace=trace), ("logp",))
    padded = Trajectories(mask=torch.tensor([[1.0], [0.0]]), trace=trace)
    assert torch.isfinite(policy.evaluate(padded, ("logp", "entropy"))["logp"]).all()


def test_nested_observations_are_flattened_by_name():
    inner = OrderedDict(speed=spaces.Box(-1, 1, (2,)), gear=spaces.Discrete(3, start=1))
    space = spaces.Dict(
        OrderedDict(
            z=spaces.Dict(inner), b=spaces.Tuple([spaces.MultiBinary(2), spaces.MultiDiscrete([2, 2])]), action_mask=BOX
        )
    )
    policy = MLPPolicy(space, spaces.Discrete(3))
    value = {
        "action_mask": np.ones(3, np.int8),
        "z": {"speed": np.array([0.5, -0.5], np.float32), "gear": np.int64(3)},
        "b": (np.array([1, 0], np.int8), np.array([0, 1])),
    }
    vector = policy.encode(value)
    numbers = policy.encode.expand(torch.from_numpy(vector))
    assert numbers.tolist() == [1, 0, 1, 0, 0, 1, 0, 0, 1, 0.5, -0.5]
    shuffled = {name: value[name] for name in ("b", "action_mask", "z")}
    np.testing.assert_array_equal(policy.encode(shuffled), vector)
    assert policy.boxed.tolist() == [False] * 9 + [True] * 2


def test_encoding_copies_so_that_a_simulator_may_reuse_its_buffer():
    policy = MLPPolicy(BOX, spaces.Discrete(2))
    buffer = np.ones(3, np.float32)
    vector = policy.encode(buffer)
    buffer[:] = 7
    assert vector.tolist() == [1, 1, 1]


def test_statistics_move_only_in_observe_and_travel_with_the_state():
    policy = MLPPolicy(BOX, spaces.Discrete(2), seed=0)
    b = sampled(policy)
    before = policy.evaluate(b, ("logp",))["logp"]
    policy.act(b.trace["obs"].flatten(0, 1), rng(b.trace["obs"].flatten(0, 1)))
    assert torch.equal(policy.evaluate(b, ("logp",))["logp"], before)
    policy.observe(b)
    after = policy.evaluate(b, ("logp",))["logp"]
    assert not torch.equal(after, before)
    twin = MLPPolicy(BOX, spaces.Discrete(2), seed=1)
    twin.load_state_dict(policy.state_dict())
    assert torch.equal(twin.evaluate(b, ("logp",))["logp"], after)


def test_numbers_are_normalized_and_choices_are_not():
    policy = MLPPolicy(spaces.Tuple([spaces.Box(-9, 9, (1,)), spaces.Discrete(2)]), spaces.Discrete(2))
    obs = torch.tensor([[1.0, 1.0, 0.0], [3.0, 1.0, 0.0], [5.0, 0.0, 1.0]])
    policy.observe(Trajectories(mask=torch.ones(1, 3), trace={"obs": obs[None]}))
    features = policy.features(obs)
    assert torch.equal(features[:, 1:], obs[:, 1:])
    torch.testing.assert_close(features[:, 0], torch.tensor([-(1.5**0.5), 0, 1.5**0.5]))


def test_normalization_can_be_switched_off():
    policy = MLPPolicy(BOX, spaces.Discrete(2), normalize=False)
    b = sampled(policy)
    before = policy.evaluate(b, ("logp",))["logp"]
    policy.observe(b)
    assert torch.equal(policy.evaluate(b, ("logp",))["logp"], before)


def test_a_policy_without_value_head_says_so():
    policy = MLPPolicy(BOX, spaces.Discrete(2), value=False)
    assert policy.act(torch.zeros(2, 3), rng(torch.zeros(2, 3))).value is None
    assert policy.value_of(torch.zeros(2, 3)) is None
    b = Trajectories(mask=torch.ones(1, 1), trace={"obs": torch.zeros(1, 1, 3), "action": torch.zeros(1, 1).long()})
    with pytest.raises(UsageError, match="no value head"):
        policy.evaluate(b, ("value",))


def test_the_seed_decides_the_weights_and_the_global_stream_is_left_alone():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    one, two, other = (MLPPolicy(BOX, spaces.Discrete(2), seed=s).state_dict() for s in (5, 5, 6))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not torch.equal(one["actor.0.weight"], other["actor.0.weight"])
    torch.testing.assert_close(one["actor.2.weight"] @ one["actor.2.weight"].T, 2 * torch.eye(64), atol=1e-5, rtol=0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=6), st.integers(0, 1000))
def test_merged_statistics_equal_those_of_all_samples(sizes, seed):
    data = np.random.default_rng(seed).normal(1e4, 0.5, (sum(sizes), 2))
    norm = RunningNorm(2)
    for part in np.split(data, np.cumsum(sizes)[:-1]):
        norm.update(torch.from_numpy(part))
    assert norm.count == len(data)
    if len(data):
        np.testing.assert_allclose(norm.mean, data.mean(0), rtol=1e-12)
        np.testing.assert_allclose(norm.var, data.var(0), rtol=1e-6, atol=1e-9)
        assert norm(torch.from_numpy(data)).abs().max() <= 10


@pytest.mark.parametrize("kind", ACTIONS)
def test_a_policy_frozen_for_a_rollout_decides_the_same_and_thaws_with_its_weights(kind):
    policy = MLPPolicy(BOX, ACTIONS[kind], seed=4)
    policy.observe(sampled(policy, seed=5))
    obs = torch.randn(40, 3, generator=generator(6))
    live = policy.act(obs, rng(obs, 7))
    with policy.frozen_for_rollout():
        frozen = policy.act(obs, rng(obs, 7))
    torch.testing.assert_close(frozen.action, live.action, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(frozen.logp, live.logp, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        policy.actor[-1].bias += 1.0
    later = policy.act(obs, rng(obs, 7))
    with policy.frozen_for_rollout():
        torch.testing.assert_close(policy.act(obs, rng(obs, 7)).logp, later.logp, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "space", [spaces.Discrete(3), spaces.MultiDiscrete([2, 4]), spaces.Box(-2, 2, (2,), np.float32)]
)
def test_decisions_as_a_function_of_tensors_are_those_of_act(space):
    policy = MLPPolicy(BOX, space, seed=3)
    policy.observe(Trajectories(mask=torch.ones(50, 1), trace={"obs": 3 * torch.randn(50, 1, 3) + 1}))
    obs = torch.randn(40, 3)
    acted = policy.act(obs, rng(obs), valued=False)
    action, logp = policy.act_fn(obs, policy.action_noise(rng(obs)), *policy.act_params())
    torch.testing.assert_close(action.squeeze(-1) if policy.scalar else action, acted.action)
    torch.testing.assert_close(logp, acted.logp)
    others = [torch.rand_like(x) if x.is_floating_point() else x for x in policy.act_params()]
    assert not torch.allclose(policy.act_fn(obs, policy.action_noise(rng(obs)), *others)[1], acted.logp)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_decisions_are_those_of_act():
    policy = MLPPolicy(BOX, spaces.Discrete(3), seed=3)
    obs = torch.randn(5, 3)
    plain = policy.act(obs, rng(obs), valued=False)
    policy.compile_rollouts()
    with policy.frozen_for_rollout():
        fast = policy.act(obs, rng(obs), valued=False)
    assert torch.equal(fast.action, plain.action)
    torch.testing.assert_close(fast.logp, plain.logp)
