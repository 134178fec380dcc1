"""What must hold for every registered method: one suite, driven by the fields each method's parts read.

A method is covered the moment it is registered. The number in a test's id is the number of random batches it sees, of every kind
that the property asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from entries import entries
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import LEAVES, all_reads, batches, needs, random_batch, same_bits

import anypo
from anypo.errors import UsageError
from anypo.evidence.properties import PROPERTIES, WILD, all_tensors
from anypo.parts.registry import describe
from anypo.types import STEP_FIELDS

EXAMPLES = 6
NAMES = anypo.methods()
pytestmark = pytest.mark.property
every_method = pytest.mark.parametrize("name", entries(NAMES), ids=lambda n: f"{n}-{EXAMPLES}batches")
quick = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def checking(claim: str) -> Callable[..., None]:
    """Return the test of one property over all methods; every use of a test lengthens a chain of Hypothesis' settings."""

    @every_method
    @quick
    @given(data=st.data())
    def check(name: str, data: Any) -> None:
        method = anypo.method(name)
        for fixed in WILD.get(claim, [{}]):
            PROPERTIES[claim](method, data.draw(batches(method, **fixed), label=str(fixed)))

    return check


for claim in PROPERTIES:
    globals()[f"test_{claim.replace(' ', '_')}"] = checking(claim)


@every_method
def test_a_mask_of_numbers_is_the_mask_of_booleans(name: str) -> None:
    method = anypo.method(name)
    b = random_batch(12, holes=0.4, optional=False, **needs(method))
    one = method.prepare(b)
    loss = method.loss(one)[0]
    for dtype in (torch.int64, torch.float32, torch.uint8):
        other = method.prepare(b.but(mask=b.mask.to(dtype)))
        assert one.advantage is None or same_bits(one.advantage, other.advantage), dtype
        assert same_bits(loss, method.loss(other.but(mask=other.valid.to(dtype)))[0]), dtype


@every_method
def test_prepare_leaves_logp_entropy_and_value_in_their_graph(name: str) -> None:
    method = anypo.method(name)
    b = random_batch(13, optional=False, **needs(method))
    b = b.but(**{leaf: getattr(b, leaf).clone().requires_grad_() for leaf in LEAVES})
    after = method.prepare(b)
    for leaf in LEAVES:
        (grad,) = torch.autograd.grad(getattr(after, leaf).sum(), getattr(b, leaf))
        assert torch.equal(grad, after.valid.to(grad.dtype)), "itself where a decision counts, else 0"
    assert not any(t.requires_grad for k, t in all_tensors(after).items() if k not in LEAVES)


@every_method
def test_what_a_method_does_not_read_may_be_missing(name: str) -> None:
    method = anypo.method(name)
    b = method.prepare(random_batch(3, optional=False, **needs(method)))
    needed = all_reads(method) | {
        "logp",
        "mask",
        "advantage",
        "segment",
    }  # segments may be left out, but matter
    lean = b.but(**{f: None for f in STEP_FIELDS if f not in needed}, group=None if "group" not in needed else b.group)
    assert same_bits(method.loss(lean)[0], method.loss(b.but(weight=None))[0])


@every_method
def test_a_missing_field_is_one_sentence_with_method_stage_part_and_field(name: str) -> None:
    method = anypo.method(name)
    b = method.prepare(random_batch(1, optional=False, **needs(method)))
    for slot in method.stages:
        for part in method.parts(slot):
            for field in getattr(part, "reads", ()):
                sentence = refusal(method, slot, part, field, b)
                assert name in sentence
                assert repr(field) in sentence
                # an earlier reader of the same field may be the one that notices
                readers = [(s, p) for s in method.stages for p in method.parts(s) if field in getattr(p, "reads", ())]
                assert any(f"the {s} stage ({describe(p)})" in sentence for s, p in readers)
                assert "\n" not in sentence


def refusal(method: anypo.Method, slot: str, part: Any, field: str, b: anypo.Trajectories) -> str:
    """The sentence that refuses a batch without a field that a part reads."""
    others = {k: t for k, t in b.extra.items() if k != field}
    lacking = replace(b, **{field: None}) if hasattr(b, field) else b.but(extra=others)
    early = slot in ("score", "credit")
    alone = method.but(**{slot: [part]}) if early else method
    with pytest.raises(UsageError) as caught:
        (alone.prepare if early else alone.loss)(lacking)
    return str(caught.value)
