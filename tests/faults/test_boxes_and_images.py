"""Boxes of actions with missing, very wide or integer bounds, and images kept as bytes."""

import gymnasium
import numpy as np
import pytest
import torch
from entries import entries
from gymnasium import spaces

from anypo.config import from_dict
from anypo.errors import UsageError
from anypo.loops.learn import learn
from anypo.policies.control.mlp import MLPPolicy
from anypo.policies.control.observations import Flat
from anypo.policies.control.off_policy import Deterministic, Experts, GaussianActor, Greedy, SquashedGaussian
from anypo.policies.control.spaces import from_space, to_space
from anypo.policies.generative.diffusion import DiffusionPolicy
from anypo.policies.generative.flow import FlowPolicy
from anypo.report.plan import estimate_memory, estimate_store, plan_lines
from anypo.runs.build import build
from anypo.tasks.control.gym import Gym
from anypo.types import Request

SEEN = spaces.Box(-1.0, 1.0, (2,), np.float32)


class Acting(gymnasium.Env):
    """Takes actions of the space `actions`, the best of which is 7; observes samples of `observes`."""

    taken = ()

    def __init__(self, actions=None, observes=None):
        self.action_space = actions or spaces.Discrete(3)
        self.observation_space = observes or SEEN

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        Acting.taken += (float(np.ravel(action)[0]),)
        self.t += 1
        return self.observation_space.sample(), -abs(float(np.ravel(action)[0]) - 7), False, self.t >= 8, {}


gymnasium.register("Acting-v0", entry_point=Acting)
gymnasium.register("Far-v0", entry_point=Acting, kwargs={"actions": spaces.Box(5.0, np.inf, (1,), np.float32)})


def run_of(method, steps=100, env="Acting-v0", **values):
    task = {"name": f"gym:{env}", "eval_episodes": 1}
    return build(from_dict({"method": method, "task": task, "steps": steps, "policy": {"hidden": [8]}, **values}))


def grid(space):
    action = torch.linspace(-1, 1, 5)[:, None].repeat(1, int(np.prod(space.shape)))
    return to_space(space, action).reshape(5, -1), action


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("low", "high", "first", "last"),
    [
        (5, np.inf, 5, 7),
        (-np.inf, -5, -7, -5),
        ("-max", "max", -1, 1),
        (-np.inf, np.inf, -1, 1),
        (0, "max", 0, 2),
        (-2, 2, -2, 2),
    ],
)
def test_a_box_without_usable_bounds_is_mapped_onto_numbers_within_it(low, high, first, last, dtype):
    most = {"max": np.finfo(dtype).max, "-max": -np.finfo(dtype).max}
    space = spaces.Box(most.get(low, low), most.get(high, high), (1,), dtype)
    taken, action = grid(space)
    np.testing.assert_allclose(taken[:, 0], np.linspace(first, last, 5), rtol=1e-6)
    assert all(space.contains(a.reshape(space.shape)) for a in taken)
    torch.testing.assert_close(from_space(space, taken), action, atol=1e-6, rtol=0)


def test_components_with_and_without_bounds_are_mapped_one_by_one():
    space = spaces.Box(np.array([0, -np.inf, 3, 1], np.float32), np.array([10, np.inf, np.inf, 1], np.float32))
    taken, action = grid(space)
    assert taken[[0, -1]].tolist() == [[0, -1, 3, 1], [10, 1, 5, 1]]
    back = from_space(space, taken)
    torch.testing.assert_close(back[:, :3], action[:, :3], atol=1e-6, rtol=0)
    assert (back[:, 3] == 0).all()  # a component without width


@pytest.mark.parametrize("method", entries(["ppo", "sac", "td3"]))
def test_actions_of_a_one_sided_box_vary(method):
    Acting.taken = ()
    replay = {"collect": {"first": 20}, "store": {"batch": 8, "start": 20, "ratio": 0.2}}
    values = {"step": {"epochs": 1, "minibatch": 512}} if method == "ppo" else replay
    run = run_of(method, env="Far-v0", **values)
    learn(run)
    assert min(Acting.taken) >= 5
    assert len(set(Acting.taken)) > 50
    notes = [text for label, text in plan_lines(run) if label == "note"]
    assert any("no bounds on both sides in component 0; [-1, 1] is mapped onto [5, 7]" in text for text in notes)


@pytest.mark.parametrize(
    "cls", [MLPPolicy, SquashedGaussian, Deterministic, GaussianActor, Experts, FlowPolicy, DiffusionPolicy]
)
@pytest.mark.parametrize("dtype", [np.int64, np.uint8])
def test_boxes_of_integers_are_refused_by_every_policy(cls, dtype):
    with pytest.raises(
        UsageError, match=r"the action space Box\(0, 3, .* is not supported; use Discrete, .* a Box of floats"
    ):
        cls(SEEN, spaces.Box(0, 3, (1,), dtype))


@pytest.mark.parametrize(
    ("cls", "space", "name"),
    [
        (SquashedGaussian, spaces.Discrete(2), "squashed"),
        (Deterministic, spaces.Discrete(2), "deterministic"),
        (Greedy, spaces.Box(-1, 1), "greedy"),
        (Experts, spaces.MultiBinary(2), "experts"),
        (GaussianActor, spaces.MultiDiscrete([2, 2]), "gaussian"),
        (FlowPolicy, spaces.Discrete(2), "flow"),
        (DiffusionPolicy, spaces.Discrete(2), "diffusion"),
    ],
)
def test_a_policy_that_cannot_act_is_named_as_on_the_command_line(cls, space, name):
    with pytest.raises(UsageError, match=f"the policy {name} "):
        cls(SEEN, space)


