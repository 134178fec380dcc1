"""Bugs that never raise, each a regression test over the methods it could touch: batching, masks, groups, ends."""

from __future__ import annotations

from functools import partial
from itertools import product

import pytest
import strategies
import torch
from entries import entries
from strategies import all_reads, fill_masked, gradients, random_advantage, same_bits
from torch import Tensor

import anypo
from anypo import Trajectories
from anypo.parts.credit import (
    AddProgress,
    Baseline,
    Combine,
    DropTruncated,
    Gae,
    GateBySuccess,
    KeepExtremes,
    KeepInformative,
    KeepStable,
    NStep,
    ReferencePoint,
    Returns,
    WeightedBaseline,
    Whiten,
)
from anypo.parts.critic import Value
from anypo.types import FIELDS

SAMPLING = [n for n in anypo.methods() if not anypo.method(n).traits["replays"]]
"""Methods on rows that a policy sampled; those on transitions are in the property suite and in test_values."""
every_method = pytest.mark.parametrize("name", entries(SAMPLING))
GROUPWISE = (
    AddProgress,
    Baseline,
    Combine,
    DropTruncated,
    GateBySuccess,
    KeepInformative,
    KeepStable,
    WeightedBaseline,
)
"""Credit links in which a row is judged by its own group alone."""


def links(name: str) -> list:
    return list(anypo.method(name).stages["credit"])


def judged_by_group(name: str) -> bool:
    found = links(name)
    alone = any(getattr(p, "alone", False) for p in found)
    return (
        not alone
        and any(isinstance(p, Baseline | WeightedBaseline) for p in found)
        and all(isinstance(p, GROUPWISE) for p in found)
    )


grouped = pytest.mark.parametrize("name", entries(n for n in SAMPLING if judged_by_group(n)))
fills_advantage = pytest.mark.parametrize(
    "name",
    entries(n for n in SAMPLING if any(not isinstance(p, Combine | KeepExtremes | ReferencePoint) for p in links(n))),
)
EXTRAS = sorted({field for n in SAMPLING for field in all_reads(anypo.method(n))} - set(FIELDS))
random_batch = partial(strategies.random_batch, extra=EXTRAS)
learns_value = pytest.mark.parametrize("name", entries(n for n in SAMPLING if anypo.method(n).traits["critic"]))


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# ---------------------------------------------------------------- the scale of the loss


@every_method
def test_extra_padding_changes_neither_loss_nor_gradient(name: str) -> None:
    method = anypo.method(name)
    b = random_batch(5, 6, 5, optional=False)  # with a budget: a constant length does not depend on the padding
    padding = b.map(lambda t: t[:1]).but(mask=torch.zeros(1, 5, dtype=torch.bool))
    wide = padding.map(lambda t: torch.cat([t, t], 1) if t.ndim == 2 and t.shape[1] == 5 else t)
    wider = Trajectories.cat([b, wide]).rows(torch.arange(6))
    assert wider.shape == (6, 10)
    one = random_advantage(method.prepare(b).but(mask=b.mask))
    other = Trajectories.cat([one, wide.but(advantage=wide.logp, returns=wide.logp, value_old=wide.logp)])
    other = other.rows(torch.arange(6))
    (loss, metrics, g), (loss_, metrics_, h) = gradients(method, one), gradients(method, other)
    torch.testing.assert_close(loss_, loss, rtol=1e-12, atol=1e-13)
    for leaf in g:
        torch.testing.assert_close(h[leaf][:, :5], g[leaf], rtol=1e-12, atol=1e-13)
    assert metrics["denominator"] == metrics_["denominator"] == b.valid.sum()


@pytest.mark.parametrize(
    "name", entries(n for n in SAMPLING if not hasattr(anypo.method(n).stages["trust"], "per_group"))
)
def test_a_truncated_row_without_mask_leaves_numerator_and_denominator_together(name: str) -> None:
    """Clearing a row's mask by hand is the same, for the token mean, as the batch without that row."""
    method = anypo.method(name, reduce="mean")
    b = random_advantage(method.prepare(random_batch(8, 5, 4, holes=0.0)))
    keep = torch.tensor([0, 1, 2, 4])
    cleared = b.but(mask=b.valid.index_fill(0, torch.tensor([3]), False))
    torch.testing.assert_close(method.loss(cleared)[0], method.loss(b.rows(keep))[0], rtol=1e-12, atol=1e-13)


