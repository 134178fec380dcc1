"""Preference methods on pairs: value and gradient against formulas written in numpy, identities and known optima."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from entries import entries

import anypo
from anypo import Comparisons
from anypo.parts.ratio import LogRatio
from anypo.parts.terms import LikeBest
from anypo.parts.trust import PairContrast, PairwiseClip

CASES = 50
pytestmark = pytest.mark.known
NAMES = ("dpo", "ipo", "simpo", "slic", "cpo-contrastive", "orpo-odds", "rpo-sft", "cpl", "kto", "copg")


def case(seed: int, scores: bool = False) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 9))
    length = rng.integers(1, 30, (2, n))
    logp = -np.abs(rng.standard_normal((2, n))) * length
    found = {
        "lw": logp[0], "ll": logp[1], "rw": logp[0] + rng.standard_normal(n), "rl": logp[1] + rng.standard_normal(n),
        "nw": length[0], "nl": length[1],
    }  # fmt: skip
    return found | ({"sw": rng.standard_normal(n), "sl": rng.standard_normal(n)} if scores else {})


def comparisons(c: dict[str, np.ndarray], **more: Any) -> tuple[Comparisons, torch.Tensor, torch.Tensor]:
    t = {k: torch.as_tensor(v) for k, v in c.items()}
    lw, ll = t["lw"].clone().requires_grad_(), t["ll"].clone().requires_grad_()
    if "sw" in t:
        more |= {"score_chosen": t["sw"], "score_rejected": t["sl"]}
    return Comparisons(lw, ll, t["rw"], t["rl"], length_chosen=t["nw"], length_rejected=t["nl"], **more), lw, ll


def softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0.0, x)


def formula(name: str, c: dict[str, np.ndarray], lw: np.ndarray, ll: np.ndarray) -> float:
    u, nw, nl = (lw - c["rw"]) - (ll - c["rl"]), c["nw"], c["nl"]
    if name == "dpo":
        return softplus(-0.1 * u).mean()
    if name == "ipo":
        return ((u - 5.0) ** 2).mean()
    if name == "simpo":
        return softplus(-(2 * lw / nw - 2 * ll / nl - 1.0)).mean()
    if name == "slic":
        return np.maximum(0, 1 - lw + ll).mean() - 0.1 * lw.mean()
    if name == "cpo-contrastive":
        return softplus(-0.1 * (lw - ll)).mean() - lw.sum() / nw.sum()
    if name == "orpo-odds":
        m = [x / n for x, n in ((lw, nw), (ll, nl))]
        odds = [x - np.log(1 - np.exp(np.minimum(x, -1e-12))) for x in m]
        return -m[0].mean() + 0.1 * softplus(-(odds[0] - odds[1])).mean()
    if name == "rpo-sft":
        return softplus(-0.01 * u).mean() - 0.005 * 0.01 * lw.mean()
    if name == "cpl":
        return softplus(-(0.1 * lw - 0.5 * 0.1 * ll)).mean()
    if name == "kto":
        rw, rl = lw - c["rw"], ll - c["rl"]
        return np.concatenate([1 - 1 / (1 + np.exp(-0.1 * rw)), 1 - 1 / (1 + np.exp(0.1 * rl))]).mean()
    if name == "copg":
        gap = c["sw"] - c["sl"] if "sw" in c else 0.5
        return -((gap - 0.05 * u) * u).mean()
    raise KeyError(name)


@pytest.mark.parametrize("scores", [False, True])
@pytest.mark.parametrize("name", entries(NAMES), ids=lambda n: f"{n}-{CASES}batches")
def test_loss_and_gradient_equal_the_formula(name: str, scores: bool) -> None:
    for seed in range(CASES):
        c = case(seed, scores)
        pairs, lw, ll = comparisons(c)
        loss, metrics = anypo.method(name).loss(pairs)
        assert float(loss.detach()) == pytest.approx(formula(name, c, c["lw"], c["ll"]), rel=1e-6, abs=1e-9)
        loss.backward()
        for k, leaf in (("lw", lw), ("ll", ll)):
            way = np.random.default_rng(seed).standard_normal(len(c[k]))
            ends = [formula(name, c, **{x: c[x] + h * way * (x == k) for x in ("lw", "ll")}) for h in (1e-5, -1e-5)]
            found = 0.0 if leaf.grad is None else float((leaf.grad.numpy() * way).sum())
            assert found == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=2e-5, abs=2e-7)
        assert all(v.isfinite() for v in metrics.values())


@pytest.mark.entry("dpo")
def test_ranking_accuracy_and_margin_are_those_of_the_implicit_rewards() -> None:
    c = case(3)
    pairs, _, _ = comparisons(c)
    _, metrics = anypo.method("dpo").loss(pairs)
    u = (c["lw"] - c["rw"]) - (c["ll"] - c["rl"])
    assert float(metrics["ranking_accuracy"]) == pytest.approx((u > 0).mean())
    assert float(metrics["margin"]) == pytest.approx(u.mean())


@pytest.mark.entry("dpo", "kto")
def test_at_the_reference_the_loss_is_log_two_and_ktos_a_half() -> None:
    c = case(5)
    pairs, _, _ = comparisons(c | {"rw": c["lw"], "rl": c["ll"]})
    assert float(anypo.method("dpo").loss(pairs)[0]) == pytest.approx(np.log(2))
    assert float(anypo.method("kto").loss(pairs)[0]) == pytest.approx(0.5)


@pytest.mark.entry("kto")
def test_ktos_reference_point_is_the_positive_part_of_the_mean_and_has_no_gradient() -> None:
    c = case(7)
    kl = torch.tensor([-1.0, -2.0], dtype=torch.float64, requires_grad=True)
    for shift, z0 in ((-3.0, 3.0), (3.0, 0.0)):
        pairs, _, _ = comparisons(c, kl_logp=kl, ref_kl_logp=kl.detach() + shift)
        loss, _ = anypo.method("kto").loss(pairs)
        rw, rl = c["lw"] - c["rw"], c["ll"] - c["rl"]
        wanted = [1 - 1 / (1 + np.exp(-0.1 * (rw - z0))), 1 - 1 / (1 + np.exp(-0.1 * (z0 - rl)))]
        assert float(loss.detach()) == pytest.approx(np.concatenate(wanted).mean())
        loss.backward()
        assert kl.grad is None


@pytest.mark.entry("ipo")
def test_soft_labels_move_the_target_of_ipo() -> None:
    c = case(8)
    p = np.linspace(0.5, 1.0, len(c["lw"]))
    pairs, _, _ = comparisons(c, win_rate=torch.as_tensor(p))
    u = (c["lw"] - c["rw"]) - (c["ll"] - c["rl"])
    assert float(anypo.method("ipo").loss(pairs)[0].detach()) == pytest.approx(((u - (2 * p - 1) * 5.0) ** 2).mean())


@pytest.mark.entry("dpo")
def test_weights_scale_pairs_and_do_not_count() -> None:
    c = case(9)
    n = len(c["lw"])
    pairs, _, _ = comparisons(c, weight=torch.full((n,), 0.25, dtype=torch.float64))
    plain, _, _ = comparisons(c)
    assert float(anypo.method("dpo").loss(pairs)[0].detach()) == pytest.approx(
        float(anypo.method("dpo").loss(plain)[0].detach()) / 4
    )


@pytest.mark.entry("simpo")
def test_duplicating_every_token_changes_simpo_by_nothing() -> None:
    c = case(11)
    twice = c | {"lw": 2 * c["lw"], "ll": 2 * c["ll"], "nw": 2 * c["nw"], "nl": 2 * c["nl"]}
    one, other = (anypo.method("simpo").loss(comparisons(x)[0])[0] for x in (c, twice))
    assert float(one.detach()) == pytest.approx(float(other.detach()), rel=1e-12)


@pytest.mark.entry("rpo-sft")
def test_the_imitation_term_is_all_that_separates_rpo_from_dpo() -> None:
    c = case(12)
    grads = []
    for method in (anypo.method("rpo-sft"), anypo.method("dpo", trust=PairContrast(beta=0.01))):
        pairs, lw, ll = comparisons(c)
        method.loss(pairs)[0].backward()
        grads.append((lw.grad, ll.grad))
    torch.testing.assert_close(grads[0][0] - grads[1][0], torch.full_like(grads[0][0], -5e-5 / len(c["lw"])))
    torch.testing.assert_close(grads[0][1], grads[1][1])


@pytest.mark.entry("cpl")
def test_cpl_without_bias_is_dpo_against_a_constant_reference() -> None:
    c = case(13) | {"rw": np.zeros(1), "rl": np.zeros(1)}
    c = {k: v[:1] for k, v in c.items()}
    cpl = anypo.method("cpl").configure({"trust": {"lam": 1.0}}).loss(comparisons(c)[0])[0]
    assert float(cpl.detach()) == pytest.approx(
        float(anypo.method("dpo").loss(comparisons(c)[0])[0].detach()), rel=1e-12
    )


def fitted(method: anypo.Method, steps: int = 1500, lr: float = 0.05) -> np.ndarray:
    """Logits over four answers fitted to every pair with exact Bradley-Terry probabilities of known rewards."""
    reward = torch.tensor([1.0, 0.5, 0.0, -1.0], dtype=torch.float64)
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    i, j = torch.tensor([(a, b) for a in range(4) for b in range(4) if a != b]).T
    weight = torch.sigmoid(reward[i] - reward[j])
    ref = torch.full((4,), 0.25, dtype=torch.float64).log()
    optimizer = torch.optim.Adam([logits], lr)
    for _ in range(steps):
        logp = logits.log_softmax(0)
        loss, _ = method.loss(Comparisons(logp[i], logp[j], ref[i], ref[j], weight=weight))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return logits.detach().softmax(0).numpy()


@pytest.mark.entry("dpo")
def test_dpo_on_exact_preferences_finds_the_regularised_optimum() -> None:
    found = fitted(anypo.method("dpo", trust=PairContrast(beta=1.0)))
    wanted = np.exp([1.0, 0.5, 0.0, -1.0])
    np.testing.assert_allclose(found, wanted / wanted.sum(), atol=1e-3)


@pytest.mark.entry("ipo", "dpo")
def test_the_gap_of_ipo_stops_at_its_target_and_that_of_dpo_goes_on() -> None:
    gaps = {}
    for name in ("ipo", "dpo"):
        x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        zero = torch.zeros(1, dtype=torch.float64)
        optimizer, method = torch.optim.Adam([x], 0.1), anypo.method(name)
        for _ in range(600):
            loss, _ = method.loss(Comparisons(x[:1], x[1:], zero, zero))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        gaps[name] = float((x[0] - x[1]).detach())
    assert gaps["ipo"] == pytest.approx(5.0, abs=1e-4)
    assert gaps["dpo"] > 20


@pytest.mark.entry("copg")
def test_copg_finds_the_regularised_optimum_from_any_sampling_distribution() -> None:
    reward, beta = torch.tensor([2.5, 2.0, 1.0, 0.0, -1.0], dtype=torch.float64), 0.5
    mu = torch.tensor([0.05, 0.05, 0.1, 0.3, 0.5], dtype=torch.float64)
    i, j = torch.tensor([(a, b) for a in range(5) for b in range(5) if a != b]).T
    ref = torch.full((5,), 0.2, dtype=torch.float64).log()
    logits = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    method = anypo.method("copg").configure({"trust": {"beta": beta}})
    optimizer = torch.optim.Adam([logits], 0.1)
    for _ in range(1200):
        logp = logits.log_softmax(0)
        pairs = Comparisons(
            logp[i],
            logp[j],
            ref[i],
            ref[j],
            score_chosen=reward[i],
            score_rejected=reward[j],
            weight=100 * mu[i] * mu[j],
        )
        loss, _ = method.loss(pairs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    wanted = (reward / beta).softmax(0)
    pi = logits.detach().softmax(0)
    assert float((pi * (pi / wanted).log()).sum()) < 1e-6


@pytest.mark.entry("p3o-pairwise")
@pytest.mark.parametrize("joint", [False, True])
def test_p3o_on_policy_is_the_pairwise_gradient_and_blind_to_shifts(joint: bool) -> None:
    method = anypo.method("p3o-pairwise", trust=PairwiseClip(joint=joint))
    score = torch.tensor([1.0, 0.2, 0.0, 3.0], dtype=torch.float64)
    group, old = torch.tensor([0, 0, 1, 1]), torch.tensor([[-1.0], [-2.0], [-0.5], [-3.0]], dtype=torch.float64)
    grads = []
    for shift in (0.0, 7.0):
        logp = old.clone().requires_grad_()
        moved = score + shift * (group == 1)
        b = anypo.Trajectories(
            logp=logp, logp_old=old, mask=torch.ones(4, 1, dtype=torch.bool), score=moved, group=group
        )
        method.loss(b)[0].backward()
        grads.append(logp.grad[:, 0])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grads[0], torch.tensor([-0.8, 0.8, 3.0, -3.0], dtype=torch.float64) / 4)


@pytest.mark.entry("dpo")
def test_pairs_in_a_group_of_several_rows_are_all_those_that_differ() -> None:
    logp = torch.tensor([[-1.0], [-2.0], [-3.0]], dtype=torch.float64)
    b = anypo.Trajectories(
        logp=logp, logp_ref=0 * logp, mask=torch.ones(3, 1, dtype=torch.bool), score=torch.tensor([1.0, 0.0, 0.0]).double(),
        group=torch.zeros(3, dtype=torch.long),
    )  # fmt: skip
    wanted = np.mean([softplus(np.float64(-0.1 * gap)) for gap in (1.0, 2.0)])
    assert float(anypo.method("dpo").loss(b)[0]) == pytest.approx(wanted)


@pytest.mark.entry("dpo")
def test_the_best_rows_alone_are_imitated() -> None:
    logp = torch.tensor([[-1.0], [-2.0], [-4.0]], dtype=torch.float64)
    b = anypo.Trajectories(
        logp=logp,
        mask=torch.ones(3, 1, dtype=torch.bool),
        score=torch.tensor([1.0, 0.5, 0.0]).double(),
        group=torch.zeros(3).long(),
    )
    method = anypo.method(
        "dpo", ratio=LogRatio("row", "sum", "none"), trust=PairContrast(beta=0.0), terms=[LikeBest(1.0)]
    )
    assert float(method.loss(b)[0]) == pytest.approx(np.log(2) + 1.0)


@pytest.mark.entry("kto")
def test_kto_on_one_good_mark_in_ten_comes_within_five_percent_of_dpo_on_the_pairs() -> None:
    """A bandit of six arms; a draw is marked good where its noisy reward is among the highest tenth."""
    rng = np.random.default_rng(0)
    truth = np.array([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    arm = rng.integers(6, size=2000)
    noisy = truth[arm] + 0.3 * rng.standard_normal(2000)
    good = noisy >= np.quantile(noisy, 0.9)
    arms, marks = torch.tensor(arm), torch.tensor(good).double()
    w = arms[marks == 1]
    l = torch.tensor(rng.choice(arm[~good], len(w)))  # noqa: E741
    ref = torch.full((6,), 1 / 6, dtype=torch.float64).log()
    found = {}
    for name in ("kto", "dpo"):
        method = anypo.method("kto").configure({"trust": {"gain": 10.0}}) if name == "kto" else anypo.method("dpo")
        logits = torch.zeros(6, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([logits], 0.05)
        for _ in range(300):
            logp = logits.log_softmax(0)
            if name == "kto":
                b = anypo.Trajectories(logp_ref=ref[arms, None], mask=torch.ones(2000, 1), group=torch.arange(2000))
                other = arms.roll(-1)
                b = b.put({"preferred": marks, "mismatched": logp.detach()[other], "mismatched_ref": ref[other]})
                loss, _ = method.loss(method.prepare(b).but(logp=logp[arms, None]))
            else:
                loss, _ = method.loss(Comparisons(logp[w], logp[l], ref[w], ref[l]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found[name] = float(logits.detach().softmax(0).numpy() @ truth)
    assert found["dpo"] > 0.9
    assert found["kto"] >= 0.95 * found["dpo"]
