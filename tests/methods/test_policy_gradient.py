"""The methods that change ratio, trust or terms: prepare, loss and gradients against independent loops in float64 (weights, missing
outcomes, demonstrations, rows in progress, second heads, every named member), and the known answers of their papers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from itertools import product
from math import exp, log
from typing import Any

import numpy as np
import pytest
import torch
from entries import entries
from references_policy import LEAVES, RECIPES, Controller, loss, prepare
from strategies import gradients, random_advantage, random_batch
from torch import Tensor

import anypo
from anypo import Method, Trajectories
from anypo.loops.gradients import gradient
from anypo.method.term import Term
from anypo.parts.credit import BalancedDrop, Baseline, Combine, ExtendedGae, Gae, GateBySuccess, Whiten
from anypo.parts.knobs.controllers import KlController
from anypo.parts.reduce import Mean, ScaledMean
from anypo.parts.terms import Divergence, Entropy, EntropyGatedKl
from anypo.parts.trust import (
    BoundedTarget,
    Clip,
    FiberGate,
    HazardModulated,
    MaskedLikelihood,
    MedianTarget,
    RecentredClip,
    SelfWeightedLikelihood,
    SetContrast,
    TwoBranchClip,
    Unclipped,
)
from anypo.policies.tabular import SoftmaxTable

CASES = 60
F64 = torch.float64
pytestmark = pytest.mark.known
every_recipe = pytest.mark.parametrize(
    "recipe", entries(RECIPES, lambda recipe: RECIPES[recipe][0]), ids=lambda n: f"{n}-{CASES}batches"
)


def f64(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=F64)


def imitate(coef: float, **weight: Any) -> Term:
    return Term(trust=SelfWeightedLikelihood(**weight), rows="expert", coef=coef)


def close(x: Any, y: Any, rtol: float = 1e-10, atol: float = 1e-12) -> None:
    torch.testing.assert_close(torch.as_tensor(x, dtype=F64), torch.as_tensor(y, dtype=F64), rtol=rtol, atol=atol)


def built(recipe: str) -> Method:
    """The method of a recipe: the registered one, or a named member or setting of it."""
    name, _ = RECIPES[recipe]
    variants: dict[str, dict[str, Any]] = {
        "dhpo-entropy": {"trust": TwoBranchClip(weight="entropy")},
        "dhpo-wide": {"trust": TwoBranchClip(row_low=0.1, row_high=0.1)},
        "fiberpo-wide": {"trust": FiberGate(up=0.4, down=0.3, eps=0.5)},
        "mhpo-normalized": {"trust": HazardModulated(normalize=True)},
        "rec-one-side-is": {"trust": MaskedLikelihood("one-side", "ratio")},
        "rec-two-side-is": {"trust": MaskedLikelihood("two-side", "ratio")},
        "rec-ring": {"trust": MaskedLikelihood("ring")},
        "rec-wide": {"trust": MaskedLikelihood(low=0.6, high=2.0)},
        "rec-reinforce": {"trust": MaskedLikelihood("none")},
        "rec-grpo": {
            "trust": MaskedLikelihood("one-side", "ratio"),
            "credit": [Combine(), Baseline()],
            "reduce": Mean("row"),
        },
        "rec-red-weight": {"trust": MaskedLikelihood("none", "exp")},
        "rec-red-drop": {
            "trust": MaskedLikelihood("none"),
            "credit": [Combine(), BalancedDrop(), Baseline(scale=None)],
        },
        "rec-opmd": {"trust": MaskedLikelihood("none"), "terms": [Divergence("k2", anchor="old", coef=0.2)]},
        "rec-asymre": {"trust": MaskedLikelihood("none"), "terms": [Divergence("forward", anchor="old", coef=0.1)]},
        "rec-one-side-opmd": {"terms": [Divergence("k2", anchor="old", coef=0.2)]},
        "real-skip": {"trust": SetContrast(degenerate="skip")},
        "brrl-asymmetric": {"trust": BoundedTarget(low=0.1, high=0.3, temp=0.5)},
        "bpo-soft": {"trust": MedianTarget(low=0.2, high=0.2, temp=1.0)},
        "safe-detached": {"terms": [EntropyGatedKl(detached=True), Entropy(0.01)]},
        "hpt-quarter": {
            "credit": [Combine(), Baseline(scale=None), GateBySuccess(above=0.25)],
            "terms": [imitate(0.3), Entropy(0.001)],
        },
        "chord-plain": {"reduce": ScaledMean("token", coef=0.1), "terms": [imitate(0.9)]},
        "chord-is": {"terms": [imitate(0.1, phi="likely", cutoff=0.5)]},
    }
    found = anypo.method(name, **variants.get(recipe, {}))
    if recipe in ("safe-moved", "safe-detached"):
        controller = found.stages["terms"][0].threshold
        controller.average, controller.adjustment = 5.0, -0.08  # (0.3 - 0.08) 1.5 = 0.33
    if recipe == "r2vpo-moved":
        found.update("update", {"ratio_variance": 0.68}, 0.0, Trajectories())
    if recipe == "mdpo-late":
        found.update("batch", {}, 0.75, Trajectories())
    for _ in range({"remix-late": 61, "remix-reincarnated": 100}.get(recipe, 0)):
        found.update("batch", {}, 0.0, Trajectories())
    return found.phases[1].current() if recipe == "remix-reincarnated" else found


def case(seed: int, recipe: str) -> Trajectories:
    """A random batch with everything the method may meet."""
    rng, name = np.random.default_rng([seed, 5]), RECIPES[recipe][0]
    rows, steps = int(rng.integers(1, 9)), int(rng.integers(1, 8))
    outcome = ("score", "scores", "reward")[seed % 3]
    spread, holes = (0.0, 0.05, 0.3, 0.7, 3.0)[seed % 5], (0.0, 0.3, 0.7)[seed % 7 % 3]
    b = random_batch(seed, rows, steps, outcome=outcome, spread=spread, holes=holes)

    def normal(scale: float = 1.0) -> Tensor:
        return torch.as_tensor(scale * rng.standard_normal((rows, steps)))

    if name == "fiberpo":  # decisions that did not change among ones that did
        b = b.but(logp=torch.where(torch.as_tensor(rng.random((rows, steps)) < 0.2), b.logp_old, b.logp))
    if name == "real" and b.score is not None:  # a score of one half is not right
        b = b.but(score=torch.as_tensor(rng.integers(0, 3, rows) / 2))
    if name == "remix":
        b = b.but(extra={"logp_prev": b.logp - normal(spread)})
        if seed % 3:
            b = b.but(extra=b.extra | {"logp_start": b.logp_old + normal(0.3)})
    if name == "bpo":
        b = b.but(extra={"median": normal()})
    if name == "safe" and seed % 3:
        b = b.but(extra={"value_b": normal()})
    if name == "t-ppo" and seed % 3:
        b = b.but(fresh=torch.as_tensor(rng.random((rows, steps)) < 0.5))
    if name in ("hpt", "chord") and seed % 5:
        b = b.but(expert_mask=torch.as_tensor(rng.random(rows) < 0.4))
    return b


def as_arrays(b: Trajectories) -> dict[str, Any]:
    found = {f.name: getattr(b, f.name) for f in fields(b)} | b.extra | {"mask": b.valid, "expert_mask": b.expert_mask}
    return {k: t.detach().numpy() if isinstance(t, Tensor) else t for k, t in found.items()}


def slopes_of(method: Method, b: Trajectories) -> tuple[float, dict[str, Tensor]]:
    """The loss and its gradient in every leaf of the batch, second heads among them."""
    leaves = {n: t.detach().clone().requires_grad_() for n in LEAVES if (t := b.get(n)) is not None}
    total, _ = method.loss(b.put(leaves))
    found = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
    return float(total.detach()), dict(zip(leaves, found, strict=True))


def agree(found: Any, wanted: Any, what: str) -> None:
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9, err_msg=what)


@every_recipe
def test_prepare_equals_the_reference(recipe: str) -> None:
    method = built(recipe)
    for seed in range(CASES):
        b = case(seed, recipe)
        found, wanted = method.prepare(b), prepare(recipe, as_arrays(b))
        mask = found.valid.numpy()
        np.testing.assert_array_equal(mask, wanted["mask"], err_msg=f"mask, seed {seed}")
        for name in set(wanted) - {"mask", "value_old"}:
            rows = (
                np.ones(len(mask), bool) if b.expert_mask is None else ~b.expert_mask.numpy()
            )  # the others are unjudged
            agree(found.get(name)[rows], wanted[name][rows], f"{name}, seed {seed}")
        if found.value_old is not None:
            agree(found.value_old[mask], wanted.get("value_old", b.value.numpy())[mask], f"value_old, seed {seed}")


@pytest.mark.parametrize("given", ["prepared", "any advantage"])
@every_recipe
def test_loss_and_gradients_equal_the_reference(recipe: str, given: str) -> None:
    method = built(recipe)
    for seed in range(CASES):
        b = method.prepare(case(seed, recipe))
        if given != "prepared":
            b = random_advantage(b)
        moved = 0.5 * torch.sin(torch.arange(b.logp.numel(), dtype=F64)).reshape(b.shape)  # the critic, since then
        b = b.put({n: t + moved for n in ("value", "value_b", "median") if (t := b.get(n)) is not None})
        found, slopes = slopes_of(method, b)
        wanted, hand = loss(recipe, as_arrays(b))
        agree(found, wanted, f"loss, seed {seed}")
        for leaf, slope in slopes.items():
            agree(slope, hand[leaf], f"gradient of {leaf}, seed {seed}")


def batches(n: int = 30, **fixed: Any) -> Iterator[Trajectories]:
    for seed in range(n):
        yield random_batch(seed, 1 + seed % 7, 1 + seed % 5, **fixed)


def one_row(x: Any, a: Any = 1.0, **fields: Any) -> Trajectories:
    """Rows with given log-ratios, sampled with log-probability -2, and one advantage."""
    x = torch.atleast_2d(torch.as_tensor(x, dtype=F64))
    old = torch.full_like(x, -2.0)
    return Trajectories(logp=old + x, logp_old=old, advantage=torch.as_tensor(a, dtype=F64).expand_as(x), **fields)


def weights(method: Method, b: Trajectories) -> Tensor:
    """-dF/dlogp of every decision, times the number of decisions: W(r, A) under a token mean of rows of equal length."""
    return -gradients(method, b)[2]["logp"] * b.logp.numel()


# ------------------------------------------------------------------------------------------------ DHPO


@pytest.mark.entry("dhpo")
@pytest.mark.parametrize(("weight", "other"), [("token", "grpo"), ("row", "gspo")])
def test_dhpo_with_all_weight_on_one_branch_is_grpo_or_gspo(weight: str, other: str) -> None:
    mine, theirs = anypo.method("dhpo", trust=TwoBranchClip(weight=weight)), anypo.method(other, terms=[])
    for b in batches(spread=0.3):
        for ready in (mine.prepare(b), random_advantage(mine.prepare(b))):
            (one, _, g), (two, _, h) = gradients(mine, ready), gradients(theirs, ready)
            close(one, two)
            close(g["logp"], h["logp"])


@pytest.mark.entry("dhpo")
def test_dhpos_gradient_lies_halfway_between_grpo_and_gspo() -> None:
    for b in batches(spread=0.3):
        b = random_advantage(anypo.method("dhpo").prepare(b))
        mixed, token, row = (gradients(anypo.method(n, terms=[]), b)[2]["logp"] for n in ("dhpo", "grpo", "gspo"))
        close(mixed, (token + row) / 2)


@pytest.mark.entry("dhpo")
def test_dhpos_entropy_weight_is_scaled_within_the_row_and_detached() -> None:
    part = TwoBranchClip(weight="entropy")
    b = one_row(torch.zeros(2, 3), entropy=f64([1.0, 3.0, 2.0], [0.7, 0.7, 0.7]))
    close(part.mix(b, torch.zeros(2, 3, dtype=F64)), f64([0.0, 1.0, 0.5], [0.5, 0.5, 0.5]))
    method = anypo.method("dhpo", trust=part)
    assert not gradients(method, b.but(logp=b.logp + f64([0.3, -0.1, 0.2])))[2]["entropy"].any()


# ------------------------------------------------------------------------------------------------ FiberPO


def gated(part: FiberGate, x: Tensor) -> Tensor:
    """G of every decision."""
    return part(x, one_row(x))[0]


@pytest.mark.entry("fiberpo")
def test_within_its_budgets_fiberpo_passes_the_ratio_through() -> None:
    part, rng = FiberGate(), torch.Generator().manual_seed(0)
    for _ in range(50):
        x = 0.01 * (2 * torch.rand(3, 6, generator=rng, dtype=F64) - 1)
        close(gated(part, x), x.exp())
        jacobian = torch.autograd.functional.jacobian(lambda x: gated(part, x).flatten(), x).reshape(18, 18)
        close(jacobian, torch.diag(x.exp().flatten()))


@pytest.mark.entry("fiberpo")
def test_fiberpo_at_ratio_one_has_the_identity_as_its_jacobian() -> None:
    x = torch.zeros(1, 5, dtype=F64)
    jacobian = torch.autograd.functional.jacobian(lambda x: gated(FiberGate(), x)[0], x)[:, 0]
    close(jacobian, torch.eye(5, dtype=F64))


@pytest.mark.entry("fiberpo")
def test_rows_do_not_touch_each_other_in_fiberpo() -> None:
    x = 0.05 * torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=F64)
    jacobian = torch.autograd.functional.jacobian(lambda x: gated(FiberGate(), x), x)
    for i, j in product(range(3), range(3)):
        assert bool(jacobian[i, :, j].any()) == (i == j)


@pytest.mark.entry("fiberpo")
@pytest.mark.parametrize("drift", [0.3, -0.3, 2.0])
def test_a_drift_far_beyond_its_budget_is_shut_and_leaves_the_row_weight_one(drift: float) -> None:
    """All decisions drift alike, so nothing deviates: G = w, and a closed gate makes it 1."""
    close(gated(FiberGate(), torch.full((1, 6), drift, dtype=F64)), torch.ones(1, 6, dtype=F64))


@pytest.mark.entry("fiberpo")
@pytest.mark.parametrize(("sign", "budget"), [(1.0, 0.15), (-1.0, 0.10)])
def test_just_beyond_its_budget_a_common_shift_is_rolled_back(sign: float, budget: float) -> None:
    length = 5
    shift = (sign * budget * (1 + 0.5 / length) * torch.ones((), dtype=F64)).requires_grad_()
    g = gated(FiberGate(), shift.expand(1, length))
    wanted = exp(sign * ((length + 1) * budget - length * abs(float(shift.detach()))))
    close(g.detach(), torch.full((1, length), wanted, dtype=F64))
    (slope,) = torch.autograd.grad(g.sum(), shift)
    assert slope < 0  # inside the budget it is positive: the ratio grows with the shift
    close(slope, -length * g.sum().detach())


@pytest.mark.entry("fiberpo")
def test_a_common_drift_saturates_every_token_of_grpo_and_none_of_fiberpos_residuals() -> None:
    noise = 0.01 * (2 * torch.rand(4, 8, generator=torch.Generator().manual_seed(2), dtype=F64) - 1)
    x = noise + 0.5
    assert not weights(anypo.method("grpo", terms=[]), one_row(x)).any()
    own = torch.autograd.functional.jacobian(lambda x: gated(FiberGate(), x).flatten(), x).reshape(32, 32).diag()
    assert (own > 0).all()


# ------------------------------------------------------------------------------------------------ MHPO


def damping(x: Tensor) -> Tensor:
    """What the gradient of a decision is multiplied by, W / A."""
    return weights(anypo.method("mhpo"), one_row(x.unsqueeze(1)))[:, 0]


@pytest.mark.entry("mhpo")
def test_mhpos_known_multipliers() -> None:
    close(damping(f64(1.0, 1.78, 0.5, 10.0).log()), f64(0.2651, 0.396, 0.054, 0.082), rtol=0, atol=5e-4)
    close(damping(f64(0.0)).log()[0], -(log(2) ** 1.5) - (log(2) / 0.8) ** 2)
    grid = torch.linspace(-30, 30, 60001, dtype=F64)
    found = damping(grid)
    close(found.max(), 0.396, rtol=0, atol=5e-4)
    close(grid[found.argmax()].exp(), 1.78, rtol=0, atol=1e-2)
    assert found.abs().max() <= exp(1.5)


@pytest.mark.entry("mhpo")
def test_mhpos_weight_is_smooth_and_falls_beyond_its_peak() -> None:
    grid = torch.linspace(-6, 6, 12001, dtype=F64)
    weight = damping(grid)
    # a step of 1e-3 in log r: first and second differences of a smooth curve shrink with the step and its square
    assert weight.diff().abs().max() < 1e-3
    assert weight.diff(n=2).abs().max() < 3e-6
    beyond = weight[grid > 0.7]
    assert (beyond.diff() < 0).all()
    assert (weight >= 0).all()  # the detached hazard never turns a gradient around


@pytest.mark.entry("mhpo")
def test_the_hazard_with_its_gradient_would_turn_the_gradient_around() -> None:
    part = HazardModulated()
    x = torch.linspace(-4, 4, 801, dtype=F64).requires_grad_()
    psi = 1.5 * torch.tanh(x / 1.5)
    (slope,) = torch.autograd.grad((psi - part.hazard(psi)).exp().sum(), x)
    assert (slope < 0).any()


@pytest.mark.entry("mhpo")
def test_outliers_spike_the_unclipped_gradient_and_not_mhpos() -> None:
    """200 batches of 256 decisions, log-ratios N(0, 0.1), one percent of them N(0, 3)."""
    rng = torch.Generator().manual_seed(3)
    worst = {}
    drawn = [torch.randn(3, 16, 16, generator=rng, dtype=F64) for _ in range(200)]
    flags = [torch.rand(16, 16, generator=rng) < 0.01 for _ in range(200)]
    for name, method in {
        "mhpo": anypo.method("mhpo"),
        "unclipped": anypo.method("grpo", trust=Unclipped(), terms=[]),
    }.items():
        norms = torch.stack(
            [
                weights(method, one_row(torch.where(flag, 3 * far, 0.1 * near), a)).norm()
                for (near, far, a), flag in zip(drawn, flags, strict=True)
            ]
        )
        worst[name] = float(norms.max() / norms.median())
    assert worst["mhpo"] < 3
    assert worst["unclipped"] > 3


# ------------------------------------------------------------------------------------------------ REC

SAMPLER, PAYS = np.array([0.3, 0.6, 0.1]), np.array([0.0, 0.8, 1.0])
CENTRED = PAYS - SAMPLER @ PAYS
MEMBERS: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray], tuple[float, float, float]]] = {
    # the expected weight of each arm's score function under the sampler, and where 20000 steps of 0.05 lead
    "none": ("rec-reinforce", lambda p: SAMPLER * CENTRED, (0.0, 1.0, 0.0)),
    "importance": ("rec-importance", lambda p: p * CENTRED, (0.0, 0.002, 0.998)),
    "exp": ("rec-red-weight", lambda p: SAMPLER * np.exp(CENTRED) * CENTRED, (0.0, 0.884, 0.116)),
    "k2": ("rec-opmd", lambda p: SAMPLER * (CENTRED - 0.2 * np.log(p / SAMPLER)), (0.016, 0.775, 0.209)),
    "forward": ("rec-asymre", lambda p: SAMPLER * (CENTRED + 0.1), (0.0, 1.0, 0.0)),
    "one-side": (
        "rec",
        lambda p: SAMPLER * CENTRED * np.where(CENTRED > 0, p / SAMPLER <= 1.2, p / SAMPLER >= 0.8),
        (0.16, 0.72, 0.12),
    ),
}


@pytest.mark.entry("rec")
@pytest.mark.parametrize("member", MEMBERS)
def test_the_bandit_in_which_only_importance_weights_find_the_best_arm(member: str) -> None:
    """Three arms, sampled by (.3, .6, .1) throughout. The library's expected gradient is that of the hand-made recursion, whose end
    points are known: masks keep the policy near the sampler, importance weights reach arm 3, the others prefer arm 2."""
    recipe, weight_of, end = MEMBERS[member]
    importance = MaskedLikelihood("none", "ratio")
    method = anypo.method("rec", trust=importance) if member == "importance" else built(recipe)
    theta = np.log(SAMPLER)
    for k in range(20000):
        p = np.exp(theta - theta.max())
        p /= p.sum()
        w = weight_of(p)
        move = w - w.sum() * p
        if k % 500 == 0 or k < 20:
            leaf = torch.tensor(theta, requires_grad=True)
            logp = leaf.log_softmax(0).unsqueeze(1)
            b = Trajectories(
                logp=logp,
                logp_old=f64(*SAMPLER).log().unsqueeze(1),
                advantage=f64(*CENTRED).unsqueeze(1),
                weight=3 * f64(*SAMPLER).unsqueeze(1),
            )
            (slope,) = torch.autograd.grad(method.loss(b)[0], leaf)
            close(-slope, move, rtol=1e-8, atol=1e-10)
        theta = theta + 0.05 * move
    np.testing.assert_allclose(np.exp(theta) / np.exp(theta).sum(), end, atol=6e-3)


@pytest.mark.entry("rec")
def test_recs_named_grpo_member_has_grpos_gradient() -> None:
    member, grpo = built("rec-grpo"), anypo.method("grpo", terms=[])
    for b in batches(spread=0.5):
        one, two = member.prepare(b), grpo.prepare(b)
        close(one.advantage, two.advantage)
        close(gradients(member, random_advantage(one))[2]["logp"], gradients(grpo, random_advantage(two))[2]["logp"])


@pytest.mark.entry("rec")
def test_forward_divergence_is_a_shift_of_the_baseline() -> None:
    with_term, plain = built("rec-asymre"), built("rec-reinforce")
    for b in batches(spread=0.5):
        b = plain.prepare(b)
        shifted = b.but(advantage=torch.where(b.valid, b.advantage + 0.1, 0.0))
        close(gradients(with_term, b)[2]["logp"], gradients(plain, shifted)[2]["logp"])


@pytest.mark.entry("rec")
def test_group_reinforce_is_the_gradient_of_the_pairwise_surrogate_whoever_sampled() -> None:
    """1/K^2 sum_{i<j} (a_i - a_j)^2, a_i = s_i - tau (log pi_i - log pi_t,i), at pi_t: -2 tau / K sum_i (s_i - mean) d log pi_i."""
    s, tau = f64(0.3, -1.0, 2.0, 0.7, 0.1), 0.4
    old = f64(-1.0, -0.2, -3.0, -0.5, -2.0)
    logp = old.clone().requires_grad_()
    a = s - tau * (logp - old)
    pairs = (a.unsqueeze(0) - a.unsqueeze(1)).square().triu(1).sum() / 25
    (wanted,) = torch.autograd.grad(pairs, logp)
    b = built("rec-reinforce").prepare(
        Trajectories(logp=old.unsqueeze(1), logp_old=old.unsqueeze(1) - 1, score=s, group=torch.zeros(5).long())
    )
    close(2 * tau * gradients(built("rec-reinforce"), b)[2]["logp"][:, 0], wanted)


# ------------------------------------------------------------------------------------------------ REAL


def labelled(x: Tensor, right: list[bool], **fields: Any) -> Trajectories:
    return one_row(x, score=f64(*map(float, right)), group=torch.zeros(len(right)).long(), **fields)


def row_weights(b: Trajectories) -> Tensor:
    """-dF/ds of every row of the only group."""
    return -gradients(anypo.method("real"), b)[2]["logp"].sum(1)


@pytest.mark.entry("real")
def test_reals_weights_on_policy_are_one_over_tau_over_one_plus_the_class() -> None:
    found = row_weights(labelled(torch.zeros(5, 3), [True, True, True, False, False]))
    close(found, f64(*[2 / 4] * 3, *[-2 / 3] * 2))


@pytest.mark.entry("real")
def test_reals_weights_are_bounded_and_only_the_row_mean_matters() -> None:
    for seed in range(50):
        x = 3 * torch.randn(6, 4, generator=torch.Generator().manual_seed(seed), dtype=F64)
        b = labelled(x, [i % 2 == seed % 2 for i in range(6)])
        per_token = -gradients(anypo.method("real"), b)[2]["logp"]
        assert (per_token.abs().sum(1) <= 2).all()
        close(per_token, (row_weights(b) / 4).unsqueeze(1).expand(6, 4))


@pytest.mark.entry("real")
@pytest.mark.parametrize("right", [True, False])
def test_a_worse_classified_row_takes_weight_from_the_others_of_its_class(right: bool) -> None:
    x = f64([0.2], [-0.1], [0.4], [0.3])
    kinds = [right, right, right, not right]
    worse = x.clone()
    worse[0] -= 0.3 if right else -0.3
    before, after = row_weights(labelled(x, kinds)).abs(), row_weights(labelled(worse, kinds)).abs()
    assert after[0] > before[0]
    assert (after[1:3] < before[1:3]).all()
    close(after[3], before[3])


@pytest.mark.entry("real")
def test_real_counts_groups_of_one_class_and_reads_labels_from_the_scores() -> None:
    b = one_row(torch.zeros(4, 2), score=f64(1.0, 1.0, 1.0, 0.0), group=torch.tensor([0, 0, 1, 1]))
    keep, skip = anypo.method("real"), built("real-skip")
    total = [2 * log(2), log(3)]  # a right and a wrong row; two right ones
    close(keep.loss(b)[0], sum(total) / 2)
    close(skip.loss(b)[0], total[0] / 2)
    g = gradients(keep, b)[2]["logp"]
    assert (g[:3] < 0).all()  # right rows are raised, also where all are right
    assert (g[3] > 0).all()


# ------------------------------------------------------------------------------------------------ BRRL


@pytest.mark.entry("brrl", "bpo")
def test_the_bounded_target_is_the_solution_of_the_ratio_box_problem() -> None:
    """max E[r Q] with 1 - eps <= r <= 1 + eps and E[r] = 1 over six actions, by brute force over the corners of the box."""
    rng, eps = np.random.default_rng(0), 0.3
    for _ in range(20):
        halves = [rng.dirichlet(np.ones(3)) / 2 for _ in range(2)]
        q = np.sort(rng.standard_normal(6))  # the median parts the lower from the upper half of the mass
        pi, mu = np.concatenate(halves), (q[2] + q[3]) / 2
        corners = [np.array(c) for c in product((1 - eps, 1 + eps), repeat=6) if abs(pi @ np.array(c) - 1) < 1e-12]
        best = max(corners, key=lambda r: float(pi @ (r * q)))
        np.testing.assert_allclose(best, 1 + eps * np.sign(q - mu))
        np.testing.assert_allclose(pi @ (best * q) - pi @ q, eps * (pi @ np.abs(q - mu)))
        b = Trajectories(
            logp=f64(*np.log(best)).unsqueeze(1),
            logp_old=torch.zeros(6, 1, dtype=F64),
            value=torch.zeros(6, 1, dtype=F64),
            returns=f64(*q).unsqueeze(1),
            extra={"median": torch.full((6, 1), mu, dtype=F64)},
        )
        trust, x = MedianTarget(temp=1e-9), b.logp
        assert float(trust(x, b)[0].abs().max()) < 1e-12  # nothing left to gain at the solution
        assert (trust(x + 0.01, b)[0] < 0).all()
        assert (trust(x - 0.01, b)[0] < 0).all()


@pytest.mark.entry("brrl", "bpo")
def test_bpo_is_ppo_inside_the_box_and_pulls_back_outside() -> None:
    """Median and mean critic alike, temperature to 0: W = r A inside, -r A beyond the bound, where PPO has nothing."""
    zero = torch.zeros(1, 1, dtype=F64)
    bpo = anypo.method("bpo", trust=MedianTarget(low=0.2, high=0.2, temp=1e-9))
    ppo = anypo.method("ppo", critic=[])
    for r, a in product((0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 2.0), (-2.0, -0.5, 0.5, 2.0)):
        b = one_row(f64([log(r)]), a, value=zero, value_old=zero, returns=zero + a, extra={"median": zero})
        mine, theirs = float(weights(bpo, b)), float(weights(ppo, b))
        beyond = r > 1.2 if a > 0 else r < 0.8
        assert mine == pytest.approx(-r * a if beyond else r * a)
        assert theirs == pytest.approx(0.0 if beyond else r * a)


@pytest.mark.entry("brrl", "bpo")
def test_the_median_critic_settles_on_the_median_and_the_value_on_the_mean() -> None:
    goals = f64(-60.0, -50.0, 0.0, 300.0, 900.0)  # far apart: log cosh is the absolute error
    method = anypo.method("bpo")
    for head, at in (("median", 0.0), ("value", float(goals.mean()))):
        b = one_row(torch.zeros(5, 1), returns=goals.unsqueeze(1))
        b = b.put({"value": torch.full((5, 1), at, dtype=F64), "median": torch.full((5, 1), at, dtype=F64)})
        _, slopes = slopes_of(method, b)
        assert abs(float(slopes[head].sum())) < 1e-9
    assert float(slopes["median"].sum()) > 0.04  # at the mean, the median head wants down


@pytest.mark.entry("brrl", "bpo")
def test_a_group_of_one_has_its_score_as_advantage_and_a_target_of_its_own() -> None:
    brrl = anypo.method("brrl")
    b = brrl.prepare(one_row(torch.zeros(1, 1), score=f64(2.0), group=torch.zeros(1).long()))
    close(b.advantage, f64([2 / (1 + 1e-6)]))
    wanted = abs(1 - (0.8 + 0.4 / (1 + exp(-2 / (1 + 1e-6))))) * 2 / (1 + 1e-6)
    close(brrl.loss(b)[0], wanted)


@pytest.mark.entry("brrl", "bpo")
def test_the_group_median_of_an_even_group_is_the_middle_of_two_scores() -> None:
    part = BoundedTarget()
    b = one_row(torch.zeros(4, 1), score=f64(0.0, 1.0, 3.0, 10.0), group=torch.zeros(4).long())
    found = -part(torch.zeros(4, 1, dtype=F64), b)[0][:, 0]
    z = (b.score - 2.0) / (b.score.std() + 1e-6)
    close(found, (1 - (0.8 + 0.4 * z.sigmoid())).abs())


@pytest.mark.entry("brrl", "bpo")
@pytest.mark.parametrize("x", [30.0, -30.0])
def test_beyond_e_to_the_twenty_brrl_has_no_gradient(x: float) -> None:
    b = one_row(f64([x]), score=f64(1.0), group=torch.zeros(1).long())
    assert float(weights(anypo.method("brrl"), b)) == 0


# ------------------------------------------------------------------------------------------------ R2VPO


@pytest.mark.entry("r2vpo")
def test_r2vpos_weight_and_stationary_ratio() -> None:
    method = anypo.method("r2vpo")
    for r, a in product((0.1, 0.5, 1.0, 3.0, 20.0), (-1.0, 0.5, 2.0)):
        assert float(weights(method, one_row(f64([log(r)]), a))) == pytest.approx(r * (a - 0.08 * (r - 1)))
    for a in (0.5, 2.0):  # at r = 1 + A / (2 coef) the surrogate peaks: growth before, a pull back beyond
        still = log(1 + a / 0.08)
        at = [float(weights(method, one_row(f64([still + d]), a))) for d in (-0.01, 0.0, 0.01)]
        assert at[0] > 0 > at[2]
        assert abs(at[1]) < 1e-10


@pytest.mark.entry("r2vpo")
def test_r2vpo_has_the_gradient_of_its_score_function_form() -> None:
    method = anypo.method("r2vpo")
    for b in batches(spread=0.5):
        b = random_advantage(method.prepare(b))
        r = torch.where(b.valid, b.logp - b.logp_old, 0.0).exp()
        form = anypo.method("reinforce", reduce=Mean("token"))
        weighted = b.but(advantage=torch.where(b.valid, r * (b.advantage - 0.08 * (r - 1)), 0.0))
        close(gradients(method, b)[2]["logp"], gradients(form, weighted)[2]["logp"])


@pytest.mark.entry("r2vpo")
def test_the_multiplier_climbs_with_the_excess_variance_and_never_below_zero() -> None:
    method = anypo.method("r2vpo")
    knob = method.stages["trust"].coef
    b = one_row(f64([0.1, -0.2, 0.3, 5.0]), mask=torch.tensor([[True, True, True, False]]))
    wanted, variance = 0.04, float((b.logp - b.logp_old)[b.mask].exp().sub(1).square().mean())
    for _ in range(3):
        _, metrics, _ = gradients(method, b)
        assert float(metrics["ratio_variance"]) == pytest.approx(variance)
        assert float(knob) == pytest.approx(wanted)  # the loss reads it and leaves it alone
        method.update("batch", {k: float(v) for k, v in metrics.items()}, 0.0, b)
        method.update("update", {k: float(v) for k, v in metrics.items()}, 0.0, b)
        wanted += variance - 0.02
    method.update("update", {"ratio_variance": 0.0}, 0.0, b)
    for _ in range(20):
        method.update("update", {"ratio_variance": 0.0}, 0.0, b)
    assert float(knob) == 0.0
    state, other = method.state_dict(), anypo.method("r2vpo")
    other.load_state_dict(state)
    assert float(other.stages["trust"].coef) == 0.0
    assert float(anypo.method("r2vpo").stages["trust"].coef) == 0.04


# ------------------------------------------------------------------------------------------------ MDPO


@pytest.mark.entry("mdpo")
@pytest.mark.parametrize("progress", [0.0, 0.6])
def test_many_inner_steps_of_mdpo_end_at_the_tabular_mirror_descent_step(progress: float) -> None:
    """pi proportional to pi_k exp(t A), t = 1 - progress, from the expected loss over all actions."""
    method = anypo.method("mdpo", critic=[])
    method.update("batch", {}, progress, Trajectories())
    start = f64(0.3, -0.5, 1.0, 0.0, -1.2).log_softmax(0)
    a = f64(1.0, -0.3, 0.2, 0.8, -1.5)
    theta = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [theta], max_iter=100, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        logp = theta.log_softmax(0).unsqueeze(1)
        old = start.unsqueeze(1)
        total, _ = method.loss(Trajectories(logp=logp, logp_old=old, advantage=a.unsqueeze(1), weight=5 * old.exp()))
        total.backward()
        return total

    optimizer.step(closure)
    close(theta.detach().softmax(0), (start + (1 - progress) * a).softmax(0), rtol=0, atol=1e-6)


@pytest.mark.entry("mdpo")
def test_mdpos_penalty_is_never_negative_and_has_no_slope_at_the_first_step() -> None:
    method = anypo.method("mdpo", critic=[])
    x = torch.linspace(-3, 3, 61, dtype=F64).unsqueeze(1)
    b = one_row(x, 0.0)
    wanted = x.exp() * x
    close(weights(method, b), -wanted)
    assert float(weights(method, one_row(f64([0.0]), 0.0))) == 0
    for k in range(61):
        assert float(method.loss(b.rows(torch.tensor([k])))[0]) >= 0


@pytest.mark.entry("mdpo")
def test_mdpos_whitening_divides_by_the_population_deviation() -> None:
    part = anypo.method("mdpo").stages["credit"][1]
    assert part == Whiten(ddof=0)
    found = part(Trajectories(advantage=f64([1.0, 3.0], [5.0, 7.0]))).advantage
    close(found, (f64([1.0, 3.0], [5.0, 7.0]) - 4) / (5**0.5 + 1e-8))


# ------------------------------------------------------------------------------------------------ SAFE


def soft_minimum(one: float, other: float, alpha: float) -> float:
    b = Trajectories(
        logp=torch.zeros(1, 1, dtype=F64),
        value=f64([one]),
        score=f64(0.0),
        extra={"value_b": f64([other])},
    )
    method = anypo.method("safe")
    return float(method.but(credit=[type(method.stages["credit"][0])(alpha=alpha)]).prepare(b).value_old)


@pytest.mark.entry("safe")
def test_the_pair_of_critics_is_between_their_minimum_and_their_mean() -> None:
    assert soft_minimum(1.0, 3.0, 1e-3) == pytest.approx(1.0, abs=1e-3)
    assert soft_minimum(1.0, 3.0, 1e4) == pytest.approx(2.0, abs=1e-3)
    assert soft_minimum(2.0, 2.0, 0.3) == pytest.approx(2.0)
    found = [soft_minimum(1.0, 3.0, alpha) for alpha in (0.01, 0.1, 0.3, 1.0, 10.0)]
    assert found == sorted(found)
    assert soft_minimum(3.0, 1.0, 0.3) == soft_minimum(1.0, 3.0, 0.3)


def penalised(kl: float, entropy: float, average: float = 10.0, **options: Any) -> tuple[float, float]:
    """The penalty alone and its slope in the divergence; above the threshold once the moving average is."""
    term = EntropyGatedKl(**options)
    term.threshold.average = average
    logp = f64([-1.0]).requires_grad_()
    b = Trajectories(logp=logp, logp_ref=logp.detach() - kl, entropy=f64([entropy]))
    value, _ = term(b, Mean("token"))
    slope = torch.autograd.grad(value, logp, materialize_grads=True)[0] if value.requires_grad else f64([0.0])
    return float(value.detach()), float(slope)


@pytest.mark.entry("safe")
def test_safes_penalty_is_zero_below_its_threshold_and_grows_as_entropy_falls() -> None:
    assert penalised(4.4, 1.0, average=0.0) == (0.0, 0.0)  # 0.1 x 4.4 < 0.45
    assert penalised(4.6, 1.0, average=0.0)[0] > 0
    found = [penalised(1.0, h)[0] for h in (0.01, 0.5, 1.0, 2.0, 3.9)]
    assert found == sorted(found, reverse=True)
    value, slope = penalised(1.0, 0.9)
    assert value == pytest.approx(0.1 * (9.1 - 0.45) ** 2 * 2)
    assert slope == pytest.approx(0.02 * (9.1 - 0.45) * 2)
    assert penalised(1.0, 50.0)[0] == pytest.approx(0.1 * (9.1 - 0.45) ** 2 * 0.5)
    assert penalised(1.0, 0.9, detached=True) == (pytest.approx(value), 0.0)


@pytest.mark.entry("safe")
@pytest.mark.parametrize("story", ["climbing", "converged", "falling", "noisy", "steps"])
def test_safes_controller_is_the_one_computed_from_the_whole_history(story: str) -> None:
    rng = np.random.default_rng(1)
    rewards = {
        "climbing": 0.02 * np.arange(260),
        "converged": 0.8 + 0.005 * rng.standard_normal(260),
        "falling": -0.5 * np.arange(260),
        "noisy": 3 * rng.standard_normal(260),
        "steps": np.repeat([0.1, 0.9, 0.9, 0.2], 65),
    }[story]
    knob, hand = KlController(), Controller()
    assert knob.every == "update"
    assert float(knob) == pytest.approx(0.45)
    seen = set()
    for k, reward in enumerate(rewards):
        kl = 0.5 * np.sin(k / 7) + 0.4
        scores = f64(reward - 1, reward + 1, float("nan"))  # a missing outcome enters nothing
        b = Trajectories(logp=torch.zeros(3, 1, dtype=F64), score=scores)
        knob.update({"kl_ref": float(kl)}, k / 260, b)
        hand.step(float(kl), float(reward))
        assert float(knob) == pytest.approx(hand.threshold(), rel=1e-9)
        assert knob.average == pytest.approx(hand.average, rel=1e-9)
        assert 0.1 <= float(knob) <= 0.6
        seen.add(knob.phase())
        if k == 130:
            state, knob = knob.state_dict(), KlController()
            knob.load_state_dict(state)
    assert (
        seen
        == {
            "climbing": {1.5, 0.8, 1.2},
            "converged": {1.5, 1.0},
            "falling": {1.5, 0.8},
            "noisy": seen & {1.5, 1.2, 0.8},
            "steps": {1.5, 1.2, 1.0, 0.8},
        }[story]
    )


@pytest.mark.entry("safe")
def test_safes_first_threshold_is_that_of_the_warm_up() -> None:
    method = anypo.method("safe")
    b = method.prepare(one_row(torch.zeros(2, 2), score=f64(1.0, 0.0)).but(
        value=torch.zeros(2, 2, dtype=F64), entropy=torch.ones(2, 2, dtype=F64), logp_ref=torch.full((2, 2), -2.5, dtype=F64)
    ))  # fmt: skip
    _, metrics, _ = gradients(method, b)
    assert float(metrics["kl_threshold"]) == pytest.approx(0.45)
    assert float(metrics["kl_ref"]) == pytest.approx(0.5)
    method.update("update", {k: float(v) for k, v in metrics.items()}, 0.0, b)
    assert method.stages["terms"][0].threshold.average == pytest.approx(0.05)
    assert float(gradients(method, b)[1]["kl_threshold"]) == pytest.approx(0.45)  # the first outcome moves nothing


@pytest.mark.entry("safe")
def test_controllers_are_not_shared_between_methods() -> None:
    one, other = anypo.method("safe"), anypo.method("safe")
    one.stages["terms"][0].threshold.average = 3.0
    assert other.stages["terms"][0].threshold.average == 0.0


# ------------------------------------------------------------------------------------------------ HPT and CHORD


def taught(logp: Tensor, expert: list[bool], **fields: Any) -> Trajectories:
    return Trajectories(logp=logp, logp_old=logp.detach(), expert_mask=torch.tensor(expert), **fields)


@pytest.mark.entry("hpt")
def test_the_estimator_with_ratio_one_and_advantage_one_is_the_likelihoods_gradient() -> None:
    """Mask 1, reference policy = the policy itself, A = 1: supervised learning."""
    logp = -torch.rand(3, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    unified = anypo.method("hpt", terms=[], reduce=Mean("token"))
    b = one_row(torch.zeros(3, 4)).but(logp=logp, logp_old=logp)
    nll = taught(logp, [True] * 3, advantage=torch.zeros(3, 4, dtype=F64))
    supervised = anypo.method("hpt", terms=[imitate(1.0)])
    close(gradients(unified, b)[2]["logp"], gradients(supervised, nll)[2]["logp"])


@pytest.mark.entry("hpt")
def test_with_the_clip_mask_the_estimator_is_ppos() -> None:
    unified, ppo = anypo.method("hpt", trust=Clip(), terms=[], reduce=Mean("token")), anypo.method("ppo", critic=[])
    for b in batches(10, spread=0.5):
        b = random_advantage(unified.prepare(b))
        close(gradients(unified, b)[2]["logp"], gradients(ppo, b)[2]["logp"])


@pytest.mark.entry("hpt")
def test_unsolved_prompts_learn_from_their_demonstration_alone_and_solved_ones_from_their_samples() -> None:
    """Two prompts, two samples and one demonstration each; only the second prompt is ever solved."""
    logp = -torch.rand(6, 3, generator=torch.Generator().manual_seed(1), dtype=F64) - 0.1
    mask = torch.ones(6, 3, dtype=torch.bool)
    mask[2, 2] = False  # a demonstration of two decisions
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    expert = [False, False, True, False, False, True]
    score = f64(0.0, 0.0, float("nan"), 1.0, 0.0, float("nan"))
    hpt = anypo.method("hpt", terms=[imitate(1.0)])
    b = hpt.prepare(taught(logp, expert, mask=mask, group=group, score=score, budget=5))
    g = gradients(hpt, b)[2]["logp"]
    assert not g[:2].any()  # all samples failed
    close(g[2], f64(-0.5, -0.5, 0.0))  # the token mean of the negative log-likelihood over its two decisions
    assert not g[5].any()  # solved: the demonstration is not needed
    close(g[3], torch.full((3,), -0.5 / (4 * 5), dtype=F64))  # A = 1/2 over N L, N = all four samples
    close(g[4], torch.full((3,), 0.5 / (4 * 5), dtype=F64))


@pytest.mark.entry("hpt")
def test_without_an_unsolved_prompt_imitation_adds_nothing() -> None:
    hpt = anypo.method("hpt")
    b = taught(f64([-1.0], [-1.0], [-2.0]), [False, False, True], group=torch.zeros(3).long())
    b = hpt.prepare(b.but(score=f64(1.0, 0.0, float("nan")), entropy=torch.ones(3, 1, dtype=F64)))
    loss_, metrics, g = gradients(hpt, b)
    assert float(metrics["expert_loss"]) == 0
    assert loss_.isfinite()
    assert not g["logp"][2].any()


def imitated(p: Tensor, phi: str) -> Tensor:
    """-d loss / d log p per decision."""
    b = taught(p.log().unsqueeze(1), [True] * len(p), advantage=torch.zeros(len(p), 1, dtype=F64))
    return weights(anypo.method("chord", terms=[imitate(1.0, phi=phi)]), b)[:, 0]


@pytest.mark.entry("chord")
def test_chords_token_weight_peaks_at_one_half_and_vanishes_at_both_ends() -> None:
    p = torch.linspace(0.001, 1.0, 1000, dtype=F64)
    found = imitated(p, "uncertain")
    close(found, p * (1 - p))
    assert float(p[found.argmax()]) == pytest.approx(0.5)
    assert float(found[-1]) == 0
    assert float(found[0]) < 1e-3
    close(imitated(p, "one"), torch.ones_like(p))
    close(imitated(p, "likely"), p)


@pytest.mark.entry("chord")
def test_chords_gradient_in_the_experts_logit_peaks_at_one_third() -> None:
    """|d(-phi log p) / dz| = p (1 - p)^2 for the logit of the expert's own token."""
    method, found = anypo.method("chord", terms=[imitate(1.0, phi="uncertain")]), []
    grid = torch.linspace(-4, 4, 201, dtype=F64)
    for z in grid:
        leaf = z.clone().requires_grad_()
        logp = torch.stack([leaf, torch.zeros_like(leaf)]).log_softmax(0)[0].reshape(1, 1)
        b = taught(logp, [True], advantage=torch.zeros(1, 1, dtype=F64))
        found.append(float(-torch.autograd.grad(method.loss(b)[0], leaf)[0]))
    p = grid.sigmoid()
    close(f64(*found), p * (1 - p) ** 2)
    assert float(p[int(np.argmax(found))]) == pytest.approx(1 / 3, abs=1e-2)


