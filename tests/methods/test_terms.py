"""Further objectives made of parts, on the rows of one source."""

from __future__ import annotations

import pytest
import torch
from entries import entries

import anypo
from anypo import Term, Trajectories
from anypo.errors import UsageError
from anypo.evidence.batches import gradients, random_batch
from anypo.parts.knobs import Linear
from anypo.parts.ratio import LogRatio
from anypo.parts.reduce import Mean
from anypo.parts.registry import build_stage
from anypo.parts.terms import Entropy
from anypo.parts.trust import Clip, SelfWeightedLikelihood, Unclipped
from anypo.runs.phases import begin_phase

F64 = torch.float64
SOURCE = {"policy": 0, "expert": 1, "pairs": 2, "replay": 3}


def batch(sources: list[str], seed: int = 0) -> Trajectories:
    b = random_batch(seed, len(sources), 4, optional=False).but(weight=None)
    advantage = torch.randn(b.shape, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return b.but(source=torch.tensor([SOURCE[name] for name in sources]), advantage=advantage)


def repeat(b: Trajectories, rows: list[int]) -> Trajectories:
    return Trajectories.cat([b, b.rows(torch.tensor(rows))])


@pytest.mark.parametrize("learner", ["hpt", "chord"])
@pytest.mark.parametrize(("doubled", "unchanged"), [("expert", "policy"), ("policy", "expert")])
def test_the_gradient_on_one_source_does_not_depend_on_how_many_rows_another_has(learner, doubled, unchanged):
    method = anypo.method(learner, credit=[])
    b = batch(["policy", "expert", "policy", "policy", "expert"])
    rows = [i for i in range(5) if int(b.source[i]) == SOURCE[doubled]]
    kept = [i for i in range(5) if int(b.source[i]) == SOURCE[unchanged]]
    one, two = gradients(method, b)[2]["logp"], gradients(method, repeat(b, rows))[2]["logp"]
    torch.testing.assert_close(one[kept], two[kept], rtol=0, atol=1e-15)
    assert float(one[kept].abs().max()) > 0


def test_a_term_is_minus_the_average_of_its_surrogate_over_the_rows_of_its_source_alone():
    term = Term(ratio=LogRatio(), trust=Clip(0.1, 0.3), reduce=Mean("row"), rows="replay", coef=0.7)
    method = anypo.method("grpo", credit=[], terms=[term])
    b = batch(["policy", "replay", "policy", "replay"])
    old = b.rows(torch.tensor([1, 3]))
    expected = 0.7 * anypo.method("grpo", credit=[], trust=Clip(0.1, 0.3), reduce=Mean("row"), terms=[]).loss(old)[0]
    without = anypo.method("grpo", credit=[], terms=[]).loss(b)[0]
    total, metrics = method.loss(b)
    torch.testing.assert_close(total - without, expected)
    torch.testing.assert_close(0.7 * metrics["replay_loss"], expected)
    assert "replay_clip_fraction" in metrics


def test_without_rows_of_its_source_a_term_is_absent():
    b = batch(["policy", "policy", "replay"])
    for found in (b, b.but(source=None)):
        total, metrics = anypo.method("chord", credit=[]).loss(found)
        torch.testing.assert_close(total, anypo.method("chord", credit=[], terms=[]).loss(found)[0])
        assert "expert_loss" not in metrics


def test_rows_keep_their_source_when_batches_of_other_sources_join_them():
    fresh = random_batch(0, 2, 3)
    taught = random_batch(1, 3, 2).but(expert_mask=torch.tensor([True, True, False]))
    own = random_batch(2, 1, 2).but(sources=("tools", "policy"), source=torch.tensor([0]))
    joined = Trajectories.cat([fresh, taught, own])
    assert [joined.sources[i] for i in joined.source.tolist()] == [
        "policy",
        "policy",
        "expert",
        "expert",
        "policy",
        "tools",
    ]
    assert joined.expert_mask.tolist() == [False, False, True, True, False, False]
    assert joined.from_sources("expert", "tools").shape[0] == 3
    again = Trajectories.from_dict(joined.to_dict())
    assert again.sources == joined.sources
    assert torch.equal(again.slices(2)[1].source, joined.source[3:])


@pytest.mark.parametrize("learner", entries(["remix"]))
def test_replayed_rows_are_marked_and_belong_to_the_main_objective(learner):
    from anypo.evidence.experiments.assemble import assemble_in_memory
    from anypo.evidence.toys import Codes
    from anypo.loops.absorb import absorb
    from anypo.loops.collect import collect

    run = assemble_in_memory(
        anypo.method(learner),
        Codes(problems=4, length=1),
        0,
        batches=3,
        lr=0.1,
        requests=4,
        samples=4,
        epochs=1,
        minibatch=0,
    )
    for _ in range(2):
        begin_phase(run)
        absorb(run, collect(run))
    run.store.add(collect(run).rows)
    drawn = run.store.draw(run.generator)
    names = [drawn.sources[i] for i in drawn.source.tolist()]
    assert names.count("policy") == 16
    assert 0 < names.count("replay") <= 16
    assert drawn.from_sources("policy", "replay").shape == drawn.shape


def test_a_term_is_set_on_the_command_line_part_by_part():
    chain = anypo.method("chord").stages["terms"]
    (term,) = build_stage(
        "terms", {"term": {"coef": 0.5, "trust": {"phi": "likely"}, "reduce": {"over": "row"}}}, chain
    )
    assert term == Term(trust=SelfWeightedLikelihood("likely"), reduce=Mean("row"), rows="expert", coef=0.5)
    (term,) = build_stage("terms", [{"part": "term", "ratio": "log-ratio", "trust": "unclipped", "rows": "replay"}])
    assert term == Term(ratio=LogRatio(), trust=Unclipped(), rows="replay")
    (term,) = build_stage("terms", {"term": {"reduce": "none"}}, chain)
    assert term.reduce is None  # the method's own
    with pytest.raises(UsageError, match="needs a ratio, and the term has none"):
        Term(trust=Clip())
    with pytest.warns(UserWarning, match="'imitate' is called 'term' now"):
        assert build_stage("terms", {"imitate": {"coef": 0.2}}, chain)[0].coef == 0.2


def test_numbers_inside_a_term_may_move_and_are_found():
    method = anypo.method(
        "chord", terms=[Term(trust=Clip(low=Linear(0.3, 0.1)), ratio=LogRatio(), rows="own"), Entropy()]
    )
    assert "terms.0.trust.low" in dict(method.knobs())
    assert method.setting_paths("phi") == []
    assert anypo.method("chord").setting_paths("phi") == ["terms.term.trust.phi"]
    assert any("self-weighted-likelihood" in text for text in anypo.method("hpt").texts()["terms"])
