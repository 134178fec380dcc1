"""Tensor environments: step by step as Gymnasium's own, rows and credit by hand, resume, errors."""

import math
import shutil
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch

from anypo import tasks
from anypo.errors import UsageError
from anypo.parts.credit import Gae, NStep, Returns
from anypo.policies.control.actor_critic import ActorCritic
from anypo.policies.control.distributions import Categoricals
from anypo.policies.control.mlp import MLPPolicy
from anypo.policies.generative.flow import FlowPolicy
from anypo.rng import keyed
from anypo.tasks.control.tensor import ENVIRONMENTS, Tensors
from anypo.tasks.control.tensor.play import stride_fn
from anypo.types import Request, Trajectories


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def going_on(horizon):
    return [Request(None, horizon=horizon)]


def mlp(task, seed=0, **options):
    return MLPPolicy(task.observation_space, task.action_space, seed=seed, **options)


RANGES = {
    "CartPole-v1": [2.6, 3, 0.25, 3],
    "Pendulum-v1": [20, 8],
    "Acrobot-v1": [math.pi, math.pi, 12, 28],
    "MountainCarContinuous-v0": [1.2, 0.07],
}


@pytest.mark.parametrize("name", RANGES)
def test_every_step_is_that_of_gymnasium(name):
    """One step in float64 from random states, most of them inside the bounds, with actions beyond the bounds too."""
    n, g = 400, generator()
    theirs = gymnasium.make(name, disable_env_checker=True)
    mine = ENVIRONMENTS[name]()
    assert mine.observation_space == theirs.observation_space
    assert mine.action_space == theirs.action_space
    assert mine.limit == theirs.spec.max_episode_steps
    state = torch.tensor(RANGES[name], dtype=torch.float64)[:, None] * (
        2 * torch.rand(len(RANGES[name]), n, generator=g) - 1
    )
    if name.startswith("Mountain"):
        state[0] = state[0].clamp(max=0.6)
    if hasattr(mine.action_space, "n"):
        action = torch.randint(int(mine.action_space.n), (n,), generator=g)
    else:
        action = 3 * torch.randn(n, 1, generator=g, dtype=torch.float64)
    clock = torch.zeros(1, n, dtype=torch.float64)
    after, reward, terminated, truncated = mine.step(torch.cat([state, clock]), action)
    seen = mine.observe(after)
    assert not truncated.any()
    assert after.dtype == reward.dtype == torch.float64
    theirs.reset(seed=0)
    env = theirs.unwrapped
    single = name.startswith("Mountain")  # which rounds its state to float32 after every step
    for i in range(n):
        env.state = state[:, i].numpy().copy()
        env.steps_beyond_terminated = None
        obs, paid, over, _, _ = env.step(action[i].numpy() if action.ndim == 2 else int(action[i]))
        np.testing.assert_allclose(
            after[:-1, i].numpy(), env.state, rtol=1e-7 if single else 1e-12, atol=1e-8 if single else 1e-11
        )
        np.testing.assert_allclose(seen[i].numpy(), obs, rtol=1e-6, atol=1e-6)
        assert float(reward[i]) == pytest.approx(float(paid), rel=1e-12, abs=1e-12)
        assert bool(terminated[i]) == over
    assert terminated.any() == (name != "Pendulum-v1")
    assert not terminated.all()


@pytest.mark.parametrize("name", RANGES)
def test_starts_have_the_range_of_gymnasium(name):
    mine, theirs = ENVIRONMENTS[name](), gymnasium.make(name).unwrapped
    state = mine.reset(generator(), 2000)
    found = []
    for seed in range(200):
        theirs.reset(seed=seed)
        found.append(np.array(theirs.state, np.float64))
    found = np.array(found)
    assert (state[-1] == 0).all()
    np.testing.assert_allclose(state[:-1].amin(1), found.min(0), atol=0.1 * np.ptp(found, 0).max())
    np.testing.assert_allclose(state[:-1].amax(1), found.max(0), atol=0.1 * np.ptp(found, 0).max())
    np.testing.assert_allclose(state[:-1].std(1), found.std(0), rtol=0.2, atol=1e-9)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_observations_stay_in_their_space_and_the_clock_truncates(name):
    env, g = ENVIRONMENTS[name](), generator()
    state = env.reset(g, 50)
    for t in range(1, env.limit + 1):
        action = torch.from_numpy(np.stack([env.action_space.sample() for _ in range(50)]))
        state, reward, terminated, truncated = env.step(state, action)
        assert (truncated == (state[-1] == env.limit)).all()
        assert state.dtype == torch.float32
        assert reward.isfinite().all()
        over = terminated | truncated
        obs = env.observe(state)
        assert obs.shape == (50, *env.observation_space.shape)
        assert all(x in env.observation_space for x in obs[~over].numpy())
        if t < env.limit:
            assert not truncated[state[-1] < t].any()
            state[:, over] = env.reset(g, int(over.sum()))
    assert (state[-1] == env.limit).any() or name in ("CartPole-v1", "GridWorld", "PointMass")


