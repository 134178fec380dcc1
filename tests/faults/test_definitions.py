"""Methods are what their releases compute: numbers by hand and identities for details that are easily left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from entries import entries
from gymnasium.spaces import Box
from torch import Tensor

import anypo
from anypo import Trajectories, policies
from anypo import config as configuration
from anypo.evidence.experiments.assemble import assemble_in_memory
from anypo.evidence.reach import Reach
from anypo.loops.absorb import absorb, learn_again
from anypo.loops.anchors import refresh
from anypo.loops.collect import collect
from anypo.loops.learn import learn
from anypo.loops.minibatches import flatten_decisions, minibatches
from anypo.loops.views import compute_views
from anypo.method.method import Method
from anypo.parts.credit import FirstSteps
from anypo.parts.knobs import Temperature, Tracked
from anypo.parts.ops.segments import split_segments
from anypo.parts.reduce import Mean
from anypo.parts.terms import ChainEntropy
from anypo.policies.control.normalize import DatasetNorm
from anypo.policies.generative.flow import FlowPolicy
from anypo.policies.weights import trainable_state
from anypo.runs.build import build
from anypo.runs.phases import begin_phase
from anypo.runs.run import Run
from anypo.tasks.plane import Multimodal
from anypo.types import Request

F64 = torch.float64
SMALL = {"hidden": [8, 8]}


def f64(*rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=F64).unsqueeze(1)


def pendulum(path: Path) -> str:
    """Random transitions in the spaces of Pendulum, in one episode."""
    rng, n = np.random.default_rng(0), 60
    obs = rng.normal([3.0, -2.0, 0.5], [0.1, 2.0, 1.0], (n, 3))
    ends = np.arange(n) == n - 1
    np.savez(
        path, observations=obs, next_observations=obs[::-1], actions=rng.uniform(-2, 2, (n, 1)),
        rewards=rng.normal(size=n), terminals=np.zeros(n, bool), timeouts=ends,
    )  # fmt: skip
    return f"data:{path}"


def offline(method: str, path: Path, **values: Any) -> Run:
    """A run in memory on recorded transitions."""
    task = {"name": pendulum(path), "env": "Pendulum-v1"}
    store = {"batch": 16, "start": 1, "idle": 4}
    return build(configuration.from_dict({"method": method, "task": task, "policy": SMALL, "store": store, **values}))


def online(method: str) -> Run:
    """A run in memory whose store waits for more transitions than the test collects."""
    task = {"name": "gym:Pendulum-v1", "envs": 1}
    values = {"store": {"batch": 8, "start": 10_000}, "collect": {"requests": 1, "first": 4}}
    return build(configuration.from_dict({"method": method, "task": task, "policy": SMALL, **values}))


def weights(run: Run, room: str) -> list[Tensor]:
    return [p.detach().clone() for name, p in run.policy.named_parameters() if name.startswith(room)]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(a.equal(b) for a, b in zip(one, other, strict=True))


def gym(method: str, **values: Any) -> Run:
    """A run in memory on one Pendulum, in batches of 256 steps, with small networks."""
    policy = {**SMALL, "steps": 3, **values.pop("policy", {})}
    task = {"name": "gym:Pendulum-v1", "envs": 1}
    return build(configuration.from_dict({"method": method, "task": task, "policy": policy, "episodes": 1, **values}))


def plane(method: str | Method, *, lr: float = 1e-3) -> Run:
    """A run in memory on points of the plane."""
    chosen, task = anypo.method(method) if isinstance(method, str) else method, Multimodal()
    options = {"hidden": (16, 16), **chosen.policy_options}
    policy = FlowPolicy(task.observation_space, task.action_space, value=chosen.heads, **options)
    return assemble_in_memory(
        chosen, task, 0, batches=10, lr=lr, requests=2, samples=8, epochs=1, minibatch=0, policy=policy
    )


# ------------------------------------------------------------------------------------------------ learning from transitions


@pytest.mark.entry("rlpd")
def test_rlpd_holds_the_entropy_at_minus_half_the_number_of_dimensions() -> None:
    alpha = anypo.method("rlpd").stages["trust"].alpha
    b = Trajectories(trace={"action": torch.zeros(1, 1, 6)})
    for logp, moves in ((3.0 - 0.1, -1), (3.0 + 0.1, 1)):  # entropy just above and below -6 / 2
        knob = Temperature(each=alpha.each, target=alpha.target)
        knob.update({"logp_policy": logp}, 0.0, b)
        assert np.sign(float(knob) - 1) == moves


@pytest.mark.entry("awac")
def test_awac_penalises_the_weights_of_its_policy_in_the_gradient_and_those_of_its_critics_not() -> None:
    """A weight of 2 with the gradient -1e-4 and a penalty of 1e-4 has the gradient 1e-4: Adam's first step is +lr the other way."""
    step = anypo.method("awac").stages["step"]
    for fast in (True, False):
        policy, critic = (torch.nn.Parameter(torch.tensor([2.0], dtype=F64)) for _ in range(2))
        bound = step.bind([{"params": [policy], "name": "policy"}, {"params": [critic], "name": "critics"}])
        for group in bound.optimizer.param_groups:
            group["fused"] = fast

        def backward(pair: tuple[torch.nn.Parameter, ...] = (policy, critic)) -> dict[str, float]:
            for p in pair:
                p.grad = torch.full_like(p, -1e-4)
            return {}

        bound.update(backward)
        assert policy.item() == pytest.approx(2 - 3e-4, abs=1e-7)
        assert critic.item() == pytest.approx(2 + 3e-4, abs=1e-7)
        bound.update(backward)  # the second step is the fused kernel's
        assert policy.item() == pytest.approx(2 - 6e-4, abs=1e-7)
        assert critic.item() == pytest.approx(2 + 6e-4, abs=1e-7)


