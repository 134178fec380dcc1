"""Views, anchors, phases, demonstrations, continued rows and lookahead steps, with real policies and tasks."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from entries import entries

import anypo
from anypo import Trajectories
from anypo import config as configuration
from anypo.errors import RunError, UsageError
from anypo.evidence.experiments.assemble import assemble_in_memory
from anypo.evidence.toys import Codes, Sequences
from anypo.loops.collect import collect
from anypo.loops.learn import learn
from anypo.loops.views import minibatch_views, moments, with_views
from anypo.parts.credit import EntropyModulate
from anypo.parts.knobs import KlController, TrackedQuantile
from anypo.parts.ratio import InnerRatio
from anypo.parts.step import Adam
from anypo.parts.step.gradient import Gradient
from anypo.parts.terms import Perception
from anypo.policies.language.model import LanguageModel
from anypo.runs import folder
from anypo.runs.build import build
from anypo.runs.folder import create

METHODS = anypo.methods()


@pytest.fixture(scope="module")
def text(tmp_path_factory, tiny_model):
    """A tiny Llama of three blocks and prompts with answers."""
    folder = tmp_path_factory.mktemp("text")
    rows = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(3, 7) for b in range(3, 7)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return {
        "task": {"name": f"jsonl:{folder / 'sums.jsonl'}", "reward": r"regex:\d", "max_new": 6},
        "policy": {"name": f"hf:{tiny_model('llama', num_hidden_layers=3)}"},
        "collect": {"requests": 3, "samples": 4},
        "step": {"lr": 1e-3},
        "steps": 4,
    }


def text_run(text, method, folder=None, **more):
    values = {**text, "method": method, **more}
    return (
        build(configuration.from_dict(values))
        if folder is None
        else create(configuration.from_dict({**values, "out": str(folder)}))
    )


def codes_run(method, **more):
    settings = {"batches": 4, "lr": 0.1, "requests": 4, "samples": 4, "epochs": 1, "minibatch": 0}
    task = {k: more.pop(k) for k in list(more) if k not in settings}
    found = anypo.method(method) if isinstance(method, str) else method
    return assemble_in_memory(found, Codes(problems=8, **task), 0, **(settings | more))


# ---------------------------------------------------------------- views


def counted(run):
    """How often the policy is evaluated, by the block that is read, over one batch."""
    seen, real = Counter(), run.policy.evaluate

    def evaluate(b, want, *, layer=None):
        seen[layer] += 1
        return real(b, want, layer=layer)

    run.policy.evaluate = evaluate
    run.steps = 1
    learn(run)
    return seen


@pytest.mark.parametrize(
    "method", entries(["reinforce", "dr-grpo", "dapo", "gspo", "cispo", "rec", "gdpo", "mhpo", "real"])
)
def test_who_declares_no_view_pays_for_none(method):
    run = codes_run(method, length=2)
    assert not run.method.views
    assert counted(run) == {None: 2}  # the check of kept log-probs, and the update


@pytest.mark.parametrize(
    ("method", "more"),
    entries(
        [
            ("grpo", 1),
            ("papo", 2),
            ("remix", 2),
            ("oblr-po", 2),
            ("empg", 1),
            ("d3s", 1),
            ("grpo-vps", 1),
            ("capo-curvature", 0),
        ]
    ),
)
def test_every_declared_view_costs_one_pass(method, more):
    """The reference, the hidden input, the start of the update; oblr-po halves its minibatch beside its one view."""
    run = codes_run(method)
    epochs = run.method.stages["step"].epochs or 1
    assert counted(run) == {None: 1 + epochs + more}


def test_equal_views_run_once():
    method = anypo.method("papo", terms=[Perception(), Perception(coef=0.5)])
    assert counted(codes_run(method)) == {None: 3}


def test_the_explanation_names_the_passes():
    assert any("60% of the input hidden" in p for p in anypo.method("papo").forward_passes())
    assert any("read after block 5" in p for p in anypo.method("bupo").forward_passes())


@pytest.mark.entry("papo")
def test_a_hidden_input_changes_the_log_probs_and_everything_hidden_is_the_same_for_all(text):
    run = text_run(text, "papo")
    rows = collect(run).rows
    seen = with_views(run, run.method, rows)
    assert not torch.allclose(seen.extra["logp_ablated"][rows.valid], rows.logp_old[rows.valid], atol=1e-3)
    blind = run.policy.ablated(rows, 1.0, run.generator)
    assert (blind.trace["prompt"] == run.policy.eos[0]).all()


def test_log_probs_of_an_inner_block_are_those_of_its_residual_stream(text):
    run = text_run(text, "bupo")
    rows = collect(run).rows
    inner = run.policy.evaluate(rows, {"logp"}, layer=0)["logp"]
    prompt, n = rows.trace["prompt"][0], int(rows.trace["prompt_length"][0])
    ids = torch.cat([prompt[:n], rows.trace["completion"][0]])[None]
    states = run.policy.inner(input_ids=ids, output_hidden_states=True).hidden_states[1]
    logps = run.policy.inner.get_output_embeddings()(states[0, n - 1 : -1]).log_softmax(-1)
    wanted = logps.gather(1, rows.trace["completion"][0][:, None])[:, 0]
    torch.testing.assert_close(inner[0][rows.valid[0]], wanted[rows.valid[0]], rtol=1e-4, atol=1e-4)


def test_training_an_inner_block_leaves_the_blocks_above_it_alone(text):
    run = text_run(text, "bupo", ratio={"part": "inner-ratio", "layer": 0}, steps=2)
    before = [p.detach().clone() for p in run.policy.inner.base_model.layers[2].parameters()]
    below = [p.detach().clone() for p in run.policy.inner.base_model.layers[0].parameters()]
    learn(run)
    assert all(
        torch.equal(a, b) for a, b in zip(before, run.policy.inner.base_model.layers[2].parameters(), strict=True)
    )
    assert any(
        not torch.equal(a, b) for a, b in zip(below, run.policy.inner.base_model.layers[0].parameters(), strict=True)
    )


def test_the_layer_is_a_setting_of_the_ratio():
    assert anypo.method("bupo", ratio=InnerRatio(layer=2)).live["logp"].layer == 2


def test_progress_of_a_row_adds_up_to_what_it_gained_in_all():
    run = codes_run("grpo-vps")
    rows = collect(run).rows
    gains = with_views(run, run.method, rows).reward
    start = run.policy.progress(rows.rows(torch.arange(1)))  # repeatable
    torch.testing.assert_close(start, gains[:1])
    right = (rows.trace["action"] == rows.trace["answer"]).all(1)
    first = run.policy.evaluate(
        rows.but(trace={"obs": rows.trace["answer_obs"], "action": rows.trace["answer"]}), {"logp"}
    )
    belief = first["logp"].sum(1).exp()
    torch.testing.assert_close(gains.sum(1), right.float() - belief, rtol=1e-5, atol=1e-6)


def test_a_language_models_progress_adds_up_to_its_final_belief(text):
    from anypo.policies.language.probes import answer_probability

    run = text_run(text, "grpo-vps")
    rows = collect(run).rows
    part, policy = policy_segments(run.policy, rows), run.policy
    gains = policy.progress(rows)
    for k in range(4):
        same = [row[m] for row, m in zip(gains, part == k, strict=True)]
        assert all(len(x) == 0 or torch.equal(x, x[:1].expand_as(x)) for x in same)
    zero, whole = (answer_probability(policy, rows.trace, rows.lengths * k) for k in (0, 1))
    once = torch.stack(
        [sum(row[part[i] == k][0] for k in range(4) if (part[i] == k).any()) for i, row in enumerate(gains)]
    )
    full = torch.tensor([len(set(p[p < 4].tolist())) for p in part]) == 4
    torch.testing.assert_close(once[full], (whole - zero)[full], rtol=1e-4, atol=1e-6)


def policy_segments(policy, rows):
    from anypo.policies.language.probes import entropy_segments

    part = entropy_segments(policy.evaluate(rows, {"entropy"})["entropy"], rows.valid, 4)
    return part.masked_fill(~rows.valid, 9)


# ---------------------------------------------------------------- anchors, phases


def test_the_previous_policy_is_one_batch_old_and_the_reference_is_renewed_once():
    run = codes_run("remix", batches=52)
    seen = {}

    def watch(record):
        seen[record["batch"]] = (run.policy.logits.detach().clone(), run.anchors["ref"]["logits"].clone())

    learn(run, watch)
    assert torch.equal(seen[48][1], seen[0][0])  # the reference is the policy at the start
    assert torch.equal(seen[50][1], seen[49][0])  # until, before batch 50's update, it becomes the policy as it is
    assert torch.equal(seen[52][1], seen[49][0])


def test_a_moving_average_moves_by_its_decay():
    from anypo.policies.weights import ema, snapshot

    policy = Codes().policy((), 0)
    old = snapshot(policy)
    with torch.no_grad():
        policy.logits.add_(1.0)
    torch.testing.assert_close(ema(old, policy, 0.9)["logits"], old["logits"] + 0.1)


def test_phases_change_the_parts_in_force_and_begin_with_an_empty_store():
    run = codes_run("remix", batches=52)
    assert type(run.method.phases[0].stages["trust"]).__name__ == "RecentredClip"
    assert type(run.method.phases[1].stages["trust"]).__name__ == "Clip"
    rows = []
    learn(run, lambda record: rows.append(record.get("rows")))
    assert rows[1] == 16  # nothing to replay yet
    assert rows[20] > 16
    assert rows[52] == 16


def test_phases_stand_in_the_explanation_and_count_as_changes():
    assert "after 30 batches: log-ratio" in anypo.method("bupo").explain()
    assert "store" in anypo.method("remix").changed


# ---------------------------------------------------------------- demonstrations, hints, continued rows


def test_demonstrations_are_the_reference_solutions_and_share_their_prompts_group(text):
    run = text_run(text, "hpt")
    rows = collect(run).rows
    taught = rows.rows(rows.expert_mask)
    own = rows.rows(~rows.expert_mask)
    assert taught.shape[0] == 3
    assert sorted(taught.group.tolist()) == sorted(set(own.group.tolist()))
    said = [answer for _, answer in run.task.texts(run.policy, taught)]
    assert said == [run.task.records[s]["answer"] for s in taught.start.tolist()]
    assert all(taught.trace["completion"][i, n - 1] == run.policy.eos[0] for i, n in enumerate(taught.lengths.tolist()))


@pytest.mark.entry("hpt")
def test_samples_teach_where_one_succeeds_and_the_demonstration_where_all_fail():
    run = codes_run("hpt", length=2, quality=1.0)
    rows = collect(run).rows
    batch = run.method.prepare(with_views(run, run.method, rows))
    for group in rows.group.unique().tolist():
        mine = rows.group == group
        solved = bool((rows.score[mine & ~rows.expert_mask] > 0).any())
        assert bool(batch.valid[mine & ~rows.expert_mask].any()) == solved
        assert bool(batch.valid[mine & rows.expert_mask].any()) == (not solved)


@pytest.mark.entry("hpt")
def test_the_imitation_gradient_is_that_of_the_likelihood_of_the_gated_demonstrations():
    method = anypo.method("hpt")
    logp = torch.tensor([[-1.0, -2.0], [-1.0, -3.0], [-0.5, -0.7]], dtype=torch.float64, requires_grad=True)
    b = Trajectories(
        logp=logp, logp_old=logp.detach(), entropy=torch.zeros(3, 2, dtype=torch.float64), mask=torch.ones(3, 2, dtype=torch.bool),
        score=torch.tensor([0.0, 0.0, torch.nan], dtype=torch.float64), group=torch.zeros(3, dtype=torch.long),
        expert_mask=torch.tensor([False, False, True]),
    )  # fmt: skip
    loss, _ = method.loss(method.prepare(b))
    loss.backward()
    assert logp.grad.tolist() == [[0, 0], [0, 0], [-0.5, -0.5]]
    assert float(loss.detach()) == pytest.approx(0.6)


@pytest.mark.entry("chord")
def test_a_demonstration_weighs_most_where_the_policy_is_unsure():
    method = anypo.method("chord")
    p = torch.tensor([[0.05, 0.5, 0.95]], dtype=torch.float64)
    logp = p.log().requires_grad_()
    b = Trajectories(
        logp=logp, logp_old=logp.detach(), mask=torch.ones(1, 3, dtype=torch.bool), score=torch.zeros(1).double(),
        group=torch.zeros(1, dtype=torch.long), advantage=torch.zeros(1, 3).double(), expert_mask=torch.tensor([True]),
    )  # fmt: skip
    method.loss(b)[0].backward()
    torch.testing.assert_close(logp.grad, -0.1 * p * (1 - p) / 3)


@pytest.mark.entry("ghpo")
def test_hints_rise_only_where_every_sample_failed_and_are_not_trained():
    run = codes_run("ghpo", length=8, requests=8)
    rows = collect(run).rows
    hint = rows.extra["hint"]
    for group in rows.group.unique().tolist():
        mine = rows.group == group
        assert len(set(hint[mine].tolist())) == 1
        assert float(hint[mine][0]) == 0.75 or bool((rows.score[mine] > 0).any())
    late = rows.lengths[hint == 0.75]
    assert (late == 2).all()  # six of eight symbols were given


def test_a_text_hint_is_the_beginning_of_the_solution_and_part_of_the_prompt(text):
    run = text_run(text, "ghpo", collect={"part": "hint-ladder", "rungs": [0.5], "requests": 2, "samples": 2})
    rows = collect(run).rows
    for i, start in enumerate(rows.start.tolist()):
        record = run.task.records[start]
        given = run.policy.decode(rows.trace["prompt"][i, : rows.trace["prompt_length"][i]])
        answer = record["answer"]
        assert given.endswith(record["prompt"] + answer[: round(0.5 * len(answer))])


def test_unfinished_rows_go_on_with_the_log_probs_of_the_policy_that_wrote_them(text):
    run = text_run(text, "t-ppo", collect={"requests": 6, "samples": 1})
    first = collect(run).rows
    waiting = list(run.pool.unfinished)
    assert waiting
    assert (first.lengths <= 3).all()
    state = run.pool.state_dict()
    with torch.no_grad():
        for p in run.policy.parameters():
            p.mul_(1.01)
    second = collect(run).rows
    assert second.shape[0] == first.shape[0]
    for i, row in enumerate(waiting):
        n = int(row.lengths[0])
        assert torch.equal(second.trace["completion"][i, :n], row.trace["completion"][0, :n])
        torch.testing.assert_close(second.logp_old[i, :n], row.logp_old[0, :n])
        assert not second.fresh[i, :n].any()
        assert second.fresh[i, n : int(second.lengths[i])].all()
    run.pool.load_state_dict(state)
    assert [r.to_dict().keys() for r in run.pool.unfinished] == [r.to_dict().keys() for r in waiting]


@pytest.mark.entry("t-ppo")
def test_only_fresh_decisions_of_a_row_reach_the_policy_and_only_finished_rows_the_critic():
    method = anypo.method("t-ppo")
    leaf = torch.full((2, 3), -1.0, dtype=torch.float64)
    logp, value = leaf.clone().requires_grad_(), (0 * leaf).requires_grad_()
    b = Trajectories(
        logp=logp, logp_old=leaf, value=value, mask=torch.ones(2, 3, dtype=torch.bool), score=torch.tensor([1.0, 0.0]).double(),
        done=torch.tensor([True, False]), bootstrap=torch.zeros(2).double(),
        fresh=torch.tensor([[False, False, True], [True, True, True]]),
    )  # fmt: skip
    prepared = method.prepare(b)
    prepared.advantage.fill_(1.0)
    method.loss(prepared)[0].backward()
    assert (logp.grad[0, :2] == 0).all()
    assert logp.grad[0, 2] != 0
    assert (logp.grad[1] != 0).all()
    assert (value.grad[0] != 0).all()
    assert (value.grad[1] == 0).all()


# ---------------------------------------------------------------- steps


def quadratic(step, batches=30):
    """Maximise -1/2 x'Hx with exact gradients through a step recipe; yields (stepper, x, exact gradient at x)."""
    h = torch.diag(torch.tensor([1.0, 3.0, 0.2], dtype=torch.float64))
    x = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
    stepper = step.bind([{"params": [x]}])
    for _ in range(batches):
        with stepper.lookahead():

            def closure():
                loss = 0.5 * x @ h @ x
                loss.backward()
                return {"loss": loss.detach()}

            at = stepper.here[0].clone() if hasattr(stepper, "here") else x.detach().clone()
            stepper.update(closure)
        yield stepper, at, -(h @ at)


