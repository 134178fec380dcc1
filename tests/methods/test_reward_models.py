"""Reward models and learning from them: definitions written again as numpy loops in float64, identities, known optima."""

from __future__ import annotations

from math import exp, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from strategies import random_batch

import anypo
from anypo import Comparisons, Trajectories
from anypo.parts.credit import KeepExtremes
from anypo.parts.score import ConservativeScore, TokenKl
from anypo.parts.trust import PairContrast

CASES = 50
pytestmark = pytest.mark.known


def scores(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    w, l = 3 * torch.randn(2, int(torch.randint(1, 9, (1,), generator=g)), generator=g, dtype=torch.float64)  # noqa: E741
    return w.requires_grad_(), l.requires_grad_()


# ------------------------------------------------------------------------------------------------ bt-rm


@pytest.mark.entry("bt-rm")
@pytest.mark.parametrize(("margin", "smoothing"), [(0.0, 0.0), (0.7, 0.0), (0.3, 0.2)])
def test_bt_rm_loss_and_gradient_equal_the_formula(margin: float, smoothing: float) -> None:
    method = anypo.method("bt-rm", trust=PairContrast("logistic", beta=1.0, margin=margin, smoothing=smoothing))
    for seed in range(CASES):
        w, l = scores(seed)  # noqa: E741
        loss, metrics = method.loss(Comparisons(score_chosen=w, score_rejected=l))
        loss.backward()
        n, total = len(w), 0.0
        dw, dl = np.zeros(n), np.zeros(n)
        for i, (rw, rl) in enumerate(zip(w.tolist(), l.tolist(), strict=True)):
            d = rw - rl - margin
            total += (1 - smoothing) * np.log1p(exp(-d)) + smoothing * np.log1p(exp(d))
            slope = -(1 - smoothing) / (1 + exp(d)) + smoothing / (1 + exp(-d))
            dw[i], dl[i] = slope, -slope
        assert float(loss.detach()) == pytest.approx(total / n, rel=1e-12)
        np.testing.assert_allclose(w.grad.numpy(), dw / n, rtol=1e-9, atol=1e-14)
        np.testing.assert_allclose(l.grad.numpy(), dl / n, rtol=1e-9, atol=1e-14)
        assert float(metrics["ranking_accuracy"]) == pytest.approx(float((w > l).double().mean()))


@pytest.mark.entry("bt-rm")
def test_a_constant_on_all_scores_changes_nothing() -> None:
    for seed in range(CASES):
        w, l = scores(seed)  # noqa: E741
        one = anypo.method("bt-rm").loss(Comparisons(score_chosen=w, score_rejected=l))[0]
        other = anypo.method("bt-rm").loss(Comparisons(score_chosen=w + 4.0, score_rejected=l + 4.0))[0]
        assert float(one.detach()) == pytest.approx(float(other.detach()), abs=1e-12)


@pytest.mark.entry("bt-rm")
def test_dpo_is_bt_rm_on_implicit_rewards() -> None:
    for seed in range(CASES):
        lw, ll = scores(seed)
        rw, rl = scores(seed + 1000)
        n = min(len(lw), len(rw))
        lw, ll, rw, rl = (x[:n].detach() for x in (lw, ll, rw, rl))
        dpo = anypo.method("dpo").loss(Comparisons(lw, ll, rw, rl))[0]
        rm = anypo.method("bt-rm").loss(Comparisons(score_chosen=0.1 * (lw - rw), score_rejected=0.1 * (ll - rl)))[0]
        assert float(dpo) == pytest.approx(float(rm), abs=1e-12)


@pytest.mark.entry("bt-rm")
def test_a_ranking_of_k_answers_is_the_mean_over_all_its_pairs() -> None:
    value = torch.tensor([[0.3], [-1.0], [2.0], [0.5]], dtype=torch.float64)
    rank = torch.tensor([3.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    b = Trajectories(value=value, mask=torch.ones(4, 1), score=rank, group=torch.zeros(4, dtype=torch.long))
    wanted = np.mean([np.log1p(exp(-float(value[i] - value[j]))) for i in range(4) for j in range(i + 1, 4)])
    assert float(anypo.method("bt-rm").loss(b)[0]) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.entry("bt-rm")
def test_the_score_is_the_value_at_the_last_decision_of_a_row() -> None:
    value = torch.tensor([[9.0, 1.0, 9.0], [9.0, 9.0, 0.5]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    b = Trajectories(value=value, mask=mask, score=torch.tensor([1.0, 0.0]).double(), group=torch.zeros(2).long())
    assert float(anypo.method("bt-rm").loss(b)[0]) == pytest.approx(np.log1p(exp(-0.5)), rel=1e-12)


def fitted(wins: torch.Tensor, updates: int = 2000) -> torch.Tensor:
    """Centred scores fitted to how often i beat j, [i, j]."""
    x = torch.zeros(len(wins), dtype=torch.float64, requires_grad=True)
    i, j = wins.nonzero().unbind(1)
    weight = wins[i, j] / wins[i, j].mean()
    optimizer = torch.optim.Adam([x], 0.05)
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - update / updates)
        loss, _ = anypo.method("bt-rm").loss(Comparisons(score_chosen=x[i], score_rejected=x[j], weight=weight))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (x - x.mean()).detach()


@pytest.mark.entry("bt-rm")
@pytest.mark.slow
def test_a_hundred_thousand_comparisons_recover_known_scores() -> None:
    rng = np.random.default_rng(0)
    truth = rng.standard_normal(10)
    i, j = rng.integers(10, size=(2, 100_000))
    first = rng.random(100_000) < 1 / (1 + np.exp(truth[j] - truth[i]))
    wins = np.zeros((10, 10))
    np.add.at(wins, (np.where(first, i, j), np.where(first, j, i)), 1.0)
    np.fill_diagonal(wins, 0.0)
    found = fitted(torch.tensor(wins)).numpy()
    assert sqrt(np.mean((found - (truth - truth.mean())) ** 2)) < 0.05


@pytest.mark.entry("bt-rm")
def test_cyclic_preferences_leave_all_scores_equal() -> None:
    wins = torch.zeros(3, 3, dtype=torch.float64)
    for i in range(3):
        wins[i, (i + 1) % 3], wins[(i + 1) % 3, i] = 90.0, 10.0
    assert fitted(wins, 500).abs().max() < 1e-6


# ------------------------------------------------------------------------------------------------ rm-ensemble


def conservative(rule: str, lam: float, row: np.ndarray) -> float:
    known = [x for x in row if not np.isnan(x)]
    if not known:
        return np.nan
    mean = sum(known) / len(known)
    if rule == "wco":
        return min(known)
    variance = sum((x - mean) ** 2 for x in known) / (len(known) - 1) if len(known) > 1 else 0.0
    return mean - (lam * variance if rule == "uwo" else 0.0)


@pytest.mark.entry("rm-ensemble")
@pytest.mark.parametrize(("rule", "lam"), [("mean", 0.1), ("wco", 0.1), ("uwo", 0.1), ("uwo", 0.5)])
def test_the_ensembles_score_and_advantage_equal_the_reference(rule: Any, lam: float) -> None:
    method = anypo.method("rm-ensemble", score=[ConservativeScore(rule, lam)])
    for seed in range(CASES):
        rng = np.random.default_rng(seed)
        b = random_batch(seed, int(rng.integers(1, 9)), int(rng.integers(1, 6)), outcome="scores", optional=False)
        table = rng.standard_normal((b.shape[0], int(rng.integers(1, 6))))
        table[rng.random(table.shape) < 0.2] = np.nan
        found = method.prepare(b.but(scores=torch.tensor(table)))
        wanted = np.array([conservative(rule, lam, row) for row in table])
        np.testing.assert_allclose(found.score.numpy(), wanted, rtol=1e-12, atol=1e-12)
        for i, t in np.ndindex(b.shape):
            if not b.valid[i, t]:
                assert found.advantage[i, t] == 0
                continue
            group = [wanted[k] for k in range(len(wanted)) if b.group[k] == b.group[i] and not np.isnan(wanted[k])]
            spread = np.std(group, ddof=1) if len(group) > 1 and max(group) > min(group) else 0.0
            a = 0.0 if np.isnan(wanted[i]) or spread == 0 else (wanted[i] - np.mean(group)) / (spread + 1e-6)
            assert float(found.advantage[i, t]) == pytest.approx(a, rel=1e-6, abs=1e-9)


@pytest.mark.entry("rm-ensemble")
def test_identical_members_are_each_of_them_and_the_minimum_is_below_the_mean() -> None:
    g = torch.Generator().manual_seed(0)
    one = torch.randn(50, 1, generator=g, dtype=torch.float64)
    b = Trajectories(mask=torch.ones(50, 1), scores=one.expand(50, 5))
    for rule in ("mean", "wco", "uwo"):
        torch.testing.assert_close(ConservativeScore(rule)(b).score, one[:, 0], rtol=1e-14, atol=1e-14)
        assert torch.equal(ConservativeScore(rule)(b.but(scores=one)).score, one[:, 0])
    b = b.but(scores=torch.randn(50, 5, generator=g, dtype=torch.float64))
    assert (ConservativeScore("wco")(b).score <= ConservativeScore("mean")(b).score).all()
    assert (ConservativeScore("uwo", 10.0)(b).score < ConservativeScore("uwo", 0.1)(b).score).all()


# ------------------------------------------------------------------------------------------------ rlhf-ppo


def rlhf(b: Trajectories, coef: float) -> tuple[np.ndarray, np.ndarray]:
    """(advantage, returns) by loops."""
    valid, value = b.valid.numpy(), b.value.numpy()
    n, steps = valid.shape
    places = [[t for t in range(steps) if valid[i, t]] for i in range(n)]
    r = np.zeros((n, steps))
    for i, some in enumerate(places):
        for t in some:
            r[i, t] = -coef * float(b.logp_old[i, t] - b.logp_ref[i, t])
            if b.reward is not None:
                r[i, t] += float(b.reward[i, t])
        if b.reward is None and some:
            r[i, some[-1]] += float(b.score[i])
    every = [(i, t) for i, some in enumerate(places) for t in some]
    if not every:
        return np.zeros((n, steps)), np.zeros((n, steps))
    flat = np.array([r[at] for at in every])
    for at in every:
        r[at] = (r[at] - flat.mean()) / sqrt(flat.var() + 1e-8) + flat.mean()
    advantage, returns = np.zeros((n, steps)), np.zeros((n, steps))
    for i, some in enumerate(places):
        done = b.done is None or bool(b.done[i])
        ahead = 0.0 if b.bootstrap is None or (b.done is not None and done) else float(b.bootstrap[i])
        carry = 0.0
        for t in reversed(some):
            carry = r[i, t] + ahead - value[i, t] + 0.95 * carry
            ahead = value[i, t]
            advantage[i, t], returns[i, t] = carry, carry + value[i, t]
    flat = np.array([advantage[at] for at in every])
    for at in every:
        advantage[at] = (advantage[at] - flat.mean()) / sqrt(flat.var() + 1e-8)
    return advantage, returns


@pytest.mark.entry("rlhf-ppo")
@pytest.mark.parametrize("outcome", ["score", "reward"])
def test_rlhfs_prepare_equals_the_reference(outcome: str) -> None:
    for seed in range(CASES):
        rng = np.random.default_rng(seed)
        b = random_batch(
            seed, int(rng.integers(1, 9)), int(rng.integers(1, 7)), outcome=outcome, holes=(0.0, 0.3, 0.7)[seed % 3]
        )
        found, (advantage, returns) = anypo.method("rlhf-ppo").prepare(b), rlhf(b, 0.05)
        np.testing.assert_allclose(found.advantage.numpy(), advantage, rtol=1e-6, atol=1e-9, err_msg=f"seed {seed}")
        np.testing.assert_allclose(found.returns.numpy(), returns, rtol=1e-6, atol=1e-9, err_msg=f"seed {seed}")


@pytest.mark.entry("rlhf-ppo")
def test_rlhfs_loss_is_the_clipped_surrogate_and_a_tenth_of_the_clipped_value_error() -> None:
    for seed in range(CASES):
        b = anypo.method("rlhf-ppo").prepare(random_batch(seed, optional=False).but(weight=None))
        b = b.but(value=b.value + 0.4)
        total, count = 0.0, int(b.valid.sum())
        for i, t in b.valid.nonzero().tolist():
            r, a = exp(float(b.logp[i, t] - b.logp_old[i, t])), float(b.advantage[i, t])
            total -= min(r * a, min(max(r, 0.8), 1.2) * a)
            old, target = float(b.value_old[i, t]), float(b.returns[i, t])
            near = old + min(max(float(b.value[i, t]) - old, -0.2), 0.2)
            total += 0.1 * 0.5 * max((float(b.value[i, t]) - target) ** 2, (near - target) ** 2)
        assert float(anypo.method("rlhf-ppo").loss(b)[0]) == pytest.approx(total / max(count, 1), rel=1e-9, abs=1e-12)


@pytest.mark.entry("rlhf-ppo")
def test_the_rewards_of_a_row_sum_to_the_outcome_less_the_price_of_its_log_ratio() -> None:
    for seed in range(CASES):
        b = random_batch(seed, optional=False, outcome="score")
        r = TokenKl(0.3)(b.clean()).reward.sum(1)
        price = torch.where(b.valid, b.logp_old - b.logp_ref, 0.0).sum(1)
        there = b.lengths > 0
        torch.testing.assert_close(r[there], (b.score - 0.3 * price)[there], rtol=1e-12, atol=1e-12)


@pytest.mark.entry("rlhf-ppo")
def test_rlhf_on_a_bandit_ends_at_the_regularised_optimum() -> None:
    reward, coef = torch.tensor([1.0, 0.5, 0.0, -0.5]), 0.5
    ref = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    wanted = (ref + reward / coef).softmax(0)
    logits, value = ref.clone().requires_grad_(), torch.zeros(1, requires_grad=True)
    method = anypo.method("rlhf-ppo").configure({"score": {"coef": coef}})
    optimizer = torch.optim.Adam([logits, value], 0.03, eps=1e-5)
    g = torch.Generator().manual_seed(0)
    for batch in range(200):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - batch / 200)
        logp = logits.detach().log_softmax(0)
        arm = torch.multinomial(logp.exp(), 512, replacement=True, generator=g)
        b = Trajectories(
            logp_old=logp[arm, None],
            logp_ref=ref[arm, None],
            value=value.detach().expand(512, 1),
            mask=torch.ones(512, 1),
            score=reward[arm],
        )
        b = method.prepare(b)
        for _ in range(4):
            live = b.but(logp=logits.log_softmax(0)[arm, None], value=value.expand(512, 1))
            optimizer.zero_grad()
            method.loss(live)[0].backward()
            optimizer.step()
    pi = logits.detach().softmax(0)
    assert float((pi * (pi / wanted).log()).sum()) < 0.01
    assert float((pi * (pi.log() - ref)).sum()) > 0.1  # it has left the reference


# ------------------------------------------------------------------------------------------------ online-dpo


@pytest.mark.entry("online-dpo")
def test_the_best_and_the_worst_of_a_group_form_the_pair() -> None:
    logp = torch.tensor([[-1.0], [-2.0], [-4.0], [-3.0], [-5.0]], dtype=torch.float64)
    b = Trajectories(
        logp=logp, logp_ref=0 * logp, mask=torch.ones(5, 1), score=torch.tensor([0.2, 0.9, 0.0, 0.5, 0.0]).double(),
        group=torch.zeros(5, dtype=torch.long),
    )  # fmt: skip
    found = anypo.method("online-dpo").prepare(b)
    assert found.valid[:, 0].tolist() == [False, True, True, False, True]  # both of the worst stay
    wanted = np.mean([np.log1p(exp(-0.1 * gap)) for gap in (2.0, 3.0)])
    assert float(anypo.method("online-dpo").loss(found)[0]) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.entry("online-dpo")
def test_extremes_are_those_of_judged_rows_and_of_their_own_group() -> None:
    nan = torch.nan
    b = Trajectories(
        mask=torch.ones(6, 1, dtype=torch.bool), score=torch.tensor([1.0, nan, 3.0, 2.0, 7.0, 7.0]),
        group=torch.tensor([0, 0, 0, 0, 1, 1]),
    )  # fmt: skip
    assert KeepExtremes()(b).valid[:, 0].tolist() == [True, False, True, False, True, True]