def test_a_point_mass_by_hand():
    env, g = ENVIRONMENTS["PointMass"](), np.random.default_rng(0)
    state = env.reset(generator(), 200)
    state[:2] = torch.from_numpy(g.uniform(-1, 1, (2, 200)))
    state[2:4] = torch.from_numpy(g.uniform(-1, 1, (2, 200)))
    state = state.double()
    action = torch.from_numpy(g.normal(0, 1, (200, 2)))
    after, reward, terminated, _ = env.step(state, action)
    assert {tuple(np.round(x, 1)) for x in state[4:6].T.tolist()} == {(a, b) for a in (0.8, -0.8) for b in (0.8, -0.8)}
    assert terminated.any()
    for i in range(200):
        x, v, goal = (state[k : k + 2, i].numpy() for k in (0, 2, 4))
        v = 0.9 * v + 0.1 * np.clip(action[i].numpy(), -1, 1)
        x = np.clip(x + 0.1 * v, -1, 1)
        distance = math.dist(x, goal)
        np.testing.assert_allclose(after[:, i], [*x, *v, *goal, 1], atol=1e-12)
        assert float(reward[i]) == pytest.approx((distance < 0.1) - 0.1 * distance)
        assert bool(terminated[i]) == (distance < 0.1)


def test_a_grid_by_hand():
    plan = [
        "....#....",
        "....#....",
        "....#....",
        "....#....",
        ".........",
        "....#....",
        "....#....",
        "....#....",
        "....#....",
    ]
    env = ENVIRONMENTS["GridWorld"]()
    cells = [(x, y) for y in range(9) for x in range(9) if plan[y][x] == "."]
    drawn = env.reset(generator(), 4000)
    assert (
        {tuple(map(int, x)) for x in drawn[:2].T.tolist()}
        == {tuple(map(int, x)) for x in drawn[2:4].T.tolist()}
        == set(cells)
    )
    assert (drawn[:2] != drawn[2:4]).any(0).all()
    for x, y in cells:
        for action, (dx, dy) in enumerate([(1, 0), (-1, 0), (0, 1), (0, -1)]):
            goal = cells[(x + 7 * y + action) % len(cells)]
            state = torch.tensor([[x], [y], [goal[0]], [goal[1]], [3]], dtype=torch.float32)
            after, reward, terminated, truncated = env.step(state, torch.tensor([action]))
            to = (x + dx, y + dy) if (x + dx, y + dy) in cells else (x, y)
            assert after[:, 0].tolist() == [*to, *goal, 4]
            assert terminated.tolist() == [to == goal]
            assert float(reward) == pytest.approx((to == goal) - 0.02)
            assert not truncated


class Tilt(ActorCritic):
    """Pushes the cart the way the pole leans; values a state at 10 + the pole's angle."""

    heads = ("value",)
    env_action = staticmethod(lambda action: action.numpy())

    def distribution(self, features, mask):
        right = features[:, 2] > 0
        return Categoricals(torch.stack([~right, right], -1) * 1e9, [2])

    def values(self, features):
        return 10 + features[:, 2:3]