@pytest.mark.parametrize("eta", [0.1, 0.5, 0.9])
def test_transported_momentum_is_the_exact_gradient_of_a_quadratic(eta):
    from anypo.parts.step import Transport

    for stepper, _, truth in quadratic(Transport(lr=0.05, eta=eta)):
        torch.testing.assert_close(stepper.direction[0], truth, rtol=1e-9, atol=1e-9)


def test_the_evaluated_policy_is_not_the_one_that_samples():
    run = codes_run("n-pg-igt", batches=6, length=1)
    learn(run)
    here = run.policy.logits.detach().clone()
    with run.stepper.lookahead():
        assert not torch.equal(run.policy.logits.detach(), here)
    assert torch.equal(run.policy.logits.detach(), here)


def test_a_noisy_gradient_shortens_the_step_and_a_clean_one_does_not():
    from anypo.parts.step import SnrAdam

    x = torch.nn.Parameter(torch.zeros(50))
    g = torch.Generator().manual_seed(0)
    rates = {}
    for noise in (0.0, 10.0):
        stepper = SnrAdam(lr=0.1).bind([{"params": [x]}])

        def closure(noise=noise):
            loss = (x * (1 + noise * torch.randn(50, generator=g))).sum()
            loss.backward()
            return {"loss": loss.detach()}

        for _ in range(20):
            rates[noise] = stepper.update(closure, closure)["lr"]
    assert rates[0.0] == pytest.approx(0.1)
    assert rates[10.0] < 0.05