@pytest.mark.entry("a2pr")
def test_a2pr_trains_its_autoencoder_at_a_thousandth_and_all_else_at_the_rate_of_the_step(tmp_path: Path) -> None:
    """Adam's first step moves a weight by the learning rate, whatever its gradient."""
    run = offline("a2pr", tmp_path / "d.npz")
    begin_phase(run)
    before = {name: p.detach().clone() for name, p in run.policy.named_parameters()}
    run.store.recipe = type(run.store.recipe)(batch=16, start=1, idle=1)
    absorb(run, collect(run))
    moved: dict[str, float] = {}
    for name, p in run.policy.named_parameters():
        kind = "vae" if name.startswith("critics.vae") else "else"
        moved[kind] = max(moved.get(kind, 0.0), float((p.detach() - before[name]).abs().max()))
    assert moved["vae"] == pytest.approx(1e-3, rel=1e-2)
    assert moved["else"] == pytest.approx(3e-4, rel=1e-2)


@pytest.mark.parametrize("method", entries(["td3-bc", "prdc", "a2pr"]))
def test_states_are_standardised_by_the_data(method: str, tmp_path: Path) -> None:
    run = offline(method, tmp_path / "d.npz")
    obs = run.task.transitions()["obs"]
    want = (obs - obs.mean(0)) / (obs.std(0, correction=0) + 1e-3)
    torch.testing.assert_close(run.policy.features(obs), want, rtol=1e-5, atol=1e-6)
    assert run.config.policy["normalize"] is True
    assert offline(method, tmp_path / "d.npz", policy={**SMALL, "normalize": False}).policy.features(obs).equal(obs)


def test_standardisation_does_not_cut_what_is_far_from_the_data() -> None:
    norm = DatasetNorm(1)
    norm.fit(torch.tensor([[0.0], [2.0]]))
    assert float(norm(torch.tensor([[101.0]]))) == pytest.approx(100 / 1.001)


@pytest.mark.entry("td3-bc")
def test_the_claim_of_td3_bc_is_measured_with_standardised_states() -> None:
    method = anypo.method("td3-bc")
    toy = Reach(seed=0, data="mixed")
    spec = {"name": method.policy, **SMALL, **method.policy_options}
    policy = policies.make_policy(spec, toy, value=(), networks=method.networks, seed=0)
    policy.standardize(toy.table["obs"])
    assert not policy.features(toy.table["obs"]).equal(toy.table["obs"])


@pytest.mark.entry("dsac-t")
def test_dsac_t_moves_policy_temperature_and_targets_every_second_time() -> None:
    run = online("dsac-t")
    alpha = run.method.stages["trust"].alpha
    moved = {"actor": 0, "alpha": 0, "target": 0, "critics": 0}
    begin_phase(run)
    absorb(run, collect(run))
    for _ in range(4):
        target = [t.clone() for t in run.anchor("target").values()]
        before = weights(run, "actor"), float(alpha), target, weights(run, "critics")
        learn_again(run, run.phase)
        moved["actor"] += not equal(before[0], weights(run, "actor"))
        moved["alpha"] += float(alpha) != before[1]
        moved["target"] += not equal(before[2], list(run.anchor("target").values()))
        moved["critics"] += not equal(before[3], weights(run, "critics"))
    assert moved == {"actor": 2, "alpha": 2, "target": 2, "critics": 4}


