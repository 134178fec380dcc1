"""Gymnasium environments as tasks: rows, episode ends, groups, resume, errors. A toy chain has every answer by hand."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from anypo.errors import RunError, UsageError
from anypo.policies.control.actor_critic import ActorCritic
from anypo.policies.control.distributions import Categoricals
from anypo.policies.control.mlp import MLPPolicy
from anypo.policies.tabular import SoftmaxTable
from anypo.tasks.control.gym import Gym
from anypo.types import Request


class Chain(gymnasium.Env):
    """Starts at 0 or 1; moving pays 1 + place and the chain ends at 3; observation (place, time); cut after 5 steps.

    `shared` hands out the same observation buffer every time, as some simulators do.
    """

    observation_space = spaces.Box(-10, 10, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, reward=None, noise=False, shared=False):
        self.override, self.noise, self.shared = reward, noise, shared
        self.buffer = np.zeros(2, np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.buffer[:] = self.np_random.integers(2), 0
        return self._see(), {}

    def _see(self):
        return self.buffer if self.shared else self.buffer.copy()

    def step(self, action):
        reward = 1.0 + self.buffer[0] if self.override is None else self.override
        jitter = np.random.default_rng().random() if self.noise else 0
        self.buffer += (action + jitter, 1)
        return self._see(), reward, bool(self.buffer[0] >= 3), False, {}


class Masked(gymnasium.Env):
    """Only the action named by the observation is allowed; taking another one is a failure."""

    observation_space = spaces.Dict({"only": spaces.Discrete(3), "action_mask": spaces.MultiBinary(3)})
    action_space = spaces.Discrete(3)

    def _see(self):
        self.only = int(self.np_random.integers(3))
        return {"only": self.only, "action_mask": np.eye(3, dtype=np.int8)[self.only]}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._see(), {}

    def step(self, action):
        assert action == self.only
        return self._see(), 1.0, False, False, {}


gymnasium.register("Chain-v0", Chain, max_episode_steps=5)
TAXI = max(name for name in gymnasium.registry if name.startswith("Taxi-"))
gymnasium.register("Masked-v0", Masked, max_episode_steps=4)


class Walker(ActorCritic):
    """Stays for ever where it started at 0, walks where it started at 1; values a state at 10 + its place."""

    encode = staticmethod(lambda observation: np.array(observation, np.float32))
    env_action = staticmethod(lambda action: action.numpy())

    def distribution(self, features, mask):
        walks = features[:, 0] > 0
        return Categoricals(torch.stack([~walks, walks], -1) * 1e9, [2])

    heads = ("value",)

    def values(self, features):
        return 10 + features[:, :1]


def going_on(horizon):
    return [Request(None, horizon=horizon)]


def mlp(task, seed=0, **options):
    return MLPPolicy(task.observation_space, task.action_space, seed=seed, **options)


def same(a, b):
    assert a.trace.keys() == b.trace.keys()
    for name in ("logp_old", "value", "mask", "reward", "group", "bootstrap", "done"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert all(torch.equal(a.trace[k], b.trace[k]) for k in a.trace)


def episodes_of_vector_env(mode, steps=60):
    """(start, return, length, terminated, last observation) of every finished episode, by hand from one convention."""
    envs = gymnasium.make_vec("Chain-v0", 4, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode})
    obs, _ = envs.reset(seed=3)
    found, running, fresh = set(), [(o[0], 0.0, 0) for o in obs], [False] * 4
    for _ in range(steps):
        obs, reward, terminated, truncated, info = envs.step((obs[:, 0] > 0).astype(int))
        for i in range(4):
            if fresh[i]:  # NEXT_STEP spends one step on the reset
                running[i], fresh[i] = (obs[i][0], 0.0, 0), False
                continue
            start, total, length = running[i]
            running[i] = (start, total + reward[i], length + 1)
            if terminated[i] or truncated[i]:
                last = info["final_obs"][i] if mode is AutoresetMode.SAME_STEP else obs[i]
                found.add((*map(float, running[i]), bool(terminated[i]), float(last[0])))
                running[i] = (obs[i][0], 0.0, 0)
                fresh[i] = mode is AutoresetMode.NEXT_STEP
    return found


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_episodes_equal_those_of_both_autoreset_conventions(mode, whole):
    task = Gym("Chain-v0", envs=4, scale_reward=False)
    requests = [Request(i) for i in range(30)] if whole else going_on(60)
    b, _ = task.rollout(Walker(), requests, 0)
    ended = b.done | (b.lengths == 5)
    places, total = b.trace["obs"][:, :, 0], b.reward.sum(1)
    found = {
        (places[n, 0].item(), total[n].item(), float(b.lengths[n]), bool(b.done[n]), 3.0 if b.done[n] else 0.0)
        for n in ended.nonzero()[:, 0].tolist()
    }
    assert found == episodes_of_vector_env(mode) == {(0.0, 5.0, 5.0, False, 0.0), (1.0, 5.0, 2.0, True, 3.0)}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("requests", [[Request(i) for i in range(12)], going_on(12)])
def test_a_time_limit_bootstraps_from_the_final_observation_and_a_terminal_state_does_not(requests, shared):
    task = Gym("Chain-v0", envs=4, scale_reward=False, env_kwargs={"shared": shared})
    b, _ = task.rollout(Walker(), requests, 0)
    stayed = b.trace["obs"][:, 0, 0] == 0
    assert stayed.any()
    assert b.done.any()
    assert not b.done[stayed].any()
    assert (b.bootstrap[stayed] == 10).all()
    assert (b.bootstrap[b.done] == 0).all()
    assert (b.lengths[b.done] == 2).all()


def test_a_row_cut_by_the_end_of_the_rollout_bootstraps_and_its_episode_goes_on_in_the_next():
    task = Gym("Chain-v0", envs=8, scale_reward=False)
    b, metrics = task.rollout(Walker(), going_on(1), 0)
    walked = b.trace["obs"][:, 0, 0] == 1
    assert b.shape == (8, 1)
    assert "train/return" not in metrics
    assert not b.done.any()
    torch.testing.assert_close(b.bootstrap, torch.where(walked, 12.0, 10.0))
    after, metrics = task.rollout(Walker(), going_on(1), 0)
    assert after.trace["obs"][:, 0, 1].tolist() == [1.0] * 8
    assert torch.equal(after.done, walked)
    assert metrics["train/return"] == 5
    assert metrics["train/length"] == 2


def test_rows_never_cross_episodes_and_hold_every_step_taken():
    task = Gym("Chain-v0", envs=3)
    b, metrics = task.rollout(mlp(task), going_on(50), 0)
    assert b.check().mask.sum() == 150 == metrics["env_steps"]
    clock = b.trace["obs"][:, :, 1]
    steps = torch.arange(clock.shape[1])
    assert torch.equal(torch.where(b.mask, clock - clock[:, :1], 0), torch.where(b.mask, steps, 0).float())
    assert torch.equal(b.mask, steps < b.lengths[:, None])
    assert (b.trace["obs"][~b.mask] == 0).all()
    assert b.group.tolist() == list(range(len(b.group)))


def test_metrics_are_raw_and_rewards_scaled_so_that_discounted_returns_are_about_one():
    task = Gym("Chain-v0", envs=4)
    b, metrics = task.rollout(Walker(), [Request(i) for i in range(20)], 0)
    raw = torch.where(b.mask, 1 + b.trace["obs"][:, :, 0], 0).double()
    size = raw[b.mask].square().mean().sqrt()
    torch.testing.assert_close(b.reward, (raw * 0.01 / size).float())
    assert metrics["train/return"] == pytest.approx(raw.sum(1).mean().item())
    again, _ = task.rollout(Walker(), [Request(100 + i) for i in range(20)], 0)
    assert task.scale.count == b.mask.sum() + again.mask.sum()


def test_a_group_shares_its_start_state_and_rows_stand_in_the_order_of_requests():
    task = Gym("CartPole-v1", envs=4)
    requests = [Request(7, 3), Request(2, 5), Request(7, 1)]
    b, _ = task.rollout(mlp(task), requests, 0)
    assert b.group.tolist() == [0] * 3 + [1] * 5 + [2]
    first = b.trace["obs"][:, 0]
    assert all(torch.equal(first[n], first[0 if g != 1 else 3]) for n, g in enumerate(b.group.tolist()))
    assert not torch.equal(first[0], first[3])
    assert len(set(map(tuple, b.trace["action"][:3].tolist()))) == 3


def test_a_horizon_caps_rows_and_bootstraps():
    task = Gym("CartPole-v1", envs=4)
    policy = mlp(task)
    b, _ = task.rollout(policy, [Request(i, 2, horizon=6) for i in range(5)], 0)
    assert b.shape == (10, 6)
    assert b.mask.all()
    assert (b.bootstrap != 0).all()
    without, _ = task.rollout(mlp(task, value=False), [Request(0, horizon=6)], 0)
    assert without.value is None
    assert without.bootstrap.tolist() == [0.0]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", TAXI])
@pytest.mark.parametrize("requests", [going_on(30), [Request(0, 3, horizon=30), Request(1, 1, horizon=30)]])
def test_an_unchanged_policy_gives_ratio_one_on_what_was_played(env_id, requests):
    task = Gym(env_id, envs=3)
    policy = mlp(task)
    policy.observe(task.rollout(policy, going_on(20), 0)[0])
    b, _ = task.rollout(policy, requests, 0)
    again = policy.evaluate(b, ("logp", "value"))
    torch.testing.assert_close(again["logp"], b.logp_old, atol=1e-5, rtol=0)
    torch.testing.assert_close(again["value"], b.value, atol=1e-5, rtol=0)


def test_masks_in_observations_and_in_info_are_obeyed_and_kept():
    task = Gym("Masked-v0", envs=2)
    policy = mlp(task)
    b, _ = task.rollout(policy, going_on(20), 0)
    assert len(policy.encode.boxed) == 3
    assert (b.trace["action_mask"][b.mask].sum(-1) == 1).all()
    assert (b.logp_old[b.mask] == 0).all()
    assert task.evaluate(policy, 0, episodes=3)["return"] == 4
    taxi = Gym(TAXI, envs=2)
    b, _ = taxi.rollout(SoftmaxTable(500, 6), going_on(20), 0)
    allowed = b.trace["action_mask"].gather(-1, b.trace["action"][..., None])[..., 0]
    assert allowed[b.mask].all()
    assert not b.trace["action_mask"][b.mask].all()


def test_equal_seeds_give_equal_rollouts_and_other_seeds_other_starts():
    def roll(seed):
        task = Gym("CartPole-v1", envs=2, seed=seed)
        return task.rollout(mlp(task), going_on(40), 1)[0]

    same(roll(0), roll(0))
    assert not torch.equal(roll(0).trace["obs"][:, 0], roll(1).trace["obs"][:, 0])


def test_evaluation_uses_the_same_held_out_starts_and_leaves_training_alone():
    task, twin = Gym("CartPole-v1", envs=2), Gym("CartPole-v1", envs=2)
    policy = mlp(task)
    task.rollout(policy, going_on(30), 0)
    twin.rollout(policy, going_on(30), 0)
    first = task.evaluate(policy, 4)
    assert first == task.evaluate(policy, 4)
    assert set(first) == {"return", "return_std", "length"}
    assert first["return"] == first["length"]
    assert task.evaluate(policy, 4, episodes=3) != first
    assert Gym("CartPole-v1", seed=5, envs=1).evaluate(policy, 4) == first
    same(task.rollout(policy, going_on(30), 1)[0], twin.rollout(policy, going_on(30), 1)[0])


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Hopper-v5", TAXI])
def test_a_restored_task_goes_on_exactly_where_it_stood(env_id, tmp_path):
    if env_id == "Hopper-v5":
        pytest.importorskip("mujoco")
        pytest.importorskip("imageio", reason="Gymnasium's MuJoCo environments import imageio")
    task = Gym(env_id, envs=3, seed=2)
    policy = mlp(task)
    task.rollout(policy, going_on(33), 0)
    torch.save({"task": task.state_dict(), "policy": policy.state_dict()}, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    expected = [task.rollout(policy, going_on(40), i)[0] for i in range(2)]
    restored = Gym(env_id, envs=3, seed=2)
    restored.load_state_dict(state["task"])
    loaded = mlp(restored, seed=9)
    loaded.load_state_dict(state["policy"])
    for i, b in enumerate(expected):
        same(restored.rollout(loaded, going_on(40), i)[0], b)
    assert restored.evaluate(loaded, 0, 3) == task.evaluate(policy, 0, 3)


def test_a_task_restored_between_episodes_goes_on_exactly():
    task, restored = Gym("CartPole-v1", envs=2), Gym("CartPole-v1", envs=2)
    policy = mlp(task)
    task.rollout(policy, [Request(3, 2)], 0)
    restored.load_state_dict(task.state_dict())
    same(*(t.rollout(policy, going_on(20), 1)[0] for t in (task, restored)))


def test_a_simulator_that_does_not_come_back_to_the_same_state_is_reported():
    task = Gym("Chain-v0", envs=1, env_kwargs={"noise": True})
    task.rollout(mlp(task), going_on(1), 0)
    with pytest.raises(RunError, match="environment 0 again did not reach the saved observation"):
        task.load_state_dict(task.state_dict())


def test_a_checkpoint_with_another_number_of_environments_is_refused():
    with pytest.raises(UsageError, match="2 environments, the task 3"):
        Gym("Chain-v0", envs=3).load_state_dict(Gym("Chain-v0", envs=2).state_dict())


def test_a_reward_that_is_not_finite_stops_the_run_with_its_place():
    task = Gym("Chain-v0", envs=2, env_kwargs={"reward": float("nan")})
    with pytest.raises(RunError, match="gym:Chain-v0 gave the reward nan at step 0"):
        task.rollout(Walker(), going_on(3), 0)


@pytest.mark.parametrize(
    ("env_id", "options", "sentence"),
    [
        ("CartPol-v1", {}, "unknown environment 'CartPol-v1'; did you mean 'CartPole-v"),
        ("CartPole-v9", {}, "unknown environment 'CartPole-v9'; did you mean 'CartPole-v"),
        ("no_such_module:Thing-v0", {}, "there is no module"),
        ("CartPole-v1", {"env_kwargs": {"gravity_of": 3}}, "cannot be made with env_kwargs"),
    ],
)
def test_an_environment_that_cannot_be_made_ends_in_one_sentence(env_id, options, sentence):
    with pytest.raises(UsageError, match=sentence) as caught:
        Gym(env_id, **options)
    assert "\n" not in str(caught.value)


def test_a_missing_simulator_names_the_extra_to_install():
    try:
        import Box2D  # noqa: F401
    except ImportError:
        with pytest.raises(UsageError, match=r'pip install "gymnasium\[box2d\]"'):
            Gym("LunarLander-v3")
    else:
        pytest.skip("Box2D is installed")


def test_requests_that_cannot_be_played_are_refused():
    task = Gym("Chain-v0", envs=2)
    with pytest.raises(UsageError, match="need a horizon"):
        task.rollout(Walker(), [Request(None)], 0)
    with pytest.raises(UsageError, match="cannot mix"):
        task.rollout(Walker(), [Request(None, horizon=3), Request(1)], 0)


def test_recipes_name_every_setting_of_the_loop():
    task = Gym("CartPole-v1")
    keys = {"lr", "requests", "samples", "horizon", "epochs", "minibatch", "steps", "envs", "scale_reward"}
    critic = task.recipe({"critic": True, "whole": False, "grouped": False})
    assert critic.keys() == keys | {"schedule"}
    assert critic["requests"] * critic["samples"] * critic["horizon"] == 2048
    grouped = task.recipe({"critic": False, "whole": True, "grouped": True})
    assert grouped.keys() == keys
    assert grouped["samples"] > 1
    assert task.recipe({"critic": False, "whole": True, "grouped": False})["samples"] == 1


@pytest.mark.parametrize(("options", "envs", "scaled"), [({}, 1, False), ({"envs": 2, "scale_reward": True}, 2, True)])
def test_replaying_methods_get_one_environment_and_its_rewards_unless_requested_otherwise(options, envs, scaled):
    task = Gym("Chain-v0", **options)
    task.configure(task.recipe({"replays": True}))
    assert (task.envs, task.scale is not None) == (envs, scaled)
    task.configure(task.recipe({"critic": True}))
    assert (task.envs, task.scale is not None) == (options.get("envs", 8), True)
    b, _ = task.rollout(Walker(), going_on(5), 0)
    assert b.mask.sum() == 5 * task.envs