@pytest.mark.parametrize("adam", [False, True])
def test_step_products_of_a_decision_are_those_of_its_own_gradient_step(adam):
    """v.Gh and u'(diag pi - pi pi')u against a step that the optimizer really takes with this decision's gradient alone."""
    toy = Sequences(symbols=4)
    run = assemble_in_memory(
        anypo.method("capo-curvature", step=Adam(warmup=0) if adam else Gradient()),
        toy, 0, batches=1, lr=0.01, requests=2, samples=4, epochs=1, minibatch=0,
    )  # fmt: skip
    rows = collect(run).rows
    rows = rows.but(advantage=torch.randn(rows.shape, generator=torch.Generator().manual_seed(3)))
    found = run.policy.step_products(rows, moments(run))
    for i in range(4):
        policy = toy.policy((), 0)
        logp = policy.evaluate(rows.rows(torch.tensor([i])), {"logp"})["logp"][0, 1]
        optimizer = (
            torch.optim.AdamW([policy.logits], 1.0, weight_decay=0) if adam else torch.optim.SGD([policy.logits], 1.0)
        )
        (-rows.advantage[i, 1] * logp).backward()
        before = policy.logits.detach().clone()
        optimizer.step()
        state = rows.trace["obs"][i, 1]
        u = (policy.logits.detach() - before)[state]
        p = before[state].softmax(0)
        v = torch.nn.functional.one_hot(rows.trace["action"][i, 1], 4) - p
        torch.testing.assert_close(found["step_along"][i, 1], v @ u, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found["step_spread"][i, 1], (p * u**2).sum() - (p @ u) ** 2, rtol=1e-4, atol=1e-6)


