"""Phases: differences that begin after a count or by a metric, change any stage, cycle, and survive a kill at their boundary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from killed import train_and_kill

import anypo
from anypo import config as configuration
from anypo.errors import UsageError
from anypo.evidence.experiments.assemble import assemble_in_memory
from anypo.evidence.toys import Codes
from anypo.loops.learn import learn
from anypo.parts.collect import Ask, DynamicSampling
from anypo.parts.critic import Value
from anypo.parts.step import Adam
from anypo.parts.step.gradient import Gradient
from anypo.parts.store import Fresh, Replay
from anypo.parts.terms import Divergence
from anypo.parts.trust import Clip
from anypo.runs.checkpoint import newest
from anypo.runs.folder import continue_run, create
from anypo.runs.phases import begin_phase

TWO_PHASES = """
import anypo
from anypo.parts.collect import Ask, DynamicSampling
from anypo.parts.credit import Gae, Whiten
from anypo.parts.critic import Value
from anypo.parts.step import Adam, RMSProp

warm = anypo.method("grpo", step=Adam(epochs=1), terms=[])
method = warm.then(
    after=3, collect=DynamicSampling(rounds=2), critic=[Value()], credit=[Gae(), Whiten()], step=RMSProp(lr=0.05)
)
"""


def run_of(method, batches=8, **task):
    settings = {"batches": batches, "lr": 0.1, "requests": 4, "samples": 4, "epochs": 1, "minibatch": 0}
    return assemble_in_memory(method, Codes(problems=4, length=1, **task), 0, **settings)


def numbers_of_phases(run):
    seen = []
    learn(run, lambda record: seen.append(run.number) if record["batch"] else None)
    return seen


def test_phases_begin_after_a_count_or_when_a_metric_is_reached_whichever_comes_first():
    base = anypo.method("grpo", terms=[])
    assert numbers_of_phases(run_of(base.then(3, trust=Clip(0.1, 0.1)).then(5, trust=Clip(0.3, 0.3)))) == [
        0,
        0,
        0,
        1,
        1,
        2,
        2,
        2,
    ]
    reached = base.then(metric="success", least=0.6, trust=Clip(0.1, 0.1))
    run, records = run_of(reached, batches=40), []
    learn(run, lambda record: records.append((run.number, record.get("success", 0.0))) if record["batch"] else None)
    first = next(i for i, (_, success) in enumerate(records) if success >= 0.6)
    assert [number for number, _ in records] == [0] * (first + 1) + [1] * (39 - first)
    assert numbers_of_phases(run_of(base.then(2, metric="success", least=9.0, trust=Clip(0.1, 0.1)), batches=4)) == [
        0,
        0,
        1,
        1,
    ]
    with pytest.raises(UsageError, match="give `after` or `metric`"):
        base.then(trust=Clip(0.1, 0.1))


def test_phases_cycle():
    method = anypo.method("grpo", terms=[]).then(1, trust=Clip(0.1, 0.1)).cycle(3)
    assert numbers_of_phases(run_of(method)) == [0, 1, 1, 0, 1, 1, 0, 1]
    assert "after 1 batches: clip(low=0.1, high=0.1)" in method.explain()


def test_a_step_begins_anew_with_its_phase_unless_its_moments_are_carried_on():
    base = anypo.method("grpo", terms=[])
    anew, on = run_of(base.then(2, step=Adam(lr=0.01))), run_of(base.then(2, step=Adam(lr=0.01), carry=("step",)))
    for run in (anew, on):
        run.finished = False
        for _ in range(3):
            run.steps = run.batch + 1
            run.finished = False
            learn(run)
    assert anew.stepper.updates == 1
    assert on.stepper.updates == 3
    assert anew.stepper.recipe.lr == on.stepper.recipe.lr == 0.01
    assert anew.stepper.recipe.epochs == 1  # what the new part leaves open is as it was
    moments = [next(iter(run.stepper.optimizer.state.values()))["exp_avg"] for run in (anew, on)]
    assert not torch.equal(*moments)


def test_a_store_begins_empty_with_its_phase_unless_its_rows_are_carried_on():
    base = anypo.method("grpo", store=Replay(share=0.5, window=2), terms=[])
    for carry, kept in (((), 1), (("store",), 2)):
        run = run_of(base.then(2, store=Replay(share=0.5, window=2), carry=carry), batches=3)
        learn(run)
        assert len(run.store.past) == kept
    run = run_of(base.then(2, store=Fresh()), batches=3)
    learn(run)
    assert type(run.store).__name__ == "OpenFresh"


def test_a_phase_moves_the_parameters_it_names_alone_and_renews_the_anchors_it_names():
    base = anypo.method("ppo", terms=[Divergence("k3", anchor="ref", coef=0.1)])
    method = base.then(2, moves=("table",), renew=("ref",))
    run = run_of(method, batches=4)
    states = []
    learn(run, lambda record: states.append({k: v.clone() for k, v in run.policy.state_dict().items()}))
    assert not torch.equal(states[0]["logits"], states[1]["logits"])
    assert torch.equal(states[2]["logits"], states[4]["logits"])  # values alone learn from then on
    assert not torch.equal(states[2]["table"], states[4]["table"])
    assert torch.equal(run.anchors["ref"]["logits"], states[2]["logits"])
    with pytest.raises(UsageError, match="no trainable parameter of the policy has a name that begins with head"):
        learn(run_of(base.then(1, moves=("head",)), batches=2))


def test_heads_of_a_later_phase_are_there_from_the_start_and_collecting_changes_its_size():
    base = anypo.method("grpo", terms=[], collect=Ask(requests=4, samples=4))
    run = run_of(
        base.then(1, collect=DynamicSampling(requests=2, samples=6), step=Gradient(lr=0.1, epochs=2)), batches=2
    )
    learn(run)
    assert (run.want.requests, run.want.samples) == (2, 6)
    assert type(run.stepper.optimizer) is torch.optim.SGD
    assert run.phase.stages["step"].epochs == 2
    config = configuration.from_dict({"method": "grpo", "task": "bandit"})
    with_value = anypo.method("grpo").then(1, critic=[Value()])
    from anypo.runs.build import build
    from anypo.runs.objects import Objects

    policy = build(config, objects=Objects(method=with_value)).policy
    assert policy.heads == ("value",)


@pytest.mark.parametrize("at", [3, 4])
def test_a_run_whose_phases_change_collect_critic_and_step_survives_a_kill_at_the_boundary(at, tmp_path):
    (tmp_path / "phases.py").write_text(TWO_PHASES)
    values = {
        "method": f"{tmp_path / 'phases.py'}:method", "task": "bandit", "steps": 8, "checkpoint_every": 1, "evaluate_every": 100,
        "threads": 1, "collect": {"requests": 4, "samples": 4},
    }  # fmt: skip

    def under_way(folder: Path) -> bool:
        return folder.exists() and any((folder / "checkpoints").glob(f"batch-{at:08d}"))

    train_and_kill({**values, "out": str(tmp_path / "killed")}, under_way)
    again = continue_run(tmp_path / "killed")
    assert again.number == (0 if again.batch <= 3 else 1)
    learn(again)
    whole = create(configuration.from_dict({**values, "out": str(tmp_path / "whole")}))
    learn(whole)
    assert (tmp_path / "killed" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    for name, tensor in whole.policy.state_dict().items():
        assert torch.equal(tensor, again.policy.state_dict()[name]), name
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert ["value_loss" in row for row in rows[1:]] == [False] * 3 + [True] * 5
    assert newest(tmp_path / "whole").name == "batch-00000008"


def test_a_resumed_run_is_in_the_phase_it_was_in_and_waits_for_the_same_metric(tmp_path):
    method = (
        anypo.method("grpo", terms=[])
        .then(metric="eval/reward", least=-9.0, trust=Clip(0.1, 0.1))
        .then(4, trust=Clip(0.2, 0.3))
    )
    run = run_of(method, batches=6)
    run.number, run.turn, run.seen = 0, 0, {"eval/reward": 1.0}
    state = run.state()
    other = run_of(method, batches=6)
    other.restore(state)
    assert begin_phase(other).stages["trust"] == Clip(0.1, 0.1)
    assert tmp_path.exists()