@pytest.mark.entry("chord")
def test_chord_divides_samples_and_demonstrations_by_their_own_counts() -> None:
    chord = anypo.method("chord")
    logp = torch.full((4, 2), log(0.5), dtype=F64)
    mask = torch.tensor([[True, True], [True, False], [True, True], [True, True]])
    b = taught(logp, [False, False, True, True], mask=mask, group=torch.tensor([0, 0, 1, 2]))
    b = chord.prepare(b.but(score=f64(1.0, 0.0, float("nan"), float("nan"))))
    g = gradients(chord, b)[2]["logp"]
    close(g[:2], torch.where(mask[:2], -0.9 * b.advantage[:2] / 3, 0.0))
    close(g[2:], torch.full((2, 2), -0.1 * 0.25 / 4, dtype=F64))


# ------------------------------------------------------------------------------------------------ ReMix


@pytest.mark.entry("remix")
def test_remix_on_rows_of_the_present_policy_is_ppos_clip() -> None:
    remix, plain = anypo.method("remix", terms=[]), anypo.method("grpo", terms=[], reduce=Mean("token"))
    for b in batches(spread=0.5):
        b = random_advantage(remix.prepare(b))
        for start in ({}, {"logp_start": b.logp_old}):
            (one, _, g), (two, _, h) = gradients(remix, b.but(extra=start)), gradients(plain, b)
            close(one, two)
            close(g["logp"], h["logp"])