@pytest.mark.entry("capo-curvature")
def test_decisions_whose_step_is_too_large_leave_the_minibatch():
    run = codes_run("capo-curvature")
    rows = collect(run).rows
    ready = run.method.prepare(rows).but(logp=rows.logp_old, advantage=torch.ones_like(rows.logp_old))
    ready = minibatch_views(run, run.method, ready)
    kept = []
    for lr in (1e-4, 9.0):
        _, metrics = run.method.loss(ready.put({"lr": torch.full((rows.shape[0],), lr)}))
        kept.append(float(metrics["denominator"]))
    assert kept[0] == float(rows.valid.sum())
    assert kept[1] < kept[0]


def test_a_gradient_that_overflows_is_no_gradient_that_moved_nothing(tmp_path):
    run = build(configuration.from_dict({"method": "reinforce", "task": "bandit", "steps": 2}))
    real = run.task.rollout

    def rollout(*arguments):
        rows, metrics = real(*arguments)
        return rows.but(score=rows.score * 1e38, scores=None), metrics

    run.task.rollout = rollout
    with pytest.raises(RunError, match="the last 2 of the run's 2 updates were not finite"):
        learn(run)


def test_a_folder_is_a_run_only_once_everything_it_needs_is_there(tmp_path, monkeypatch):
    order = []
    real = folder.write_text
    monkeypatch.setattr(folder, "write_text", lambda path, content: (order.append(path.name), real(path, content)))
    create(configuration.from_dict({"method": "grpo", "task": "bandit", "out": str(tmp_path / "r")}))
    assert order[-1] == "config.yaml"
    assert (tmp_path / "r" / "anchor-ref.safetensors").exists()


