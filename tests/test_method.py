"""Methods as differences: but, diff, explain, configure, knobs, the registry, and the sentences they refuse with."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from entries import entries

import anypo
from anypo import Card, Method, Trajectories
from anypo.errors import UsageError
from anypo.method.registry import ENTRIES, register_method
from anypo.parts.credit import Combine
from anypo.parts.critic import Value
from anypo.parts.knobs import Linear
from anypo.parts.knobs.base import KNOBS
from anypo.parts.ops.settings import with_pieces
from anypo.parts.ratio import LogRatio, MinPrefix
from anypo.parts.reduce import Mean
from anypo.parts.registry import PARTS
from anypo.parts.terms import Entropy
from anypo.parts.trust import Clip
from anypo.stages import SLOTS

every_method = pytest.mark.parametrize("name", entries(anypo.methods()))


def batch() -> Trajectories:
    logp = torch.tensor([[-1.0, -0.5], [-2.0, -0.1]], dtype=torch.float64)
    return Trajectories(
        logp=logp,
        logp_old=logp - 0.1,
        logp_ref=logp,
        entropy=-logp,
        value=logp,
        score=torch.tensor([1.0, 0.0], dtype=torch.float64),
        group=torch.tensor([0, 0]),
    )


# ---------------------------------------------------------------- differences


@every_method
def test_a_method_differs_from_its_base_in_exactly_the_stages_it_names(name: str) -> None:
    method = anypo.method(name)
    if method.card.base is None:
        assert method.changed == list(SLOTS)
    else:
        base = anypo.method(method.card.base)
        assert set(method.changed) == {s for s in SLOTS if method.stages[s] != base.stages[s]}
        assert method.changed


@every_method
def test_every_base_leads_to_a_root(name: str) -> None:
    seen = []
    while name is not None:
        assert name not in seen
        seen.append(name)
        name = anypo.method(name).card.base


@every_method
def test_every_card_says_where_the_method_comes_from(name: str) -> None:
    card = anypo.method(name).card
    assert card.id == name
    assert card.title
    assert 1950 < card.year < 2100
    assert card.equation
    assert card.source
    assert card.claim.endswith(".")
    assert card.confidence in ("exact", "reconstructed")


@every_method
def test_explain_marks_the_changed_stages_and_names_equation_source_and_passes(name: str) -> None:
    method = anypo.method(name)
    text = method.explain()
    marked = {line.split()[1] for line in text.splitlines() if line.startswith("  * ")}
    assert marked == (set(method.changed) if method.card.base else set())
    for part in (
        method.card.title,
        method.card.equation,
        method.card.source,
        method.card.claim,
        *method.forward_passes(),
    ):
        assert part in text
    assert all(f" {slot} " in text for slot in SLOTS)


def test_a_method_has_no_difference_from_itself_and_opposite_ones_from_another() -> None:
    minpro, cispo = anypo.method("minpro"), anypo.method("cispo")
    assert minpro.diff("minpro") == {}
    assert minpro.diff("cispo") == {"ratio": (cispo.texts()["ratio"], minpro.texts()["ratio"])}
    assert cispo.diff(minpro) == {"ratio": tuple(reversed(minpro.diff("cispo")["ratio"]))}


def test_replacing_a_stage_changes_that_stage_only_and_leaves_the_original() -> None:
    grpo = anypo.method("grpo")
    other = grpo.but(ratio=MinPrefix())
    assert set(other.diff(grpo)) == {"ratio"}
    assert grpo.stages["ratio"] == LogRatio()
    assert anypo.method("grpo", ratio=MinPrefix()).stages == other.stages
    assert {s: p for s, p in other.stages.items() if s != "ratio"} == {
        s: p for s, p in grpo.stages.items() if s != "ratio"
    }


def test_parts_may_be_given_by_name_and_chains_as_one_part_or_many() -> None:
    method = anypo.method("grpo", ratio="min-prefix", terms=Entropy(), credit=["combine", "whiten"])
    assert method.stages["ratio"] == MinPrefix()
    assert method.stages["terms"] == (Entropy(),)
    assert method.texts()["credit"] == ["combine", "whiten(ddof=1)"]
    assert anypo.method("grpo", terms=None).stages["terms"] == ()


def test_a_new_card_makes_a_method_of_its_own_with_this_one_as_base() -> None:
    card = replace(anypo.method("grpo").card, id="mine", base=None)
    mine = anypo.method("grpo").but(card=card, reduce=Mean("sum"))
    assert mine.card.base == "grpo"
    assert mine.changed == ["reduce"]
    assert "mine = grpo with reduce changed" in mine.explain()


def test_every_part_and_knob_is_used_by_a_method_or_named_in_a_card() -> None:
    methods = [anypo.method(name) for name in anypo.methods()]
    phases = [phase for m in methods for phase in m.phases]
    used = {type(piece) for m in phases for part in m.parts(*SLOTS) for piece in with_pieces(part)} | {
        type(knob) for m in phases for _, knob in m.knobs()
    }
    cards = " ".join(f"{m.card.source} {[claim.settings for claim in m.card.claims]}" for m in methods)
    known = {**KNOBS, **{name: part for stage in PARTS.values() for name, part in stage.items()}}
    assert {name for name, part in known.items() if part not in used and not re.search(rf"\b{name}\b", cards)} == set()


def test_the_forward_passes_follow_from_what_the_parts_read() -> None:
    assert not any("reference" in p for p in anypo.method("dapo").forward_passes())
    assert any("reference" in p for p in anypo.method("grpo").forward_passes())
    assert any("value" in p for p in anypo.method("ppo").forward_passes())
    assert any("entropy" in p for p in anypo.method("a2c").forward_passes())


def test_what_a_minibatch_keeps_together_is_the_largest_any_part_asks_for() -> None:
    assert anypo.method("ppo").level == "decision"
    assert anypo.method("grpo").level == "row"
    assert anypo.method("minpro").level == "row"


def test_traits_follow_from_the_parts() -> None:
    assert anypo.method("ppo").traits["critic"]
    assert not anypo.method("ppo").traits["grouped"]
    assert anypo.method("grpo").traits["grouped"]
    assert not anypo.method("grpo").traits["critic"]


# ---------------------------------------------------------------- configuration


def test_configuration_changes_settings_swaps_parts_and_leaves_the_rest() -> None:
    method = anypo.method("grpo").configure(
        {"trust": {"high": 0.28}, "ratio": "min-prefix", "credit": {"baseline": {"scale": None}}, "terms": "none"}
    )
    assert method.stages["trust"] == Clip(0.2, 0.28)
    assert method.stages["ratio"] == MinPrefix()
    assert method.texts()["credit"][0] == "combine"
    assert method.stages["credit"][1].scale is None
    assert method.stages["terms"] == ()
    assert anypo.method("grpo").configure({}).stages == anypo.method("grpo").stages


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"trsut": "clip"}, "unknown stage 'trsut'; did you mean 'trust'"),
        ({"trust": "clpi"}, "unknown trust part 'clpi'; did you mean 'clip'"),
        ({"trust": {"hihg": 0.3}}, "'hihg'; did you mean 'high'"),
        ({"trust": {"high": "much"}}, "trust.high is 'much'; it takes a number"),
        ({"reduce": {"over": "tokens"}}, "reduce.over is 'tokens'; it takes 'token', 'row', 'sum', 'constant'"),
        ({"credit": {"basline": {}}}, "did you mean 'baseline'"),
        ({"trust": None}, "the stage 'trust' needs a part"),
        ({"credit": 3}, "expected part names or settings, got 3"),
    ],
)
def test_configuration_that_cannot_be_meant_is_one_sentence_with_the_nearest_name(
    settings: dict, sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence) as caught:
        anypo.method("grpo").configure(settings)
    assert "\n" not in str(caught.value)


def test_a_setting_for_a_stage_that_is_empty_says_so() -> None:
    with pytest.raises(UsageError, match="there is no part whose settings could change"):
        anypo.method("reinforce").configure({"ratio": {"per": "row"}})


# ---------------------------------------------------------------- refusing


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown method 'grppo'; did you mean 'grpo'"):
        anypo.method("grppo")


def test_a_name_near_nothing_lists_what_there_is() -> None:
    with pytest.raises(UsageError, match="known: a2c, "):
        anypo.method("qqqqqqqq")


@pytest.mark.parametrize(
    "call", [lambda: anypo.method("grpo", trst=Clip()), lambda: anypo.method("grpo").but(trst=Clip())]
)
def test_an_unknown_stage_names_the_nearest(call) -> None:
    with pytest.raises(UsageError, match="unknown stage 'trst'; did you mean 'trust'"):
        call()


def test_a_method_with_an_empty_stage_is_refused() -> None:
    card = Card("hollow", "t", 2000, None, "e", "s", "c.")
    with pytest.raises(UsageError, match="'hollow' leaves the stage 'collect' empty"):
        Method(card)


def test_a_taken_id_is_refused() -> None:
    with pytest.raises(UsageError, match="the method id 'grpo' is taken"):
        register_method(anypo.method("grpo"))


def test_a_field_of_the_wrong_shape_is_refused_before_anything_is_computed() -> None:
    b = batch()
    object.__setattr__(b, "score", torch.zeros(1, dtype=torch.float64))  # would broadcast silently
    with pytest.raises(UsageError, match="'score' has shape"):
        anypo.method("grpo").prepare(b)


def test_a_batch_without_outcome_names_method_stage_and_field() -> None:
    with pytest.raises(UsageError, match=r"grpo: the credit stage \(combine\) needs the field 'score'"):
        anypo.method("grpo").prepare(batch().but(score=None))


def test_whitening_nothing_is_the_same_sentence() -> None:
    with pytest.raises(UsageError, match=r"the credit stage \(whiten\(ddof=1\)\) needs the field 'advantage'"):
        anypo.method("ppo", credit=["whiten"]).prepare(batch())


# ---------------------------------------------------------------- knobs


def with_knob() -> Method:
    return anypo.method("ppo", trust=Clip(low=Linear(0.2, 0.1, until=0.5)), critic=[Value(coef=Linear(0.5, 0.0))])


def test_a_knob_has_the_dotted_path_it_is_configured_by() -> None:
    assert [path for path, _ in with_knob().knobs()] == ["critic.0.coef", "trust.low"]
    assert "clip(low=0.2->0.1" in with_knob().explain()


def test_the_loss_uses_the_present_value_of_a_knob_and_only_update_moves_it() -> None:
    method = with_knob()
    logp = torch.tensor([[-1.0]], dtype=torch.float64)
    b = Trajectories(  # ratio 0.85 with a bad outcome: free at low = 0.2, cut at low = 0.1
        logp=logp,
        logp_old=logp - torch.tensor(0.85).log().double(),
        value=logp * 0,
        value_old=logp * 0,
        returns=logp * 0 + 2,
        advantage=logp,
    )
    for _ in range(3):
        assert float(method.loss(b)[0]) == pytest.approx(0.85 + 0.5 * 0.5 * 4)
    method.update("batch", {}, 0.25, Trajectories())
    assert float(method.stages["trust"].low) == pytest.approx(0.15)
    method.update("batch", {}, 0.5, Trajectories())
    assert float(method.loss(b)[0]) == pytest.approx(0.9 + 0.25 * 0.5 * 4)
    method.update("batch", {}, 0.9, Trajectories())
    assert float(method.stages["trust"].low) == pytest.approx(0.1)


def test_knobs_survive_a_checkpoint_and_refuse_one_of_another_method() -> None:
    method, again = with_knob(), with_knob()
    method.update("batch", {}, 0.3, Trajectories())
    again.load_state_dict(method.state_dict())
    assert again.state_dict() == method.state_dict()
    assert float(again.stages["trust"].low) == float(method.stages["trust"].low) != 0.2
    with pytest.raises(UsageError, match="the saved state is of another method"):
        anypo.method("grpo").load_state_dict(method.state_dict())


def test_methods_without_knobs_have_no_state() -> None:
    for name in ("reinforce", "ppo", "grpo", "dapo", "gspo"):
        assert anypo.method(name).state_dict() == {}


# ---------------------------------------------------------------- the registry


def test_a_method_is_a_fresh_copy_each_time() -> None:
    one, other = anypo.method("grpo"), anypo.method("grpo")
    one.stages["terms"] = ()
    assert other.stages["terms"]
    assert anypo.method("grpo").stages == other.stages == ENTRIES["grpo"].stages


def test_the_ten_methods_are_registered() -> None:
    ten = {"reinforce", "a2c", "ppo", "grpo", "dr-grpo", "rloo", "dapo", "gspo", "cispo", "minpro"}
    assert ten <= set(anypo.methods())
    assert anypo.methods() == sorted(anypo.methods())


def test_a_method_of_ones_own_from_parts_alone_trains() -> None:
    mine = anypo.method("reinforce").but(
        card=Card("sign", "Sign of the group", 2026, None, "e", "s", "c."),
        credit=[Combine(), "baseline"],
        ratio=LogRatio("row"),
        trust=Clip(),
        reduce=Mean("row"),
    )
    b = mine.prepare(batch())
    logp = b.logp.clone().requires_grad_()
    loss, metrics = mine.loss(b.but(logp=logp))
    loss.backward()
    assert (logp.grad[0] < 0).all()
    assert metrics["denominator"] == 4
    assert {"loss", "surrogate", "ratio", "clip_fraction"} <= metrics.keys()


def test_metrics_carry_no_gradient_and_describe_the_ratio() -> None:
    method = anypo.method("grpo")
    b = method.prepare(batch())
    _, metrics = method.loss(b.but(logp=b.logp.clone().requires_grad_()))
    assert not any(m.requires_grad for m in metrics.values())
    assert float(metrics["ratio"]) == pytest.approx(float(torch.tensor(0.1, dtype=torch.float64).exp()))
    assert float(metrics["kl_old"]) == pytest.approx(float(torch.tensor(-0.1, dtype=torch.float64).exp()) - 1 + 0.1)
    assert float(metrics["kl_ref"]) == 0


def test_metrics_and_gradient_do_not_depend_on_how_a_mask_without_a_gap_is_averaged():
    generator = torch.Generator().manual_seed(0)
    names = ("logp", "logp_old", "advantage", "value", "value_old", "returns", "entropy", "weight")
    fields = {name: 0.5 * torch.randn(6, 4, generator=generator) for name in names}
    full = Trajectories(**fields, mask=torch.ones(6, 4, dtype=torch.bool))
    gap = torch.arange(5).expand(6, 5) < 4
    padded = Trajectories(**{k: torch.cat([x, torch.full((6, 1), 7.0)], 1) for k, x in fields.items()}, mask=gap)
    for name in ("ppo", "a2c", "grpo"):
        found = []
        for b in (full, padded):
            leaves = {k: b.get(k).clone().requires_grad_() for k in ("logp", "value", "entropy")}
            loss, metrics = anypo.method(name, terms=[Entropy(0.1)]).loss(b.put(leaves))
            slopes = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
            found.append((metrics, [slope[:, :4] for slope in slopes]))
        torch.testing.assert_close(*found, atol=1e-6, rtol=1e-5)