def by_hand(task, steps, seed):
    """The same windows by a loop over environments: [(obs, actions, rewards, done, last observation)] in the order of rows, and the
    states reached. Every step draws a start for every environment, as in the task."""
    env, g = task.env, torch.Generator().manual_seed(int(keyed(seed, 0, 1, 0)[0]))  # of starts, the first block
    states = [task.state[:, i : i + 1].clone() for i in range(task.envs)]
    rows = [[[[], [], [], False, None]] for _ in states]
    for t in range(steps):
        over = []
        for i in range(len(states)):
            row = rows[i][-1]
            obs = env.observe(states[i])
            action = (obs[:, 2] > 0).long()
            row[0].append(obs[0].tolist())
            row[1].append(int(action))
            states[i], reward, terminated, truncated = env.step(states[i], action)
            row[2].append(float(reward))
            row[3], row[4] = bool(terminated), env.observe(states[i])[0].tolist()
            if terminated or truncated:
                over.append(i)
        fresh = env.reset(g, len(states))
        for i in over:
            states[i] = fresh[:, i : i + 1].clone()
            if t < steps - 1:
                rows[i].append([[], [], [], False, None])
    return [tuple(row) for pieces in rows for row in pieces], torch.cat(states, 1)


@pytest.mark.parametrize("steps", [1, 30, 90])
def test_rows_are_the_pieces_of_episodes(steps):
    task = Tensors("CartPole-v1", envs=5, scale_reward=False)
    task.env.limit = 47  # so that some episodes are cut by time
    for seed in range(3):
        expected, states = by_hand(task, steps, seed)
        b, metrics = task.rollout(Tilt(), going_on(steps), seed)
        b.check()
        assert torch.equal(task.state, states)
        assert b.lengths.tolist() == [len(row[0]) for row in expected]
        assert torch.equal(b.mask, torch.arange(b.shape[1]) < b.lengths[:, None])
        assert b.shape[1] == max(len(row[0]) for row in expected)
        for n, (obs, action, reward, done, last) in enumerate(expected):
            own = b.mask[n]
            assert b.trace["obs"][n, own].tolist() == obs
            assert b.trace["action"][n, own].tolist() == action
            assert b.reward[n, own].tolist() == reward
            assert b.value[n, own].tolist() == [pytest.approx(10 + o[2]) for o in obs]
            assert bool(b.done[n]) == done
            assert b.extra["last"][n].tolist() == last
            assert float(b.bootstrap[n]) == pytest.approx(0 if done else 10 + last[2])
        assert (b.trace["obs"][~b.mask] == 0).all()
        assert metrics["env_steps"] == 5 * steps == b.mask.sum()
    assert steps < 90 or (b.done.any() and (b.lengths == 47).any())


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "PointMass"])
@pytest.mark.parametrize("steps", [3, 19, 60])
def test_several_steps_as_one_function_are_the_same_steps(name, steps):
    """What is compiled where machine code is wanted, here without the compiler."""
    found = []
    for several in (False, True):
        task = Tensors(name, envs=7, chunk=4)
        task.env.limit = 25
        policy = mlp(task)
        if several:
            task.compile_rollouts()
            task.compiled[policy] = partial(stride_fn, task, policy)
        for seed in range(2):
            batch, metrics = task.rollout(policy, going_on(steps), seed)
            found.append((batch.to_dict(), metrics, task.state))
    for (plain, told, state), (fast, also, reached) in zip(found[:2], found[2:], strict=True):
        assert told == pytest.approx(also, rel=1e-6)
        torch.testing.assert_close(reached, state, rtol=1e-5, atol=1e-5)
        assert plain.keys() == fast.keys()
        for field, x in plain.items():
            torch.testing.assert_close(fast[field], x, rtol=1e-4, atol=1e-5, msg=lambda m, field=field: f"{field}: {m}")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_code_makes_the_same_windows():
    found = []
    for compiles in (False, True):
        task = Tensors("CartPole-v1", envs=5)
        policy = mlp(task)
        if compiles:
            task.compile_rollouts()
        found.append(task.rollout(policy, going_on(11), 0)[0].to_dict())
    for field, x in found[0].items():
        torch.testing.assert_close(found[1][field], x, rtol=1e-4, atol=1e-5, msg=lambda m, field=field: f"{field}: {m}")


def test_a_policy_that_decides_in_several_passes_acts_as_before_where_the_run_compiles():
    windows = []
    for compiles in (False, True):
        task = Tensors("Pendulum-v1", envs=3)
        if compiles:
            task.compile_rollouts()
        policy = FlowPolicy(task.observation_space, task.action_space, value=True, seed=0)
        windows.append(task.rollout(policy, going_on(5), 0)[0].to_dict())
    assert windows[0]["reward"].shape == (3, 5 * policy.steps)
    assert all(torch.equal(windows[1][field], x) for field, x in windows[0].items())