# ---------------------------------------------------------------- knobs


def test_tracked_quantiles_find_those_of_a_normal_distribution():
    low, high = TrackedQuantile(0.2, rate=0.02, bundle=1), TrackedQuantile(0.8, rate=0.02, bundle=1)
    g = torch.Generator().manual_seed(0)
    tail = []
    for k in range(3000):
        b = Trajectories(
            mask=torch.ones(64, 1, dtype=torch.bool), score=torch.randn(64, generator=g), group=torch.zeros(64).long()
        )
        low.update({}, 0.0, b), high.update({}, 0.0, b)
        tail += [(float(low), float(high))] if k > 1000 else []
    assert torch.tensor(tail).mean(0).tolist() == pytest.approx([-0.8416, 0.8416], abs=0.05)


def test_the_controllers_threshold_stays_within_its_bounds():
    knob = KlController()
    g = torch.Generator().manual_seed(0)
    assert float(knob) == pytest.approx(0.45)
    for k in range(200):
        score = torch.full((4,), 3 * torch.rand((), generator=g).item() - 1 + 0.01 * k)
        knob.update({"kl_ref": 0.5}, 0.0, Trajectories(mask=torch.ones(4, 1, dtype=torch.bool), score=score))
        assert 0.1 <= float(knob) <= 0.6
    assert knob.average == pytest.approx(0.5, abs=1e-6)


