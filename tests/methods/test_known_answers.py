"""Identities between methods, gradient formulae and unbiasedness on problems small enough to enumerate."""

from __future__ import annotations

from itertools import product
from math import comb

import pytest
import torch
from entries import entries
from strategies import gradients, random_advantage, random_batch
from torch import Tensor
from torch.nn.functional import cosine_similarity, logsigmoid

import anypo
from anypo import Trajectories
from anypo.parts.credit import Baseline, Combine
from anypo.parts.critic import Value
from anypo.parts.ratio import LogRatio
from anypo.parts.reduce import Mean
from anypo.parts.terms import Divergence
from anypo.parts.trust import Clip

CLIPPED = ["ppo", "grpo", "dr-grpo", "dapo"]
pytestmark = pytest.mark.known


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def batches(n: int = 30, **fixed: object):
    for seed in range(n):
        yield random_batch(seed, 1 + seed % 7, 1 + seed % 5, outcome=("score", "reward")[seed % 2], **fixed)


def close(x: Tensor, y: Tensor, rtol: float = 1e-10, atol: float = 1e-12) -> None:
    torch.testing.assert_close(x, y, rtol=rtol, atol=atol)


# ---------------------------------------------------------------- one method is another at some setting


@pytest.mark.entry("gspo")
def test_sequence_ratio_on_rows_of_one_decision_is_grpo_without_kl() -> None:
    gspo = anypo.method("gspo", trust=Clip(0.2, 0.2))
    grpo = anypo.method("grpo", terms=[])
    for b in batches(spread=0.5):
        b = grpo.prepare(b.but(mask=b.valid & (b.valid.cumsum(1) == 1)))
        (one, _, g), (other, _, h) = gradients(gspo, b), gradients(grpo, b)
        close(one, other)
        close(g["logp"], h["logp"])


@pytest.mark.entry("gspo")
def test_sequence_ratio_gradient_per_token_is_minus_s_times_advantage_over_length() -> None:
    gspo = anypo.method("gspo", trust=Clip(9.0, 9.0))  # a range nothing leaves
    for b in batches(spread=0.3):
        b = gspo.prepare(b.but(weight=None))
        _, _, g = gradients(gspo, b)
        x = torch.where(b.valid, b.logp - b.logp_old, 0.0)
        length = b.lengths.clamp(min=1).unsqueeze(1)
        s = (x.sum(1, keepdim=True) / length).exp()
        close(g["logp"], torch.where(b.valid, -s * b.advantage / (length * len(x)), 0.0))


