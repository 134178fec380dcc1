"""The methods that change credit, selection or the mean: prepare, loss and gradients against independent loops in float64 (weights,
missing outcomes and channels, every option), and the known answers of their papers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from itertools import combinations, product
from math import exp, isnan, lgamma, log, pi, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from entries import entries
from references_advantage import (
    RECIPES,
    best_budget,
    beta_density,
    budget_value,
    loss,
    paper_scores,
    prepare,
    quantile,
    tracked,
)
from strategies import gradients, random_advantage, random_batch, same_bits
from torch import Tensor

import anypo
from anypo import Method, Trajectories
from anypo.errors import UsageError
from anypo.parts.collect import KnapsackBudget
from anypo.parts.collect.budget import allocate, chance_times_gain
from anypo.parts.credit import (
    AddProgress,
    Baseline,
    Combine,
    DecoupledBaseline,
    EntropyModulate,
    MaxVarianceRows,
    MixedValueAtRisk,
    TopTokens,
    WeightedBaseline,
)
from anypo.parts.knobs import TrackedQuantile
from anypo.parts.knobs.tracked import SuccessRate
from anypo.parts.reduce import Decoupled, Mean
from anypo.parts.score import GateChannels
from anypo.parts.step import SnrAdam
from anypo.parts.terms import HingeDivergence, Perception
from anypo.parts.trust import ShortestContrast
from anypo.policies.tabular import SoftmaxTable
from anypo.protocols import BatchSpec
from anypo.tasks.pool import StartPool
from anypo.types import Request

CASES = 60
F64 = torch.float64
pytestmark = pytest.mark.known
every_recipe = pytest.mark.parametrize(
    "recipe", entries(RECIPES, lambda recipe: RECIPES[recipe][0]), ids=lambda n: f"{n}-{CASES}batches"
)


def f64(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=F64)


def close(x: Any, y: Any, rtol: float = 1e-10, atol: float = 1e-12) -> None:
    torch.testing.assert_close(torch.as_tensor(x, dtype=F64), torch.as_tensor(y, dtype=F64), rtol=rtol, atol=atol)


def built(recipe: str) -> Method:
    """The method of a recipe: the registered one, or a setting of it."""
    name, _ = RECIPES[recipe]
    z = [Combine(), Baseline("group")]
    variants: dict[str, dict[str, Any]] = {
        "gdpo-weights": {"credit": [DecoupledBaseline(weights=(2.0, 0.25))]},
        "gdpo-tokens": {"credit": [DecoupledBaseline(over="tokens")]},
        "gdpo-gated": {"score": [GateChannels(on=0)]},
        "riskpo-neutral": {"credit": [MixedValueAtRisk(averse=0.0, bundle=2)]},
        "riskpo-levels": {"credit": [MixedValueAtRisk(levels=(0.4, 0.6), averse=3.0, bundle=1)]},
        "empg-strong": {"credit": [*z, EntropyModulate(k=2.0, k_next=0.5, zeta=0.4)]},
        "d3s-half": {"credit": [*z, MaxVarianceRows(0.375), TopTokens(0.4)]},
        "d3s-all": {"credit": [*z, MaxVarianceRows(1.0), TopTokens(1.0)]},
        "thinkless-half": {"reduce": Decoupled(alpha=0.5)},
        "oblr-po-others": {"credit": [Combine(), WeightedBaseline(leave_one_out=True)]},
        "grpo-vps-third": {"credit": [*z, AddProgress(1 / 3)]},
        "papo-entropy": {"terms": [*anypo.method("papo").stages["terms"][:1], Perception(0.5, eta=0.05)]},
        "drpo-flat": {"trust": ShortestContrast(lam=1e9)},
        "drpo-sharp": {"trust": ShortestContrast(tau=0.5, lam=0.5), "terms": [HingeDivergence(beta=3.0, delta=0.05)]},
    }
    if recipe == "papo-dapo":
        return anypo.method("dapo", terms=[Perception(0.01, eta=0.03)])
    found = anypo.method(name, **variants.get(recipe, {}))
    if recipe == "riskpo-tracked":
        part = found.stages["credit"][0]
        part.low.value, part.high.value = RECIPES[recipe][1]["tracked"]
    if recipe == "d3s-late":
        found.update("batch", {}, 1.0, Trajectories())
    return found


def case(seed: int, recipe: str) -> Trajectories:
    """A random batch with everything the method may meet."""
    rng, name = np.random.default_rng([seed, 11]), RECIPES[recipe][0]
    rows, steps = int(rng.integers(1, 12)), int(rng.integers(1, 8))
    kinds = ["score", "scores", "reward"]
    if name == "grpo-vps":  # there a reward is progress
        kinds.remove("reward")
    if name == "d3s":  # rounded numbers would tie up to rounding errors
        kinds.remove("scores")
    if recipe.startswith("gdpo-"):  # options about several channels
        kinds = ["scores"]
    outcome, spread = kinds[seed % len(kinds)], (0.05, 0.3, 1.0, 3.0)[seed % 4]
    b = random_batch(seed, rows, steps, outcome=outcome, spread=spread, holes=(0.0, 0.3, 0.7)[seed % 7 % 3])

    def some(*shape: int) -> Tensor:
        return torch.as_tensor(rng.standard_normal(shape))

    if b.score is not None and seed % 2:
        b = b.but(score=some(rows) + 0.5)
    if name == "bnpo":  # rewards in [0, 1]
        b = b.but(
            score=None if b.score is None else b.score.clamp(0, 1),
            scores=None if b.scores is None else b.scores.clamp(0, 1),
            reward=None if b.reward is None else b.reward.abs().clamp(max=1) / steps,
        )
    if recipe == "gdpo-gated":  # rows without any outcome: see below
        b = b.but(scores=b.scores.where(~b.scores.isnan().all(1, keepdim=True), 0.0))
    if b.score is not None and seed % 5 == 0:
        b = b.but(score=b.score.masked_fill(torch.as_tensor(rng.random(rows) < 0.3), torch.nan))
    if name == "grpo-vps" and seed % 3:
        b = b.but(reward=0.3 * some(rows, steps))
    if name == "empg" and (recipe == "empg-rows" or seed % 7 == 0):
        b = b.but(segment=None)
    if name == "oblr-po" and seed % 4:
        norm = some(rows, steps).abs() * torch.as_tensor(rng.random((rows, 1)) < 0.8)
        b = b.but(extra={"score_norm": norm})
        if seed % 4 == 3:
            b = b.but(extra=b.extra | {"grad_norm": some(rows).square()})
    if name == "papo":
        far = torch.as_tensor(rng.choice([0.5, 3.0, 25.0], (rows, steps)))
        b = b.but(extra={"logp_ablated": b.logp + far * some(rows, steps)})
    return b


def as_arrays(b: Trajectories) -> dict[str, Any]:
    found = {f.name: getattr(b, f.name) for f in fields(b)} | b.extra | {"mask": b.valid, "expert_mask": b.expert_mask}
    return {k: t.detach().numpy() if isinstance(t, Tensor) else t for k, t in found.items()}


def full(value: float, *shape: int) -> Tensor:
    return torch.full(shape, value, dtype=F64)


def agree(found: Any, wanted: Any, what: str) -> None:
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9, err_msg=what)


@every_recipe
def test_prepare_equals_the_reference(recipe: str) -> None:
    method = built(recipe)
    for seed in range(CASES):
        b = case(seed, recipe)
        found, wanted = method.prepare(b), prepare(recipe, as_arrays(b))
        np.testing.assert_array_equal(found.valid.numpy(), wanted["mask"], err_msg=f"mask, seed {seed}")
        if "advantage" in wanted:
            agree(found.advantage, wanted["advantage"], f"advantage, seed {seed}")


@pytest.mark.parametrize("given", ["prepared", "any advantage"])
@every_recipe
def test_loss_and_gradients_equal_the_reference(recipe: str, given: str) -> None:
    method = built(recipe)
    for seed in range(CASES):
        b = method.prepare(case(seed, recipe))
        if given != "prepared":
            b = random_advantage(b)
        found, _, slopes = gradients(method, b)
        wanted, hand = loss(recipe, as_arrays(b))
        agree(found, wanted, f"loss, seed {seed}")
        for leaf, slope in slopes.items():
            agree(slope, hand[leaf], f"gradient of {leaf}, seed {seed}")


def group_of(scores: Any, x: Any = 0.0, group: Any = None, width: int = 1, **more: Any) -> Trajectories:
    """Rows of `width` decisions with these scores (or, given two columns, channels) and log-ratios, by default in one group."""
    scores = torch.as_tensor(scores, dtype=F64)
    old = full(-1.0, len(scores), width)
    outcome = {"score": scores} if scores.ndim == 1 else {"scores": scores}
    group = torch.zeros(len(scores)).long() if group is None else torch.as_tensor(group)
    return Trajectories(logp=old + torch.as_tensor(x, dtype=F64), logp_old=old, group=group, **outcome, **more)


def credit(name: str | Method, b: Trajectories) -> Tensor:
    """The advantage of every row's first decision."""
    return (anypo.method(name) if isinstance(name, str) else name).prepare(b).advantage[:, 0]


