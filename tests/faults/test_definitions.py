"""Methods are what their releases compute: numbers by hand and identities for details that are easily left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import anypo
from anypo import Trajectories, policies
from anypo import config as configuration
from anypo.evidence.reach import Reach
from anypo.loops.absorb import absorb, learn_again
from anypo.loops.collect import collect
from anypo.parts.knobs import Temperature, Tracked
from anypo.policies.control.normalize import Standardize
from anypo.runs.build import build
from anypo.runs.run import Run

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
    run.begin_phase()
    before = {name: p.detach().clone() for name, p in run.policy.named_parameters()}
    run.store.recipe = type(run.store.recipe)(batch=16, start=1, idle=1)
    absorb(run, collect(run))
    moved: dict[str, float] = {}
    for name, p in run.policy.named_parameters():
        kind = "vae" if name.startswith("critics.vae") else "else"
        moved[kind] = max(moved.get(kind, 0.0), float((p.detach() - before[name]).abs().max()))
    assert moved["vae"] == pytest.approx(1e-3, rel=1e-2)
    assert moved["else"] == pytest.approx(3e-4, rel=1e-2)


@pytest.mark.parametrize("method", [pytest.param(m, marks=pytest.mark.entry(m)) for m in ("td3-bc", "prdc", "a2pr")])
def test_states_are_standardised_by_the_data(method: str, tmp_path: Path) -> None:
    run = offline(method, tmp_path / "d.npz")
    obs = run.task.transitions()["obs"]
    want = (obs - obs.mean(0)) / (obs.std(0, correction=0) + 1e-3)
    torch.testing.assert_close(run.policy.features(obs), want, rtol=1e-5, atol=1e-6)
    assert run.config.policy["normalize"] is True
    assert offline(method, tmp_path / "d.npz", policy={**SMALL, "normalize": False}).policy.features(obs).equal(obs)


def test_standardisation_does_not_cut_what_is_far_from_the_data() -> None:
    norm = Standardize(1)
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
    run.begin_phase()
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
        "q_next_std": f64([1.0, 1.0], [1.0, 1.0]), "logp_next": f64(0.0, 0.0), "luck": f64(0.0, 0.0),
        "terminal": f64(1.0, 1.0),
    }  # fmt: skip
    b = Trajectories(reward=f64(1.0, 1.0), extra=fields)
    q = fields["q"].requires_grad_()
    loss, metrics = part(b)
    (grad,) = torch.autograd.grad(loss, q)
    assert float(metrics["q_std1"]) == 2.0
    assert float(grad[0, 0, 0]) == pytest.approx(2**2 * (0 - 1) / (1**2 + 0.1) / 2)
    part.mean1.update({"q_std1": 1.0}, 0.0, b)
    assert float(part(b)[1]["q_std1"]) == pytest.approx(0.995 * 1.0 + 0.005 * 2.0)
    assert float(Tracked("q_std1")) != float(Tracked("q_std1"))  # NaN: nothing seen yet
