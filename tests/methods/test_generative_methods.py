"""The parts of generative methods by hand, their identities, and training on points of the plane and on a pendulum."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from entries import entries
from gymnasium.spaces import Box, Discrete

import anypo
from anypo import Trajectories
from anypo import config as configuration
from anypo.errors import UsageError
from anypo.evidence.experiments.assemble import assemble_in_memory
from anypo.evidence.experiments.registry import run_experiment
from anypo.loops.gradients import gradient
from anypo.loops.learn import learn
from anypo.loops.views import with_views
from anypo.parts.credit import Baseline, BatchScale, Combine, DenoisingDiscount, Gae, LimitAdvantage, SegmentGae
from anypo.parts.critic import Value
from anypo.parts.ratio import ChainRatio, LogRatio, MatchingRatio, NormalisedRatio
from anypo.parts.reduce import Mean
from anypo.parts.terms import MeanDivergence
from anypo.parts.trust import Clip, StepClip
from anypo.policies.control.mlp import MLPPolicy
from anypo.policies.generative.diffusion import DiffusionPolicy
from anypo.policies.generative.flow import FlowPolicy
from anypo.policies.generative.pretrain import pretrain
from anypo.rng import BatchRng
from anypo.runs.folder import create
from anypo.tasks.plane import Multimodal
from anypo.types import Request

POLICY_GRADIENT = ("grpo", "ppo", "reinforce", "rloo", "a2c", "gspo", "cispo", "dapo", "dr-grpo", "minpro")
GENERATIVE = ("ddpo", "dppo", "flow-grpo", "grpo-guard", "fpo", "reinflow", "awm")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(**fields):
    return Trajectories(
        **{k: torch.as_tensor(v, dtype=torch.float64) for k, v in fields.items() if k != "segment"}
    ).but(segment=torch.as_tensor(fields["segment"]) if "segment" in fields else None)


def made(cls=FlowPolicy, task=None, seed=1, **options):
    task = task or Multimodal()
    policy = cls(task.observation_space, task.action_space, seed=seed, **options)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=seeded(seed)))
    return policy


def slopes(method, policy, rows):
    """The gradient of a method's loss in the policy's parameters, after its credit and with its views."""
    policy.zero_grad()
    gradient(method, policy, rows, 10**6)
    return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


def viewed(method, policy, rows):
    """rows as the engine hands them to the update."""
    run = assemble_in_memory(
        method, Multimodal(), 0, batches=1, lr=1e-3, requests=1, samples=1, epochs=1, minibatch=0, policy=policy
    )
    return with_views(run, method, rows)


# ------------------------------------------------------------------ parts by hand


@pytest.mark.entry("dppo")
def test_advantages_of_segments_are_those_of_rows_whose_decisions_they_are():
    mask = [[1, 1, 0, 1, 1, 1], [0, 1, 1, 1, 0, 0]]
    rows = batch(
        mask=mask,
        reward=[[0.0, 1, 9, 0, 2, 3], [9, 1, 2, 4, 9, 9]],
        value=[[0.5, 7, 9, 0.2, 7, 1], [9, 0.1, 7, 0.3, 9, 9]],
        bootstrap=[2.0, 0.7],
        done=[0.0, 1.0],
        segment=[[0, 0, 0, 1, 1, 2], [0, 4, 4, 6, 0, 0]],
    ).clean()
    short = batch(
        reward=[[1.0, 2, 3], [3, 4, 0]], value=[[0.5, 0.2, 1], [0.1, 0.3, 0]], bootstrap=[2.0, 0.7], done=[0, 1]
    )
    wanted = Gae(0.9, 0.8)(short.but(mask=torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()))
    found = SegmentGae(0.9, 0.8)(rows)
    at = torch.tensor([[0, 0, 0, 1, 1, 2], [0, 0, 0, 1, 0, 0]])
    for name in ("advantage", "returns"):
        torch.testing.assert_close(
            getattr(found, name), torch.where(rows.valid, getattr(wanted, name).gather(1, at), 0.0)
        )


@pytest.mark.entry("dppo")
def test_the_denoising_discount_and_the_clip_of_every_step():
    rows = batch(
        mask=[[1, 1, 0, 1, 1, 1]], advantage=[[2.0, 2, 0, 2, -1, 3]], logp=[[0.0] * 6], segment=[[0, 0, 0, 0, 1, 2]]
    )
    found = DenoisingDiscount(0.5)(rows.clean())
    assert found.advantage.tolist() == [[0.5, 1, 0, 2, -1, 3]]
    assert found.extra["denoised"].tolist() == [[0, 0.5, 0, 1, 1, 1]]
    x = torch.log(torch.tensor([[1.5, 1.5, 1.0, 1.5, 0.5, 1.05]], dtype=torch.float64))
    s, _ = StepClip(first=0.1, last=0.3, c=2.0)(x, found)
    middle = 0.1 + 0.2 * (math.exp(1) - 1) / (math.exp(2) - 1)
    wanted = [1.1 * 0.5, (1 + middle) * 1, 0, 1.3 * 2, -0.7, 1.05 * 3]
    np.testing.assert_allclose(s[0].numpy(), wanted, rtol=1e-12)


@pytest.mark.entry("ddpo", "awm")
def test_scaling_and_limiting_advantages():
    score = torch.tensor([1.0, 3, 5, 5], dtype=torch.float64)
    rows = batch(logp=torch.zeros(4, 2)).but(
        score=score, advantage=torch.tensor([[2.0, 2], [-30, 1], [4, 4], [0, 0]]).double()
    )
    scaled = BatchScale(0.0)(rows).advantage
    torch.testing.assert_close(scaled, rows.advantage / score.std())
    limited = LimitAdvantage(5.0)(rows).advantage
    assert limited.tolist() == [[2, 2], [-5, 1], [4, 4], [0, 0]]
    assert LimitAdvantage(5.0, unit=1.0)(rows).advantage.tolist() == [[0.4, 0.4], [-1, 0.2], [0.8, 0.8], [0, 0]]


@pytest.mark.entry("reinflow")
def test_the_ratio_of_a_chain_is_that_of_its_mean_logp_with_the_start():
    rows = batch(
        mask=[[1, 1, 1, 0]], logp=[[0.3, 0.5, -8.0, 9]], logp_old=[[0.1, 0.2, 0.1, 9]], segment=[[0, 0, 1, 1]]
    ).clean()
    rows = rows.put({"logp_noise": torch.tensor([[-1.2, 0, -0.4, 9]], dtype=torch.float64)})
    first = (0.3 + 0.5 - 1.2) / 3 - (0.1 + 0.2 - 1.2) / 3
    second = -1.0 - (0.1 - 0.4) / 2  # -4.2 is below the limit
    np.testing.assert_allclose(ChainRatio(1.0)(rows)[0].numpy(), [first, first, second, 0], rtol=1e-12)


@pytest.mark.entry("fpo", "awm")
def test_pseudo_log_ratios_per_action_and_weighted():
    rows = batch(mask=[[1, 1, 1]], logp=[[-1.0, -2.0, -9.0]], logp_old=[[-2.0, -2.5, -1.0]], segment=[[0, 0, 1]])
    found = MatchingRatio("segment", limit=3.0)(rows)
    assert found.tolist() == [[0.75, 0.75, -3.0]]
    rows = rows.put({"noise_share": torch.tensor([[0.2, 0.5, 1.0]], dtype=torch.float64)})
    weighted = MatchingRatio("draw", None, "ghuber", 0.25)(rows)
    wanted = [t * 4 * (old**0.25 - now**0.25) for t, now, old in ((0.2, 1, 2), (0.5, 2, 2.5), (1.0, 9, 1))]
    np.testing.assert_allclose(weighted[0].numpy(), wanted, rtol=1e-8)


@pytest.mark.entry("flow-grpo")
def test_the_divergence_of_means_is_that_of_the_gaussians_times_the_width_over_their_dimension():
    mean, ref = torch.randn(3, 4, 5, dtype=torch.float64), torch.randn(3, 4, 5, dtype=torch.float64)
    std, width = torch.rand(3, 4, dtype=torch.float64) + 0.1, 0.1
    fields = {"step_mean": mean, "step_mean_ref": ref, "step_std": std, "step_width": torch.full_like(std, width)}
    rows = batch(logp=torch.zeros(3, 4)).put(fields)
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(mean, std[..., None]), normal(ref, std[..., None])).sum(-1)
    found, _ = MeanDivergence(0.04)(rows, Mean("token"))
    torch.testing.assert_close(found, 0.04 * (kl * width / 5).mean())


@pytest.mark.entry("grpo-guard")
def test_the_normalised_ratio_is_centred_and_alike_at_every_noise():
    g, d = seeded(), 64
    shift = 0.05 * torch.randn(d, generator=g, dtype=torch.float64)
    for s in (0.05, 0.2, 0.8):
        noise = torch.randn(20_000, d, generator=g, dtype=torch.float64)
        x = s * noise  # the old mean is 0
        logp_old = (-0.5 * (x / s).square() - math.log(s)).mean(1)
        logp = (-0.5 * ((x - shift) / s).square() - math.log(s)).mean(1)
        rows = batch(logp=logp[:, None], logp_old=logp_old[:, None]).put(
            {
                "step_mean": shift.expand(20_000, 1, d),
                "step_mean_old": torch.zeros(20_000, 1, d, dtype=torch.float64),
                "step_std": torch.full((20_000, 1), s, dtype=torch.float64),
            }
        )
        guarded, plain = NormalisedRatio()(rows), LogRatio()(rows)
        assert abs(guarded.mean()) < 1e-3
        assert float(guarded.std()) == pytest.approx(float(shift.square().mean() / d) ** 0.5, rel=0.03)
        assert float(plain.mean()) == pytest.approx(-float(shift.square().mean()) / (2 * s**2), rel=0.05, abs=1e-3)
        eps = float(guarded.std())
        high, low = (guarded.exp() > 1 + eps).double().mean(), (guarded.exp() < 1 - eps).double().mean()
        assert float(high / low) == pytest.approx(1, abs=0.2)
        if s == 0.05:
            assert (plain.exp() > 1 + eps).double().mean() < 0.01


# ------------------------------------------------------------------ identities


@pytest.mark.entry("dppo")
def test_dppo_with_one_step_is_ppo_on_a_gaussian_policy():
    task = Multimodal()
    policy = MLPPolicy(task.observation_space, task.action_space, normalize=False).double()
    rows, _ = task.rollout(policy, [Request(0, 32)], 0)
    rows = rows.map(lambda t: t.double() if t.is_floating_point() else t)
    with torch.no_grad():
        policy.actor[-1].bias += 0.3
    mine = anypo.method("dppo", trust=StepClip(0.2, 0.2))
    theirs = anypo.method("ppo", critic=[Value(0.5)])
    one, other = mine.prepare(rows), theirs.prepare(rows)
    torch.testing.assert_close(one.advantage, other.advantage, rtol=0, atol=1e-9)
    assert (one.advantage.abs() > 0.01).any()
    torch.testing.assert_close(slopes(mine, policy, one), slopes(theirs, policy, other), rtol=0, atol=1e-9)


@pytest.mark.entry("reinflow")
def test_reinflow_with_one_step_and_constant_noise_is_ppo_on_a_gaussian_with_mean_x0_plus_v():
    task = Multimodal()
    policy = made(steps=1, noise="learned", low=0.2, high=0.2, normalize=False).double()
    rows, _ = task.rollout(policy, [Request(0, 32)], 0)
    rows = rows.map(lambda t: t.double() if t.is_floating_point() else t)
    with torch.no_grad():
        policy.actor[-1].bias += 0.05
    mine = anypo.method("reinflow", ratio=ChainRatio(limit=1e6), terms=[])
    ready = viewed(mine, policy, mine.prepare(rows))
    live = policy.evaluate(ready, {"logp", "value"})
    loss, metrics = mine.loss(ready.put(live))
    features, x0 = policy.features(rows.trace["obs"][:, 0]), rows.trace["latent"][:, 0]
    mean = (x0 + policy.network(features, x0, torch.zeros(32).double())).clamp(-1, 1)
    gaussian = torch.distributions.Normal(mean, 0.2).log_prob(rows.trace["next"][:, 0]).mean(-1)
    halves = {"logp": gaussian[:, None] / 2, "logp_old": rows.logp_old / 2}
    theirs = anypo.method("ppo", critic=[Value(0.5)], trust=Clip(0.01, 0.01))
    wanted, _ = theirs.loss(ready.put(live | halves))
    assert abs(float((loss - wanted).detach())) < 1e-9
    assert 0 < float(metrics["clip_fraction"]) < 1


def on_policy(policy, seed=0):
    task = Multimodal()
    rows, _ = task.rollout(policy, [Request(0, 12), Request(0, 12)], seed)
    return rows.map(lambda t: t.double() if t.is_floating_point() else t)


@pytest.mark.entry("fpo", "awm")
def test_on_policy_fpo_and_awm_follow_the_gradient_of_the_weighted_matching_loss():
    policy = made(normalize=False).double()
    rows = on_policy(policy)
    a = torch.randn(24, generator=seeded()).double()
    rows = rows.but(advantage=a[:, None].expand(-1, 10).clone())
    found = []
    for name, ratio in (("fpo", MatchingRatio("segment")), ("awm", MatchingRatio("draw", None))):
        method = anypo.method(name, ratio=ratio, terms=[], critic=[])
        ready = viewed(method, policy, rows)
        torch.testing.assert_close(
            method.stages["ratio"](ready.put(policy.evaluate(ready, {"logp"}) | {"logp": ready.logp_old})),
            0.0 * rows.logp_old,
        )
        found.append(slopes(method, policy, ready))
    policy.zero_grad()
    (-(a[:, None] * policy.evaluate(rows, {"cfm"})["cfm"]).mean()).backward()
    wanted = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
    assert wanted.norm() > 1e-3
    for gradient_ in found:
        torch.testing.assert_close(gradient_, wanted, rtol=0, atol=1e-10)


@pytest.mark.entry("fpo")
def test_other_draws_than_those_stored_do_not_give_a_ratio_of_one():
    policy = made(normalize=False).double()
    rows = on_policy(policy)
    old = policy.evaluate(rows, {"cfm"})["cfm"].detach()
    rows.trace["noise"] = torch.randn(rows.trace["noise"].shape, generator=seeded(5)).double()
    moved = MatchingRatio()(rows.put({"logp": policy.evaluate(rows, {"cfm"})["cfm"], "logp_old": old}))
    assert moved.abs().min() > 1e-6


@pytest.mark.entry("ddpo")
def test_the_gradient_of_ddpo_is_that_of_the_expected_reward():
    """Central differences in every weight of a linear network, with common random numbers."""
    line = Box(-1.0, 1.0, (1,), np.float32)
    policy = DiffusionPolicy(
        Discrete(1), line, hidden=(), steps=10, floor=0.1, over="sum", value=False, normalize=False
    )
    with torch.no_grad():
        policy.actor[0].weight.add_(0.1 * torch.randn(policy.actor[0].weight.shape, generator=seeded(3)))
        policy.actor[0].weight[:, 1] += 0.8
    n, target = 100_000, 0.5

    def sampled():
        return policy.act(torch.ones(n, 1), BatchRng(seeded(1), n))

    decided = sampled()
    reward = -(decided.action[:, 0] - target).square()
    logp, _, trace = decided.rows(torch.ones(n, 1))
    rows = Trajectories(
        logp_old=logp, mask=torch.ones_like(logp).bool(), score=reward, group=torch.zeros(n).long(), trace=trace
    )
    method = anypo.method("ddpo", credit=[Combine(), Baseline("group", scale=None)], reduce=Mean("sum"))
    ascent = -slopes(method, policy, method.prepare(rows))
    wanted = []
    with torch.no_grad():
        for p in policy.parameters():
            for i in range(p.numel()):
                ends = []
                for h in (1e-2, -1e-2):
                    p.view(-1)[i] += h
                    ends.append(-(sampled().action[:, 0] - target).square().double().mean())
                    p.view(-1)[i] -= h
                wanted.append(float(ends[0] - ends[1]) / 2e-2)
    wanted = torch.tensor(wanted)
    assert torch.nn.functional.cosine_similarity(ascent, wanted, dim=0) > 0.95
    assert float(ascent.norm() / wanted.norm()) == pytest.approx(1, rel=0.2)


# ------------------------------------------------------------------ training


@pytest.mark.parametrize("method", entries([*POLICY_GRADIENT, *GENERATIVE]))
@pytest.mark.parametrize("task", ["multimodal", "gym:Pendulum-v1"])
def test_policy_gradients_train_a_flow_policy(method, task, tmp_path):
    values = {"method": method, "task": task, "policy": {"name": "flow", "steps": 3}, "out": str(tmp_path / "r")}
    small = {"steps": 2, "collect": {"requests": 2, "samples": 4}, "step": {"epochs": 2, "minibatch": 8}}
    if task.startswith("gym"):
        values["task"] = {"name": task, "envs": 2, "eval_episodes": 1}
        small = {"steps": 400, "collect": {"requests": 1, "samples": 2}, "step": {"epochs": 1, "minibatch": 512}}
    run = create(configuration.from_dict({**values, **small}))
    before = [p.clone() for p in run.policy.parameters()]
    records = []
    last = learn(run, records.append)
    assert last["skipped"] == 0
    assert all(math.isfinite(x) for record in records for x in record.values())
    assert records[1]["mismatch"] < 1e-4
    assert any(not torch.equal(a, b) for a, b in zip(before, run.policy.parameters(), strict=True))


@pytest.mark.parametrize("name", entries(["diffusion-policy", "flow-matching-policy"]))
def test_behaviour_cloning_improves_the_matching_loss_of_its_own_policy_and_refuses_the_other(name, tmp_path):
    kinds = ("diffusion", "flow") if name == "diffusion-policy" else ("flow", "diffusion")
    values = {"method": name, "task": "multimodal", "steps": 60, "step": {"lr": 5e-3}}
    records = []
    run = create(configuration.from_dict({**values, "policy": kinds[0], "out": str(tmp_path / "r")}))
    learn(run, records.append)
    assert records[-1]["loss"] < 0.9 * records[1]["loss"]
    assert run.task.demo_count == 60 * 128
    with pytest.raises(UsageError, match="cannot give"):
        learn(create(configuration.from_dict({**values, "policy": kinds[1], "out": str(tmp_path / "s")})))


@pytest.mark.parametrize("name", entries(["ddpo", "flow-grpo", "awm"]))
def test_a_pretrained_flow_learns_which_modes_pay(name):
    settings = {"paying": (0, 1), "batches": 60, "lr": 2e-3, "pretraining": 400}
    start = run_experiment("denoising", anypo.method(name), 0, {**settings, "batches": 1, "lr": 0.0})
    end = run_experiment("denoising", anypo.method(name), 0, settings)
    assert end["reward"] > start["reward"] + 0.2


def test_a_gaussian_policy_loses_modes_that_a_flow_policy_keeps():
    grpo = anypo.method("grpo", terms=[])
    gaussian = run_experiment("modes", grpo, 0, {"policy": "mlp", "pretraining": 300, "batches": 200, "lr": 3e-2})
    flow = run_experiment("modes", grpo, 0, {"pretraining": 500, "batches": 60, "lr": 1e-3})
    assert gaussian["reward"] > 0.7
    assert gaussian["modes"] == 1
    assert flow["reward"] > 0.7
    assert flow["modes"] == 4


@pytest.mark.entry("flow-grpo")
def test_the_proxy_is_exploited_where_it_can_be():
    settings = {"bump": 2.0, "batches": 60, "pretraining": 400, "lr": 2e-3}
    found = run_experiment("modes", anypo.method("flow-grpo"), 0, settings)
    assert found["reward"] > 1.2
    assert found["gold"] < 0.6


def test_the_tasks_measures_on_known_samples():
    task = Multimodal(paying=(0, 2))
    action = torch.cat([task.modes[0].expand(6, 2), task.modes[1].expand(3, 2), task.modes[2][None] + 0.25])
    assert task.modes[0].tolist() == pytest.approx([1, 1])
    gold = torch.exp(torch.tensor(-0.5 * 2 * 0.25**2 / 0.09))
    torch.testing.assert_close(task.gold(action)[[0, 9]], torch.stack([torch.tensor(1.0), gold]))
    assert task.gold(action)[6] < 1e-6
    torch.testing.assert_close(task.shares(action), torch.tensor([0.6, 0.1]))
    with pytest.raises(UsageError, match="0 to 3"):
        Multimodal(paying=(4,))


def test_pretraining_a_gaussian_finds_its_mean_and_spread():
    task = Multimodal()
    policy = MLPPolicy(task.observation_space, task.action_space, value=False)
    pretrain(policy, task.experts(policy, 2000, seeded()), 400)
    mean = policy.actor(policy.features(task.observations(policy, 1)))
    assert mean.abs().max() < 0.1
    torch.testing.assert_close(policy.log_std.exp(), torch.full((2,), 1 / 1.5), rtol=0.1, atol=0.0)