def batches(n: int = 30, **fixed: Any) -> Iterator[Trajectories]:
    for seed in range(n):
        yield random_batch(seed, 1 + seed % 9, 1 + seed % 5, **fixed)


# ------------------------------------------------------------------------------------------------ GDPO


@pytest.mark.entry("gdpo")
@pytest.mark.parametrize(("rollouts", "summed", "apart"), [(2, 2, 3), (3, 4, 6), (4, 7, 14), (5, 11, 26)])
def test_two_binary_rewards_keep_more_levels_apart_than_their_sum(rollouts: int, summed: int, apart: int) -> None:
    """All 4^n groups of n rows in one batch: the batch step is then one and the same affine map for all of them."""
    every = torch.tensor(list(product(product((0.0, 1.0), repeat=2), repeat=rollouts)), dtype=F64)
    group = torch.arange(len(every)).repeat_interleave(rollouts)
    for name, wanted in (("grpo", summed), ("gdpo", apart)):
        a = credit(name, group_of(every.reshape(-1, 2), group=group)).reshape(-1, rollouts)
        levels = {
            tuple(np.round(np.sort(row), 4) + 0.0) for row in a.numpy()
        }  # beyond what 1e-6 beside a deviation makes
        assert len(levels) == wanted


@pytest.mark.entry("gdpo")
def test_two_passed_channels_count_twice_as_much_as_one() -> None:
    b = group_of([[0, 0], [1, 0], [0, 0], [1, 1]], group=[0, 0, 1, 1])
    plain, apart = credit("grpo", b), credit("gdpo", b)
    close(plain[:2], plain[2:], rtol=2e-6)  # up to the 1e-6 beside the deviation
    close(apart[2:], 2 * apart[:2])


@pytest.mark.entry("gdpo")
def test_a_single_channel_is_grpo_with_another_epsilon() -> None:
    for b in batches(outcome="score"):
        close(credit("gdpo", b), credit(anypo.method("grpo", credit=[Combine(), Baseline(eps=1e-4)]), b))
        channel = b.but(score=None, scores=b.score.unsqueeze(1))
        close(credit("gdpo", channel), credit("gdpo", b))


@pytest.mark.entry("gdpo")
def test_weights_that_do_not_match_the_channels_are_refused() -> None:
    with pytest.raises(UsageError, match="1 reward channels and 2 weights"):
        credit(built("gdpo-weights"), group_of([[1.0], [0.0], [3.0]]))


@pytest.mark.entry("gdpo")
def test_gdpos_credit_has_unit_deviation_and_ignores_the_channels_units() -> None:
    rng = torch.Generator().manual_seed(0)
    for _ in range(30):
        raw = torch.randn(12, 2, generator=rng, dtype=F64)
        other = raw * f64(50.0, 0.2) + f64(-3.0, 8.0)
        group = torch.arange(12) // 4
        a, b = (credit("gdpo", group_of(x, group=group)) for x in (raw, other))
        close(a.std(), 1.0, rtol=1e-3)
        close(a.mean(), 0.0)
        close(a, b, rtol=0, atol=5e-3)  # up to the 1e-4 beside the deviations
        summed, unequal = (credit("grpo", group_of(x, group=group)) for x in (raw, other))
        assert (summed - unequal).abs().max() > 0.1


@pytest.mark.entry("gdpo")
def test_whitening_over_tokens_lets_long_rows_weigh_more() -> None:
    lengths = torch.tensor([1, 1, 6, 6])
    b = group_of([[0.0, 1.0], [1.0, 0.3], [2.0, 0.1], [0.5, 2.0]], width=6, mask=torch.arange(6) < lengths[:, None])
    rows = anypo.method("gdpo").prepare(b)
    close(credit("gdpo", b).mean(), 0.0)
    tokens = built("gdpo-tokens").prepare(b).advantage[b.valid]
    close(tokens.mean(), 0.0)
    close(tokens.std(), 1.0, rtol=1e-7)
    assert abs(float(rows.advantage[b.valid].mean())) > 1e-3


@pytest.mark.entry("gdpo")
def test_a_gated_channel_counts_only_in_rows_that_pass() -> None:
    b = group_of([[0.0, 5.0], [0.0, -2.0], [1.0, 1.0], [1.0, 0.0]])
    gated = GateChannels(on=0)(b).scores
    close(gated, f64([0, 0], [0, 0], [1, 1], [1, 0]))


@pytest.mark.entry("gdpo")
def test_gating_does_not_give_an_outcome_to_a_row_without_one() -> None:
    b = group_of([[float("nan")] * 2, [1.0, 3.0], [0.0, 2.0], [float("nan"), 2.0]])
    done = built("gdpo-gated").prepare(b)
    assert done.valid[:, 0].tolist() == [False, True, True, True]
    close(done.advantage[[1, 2, 3], 0], credit("gdpo", group_of([[1.0, 3.0], [0.0, 0.0], [0.0, 0.0]])))


# ------------------------------------------------------------------------------------------------ BNPO


def pairs_with_rates(p: Tensor, gap: float = 0.01) -> Trajectories:
    """Groups of two rows whose mean reward is p."""
    gap = torch.minimum(p, 1 - p).clamp(max=gap)
    return group_of(torch.stack([p - gap, p + gap], 1).flatten(), group=torch.arange(len(p)).repeat_interleave(2))


def normalizer(p: Tensor) -> Tensor:
    """What the method multiplies R - p by, for every group."""
    b = pairs_with_rates(p)
    a, score = credit("bnpo", b).reshape(-1, 2), b.score.reshape(-1, 2)
    return (a[:, 1] - a[:, 0]) / (score[:, 1] - score[:, 0])