@pytest.mark.entry("gspo")
def test_gspo_cuts_whole_answers_just_outside_its_narrow_range() -> None:
    b = Trajectories(
        logp=torch.tensor([[5e-4, 5e-4], [3e-4, 3e-4], [-4e-4, -4e-4]], dtype=torch.float64),
        logp_old=torch.zeros(3, 2, dtype=torch.float64),
        advantage=torch.tensor([[1.0, 1.0], [1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64),
    )
    _, metrics, g = gradients(anypo.method("gspo"), b)
    assert (g["logp"] != 0).all(1).tolist() == [False, True, False]
    assert float(metrics["clip_fraction"]) == pytest.approx(2 / 3)


@pytest.mark.entry("rloo", "dr-grpo")
def test_leave_one_out_is_the_group_mean_baseline_times_g_over_g_minus_one() -> None:
    for b in batches():
        a, centred = anypo.method("rloo").prepare(b).advantage, anypo.method("dr-grpo").prepare(b).advantage
        size = (b.group.unsqueeze(0) == b.group.unsqueeze(1)).sum(1).double()
        factor = torch.where(size > 1, size / (size - 1).clamp(min=1), 0.0).unsqueeze(1)
        close(a, centred * factor)


@pytest.mark.entry("ppo", "a2c")
def test_first_gradient_of_ppo_is_that_of_a2c_when_the_advantages_agree() -> None:
    """One epoch, no value clipping, no whitening, entropy coefficient 0."""
    a2c = anypo.method("a2c", terms=[])
    ppo = anypo.method("ppo", critic=[Value(coef=0.5)], credit=a2c.stages["credit"])
    for b in batches():
        b = b.but(logp_old=b.logp)
        one, other = a2c.prepare(b), ppo.prepare(b)
        close(one.advantage, other.advantage)
        (_, _, g), (_, _, h) = gradients(a2c, one), gradients(ppo, other)
        close(g["logp"], h["logp"])
        close(g["value"], h["value"])


@pytest.mark.parametrize("name", entries([*CLIPPED, "cispo", "minpro"]))
def test_at_ratio_one_every_importance_weighted_method_is_plain_likelihood(name: str) -> None:
    method = anypo.method(name, terms=[], critic=[])
    plain = method.but(ratio=None, trust="likelihood")
    for b in batches():
        b = random_advantage(method.prepare(b.but(logp_old=b.logp)))
        close(gradients(method, b)[2]["logp"], gradients(plain, b)[2]["logp"])


@pytest.mark.entry("grpo", "reinforce")
def test_grpo_at_ratio_one_is_length_normalised_reinforce_with_standardised_scores() -> None:
    grpo = anypo.method("grpo", terms=[])
    reinforce = anypo.method("reinforce", credit=[Combine(), Baseline("group")], reduce=Mean("row"))
    for b in batches():
        b = b.but(logp_old=b.logp)
        close(gradients(grpo, grpo.prepare(b))[2]["logp"], gradients(reinforce, reinforce.prepare(b))[2]["logp"])


@pytest.mark.parametrize("name", entries(CLIPPED))
def test_the_clipped_surrogate_is_a_pessimistic_bound(name: str) -> None:
    clipped = anypo.method(name, terms=[], critic=[])
    free = clipped.but(trust=Clip(low=1.0, high=1e9))
    for b in batches(10, spread=1.0):
        b = random_advantage(clipped.prepare(b))
        assert clipped.loss(b)[0] >= free.loss(b)[0] - 1e-12


@pytest.mark.entry("cispo")
def test_cispo_below_its_cap_is_the_unclipped_policy_gradient() -> None:
    cispo = anypo.method("cispo")
    free = cispo.but(trust=Clip(low=1.0, high=1e9))
    for b in batches(spread=0.3):
        b = random_advantage(cispo.prepare(b))
        close(gradients(cispo, b)[2]["logp"], gradients(free, b)[2]["logp"])


@pytest.mark.entry("minpro")
def test_minpro_on_the_first_decision_of_a_row_is_cispo() -> None:
    minpro, cispo = anypo.method("minpro"), anypo.method("cispo")
    for b in batches(spread=0.5):
        b = random_advantage(minpro.prepare(b))
        first = b.valid & (b.valid.cumsum(1) == 1)
        g, h = gradients(minpro, b)[2]["logp"], gradients(cispo, b)[2]["logp"]
        close(g[first], h[first])


@pytest.mark.entry("dapo")
def test_groups_that_agree_leave_dapos_token_mean_and_get_no_gradient() -> None:
    dapo = anypo.method("dapo")
    logp = torch.tensor([[-1.0, -2.0]] * 4, dtype=torch.float64)
    b = Trajectories(
        logp=logp,
        logp_old=logp,
        score=torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=torch.float64),
        group=torch.tensor([0, 0, 1, 1]),
    )
    b = dapo.prepare(b)
    _, metrics, g = gradients(dapo, b)
    assert (g["logp"] != 0).all(1).tolist() == [False, False, True, True]
    assert float(metrics["denominator"]) == 4


# ---------------------------------------------------------------- unbiasedness, by enumeration


ARMS = torch.tensor([0.3, -0.2, 0.9, 0.1, -1.0], dtype=torch.float64)
REWARD = torch.tensor([1.0, 0.2, -0.5, 0.7, 2.0], dtype=torch.float64)


def true_gradient() -> Tensor:
    theta = ARMS.clone().requires_grad_()
    (theta.softmax(0) * REWARD).sum().backward()
    return theta.grad


def expected_gradient(name: str, size: int, baseline: float = 0.0, **stages: object) -> Tensor:
    """-E[dloss/dtheta] over all samples of `size` arms drawn from one softmax policy as one group."""
    method, total = anypo.method(name, **stages), torch.zeros(5, dtype=torch.float64)
    for arms in product(range(5), repeat=size):
        index = torch.tensor(arms)
        theta = ARMS.clone().requires_grad_()
        logp = theta.log_softmax(0)[index].unsqueeze(1)
        b = Trajectories(
            logp=logp,
            logp_old=logp.detach(),
            score=REWARD[index] - baseline,
            group=torch.zeros(size, dtype=torch.long),
            budget=1,
        )
        method.loss(method.prepare(b))[0].backward()
        total -= logp.detach().sum().exp() * theta.grad
    return total


@pytest.mark.entry("reinforce")
@pytest.mark.parametrize("baseline", [0.0, 0.48, -7.0])
def test_reinforce_is_unbiased_with_any_baseline_that_ignores_the_action(baseline: float) -> None:
    close(expected_gradient("reinforce", 1, baseline), true_gradient(), rtol=0, atol=1e-12)


@pytest.mark.entry("rloo")
@pytest.mark.parametrize("size", [2, 3])
def test_leave_one_out_is_unbiased(size: int) -> None:
    close(expected_gradient("rloo", size), true_gradient(), rtol=0, atol=1e-12)


@pytest.mark.entry("dr-grpo")
@pytest.mark.parametrize("size", [2, 3])
def test_the_group_mean_baseline_shrinks_the_gradient_by_g_minus_one_over_g(size: int) -> None:
    close(expected_gradient("dr-grpo", size), true_gradient() * (size - 1) / size, rtol=0, atol=1e-12)


@pytest.mark.entry("rloo")
def test_leave_one_out_varies_less_than_no_baseline() -> None:
    def second_moment(name: str) -> float:
        method, total = anypo.method(name), 0.0
        for arms in product(range(5), repeat=2):
            index = torch.tensor(arms)
            theta = ARMS.clone().requires_grad_()
            logp = theta.log_softmax(0)[index].unsqueeze(1)
            b = Trajectories(logp=logp, score=REWARD[index] + 1, group=torch.zeros(2, dtype=torch.long))
            method.loss(method.prepare(b))[0].backward()
            total += float(logp.detach().sum().exp() * theta.grad.square().sum())
        return total

    assert second_moment("rloo") < second_moment("reinforce")


@pytest.mark.entry("grpo", "dr-grpo")
def test_dividing_by_the_group_deviation_turns_the_gradient_away_from_the_objective() -> None:
    """Two prompts solved with probability 0.5 and 0.95, groups of 64: GRPO's expected gradient is not along grad J."""
    size, chances = 64, f64(0.5, 0.95)

    def expected(name: str) -> Tensor:
        method, total = anypo.method(name, terms=[]), []
        for p in chances:
            theta = p.logit().requires_grad_()
            slope = torch.zeros((), dtype=torch.float64)
            for hits in range(size + 1):  # the order of the rows does not matter
                score = (torch.arange(size) < hits).double()
                logp = torch.where(score > 0, logsigmoid(theta), logsigmoid(-theta)).unsqueeze(1)
                b = Trajectories(
                    logp=logp, logp_old=logp.detach(), score=score, group=torch.zeros(size).long(), budget=1
                )
                (g,) = torch.autograd.grad(method.loss(method.prepare(b))[0], theta)
                slope -= comb(size, hits) * logp.detach().sum().exp() * g
            total.append(slope)
        return torch.stack(total)

    truth = chances * (1 - chances)
    assert cosine_similarity(expected("grpo"), truth, 0) < 0.99
    close(expected("dr-grpo"), truth * (size - 1) / size)


@pytest.mark.entry("reinforce")
def test_the_mean_over_tokens_is_biased_by_length_and_the_sum_over_rows_is_not() -> None:
    """A policy that first draws whether to stop: reward 1 for short, 2 for long (two decisions)."""
    bias = {}
    for over in ("sum", "token", "row"):
        method = anypo.method("reinforce", reduce=Mean(over))
        theta = torch.tensor([0.4, -0.3], dtype=torch.float64, requires_grad=True)
        objective, estimate = 0.0, torch.zeros(2, dtype=torch.float64)
        for stop, second in ((True, 0), (False, 0), (False, 1)):
            first = logsigmoid(theta[0] if stop else -theta[0])
            then = logsigmoid(theta[1] if second else -theta[1])
            reward = 1.0 if stop else 2.0 + second
            probability = first.exp() if stop else (first + then).exp()
            objective = objective + probability * reward
            b = Trajectories(
                logp=torch.stack([first, then]).unsqueeze(0),
                mask=torch.tensor([[True, not stop]]),
                score=torch.tensor([reward], dtype=torch.float64),
            )
            (g,) = torch.autograd.grad(method.loss(method.prepare(b))[0], theta, retain_graph=True)
            estimate -= probability.detach() * g
        (truth,) = torch.autograd.grad(objective, theta)
        bias[over] = float((estimate - truth).abs().max())
    assert bias["sum"] < 1e-12
    assert bias["token"] > 0.05
    assert bias["row"] > 0.05


# ---------------------------------------------------------------- defaults as published


def test_only_grpo_itself_has_a_divergence_from_the_reference() -> None:
    for name in ("grpo", "dr-grpo", "dapo", "gspo", "cispo", "minpro", "rloo", "ppo", "a2c", "reinforce"):
        has_reference = any(isinstance(t, Divergence) for t in anypo.method(name).stages["terms"])
        assert has_reference == (name == "grpo")


def test_published_constants() -> None:
    stages = {n: anypo.method(n).stages for n in anypo.methods()}
    assert stages["dapo"]["trust"] == Clip(0.2, 0.28)
    assert stages["gspo"]["trust"] == Clip(3e-4, 4e-4)
    assert stages["gspo"]["ratio"] == LogRatio("row", how="mean")
    assert (stages["a2c"]["step"].lr, stages["a2c"]["step"].grad_norm) == (7e-4, 0.5)
    assert stages["ppo"]["critic"] == (Value(0.5, clip=0.2),)
    assert stages["reinforce"]["step"].epochs == 1