def test_unequal_token_counts_give_the_same_gradient_as_one_big_batch() -> None:
    """The mistake of averaging micro-batch means, made on purpose, differs: the test can see it."""
    method = anypo.method("dapo")
    b = random_advantage(method.prepare(random_batch(2, 4, 4, holes=0.0)))
    b = b.but(
        mask=torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0]], dtype=torch.bool), weight=None
    )
    whole = gradients(method, b)[2]["logp"]
    halves = torch.cat([gradients(method, b.rows(torch.tensor(rows)))[2]["logp"] / 2 for rows in ([0, 1], [2, 3])])
    assert not torch.allclose(whole, halves)
    tokens = torch.cat(
        [
            gradients(method, b.rows(torch.tensor(rows)))[2]["logp"] * b.valid[rows].sum() / b.valid.sum()
            for rows in ([0, 1], [2, 3])
        ]
    )
    torch.testing.assert_close(whole, tokens)


# ---------------------------------------------------------------- masks by multiplication


@every_method
def test_rubbish_under_the_mask_leaves_loss_and_gradient_bit_equal_in_float32(name: str) -> None:
    method = anypo.method(name)
    b = random_advantage(method.prepare(random_batch(11, 6, 6, dtype=torch.float32, holes=0.5)))
    loss, _, g = gradients(method, b)
    assert loss.isfinite()
    for rubbish in (float("nan"), float("inf"), float("-inf"), 1e30):
        loss_, _, h = gradients(method, fill_masked(b, rubbish))
        assert same_bits(loss, loss_), rubbish
        assert all(same_bits(g[k], h[k]) for k in g), rubbish


@every_method
def test_a_log_ratio_beyond_what_exp_can_hold_stays_finite(name: str) -> None:
    method = anypo.method(name)
    logp = torch.full((2, 3), -1.0)
    for x, a in product((89.0, -89.0, 1000.0, -1000.0), (1.0, -1.0)):
        b = Trajectories(logp=logp, logp_old=logp - x, logp_ref=logp + x, entropy=-logp, value=logp, value_old=logp)
        b = b.but(score=torch.tensor([0.0, 1.0]), group=torch.zeros(2).long(), extra=dict.fromkeys(EXTRAS, logp))
        loss, _, g = gradients(method, b.but(returns=logp, advantage=torch.full((2, 3), a)))
        assert loss.isfinite(), (x, a)
        assert g["logp"].isfinite().all(), (x, a)


@pytest.mark.parametrize("name", entries(n for n in SAMPLING if "logp_old" in anypo.method(n).reads("ratio")))
def test_an_unchanged_policy_has_ratio_exactly_one_and_clips_nothing(name: str) -> None:
    method = anypo.method(name)
    for dtype in (torch.float32, torch.float64):
        b = random_batch(14, 6, 6, dtype=dtype, holes=0.3)
        b = b.put({f"{field}_old": t for field, t in b.extra.items() if f"{field}_old" in b.extra})
        b = random_advantage(method.prepare(b.but(logp_old=b.logp)).but(mask=b.mask))
        _, metrics = method.loss(b)
        names = ("ratio", "ratio_max", "kl_old", "clip_fraction")
        assert [metrics.get(name, 0) for name in names] == [1, 1, 0, 0], dtype


# ---------------------------------------------------------------- masked entries in statistics


@learns_value
def test_a_critic_value_of_100_at_a_masked_slot_changes_no_target(name: str) -> None:
    method = anypo.method(name)
    b = random_batch(4, 6, 6, holes=0.4, outcome="reward")
    one, other = method.prepare(b), method.prepare(b.but(value=b.value.masked_fill(~b.valid, 100.0)))
    assert same_bits(one.advantage, other.advantage)
    assert same_bits(one.returns, other.returns)


@fills_advantage
def test_padding_does_not_dilute_the_advantage_of_a_row(name: str) -> None:
    method = anypo.method(name)
    b = random_batch(6, 4, 3, holes=0.0)
    blank = torch.zeros(4, 3, dtype=torch.bool)
    padded = b.map(lambda t: torch.cat([t, t], 1) if t.ndim == 2 else t)
    padded = padded.but(mask=torch.cat([b.valid, blank], 1))
    one, other = method.prepare(b), method.prepare(padded)
    torch.testing.assert_close(other.advantage[:, :3], one.advantage, rtol=1e-12, atol=1e-13)
    assert (other.advantage[:, 3:] == 0).all()
    (_, _, g), (_, _, h) = gradients(method, one.but(budget=9)), gradients(method, other.but(budget=9))
    torch.testing.assert_close(h["logp"][:, :3], g["logp"], rtol=1e-12, atol=1e-13)


@grouped
def test_a_row_without_an_outcome_stays_out_of_its_groups_baseline(name: str) -> None:
    method = anypo.method(name)
    b = Trajectories(
        mask=torch.ones(4, 2, dtype=torch.bool), score=f64(1.0, 0.0, 0.0, float("nan")), group=torch.zeros(4).long()
    )
    whole, fewer = method.prepare(b), method.prepare(b.rows(torch.arange(3)))
    assert same_bits(whole.advantage[:3], fewer.advantage)
    assert not whole.valid[3].any()


# ---------------------------------------------------------------- wrong groups