def parameters(p: Tensor) -> tuple[float, float]:
    """alpha and beta, read off log(1/f) = log B - (alpha - 1) log p - (beta - 1) log(1 - p) at three groups."""
    chosen = p.argsort()[[len(p) // 8, len(p) // 2, len(p) - 1 - len(p) // 8]]
    x, y = p[chosen], normalizer(p)[chosen].log()
    design = torch.stack([torch.ones(3, dtype=F64), -x.log(), -(-x).log1p()], 1)
    _, alpha, beta = torch.linalg.solve(design, y)
    return 1 + float(alpha), 1 + float(beta)


@pytest.mark.entry("bnpo")
def test_equal_success_rates_give_reinforce_with_a_baseline() -> None:
    b = group_of([1, 0, 0, 1, 0, 1, 0, 0], group=[0, 0, 0, 0, 1, 1, 1, 1])
    one_rate = b.but(score=f64(1, 0, 0, 1, 0, 1, 0, 1))
    close(credit("bnpo", one_rate), one_rate.score - 0.5)
    alone = b.rows(torch.arange(4))
    close(credit("bnpo", alone), alone.score - 0.5)


@pytest.mark.entry("bnpo")
def test_rates_spread_like_beta_three_halves_give_grpo_up_to_a_constant() -> None:
    p = 0.5 + sqrt(0.0625 / 2) * f64(-1.0, 1.0)  # mean 1/2, variance 1/16: a = b = 3/2
    close(normalizer(p), pi / 8 / (p * (1 - p)).sqrt())


@pytest.mark.entry("bnpo")
def test_the_beta_distribution_of_the_rates_is_recovered_from_draws() -> None:
    rng = np.random.default_rng(0)
    alpha, beta = parameters(torch.as_tensor(rng.beta(2.0, 5.0, 400_000)))
    close([3 * (alpha - 1), 3 * (beta - 1)], [2.0, 5.0], rtol=0.02)


@pytest.mark.entry("bnpo")
@pytest.mark.parametrize(("a", "b"), [(2.0, 5.0), (3.0, 3.0), (6.0, 1.5)])
def test_the_normaliser_has_the_least_second_moment_of_all_beta_normalisers(a: float, b: float) -> None:
    """E[(R - p)^2 / f^2] = Bf(alpha, beta)^2 Bf(a + 3 - 2 alpha, b + 3 - 2 beta) / Bf(a, b), for p ~ Beta(a, b)."""

    def area(x: float, y: float) -> float:
        return exp(lgamma(x) + lgamma(y) - lgamma(x + y))

    def moment(x: float, y: float) -> float:
        return area(x, y) ** 2 * area(a + 3 - 2 * x, b + 3 - 2 * y) / area(a, b)

    middle = (np.arange(200_000) + 0.5) / 200_000
    density = np.array([beta_density(float(v), 1.2, 1.1) for v in middle[::50]])
    law = np.array([beta_density(float(v), a, b) for v in middle[::50]])
    integral = float(np.mean(law * middle[::50] * (1 - middle[::50]) / density**2))
    close(integral, moment(1.2, 1.1), rtol=1e-3)

    best = (1 + a / 3, 1 + b / 3)
    grid = [
        (moment(1 + u * (a + 1) / 2, 1 + v * (b + 1) / 2), 1 + u * (a + 1) / 2, 1 + v * (b + 1) / 2)
        for u, v in product(np.linspace(0.02, 0.98, 97), repeat=2)
    ]
    least, x, y = min(grid)
    assert moment(*best) <= least * (1 + 1e-12)
    close([x, y], best, rtol=0, atol=(max(a, b) + 1) / 2 * 0.01)
    drawn = torch.as_tensor(np.random.default_rng(1).beta(a, b, 200_000))
    close(parameters(drawn), best, rtol=0.02)


@pytest.mark.entry("bnpo")
def test_bnpos_normaliser_is_capped_and_harmless_where_every_row_agrees() -> None:
    b = group_of([1, 1, 0, 0, 1, 0, 1, 1, 1, 0], group=[0, 0, 1, 1, 2, 2, 3, 3, 3, 3])
    a = credit("bnpo", b)
    assert a.isfinite().all()
    assert not a[:4].any()
    assert (credit("bnpo", b.but(group=torch.arange(10))) == 0).all()  # groups of one


@pytest.mark.entry("bnpo")
def test_bnpo_averages_the_credit_of_its_channels() -> None:
    rng = torch.Generator().manual_seed(0)
    raw = (torch.rand(12, 3, generator=rng) < 0.5).to(F64)
    group = torch.arange(12) // 4
    each = torch.stack([credit("bnpo", group_of(x, group=group)) for x in raw.unbind(1)])
    close(credit("bnpo", group_of(raw, group=group)), each.mean(0))


# ------------------------------------------------------------------------------------------------ RiskPO


def mixed_value_at_risk(p: Tensor, x: Tensor, low: float, high: float, w: float) -> Tensor:
    """(w CVaR_low + RVaR_low:high) / (w + 1) of a variable with values x, by integrating its quantile function."""
    order = x.argsort()
    upto = p[order].cumsum(0)
    start = torch.cat([upto.new_zeros(1), upto[:-1]])

    def part(a: float, b: float) -> Tensor:
        return ((upto.clamp(a, b) - start.clamp(a, b)) * x[order]).sum() / (b - a)

    return (w * part(0.0, low) + part(low, high)) / (w + 1)


@pytest.mark.entry("riskpo")
@pytest.mark.parametrize("w", [0.0, 1.5])
def test_riskpos_expected_gradient_is_that_of_the_exact_mixed_value_at_risk(w: float) -> None:
    """A softmax over five outcomes, every outcome once in the batch, true quantiles given."""
    logits, x = f64(0.3, -0.4, 0.9, 0.1, -1.0), f64(1.0, -0.5, 0.2, 2.0, 0.7)
    p, order = logits.softmax(0), x.argsort()
    q = [float(x[order][int((p[order].cumsum(0) < level).sum())]) for level in (0.2, 0.9)]
    method = anypo.method("riskpo", credit=[MixedValueAtRisk(low=q[0], high=q[1], averse=w, bundle=1)])
    scale = (x.std() + 1e-6) ** 2  # of the papers and, with one prompt, of the rows
    g = credit(method, group_of(x)) * scale
    score = torch.eye(5, dtype=F64) - p  # d log p_k / d logits
    found = (p * g) @ score
    step, wanted = 1e-5, []
    for k in range(5):
        ends = [mixed_value_at_risk((logits + s * step * torch.eye(5)[k]).softmax(0), x, 0.2, 0.9, w) for s in (1, -1)]
        wanted.append(float(ends[0] - ends[1]) / (2 * step))
    close(found, wanted, rtol=1e-5, atol=1e-6)  # levels carry 1e-6 in the credit


@pytest.mark.entry("riskpo")
def test_without_aversion_and_with_all_levels_riskpo_is_the_mean_with_the_best_paper_as_baseline() -> None:
    x = f64(0.5, 2.0, -1.0, 0.0)
    method = anypo.method("riskpo", credit=[MixedValueAtRisk(levels=(0.0, 1.0), averse=0.0, bundle=1)])
    close(credit(method, group_of(x)), (x - 2.0) / (1 + 1e-6) / (x.std() + 1e-6) ** 2)


@pytest.mark.entry("riskpo")
def test_riskpos_credit_is_never_positive_and_zero_above_the_upper_quantile() -> None:
    for name in ("riskpo", "riskpo-tracked", "riskpo-neutral", "riskpo-levels"):
        for seed in range(40):
            b = case(seed, name)
            assert (built(name).prepare(b).advantage <= 1e-12).all()
    b = group_of([0.0, 1.0, 3.0])
    method = anypo.method("riskpo", credit=[MixedValueAtRisk(low=0.5, high=2.0)])
    a = credit(method, b)
    close(a[2], 0.0)
    assert a[0] < a[1] < 0


@pytest.mark.entry("riskpo")
def test_papers_take_one_row_of_each_prompt_in_batch_order() -> None:
    """Six prompts: five share a bundle, the last is one of its own; rows beyond the smallest group have no credit."""
    group = [0, 1, 2, 3, 4, 5] * 2 + [0, 5]
    score = torch.arange(14, dtype=F64).square() / 10
    a = credit("riskpo", group_of(score, group=group))
    assert a[12] == 0  # the third row of prompt 0
    assert a[13] == 0  # the best of three papers of prompt 5 alone
    s = score.reshape(-1)[:12].reshape(2, 6)
    x = s[:, :5].sum(1)
    q = [quantile(x.tolist(), level) for level in (0.2, 0.9)]
    paper = (1.5 * -(q[0] - x[0]) / (0.2 + 1e-6) + (q[0] - q[1]) / (0.7 + 1e-6)) / 2.5 / (x.std() + 1e-6)
    own = torch.stack([score[[0, 6, 12]].std(), *(s[:, k].std() for k in range(1, 5))])
    close(a[:5], paper / (own + 1e-6))


@pytest.mark.entry("riskpo")
def test_the_order_of_groups_does_not_matter_but_that_of_a_groups_rows_does() -> None:
    rng = torch.Generator().manual_seed(0)
    score, group = torch.randn(12, generator=rng, dtype=F64), torch.arange(12) % 3
    a = credit("riskpo", group_of(score, group=group))
    ranked = torch.cat([torch.arange(12)[group == g] for g in (2, 0, 1)])
    close(credit("riskpo", group_of(score[ranked], group=group[ranked])), a[ranked])
    swapped = torch.arange(12)
    swapped[[0, 3]] = swapped[[3, 0]]
    assert (credit("riskpo", group_of(score[swapped], group=group[swapped])) - a[swapped]).abs().max() > 1e-3


@pytest.mark.entry("riskpo")
def test_credit_comes_before_the_tracker_in_every_batch() -> None:
    method = anypo.method("riskpo")
    part = method.stages["credit"][0]
    history: list[list[float]] = []
    for seed in range(12):
        b = random_batch(seed, 12, 2, optional=False).but(
            score=torch.randn(12, dtype=F64, generator=torch.Generator().manual_seed(seed))
        )
        known = None if not history else [tracked(history, level) for level in (0.2, 0.9)]
        assert (known is None) == isnan(float(part.low)) == isnan(float(part.high))
        if known is not None:
            close([float(part.low), float(part.high)], known)
        done = method.prepare(b)
        if known is not None:
            fixed = anypo.method("riskpo", credit=[MixedValueAtRisk(low=known[0], high=known[1])])
            close(done.advantage, fixed.prepare(b).advantage)
        else:
            close(done.advantage, anypo.method("riskpo", credit=[MixedValueAtRisk()]).prepare(b).advantage)
        method.loss(done)
        method.update("batch", {}, 0.0, done)
        history.append(paper_scores(as_arrays(b)))


@pytest.mark.entry("riskpo")
@pytest.mark.parametrize(("level", "wanted"), [(0.2, -0.8416), (0.9, 1.2816)])
def test_a_tracker_settles_on_the_quantiles_of_a_normal_distribution(level: float, wanted: float) -> None:
    knob, rng = TrackedQuantile(level, rate=0.01, bundle=1), torch.Generator().manual_seed(0)
    tail = []
    for _ in range(2000):
        knob.update({}, 0.0, group_of(torch.randn(64, generator=rng, dtype=F64)))
        tail.append(float(knob))
    assert sum(tail[500:]) / 1500 == pytest.approx(wanted, abs=0.05)


# ------------------------------------------------------------------------------------------------ EMPG


@pytest.mark.entry("empg")
def test_the_expected_squared_score_is_one_minus_the_collision_probability() -> None:
    """E_a |grad log pi(a)|^2 = 1 - exp(-H_2) over the logits, H_2 the Renyi entropy of order 2."""
    rng = torch.Generator().manual_seed(0)
    for arms in (2, 3, 7):
        policy = SoftmaxTable(1, arms, value=False).double()
        with torch.no_grad():
            policy.logits.copy_(3 * torch.randn(1, arms, generator=rng))
        every = Trajectories(
            mask=torch.ones(arms, 1, dtype=torch.bool),
            trace={"obs": torch.zeros(arms, 1).long(), "action": torch.arange(arms).unsqueeze(1)},
        )
        found = policy.evaluate(every, {"score_norm", "logp"})
        p = policy.logits[0].softmax(0).detach()
        jacobian = torch.autograd.functional.jacobian(lambda z: z.log_softmax(0), policy.logits[0].detach())
        close(found["score_norm"][:, 0].detach(), jacobian.square().sum(1))
        close((p * found["score_norm"][:, 0].detach()).sum(), 1 - p.square().sum())


def steps_of(entropy: Any, score: Any = (1.0, 0.0), segment: Any = None, **more: Any) -> Trajectories:
    entropy = torch.as_tensor(entropy, dtype=F64)
    segment = torch.arange(entropy.shape[1]).expand_as(entropy) if segment is None else torch.as_tensor(segment)
    return group_of(score, width=entropy.shape[1], entropy=entropy, segment=segment, **more)


@pytest.mark.entry("empg")
def test_empgs_scale_has_mean_one_over_steps_and_falls_with_entropy() -> None:
    entropy = f64([0.1, 2.0, 0.7], [1.1, 0.4, 1.9])
    part = EntropyModulate(k=1.5, zeta=0.0)
    b = steps_of(entropy).but(advantage=torch.ones(2, 3, dtype=F64))
    g = part(b).advantage + 1  # without its mean, which is 1
    h = (entropy - 0.1) / (1.9 + 1e-8)
    close(g.log() - g.log()[0, 0], -1.5 * (h - h[0, 0]))
    close(g.mean(), 1.0)
    assert (g.flatten()[entropy.flatten().argsort()].diff() < 0).all()


@pytest.mark.entry("empg")
def test_without_modulation_empg_is_the_base_advantage_minus_its_mean_over_steps() -> None:
    method = anypo.method("empg", credit=[Combine(), Baseline(), EntropyModulate(k=0.0, k_next=0.0, zeta=0.0)])
    for b in batches():
        found, base = method.prepare(b), anypo.method("grpo").prepare(b)
        steps = {(i, int(b.segment[i, t])): float(base.advantage[i, t]) for i, t in found.valid.nonzero().tolist()}
        mean = sum(steps.values()) / max(len(steps), 1)
        close(found.advantage, torch.where(found.valid, base.advantage - mean, 0.0))


@pytest.mark.entry("empg")
def test_a_confident_step_of_a_failed_row_is_blamed_most() -> None:
    entropy = f64([0.2, 1.5, 0.9, 0.4], [1.0, 0.3, 2.0, 0.6])
    method = anypo.method("empg", credit=[Combine(), Baseline(), EntropyModulate(zeta=0.0)])
    a = method.prepare(steps_of(entropy)).advantage
    assert (a[1][entropy[1].argsort()].diff() > 0).all()
    assert (a[0][entropy[0].argsort()].diff() < 0).all()


@pytest.mark.entry("empg")
def test_a_steps_bonus_is_the_clarity_of_the_step_after_it_and_the_last_gets_none() -> None:
    entropy = f64([0.2, 1.5, 0.9], [1.0, 0.3, 2.0])
    with_, without = (
        EntropyModulate(zeta=z)(steps_of(entropy).but(advantage=torch.zeros(2, 3, dtype=F64))).advantage
        for z in (0.3, 0.0)
    )
    h = (entropy - 0.2) / (1.8 + 1e-8)
    bonus = torch.cat([0.3 * (-h[:, 1:]).exp(), torch.zeros(2, 1, dtype=F64)], 1)
    close(with_ - without, bonus - bonus.mean())


@pytest.mark.entry("empg")
def test_long_steps_weigh_no_more_than_short_ones() -> None:
    short = anypo.method("empg").prepare(steps_of([[0.1, 2.0], [1.1, 0.4]])).advantage
    entropy = [[0.0, 0.1, 0.2, 2.0], [1.1, 1.1, 1.1, 0.4]]
    long = anypo.method("empg").prepare(steps_of(entropy, segment=[[3, 3, 3, 8], [0, 0, 0, 5]])).advantage
    close(long[:, [0, 3]], short)
    close(long[:, :3], short[:, :1].expand(2, 3))


# ------------------------------------------------------------------------------------------------ D3S


@pytest.mark.entry("d3s")
def test_the_scan_finds_the_subset_of_largest_variance() -> None:
    for seed in range(60):
        rng = np.random.default_rng(seed)
        rows = int(rng.integers(1, 11))
        score = rng.standard_normal(rows) if seed % 2 else rng.integers(0, 2, rows).astype(float)
        b = group_of(score, group=rng.integers(0, 3, rows))
        share = float(rng.choice([0.2, 0.25, 0.5, 0.9]))
        a = credit("grpo", b).numpy()
        kept = MaxVarianceRows(share)(b).valid[:, 0].numpy()
        size = int(kept.sum())
        assert size == int(np.ceil(share * rows - 1e-9))
        best = max(float(np.var(a[list(some)])) for some in combinations(range(rows), size))
        close(np.var(a[kept]), best)


@pytest.mark.entry("d3s")
def test_of_right_and_wrong_rows_half_and_half_are_kept() -> None:
    b = group_of([1, 1, 0, 0] * 4, group=torch.arange(16) // 4)
    kept = MaxVarianceRows(0.5)(b).valid[:, 0]
    assert sorted(b.score[kept].tolist()) == [0] * 4 + [1] * 4
    assert kept.nonzero()[:, 0].tolist() == [
        2,
        3,
        6,
        7,
        8,
        9,
        12,
        13,
    ]  # the first of the wrong and the last of the right


@pytest.mark.entry("d3s")
def test_of_equal_keys_the_earlier_decisions_stay() -> None:
    b = group_of([1, 0], width=4, entropy=torch.ones(2, 4, dtype=F64))
    b = anypo.method("grpo").prepare(b)
    assert TopTokens(0.5)(b).valid.tolist() == [[True] * 4, [False] * 4]
    assert TopTokens(0.3)(b).valid.tolist() == [[True] * 3 + [False], [False] * 4]  # ceil(2.4)


@pytest.mark.entry("d3s")
def test_keeping_everything_is_the_base_loss_bit_for_bit() -> None:
    mine, base = built("d3s-all"), anypo.method("grpo", terms=[], reduce=Mean("token"))
    for b in batches(spread=0.5):
        one, other = mine.prepare(b), base.prepare(b)
        assert same_bits(one.advantage, other.advantage)
        assert torch.equal(one.valid, other.valid)
        (x, _, g), (y, _, h) = gradients(mine, one), gradients(base, other)
        assert same_bits(x, y)
        assert same_bits(g["logp"], h["logp"])


@pytest.mark.entry("d3s")
def test_d3s_selects_less_strictly_as_the_run_goes_on() -> None:
    method = anypo.method("d3s")
    for progress in (None, 0.0, 0.5, 1.0):
        if progress is not None:
            method.update("batch", {}, progress, Trajectories())
        rows, tokens = (float(part.share) for part in method.stages["credit"][2:])
        close([rows, tokens], [0.25 + 0.25 * (progress or 0), 0.2 + 0.4 * (progress or 0)])
        b = group_of(torch.arange(20) % 4, group=torch.arange(20) // 4, width=10, entropy=torch.rand(20, 10).to(F64))
        done = method.prepare(b)
        assert int(done.valid.any(1).sum()) <= round(20 * rows)
        assert int(done.valid.sum()) == np.ceil(round(tokens * 10 * np.ceil(round(20 * rows, 9)), 9))


@pytest.mark.entry("d3s")
def test_the_kept_rows_have_a_larger_gradient_than_as_many_random_ones() -> None:
    """Three arms, 20 prompts, half of them solved, eight rows each: |gradient|^2 of the kept rows, over 200 batches."""
    rng = np.random.default_rng(0)
    logits = torch.zeros(20, 3, dtype=F64)
    logits[:10, 0] = 6.0
    policy, prompt = logits.softmax(1), torch.arange(20).repeat_interleave(8)
    part, wins, ratios = MaxVarianceRows(0.25), 0, []
    for _ in range(200):
        arm = torch.tensor([rng.choice(3, p=policy[c].numpy()) for c in prompt])
        b = group_of((arm == 0).to(F64), group=prompt)
        a = credit("grpo", b)
        score = torch.zeros(160, 20, 3, dtype=F64)
        score[torch.arange(160), prompt] = torch.eye(3, dtype=F64)[arm] - policy[prompt]

        def squared(rows: Any, a: Tensor = a, score: Tensor = score) -> float:
            return float((a[rows, None, None] * score[rows]).mean(0).square().sum())

        kept = part(b).valid[:, 0].nonzero()[:, 0]
        mine, random = squared(kept), squared(torch.as_tensor(rng.permutation(160)[: len(kept)]))
        wins, ratios = wins + (mine >= random), [*ratios, mine / random]
    assert wins >= 190
    assert sum(ratios) / 200 > 1


# ------------------------------------------------------------------------------------------------ Thinkless


@pytest.mark.entry("thinkless")
def test_thinkless_on_policy_value_of_a_long_and_a_short_answer() -> None:
    """Five and two decisions, A = +1 and -1: 0.001 * 0 + (-4 + 1) / 5, by the definition's own example."""
    lengths = torch.tensor([5, 2])
    b = group_of([1.0, -1.0], width=5, mask=torch.arange(5) < lengths[:, None])
    method = anypo.method("thinkless")
    found = method.loss(method.prepare(b.but(logp_ref=b.logp)))[0]
    close(found, -0.6)


@pytest.mark.entry("thinkless")
def test_the_choice_of_mode_has_the_same_weight_however_long_the_answer() -> None:
    lengths = torch.tensor([9, 3, 2, 1])
    b = group_of([1.0, 0.0, 1.0, 0.0], width=9, mask=torch.arange(9) < lengths[:, None])
    b = b.but(logp_ref=b.logp)

    def weights(method: Method) -> Tensor:
        return gradients(method, method.prepare(b))[2]["logp"][:, 0].abs()

    decoupled = anypo.method("thinkless", terms=[])
    close(weights(decoupled), full(1e-3 * 0.5 / 4, 4))
    close(weights(decoupled.but(reduce=Mean("row"))), 0.5 / (4 * lengths.to(F64)))


@pytest.mark.entry("thinkless")
def test_thinkless_with_alpha_at_the_share_of_control_tokens_is_a_token_mean() -> None:
    for b in batches(spread=0.5, holes=0.0):
        width = b.shape[1]
        if width == 1:
            continue
        mine = anypo.method("thinkless", terms=[], reduce=Decoupled(alpha=1 / (width - 1)))
        base = anypo.method("dr-grpo", reduce=Mean("token"))
        ready = random_advantage(mine.prepare(b))
        close(gradients(mine, ready)[2]["logp"], gradients(base, ready)[2]["logp"] * width / (width - 1))


@pytest.mark.entry("thinkless")
def test_thinkless_divergence_covers_the_control_token_unscaled() -> None:
    b = group_of([1.0, 1.0], width=4, logp_ref=full(-1.5, 2, 4))  # no credit: only the divergence
    g = gradients(method := anypo.method("thinkless"), method.prepare(b))[2]["logp"]
    close(g, full(1e-3 * (1 - exp(-0.5)) / 8, 2, 4))


# ------------------------------------------------------------------------------------------------ OBLR-PO


LOGITS, REWARDS = f64(0.9, -0.3, -1.1), f64(1.0, -0.5, 3.0)


def squared_scores(p: Tensor) -> Tensor:
    """|grad log p_k|^2 over the logits."""
    return 1 - 2 * p + p.square().sum()


def total_variance(p: Tensor, baseline: float) -> float:
    """tr Cov of (R - b) grad log p."""
    score = torch.eye(len(p), dtype=F64) - p
    each = (REWARDS - baseline).unsqueeze(1) * score
    return float((p * each.square().sum(1)).sum() - (p.unsqueeze(1) * each).sum(0).square().sum())


@pytest.mark.entry("oblr-po")
def test_no_baseline_has_less_variance_than_the_norm_weighted_one() -> None:
    """Ten rows that hold the arms in exactly the policy's proportions, so that the plug-in baseline is the optimum."""
    p = f64(0.5, 0.3, 0.2)
    arms = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)
    b = group_of(REWARDS[arms], extra={"grad_norm": squared_scores(p)[arms]})
    found = REWARDS[arms] - credit("oblr-po", b)
    close(found, found[:1].expand(10))
    w = squared_scores(p)
    close(found[0], float((p * w * REWARDS).sum() / (p * w).sum()))
    least = total_variance(p, float(found[0]))
    assert all(total_variance(p, x) >= least - 1e-12 for x in np.linspace(-3, 5, 801))
    assert total_variance(p, float((p * REWARDS).sum())) > least + 1e-3  # norms differ, so the mean is not optimal


@pytest.mark.entry("oblr-po")
def test_the_norm_in_the_logits_is_the_sum_over_the_rows_decisions() -> None:
    norm = f64([0.1, 0.4, 9.0], [0.2, 0.2, 0.2])
    b = group_of([1.0, 0.0], width=3, mask=torch.tensor([[1, 1, 0], [1, 1, 1]]) > 0, extra={"score_norm": norm})
    close(credit("oblr-po", b), f64(1.0, 0.0) - 0.5 / (0.5 + 0.6))
    given = b.but(extra=b.extra | {"grad_norm": f64(3.0, 1.0)})
    close(credit("oblr-po", given), f64(1.0, 0.0) - 0.75)


@pytest.mark.entry("oblr-po")
def test_equal_norms_give_the_group_mean_or_leave_one_out() -> None:
    for b in batches():
        for norm in ({}, {"grad_norm": full(0.7, b.shape[0])}):
            b = b.but(extra=norm)
            close(credit("oblr-po", b), credit("dr-grpo", b))
            close(credit(built("oblr-po-others"), b), credit("rloo", b))


@pytest.mark.entry("oblr-po")
def test_weights_of_zero_give_the_plain_mean() -> None:
    b = group_of([1.0, 0.0, 0.5], extra={"grad_norm": torch.zeros(3, dtype=F64)})
    close(credit("oblr-po", b), f64(0.5, -0.5, 0.0))
    one = b.but(extra={"grad_norm": f64(0.0, 2.0, 0.0)})
    close(credit(built("oblr-po-others"), one), f64(1.0, -0.75, 0.5))


def expected_gradient(method: Method, size: int) -> Tensor:
    """-E[dloss/dlogits] over all samples of `size` arms as one group."""
    total = torch.zeros(3, dtype=F64)
    for arms in product(range(3), repeat=size):
        index, logits = torch.tensor(arms), LOGITS.clone().requires_grad_()
        logp = logits.log_softmax(0)[index].unsqueeze(1)
        norm = squared_scores(LOGITS.softmax(0))[index]
        b = group_of(REWARDS[index]).but(logp=logp, logp_old=logp.detach(), extra={"grad_norm": norm})
        method.loss(method.prepare(b))[0].backward()
        total -= logp.detach().sum().exp() * logits.grad
    return total


@pytest.mark.entry("oblr-po")
@pytest.mark.parametrize("size", [2, 3, 4])
def test_leaving_a_row_out_of_its_own_baseline_is_unbiased_and_leaving_it_in_is_not(size: int) -> None:
    logits = LOGITS.clone().requires_grad_()
    (logits.softmax(0) * REWARDS).sum().backward()
    close(expected_gradient(built("oblr-po-others"), size), logits.grad)
    assert (expected_gradient(anypo.method("oblr-po"), size) - logits.grad).abs().max() > 1e-3


@pytest.mark.entry("oblr-po")
@pytest.mark.parametrize("others", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_the_weighted_baseline_lies_between_the_scores_it_averages(dtype: torch.dtype, others: bool) -> None:
    method = anypo.method("oblr-po", credit=[Combine(), WeightedBaseline(leave_one_out=others)])
    for seed in range(100):
        rng = np.random.default_rng(seed)
        size = int(rng.integers(2, 7))
        score = torch.as_tensor(rng.standard_normal(size)).to(dtype)
        norm = torch.as_tensor(10 ** rng.uniform(-2, 2, size)).to(dtype)
        b = group_of(score, extra={"grad_norm": norm}).but(score=score)
        baseline = score - credit(method, b)
        for i in range(size):
            used = [float(s) for j, s in enumerate(score) if j != i or not others]
            assert min(used) - 1e-4 <= float(baseline[i]) <= max(used) + 1e-4, f"seed {seed}, row {i}"


@pytest.mark.entry("oblr-po")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_a_heavy_row_is_compared_with_the_weighted_mean_of_the_light_ones(dtype: torch.dtype) -> None:
    """Rows of which the policy was sure have tiny norms: 1e-6 and 3e-6 beside 100, with scores 0 and 1."""
    b = group_of([0.0, 0.0, 1.0])
    b = b.but(score=b.score.to(dtype), extra={"grad_norm": torch.tensor([100.0, 1e-6, 3e-6], dtype=dtype)})
    close(credit(built("oblr-po-others"), b)[0], -0.75, atol=1e-3)


@pytest.mark.entry("oblr-po")
def test_the_step_follows_the_signal_to_noise_ratio() -> None:
    """lr SNR / (1 + SNR) with |grad J|^2 from <g1, g2> and V from |g1 - g2|^2 / 4; the whole rate without noise."""

    def rates(*pairs: tuple[list[float], list[float]]) -> list[float]:
        x = torch.nn.Parameter(torch.zeros(2, dtype=F64))
        stepper = SnrAdam(lr=0.1, warmup=0, decay=0.9).bind([{"params": [x]}])

        def closure(g: list[float]) -> Any:
            def run() -> dict[str, Any]:
                (x * f64(*g)).sum().backward()
                return {"loss": torch.zeros(())}

            return run

        return [stepper.update(closure(one), closure(other))["lr"] for one, other in pairs]

    close(rates(([3.0, 0.0], [1.0, 0.0])), [0.1 * 3 / 4])
    close(rates(([2.0, 1.0], [2.0, 1.0])), [0.1])
    close(rates(([1.0, 0.0], [-1.0, 0.0])), [0.0])
    signal, noise = 0.9 * 3 + 0.0, 0.9 * 1 + 2.0 / 4
    close(rates(([3.0, 0.0], [1.0, 0.0]), ([1.0, 0.0], [0.0, 1.0]))[1], 0.1 * signal / (signal + noise))


# ------------------------------------------------------------------------------------------------ GRPO-VPS


@pytest.mark.entry("grpo-vps")
def test_progress_adds_up_to_what_the_row_gained_in_belief() -> None:
    belief = f64([0.1, 0.15, 0.6, 0.55, 0.9], [0.1, 0.1, 0.05, 0.05, 0.0])
    segment = torch.tensor([[0, 0, 1, 2, 2, 2, 3], [0, 1, 1, 1, 2, 3, 3]])
    reward = belief.diff(dim=1).gather(1, segment)
    b = group_of([1.0, 0.0], width=7, reward=reward, segment=segment)
    mine, base = anypo.method("grpo-vps").prepare(b), anypo.method("grpo").prepare(b)
    added = mine.advantage - base.advantage
    close(added, reward)
    for i in range(2):
        once = sum(float(added[i][segment[i] == k][0]) for k in range(4))
        close(once, belief[i, 4] - belief[i, 0])


@pytest.mark.entry("grpo-vps")
def test_progress_reaches_groups_whose_outcomes_agree_and_a_batch_without_it_is_grpo() -> None:
    b = group_of([1.0, 1.0], width=2, reward=f64([0.3, -0.1], [0.0, 0.2]))
    close(anypo.method("grpo-vps").prepare(b).advantage, b.reward)
    close(anypo.method("grpo-vps").prepare(b.but(reward=None)).advantage, torch.zeros(2, 2))


@pytest.mark.entry("grpo-vps")
def test_segments_hold_as_many_uncertain_tokens_as_each_other() -> None:
    pytest.importorskip("transformers")
    from anypo.policies.language.probes import entropy_segments

    rng = torch.Generator().manual_seed(0)
    for _ in range(100):
        length = int(torch.randint(1, 40, (), generator=rng))
        entropy = torch.rand(1, 45, generator=rng)
        valid = torch.arange(45).unsqueeze(0) < length
        part = entropy_segments(entropy, valid, 4)[0, :length]
        assert (part.diff() >= 0).all()
        assert part.min() >= 0
        assert part.max() <= 3
        uncertain = part[entropy[0, :length] >= entropy[0, :length].median()]
        counts = torch.bincount(uncertain, minlength=4)
        assert counts.max() - counts.min() <= 1


# ------------------------------------------------------------------------------------------------ Knapsack RL


def value_of(counts: list[int], rates: list[float]) -> float:
    return sum(budget_value(n, p) for n, p in zip(counts, rates, strict=True))


@pytest.mark.entry("knapsack-rl")
def test_the_greedy_budget_is_the_dynamic_programme_and_the_brute_force() -> None:
    for seed in range(60):
        rng = np.random.default_rng(seed)
        prompts = 3 if seed % 2 else int(rng.integers(1, 9))
        rates = [float(p) for p in rng.choice([0.0, 1.0, *rng.random(6)], prompts)]
        low, high = int(rng.integers(1, 4)), int(rng.integers(5, 14))
        total = prompts * int(rng.integers(low, high + 1))
        counts = allocate(rates, total, low, high)
        assert sum(counts) <= total
        assert all(low <= n <= high for n in counts)
        close(value_of(counts, rates), best_budget(rates, total, low, high))
        if prompts == 3:
            every = product(range(low, high + 1), repeat=3)
            close(value_of(counts, rates), max(value_of(list(n), rates) for n in every if sum(n) <= total))
        assert value_of(counts, rates) >= value_of([total // prompts] * prompts, rates) - 1e-12


@pytest.mark.entry("knapsack-rl")
def test_the_gain_is_largest_for_starts_solved_a_third_of_the_time() -> None:
    grid = np.linspace(0, 1, 30001)
    gain = [chance_times_gain(10**6, float(p)) for p in grid[1:-1]]
    close(grid[1 + int(np.argmax(gain))], 1 / 3, atol=1e-4)
    assert chance_times_gain(5, 0.0) == chance_times_gain(5, 1.0) == 0
    for p in (0.02, 0.3, 0.9):
        close([chance_times_gain(n, p) for n in (1, 2, 9)], [budget_value(n, p) for n in (1, 2, 9)])
        assert np.all(
            np.diff([chance_times_gain(n, p) for n in range(1, 60)], n=2) <= 1e-15
        )  # concave, so greedy is exact


@pytest.mark.entry("knapsack-rl")
def test_solved_starts_stay_at_the_least_and_hopeless_ones_share_what_is_left() -> None:
    assert allocate([1.0, 1.0, 0.0, 0.0], 32, 2, 128) == [2, 2, 14, 14]
    assert allocate([1.0, 0.0, 0.0, 0.0], 33, 2, 128) == [2, 11, 10, 10]
    assert allocate([1.0, 1.0], 16, 2, 128) == [2, 2]
    assert allocate([0.5, 1.0, 0.0], 64, 2, 20) == [20, 2, 20]
    assert allocate([0.3], 1000, 2, 128) == [128]


@pytest.mark.entry("knapsack-rl")
@pytest.mark.parametrize(("a", "b", "rise"), [(0.25, 1.0, 0.02), (0.4, 0.4, 0.0)])
def test_more_groups_teach_something_than_with_equal_budgets(a: float, b: float, rise: float) -> None:
    """64 prompts, 512 rows, rates from Beta(a, b); shares of groups with a gradient, averaged over 200 draws of the rates."""

    def area(x: float, y: float) -> float:
        return exp(lgamma(x) + lgamma(y) - lgamma(x + y))

    shares: list[tuple[float, float]] = []
    for seed in range(200):
        rates = np.random.default_rng(seed).beta(a, b, 64).tolist()
        counts = allocate(rates, 512, 2, 128)
        assert value_of(counts, rates) >= value_of([8] * 64, rates)
        alive = [[1 - p**n - (1 - p) ** n for n, p in zip(c, rates, strict=True)] for c in ([8] * 64, counts)]
        shares.append((sum(alive[0]) / 64, sum(alive[1]) / 64))
    uniform, best = np.mean(shares, 0)
    assert uniform == pytest.approx(1 - (area(a + 8, b) + area(a, b + 8)) / area(a, b), abs=0.015)
    assert best > uniform + rise  # most where many prompts are hard, little where they are easy or hard alike


def asked(method: Method, pool: StartPool, want: BatchSpec) -> list[Request]:
    """The requests of one batch."""
    return next(method.stages["collect"](pool, want))


@pytest.mark.entry("knapsack-rl")
def test_budgets_follow_the_rates_seen_last_and_the_total_stays() -> None:
    method, pool = anypo.method("knapsack-rl"), StartPool(6, seed=0)
    want = BatchSpec(6, 8)
    first = asked(method, pool, want)
    assert [r.samples for r in first] == [8] * 6  # nothing is known yet
    start = torch.arange(6).repeat_interleave(8)
    right = f64(0, 0, 8, 2, 4, 7)  # of eight
    score = (torch.arange(48) % 8 < right[start]).to(F64)
    b = group_of(score, group=start, start=start)
    method.update("batch", {}, 0.0, method.prepare(b))
    second = {r.start: r.samples for r in asked(method, pool, want)}
    wanted = allocate([n / 8 for n in right.tolist()], 48, 2, 128)
    assert [second[k] for k in range(6)] == wanted
    assert sum(second.values()) == 48
    assert second[2] == 2
    assert second[3] > second[5]
    # a start that is seen again replaces its rate; others keep theirs
    again = b.rows(torch.arange(8)).but(score=torch.ones(8, dtype=F64))
    method.update("batch", {}, 0.0, method.prepare(again))
    rates = method.stages["collect"].history.rates
    assert rates == {0: 1.0} | {k: float(right[k]) / 8 for k in range(1, 6)}
    assert float(method.stages["collect"].history) == pytest.approx(sum(rates.values()) / 6)


@pytest.mark.entry("knapsack-rl")
def test_starts_not_seen_yet_get_their_equal_share() -> None:
    collect = KnapsackBudget(low=2, high=128)
    collect.history.rates = {0: 0.0, 1: 1.0, 2: 0.4}
    requests = next(collect(StartPool(10, seed=3), BatchSpec(10, 8)))
    known = {r.start: r.samples for r in requests if r.start in (0, 1, 2)}
    assert {r.samples for r in requests if r.start not in (0, 1, 2)} == {8}
    assert sum(known.values()) == 24
    assert known[1] == 2


@pytest.mark.entry("knapsack-rl")
def test_success_rates_survive_a_checkpoint_and_are_not_shared() -> None:
    method = anypo.method("knapsack-rl")
    b = group_of([1.0, 0.0, float("nan")], start=torch.tensor([4, 4, 4]))
    method.update("batch", {}, 0.0, method.prepare(b))
    assert method.stages["collect"].history.rates == {4: 0.5}
    assert anypo.method("knapsack-rl").stages["collect"].history.rates == {}
    again = SuccessRate()
    again.load_state_dict(method.stages["collect"].history.state_dict())
    assert again.rates == {4: 0.5}


@pytest.mark.entry("knapsack-rl")
def test_large_groups_weigh_no_more_than_small_ones() -> None:
    sizes = [2, 3, 9]
    group = torch.tensor([g for g, n in enumerate(sizes) for _ in range(n)])
    lengths = 1 + torch.arange(14) % 4
    b = group_of(torch.arange(14) % 2, group=group, width=4, mask=torch.arange(4) < lengths[:, None])
    b = b.but(advantage=torch.ones(14, 4, dtype=F64) * b.valid)
    g = -gradients(anypo.method("knapsack-rl"), b)[2]["logp"]
    for k, n in enumerate(sizes):
        close(g[group == k].sum(), 1 / 3)
        close(g[group == k].sum(1), full(1 / (3 * n), n))


@pytest.mark.entry("knapsack-rl")
def test_with_equal_groups_the_mean_over_groups_is_the_mean_over_rows() -> None:
    for b in batches(spread=0.5):
        rows = b.shape[0] // 2 * 2
        if rows == 0:
            continue
        b = b.rows(torch.arange(rows)).but(group=torch.arange(rows) // 2 * 5)
        mine, base = anypo.method("knapsack-rl"), anypo.method("grpo", terms=[])
        (x, _, g), (y, _, h) = (gradients(m, m.prepare(b)) for m in (mine, base))
        close(x, y)
        close(g["logp"], h["logp"])


# ------------------------------------------------------------------------------------------------ PAPO


@pytest.mark.entry("papo")
def test_perception_is_never_negative_and_zero_only_where_hiding_changes_nothing() -> None:
    for d in np.arange(-250, 251) / 10:
        one = Trajectories(logp=f64([-1.0]), extra={"logp_ablated": f64([-1.0 + d])})
        found = -float(Perception(coef=1.0)(one, Mean("token"))[0])
        assert 0 <= found <= 10
        assert (found == 0) == (d == 0)


@pytest.mark.entry("papo")
def test_papo_pushes_up_what_the_true_input_makes_likelier() -> None:
    d = f64([-3.0, -0.5, 0.0, 0.5, 2.0, 2.5, 4.0])
    b = group_of([1.0], width=7, extra={"logp_ablated": d - 1.0}, logp_ref=full(-1.0, 1, 7))
    method = anypo.method("papo")
    g = gradients(method, method.prepare(b))[2]["logp"]  # a group of one has no credit, the reference is the policy
    wanted = torch.where(d.exp() - d - 1 < 10, -0.02 * (1 - d.exp()) / 7, 0.0)
    close(g, wanted)


@pytest.mark.entry("papo")
def test_papos_entropy_term_lowers_the_entropy_under_the_true_input_alone() -> None:
    b = group_of([1.0, 1.0], width=3, extra={"logp_ablated": full(-2.5, 2, 3)})
    part = Perception(coef=0.0, eta=0.05)
    logp = b.logp.requires_grad_()
    cost, _ = part(b.but(logp=logp), Mean("row"))
    cost.backward()
    close(cost.detach(), 0.05 * (1.0 + 2.5))
    close(logp.grad, full(-0.05 / 6, 2, 3))


# ------------------------------------------------------------------------------------------------ DRPO


def labelled(seed: int) -> Trajectories:
    return random_batch(seed, 3 + seed % 9, 1 + seed % 6, outcome="score", spread=0.0).but(weight=None)


@pytest.mark.entry("drpo")
def test_no_right_row_is_ever_pushed_down_and_no_wrong_one_up() -> None:
    method = anypo.method("drpo")
    for seed in range(60):
        b = method.prepare(labelled(seed))
        up = -gradients(method, b)[2]["logp"]  # no divergence yet: the hinge is shut
        assert (up[b.score > 0.5] >= 0).all()
        assert (up[b.score <= 0.5] <= 0).all()
        for g in b.group.unique():
            of = b.group == g
            there = of & (b.lengths > 0)
            right, wrong = (float(up[there & c].sum()) for c in (b.score > 0.5, b.score <= 0.5))
            both = bool((there & (b.score > 0.5)).any() and (there & (b.score <= 0.5)).any())
            close([right, -wrong], [both / len(b.group.unique())] * 2)  # weights of each class sum to 1


@pytest.mark.entry("drpo")
def test_grpo_with_a_length_reward_pushes_long_right_answers_down_and_drpo_does_not() -> None:
    """Score 1 - 0.1 length for right answers, 0 for wrong ones."""
    lengths, right = torch.tensor([1, 1, 9, 4]), f64(1, 1, 1, 0)
    mask = torch.arange(9) < lengths[:, None]
    punished = group_of(right * (1 - 0.1 * lengths), width=9, mask=mask)
    assert credit("grpo", punished)[2] < 0
    method = anypo.method("drpo")
    up = -gradients(method, method.prepare(group_of(right, width=9, mask=mask)))[2]["logp"].sum(1)
    assert (up[:3] > 0).all()
    assert up[3] < 0
    assert up[0] > 100 * up[2]  # the short ones most: e^{(8/9) / 0.1}


@pytest.mark.entry("drpo")
def test_without_length_pressure_right_rows_weigh_the_same() -> None:
    lengths = torch.tensor([1, 5, 9, 4, 2])
    b = group_of([1, 1, 1, 0, 0], width=9, mask=torch.arange(9) < lengths[:, None])
    method = built("drpo-flat")
    up = -gradients(method, method.prepare(b))[2]["logp"].sum(1)
    close(up[:3], full(1 / 3, 3), rtol=1e-7)


@pytest.mark.entry("drpo")
def test_drpos_gradient_is_the_finite_difference_of_its_loss() -> None:
    method = anypo.method("drpo")
    for seed in range(12):
        b = method.prepare(random_batch(seed, 6, 4, outcome="score", spread=0.3))
        g = gradients(method, b)[2]["logp"]
        rng = torch.Generator().manual_seed(seed)
        way = torch.randn(b.shape, generator=rng, dtype=F64)
        ends = [float(method.loss(b.but(logp=b.logp + s * 1e-6 * way))[0]) for s in (1, -1)]
        close(float((g * way)[b.valid].sum()), (ends[0] - ends[1]) / 2e-6, rtol=1e-5, atol=1e-6)


@pytest.mark.entry("drpo")
@pytest.mark.parametrize("shift", [-0.3, 0.0, 5e-5, 3e-4, 0.2])
def test_drpos_hinge_opens_beyond_delta_with_the_slope_of_the_multiplier_form(shift: float) -> None:
    """log pi_old - log pi = shift everywhere; the slope is that of sg(beta [KL - delta]_+) KL."""
    b = group_of([1.0, 0.0], x=-shift, width=2).but(logp=full(-1.0 - shift, 2, 2).requires_grad_())
    cost, metrics = HingeDivergence()(b, Mean("token"))
    excess = max(shift - 1e-4, 0.0)
    close(cost.detach(), 500 * excess**2, atol=1e-10)
    close(metrics["kl_hinge"], shift)
    (g,) = torch.autograd.grad(cost, b.logp)
    close(g, full(-1e3 * excess / 4, 2, 2), atol=1e-9)


@pytest.mark.entry("drpo")
def test_questions_that_lack_a_class_count_and_contribute_nothing() -> None:
    method = anypo.method("drpo")
    one = group_of([1.0, 0.0], group=[0, 0])
    more = group_of([1.0, 0.0, 1.0, 1.0, 0.0], group=[0, 0, 1, 1, 2])
    (x, _, g), (y, _, h) = (gradients(method, method.prepare(b)) for b in (one, more))
    close(x, 3 * y)
    close(g["logp"], 3 * h["logp"][:2])
    assert not h["logp"][2:].any()


@pytest.mark.entry("drpo")
def test_drpos_likelihood_of_the_wrong_is_a_log_mean() -> None:
    b = group_of([1.0, 0.0, 0.0]).but(logp=f64([-0.2], [-1.0], [-3.0]), logp_old=f64([-0.2], [-1.0], [-3.0]))
    method = anypo.method("drpo")
    wanted = 0.2 + 10 * log((exp(-0.1) + exp(-0.3)) / 2)
    close(method.loss(method.prepare(b))[0], wanted)
