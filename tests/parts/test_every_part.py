"""What must hold for every registered part, built with its defaults."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
import torch

import anypo
from anypo import Trajectories
from anypo.errors import UsageError
from anypo.method.requirements import example_of
from anypo.parts.knobs import Linear
from anypo.parts.ops.names import kebab
from anypo.parts.ratio import LogRatio
from anypo.parts.reduce import GroupMean, Mean
from anypo.parts.registry import PARTS, build_stage, describe, find
from anypo.policies.control import off_policy  # noqa: F401 - policies register their functionals
from anypo.policies.generative import flow  # noqa: F401
from anypo.runs.settings import part_spec
from anypo.stages import CHAINS, LEVELS, SLOTS, declared
from anypo.types import FIELDS
from anypo.views import Functional, Network

EVERY = [(stage, name) for stage, known in PARTS.items() for name in known]
LEARNED = {"q": Network("action", 2), "v": Network("state"), "vae": Network("autoencoder")}
"""Value networks that a part reads and another one declares."""


def example_fields() -> dict[str, Functional]:
    """Return what the views of all parts give in an example batch, and the columns they read beside."""
    parts = [find(stage, name)() for stage, name in EVERY if stage in SLOTS]
    fields = {
        name: example_of(name, view, LEARNED | declared(part, "networks"))
        for part in parts
        for name, view in {**declared(part, "views"), **declared(part, "live")}.items()
    }
    read = {name for part in parts for name in declared(part, "reads")}
    return {name: Functional(name) for name in read} | fields


every_part = pytest.mark.parametrize(("stage", "name"), EVERY)


FIELDS_READ = example_fields()


def first(content: Any) -> Any:
    return content[0] if isinstance(content, tuple) else content


def batch(dtype: torch.dtype = torch.float64) -> Trajectories:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    steps = (
        "logp",
        "logp_old",
        "logp_ref",
        "entropy",
        "value",
        "value_old",
        "returns",
        "advantage",
        "reward",
        "weight",
    )
    return Trajectories(
        **{name: normal(4, 5).abs() if name == "weight" else normal(4, 5) for name in steps},
        score=torch.tensor([1.0, 0.0, 0.3, 0.7], dtype=dtype),
        scores=normal(4, 2),
        mask=torch.tensor([[0, 1, 1, 0, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.bool),
        group=torch.tensor([0, 0, 1, 1]),
        truncated=torch.tensor([False, True, False, False]),
        extra={
            name: normal(4, 5, *f.shape).abs() + 0.1 if f.positive else normal(4, 5, *f.shape)
            for name, f in sorted(FIELDS_READ.items())
            if name not in FIELDS
        },
    )


@every_part
def test_is_found_by_its_kebab_case_name(stage: str, name: str) -> None:
    part = find(stage, name)()
    assert name == kebab(type(part).__name__)


@every_part
def test_is_frozen_and_equal_parts_have_equal_hashes(stage: str, name: str) -> None:
    one, other = find(stage, name)(), find(stage, name)()
    assert one == other
    assert hash(one) == hash(other)
    for field in fields(one):
        with pytest.raises(FrozenInstanceError):
            setattr(one, field.name, None)


@every_part
def test_its_settings_written_as_configuration_build_it_again(stage: str, name: str) -> None:
    part = find(stage, name)()
    spec = part_spec(part)
    assert spec["part"] == name
    assert first(build_stage(stage, [spec] if stage in CHAINS else spec)) == part
    assert first(build_stage(stage, name)) == part


@every_part
def test_its_short_text_starts_with_its_name_and_changes_with_every_number(stage: str, name: str) -> None:
    part = find(stage, name)()
    assert describe(part).split("(")[0] == name
    for field in fields(part):
        value = getattr(part, field.name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            assert describe(type(part)(**{field.name: value + 1})) != describe(part), field.name


@every_part
def test_a_misspelt_setting_is_an_error_that_names_the_nearest(stage: str, name: str) -> None:
    for field in fields(find(stage, name)):
        with pytest.raises(UsageError, match=f"did you mean '{field.name}'"):
            build_stage(
                stage, [{"part": name, field.name + "_": 1}] if stage in CHAINS else {"part": name, field.name + "_": 1}
            )


@every_part
def test_a_setting_of_the_wrong_type_is_refused_by_name(stage: str, name: str) -> None:
    for field in fields(find(stage, name)):
        if field.type == "str" or field.name in ("head", "channel"):  # any name
            continue
        spec = {"part": name, field.name: "rubbish"}
        if field.name in declared(find(stage, name), "pieces"):
            sentence = f"unknown {field.name} part 'rubbish'"
        else:
            sentence = rf"{name if stage in CHAINS else stage}\.{field.name} is 'rubbish'"
        with pytest.raises(UsageError, match=sentence):
            build_stage(stage, [spec] if stage in CHAINS else spec)


@every_part
def test_parts_of_the_objective_say_what_has_to_stay_together(stage: str, name: str) -> None:
    if stage in ("critic", "ratio", "trust", "reduce", "terms"):
        assert find(stage, name)().level in LEVELS


@pytest.mark.parametrize(("stage", "name"), [e for e in EVERY if e[0] in ("score", "credit")])
@pytest.mark.parametrize("rubbish", [float("nan"), 1e9, float("-inf")])
def test_links_ignore_masked_slots_keep_float64_and_leave_their_input_alone(
    stage: str, name: str, rubbish: float
) -> None:
    method = anypo.method("reinforce", **{"score": [], "credit": [], stage: [find(stage, name)()]})
    clean = batch()
    dirty = clean.but(
        **{
            f.name: t.masked_fill(~clean.valid, rubbish)
            for f in fields(clean)
            if isinstance(t := getattr(clean, f.name), torch.Tensor)
            and t.ndim == 2
            and t.shape == clean.shape
            and t.is_floating_point()
        }
    )
    kept = dirty.advantage.clone()
    one, other = method.prepare(clean), method.prepare(dirty)
    for field in ("advantage", "score", "returns", "mask"):
        x, y = getattr(one, field), getattr(other, field)
        torch.testing.assert_close(
            torch.where(one.valid, x, 0) if x.ndim == 2 else x,
            torch.where(one.valid, y, 0) if y.ndim == 2 else y,
            rtol=0,
            atol=0,
            equal_nan=True,
        )
    assert one.advantage.dtype == one.score.dtype == torch.float64
    torch.testing.assert_close(dirty.advantage, kept, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("stage", "name"), [e for e in EVERY if e[0] in ("ratio", "trust", "reduce", "terms", "critic")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parts_of_the_objective_are_finite_and_differentiable_in_any_method(
    stage: str, name: str, dtype: torch.dtype
) -> None:
    part = find(stage, name)()
    method = anypo.method("ppo")
    if stage == "trust" and "advantage" not in part.reads and part.level != "decision":  # on rows, or groups of them
        method = method.but(ratio=LogRatio("row"), reduce=GroupMean() if hasattr(part, "per_group") else Mean("row"))
    method = method.but(**{stage: [part] if stage in CHAINS else part})
    names = {"logp", "value", "entropy", *(n for n in getattr(part, "live", {}) if n in FIELDS_READ)}
    leaves = {n: batch(dtype).get(n).requires_grad_() for n in names}
    loss, metrics = method.loss(batch(dtype).put(leaves))
    loss.backward()
    assert loss.dtype == dtype
    assert loss.isfinite()
    slopes = [leaf.grad for leaf in leaves.values() if leaf.grad is not None]
    assert all(slope.isfinite().all() for slope in slopes)
    assert sum(float(slope.abs().sum()) for slope in slopes) > 0
    if name == "no-policy-loss":  # has no objective of its own
        return
    own = [n for n in leaves if n in getattr(part, "live", {})]
    own = own or ["value" if stage == "ratio" and "logp" not in part.reads else "logp"]
    assert any(leaves[n].grad is not None and leaves[n].grad.abs().sum() > 0 for n in own)
    assert all(m.isfinite() for m in metrics.values())


def test_a_knob_may_stand_where_a_number_does() -> None:
    part = find("trust", "clip")(low=Linear(0.3, 0.1))
    assert describe(part) == "clip(low=0.3->0.1, high=0.2)"


def test_names_of_parts_are_unknown_in_one_sentence() -> None:
    with pytest.raises(UsageError, match="unknown trust part 'clipp'; did you mean 'clip'"):
        find("trust", "clipp")


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"low": True}, "trust.low is True"),
        ({"part": "clip", "dual": [3.0]}, "trust.dual is"),
        (3, "expected the name of a part"),
        ({"part": 3}, "unknown trust part"),
    ],
)
def test_malformed_configuration_is_refused_in_one_sentence(spec: Any, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        build_stage("trust", spec, find("trust", "clip")())


def test_a_chain_is_changed_by_name_by_position_or_replaced() -> None:
    chain = anypo.method("grpo").stages["credit"]
    assert build_stage("credit", {"baseline": {"scale": None}}, chain)[1].scale is None
    assert build_stage("credit", {"1": {"center": "leave-one-out"}}, chain)[1].center == "leave-one-out"
    assert [describe(p) for p in build_stage("credit", "combine, whiten")] == ["combine", "whiten(ddof=1)"]
    assert build_stage("terms", "none") == ()
    assert build_stage("terms", {"coef": 0.1}, anypo.method("grpo").stages["terms"])[0].coef == 0.1
    with pytest.raises(UsageError, match="unknown link of the credit chain 'baselin'; did you mean 'baseline'"):
        build_stage("credit", {"baselin": {"scale": None}}, chain)
