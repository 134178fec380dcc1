"""The containers: slicing, joining, cleaning, and refusing what does not fit."""

from __future__ import annotations

import pytest
import torch

from anypo import Request, Trajectories
from anypo.errors import MissingField, UsageError
from anypo.types import FIELDS, STEP_FIELDS


def batch() -> Trajectories:
    return Trajectories(
        logp=torch.arange(6.0).reshape(2, 3),
        mask=torch.tensor([[True, False, True], [False, True, True]]),
        score=torch.tensor([1.0, 2.0]),
        scores=torch.tensor([[1.0, float("nan")], [2.0, 3.0]]),
        group=torch.tensor([4, 7]),
        budget=9,
        trace={"tokens": torch.arange(8).reshape(2, 4), "obs": torch.arange(12).reshape(2, 3, 2)},
        extra={"hint": torch.arange(6.0).reshape(2, 3), "task": torch.tensor([0, 1])},
    )


def test_shape_lengths_and_valid_come_from_the_mask_and_without_one_everything_counts() -> None:
    b = batch()
    assert b.shape == (2, 3)
    assert b.lengths.tolist() == [2, 2]
    assert b.but(mask=None).lengths.tolist() == [3, 3]
    assert b.but(mask=b.mask.float()).valid.equal(b.mask)


def test_a_batch_without_any_decision_field_has_no_shape() -> None:
    with pytest.raises(UsageError, match="give at least `logp` or `mask`"):
        _ = Trajectories(score=torch.zeros(2)).shape


def test_get_finds_fields_and_extra_inputs_and_gives_none_for_the_rest() -> None:
    b = batch()
    assert b.get("logp") is b.logp
    assert b.get("hint") is b.extra["hint"]
    assert b.get("value") is None
    assert b.get("nothing") is None


def test_need_gives_fields_and_extra_inputs_and_names_the_one_that_is_missing() -> None:
    b = Trajectories(logp=torch.zeros(2, 3), extra={"clip": torch.ones(2)})
    assert b.need("logp") is b.logp
    assert b.need("clip") is b.extra["clip"]
    with pytest.raises(MissingField, match="logp_old"):
        b.need("logp_old")


def test_row_mean_is_over_valid_decisions_and_zero_for_an_empty_row() -> None:
    b = batch()
    assert b.row_mean(b.logp).tolist() == [1.0, 4.5]
    assert b.but(mask=torch.zeros(2, 3)).row_mean(b.logp).tolist() == [0.0, 0.0]


def test_rows_are_taken_in_the_order_asked_for_everywhere() -> None:
    b = batch().rows(torch.tensor([1, 0, 1]))
    assert b.group.tolist() == [7, 4, 7]
    assert b.trace["tokens"][:, 0].tolist() == [4, 0, 4]
    assert b.extra["task"].tolist() == [1, 0, 1]
    assert b.budget == 9
    assert batch().rows(torch.tensor([False, True])).group.tolist() == [7]


def test_decisions_become_rows_of_their_own_in_order() -> None:
    b = batch().but(trace={"obs": batch().trace["obs"]}).decisions()
    assert b.logp.tolist() == [[0.0], [2.0], [4.0], [5.0]]
    assert b.group.tolist() == [4, 4, 7, 7]
    assert b.trace["obs"][:, 0].tolist() == [[0, 1], [4, 5], [8, 9], [10, 11]]
    assert b.extra["hint"].tolist() == [[0.0], [2.0], [4.0], [5.0]]
    assert b.extra["task"].tolist() == [0, 0, 1, 1]
    assert b.valid.all()


def test_clean_zeroes_masked_slots_blocks_their_gradient_and_raises_to_float32() -> None:
    logp = torch.tensor([[1.0, float("nan")]], dtype=torch.bfloat16, requires_grad=True)
    b = Trajectories(logp=logp, mask=torch.tensor([[1, 0]])).clean()
    assert b.logp.tolist() == [[1.0, 0.0]]
    assert b.logp.dtype == torch.float32
    b.logp.square().sum().backward()
    assert logp.grad.tolist() == [[2.0, 0.0]]


def test_clean_leaves_missing_outcomes_and_float64_alone() -> None:
    b = batch().but(logp=batch().logp.double()).clean()
    assert b.scores.isnan().sum() == 1
    assert b.logp.dtype == torch.float64


