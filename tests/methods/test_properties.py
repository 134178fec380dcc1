"""What must hold for every registered method: one suite, driven by the fields each method's parts read.

A method is covered the moment it is registered. The number in a test's id is the number of random batches it sees.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from strategies import (
    FLOAT_STEP_FIELDS,
    LEAVES,
    all_reads,
    batches,
    gradients,
    polluted,
    random_advantage,
    random_batch,
    same_bits,
)
from torch import Tensor

import anypo
from anypo import Method, Trajectories
from anypo.errors import UsageError
from anypo.parts import describe
from anypo.types import FIELDS, STEP_FIELDS

EXAMPLES = 12
NAMES = anypo.methods()
every_method = pytest.mark.parametrize("name", NAMES, ids=lambda n: f"{n}-{EXAMPLES}batches")
quick = settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def tensors(b: Trajectories) -> dict[str, Tensor]:
    found = {f.name: getattr(b, f.name) for f in fields(b)} | b.extra | b.trace
    return {k: t for k, t in found.items() if isinstance(t, Tensor)}


def prepared(method: Method, b: Trajectories) -> Trajectories:
    """The batch as `loss` meets it later on: credit assigned, an advantage without zeros, a critic that has moved."""
    b = method.prepare(b)
    return random_advantage(b.but(value=b.value * 0.5 + 0.1))


def dtype_of_loss(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.bfloat16 else dtype


@every_method
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["float64", "float32", "bfloat16"]
)
@quick
@given(data=st.data())
def test_loss_and_gradient_are_finite_for_log_ratios_up_to_100(name: str, dtype: torch.dtype, data: Any) -> None:
    method = anypo.method(name)
    b = prepared(method, data.draw(batches(method, dtype=dtype, spread=100.0)))
    loss, metrics, slopes = gradients(method, b)
    assert loss.isfinite()
    assert loss.dtype == dtype_of_loss(dtype)
    assert all(slope.isfinite().all() and slope.dtype == dtype for slope in slopes.values())
    assert all(value.isfinite() for value in metrics.values()), metrics


@every_method
@pytest.mark.parametrize("rubbish", [float("nan"), 1e9, -1e9, float("-inf")])
@quick
@given(data=st.data())
def test_masked_slots_never_matter_to_the_last_bit(name: str, rubbish: float, data: Any) -> None:
    method = anypo.method(name)
    clean = data.draw(batches(method))
    dirty = polluted(clean, rubbish)
    one, other = method.prepare(clean), method.prepare(dirty)
    for field in ("advantage", "mask", "returns", "score"):
        x, y = getattr(one, field), getattr(other, field)
        assert (x is None and y is None) or same_bits(x, y), field
    one = prepared(method, clean)
    (loss, metrics, slopes), (loss_, metrics_, slopes_) = (
        gradients(method, one),
        gradients(method, polluted(one, rubbish)),
    )
    assert same_bits(loss, loss_)
    assert metrics.keys() == metrics_.keys()
    assert [k for k in metrics if not same_bits(metrics[k], metrics_[k])] == []
    for leaf in slopes:
        assert same_bits(slopes[leaf], slopes_[leaf]), leaf


@every_method
@quick
@given(data=st.data())
def test_gradient_and_advantage_are_exactly_zero_at_masked_slots(name: str, data: Any) -> None:
    method = anypo.method(name)
    b = method.prepare(data.draw(batches(method, holes=0.6)))
    assert b.advantage is None or (b.advantage[~b.valid] == 0).all()
    _, _, slopes = gradients(method, polluted(random_advantage(b), 1e9))
    for leaf, slope in slopes.items():
        assert (slope[~b.valid] == 0).all(), leaf


@pytest.mark.parametrize("name", [n for n in NAMES if not anypo.method(n).card.ordered])
@quick
@given(data=st.data())
def test_the_order_of_rows_does_not_matter(name: str, data: Any) -> None:
    method = anypo.method(name)
    b = data.draw(batches(method))
    order = torch.tensor(data.draw(st.permutations(range(b.shape[0]))))
    straight, shuffled = method.prepare(b), method.prepare(b.rows(order))
    if straight.advantage is not None:
        torch.testing.assert_close(shuffled.advantage, straight.advantage[order], rtol=1e-9, atol=1e-10)
    assert torch.equal(shuffled.valid, straight.valid[order])
    b = prepared(method, b)
    (loss, _, slopes), (loss_, _, slopes_) = gradients(method, b), gradients(method, b.rows(order))
    torch.testing.assert_close(loss_, loss, rtol=1e-9, atol=1e-12)
    for leaf in slopes:
        torch.testing.assert_close(slopes_[leaf], slopes[leaf][order], rtol=1e-9, atol=1e-12)


@every_method
@quick
@given(data=st.data())
def test_loss_is_repeatable_and_moves_no_state(name: str, data: Any) -> None:
    method = anypo.method(name)
    b = prepared(method, data.draw(batches(method)))
    state = deepcopy(method.state_dict())
    (loss, metrics, slopes), (loss_, metrics_, slopes_) = gradients(method, b), gradients(method, b)
    assert method.state_dict() == state
    assert same_bits(loss, loss_)
    assert all(same_bits(slopes[k], slopes_[k]) for k in slopes)
    assert all(same_bits(metrics[k], metrics_[k]) for k in metrics)


@every_method
@quick
@given(data=st.data())
def test_neither_prepare_nor_loss_touches_its_input(name: str, data: Any) -> None:
    method = anypo.method(name)
    b = polluted(data.draw(batches(method)), float("nan"))
    before = {k: t.clone() for k, t in tensors(b).items()}
    method.loss(method.prepare(b))
    assert tensors(b).keys() == before.keys()
    assert [k for k, t in tensors(b).items() if not same_bits(t.to(torch.float64), before[k].to(torch.float64))] == []


@every_method
@quick
@given(data=st.data())
def test_parameter_gradient_is_the_same_however_rows_are_split(name: str, data: Any) -> None:
    """dF/dfield on the whole batch, then sum(dF/dfield * field) through the model split by split, is plain autograd."""
    method = anypo.method(name)
    b = prepared(method, data.draw(batches(method)))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    inputs = torch.randn(*b.shape, 4, generator=generator, dtype=torch.float64)
    weights = torch.randn(4, len(LEAVES), generator=generator, dtype=torch.float64, requires_grad=True)
    anchor = {leaf: getattr(b, leaf).detach() for leaf in LEAVES}

    def model(rows: Tensor) -> dict[str, Tensor]:
        out = torch.tanh(inputs[rows] @ weights)
        return {leaf: anchor[leaf][rows] + out[..., k] for k, leaf in enumerate(LEAVES)}

    everything = torch.arange(b.shape[0])
    loss, _ = method.loss(b.but(**model(everything)))
    (direct,) = torch.autograd.grad(loss, weights)
    _, _, slopes = gradients(method, b.but(**model(everything)))
    pieces = torch.randperm(b.shape[0], generator=generator).tensor_split(data.draw(st.integers(1, b.shape[0])))
    for rows in pieces:
        sum((slopes[leaf][rows] * out).sum() for leaf, out in model(rows).items()).backward()
    torch.testing.assert_close(weights.grad, direct, rtol=1e-9, atol=1e-12)


def has_weight_formula(name: str) -> bool:
    method = anypo.method(name)
    return method.card.weight is not None and "logp" not in method.reads("terms", "critic")


@pytest.mark.parametrize("name", [n for n in NAMES if has_weight_formula(n)])
@quick
@given(data=st.data())
def test_gradient_is_the_weight_on_the_card_times_the_coefficients_of_the_mean(name: str, data: Any) -> None:
    method = anypo.method(name)
    b = prepared(method, data.draw(batches(method, spread=data.draw(st.sampled_from([0.0, 0.3, 2.0])))))
    _, _, slopes = gradients(method, b)
    clean, ratio = b.clean(), method.stages["ratio"]
    r = torch.ones(b.shape, dtype=torch.float64) if ratio is None else ratio(clean).exp()
    counted = method.stages["reduce"].coefficients(clean) * (1.0 if clean.weight is None else clean.weight)
    expected = torch.where(b.valid, -method.card.weight(r, clean.advantage) * counted, 0.0)
    torch.testing.assert_close(slopes["logp"], expected, rtol=1e-9, atol=1e-12)


@every_method
@quick
@given(data=st.data())
def test_what_stands_in_rows_of_weight_zero_changes_nothing(name: str, data: Any) -> None:
    method = anypo.method(name)
    b = prepared(method, data.draw(batches(method)))
    idle = torch.tensor(data.draw(st.lists(st.booleans(), min_size=b.shape[0], max_size=b.shape[0])))
    weight = torch.ones_like(b.logp) if b.weight is None else b.weight
    b = b.but(weight=weight.masked_fill(idle.unsqueeze(1), 0.0))
    changes = {
        f: (3 * t + 1).where(idle.unsqueeze(1), t) for f in FLOAT_STEP_FIELDS if (t := getattr(b, f)) is not None
    }
    other = b.but(**changes | {"weight": b.weight})
    (loss, _, slopes), (loss_, _, slopes_) = gradients(method, b), gradients(method, other)
    torch.testing.assert_close(loss_, loss, rtol=1e-12, atol=1e-13)
    for leaf in slopes:
        torch.testing.assert_close(slopes_[leaf], slopes[leaf], rtol=1e-12, atol=1e-13)
        assert (slopes[leaf][idle] == 0).all(), leaf


@every_method
@quick
@given(data=st.data())
def test_float64_stays_float64(name: str, data: Any) -> None:
    method = anypo.method(name)
    b = method.prepare(data.draw(batches(method)))
    assert {k: t.dtype for k, t in tensors(b).items() if t.is_floating_point() and t.dtype != torch.float64} == {}
    loss, _, slopes = gradients(method, b)
    assert {loss.dtype, *(slope.dtype for slope in slopes.values())} == {torch.float64}


@every_method
@quick
@given(data=st.data())
def test_prepare_keeps_the_shape_and_never_adds_decisions(name: str, data: Any) -> None:
    method = anypo.method(name)
    b = data.draw(batches(method))
    after = method.prepare(b)
    assert not (after.valid & ~b.valid).any()
    if after.advantage is not None:
        assert after.advantage.shape == b.shape
        assert not after.advantage.requires_grad


@every_method
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.uint8])
def test_a_mask_of_numbers_is_the_mask_of_booleans(name: str, dtype: torch.dtype) -> None:
    method = anypo.method(name)
    b = random_batch(12, holes=0.4, optional=False, extra=sorted(all_reads(method) - set(FIELDS)))
    one, other = method.prepare(b), method.prepare(b.but(mask=b.mask.to(dtype)))
    assert one.advantage is None or same_bits(one.advantage, other.advantage)
    assert same_bits(method.loss(one)[0], method.loss(other.but(mask=other.valid.to(dtype)))[0])


@every_method
def test_prepare_leaves_logp_entropy_and_value_in_their_graph(name: str) -> None:
    b = random_batch(13, optional=False)
    b = b.but(**{leaf: getattr(b, leaf).clone().requires_grad_() for leaf in LEAVES})
    after = anypo.method(name).prepare(b)
    assert all(getattr(after, leaf) is getattr(b, leaf) for leaf in LEAVES)
    assert not any(t.requires_grad for k, t in tensors(after).items() if k not in LEAVES)


@every_method
def test_what_a_method_does_not_read_may_be_missing(name: str) -> None:
    method = anypo.method(name)
    b = method.prepare(random_batch(3, optional=False, extra=sorted(all_reads(method) - set(FIELDS))))
    needed = all_reads(method) | {"logp", "mask", "advantage"}
    lean = b.but(**{f: None for f in STEP_FIELDS if f not in needed}, group=None if "group" not in needed else b.group)
    assert same_bits(method.loss(lean)[0], method.loss(b.but(weight=None))[0])


def needed_fields() -> list[tuple[str, str, int, str]]:
    """(method, slot, position, field) for every field some part of a method declares to read."""
    return [
        (name, slot, at, field)
        for name in NAMES
        for slot in anypo.method(name).stages
        for at, part in enumerate(anypo.method(name).parts(slot))
        for field in getattr(part, "reads", ())
    ]


@pytest.mark.parametrize(("name", "slot", "at", "field"), needed_fields())
def test_a_missing_field_is_one_sentence_with_method_stage_part_and_field(
    name: str, slot: str, at: int, field: str
) -> None:
    method = anypo.method(name)
    part = method.parts(slot)[at]
    b = method.prepare(random_batch(1, optional=False, extra=sorted(all_reads(method) - set(FIELDS))))
    lacking = replace(b, **{field: None}) if hasattr(b, field) else b.but(extra={})
    early = slot in ("score", "credit")
    alone = method.but(**{slot: [part]}) if early else method
    with pytest.raises(UsageError) as caught:
        (alone.prepare if early else alone.loss)(lacking)
    sentence = str(caught.value)
    assert name in sentence
    assert repr(field) in sentence
    # an earlier reader of the same field may be the one that notices
    readers = [(s, p) for s in method.stages for p in method.parts(s) if field in getattr(p, "reads", ())]
    assert any(f"the {s} stage ({describe(p)})" in sentence for s, p in readers)
    assert "\n" not in sentence


@every_method
@quick
@given(data=st.data())
def test_a_batch_without_a_single_decision_gives_zero(name: str, data: Any) -> None:
    method = anypo.method(name)
    b = data.draw(batches(method))
    assume(b.shape[0] > 0)
    loss, metrics, slopes = gradients(method, method.prepare(b.but(mask=torch.zeros_like(b.mask))))
    assert loss == 0
    assert all((slope == 0).all() for slope in slopes.values())
    assert all(value.isfinite() for value in metrics.values()), metrics
