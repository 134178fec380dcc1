"""Parts on numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import anypo
from anypo import Trajectories
from anypo.errors import MissingField, UsageError
from anypo.parts.collect import DynamicSampling
from anypo.parts.credit import Baseline, Combine, DropTruncated, Gae, KeepInformative, NStep, Returns, Whiten
from anypo.parts.critic import Value
from anypo.parts.ops.groups import group_stats
from anypo.parts.ops.log_ratio import divergence, importance_ratio
from anypo.parts.ops.masked import last_valid, next_valid, whiten
from anypo.parts.ratio import LogRatio, MinPrefix
from anypo.parts.reduce import Mean
from anypo.parts.score import KlPenalty, OverlongPenalty
from anypo.parts.score.penalties import overlong
from anypo.parts.terms import Divergence, Entropy
from anypo.parts.trust import Clip, TruncatedWeight
from anypo.protocols import BatchSpec
from anypo.types import Request


def f64(*values: object) -> Tensor:
    return torch.tensor(values if len(values) > 1 else values[0], dtype=torch.float64)


def mask(*rows: str) -> Tensor:
    """`"1.11"`: a dot is a masked slot."""
    return torch.tensor([[c == "1" for c in row] for row in rows])


def close(x: Tensor, y: Tensor | list, atol: float = 1e-12) -> None:
    torch.testing.assert_close(x, torch.as_tensor(y, dtype=x.dtype), rtol=1e-12, atol=atol)


# ---------------------------------------------------------------- statistics


def test_standard_deviation_is_the_sample_one_in_two_passes() -> None:
    count, mean, std = group_stats(f64([0.0] + [0.95] * 7), None)
    assert count[0] == 8
    close(mean[0], 0.83125)
    close(std[0], 0.95 / math.sqrt(8))


def test_a_group_of_equal_values_and_a_group_of_one_have_no_deviation_at_all() -> None:
    _, _, std = group_stats(f64([0.1, 0.1, 0.1, 5.0]), torch.tensor([2, 2, 2, 9]))
    assert std.tolist() == [0, 0, 0, 0]


def test_a_missing_value_enters_neither_count_nor_mean_nor_deviation() -> None:
    count, mean, std = group_stats(f64([1.0, math.nan, 3.0]), torch.tensor([0, 0, 0]))
    assert (count[0], mean[0]) == (2, 2)
    close(std[0], math.sqrt(2))


def test_next_and_last_valid_decisions_skip_gaps() -> None:
    m = mask(".1.1", "....", "1111")
    assert next_valid(m).tolist() == [[1, 3, 3, 4], [4, 4, 4, 4], [1, 2, 3, 4]]
    assert last_valid(m).tolist() == [[False, False, False, True], [False] * 4, [False, False, False, True]]


def test_whitening_counts_valid_decisions_only() -> None:
    x = whiten(f64([[1.0, 1e9, 3.0]]), mask("1.1"))
    close(x, [[-1 / math.sqrt(2), 0, 1 / math.sqrt(2)]], atol=1e-8)
    assert whiten(f64([[7.0]]), mask("1")).tolist() == [[0.0]]


def test_the_ratio_is_exp_where_that_can_be_held_and_keeps_its_slope_beyond() -> None:
    x = torch.tensor([0.0, 10.0, -10.0, 100.0, -100.0], requires_grad=True)
    r = importance_ratio(x)
    torch.testing.assert_close(r[:3], x[:3].exp())
    r.sum().backward()
    assert r.isfinite().all()
    assert (x.grad > 0).all()
    torch.testing.assert_close(x.grad, r.detach())


# ---------------------------------------------------------------- score


def test_overlong_penalty_is_0_then_minus_a_half_then_minus_1() -> None:
    lengths = f64([0.0, 16384.0, 18432.0, 20480.0, 30000.0])
    assert overlong(lengths, 20480, 4096).tolist() == [0, 0, -0.5, -1, -1]


def test_overlong_penalty_reads_the_budget_of_the_batch() -> None:
    b = Trajectories(mask=mask("1111", "111.", "11.."), score=f64([1.0, 1.0, 1.0]), budget=4)
    assert OverlongPenalty(margin=2)(b).score.tolist() == [0.0, 0.5, 1.0]


def test_kl_penalty_takes_the_summed_log_ratio_of_valid_decisions_off_the_score() -> None:
    b = Trajectories(
        mask=mask("11."), score=f64([1.0]), logp_old=f64([[-1.0, -2.0, 50.0]]), logp_ref=f64([[-1.5, -1.0, -50.0]])
    )
    close(KlPenalty(beta=0.1)(b).score, [1.0 - 0.1 * (0.5 - 1.0)])


def test_kl_penalty_of_zero_reads_no_reference() -> None:
    assert KlPenalty(beta=0.0).reads == ()


# ---------------------------------------------------------------- credit


def test_channels_are_summed_with_their_weights_and_a_missing_one_is_left_out() -> None:
    b = Trajectories(mask=mask("1", "1", "1"), scores=f64([[1.0, 2.0], [math.nan, 2.0], [math.nan, math.nan]]))
    b = Combine(weights=(3.0, 0.5))(b)
    assert b.score[:2].tolist() == [4.0, 1.0]
    assert b.valid.tolist() == [[True], [True], [False]]


def test_one_missing_outcome_leaves_every_other_group_bit_identical() -> None:
    score, group = f64([0.3, 0.9, 0.2, 0.7, 0.1]), torch.tensor([0, 0, 1, 1, 1])
    whole = Trajectories(mask=mask(*["11"] * 5), score=score, group=group)
    holed = whole.but(score=score.index_fill(0, torch.tensor([3]), math.nan))
    a, b = anypo.method("grpo").prepare(whole), anypo.method("grpo").prepare(holed)
    assert torch.equal(a.advantage[:2], b.advantage[:2])
    assert b.advantage.isfinite().all()
    assert not b.valid[3].any()


def test_group_scores_have_mean_zero_and_deviation_one() -> None:
    b = Trajectories(mask=mask(*["1"] * 4), score=f64([1.0, 2.0, 4.0, 9.0]), group=torch.tensor([5, 5, 5, 5]))
    a = Baseline()(b).advantage[:, 0]
    close(a.sum(), 0.0)
    assert abs(float(a.std()) - 1) < 1e-6


def test_group_scores_do_not_change_with_the_scale_and_origin_of_the_reward() -> None:
    b = Trajectories(mask=mask(*["1"] * 3), score=f64([0.0, 1.0, 5.0]), group=torch.tensor([0, 0, 0]))
    torch.testing.assert_close(
        Baseline()(b).advantage, Baseline()(b.but(score=b.score * 10 - 3)).advantage, rtol=1e-5, atol=1e-5
    )


def test_leave_one_out_is_the_score_less_the_mean_of_the_others() -> None:
    b = Trajectories(mask=mask(*["1"] * 4), score=f64([1.0, 2.0, 6.0, 3.0]), group=torch.tensor([0, 0, 0, 1]))
    a = Baseline(center="leave-one-out", scale=None)(b).advantage[:, 0]
    close(a, [1 - 4.0, 2 - 3.5, 6 - 1.5, 0.0])


def test_a_row_without_decisions_still_enters_its_groups_baseline() -> None:
    b = Trajectories(mask=mask("1", "."), score=f64([1.0, 0.0]), group=torch.tensor([0, 0]))
    assert Baseline(scale=None)(b).advantage.tolist() == [[0.5], [0.0]]


def test_returns_step_from_one_valid_decision_to_the_next() -> None:
    b = Trajectories(mask=mask(".1.11"), reward=f64([[9.0, 1.0, 9.0, 2.0, 4.0]]))
    close(Returns(gamma=0.5)(b.clean()).advantage, [[0, 1 + 1 + 1, 0, 2 + 2, 4]])


def test_a_score_stands_on_the_last_valid_decision() -> None:
    b = Trajectories(mask=mask("11.", "..."), score=f64([3.0, 5.0]))
    close(Returns(gamma=0.5)(b).advantage, [[1.5, 3, 0], [0, 0, 0]])


def critic_batch(**changes: object) -> Trajectories:
    generator = torch.Generator().manual_seed(1)
    reward, value = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    full = torch.ones(3, 5, dtype=torch.bool)
    return Trajectories(mask=full, reward=reward, value=value, bootstrap=f64([0.7, -2.0, 1.0])).but(**changes)


def test_gae_with_lambda_one_is_the_discounted_return_less_the_value() -> None:
    b = critic_batch(bootstrap=None)
    close(Gae(gamma=0.9, lam=1.0)(b).advantage, Returns(gamma=0.9)(b).advantage - b.value)


def test_gae_with_lambda_zero_is_the_one_step_error_and_so_is_one_step() -> None:
    b = critic_batch()
    following = torch.cat([b.value[:, 1:], b.bootstrap.unsqueeze(1)], 1)
    close(Gae(gamma=0.9, lam=0.0)(b).advantage, b.reward + 0.9 * following - b.value)
    close(NStep(n=1, gamma=0.9)(b).advantage, b.reward + 0.9 * following - b.value)


def test_gae_targets_are_advantage_plus_value_and_the_values_are_kept() -> None:
    b = critic_batch()
    after = Gae()(b)
    close(after.returns, after.advantage + b.value)
    assert torch.equal(after.value_old, b.value)


def test_n_steps_beyond_the_end_are_the_discounted_return_plus_the_bootstrap() -> None:
    b = critic_batch()
    gamma, ahead = 0.9, torch.arange(5, 0, -1, dtype=torch.float64)
    wanted = Returns(gamma=gamma)(b).advantage + gamma**ahead * b.bootstrap.unsqueeze(1)
    for n in (5, 50):
        close(NStep(n=n, gamma=gamma)(b).returns, wanted)
    assert not torch.allclose(NStep(n=4, gamma=gamma)(b).returns, wanted)


def test_two_steps_by_hand() -> None:
    b = Trajectories(
        mask=mask("111"), reward=f64([[1.0, 2.0, 3.0]]), value=f64([[10.0, 20.0, 30.0]]), bootstrap=f64([40.0])
    )
    close(NStep(n=2, gamma=0.5)(b).returns, [[1 + 1 + 7.5, 2 + 1.5 + 10, 3 + 20]])


@pytest.mark.parametrize("part", [Gae(gamma=0.9, lam=0.8), NStep(n=2, gamma=0.9), Returns(gamma=0.9)])
def test_gaps_and_padding_neither_add_to_returns_nor_cut_them(part: object) -> None:
    b = critic_batch()
    wide = mask(*[".11.1..11"] * 3)

    def spread_out(x: Tensor) -> Tensor:
        return torch.full((3, 9), 77.0, dtype=torch.float64).masked_scatter(wide, x)

    sparse = b.but(mask=wide, reward=spread_out(b.reward), value=spread_out(b.value)).clean()
    close(part(sparse).advantage[wide].reshape(3, 5), part(b).advantage)


@pytest.mark.parametrize("part", [Gae(gamma=0.9, lam=0.8), NStep(n=2, gamma=0.9)])
def test_a_cut_row_takes_its_bootstrap_and_a_finished_one_takes_none(part: object) -> None:
    b = critic_batch(done=torch.tensor([True, False, True]))
    zeros = critic_batch(bootstrap=f64([0.0, -2.0, 0.0]))
    close(part(b).advantage, part(zeros).advantage)
    assert not torch.allclose(part(b).advantage[1], part(critic_batch(bootstrap=None)).advantage[1])


def test_a_cut_row_without_a_bootstrap_is_an_error_not_a_zero() -> None:
    with pytest.raises(MissingField, match="bootstrap"):
        Gae()(critic_batch(bootstrap=None, done=torch.tensor([True, False, True])))


def test_credit_never_flows_from_one_row_into_another() -> None:
    b = critic_batch()
    other = b.but(reward=b.reward.index_fill(0, torch.tensor([1]), 99.0))
    for part in (Gae(), NStep(), Returns()):
        same = part(b).advantage == part(other).advantage
        assert same[0].all()
        assert same[2].all()
        assert not same[1].any()


def test_whitening_moves_the_advantage_and_not_the_targets() -> None:
    b = Gae()(critic_batch())
    white = Whiten()(b)
    assert white.returns is b.returns
    close(white.advantage.mean(), 0.0)
    assert abs(float(white.advantage.std()) - 1) < 1e-7


def test_groups_that_agree_lose_their_mask_and_so_do_cut_rows() -> None:
    b = Trajectories(
        mask=mask(*["11"] * 5),
        score=f64([1.0, 1.0, 0.0, 1.0, 1.0]),
        group=torch.tensor([0, 0, 1, 1, 2]),
        truncated=torch.tensor([False, False, False, True, False]),
    )
    kept = KeepInformative()(b)
    assert kept.valid[:, 0].tolist() == [False, False, True, True, False]
    assert DropTruncated()(kept).valid[:, 0].tolist() == [False, False, True, False, False]
    assert DropTruncated()(b.but(truncated=None)).valid.all()


# ---------------------------------------------------------------- collect


class Starts:
    """Starts in order, each request answered with the outcomes prescribed for it."""

    continuing = False
    decisions = batches = 0

    def __init__(self) -> None:
        self.asked = 0
        self.unfinished: list[Trajectories] = []

    def draw(self, requests: int, samples: int, horizon: int | None = None) -> list[Request]:
        self.asked += requests
        return [Request(self.asked - requests + k, samples, horizon) for k in range(requests)]


def answer(requests: list[Request], outcomes: dict[int, list[float]]) -> Trajectories:
    score = [s for r in requests for s in outcomes[r.start]]
    group = [r.start for r in requests for _ in range(r.samples)]
    return Trajectories(
        mask=torch.ones(len(score), 2, dtype=torch.bool), score=f64([*score]), group=torch.tensor(group)
    )


def drive(part: DynamicSampling, outcomes: dict[int, list[float]], requests: int = 2) -> tuple[Trajectories, int]:
    pool = Starts()
    asking = part(pool, BatchSpec(requests, 2))
    asked = next(asking)
    while True:
        try:
            asked = asking.send(answer(asked, outcomes))
        except StopIteration as stop:
            return stop.value, pool.asked


def test_dynamic_sampling_asks_again_for_exactly_the_groups_that_taught_nothing() -> None:
    rows, asked = drive(DynamicSampling(), {0: [1.0, 1.0], 1: [0.0, 1.0], 2: [0.0, 0.0], 3: [1.0, 0.0]})
    assert asked == 4
    assert sorted(set(rows.group.tolist())) == [1, 3]


def test_dynamic_sampling_counts_groups_not_asks() -> None:
    rows, asked = drive(DynamicSampling(), {0: [0.0, 1.0], 1: [1.0, 0.0], 2: [0.0, 0.0], 3: [1.0, 0.0]}, requests=3)
    assert asked == 4
    assert rows.group.tolist() == [0, 0, 1, 1, 3, 3]


def test_dynamic_sampling_gives_up_on_a_solved_task_with_the_last_rows_it_got() -> None:
    rows, asked = drive(DynamicSampling(rounds=3), {k: [1.0, 1.0] for k in range(6)})
    assert asked == 6
    assert rows.group.tolist() == [4, 4, 5, 5]


# ---------------------------------------------------------------- ratio


def test_min_prefix_of_the_published_example() -> None:
    r = f64([[0.5, 2.0, 3.0, 0.25, 4.0]])
    b = Trajectories(logp=r.log(), logp_old=torch.zeros(1, 5, dtype=torch.float64))
    close(MinPrefix()(b).exp(), [[0.5, 1, 1.5, 0.125, 1]])


def test_min_prefix_skips_masked_decisions_and_starts_at_the_first_valid_one() -> None:
    r = f64([[0.01, 0.5, 2.0, 0.001, 3.0, 0.25, 4.0]])
    b = Trajectories(logp=r.log(), logp_old=torch.zeros(1, 7, dtype=torch.float64), mask=mask(".11.111")).clean()
    close(MinPrefix()(b).exp()[:, [1, 2, 4, 5, 6]], [[0.5, 1, 1.5, 0.125, 1]])
    assert MinPrefix()(b)[0, 0] == 0


def test_min_prefix_that_includes_one_never_amplifies() -> None:
    r = f64([[2.0, 3.0, 0.5, 4.0]])
    b = Trajectories(logp=r.log(), logp_old=torch.zeros(1, 4, dtype=torch.float64))
    close(MinPrefix()(b).exp(), [[2, 6, 1, 2]])
    close(MinPrefix(include_one=True)(b).exp(), [[2, 3, 0.5, 2]])


def test_row_ratios_are_the_geometric_mean_or_the_product_over_valid_decisions() -> None:
    b = Trajectories(logp=f64([[1.0, 9.0, 3.0]]), logp_old=f64([[0.0, 0.0, 0.0]]), mask=mask("1.1"))
    assert LogRatio("row", how="mean")(b).tolist() == [2.0]
    assert LogRatio("row", how="sum")(b).tolist() == [4.0]
    assert LogRatio("token")(b).tolist() == [[1.0, 0.0, 3.0]]


def test_the_anchor_may_be_the_reference() -> None:
    b = Trajectories(logp=f64([[1.0]]), logp_ref=f64([[0.25]]))
    assert LogRatio(anchor="ref")(b).tolist() == [[0.75]]


# ---------------------------------------------------------------- trust


def surrogate(part: object, r: float, a: float) -> tuple[float, float]:
    """s and ds/dlogp at ratio r and advantage a."""
    logp = f64([[math.log(r)]]).requires_grad_()
    b = Trajectories(logp=logp, advantage=f64([[a]]))
    s, _ = part(logp + 0.0, b)
    s.sum().backward()
    return float(s.detach()), float(logp.grad)


GRID = [(r, a) for r in (0.01, 0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 2.0, 50.0) for a in (-2.0, -0.1, 0.1, 2.0)]


@pytest.mark.parametrize(("r", "a"), GRID)
def test_clip_has_no_gradient_exactly_outside_in_the_direction_of_the_advantage(r: float, a: float) -> None:
    s, slope = surrogate(Clip(0.2, 0.2), r, a)
    outside = (a > 0 and r > 1.2) or (a < 0 and r < 0.8)
    assert slope == pytest.approx(0.0 if outside else r * a, abs=1e-12)
    assert s <= r * a + 1e-12  # the pessimistic bound


@pytest.mark.parametrize(("r", "a"), GRID)
def test_dual_clip_bounds_the_loss_of_bad_decisions(r: float, a: float) -> None:
    s, slope = surrogate(Clip(0.2, 0.2, dual=3.0), r, a)
    plain, plain_slope = surrogate(Clip(0.2, 0.2), r, a)
    assert s == pytest.approx(max(plain, 3.0 * a) if a < 0 else plain)
    assert slope == (0.0 if a < 0 and r > 3 else plain_slope)


def test_higher_clip_lets_a_rare_decision_grow_further() -> None:
    """A decision of probability 0.01 may reach 0.0128 instead of 0.012 before its gradient stops."""
    at = 0.0125 / 0.01
    assert surrogate(Clip(0.2, 0.2), at, 1.0)[1] == 0
    assert surrogate(Clip(0.2, 0.28), at, 1.0)[1] > 0
    assert surrogate(Clip(0.2, 0.28), 0.0129 / 0.01, 1.0)[1] == 0


@pytest.mark.parametrize(("r", "a"), GRID)
def test_a_truncated_weight_never_stops_a_gradient_and_never_exceeds_its_cap(r: float, a: float) -> None:
    _, slope = surrogate(TruncatedWeight(0.0, 5.0), r, a)
    assert slope == pytest.approx(min(r, 5.0) * a)
    assert 0 < abs(slope) <= 5.0 * abs(a) + 1e-12


def test_the_clip_fraction_is_the_share_of_valid_decisions_whose_gradient_is_cut() -> None:
    x = f64([[1.5, 1.5, 1.5, 1.0]]).log()
    b = Trajectories(logp=x, advantage=f64([[1.0, -1.0, 1.0, 1.0]]), mask=mask("11.1"))
    assert float(Clip()(x, b)[1]["clip_fraction"]) == pytest.approx(1 / 3)


# ---------------------------------------------------------------- reduce


@pytest.mark.parametrize(
    ("part", "wanted"),
    [
        (Mean("token"), 12 / 4),
        (Mean("row"), (2 + 6) / 3),
        (Mean("sum"), 12 / 3),
        (Mean("constant"), 12 / (3 * 5)),
        (Mean("constant", length=2), 12 / (3 * 2)),
    ],
)
def test_the_four_averages_over_rows_of_unequal_length(part: Mean, wanted: float) -> None:
    s = f64([[1.0, 2.0, 3.0, 9.0], [9.0, 6.0, 9.0, 9.0], [9.0] * 4])
    b = Trajectories(mask=mask("111.", ".1..", "...."), budget=5)
    close(part(s, b), wanted)


def test_a_constant_length_is_the_width_where_no_budget_is_known() -> None:
    close(Mean("constant")(f64([[1.0, 3.0]]), Trajectories(mask=mask("11"))), 2.0)


def test_the_mask_counts_and_the_weight_scales() -> None:
    s = f64([[1.0, 2.0, 3.0]])
    b = Trajectories(mask=mask("11."), weight=f64([[2.0, 0.0, 5.0]]))
    close(Mean("token")(s, b), 1.0)


@pytest.mark.parametrize("over", ["token", "row", "sum", "constant"])
def test_a_surrogate_per_row_counts_like_the_same_number_on_each_of_its_decisions(over: str) -> None:
    b = Trajectories(mask=mask("11.", "111", "..."), weight=f64([[1.0, 2.0, 3.0]] * 3))
    row = f64([2.0, -1.0, 7.0])
    close(Mean(over)(row, b), Mean(over)(row.unsqueeze(1).expand(3, 3), b))


# ---------------------------------------------------------------- terms and critic


def test_k3_is_never_negative_and_zero_only_where_nothing_changed() -> None:
    d = torch.linspace(-30, 30, 601, dtype=torch.float64)
    assert (divergence(d, "k3")[d.abs() > 0.05] > 0).all()
    assert float(divergence(f64([0.0]), "k3")) == 0
    for dtype in (torch.float32, torch.float64):
        small = torch.logspace(-12, 0, 10_001, dtype=dtype)
        assert (divergence(torch.cat([small, -small]), "k3") >= 0).all()


def test_k1_and_k3_are_unbiased_for_the_divergence_from_the_reference() -> None:
    generator = torch.Generator().manual_seed(3)
    logp, ref = torch.randn(2, 6, generator=generator, dtype=torch.float64).log_softmax(1)
    exact = (logp.exp() * (logp - ref)).sum()
    for kind in ("k1", "k3"):
        close((logp.exp() * divergence(ref - logp, kind)).sum(), exact)


@pytest.mark.parametrize("kind", ["k2", "k3"])
@pytest.mark.parametrize("gap", [-100.0, -1.0, 1.0, 100.0])
def test_the_divergence_pulls_towards_the_reference_however_far_away(kind: str, gap: float) -> None:
    logp = torch.tensor([[gap]], requires_grad=True)
    b = Trajectories(logp=logp, logp_ref=torch.zeros(1, 1))
    Divergence(kind, coef=1.0)(b, Mean())[0].backward()
    assert logp.grad.isfinite()
    assert logp.grad.sign() == math.copysign(1, gap)


def test_a_divergence_of_coefficient_zero_needs_no_reference() -> None:
    method = anypo.method("grpo").configure({"terms": {"divergence": {"coef": 0.0}}})
    b = Trajectories(logp=f64([[-1.0]]), logp_old=f64([[-1.0]]), advantage=f64([[1.0]]))
    close(method.loss(b)[0], -1.0)
    with pytest.raises(UsageError, match="logp_ref"):
        anypo.method("grpo").loss(b)


def test_the_divergence_is_zero_at_the_reference() -> None:
    b = Trajectories(logp=f64([[-1.0, -2.0]]), logp_ref=f64([[-1.0, -2.0]]))
    for kind in ("k1", "k2", "k3"):
        assert float(Divergence(kind)(b, Mean())[0]) == 0


def test_entropy_is_a_bonus_averaged_like_the_method_averages() -> None:
    b = Trajectories(entropy=f64([[1.0, 3.0]]), mask=mask("11"))
    close(Entropy(0.1)(b, Mean("sum"))[0], -0.4)


def test_the_value_loss_is_half_the_squared_error_over_valid_decisions() -> None:
    b = Trajectories(value=f64([[1.0, 5.0, 9.0]]), returns=f64([[3.0, 4.0, 0.0]]), mask=mask("11."))
    close(Value(coef=0.5)(b)[0], 0.5 * (0.5 * 4 + 0.5 * 1) / 2)


def test_a_clipped_value_takes_the_larger_error_and_stops_at_the_bound() -> None:
    value = f64([[1.0, 1.0]]).requires_grad_()
    b = Trajectories(value=value, value_old=f64([[0.0, 0.0]]), returns=f64([[2.0, 0.0]]))
    loss, _ = Value(coef=1.0, clip=0.2)(b)
    close(loss.detach(), 0.5 * (1.8**2 + 1.0**2) / 2)
    loss.backward()
    assert value.grad.tolist() == [[0.0, 0.5]]


def test_explained_variance_is_1_for_a_perfect_critic_and_0_for_a_constant_one() -> None:
    returns = f64([[1.0, 2.0, 4.0]])
    for value, wanted in ((returns, 1.0), (torch.full_like(returns, 7.0), 0.0)):
        close(Value()(Trajectories(value=value, returns=returns))[1]["explained_variance"], wanted)