def test_entropy_modulation_has_mean_zero_over_steps_and_is_off_at_zero():
    b = Trajectories(
        mask=torch.ones(3, 4, dtype=torch.bool), advantage=torch.tensor([[1.0], [-1.0], [0.5]]).expand(3, 4).double(),
        entropy=torch.rand(3, 4, generator=torch.Generator().manual_seed(0)).double(), segment=torch.arange(4).expand(3, 4) // 2,
    )  # fmt: skip
    found = EntropyModulate()(b).advantage
    assert float(found[:, ::2].mean()) == pytest.approx(0, abs=1e-12)
    off = EntropyModulate(k=0.0, zeta=0.0)(b).advantage
    torch.testing.assert_close(off, b.advantage - b.advantage.mean())


def test_several_value_heads_are_saved_and_loaded(tmp_path, text):
    policy = LanguageModel.load(text["policy"]["name"].removeprefix("hf:"), value=("value", "value_b"))
    policy.save(tmp_path / "m")
    again = LanguageModel.load(tmp_path / "m")
    assert again.heads == ("value", "value_b")
    assert torch.equal(again.value_head.weight, policy.value_head.weight)
    assert not torch.equal(policy.value_head.weight[0], policy.value_head.weight[1])


SAMPLING = [n for n in METHODS if not anypo.method(n).traits["replays"]]


@pytest.mark.parametrize(
    ("method", "critic", "changes"),
    entries([("sac", {"gamma": 0.9}, True), ("dqn", {"next": "double"}, True), ("td3", {"tau": 0.1}, False)]),
)
def test_changes_of_a_value_function_are_proven_on_a_probe_batch(method, critic, changes):
    from anypo.runs.preflight import notes

    task = "gym:CartPole-v1" if method == "dqn" else "gym:Pendulum-v1"
    found = " ".join(notes(build(configuration.from_dict({"method": method, "task": task, "critic": critic}))))
    assert ("changes the gradient by" in found) == changes
    assert ("changes nothing" in found) != changes


@pytest.mark.parametrize(
    "method", entries(n for n in SAMPLING if not hasattr(anypo.method(n).stages["trust"], "per_group"))
)
def test_replacing_a_stage_of_any_method_is_proven_on_a_probe_batch(method):
    from anypo.runs.preflight import notes

    values = {"method": method, "task": "bandit", "policy": "table", "reduce": {"part": "mean", "over": "sum"}}
    found = " ".join(notes(build(configuration.from_dict(values))))
    assert "reduce: mean" in found or anypo.method(method).texts()["reduce"] == ["mean(over=sum)"]


def test_a_number_per_group_is_refused_by_a_mean_over_decisions_in_one_sentence():
    with pytest.raises(UsageError, match="gives one number per group"):
        anypo.method("real", reduce="mean")