@pytest.mark.entry("dsac-t")
def test_the_scale_of_dsac_t_begins_as_the_mean_deviation_of_the_first_minibatch() -> None:
    """With deviations 1 and 3, m = 2, not 1; then m follows by 0.005, the minibatch at hand included."""
    part = anypo.method("dsac-t").stages["critic"][0]
    fields = {
        "q": f64([0.0, 0.0], [0.0, 0.0]), "q_std": f64([1.0, 1.0], [3.0, 3.0]), "q_next": f64([0.0, 0.0], [0.0, 0.0]),
        "q_next_std": f64([1.0, 1.0], [1.0, 1.0]), "q_next_logp": f64(0.0, 0.0), "luck": f64(0.0, 0.0),
        "terminal": f64(1.0, 1.0),
    }  # fmt: skip
    b = Trajectories(reward=f64(1.0, 1.0), extra=fields)
    q = fields["q"].requires_grad_()
    loss, metrics = part(b)
    (grad,) = torch.autograd.grad(loss, q)
    assert float(metrics["q_std1"]) == 2.0
    assert float(grad[0, 0, 0]) == pytest.approx(2**2 * (0 - 1) / (1**2 + 0.1) / 2)
    part.regress.mean1.update({"q_std1": 1.0}, 0.0, b)
    assert float(part(b)[1]["q_std1"]) == pytest.approx(0.995 * 1.0 + 0.005 * 2.0)
    assert float(Tracked("q_std1")) != float(Tracked("q_std1"))  # NaN: nothing seen yet


# ------------------------------------------------------------------------------------------------ denoising policies


@pytest.mark.entry("reinflow")
def test_the_entropy_of_a_chain_is_divided_by_its_steps_and_its_start() -> None:
    """Two actions of two steps and of one: the mean over decisions of H_k K / (K + 1)."""
    b = Trajectories(entropy=torch.tensor([[1.0, 2.0, 5.0, 9.0]], dtype=F64), segment=torch.tensor([[0, 0, 1, 1]]))
    b = b.but(mask=torch.tensor([[True, True, True, False]])).clean()
    loss, _ = ChainEntropy(0.03)(b, Mean("token"))
    assert float(loss) == pytest.approx(-0.03 * (1 * 2 / 3 + 2 * 2 / 3 + 5 * 1 / 2) / 3)
    assert anypo.method("reinflow").stages["terms"] == (ChainEntropy(0.03),)


@pytest.mark.entry("reinflow")
def test_the_bound_of_learned_noise_holds_and_then_falls_by_three_tenths_of_its_range() -> None:
    policy = FlowPolicy(Box(-1, 1, (2,)), Box(-1, 1, (1,)), noise="learned", low=0.1, high=0.24)
    torch.nn.init.constant_(policy.spread[-1].bias, 100.0)  # as much noise as the bound allows
    found = []
    for progress in (0.0, 0.35, 0.675, 1.0):
        policy.anneal(progress)
        _, std = policy.transition(torch.zeros(1, 2), torch.zeros(1, 1), torch.tensor([0]))
        found.append(std.item())
    assert found == pytest.approx([0.24, 0.24, 0.219, 0.198], rel=1e-4)
    assert "bound" in trainable_state(policy)  # and so part of checkpoints


@pytest.mark.entry("reinflow")
def test_a_run_of_reinflow_moves_the_bound_with_its_progress() -> None:
    run = plane("reinflow")
    learn(run)
    assert run.policy.bound.item() == pytest.approx(0.3 * 0.1 + 0.7 * 0.24)


@pytest.mark.entry("reinflow")
def test_reinflow_learns_its_noise_whether_or_not_the_flow_is_named() -> None:
    for policy in ({}, {"name": "flow"}):
        run = gym("reinflow", policy=policy)
        assert run.policy.spread is not None
        assert run.config.policy["noise"] == "learned"
    assert gym("reinflow", policy={"name": "flow", "noise": "sde"}).policy.spread is None


@pytest.mark.parametrize("name", entries(["fpo", "awm", "flow-grpo", "grpo-guard"]))
def test_a_method_of_flow_policies_makes_one_where_none_is_named(name: str) -> None:
    assert isinstance(gym(name).policy, FlowPolicy)


def test_the_last_denoising_steps_may_be_left_out_of_the_training() -> None:
    """Of ten steps nine are trained, of four three, of one that one; also where a row holds several actions."""
    for steps, trained in ((10, 9), (4, 3), (1, 1)):
        segment = torch.arange(2).repeat_interleave(steps).expand(3, -1)
        b = Trajectories(advantage=torch.ones(3, 2 * steps), segment=segment)
        want = [i < trained for i in range(steps)] * 2
        assert FirstSteps(0.99)(b).valid.tolist() == [want] * 3