@pytest.mark.entry("remix")
def test_the_recentred_window_never_clips_where_the_update_starts() -> None:
    """At pi = pi_k the gradient is the unclipped one however old the row is; a window around 1 loses some of it."""
    remix, free = anypo.method("remix", terms=[]), anypo.method("remix", terms=[], trust=Unclipped())
    plain, lost = anypo.method("remix", terms=[], trust=Clip()), 0
    for b in batches(spread=1.0):
        b = random_advantage(remix.prepare(b))
        b = b.but(extra={"logp_start": b.logp})
        one, two = gradients(remix, b)[2]["logp"], gradients(free, b)[2]["logp"]
        close(one, two)
        lost += int((gradients(plain, b)[2]["logp"] != two).sum())
    assert lost > 0


@pytest.mark.entry("remix")
def test_remixs_share_of_the_reference_falls_in_steps_from_one_to_a_half() -> None:
    remix, found = anypo.method("remix"), {}
    base, prev = (term.coef for term in remix.stages["terms"])
    for t in range(121):
        found[t] = float(base) / 0.01
        assert float(base) + float(prev) == pytest.approx(0.01)
        remix.update("batch", {}, 0.0, Trajectories())
    wanted = {0: 1.0, 50: 1.0, 51: 0.9, 60: 0.9, 61: 0.8, 91: 0.5, 92: 0.5, 120: 0.5}
    assert {t: found[t] for t in wanted} == pytest.approx(wanted)