# ------------------------------------------------------------------------------------------------ images

PIXELS = spaces.Box(0, 255, (36, 36, 1), np.uint8)
OBSERVED = {
    "bytes": (PIXELS, 1296),
    "small": (spaces.Box(-100, 100, (5,), np.int8), 5),
    "half": (spaces.Box(-1, 1, (6,), np.float16), 12),
    "double": (spaces.Box(-1, 1, (6,), np.float64), 24),
    "whole": (spaces.Box(-9, 9, (6,), np.int64), 24),
    "choice": (spaces.Discrete(500, start=2), 2),
    "choices": (spaces.MultiDiscrete([3, 200], start=[1, 0]), 2),
    "switches": (spaces.MultiBinary(4), 4),
    "mixed": (
        spaces.Dict({"image": PIXELS, "speed": spaces.Box(-1, 1, (2,)), "gear": spaces.Discrete(3)}),
        1296 + 8 + 1,
    ),
    "tuple": (spaces.Tuple((spaces.Discrete(3), spaces.Box(0, 255, (4,), np.uint8))), 5),
}


@pytest.mark.parametrize("name", OBSERVED)
def test_observations_are_stored_in_few_bytes_and_expanded_exactly(name):
    space, size = OBSERVED[name]
    space.seed(0)
    samples = [space.sample() for _ in range(7)]
    encode = Flat(space)
    stored = torch.from_numpy(encode.rows(samples))
    assert stored.element_size() * stored.shape[1] == encode.nbytes == size
    numbers = encode.expand(stored)
    expected = np.stack([spaces.flatten(encode.space, s) for s in samples]).astype(np.float32)
    assert torch.equal(numbers, torch.from_numpy(expected))
    assert torch.equal(encode.expand(numbers), numbers)
    assert torch.equal(encode.expand(stored[:, None])[:, 0], numbers)
    back = encode.restore(stored)
    for i, sample in enumerate(samples):
        one = spaces.flatten(encode.space, sample)
        row = gymnasium.vector.utils.iterate(gymnasium.vector.utils.batch_space(encode.space, 7), back)
        np.testing.assert_allclose(spaces.flatten(encode.space, list(row)[i]), one, rtol=1e-6)


gymnasium.register("Pixels-v0", entry_point=Acting, kwargs={"observes": PIXELS})
gymnasium.register("MixedPixels-v0", entry_point=Acting, kwargs={"observes": OBSERVED["mixed"][0]})
gymnasium.register("Choices-v0", entry_point=Acting, kwargs={"observes": OBSERVED["choice"][0]})


@pytest.mark.entry("dqn")
@pytest.mark.parametrize(
    ("env", "size"), [("Pixels-v0", 2 * 1296), ("MixedPixels-v0", 2 * 1305), ("Choices-v0", 2 * 2)]
)
def test_replayed_transitions_take_the_bytes_of_their_space_and_train(env, size):
    run = run_of("dqn", env=env, collect={"first": 20}, store={"batch": 8, "start": 20, "ratio": 0.2})
    record = learn(run)
    assert record["skipped"] == 0
    kept = run.store.kept
    assert sum(x.element_size() * x[0].numel() for x in kept.values()) == size + 8 + 8
    assert estimate_store(run) == sum(x.element_size() * x.numel() for x in kept.values())
    drawn = run.store.draw(torch.Generator().manual_seed(0))
    assert drawn.trace["obs"].dtype == kept["obs"].dtype


@pytest.mark.entry("dqn")
def test_the_plan_counts_the_store_as_full_as_the_run_makes_it():
    small, large = (run_of("dqn", steps=steps, env="Pixels-v0") for steps in (1024, 10**6))
    assert estimate_store(large) == 100_000 * 2608
    assert estimate_memory(large) - estimate_memory(small) == (100_000 - 1024) * 2608


@pytest.mark.entry("ppo")
def test_rollouts_of_images_are_bytes_too():
    task = Gym("Pixels-v0", envs=2)
    policy = MLPPolicy(task.observation_space, task.action_space, hidden=(8,))
    rows, _ = task.rollout(policy, [Request(None, horizon=10)], 0)
    assert rows.trace["obs"].dtype == rows.extra["last"].dtype == torch.uint8
    torch.testing.assert_close(policy.evaluate(rows, {"logp"})["logp"], rows.logp_old, atol=1e-6, rtol=0)
    policy.observe(rows)
    assert not len(policy.norm.mean)  # pixels are divided by 255 instead


def test_observations_that_their_type_cannot_hold_are_refused():
    class Scaled(Acting):
        def reset(self, *, seed=None, options=None):
            return super().reset(seed=seed)[0] / 255, {}

    gymnasium.register("ScaledPixels-v0", entry_point=Scaled, kwargs={"observes": PIXELS})
    with pytest.raises(UsageError, match="reset returned an observation that holds numbers that uint8 cannot hold"):
        Gym("ScaledPixels-v0", envs=1).copies[0].reset(0)