def test_cat_is_the_inverse_of_rows() -> None:
    b = batch()
    again = Trajectories.cat([b.rows(torch.tensor([0])), b.rows(torch.tensor([1]))])
    for name in FIELDS:
        x, y = getattr(b, name), getattr(again, name)
        same = torch.equal(x.nan_to_num(), y.nan_to_num()) if isinstance(x, torch.Tensor) else x == y
        assert same, name
    assert all(torch.equal(b.trace[k], again.trace[k]) for k in b.trace)
    assert all(torch.equal(b.extra[k], again.extra[k]) for k in b.extra)


def test_shorter_rows_are_padded_on_the_right_with_masked_slots() -> None:
    long, short = Trajectories(logp=torch.ones(1, 4)), Trajectories(logp=torch.ones(2, 1))
    b = Trajectories.cat([long, short])
    assert b.shape == (3, 4)
    assert b.lengths.tolist() == [4, 1, 1]
    assert b.logp[1:, 1:].abs().sum() == 0


def test_what_only_some_batches_have_is_dropped_when_they_are_joined() -> None:
    b = Trajectories.cat([batch(), batch().but(score=None, extra={})])
    assert b.score is None
    assert b.extra == {}


def test_map_reaches_every_tensor() -> None:
    b = batch().map(lambda t: t[1:])
    found = [getattr(b, n) for n in FIELDS] + list(b.trace.values()) + list(b.extra.values())
    assert {len(t) for t in found if isinstance(t, torch.Tensor)} == {1}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logp_old", torch.zeros(2, 4)),
        ("score", torch.zeros(3)),
        ("scores", torch.zeros(3, 2)),
        ("value", torch.zeros(1, 3)),
    ],
)
def test_a_field_of_another_shape_is_refused_by_name(field: str, value: torch.Tensor) -> None:
    plain = Trajectories(logp=torch.zeros(2, 3))
    object.__setattr__(plain, field, value)  # as without run-time checks
    with pytest.raises(UsageError, match=f"the field '{field}' has shape"):
        plain.check()


def test_step_fields_are_those_with_one_number_per_decision() -> None:
    assert {"logp", "mask", "segment", "weight", "returns"} <= set(STEP_FIELDS)
    assert not {"score", "scores", "group", "budget", "done"} & set(STEP_FIELDS)


def test_containers_have_no_room_for_misspelt_fields() -> None:
    with pytest.raises(AttributeError):
        batch().advantages = torch.zeros(2, 3)
    with pytest.raises(AttributeError):
        Request(0).horizons = 3


def test_a_mask_without_a_gap_is_none_through_clean_rows_slices_and_decisions() -> None:
    full = Trajectories(logp=torch.randn(5, 3), mask=torch.ones(5, 3))
    gap = full.but(mask=torch.arange(3).expand(5, 3) < 2)
    clean = full.clean()
    assert clean.mask is None
    assert clean.rows(torch.tensor([3, 1])).mask is None
    assert all(piece.mask is None for piece in clean.slices(2))
    for b in (full, gap, gap.clean()):
        single = b.decisions()
        assert single.mask is None
        assert single.shape == (int(b.valid.sum()), 1)
    for b in (gap, gap.clean(), gap.clean().rows(torch.tensor([0]))):
        assert torch.equal(b.mask, torch.arange(3).expand(b.shape) < 2)
    joined = Trajectories.cat([clean, gap])
    assert torch.equal(joined.valid, torch.cat([full.valid, gap.valid]))


def test_a_mask_that_alone_has_the_shape_of_the_batch_stays() -> None:
    b = Trajectories(score=torch.zeros(2), mask=torch.ones(2, 3)).clean()
    assert b.shape == (2, 3)
    assert bool(b.valid.all())
    assert b.decisions().shape == (6, 1)


def test_slices_are_the_rows_in_equal_pieces():
    b = Trajectories(
        logp=torch.randn(7, 2),
        group=torch.arange(7),
        trace={"obs": torch.randn(7, 2, 3)},
        extra={"hint": torch.rand(7)},
    ).but(budget=9)
    pieces = b.slices(3)
    assert [piece.shape[0] for piece in pieces] == [3, 2, 2]
    assert all(piece.budget == 9 for piece in pieces)
    again = Trajectories.cat(pieces)
    for name, tensor in b.to_dict().items():
        assert name == "budget" or torch.equal(again.to_dict()[name], tensor)