@pytest.mark.entry("remix")
def test_remix_reads_the_previous_policy_only_once_it_counts() -> None:
    remix = anypo.method("remix")
    assert "logp_prev" not in remix.views
    for _ in range(51):
        remix.update("batch", {}, 0.0, Trajectories())
    assert "logp_prev" in remix.current().views
    assert "logp_prev" in remix.phases[1].current().views


@pytest.mark.entry("remix")
def test_remix_is_reincarnated_after_fifty_batches() -> None:
    remix = anypo.method("remix")
    assert isinstance(remix.phases[0].stages["trust"], RecentredClip)
    assert remix.later[0].after == 50
    later = remix.phases[1]
    assert later.stages["trust"] == Clip(0.2, 0.2)
    assert type(later.stages["store"]).__name__ == "Fresh"
    assert later.stages["terms"] == remix.stages["terms"]
    assert (remix.anchors["ref"].at, remix.anchors["ref"].every) == (50, None)


# ------------------------------------------------------------------------------------------------ T-PPO


def critic_rows(seed: int, **fields: Any) -> Trajectories:
    b = random_batch(seed, 1 + seed % 6, 1 + seed % 7, outcome="reward")
    return b.but(bootstrap=None, done=None, **fields)


@pytest.mark.entry("t-ppo")
def test_extended_gae_of_finished_rows_is_gae() -> None:
    for seed in range(50):
        b = critic_rows(seed)
        done = torch.ones(b.shape[0], dtype=torch.bool)
        wanted = Gae(gamma=1.0, lam=0.95)(b.clean()).advantage
        for same in (b, b.but(done=done), b.but(done=done, bootstrap=torch.ones(b.shape[0], dtype=F64))):
            close(anypo.method("t-ppo").prepare(same).advantage, wanted)