def test_returns_and_lengths_of_episodes_run_over_the_ends_of_windows():
    found = []
    for steps in (7, 210):
        task, starts = Tensors("CartPole-v1", envs=1), generator()
        # a window draws starts of its own; here both runs of windows draw the same ones
        task.env.reset = lambda _, n, env=type(task.env)(), starts=starts: env.reset(starts, n)
        returns, lengths = [], []
        for _ in range(210 // steps):
            _, metrics = task.rollout(Tilt(), going_on(steps), 0)
            returns += [metrics["train/return"]] if "train/return" in metrics else []
            lengths += [metrics["train/length"]] if "train/length" in metrics else []
        assert returns == lengths
        found.append(returns)
    assert np.mean(found[0]) == pytest.approx(found[1][0])


@pytest.mark.parametrize("part", [Gae(), NStep(4), Returns(0.9)])
def test_credit_is_that_of_every_row_alone(part):
    task = Tensors("CartPole-v1", envs=6)
    b, _ = task.rollout(mlp(task), going_on(60), 0)
    assert b.shape[0] > 12
    together = part(b).advantage
    for n in range(b.shape[0]):
        length = int(b.lengths[n])
        alone = b.rows(torch.tensor([n]))
        alone = Trajectories(
            value=alone.value[:, :length],
            reward=alone.reward[:, :length],
            bootstrap=alone.bootstrap,
            done=alone.done,
        )
        torch.testing.assert_close(part(alone).advantage, together[n : n + 1, :length])


def test_chunks_see_the_same_policy_and_hold_every_environment():
    whole, pieces = (Tensors("Pendulum-v1", envs=7, chunk=chunk, scale_reward=False) for chunk in (100, 3))
    policy = mlp(whole)
    policy.distribution = lambda features, mask: Mode(MLPPolicy.distribution(policy, features, mask))
    for _ in range(2):
        a, b = (task.rollout(policy, going_on(90), 0)[0] for task in (whole, pieces))
        assert a.shape == b.shape == (7, 90)
        for name in ("reward", "value", "bootstrap", "logp_old"):
            torch.testing.assert_close(getattr(a, name), getattr(b, name), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(a.trace["obs"], b.trace["obs"], atol=1e-4, rtol=1e-4)


class Mode:
    """A distribution that is sampled at its mode."""

    def __init__(self, of):
        self.of = of

    def sample(self, rng):
        return self.of.mode()

    def __getattr__(self, name):
        return getattr(self.of, name)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_given_starts_share_states_and_an_unchanged_policy_gives_ratio_one(name):
    task = Tensors(name, envs=4)
    policy = mlp(task)
    policy.observe(task.rollout(policy, going_on(20), 0)[0])
    before = task.state_dict()
    b, metrics = task.rollout(policy, [Request(3, 4, horizon=25), Request(5, 2, horizon=10)], 0)
    assert torch.equal(task.state_dict()["state"], before["state"])
    assert b.check().group.tolist() == [0, 0, 0, 0, 1, 1]
    first = b.trace["obs"][:, 0]
    assert torch.equal(first[0], first[3])
    assert torch.equal(first[4], first[5])
    assert not torch.equal(first[0], first[4])
    assert (b.lengths[:4] <= 25).all()
    assert (b.lengths[4:] <= 10).all()
    assert metrics["env_steps"] == b.mask.sum()
    assert ((b.bootstrap == 0) == b.done).all()
    again = policy.evaluate(b, ("logp", "value"))
    torch.testing.assert_close(again["logp"], b.logp_old, atol=1e-5, rtol=0)
    torch.testing.assert_close(again["value"], b.value, atol=1e-5, rtol=0)


def test_an_action_of_several_decisions_is_several_steps_of_a_row():
    task = Tensors("PointMass", envs=3, scale_reward=False)
    policy = FlowPolicy(task.observation_space, task.action_space, value=True)
    b, metrics = task.rollout(policy, going_on(12), 0)
    draws = b.check().shape[1] // 12
    assert draws > 1
    assert metrics["env_steps"] == 36 == b.mask.sum() / draws
    assert b.segment[0].tolist() == [t for t in range(12) for _ in range(draws)]
    assert (b.reward.unflatten(1, (12, draws))[:, :, :-1] == 0).all()
    assert (b.reward.unflatten(1, (12, draws))[:, :, -1] < 0).all()


def test_rewards_are_scaled_so_that_discounted_returns_are_about_one():
    task, raw = Tensors("Pendulum-v1", envs=4), Tensors("Pendulum-v1", envs=4, scale_reward=False)
    b, metrics = task.rollout(mlp(task), going_on(200), 0)
    c, same = raw.rollout(mlp(raw), going_on(200), 0)
    torch.testing.assert_close(b.reward, 0.01 * c.reward / c.reward.square().mean().sqrt())
    assert metrics == same
    assert metrics["train/return"] == pytest.approx(float(c.reward.sum(1).mean()), rel=1e-5)


def test_evaluation_uses_the_same_held_out_starts_and_leaves_training_alone():
    task, twin = Tensors("CartPole-v1", envs=3), Tensors("CartPole-v1", envs=3)
    policy, state = mlp(task), 4
    first = task.evaluate(policy, state)
    assert first == task.evaluate(policy, state)
    assert set(first) == {"return", "return_std", "length"}
    assert first["return"] == first["length"]
    assert task.evaluate(policy, state, episodes=3) != first
    assert Tensors("CartPole-v1", seed=5, envs=1).evaluate(policy, state) == first
    mine, other = (t.rollout(policy, going_on(30), 1)[0] for t in (task, twin))
    assert torch.equal(mine.trace["obs"], other.trace["obs"])


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_restored_task_goes_on_exactly_where_it_stood(name, tmp_path):
    task = Tensors(name, envs=3, seed=2)
    policy = mlp(task)
    task.rollout(policy, going_on(33), 0)
    torch.save(task.state_dict(), tmp_path / "state.pt")
    expected = [task.rollout(policy, going_on(80), i) for i in range(2)]
    restored = Tensors(name, envs=3, seed=2)
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for i, (b, metrics) in enumerate(expected):
        again, same = restored.rollout(policy, going_on(80), i)
        assert same == metrics
        assert again.to_dict().keys() == b.to_dict().keys()
        assert all(torch.equal(x, y) for x, y in zip(again.to_dict().values(), b.to_dict().values(), strict=True))


def test_mistakes_end_in_one_sentence():
    with pytest.raises(UsageError, match="did you mean 'CartPole-v1'"):
        tasks.make_task({"name": "tensor:CartPole-v2"}, 0)
    with pytest.raises(UsageError, match="tensor:NAME"):
        tasks.make_task({"name": "tensor"}, 0)
    with pytest.raises(UsageError, match="chunk"):
        tasks.make_task({"name": "tensor:PointMass", "chunks": 3}, 0)
    with pytest.raises(UsageError, match="positive"):
        Tensors("PointMass", envs=0)
    task = Tensors("PointMass", envs=2)
    with pytest.raises(UsageError, match="2 environments, the task 3"):
        Tensors("PointMass", envs=3).load_state_dict(task.state_dict())
    with pytest.raises(UsageError, match="need a horizon"):
        task.rollout(mlp(task), [Request(None)], 0)
    with pytest.raises(UsageError, match="cannot mix"):
        task.rollout(mlp(task), [Request(None, horizon=3), Request(1)], 0)


def test_recipes_name_every_setting_of_the_loop():
    task = Tensors("CartPole-v1")
    keys = {"lr", "requests", "samples", "horizon", "epochs", "minibatch", "steps"}
    for critic, whole, grouped, replays in [(1, 0, 0, 0), (0, 1, 1, 0), (0, 1, 0, 0), (0, 0, 0, 1)]:
        recipe = task.recipe({"critic": critic, "whole": whole, "grouped": grouped, "replays": replays})
        assert keys <= recipe.keys()
    assert recipe["requests"] * recipe["horizon"] == 64


def test_replaying_methods_learn_from_the_rewards_as_they_are_unless_requested_otherwise():
    for scale_reward, scaled in [(None, (False, True)), (True, (True, True)), (False, (False, False))]:
        task = Tensors("PointMass", envs=2, scale_reward=scale_reward)
        for traits, expected in zip(({"replays": True}, {"critic": True}), scaled, strict=True):
            task.configure(task.recipe(traits))
            assert (task.scale is not None) == expected
