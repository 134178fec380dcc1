"""Mixtures of text tasks, and a method for each of their tasks."""

from __future__ import annotations

import json

import pytest
import torch
from killed import train_and_kill

import anypo
from anypo import Trajectories
from anypo import config as configuration
from anypo.errors import UsageError
from anypo.loops.absorb import absorb
from anypo.loops.collect import collect
from anypo.loops.learn import learn
from anypo.loops.views import with_views
from anypo.method.per_task import per_task
from anypo.parts.knobs import Linear
from anypo.parts.step import Adam
from anypo.parts.terms import Divergence
from anypo.runs.build import build
from anypo.runs.folder import continue_run, create
from anypo.tasks import make_task


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, tiny_model):
    """Sums and letters to repeat, for a tiny model."""
    folder = tmp_path_factory.mktemp("mixed")
    rows = [{"prompt": f"say {c}: ", "answer": c} for c in "abcdefghijklmnop"]
    (folder / "letters.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return {
        "method": "grpo", "steps": 3, "step": {"lr": 1e-3}, "episodes": 4, "collect": {"requests": 6, "samples": 3},
        "task": {"name": f"mixture:sums,jsonl:{folder / 'letters.jsonl'}", "of": {
            "0": {"heldout": 0.996}, "1": {"reward": ["regex:[a-e]"], "max_new": 3},
        }},
        "policy": {"name": f"hf:{tiny_model('qwen2', kind='char')}"}, "threads": 1,
    }  # fmt: skip


def test_rows_of_a_batch_come_from_all_tasks_and_are_scored_by_their_own(mixed):
    run = build(configuration.from_dict(mixed | {"collect": {"requests": 30, "samples": 2}}))
    rows = collect(run).rows
    sums, letters = run.task.parts
    assert set(rows.task.tolist()) == {0, 1}
    assert rows.group.tolist() == sorted(rows.group.tolist())
    assert all(
        (start >= len(sums.records)) == (task == 1)
        for start, task in zip(rows.start.tolist(), rows.task.tolist(), strict=True)
    )
    texts = run.task.texts(run.policy, rows)
    for i, (prompt, answer) in enumerate(texts[:60]):
        if rows.task[i] == 1:
            assert prompt == letters.records[int(rows.start[i]) - len(sums.records)]["prompt"]
            assert float(rows.score[i]) == float(any(c in "abcde" for c in answer))
    assert int(rows.lengths[rows.task == 1].max()) <= 3


def test_held_out_measures_are_taken_of_every_task_and_their_mean_heads_the_run(mixed):
    run = build(configuration.from_dict(mixed))
    measures = run.task.evaluate(run.policy, 0, 4)
    labels = run.task.labels
    assert measures["accuracy"] == pytest.approx(sum(measures[f"accuracy/{label}"] for label in labels) / 2)


def test_every_task_is_learned_by_its_own_method_as_if_it_were_alone(mixed):
    """The gradient is the weighted sum of those of the methods on their tasks' rows."""
    values = mixed | {"methods": {"1": {"method": "rloo", "weight": 0.25}}, "collect": {"requests": 30, "samples": 2}}
    run = build(configuration.from_dict(values))
    rows = collect(run).rows
    batch = run.method.prepare(with_views(run, run.method, rows))
    logp = batch.logp_old.clone().requires_grad_()
    loss, metrics = run.method.loss(batch.put({"logp": logp}))
    found = torch.autograd.grad(loss, logp)[0]
    for k, (name, weight) in enumerate((("grpo", 1.0), ("rloo", 0.25))):
        mine = (rows.task == k).nonzero()[:, 0]
        alone = anypo.method(name).prepare(with_views(run, run.method, rows).rows(mine))
        leaf = alone.logp_old.clone().requires_grad_()
        own = weight * anypo.method(name).loss(alone.put({"logp": leaf}))[0]
        torch.testing.assert_close(found[mine], torch.autograd.grad(own, leaf)[0])
    assert any(name.endswith(f"/{run.task.labels[1]}") for name in metrics)