@pytest.mark.entry("t-ppo")
def test_without_rewards_an_unfinished_row_is_credited_with_how_far_its_value_has_come() -> None:
    """gamma = lam = 1: A_t = V(s_{l-1}) - V(s_t); a flat value credits nothing."""
    method = anypo.method("t-ppo", credit=[ExtendedGae(gamma=1.0, lam=1.0)])
    for seed in range(50):
        b = critic_rows(seed)
        b = b.but(reward=torch.zeros(b.shape, dtype=F64), done=torch.zeros(b.shape[0], dtype=torch.bool))
        found = method.prepare(b).advantage
        for i in range(b.shape[0]):
            at = b.valid[i].nonzero()[:, 0]
            if len(at):
                close(found[i, at], b.value[i, at[-1]] - b.value[i, at])
        flat = anypo.method("t-ppo").prepare(b.but(value=torch.full(b.shape, 0.7, dtype=F64))).advantage
        close(flat, torch.zeros(b.shape))


@pytest.mark.entry("t-ppo")
@pytest.mark.parametrize("gamma", [0.9, 1.0])
def test_the_bias_of_a_cut_row_is_bounded_by_one_step_of_the_value(gamma: float) -> None:
    """A chain without chance whose true value is known: every true advantage is 0."""
    credit = ExtendedGae(gamma=gamma, lam=0.95)
    for seed in range(30):
        rewards = torch.randn(12, generator=torch.Generator().manual_seed(seed), dtype=F64)
        value = torch.zeros(13, dtype=F64)
        for t in reversed(range(12)):
            value[t] = rewards[t] + gamma * value[t + 1]
        for cut in range(1, 13):
            b = Trajectories(
                logp=torch.zeros(1, cut, dtype=F64),
                reward=rewards[:cut].unsqueeze(0),
                value=value[:cut].unsqueeze(0),
                done=torch.tensor([cut == 12]),
                bootstrap=torch.zeros(1, dtype=F64),
            )
            bias = credit(b.clean()).advantage[0]
            step = gamma * float((value[cut - 1] - value[cut]).abs())
            bound = 0.0 if cut == 12 else step
            assert float(bias.abs().max()) <= bound + 1e-12


