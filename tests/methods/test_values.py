"""Value learning: targets by hand, known minimisers, gradients and identities of the papers, on tensors alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import anypo
from anypo import Trajectories
from anypo.parts.credit import Advantage
from anypo.parts.critic import (
    ActionValue,
    Conservative,
    DoubleGreedyAction,
    DualValue,
    Expectile,
    GaussianReturn,
    GreedyAction,
    Gumbel,
    Huber,
    MixtureMatching,
    NextState,
    OneStep,
    PolicySample,
    RandomSubset,
    SoftBackup,
    StateValue,
    TargetAction,
)
from anypo.parts.knobs import Alternate, Temperature, Tracked
from anypo.parts.reduce import Mean
from anypo.parts.terms import CloneAction, CloneGoodAction
from anypo.parts.trust import BestExpert, Pathwise, WeightedBC

F64 = torch.float64
pytestmark = pytest.mark.known


def f64(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=F64)


def batch(**named: Tensor) -> Trajectories:
    """Rows of one decision: every field gets its step dimension."""
    rows = len(next(iter(named.values())))
    columns = {name: x.unsqueeze(1) for name, x in named.items()}
    return Trajectories(mask=torch.ones(rows, 1, dtype=torch.bool)).put(columns)


def close(found: Any, wanted: Any, rtol: float = 1e-9, atol: float = 1e-12) -> None:
    torch.testing.assert_close(
        torch.as_tensor(found, dtype=F64), torch.as_tensor(wanted, dtype=F64), rtol=rtol, atol=atol
    )


def implicit(regress: Any) -> StateValue:
    """A head of states that regresses on Q of the recorded actions."""
    return StateValue(regress=regress)


def minimiser(part: Any, q: Tensor) -> float:
    """The V that makes the convex loss of an implicit value least: where its slope changes sign, by bisection."""
    low, high = -8.0, 8.0
    for _ in range(50):
        v = torch.tensor([(low + high) / 2], dtype=F64, requires_grad=True)
        part(batch(v=v.expand(len(q)), q_taken=q.unsqueeze(1)))[0].backward()
        low, high = (low, v.item()) if v.grad is not None and float(v.grad) > 0 else (v.item(), high)
    return (low + high) / 2


REWARD, TERMINAL = f64(1.0, -2.0), f64(0.0, 1.0)


# ------------------------------------------------------------------------------------------------ targets


@pytest.mark.parametrize(
    ("part", "fields", "after"),
    [
        (
            ActionValue(next=PolicySample(), backup=SoftBackup(0.9, alpha=0.5)),
            {"q_next": f64([3.0, 2.0], [1.0, 5.0]), "q_next_logp": f64(-1.0, 4.0)},
            [2.0 + 0.5, 1.0 - 2.0],
        ),
        (ActionValue(next=PolicySample(), backup=OneStep(0.9)), {"q_next": f64([3.0, 2.0], [1.0, 5.0])}, [2.0, 1.0]),
        (ActionValue(next=TargetAction(), backup=OneStep(0.9)), {"q_next": f64([3.0, 2.0], [1.0, 5.0])}, [2.0, 1.0]),
        (
            ActionValue(next=TargetAction(by="both"), backup=OneStep(0.9)),
            {"q_next": f64([3.0, 2.0], [1.0, 5.0]), "q_next_now": f64([1.5, 9.0], [4.0, 4.0])},
            [1.5, 1.0],
        ),
        (ActionValue(next=NextState(), backup=OneStep(0.9)), {"v_next": f64(7.0, 8.0)}, [7.0, 8.0]),
        (
            ActionValue(next=GreedyAction(), backup=OneStep(0.9), ensemble=1),
            {"q_next_all": f64([[1.0], [4.0]], [[0.0], [2.0]])},
            [4.0, 2.0],
        ),
        (
            ActionValue(next=DoubleGreedyAction(), backup=OneStep(0.9), ensemble=1),
            {"q_next_all": f64([[1.0], [4.0]], [[0.0], [2.0]]), "q_choices": f64([[9.0], [8.0]], [[0.0], [2.0]])},
            [1.0, 2.0],
        ),
    ],
    ids=["soft", "policy", "target", "both", "state", "greedy", "double"],
)
def test_targets_by_hand(part: ActionValue, fields: dict[str, Tensor], after: list[float]) -> None:
    """y = r + gamma (1 - d) V(s'); the loss is half the squared error, summed over the ensemble, mean over decisions."""
    y = [1.0 + 0.9 * after[0], -2.0]
    q = f64([0.5, 1.0], [0.0, -1.0])[:, : part.ensemble]
    loss, told = part(batch(q=q, reward=REWARD, terminal=TERMINAL, **fields))
    close(loss, np.mean([0.5 * sum((float(x) - y[i]) ** 2 for x in q[i]) for i in range(2)]))
    assert float(told["q"]) == pytest.approx(float(q.mean()))
    assert set(part.reads) == {"q", "reward", "terminal", *fields}


def test_huber_regression_is_linear_far_out() -> None:
    part = ActionValue(next=NextState(), regress=Huber(2.0), ensemble=1)
    q = f64([10.0], [1.0]).requires_grad_()
    loss, _ = part(batch(q=q, reward=f64(0.0, 0.0), terminal=f64(1.0, 1.0), v_next=f64(0.0, 0.0)))
    close(loss, (2.0 * (10 - 1.0) + 0.5) / 2)
    close(torch.autograd.grad(loss, q)[0], f64([1.0], [0.5]))


def test_the_minimum_of_two_noisy_critics_is_biased_by_sigma_over_root_pi() -> None:
    noise = torch.randn(100_000, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    b = batch(q_next=3 * noise, reward=noise[:, 0] * 0, terminal=noise[:, 0] * 0, q=noise)
    assert float(ActionValue(next=TargetAction()).after(b).mean()) == pytest.approx(-3 / math.sqrt(math.pi), rel=0.02)


def test_max_over_noise_overestimates_and_double_does_not() -> None:
    g = torch.Generator().manual_seed(0)
    one, other = (torch.randn(50_000, 10, 1, dtype=F64, generator=g) for _ in range(2))
    zero = torch.zeros(50_000, dtype=F64)
    b = batch(q_next_all=one, q_choices=other, q=one[:, 0], reward=zero, terminal=zero)
    greedy, double = (ActionValue(next=rule()).after(b) for rule in (GreedyAction, DoubleGreedyAction))
    assert float(greedy.mean()) == pytest.approx(1.5388, abs=0.02)  # E max of ten standard normals
    assert abs(float(double.mean())) < 0.02


def test_a_subset_of_the_ensemble_changes_with_the_clock() -> None:
    q = torch.arange(10.0, dtype=F64).expand(4, 10)
    b = batch(q_next=q, reward=q[:, 0], terminal=q[:, 0], q=q)
    heads = [ActionValue(ensemble=10, aggregate=RandomSubset(2, float(t))) for t in range(60)]
    found = [float(head.after(b)[0, 0]) for head in heads]
    assert len(set(found)) > 4
    assert max(found) > 5  # more optimistic than the minimum over all
    assert float(ActionValue(ensemble=10).after(b)[0, 0]) == 0.0


# ------------------------------------------------------------------------------------------------ implicit maxima


@pytest.mark.entry("iql")
def test_expectiles_solve_their_equation_and_run_from_mean_to_maximum() -> None:
    q = torch.randn(200, dtype=F64, generator=torch.Generator().manual_seed(1))
    for t in (0.5, 0.7, 0.9):
        v = minimiser(implicit(Expectile(t=t)), q)
        u = q - v
        assert abs(float(((t - (u < 0).double()).abs() * u).sum())) < 1e-3
    assert minimiser(implicit(Expectile(t=0.5)), q) == pytest.approx(float(q.mean()), abs=1e-4)
    assert minimiser(implicit(Expectile(t=0.9999)), q) > float(q.sort().values[-3])


@pytest.mark.entry("xql")
@pytest.mark.parametrize("scaled", [True, False])
def test_gumbel_regression_gives_the_log_partition(scaled: bool) -> None:
    q = torch.randn(500, dtype=F64, generator=torch.Generator().manual_seed(2))
    for beta in (0.7, 2.0):
        wanted = beta * (float((q / beta).logsumexp(0)) - math.log(500))
        assert minimiser(implicit(Gumbel(beta=beta, clip=None, scaled=scaled)), q) == pytest.approx(wanted, abs=1e-3)


@pytest.mark.entry("xql")
def test_the_gumbel_loss_is_zero_at_equality_and_positive_elsewhere() -> None:
    part = implicit(Gumbel(beta=1.0, clip=None, scaled=False))
    q = torch.linspace(-3, 3, 13, dtype=F64)
    losses = [float(part(batch(v=f64(0.0), q_taken=x.reshape(1, 1)))[0]) for x in q]
    assert losses[6] == 0.0
    assert all(x > 0 for i, x in enumerate(losses) if i != 6)


@pytest.mark.entry("f-dvl")
def test_total_variation_gives_a_quantile() -> None:
    q = (torch.arange(2000, dtype=F64) + 0.5) / 2000
    for lam in (0.6, 0.8, 0.9):
        found = minimiser(implicit(DualValue(lam=lam)), q)
        assert found == pytest.approx((2 * lam - 1) / lam, abs=0.01)
        assert found < 1.0


@pytest.mark.entry("f-dvl", "xql")
def test_an_outlier_pulls_total_variation_boundedly_and_gumbel_without_bound() -> None:
    q = torch.cat([torch.zeros(9, dtype=F64), f64(50.0)])

    def pull(regress: Any) -> float:
        part = implicit(regress)
        v = torch.zeros(10, dtype=F64, requires_grad=True)
        return float(torch.autograd.grad(part(batch(v=v, q_taken=q.unsqueeze(1)))[0], v)[0][-1].abs()) * 10

    assert pull(DualValue(lam=0.7)) <= 0.7
    assert pull(DualValue(lam=0.7, f_divergence="chi2")) == pytest.approx(0.7 * (1 + 25) - 0.3)
    assert pull(Gumbel(beta=1.0, clip=None, scaled=False)) > 1e10
    assert pull(Gumbel(beta=1.0)) < 10


@pytest.mark.entry("f-dvl")
def test_the_chi2_surrogate_is_not_positive_again_far_below() -> None:
    v = f64(10.0).requires_grad_()
    part = implicit(DualValue(lam=0.7, f_divergence="chi2"))
    close(torch.autograd.grad(part(batch(v=v, q_taken=f64([0.0])))[0], v)[0], f64(0.3))


# ------------------------------------------------------------------------------------------------ penalties, policies


@pytest.mark.entry("cql")
def test_the_conservative_gradient_is_softmax_minus_the_recorded_action() -> None:
    every = torch.randn(4, 3, 2, dtype=F64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    action = torch.tensor([0, 2, 1, 1])
    taken = every[torch.arange(4), action]
    loss, _ = Conservative(alpha=2.0, draws=None)(batch(q=taken, q_all=every), "q")
    onehot = torch.nn.functional.one_hot(action, 3).unsqueeze(-1)
    close(torch.autograd.grad(loss, every)[0], 2.0 / 4 * (every.detach().softmax(1) - onehot))


@pytest.mark.entry("cql")
def test_the_sampled_conservative_term_weighs_actions_by_their_density() -> None:
    """With densities of a known proposal the logsumexp estimates log of the integral of exp Q: here log 2 for Q = 0 on [-1, 1]."""
    n, g = 20_000, torch.Generator().manual_seed(4)
    part = Conservative(alpha=1.0, draws=n)
    proposals = {"uniform": torch.rand(1, n, generator=g, dtype=F64) * 2 - 1}
    zero = torch.zeros(1, n, 1, dtype=F64)
    fields = {f"q_at_{k}": zero for k in ("uniform", "here", "next")}
    fields |= {f"q_logp_of_{k}": torch.full((1, n), -math.log(2), dtype=F64) for k in ("uniform", "here", "next")}
    gap = part(batch(q=f64([0.0]), **fields), "q")[0]
    assert float(gap) == pytest.approx(math.log(2) + math.log(3 * n), abs=1e-9)
    assert proposals["uniform"].abs().max() <= 1


def test_pathwise_by_hand_and_its_scale() -> None:
    q = f64([1.0, 3.0], [-2.0, 4.0])
    b = batch(q_pi=q, logp_policy=f64(-1.0, 2.0))
    close(Pathwise(of="min", alpha=0.5)(None, b)[0], f64([1.0 + 0.5], [-2.0 - 1.0]))
    close(Pathwise(of="mean", alpha=0.0)(None, b)[0], f64([2.0], [1.0]))
    found = Pathwise(of="first", soft=False, scale=2.5)(None, b)[0]
    close(found, 2.5 / 1.5 * f64([1.0], [-2.0]))
    close(Pathwise(of="first", soft=False, scale=2.5)(None, batch(q_pi=1000 * q))[0], found)  # blind to the scale of Q


@pytest.mark.entry("td3")
def test_the_policy_rests_between_its_turns() -> None:
    """td3: at every second update neither the policy's objective nor what it needs is computed."""
    method = anypo.method("td3")
    b = batch(q=f64([1.0, 2.0]), q_next=f64([0.0, 0.0]), reward=f64(0.0), terminal=f64(0.0), q_pi=f64([5.0, 6.0]))
    assert "q_pi" in method.live
    assert "q_policy" in method.loss(b)[1]
    method.update("update", {}, 0.0, b)
    assert "q_pi" not in method.live
    assert "q_policy" not in method.loss(b)[1]
    method.update("update", {}, 0.0, b)
    assert "q_pi" in method.live


@pytest.mark.entry("td3", "ddpg")
def test_td3_without_noise_delay_and_second_critic_is_ddpg() -> None:
    g = torch.Generator().manual_seed(5)
    fields = {name: torch.randn(6, 1, dtype=F64, generator=g) for name in ("q", "q_next", "q_pi")}
    b = batch(**fields, reward=fields["q"][:, 0] + 1, terminal=(fields["q_pi"][:, 0] > 0).double())
    plain = anypo.method(
        "td3", critic=[ActionValue("q", TargetAction(), ensemble=1)], trust=Pathwise(of="first", soft=False)
    )
    close(plain.loss(b)[0], anypo.method("ddpg").loss(b)[0], rtol=0, atol=0)


def test_temperature_follows_the_entropy() -> None:
    """Adam's first step is lr times the sign of -alpha (log pi + target)."""
    b = batch(q=f64(0.0)).but(trace={"action": torch.zeros(1, 1, 3)})
    too_sure, too_random = Temperature(lr=0.1), Temperature(lr=0.1)
    too_sure.update({"logp_policy": 5.0}, 0.0, b)  # entropy -5 below the target of -3
    too_random.update({"logp_policy": -5.0}, 0.0, b)
    assert float(too_sure) == pytest.approx(math.exp(0.1))
    assert float(too_random) == pytest.approx(math.exp(-0.1))
    again = Temperature(lr=0.1)
    again.load_state_dict(too_sure.state_dict())
    for knob in (too_sure, again):
        knob.update({"logp_policy": 4.0}, 0.0, b)
    assert float(again) == float(too_sure)
    float_before = float(again)
    again.update({}, 0.0, b)  # the policy rested
    assert float(again) == float_before


def gaussian(scale: float = 1.0, eps: float = 0.0, mean: float = 2.0) -> tuple[ActionValue, dict[str, Tensor]]:
    knobs = [Tracked("q_std1"), Tracked("q_std2")]
    for knob in knobs:
        knob.value = mean * scale
    part = ActionValue(next=PolicySample(of="target"), backup=SoftBackup(), regress=GaussianReturn(*knobs, eps=eps))
    fields = {
        "q": f64([1.0, 1.0]) * scale,
        "q_std": f64([2.0, 2.0]) * scale,
        "q_next": f64([5.0, 4.0]) * scale,
        "q_next_std": f64([1.0, 1.0]) * scale,
        "q_next_logp": f64(0.0),
        "luck": f64(0.0),
        "reward": f64(1.0) * scale,
        "terminal": f64(0.0),
    }
    return part, fields


@pytest.mark.entry("dsac-t")
def test_the_gaussian_critics_gradient_scales_with_rewards_only_linearly() -> None:
    slopes = []
    for c in (0.1, 1.0, 10.0, 100.0):
        part, fields = gaussian(c)
        q = fields["q"].requires_grad_()
        slopes.append(torch.autograd.grad(part(batch(**fields))[0], q)[0] / c)
    for slope in slopes[1:]:
        close(slope, slopes[0])


@pytest.mark.entry("dsac-t")
def test_the_gaussian_critics_gradient_by_hand() -> None:
    part, fields = gaussian(eps=0.1)
    q, std = fields["q"].requires_grad_(), fields["q_std"].requires_grad_()
    loss, _ = part(batch(**fields))
    y = 1 + 0.99 * 4.0  # of the smaller target critic; within 3 m = 6 of q
    close(torch.autograd.grad(loss, [q, std])[0], f64([1.0, 1.0]) * 4 * (1.0 - y) / 4.1)
    loss, _ = part(batch(**fields))
    close(torch.autograd.grad(loss, [q, std])[1], f64([1.0, 1.0]) * 4 * (4 - (y - 1) ** 2) / 8.1)


@pytest.mark.entry("dsac-t")
def test_the_mean_target_spares_the_variance_of_the_next_return() -> None:
    n, g = 100_000, torch.Generator().manual_seed(6)
    part, fields = gaussian()
    fields = {name: x.expand(n, *x.shape[1:]) for name, x in fields.items()}
    fields["luck"] = torch.randn(n, generator=g, dtype=F64)
    y_q, y_z = part.regress.targets(part, batch(**fields))
    assert float(y_z.var() - y_q.var()) == pytest.approx(0.99**2, rel=0.03)
    assert float(y_z.mean()) == pytest.approx(float(y_q.mean()), abs=0.02)


@pytest.mark.entry("dsac-t")
def test_the_gaussian_critic_settles_at_mean_and_deviation() -> None:
    g = torch.Generator().manual_seed(7)
    targets = 3.0 + 0.5 * torch.randn(4096, generator=g, dtype=F64)
    q, std = f64(0.0).requires_grad_(), f64(2.0).requires_grad_()
    part, fields = gaussian(eps=1e-6, mean=100.0)
    optimizer = torch.optim.Adam([q, std], 0.02)
    still = {name: x.expand(4096, *x.shape[1:]) for name, x in fields.items()}
    for _ in range(3000):
        optimizer.zero_grad()
        moving = {"q": q.expand(4096, 2), "q_std": std.expand(4096, 2), "reward": targets}
        part(batch(**still | moving | {"terminal": torch.ones_like(targets)}))[0].backward()
        optimizer.step()
    assert float(q) == pytest.approx(3.0, abs=0.05)
    assert float(std) == pytest.approx(0.5, rel=0.05)


@pytest.mark.entry("pmoe")
def test_only_the_best_expert_learns_and_the_gate_learns_to_win() -> None:
    q = f64([[1.0], [3.0], [2.0]]).requires_grad_()
    logp, gate = f64([-1.0, -2.0, -3.0]).requires_grad_(), f64([0.5, 0.25, 0.25]).requires_grad_()
    s, _ = BestExpert(alpha=0.5)(None, batch(q_experts=q, logp_experts=logp, routing=gate))
    slopes = torch.autograd.grad(-s.sum(), [q, logp, gate])
    close(slopes[0], f64([[0.0], [-1.0], [0.0]]))
    close(slopes[1], f64([0.0, 0.5, 0.0]))
    close(slopes[2], 2 * (f64([0.5, 0.25, 0.25]) - f64([0.0, 1.0, 0.0])) / 3)


@pytest.mark.entry("pmoe")
def test_one_expert_is_sac() -> None:
    q, logp = f64([[2.0]], [[3.0]]), f64([-1.0], [0.5])
    one = BestExpert(alpha=0.3)(None, batch(q_experts=q, logp_experts=logp, routing=f64([1.0], [1.0])))[0]
    close(one, Pathwise(of="min", alpha=0.3)(None, batch(q_pi=q[:, :, 0], logp_policy=logp[:, 0]))[0])


@pytest.mark.entry("iql", "awac")
def test_weighted_likelihood_is_capped_and_with_constant_q_it_is_cloning() -> None:
    logp = f64(-1.0, -2.0)
    b = batch(logp=logp, q_taken=f64([5.0, 9.0], [1.0, 1.0]), v_now=f64(0.0, 1.0))
    s, _ = WeightedBC(weighted=True)(None, Advantage(beta=3.0)(b))
    close(s, f64([100.0 * -1.0], [1.0 * -2.0]))  # exp(15) is cut at 100
    close(WeightedBC()(None, b)[0], logp.unsqueeze(1))


@pytest.mark.entry("awac")
def test_advantage_of_the_policys_own_draw() -> None:
    b = batch(q_now=f64([1.0, 2.0]), q_drawn=f64([0.5, 3.0]))
    close(Advantage(beta=2.0, drawn=True)(b).advantage, f64([1.0]))


@pytest.mark.entry("awac")
def test_weighted_likelihood_recovers_the_closed_form() -> None:
    """argmax of sum_a mu(a) exp(A / lam) log pi(a) is pi ~ mu exp(A / lam)."""
    mu, a = f64(0.5, 0.3, 0.2), f64(0.0, 1.0, 2.0)
    logits = torch.zeros(3, dtype=F64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], 0.05)
    for _ in range(2000):
        optimizer.zero_grad()
        b = batch(logp=logits.log_softmax(0)).but(advantage=a.unsqueeze(1), weight=mu.unsqueeze(1))
        (-Mean("token")(WeightedBC(weighted=True)(None, b)[0], b)).backward()
        optimizer.step()
    close(logits.detach().softmax(0), (mu * a.exp()) / (mu * a.exp()).sum(), atol=1e-3, rtol=0)


@pytest.mark.entry("td3-bc")
def test_cloning_actions_shifts_the_optimum_by_half_the_slope_of_q() -> None:
    """L = -lam Q'(pi) pi + (pi - a)^2 with Q linear: pi = mean a + lam Q' / 2."""
    a, pi = f64([0.2], [0.4]), f64([0.0], [0.0]).requires_grad_()
    loss, _ = CloneAction()(batch(action_policy=pi, taken=a), Mean("token"))
    close(torch.autograd.grad(loss, pi)[0], 2 * (0 - a) / 2)


def a2pr(q_now: float, q_vae: float, **more: Any) -> tuple[Tensor, Tensor]:
    pi, vae = f64([0.0, 0.0]).requires_grad_(), f64([0.5, 0.5]).requires_grad_()
    fields = {"action_policy": pi, "vae_policy": vae, "taken": f64([1.0, -1.0]), "v_now": f64(0.0)}
    loss, _ = CloneGoodAction(**more)(batch(**fields, q_now=f64([q_now, 0.0]), q_vae=f64([q_vae, 0.0])), Mean("token"))
    found = torch.autograd.grad(loss, [pi, vae], allow_unused=True, materialize_grads=True)
    return found[0][0], found[1][0]


@pytest.mark.entry("a2pr")
def test_the_gate_lets_only_good_actions_through() -> None:
    close(a2pr(-1.0, -2.0)[0], f64(0.0, 0.0))  # both worse than average: no pull at all
    close(a2pr(2.0, 1.0)[0], f64(-1.0, 1.0))  # both better, the recorded one best: gate 1
    close(a2pr(-1.0, 1.0)[0], 0.5 * f64(-0.5, -0.5))  # the autoencoder's alone: gate 1/2
    assert a2pr(-1.0, 1.0)[1].abs().sum() == 0
    assert a2pr(-1.0, 1.0, through=True)[1].abs().sum() > 0


@pytest.mark.entry("a2pr")
def test_a_gate_of_one_and_the_recorded_action_is_td3_bc() -> None:
    fields = {"action_policy": f64([0.3, -0.2]), "taken": f64([1.0, -1.0])}
    plain = CloneAction()(batch(**fields), Mean("token"))[0]
    gated = {"vae_policy": f64([9.0, 9.0]), "q_now": f64([2.0]), "v_now": f64(0.0), "q_vae": f64([1.0])}
    close(CloneGoodAction()(batch(**fields, **gated), Mean("token"))[0], plain)


# ------------------------------------------------------------------------------------------------ strong duality


@pytest.mark.entry("recoil")
def test_mixture_matching_attains_the_chi2_divergence_of_the_mixtures() -> None:
    """On a random MDP with a fixed policy, min_Q of the objective (with the exact V) is -sum (d_pi_mix - d_mix)^2 / d_mix, also
    where the other data never visit what the expert does. Source: arXiv 2302.08560, sec. 5."""
    rng, (n, m), gamma, beta = np.random.default_rng(0), (6, 3), 0.9, 0.5
    p = rng.dirichlet(np.ones(n), (n, m))
    start = rng.dirichlet(np.ones(n))

    def occupancy(pi: np.ndarray) -> np.ndarray:
        flow = np.einsum("sa,sat->st", pi, p)
        return ((1 - gamma) * np.linalg.solve(np.eye(n) - gamma * flow.T, start))[:, None] * pi

    pi, expert, other = (rng.dirichlet(np.ones(m), n) for _ in range(3))
    other[:, 0] = 0.0
    other /= other.sum(1, keepdims=True)
    d, e, s = occupancy(pi), occupancy(expert), occupancy(other)
    mix, ours = beta * e + (1 - beta) * s, beta * d + (1 - beta) * s
    wanted = -(((ours - mix) ** 2) / mix).sum()
    # unroll beta (1 - gamma) E_{start, pi} Q + E_mix[y + y^2/4] - (1 - beta) E_S[y] and solve for its minimum
    step = np.einsum("sat,tb->satb", p, pi).reshape(n * m, n * m)
    y = gamma * step - np.eye(n * m)
    linear = beta * (1 - gamma) * (start[:, None] * pi).ravel() + (mix - (1 - beta) * s).ravel() @ y
    quadratic = 0.5 * y.T @ np.diag(mix.ravel()) @ y
    q = -np.linalg.solve(quadratic, linear)
    assert linear @ q + 0.5 * q @ quadratic @ q == pytest.approx(wanted, abs=1e-9)
    # the part, on all pairs weighted by their frequencies, with s ~ the expert's initial flow written as expert states
    values = torch.tensor(q, dtype=F64).reshape(n, m)
    v = (values * torch.tensor(pi)).sum(1)
    follow = torch.tensor(p, dtype=F64).reshape(n * m, n) @ v
    rows = [(values.flatten(), follow, torch.tensor(w.ravel()), flag) for w, flag in ((e, 1.0), (s, 0.0))]
    residual = sum(
        share * float((w * (gamma * nxt - x) ** 2).sum())
        for (x, nxt, w, _), share in zip(rows, (beta, 1 - beta), strict=True)
    )
    size = n * m
    b = batch(
        q=torch.cat([x for x, *_ in rows]).unsqueeze(1),
        q_policy=torch.zeros(2 * size, 1, dtype=F64),
        v_next=torch.cat([nxt for _, nxt, *_ in rows]),
        expert=torch.cat([torch.full((size,), flag, dtype=F64) for *_, flag in rows]),
        terminal=torch.zeros(2 * size, dtype=F64),
    ).but(weight=torch.cat([w for *_, w, _ in rows]).unsqueeze(1) * size)
    found = float(MixtureMatching(beta=beta, gamma=gamma)(b)[0])
    assert found == pytest.approx(-beta * float((values.flatten() * torch.tensor(e.ravel())).sum()) + 0.25 * residual)


# ------------------------------------------------------------------------------------------------ identities of methods


def test_every_second_update_is_the_first_of_two() -> None:
    knob = Alternate(period=3)
    found = []
    for _ in range(7):
        found.append(float(knob))
        knob.update({}, 0.0, batch(q=f64(0.0)))
    assert found == [1, 0, 0, 1, 0, 0, 1]


@pytest.mark.entry("sac")
def test_one_knob_may_serve_several_parts() -> None:
    """sac's temperature stands in its critic and its policy; it moves once an update, and survives a configuration."""
    method = anypo.method("sac")
    alpha = method.stages["trust"].alpha
    assert method.stages["critic"][0].backup.alpha is alpha
    b = batch(q=f64(0.0)).but(trace={"action": torch.zeros(1, 1, 1)})
    method.update("update", {"logp_policy": 3.0}, 0.0, b)
    alone = Temperature()
    alone.update({"logp_policy": 3.0}, 0.0, b)
    assert float(alpha) == float(alone)
