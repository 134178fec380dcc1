"""Flow and diffusion policies: exact chains, known distributions, behaviour cloning, and the rows they make."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from anypo import config as configuration
from anypo import policies
from anypo.errors import UsageError
from anypo.loops.learn import learn
from anypo.policies.control.mlp import MLPPolicy
from anypo.policies.generative import diffusion
from anypo.policies.generative.diffusion import DiffusionPolicy
from anypo.policies.generative.flow import FlowPolicy
from anypo.policies.generative.pretrain import pretrain
from anypo.rng import BatchRng
from anypo.runs.folder import create, reopen
from anypo.tasks.control.gym import Gym
from anypo.tasks.plane import Multimodal
from anypo.types import Request, Trajectories

LINE = Box(-1.0, 1.0, (1,), np.float32)
KINDS = {
    "sde": (FlowPolicy, {}),
    "learned": (FlowPolicy, {"noise": "learned", "steps": 4}),
    "sum": (FlowPolicy, {"over": "sum", "level": 0.3}),
    "diffusion": (DiffusionPolicy, {}),
    "tuned": (DiffusionPolicy, {"tuned": 3}),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def made(kind, task=None, seed=1):
    cls, options = KINDS[kind]
    task = task or Multimodal()
    policy = cls(task.observation_space, task.action_space, seed=seed, **options)
    with torch.no_grad():  # a network that says something
        for p in policy.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=seeded(seed)))
    return policy


# ------------------------------------------------------------------ rows


@pytest.mark.parametrize("kind", KINDS)
def test_logps_kept_from_sampling_are_those_of_a_fresh_evaluation(kind):
    task, policy = Multimodal(), made(kind)
    rows, _ = task.rollout(policy, [Request(0, 7)], 0)
    found = policy.evaluate(rows, {"logp", "value"})
    assert rows.shape == (7, 3 if kind == "tuned" else policy.steps)
    torch.testing.assert_close(found["logp"], rows.logp_old, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["value"], rows.value, rtol=1e-5, atol=1e-5)
    assert rows.logp_old.std() > 0.01
    assert rows.value[0].unique().numel() == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_decision_evaluated_alone_is_the_decision_in_its_row(kind):
    task, policy = Multimodal(), made(kind)
    rows, _ = task.rollout(policy, [Request(0, 4)], 0)
    rows.mask[1, 2:] = False
    want = policy.functionals - {"step_mean", "guess"}
    whole, alone = policy.evaluate(rows, want), policy.evaluate(rows.decisions(), want)
    for name in want:
        torch.testing.assert_close(alone[name][:, 0], whole[name][rows.valid], rtol=1e-4, atol=1e-4, msg=name)
        assert (whole[name][~rows.valid] == 0).all()


@pytest.mark.parametrize("over", ["mean", "sum"])
def test_a_chain_has_the_logps_and_entropies_of_its_gaussians(over):
    task = Multimodal()
    policy = FlowPolicy(task.observation_space, task.action_space, steps=4, noise="learned", over=over)
    rows, _ = task.rollout(policy, [Request(0, 5)], 0)
    obs, x, step = (rows.trace[name].flatten(0, 1) for name in ("obs", "latent", "step"))
    mean, std = policy.transition(policy.features(obs), x, step)
    assert 0.1 - 1e-6 <= float(std.detach().min()) < float(std.detach().max()) <= 0.24 + 1e-6
    normal = torch.distributions.Normal(mean, std)
    reduce = torch.mean if over == "mean" else torch.sum
    found = policy.evaluate(rows, {"logp", "entropy", "logp_noise", "step_std", "step_width"})
    torch.testing.assert_close(found["logp"].flatten(), reduce(normal.log_prob(rows.trace["next"].flatten(0, 1)), -1))
    torch.testing.assert_close(found["entropy"].flatten(), reduce(normal.entropy(), -1))
    start = reduce(torch.distributions.Normal(0, 1).log_prob(rows.trace["latent"][:, 0]), -1)
    torch.testing.assert_close(found["logp_noise"], torch.cat([start[:, None], torch.zeros(5, 3)], 1))
    torch.testing.assert_close(found["step_std"].flatten(), std.square().mean(-1).sqrt())
    assert (found["step_width"] == 0.25).all()
    assert torch.equal(rows.trace["latent"][:, 1:], rows.trace["next"][:, :-1])


def test_an_environment_step_is_consecutive_decisions_with_the_reward_on_the_last():
    task = Gym("Pendulum-v1", envs=2, scale_reward=False)
    policy = made("sde", task).double()  # in float32 rounding grows with 1 / std^2 of a step
    rows, metrics = task.rollout(policy, [Request(3, 2, 5), Request(4, 1, 5)], 0)
    assert rows.shape == (3, 50)
    assert metrics["env_steps"] == 15
    assert torch.equal(rows.segment, torch.arange(5).repeat_interleave(10).expand(3, -1))
    last = torch.arange(50) % 10 == 9
    assert (rows.reward[:, ~last] == 0).all()
    assert (rows.reward[:, last] < 0).all()
    torch.testing.assert_close(policy.evaluate(rows, {"logp"})["logp"], rows.logp_old, rtol=1e-5, atol=1e-5)
    same = rows.trace["obs"].reshape(3, 5, 10, -1)
    assert (same == same[:, :, :1]).all()
    assert not torch.equal(same[:, 0], same[:, 1])


def test_only_the_tuned_steps_learn():
    task = Multimodal()
    policy = made("tuned")
    policy.freeze_base()
    before = policy.act(task.observations(policy, 6), BatchRng(seeded(), 6)).trace
    with torch.no_grad():
        policy.actor[-1].bias.add_(1.0)
    after = policy.act(task.observations(policy, 6), BatchRng(seeded(), 6)).trace
    assert before["step"][0].tolist() == [7, 8, 9]
    torch.testing.assert_close(before["latent"][:, 0], after["latent"][:, 0])
    assert (before["next"][:, 0] - after["next"][:, 0]).abs().max() > 0.01


# ------------------------------------------------------------------ known distributions


def gaussian_flow(m, s, steps, level=0.7):
    """A flow policy whose velocity is E[a - z | x_t = x] for a ~ N(m, s^2)."""
    policy = FlowPolicy(Discrete(1), LINE, steps=steps, level=level, value=False)

    def velocity(features, x, time):
        t = time[:, None]
        slope = (t * s**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * s**2)
        return m + slope * (x - t * m)

    policy.network = velocity
    return policy


@pytest.mark.parametrize("level", [0.0, 0.3, 0.7])
def test_the_noise_of_a_flow_leaves_its_marginals_alone(level):
    policy = gaussian_flow(1.5, 0.5, steps=400, level=level or 1.0)
    decided = policy.act(torch.ones(20_000, 1), BatchRng(seeded(), 20_000), greedy=level == 0)
    assert abs(decided.action.mean() - 1.5) < 0.01
    assert abs(decided.action.std() - 0.5) < 0.01
    halfway = decided.trace["latent"][:, 200]  # a / 2 + z / 2
    assert abs(halfway.mean() - 0.75) < 0.015
    assert abs(halfway.std() - math.sqrt(0.25 + 0.25 * 0.25)) < 0.015


def test_the_error_of_euler_steps_falls_with_their_number():
    errors = []
    for steps in (10, 40, 160):
        policy, x = gaussian_flow(1.5, 0.5, steps), torch.tensor([[-1.0], [1.0]])
        for k in range(steps):
            x = policy.greedy(torch.ones(2, 1), x, torch.full((2,), k))
        errors.append(0.5 - float(x[1] - x[0]) / 2)  # a linear map: half the distance is the standard deviation
    assert errors[0] == pytest.approx(0.5 - 0.432, abs=2e-3)
    assert errors[1] == pytest.approx(0.5 - 0.482, abs=2e-3)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)


def test_denoising_with_the_exact_noise_gives_gaussian_data_back(monkeypatch):
    monkeypatch.setattr(diffusion, "BOX", 100.0)
    m, s = 2.0, 1.0

    def spread(steps, eta):
        policy = DiffusionPolicy(Discrete(1), LINE, steps=steps, levels=steps, eta=eta, floor=1e-6, value=False)

        def noise(features, x, time):
            abar = policy.kept[((1 - time) * steps).round().long()][:, None]
            return (1 - abar).sqrt() * (x - abar.sqrt() * m) / (abar * s**2 + 1 - abar)

        policy.network = noise
        action = policy.act(torch.ones(20_000, 1), BatchRng(seeded(), 20_000)).action
        assert float(action.mean()) == pytest.approx(m, rel=0.02)
        return s - float(action.std())

    # the variance of a step, that of the posterior given the data, is a little too small: an error of the order of 1/K
    errors = [spread(steps, 1.0) for steps in (50, 100, 200)]
    assert errors[0] > errors[1] > errors[2]
    assert abs(errors[2]) < 0.02 * s
    assert errors[0] < 0.05 * s
    assert abs(spread(200, 0.0)) < 0.01 * s


def test_ddim_with_all_noise_is_the_posterior_of_ddpm():
    policy = DiffusionPolicy(Discrete(1), LINE, steps=20, levels=20, floor=1e-6, value=False)
    x, step = torch.linspace(-1.5, 1.5, 20)[:, None], torch.arange(20)
    mean, std = policy.transition(torch.ones(20, 1), x, step)
    level = 20 - step
    abar, before = policy.kept[level][:, None], policy.kept[level - 1][:, None]
    alpha = abar / before
    e = policy.network(torch.ones(20, 1), x, 1 - level / 20)
    x0 = ((x - (1 - abar).sqrt() * e) / abar.sqrt()).clamp(-1, 1)
    wanted = before.sqrt() * (1 - alpha) / (1 - abar) * x0 + alpha.sqrt() * (1 - before) / (1 - abar) * x
    torch.testing.assert_close(mean, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(std[:-1], ((1 - alpha) * (1 - before) / (1 - abar)).sqrt()[:-1], rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------ behaviour cloning


@pytest.mark.parametrize("cls", [FlowPolicy, DiffusionPolicy])
def test_the_matching_loss_and_chain_of_an_experts_action(cls):
    task = Multimodal()
    policy = cls(task.observation_space, task.action_space, steps=5, seed=3)
    obs, action = task.experts(policy, 6, seeded())
    trace = policy.trace(obs, action, seeded())
    rows = Trajectories(trace=trace)
    torch.testing.assert_close(trace["next"][:, -1], action)
    assert trace["latent"][:, 0].abs().max() > 1  # noise
    found = policy.evaluate(rows, {policy.imitation, "guess"})
    time = policy.training_time(trace["time"])[..., None]
    blend = policy.blend(trace["action"], trace["noise"], time)
    if cls is FlowPolicy:
        torch.testing.assert_close(blend, (1 - time) * trace["noise"] + time * trace["action"])
        target = trace["action"] - trace["noise"]
    else:
        target = trace["noise"]
    features = policy.features(trace["obs"].flatten(0, 1))
    guess = policy.network(features, blend.flatten(0, 1), time.flatten()).reshape(6, 5, 2)
    torch.testing.assert_close(found["guess"], guess)
    torch.testing.assert_close(found[policy.imitation], -(guess - target).square().mean(-1))


def test_actions_of_the_environment_and_back():
    task = Multimodal()
    policy = MLPPolicy(task.observation_space, task.action_space)
    action = np.array([[0.3, -1.2], [1.5, -1.5]], np.float32)
    np.testing.assert_allclose(policy.env_action(policy.from_env(action)), action, rtol=1e-6)


@pytest.mark.slow
def test_generative_policies_clone_every_mode_and_a_gaussian_none():
    task, found = Multimodal(), {}
    for cls, steps in ((FlowPolicy, 10), (DiffusionPolicy, 20), (MLPPolicy, None)):
        options = {} if steps is None else {"steps": steps, "hidden": (64, 64, 64)}
        policy = cls(task.observation_space, task.action_space, value=False, **options)
        pretrain(policy, task.experts(policy, 2000, seeded()), 3000 if steps else 500)
        action = task.sample(policy, 1)
        found[cls] = task.evaluate(policy, 1), task.shares(action)
    for cls in (FlowPolicy, DiffusionPolicy):
        measures, shares = found[cls]
        assert measures["precision"] >= (0.9 if cls is FlowPolicy else 0.95)
        assert ((shares >= 0.15) & (shares <= 0.35)).all()
    assert found[MLPPolicy][0]["precision"] < 0.1
    assert found[MLPPolicy][0]["modes"] <= 1


# ------------------------------------------------------------------ by name, and refusals


def test_a_pretrained_policy_is_made_by_name_the_same_every_time():
    task = Multimodal()
    one, other = (
        policies.make_policy({"name": "flow", "pretrain": 20}, task, value=("value",), seed=2) for _ in range(2)
    )
    fresh = policies.make_policy({"name": "flow"}, task, value=("value",), seed=2)
    pairs = list(zip(one.parameters(), other.parameters(), fresh.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not all(torch.equal(a, c) for a, _, c in pairs)
    with pytest.raises(UsageError, match="no demonstrations"):
        policies.make_policy({"name": "flow", "pretrain": 1}, Gym("Pendulum-v1", envs=1), value=True, seed=0)


@pytest.mark.parametrize(
    ("cls", "options", "says"),
    [
        (FlowPolicy, {"steps": 0}, "at least one step"),
        (FlowPolicy, {"level": 0.0}, "above 0"),
        (FlowPolicy, {"noise": "learned", "low": 0.3}, "not below low"),
        (FlowPolicy, {"tuned": 11}, "at most all"),
        (DiffusionPolicy, {"levels": 5}, "down 5 levels"),
        (DiffusionPolicy, {"floor": 0.0}, "floor above 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(cls, options, says):
    with pytest.raises(UsageError, match=says):
        cls(Discrete(1), LINE, **options)


def test_a_generative_policy_needs_numbers_to_act_with():
    with pytest.raises(UsageError, match="needs numbers as actions"):
        FlowPolicy(Discrete(1), Discrete(3))


def test_a_run_goes_on_from_its_checkpoint(tmp_path):
    policy = {"name": "flow", "pretrain": 10, "tuned": 5}
    values = {"method": "ppo", "task": "multimodal", "policy": policy, "steps": 4, "checkpoint_every": 2}
    whole = create(configuration.from_dict({**values, "out": str(tmp_path / "r")}))
    learn(whole)
    for path in (tmp_path / "r" / "checkpoints" / "batch-00000004").iterdir():
        path.unlink()
    (tmp_path / "r" / "checkpoints" / "batch-00000004").rmdir()
    again = reopen(tmp_path / "r")
    assert again.batch == 2
    learn(again)
    assert all(torch.equal(a, b) for a, b in zip(whole.policy.parameters(), again.policy.parameters(), strict=True))