@pytest.mark.entry("t-ppo")
def test_the_policy_learns_from_new_decisions_and_the_value_from_finished_rows() -> None:
    ones = torch.ones(3, 4, dtype=F64)
    fresh = torch.zeros(3, 4, dtype=torch.bool)
    fresh[0, 2:], fresh[1, :] = True, True
    b = Trajectories(
        logp=-ones, logp_old=-ones, value=0 * ones, reward=ones, fresh=fresh, done=torch.tensor([False, True, True]),
        bootstrap=f64(9.0, 9.0, 9.0),
    )  # fmt: skip
    method = anypo.method("t-ppo")
    b = random_advantage(method.prepare(b))
    _, metrics, g = gradients(method, b)
    assert ((g["logp"] != 0) == fresh).all()
    assert float(metrics["denominator"]) == 6
    assert (g["value"] != 0).any(1).tolist() == [False, True, True]
    close(b.returns[1], f64(4.0, 3.0, 2.0, 1.0))


@pytest.mark.entry("t-ppo")
def test_t_ppo_on_finished_new_rows_is_ppo_with_monte_carlo_targets() -> None:
    mine, ppo = anypo.method("t-ppo"), anypo.method("ppo", credit=[Gae(gamma=1.0, lam=0.95)])
    for seed in range(30):
        b = critic_rows(seed)
        one, two = mine.prepare(b), ppo.prepare(b)
        two = two.but(returns=one.returns)
        (x, _, g), (y, _, h) = gradients(mine, one), gradients(ppo, two)
        close(x, y)
        close(g["logp"], h["logp"])
        close(g["value"], h["value"])