@grouped
def test_interleaved_groups_are_the_groups_of_their_ids(name: str) -> None:
    method = anypo.method(name)
    score = f64(1.0, 5.0, 0.0, 7.0, 0.0, 5.0)
    b = Trajectories(mask=torch.ones(6, 2, dtype=torch.bool), score=score, group=torch.tensor([9, 2, 9, 2, 9, 2]))
    order = torch.tensor([0, 2, 4, 1, 3, 5])
    torch.testing.assert_close(method.prepare(b).advantage[order], method.prepare(b.rows(order)).advantage)
    alone = method.prepare(b.rows(torch.tensor([0, 2, 4]))).advantage
    torch.testing.assert_close(method.prepare(b).advantage[[0, 2, 4]], alone)


@grouped
def test_unique_ids_are_groups_of_one_and_give_nothing_to_learn(name: str) -> None:
    method = anypo.method(name)
    b = Trajectories(mask=torch.ones(4, 2, dtype=torch.bool), score=f64(1.0, 0.0, 3.0, 2.0), group=torch.arange(4))
    assert (method.prepare(b).advantage == 0).all()


@grouped
def test_a_nearly_constant_group_keeps_its_exact_deviation(name: str) -> None:
    """E[x^2] - mean^2 loses every digit on large scores: the answer must not depend on their origin."""
    method = anypo.method(name)
    base = torch.tensor([0.0] + [0.95] * 7, dtype=torch.float64)
    mask, group = torch.ones(8, 1, dtype=torch.bool), torch.zeros(8).long()
    wanted = method.prepare(Trajectories(mask=mask, score=base, group=group)).advantage
    for dtype in (torch.float32, torch.float64):
        shifted = method.prepare(Trajectories(mask=mask, score=(base + 1000).to(dtype), group=group)).advantage
        torch.testing.assert_close(shifted.double(), wanted, rtol=1e-3, atol=1e-6)


@grouped
def test_equal_scores_that_are_no_binary_fractions_give_exactly_zero(name: str) -> None:
    method = anypo.method(name)
    b = Trajectories(mask=torch.ones(7, 1, dtype=torch.bool), score=torch.full((7,), 0.1), group=torch.zeros(7).long())
    assert (method.prepare(b).advantage == 0).all()


# ---------------------------------------------------------------- the end of an episode


@pytest.mark.parametrize("name", entries(n for n in SAMPLING if Value in map(type, anypo.method(n).stages["critic"])))
def test_a_time_limit_does_not_zero_the_bootstrap_and_a_terminal_state_does(name: str) -> None:
    credit = next(p for p in anypo.method(name).stages["credit"] if getattr(p, "bootstraps", False))
    b = Trajectories(
        mask=torch.ones(2, 2, dtype=torch.bool),
        reward=torch.ones(2, 2, dtype=torch.float64),
        value=torch.zeros(2, 2, dtype=torch.float64),
        bootstrap=f64(10.0, 10.0),
        done=torch.tensor([False, True]),
    )
    returns = credit(b).returns
    assert returns[0, -1] == pytest.approx(1 + credit.gamma * 10)
    assert returns[1, -1] == 1.0


def test_discounts_are_raised_to_the_power_of_the_steps_between() -> None:
    b = Trajectories(
        mask=torch.ones(1, 3, dtype=torch.bool),
        reward=torch.zeros(1, 3, dtype=torch.float64),
        value=torch.zeros(1, 3, dtype=torch.float64),
        bootstrap=f64(1.0),
    )
    wanted = torch.tensor([[0.5**3, 0.5**2, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(NStep(n=9, gamma=0.5)(b).returns, wanted)
    torch.testing.assert_close(Gae(gamma=0.5, lam=1.0)(b).returns, wanted)
    late = b.but(reward=torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64))
    torch.testing.assert_close(Returns(gamma=0.5)(late).advantage, 2 * wanted)


@pytest.mark.parametrize(
    "name",
    entries(n for n in SAMPLING if all(isinstance(p, (*GROUPWISE, Gae, NStep, Returns, Whiten)) for p in links(n))),
)
def test_credit_of_a_row_does_not_reach_into_the_next_episode(name: str) -> None:
    """Changing rows of one request leaves the others' credit as it was (whitening, which is batch-wide, aside)."""
    method = anypo.method(name)
    if any(type(p).__name__ == "Whiten" for p in method.stages["credit"]):
        method = method.but(credit=[p for p in method.stages["credit"] if type(p).__name__ != "Whiten"])
    b = random_batch(9, 4, 4, outcome="reward", optional=False).but(group=torch.tensor([0, 0, 1, 1]))
    other = b.but(reward=b.reward.index_fill(0, torch.tensor([2, 3]), 50.0))
    one, two = method.prepare(b), method.prepare(other)
    assert one.advantage is None or same_bits(one.advantage[:2], two.advantage[:2])