@pytest.mark.entry("flow-grpo")
def test_flow_grpo_as_its_release_configures_it_trains_nine_of_ten_steps_and_its_card_says_so() -> None:
    method = anypo.method("flow-grpo")
    assert "first-steps" in method.card.source
    run = plane(method.but(credit=[*method.stages["credit"], FirstSteps()]))
    assert run.method.prepare(run.task.rollout(run.policy, [Request(0, 4)], 0)[0]).valid.sum(1).tolist() == [9] * 4


@pytest.mark.entry("awm")
def test_the_average_of_awm_is_of_the_policy_after_every_batch_and_keeps_at_most_a_thousandth_per_update() -> None:
    run = plane("awm", lr=1e-2)
    want = {name: t.clone() for name, t in run.anchor("ema").items() if t.is_floating_point()}
    for batch in range(1, 4):
        begin_phase(run)
        metrics = absorb(run, collect(run))
        assert (
            metrics["guess_ema"] < 1e-8
        )  # the first batch is compared to the policy itself, the others to nearly that
        weights = trainable_state(run.policy)
        for name in want:
            decay = min(0.3, 0.001 * batch)
            want[name] = decay * want[name] + (1 - decay) * weights[name].detach()
            torch.testing.assert_close(run.anchor("ema")[name], want[name])
    run.stepper.updates = 1000
    before = {name: t.clone() for name, t in run.anchor("ema").items()}
    with torch.no_grad():
        run.policy.actor[0].bias += 1.0
    refresh(run, late=True)
    torch.testing.assert_close(
        run.anchor("ema")["actor.0.bias"], 0.3 * before["actor.0.bias"] + 0.7 * run.policy.actor[0].bias.detach()
    )


@pytest.mark.entry("fpo")
def test_fpo_cuts_2048_steps_into_32_minibatches_of_actions() -> None:
    """With the 16 passes of the release 512 updates; an action's draws stay together."""
    run = gym("fpo", step={"epochs": 16})
    recipe = run.method.stages["step"]
    assert recipe.minibatch == 64
    rows, steps = 2, 2048
    segment = torch.arange(1024).repeat_interleave(2).expand(rows, -1)
    x = torch.arange(rows * steps).reshape(rows, steps).double()
    b = Trajectories(advantage=x, segment=segment, group=torch.tensor([5, 7]))
    flat = flatten_decisions(b, run.method, True, recipe.minibatch)
    pieces = list(minibatches(flat, run.method, recipe.minibatch, run.generator))
    assert recipe.epochs * len(pieces) == 512
    assert {piece.shape for piece in pieces} == {(64, 2)}
    found = torch.cat([piece.need("advantage") for piece in pieces])
    assert found[:, 1].equal(found[:, 0] + 1)
    assert found.flatten().sort().values.equal(x.flatten())
    groups = torch.cat([piece.need("group") for piece in pieces])
    assert groups.equal(torch.where(found[:, 0] < steps, 5, 7))


def test_segments_of_unequal_length_become_rows_of_their_own() -> None:
    b = Trajectories(
        logp=torch.tensor([[1.0, 2.0, 3.0, 0.0], [4.0, 5.0, 6.0, 7.0]]),
        mask=torch.tensor([[1, 1, 1, 0], [1, 0, 1, 1]]).bool(),
        segment=torch.tensor([[0, 0, 1, 1], [0, 0, 0, 1]]),
        trace={"obs": torch.arange(16.0).reshape(2, 4, 2)},
        extra={"name": torch.tensor([10, 20])},
    )
    rows = split_segments(b)
    assert [row[keep].tolist() for row, keep in zip(rows.need("logp"), rows.valid, strict=True)] == [
        [1.0, 2.0], [3.0], [4.0, 6.0], [7.0],
    ]  # fmt: skip
    assert rows.extra["name"].tolist() == [10, 10, 20, 20]
    assert rows.trace["obs"][2, 1].tolist() == [12.0, 13.0]


@pytest.mark.parametrize("name", entries(["fpo", "reinflow"]))
def test_minibatches_of_actions_leave_the_gradient_as_it_is(name: str) -> None:
    run = plane(name)
    rows = run.task.rollout(run.policy, [Request(0, 12)], 0)[0]
    ready = run.method.prepare(compute_views(run, run.method, rows))
    flat = flatten_decisions(ready, run.method, True, 4)
    found = []
    for b in (ready, flat.rows(torch.randperm(12))):
        live = run.policy.evaluate(b, {view.functional for view in run.method.live.values()})
        run.policy.zero_grad()
        run.method.loss(b.put({n: live[view.functional] for n, view in run.method.live.items()}))[0].backward()
        found.append(torch.cat([p.grad.flatten() for p in run.policy.parameters() if p.grad is not None]))
    torch.testing.assert_close(*found)
