"""Views: what parts may read of the policy, registered functionals, other inputs and temperatures, minibatch links."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

import anypo
from anypo import Trajectories
from anypo import config as configuration
from anypo.errors import UsageError
from anypo.evidence.experiments.assemble import assemble_in_memory
from anypo.evidence.toys import Codes
from anypo.loops.collect import collect
from anypo.loops.learn import learn
from anypo.loops.views import evaluate_views, with_views
from anypo.networks import outputs_of
from anypo.parts.ratio import LogRatio
from anypo.parts.reduce import Mean
from anypo.parts.trust import Unclipped
from anypo.policies import make_policy
from anypo.policies.language.model import LanguageModel
from anypo.policies.tabular import SoftmaxTable
from anypo.runs.build import build
from anypo.tasks import make_task
from anypo.views import FUNCTIONALS, Functional, Network, View, register_functionals

NETWORKS = {
    "q": Network("action", 2, spread=True, smooth=True),
    "v": Network("state", 2, smooth=True),
    "vae": Network("autoencoder"),
}


def box_policy(kind: str):
    task = make_task({"name": "gym:Pendulum-v1"}, seed=0)
    return make_policy({"name": kind}, task, value=(), seed=0, networks=NETWORKS)


# ---------------------------------------------------------------- functionals


@pytest.mark.parametrize("kind", ["mlp", "flow", "diffusion", "squashed", "deterministic", "gaussian", "experts"])
def test_what_a_policy_gives_has_the_registered_shape_and_sign(kind):
    policy = box_policy(kind)
    generator = torch.Generator().manual_seed(0)
    obs = torch.randn(3, 3, generator=generator)
    trace = policy.trace(obs, torch.rand(3, 1, generator=generator) - 0.5, generator)
    b = Trajectories(mask=torch.ones(trace["obs"].shape[:2], dtype=torch.bool), trace=trace)
    sizes = {"action": 1, "expert": 4, "input": 3, "member": 2}
    for name in policy.functionals - set(policy.heads):
        if name.endswith("_all"):  # of discrete choices
            continue
        given = {**FUNCTIONALS, **outputs_of(NETWORKS)}[name]
        value = policy.evaluate(b, {name})[name]
        assert value.shape == (*b.shape, *(sizes.get(d, d) for d in given.shape)), name
        assert not given.positive or bool((value > 0).all()), name


def test_a_functional_of_one_name_has_one_shape():
    register_functionals(Functional("logp"))
    with pytest.raises(ValueError, match="is registered as"):
        register_functionals(Functional("logp", ("action",)))


@pytest.mark.parametrize(
    ("learner", "field", "shape"),
    [("sac", "q_next", (2,)), ("cql", "q_at_here", (10, 2)), ("dqn", "q_next_all", (3, 1)), ("pmoe", "routing", (3,)),
     ("td3-bc", "taken", (2,)), ("iql", "v", ()), ("flow-grpo", "step_mean", (2,))],
)  # fmt: skip
def test_an_example_batch_has_the_shapes_that_follow_from_views_and_networks(learner, field, shape):
    assert anypo.method(learner).functional(field).shape == shape


# ---------------------------------------------------------------- minibatch links


@dataclass(frozen=True)
class PreferSure:
    """Halve the advantage where the policy is unsure by now; keeps what it saw."""

    seen: ClassVar[list] = []
    when: ClassVar[str] = "minibatch"
    reads = ("entropy", "logp_ref", "advantage")
    views: ClassVar[dict[str, View]] = {"entropy": View("entropy"), "logp_ref": View("logp", of="ref")}

    def __call__(self, b: Trajectories) -> Trajectories:
        self.seen.append(b)
        entropy = b.need("entropy")
        return b.but(advantage=torch.where(entropy > entropy.mean(), b.need("advantage") / 2, b.need("advantage")))


def test_a_minibatch_link_reads_any_view_of_the_policy_as_it_is_before_the_update():
    PreferSure.seen.clear()
    base = anypo.method("grpo", trust=Unclipped(), terms=[])
    method = base.but(credit=[*base.stages["credit"], PreferSure()])
    run = assemble_in_memory(
        method, Codes(problems=4, length=1), 0, batches=2, lr=0.5, requests=4, samples=4, epochs=3, minibatch=0
    )
    start = {k: v.clone() for k, v in run.policy.state_dict().items()}
    learn(run)
    assert len(PreferSure.seen) == 6
    first, later = PreferSure.seen[0], PreferSure.seen[2]
    policy = run.task.policy(method.heads, 0)
    policy.load_state_dict(start)
    expected = policy.evaluate(first, {"entropy", "logp"})
    torch.testing.assert_close(first.entropy, expected["entropy"].detach())
    torch.testing.assert_close(first.logp_ref, expected["logp"].detach())
    assert float((first.entropy - later.entropy).abs().max()) > 1e-3  # the policy has moved
    torch.testing.assert_close(first.logp_ref, later.logp_ref)  # the reference has not


# ---------------------------------------------------------------- other inputs of a row

ARMS, PLAIN_OBS, HINTED_OBS = 3, 0, 1


def all_sequences(policy: SoftmaxTable, obs: int):
    """Every answer of two arms, given a context for the first and, by the first arm, for the second decision; with log-probabilities."""
    arms = torch.tensor(list(itertools.product(range(ARMS), repeat=2)))
    context = torch.stack([torch.full((len(arms),), obs), 2 + 2 * arms[:, 0] + obs], 1)
    logp = policy.evaluate(
        Trajectories(mask=torch.ones_like(arms, dtype=torch.bool), trace={"obs": context, "action": arms}), {"logp"}
    )
    return arms, context, logp["logp"]


def test_rows_sampled_under_a_hint_and_evaluated_without_teach_the_policy_without_it():
    """sum_y p(y | hint) grad loss(y) = - sum_y p(y) A(y) grad log p(y), over all y."""
    policy = SoftmaxTable(2 + 2 * ARMS, ARMS, value=False).double()
    with torch.no_grad():
        policy.logits.copy_(
            torch.randn(policy.logits.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        )
    method = anypo.method(
        "grpo", ratio=LogRatio("row", "sum", input="plain"), trust=Unclipped(), reduce=Mean("row"), terms=[]
    )
    arms, hinted, logp_old = all_sequences(policy, HINTED_OBS)
    _, plain, logp = all_sequences(policy, PLAIN_OBS)
    advantage = torch.randn(len(arms), 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64).expand(-1, 2)
    rows = Trajectories(
        logp_old=logp_old.detach(), advantage=advantage, mask=torch.ones_like(arms, dtype=torch.bool),
        trace={"obs": hinted, "obs@plain": plain, "action": arms},
    )  # fmt: skip
    total = torch.zeros_like(policy.logits)
    for i, chance in enumerate(logp_old.sum(1).exp().tolist()):
        row = rows.rows(torch.tensor([i]))
        loss, _ = method.loss(row.put(evaluate_views(policy, row, method.live)))
        total += chance * torch.autograd.grad(loss, policy.logits)[0]
    objective = (logp.sum(1).exp() * advantage[:, 0]).sum()
    expected = -torch.autograd.grad(objective, policy.logits)[0]
    torch.testing.assert_close(total, expected, rtol=0, atol=1e-10)
    assert float(expected.abs().max()) > 0.01


def test_rows_that_were_not_hinted_have_their_own_input_as_plain_one():
    one = Trajectories(mask=torch.ones(1, 2, dtype=torch.bool), trace={"obs": torch.tensor([[1, 2]])})
    other = one.but(trace={"obs": torch.tensor([[3, 4]]), "obs@plain": torch.tensor([[5, 6]])})
    both = Trajectories.cat([one, other])
    assert both.trace["obs"].tolist() == [[1, 2], [3, 4]]
    assert both.trace["obs@plain"].tolist() == [[1, 2], [5, 6]]


def test_an_input_that_the_rows_do_not_have_is_one_sentence():
    policy = SoftmaxTable(2, 2, value=False)
    rows = Trajectories(
        mask=torch.ones(1, 1, dtype=torch.bool),
        trace={"obs": torch.zeros(1, 1).long(), "action": torch.zeros(1, 1).long()},
    )
    assert evaluate_views(policy, rows, {"logp": View(input="plain")})["logp"].shape == (1, 1)
    with pytest.raises(UsageError, match="under the input 'revealed'"):
        evaluate_views(policy, rows, {"logp": View(input="revealed")})
    with pytest.raises(UsageError, match="only language models offer"):
        evaluate_views(policy, rows, {"logp": View(temperature=0.5)})


@pytest.fixture(scope="module")
def text(tmp_path_factory, tiny_model):
    """A tiny Qwen and prompts with answers."""
    folder = tmp_path_factory.mktemp("text")
    rows = [{"prompt": f"{a}+{b}=", "answer": f"{a + b} in all"} for a in range(3, 7) for b in range(3, 7)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return {
        "method": "ghpo", "steps": 2, "step": {"lr": 1e-3},
        "task": {"name": f"jsonl:{folder / 'sums.jsonl'}", "reward": r"regex:\d", "max_new": 5},
        "policy": {"name": f"hf:{tiny_model('qwen2')}"},
        "collect": {"rungs": [0.0, 0.5], "requests": 4, "samples": 2},
        "ratio": {"input": "plain"},
    }  # fmt: skip


def test_a_language_model_is_evaluated_without_the_hint_that_it_was_shown(text):
    run = build(configuration.from_dict(text))
    rows = collect(run).rows
    hinted = rows.extra["hint"] > 0
    assert bool(hinted.any())
    live = evaluate_views(run.policy, rows, run.method.live)["logp"]
    for i, start in enumerate(rows.start.tolist()):
        prompt = run.policy.encode(run.task.records[start]["prompt"])
        n = int(rows.lengths[i])
        alone = run.policy.pack([prompt], [rows.trace["completion"][i, :n].tolist()])
        torch.testing.assert_close(
            live[i, :n], run.policy.evaluate(alone, {"logp"})["logp"][0, :n], rtol=1e-4, atol=1e-4
        )
    gap = (live.detach() - rows.logp_old).abs().amax(1)
    assert float(gap[~hinted].max() if (~hinted).any() else 0.0) < 1e-3
    assert float(gap[hinted].max()) > 1e-3
    record = learn(run)
    assert record["ratio_max"] > 1.0


def test_a_view_at_another_temperature_is_that_of_the_divided_logits(text):
    run = build(
        configuration.from_dict({**text, "method": "grpo", "collect": {"requests": 2, "samples": 2}, "ratio": {}})
    )
    policy: LanguageModel = run.policy
    rows = with_views(run, run.method, collect(run).rows)
    found = evaluate_views(
        policy, rows, {"cold": View(temperature=0.25), "cold_entropy": View("entropy", temperature=0.25)}
    )
    with torch.no_grad():
        policy.filter = replace(policy.filter, temperature=0.25)
        expected = policy.evaluate(rows, {"logp", "entropy"})
    torch.testing.assert_close(found["cold"], expected["logp"])
    torch.testing.assert_close(found["cold_entropy"], expected["entropy"])
