"""The update of one minibatch: the same gradient however it is cut, ratio 1 before the first step."""

import copy

import pytest
import tiny
import torch
from entries import entries

import anypo
from anypo import config as configuration
from anypo.loops.collect import collect
from anypo.loops.gradients import gradient
from anypo.loops.minibatches import flatten_decisions, microbatches, minibatches
from anypo.loops.views import views_without_grad, with_views
from anypo.parts.reduce import Mean
from anypo.runs.build import build
from anypo.types import Trajectories
from anypo.views import View

METHODS = [n for n in anypo.methods() if not anypo.method(n).traits["replays"]]


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("llama")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "prompts.jsonl"
    path.write_text("".join(f'{{"prompt": "{"ab" * (i % 3 + 1)}", "answer": "a"}}\n' for i in range(20)))
    return path


def run_of(method, model, prompts, **more):
    if kind := tiny.denoiser(method):  # a policy that gives what the method reads
        plane = {"task": "multimodal", "policy": {"name": kind, "steps": 4}, "collect": {"requests": 2, "samples": 6}}
        return build(configuration.from_dict({"method": method, **plane, **more}))
    values = {
        "method": method,
        "task": {"name": f"jsonl:{prompts}", "reward": "regex:a", "max_new": 6},
        "policy": {"name": f"hf:{model}", "temperature": 0.8, "top_k": 20, "top_p": 0.95},
        "collect": {"requests": 4, "samples": 3},
    }
    return build(configuration.from_dict({**values, **more}))


def gathered(run):
    torch.manual_seed(0)
    rows = collect(run).rows
    score = torch.randn(
        rows.shape[0], generator=torch.Generator().manual_seed(1)
    )  # so that every method has a gradient
    return run.method.prepare(with_views(run, run.method, rows.but(score=score, scores=None, truncated=None)))


def grads(run, batch, micro):
    for p in run.policy.parameters():
        p.grad = None
    gradient(run.method, run.policy, batch, micro)
    return torch.cat([p.grad.flatten() for p in run.policy.parameters() if p.grad is not None])


@pytest.mark.parametrize("method", entries(METHODS))
def test_the_gradient_does_not_depend_on_micro_batches(method, model, prompts):
    run = run_of(method, model, prompts)
    batch = gathered(run)  # off the kinks that some surrogates have at ratio 1
    jitter = 0.1 * torch.randn(batch.shape, generator=torch.Generator().manual_seed(2))
    batch = batch.but(logp_old=None if batch.logp_old is None else batch.logp_old + jitter)
    whole, cut_up = grads(run, batch, 10**6), grads(run, batch, 8)
    assert whole.norm() > 0
    assert (whole - cut_up).norm() <= 5e-6 * whole.norm()


@pytest.mark.parametrize("method", entries(METHODS))
def test_before_the_first_update_every_ratio_is_one(method, model, prompts):
    run = run_of(method, model, prompts)
    batch = gathered(run)
    views = views_without_grad(run.policy, batch, run.method.live, 10**6)
    own = batch.valid if batch.expert_mask is None else batch.valid & ~batch.expert_mask[:, None]
    ratio = run.method.live.get("logp") == View("logp") or "logp_old" in run.method.views
    if ratio and batch.logp_old is not None:  # else no ratio is taken
        assert torch.allclose(views["logp"][own], batch.logp_old[own], atol=1e-4)
    _, metrics = run.method.loss(batch.put(views))
    if "ratio" in metrics and bool(own.any()):
        assert abs(float(metrics["ratio"]) - 1) < 1e-4
        assert float(metrics.get("clip_fraction", 0)) == 0


def test_cut_covers_every_row_once_and_respects_the_limit():
    mask = torch.arange(9) < torch.tensor([9, 1, 4, 2, 7, 3, 9, 0])[:, None]
    pieces = microbatches(Trajectories(mask=mask), 12)
    assert sorted(torch.cat(pieces).tolist()) == list(range(8))
    assert all(mask[p].sum(1).max() * len(p) <= 12 or len(p) == 1 for p in pieces)


def rows(n, groups=None):
    obs = torch.arange(n * 3).reshape(n, 3, 1)
    return Trajectories(mask=torch.ones(n, 3, dtype=torch.bool), trace={"obs": obs}, group=groups)


def test_minibatches_of_decisions_drop_nothing_and_are_balanced():
    m = anypo.method("ppo")
    parts = list(minibatches(flatten_decisions(rows(7), m, True, 5), m, 5, torch.Generator().manual_seed(0)))
    seen = torch.cat([p.trace["obs"].flatten() for p in parts])
    assert sorted(seen.tolist()) == list(range(21))
    assert {p.shape[1] for p in parts} == {1}
    assert max(p.shape[0] for p in parts) - min(p.shape[0] for p in parts) <= 1


def test_minibatches_keep_rows_whole_where_the_objective_needs_them():
    m = anypo.method("gspo")
    parts = list(minibatches(flatten_decisions(rows(7), m, True, 2), m, 2, torch.Generator().manual_seed(0)))
    assert all(p.shape[1] == 3 for p in parts)
    assert sorted(torch.cat([p.trace["obs"][:, 0, 0] for p in parts]).tolist()) == [3 * i for i in range(7)]


def test_minibatches_keep_groups_together_where_a_part_compares_them():
    class Contrast(Mean):
        level = "group"

    m = anypo.method("grpo", reduce=Contrast("row"))
    groups = torch.tensor([5, 2, 5, 9, 2, 9, 5])
    for part in minibatches(flatten_decisions(rows(7, groups), m, True, 2), m, 2, torch.Generator().manual_seed(0)):
        for g in part.group.unique():
            assert (part.group == g).sum() == (groups == g).sum()


@pytest.mark.parametrize("method", entries(["grpo", "dapo"]))
def test_a_missing_reward_leaves_other_groups_bit_identical(method):
    torch.manual_seed(0)
    n = 12
    old = -torch.rand(n, 5)
    batch = Trajectories(
        logp=old.clone(),
        logp_old=old,
        logp_ref=old,
        mask=torch.ones(n, 5),
        scores=torch.rand(n, 2),
        group=torch.arange(n) // 4,
    )
    hole = copy.deepcopy(batch)
    hole.scores[0, 1] = torch.nan
    m = anypo.method(method)
    one, two = m.prepare(batch).advantage, m.prepare(hole).advantage
    assert torch.equal(one[4:], two[4:])
    assert not torch.equal(one[:4], two[:4])