def test_a_mixture_with_two_methods_survives_a_kill(mixed, tmp_path):
    values = mixed | {"methods": {"1": "dapo"}, "steps": 6, "checkpoint_every": 1, "evaluate_every": 100}

    def under_way(folder):
        return (folder / "checkpoints").is_dir() and any((folder / "checkpoints").glob("batch-00000002"))

    train_and_kill({**values, "out": str(tmp_path / "killed")}, under_way)
    learn(continue_run(tmp_path / "killed"))
    learn(create(configuration.from_dict({**values, "out": str(tmp_path / "whole")})))
    assert (tmp_path / "killed" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_learning_goes_on_when_a_batch_holds_rows_of_one_task_only(mixed):
    run = build(configuration.from_dict(mixed | {"methods": {"1": "dapo"}, "collect": {"requests": 1, "samples": 3}}))
    run.begun = True
    metrics = absorb(run, collect(run))
    assert metrics["updates"] == 1.0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"methods": {"2": "dapo"}}, "methods.2: the mixture has no such task"),
        ({"methods": {"1": "dapoo"}}, "did you mean 'dapo'"),
        ({"methods": {"1": 3}}, "methods.1 takes the id of a method, or {method: ID, weight: W}, not 3"),
        ({"methods": {"1": {"weight": 2.0}}}, "methods.1 takes the id of a method"),
        ({"methods": {"1": {"method": "dapo", "weights": 2.0}}}, "did you mean 'weight'"),
        ({"methods": {"1": {"method": "dapo", "weight": -1.0}}}, "methods.1.weight is -1.0"),
        ({"methods": {"0": "dapo", "sums": "rloo"}}, "the task sums has a method already"),
        ({"methods": {"1": "remix"}}, "cannot be one of several methods"),
        ({"methods": {"1": "sft"}}, "collects other rows"),
        ({"task": {"name": "sums"}, "methods": {"1": "dapo"}}, "is one task"),
        ({"task": {"name": "mixture:sums,sums"}}, "two or more different tasks"),
        ({"task": {"name": "mixture:sums,bandit"}}, "which bandit is not"),
        ({"task": {"name": "mixture:sums", "of": {"3": {}}}}, "unknown task of the mixture"),
    ],
)
def test_what_cannot_be_mixed_is_one_sentence(mixed, change, sentence):
    with pytest.raises(UsageError, match=sentence):
        build(configuration.from_dict(mixed | change))


def test_a_mixture_without_a_base_model_of_its_own_says_so(mixed):
    problems = {
        "name": "mixture:reasoning-gym:chain_sum,reasoning-gym:leg_counting",
        "of": {0: {"size": 20}, 1: {"size": 20}},
    }
    with pytest.raises(UsageError, match="has no base model of its own"):
        build(configuration.from_dict(mixed | {"task": problems, "policy": {"name": "tiny"}}))


def test_knobs_of_shared_stages_move_once_a_batch_and_every_task_moves_its_own(mixed):
    rate, coef = Linear(1e-3, 0.0), Linear(0.2, 0.0)
    base = anypo.method("grpo", step=Adam(lr=rate), terms=[Divergence("k3", coef=coef)])
    method = per_task(base, {"1": "rloo"}, ("a", "b", "c"), anypo.method)
    paths = [path for path, _ in method.knobs()]
    assert paths == ["step.lr", "a/terms.0.coef", "c/terms.0.coef"]
    b = Trajectories(logp=torch.zeros(3, 1), task=torch.tensor([0, 1, 0]))
    method.update("batch", {}, 0.5, b)
    values = dict(zip(paths, (float(knob) for _, knob in method.knobs()), strict=True))
    assert values == pytest.approx({"step.lr": 5e-4, "a/terms.0.coef": 0.1, "c/terms.0.coef": 0.2})  # no row of task c
    assert method.stages["step"].lr is rate  # the one the optimizer reads


def test_starts_are_counted_through_the_tasks():
    mixture = make_task({"name": "mixture:sums,reasoning-gym:chain_sum", "of": {"1": {"size": 20}}}, seed=0)
    first = len(mixture.parts[0].records)
    assert mixture.place(0) == (0, 0)
    assert mixture.place(first) == (1, 0)
    assert mixture.starts == first + len(mixture.parts[1].records)
    assert per_task(anypo.method("grpo"), {}, mixture.labels, anypo.method).methods[0].card.id == "grpo"