# ------------------------------------------------------------------------------------------------ in the engine


def through_a_policy(name: str) -> tuple[Method, SoftmaxTable]:
    """One gradient of a method through a policy that has every head the method learns."""
    method = anypo.method(name)
    policy = SoftmaxTable(3, 4, value=method.heads, seed=0)
    rng = torch.Generator().manual_seed(1)
    trace = {"obs": torch.randint(3, (6, 2), generator=rng), "action": torch.randint(4, (6, 2), generator=rng)}
    ones = torch.ones(6, 2)
    b = Trajectories(
        mask=ones > 0, logp_old=-ones, logp_ref=-ones, score=torch.arange(6) % 2 * 1.0, group=torch.arange(6) // 3, trace=trace
    )  # fmt: skip
    with torch.no_grad():
        b = b.put(policy.evaluate(b, {"value", "entropy", "logp"} & policy.functionals))
    gradient(method, policy, method.prepare(b), 100)
    return method, policy


@pytest.mark.entry("bpo")
def test_both_heads_of_bpo_learn() -> None:
    method, policy = through_a_policy("bpo")
    assert method.heads == ("value", "median")
    assert policy.table.grad.any(0).all()


@pytest.mark.entry("safe")
def test_both_heads_of_safe_learn() -> None:
    method, policy = through_a_policy("safe")
    assert method.heads == ("value", "value_b")
    assert {"value", "value_b"} <= set(method.live)
    assert {"value", "value_b"} <= set(method.views)
    assert policy.table.grad.any(0).all()


@pytest.mark.parametrize("name", entries(["hpt", "chord"]))
def test_the_rewards_of_a_demonstration_judge_nobody(name: str) -> None:
    method = anypo.method(name)
    b = taught(-torch.ones(3, 1, dtype=F64), [False, False, True], group=torch.zeros(3).long())
    by_score = method.prepare(b.but(score=f64(1.0, 0.0, 5.0)))
    by_reward = method.prepare(b.but(reward=f64([1.0], [0.0], [5.0])))
    close(by_reward.advantage, by_score.advantage)


def test_a_batch_without_outcomes_leaves_safes_threshold_finite() -> None:
    knob = KlController()
    for reward in (0.5, float("nan"), 0.5):
        knob.update({"kl_ref": 0.1}, 0.0, Trajectories(logp=torch.zeros(1, 1, dtype=F64), score=f64(reward)))
    assert 0.1 <= float(knob) <= 0.6


def test_an_empty_batch_costs_nothing_above_safes_threshold() -> None:
    method = built("safe-moved")
    b = case(0, "safe")
    assert float(method.loss(method.prepare(b.but(mask=torch.zeros_like(b.mask))))[0]) == 0
