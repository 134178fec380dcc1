"""Runs: the same numbers again, from a seed, a file, a checkpoint; and refusals of what is damaged."""

import json
import warnings
from unittest import mock

import pytest
import tiny
import torch
from entries import entries

import anypo
from anypo import config as configuration
from anypo.errors import RunError, UsageError
from anypo.loops.diagnostics import warn_of_mismatch
from anypo.loops.evaluate import held_out
from anypo.loops.finite import PATIENCE
from anypo.loops.learn import learn
from anypo.loops.precision import precision
from anypo.parts.knobs import Linear
from anypo.plain_yaml import load_yaml
from anypo.policies.language.filter import Filter
from anypo.policies.language.model import LanguageModel
from anypo.policies.weights import snapshot, trainable_state
from anypo.runs.checkpoint import newest
from anypo.runs.folder import continue_run, create, reopen

BANDIT = {"method": "grpo", "task": "bandit", "steps": 6, "checkpoint_every": 2, "evaluate_every": 3}


def start(folder, **values):
    return create(configuration.from_dict({**BANDIT, "out": str(folder), **values}))


def lines(folder, name="metrics.jsonl"):
    return (folder / name).read_text().splitlines()


def weights(run):
    return torch.cat([p.detach().flatten() for p in run.policy.parameters()])


@pytest.fixture(scope="module")
def text(tmp_path_factory, tiny_model):
    """A tiny Qwen2 model, chat prompts and a user's reward function."""
    folder = tmp_path_factory.mktemp("text")
    rows = [{"prompt": [{"role": "user", "content": f"{i}+{i}"}], "answer": str(2 * i)} for i in range(9)]
    (folder / "chat.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "reward.py").write_text(
        "def vowels(prompts, completions, answer, **kwargs):\n"
        "    return [sum(c in 'aeiou' for c in x[0]['content']) / 1.5 for x in completions]\n"
    )
    return {
        "task": {"name": f"jsonl:{folder / 'chat.jsonl'}", "reward": f"{folder / 'reward.py'}:vowels", "max_new": 6},
        "policy": {"name": f"hf:{tiny_model('qwen2')}", "stop": ["e", "t"]},
        "collect": {"requests": 4, "samples": 3},
        "step": {"lr": 1e-3},
    }


def test_equal_seeds_give_equal_numbers_and_others_do_not(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        learn(start(tmp_path / name, seed=seed))
    assert lines(tmp_path / "a") == lines(tmp_path / "b") != lines(tmp_path / "c")


def test_evaluating_more_often_does_not_disturb_training(tmp_path):
    learn(start(tmp_path / "a", evaluate_every=1))
    learn(start(tmp_path / "b", evaluate_every=6))
    drop = lambda line: {k: v for k, v in json.loads(line).items() if not k.startswith("eval/")}  # noqa: E731
    assert [drop(x) for x in lines(tmp_path / "a")] == [drop(x) for x in lines(tmp_path / "b")]


@pytest.mark.parametrize("task", ["bandit", "gym:CartPole-v1", "tensor:CartPole-v1"])
def test_evaluation_after_reopening_equals_the_last_one_before(tmp_path, task):
    steps = 3 if task == "bandit" else 4096
    run = start(tmp_path / "r", task=task, method="ppo", steps=steps, evaluate_every=None, episodes=4)
    last = learn(run)
    assert held_out(reopen(tmp_path / "r")) == {k: v for k, v in last.items() if k.startswith("eval/")}


def test_a_half_written_checkpoint_is_ignored(tmp_path):
    learn(start(tmp_path / "r"))
    partial = tmp_path / "r" / "checkpoints" / ".batch-00000099"
    partial.mkdir()
    (partial / "policy.safetensors").write_bytes(b"half")
    assert reopen(tmp_path / "r").batch == 6


@pytest.mark.parametrize("name", ["policy.safetensors", "state.pt", "manifest.json"])
def test_a_truncated_checkpoint_is_refused_by_name(tmp_path, name):
    learn(start(tmp_path / "r"))
    path = newest(tmp_path / "r") / name
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UsageError, match="batch-00000006"):
        reopen(tmp_path / "r")


def test_a_checkpoint_of_another_method_is_refused(tmp_path):
    learn(start(tmp_path / "r"))
    values = load_yaml(tmp_path / "r" / "config.yaml")
    (tmp_path / "r" / "config.yaml").write_text(json.dumps({**values, "method": "gspo"}))
    with pytest.raises(UsageError, match=r"'grpo'.*'gspo'"):
        reopen(tmp_path / "r")


def test_opening_where_nothing_is_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="holds no run"):
        reopen(tmp_path)
    start(tmp_path / "r")
    with pytest.raises(UsageError, match="no checkpoint yet"):
        reopen(tmp_path / "r")
    assert continue_run(tmp_path / "r").batch == 0


def test_a_second_run_does_not_overwrite_the_first(tmp_path):
    start(tmp_path / "r")
    with pytest.raises(UsageError, match="already holds a run"):
        start(tmp_path / "r")


def test_config_file_of_a_run_reproduces_it(tmp_path):
    learn(
        start(
            tmp_path / "a",
            trust={"low": {"knob": "linear", "start": 0.3, "end": 0.1}},
            step={"epochs": 2, "minibatch": 16},
        )
    )
    values = load_yaml(tmp_path / "a" / "config.yaml")
    learn(create(configuration.from_dict({**values, "out": str(tmp_path / "b")})))
    assert lines(tmp_path / "a") == lines(tmp_path / "b")


def test_numbers_that_are_not_finite_skip_the_step_then_stop_the_run(tmp_path):
    run = start(tmp_path / "r", step={"epochs": PATIENCE + 1})
    learn_one = run.task.rollout

    def broken(policy, requests, seed):
        rows, metrics = learn_one(policy, requests, seed)
        return rows.but(logp_old=torch.full_like(rows.logp_old, torch.nan)), metrics

    run.task.rollout = broken
    before = weights(run)
    with pytest.raises(RunError, match="the batch's logp_old is the first bad tensor"):
        learn(run)
    assert torch.equal(before, weights(run))
    assert list((tmp_path / "r" / "nonfinite").iterdir())
    assert weights(reopen(tmp_path / "r")).isfinite().all()


def test_the_run_stops_once_the_target_is_reached(tmp_path):
    record = learn(start(tmp_path / "r", steps=200, target=0.7, evaluate_every=1))
    assert record["batch"] < 200
    assert record["eval/reward"] >= 0.7
    assert reopen(tmp_path / "r").batch == record["batch"]


def test_knobs_move_once_a_batch_and_the_learning_rate_follows_its_schedule(tmp_path):
    run = start(tmp_path / "r", step={"lr": 0.1, "schedule": "linear", "epochs": 2})
    knob = Linear(0.3, 0.1)
    run.method = run.method.but(trust=type(run.method.stages["trust"])(low=knob))
    learn(run)
    assert float(knob) == pytest.approx(0.1)
    rates = [json.loads(x)["lr"] for x in lines(tmp_path / "r")[1:]]
    assert rates == pytest.approx([0.1 * (1 - i / 6) for i in range(6)])


def test_a_learning_rate_of_zero_changes_nothing_and_is_allowed(tmp_path):
    run = start(tmp_path / "r", step={"lr": 0.0})
    before = weights(run)
    learn(run)
    assert torch.equal(before, weights(run))


def needs_text(name):
    """Whether a method learns from demonstrations, reads inner layers or measures progress towards a known answer."""
    method = anypo.method(name)
    views = (method.live | method.views).values()
    taught = any(getattr(part, "rows", "own") == "expert" for part in method.parts("collect", "terms"))
    return taught or any(v.layer is not None or v.functional == "progress" for v in views)


@pytest.mark.parametrize("method", entries(n for n in anypo.methods() if not anypo.method(n).traits["replays"]))
@pytest.mark.parametrize("task", ["bandit", "gym:CartPole-v1", "text"])
def test_every_method_trains_every_kind_of_task(method, task, tmp_path, text):
    values = text if task == "text" else {"task": task}
    if task != "text" and needs_text(method):
        with pytest.raises(UsageError, match=r"demonstrations|inner layer|known answer"):
            learn(start(tmp_path / "r", **{"method": method, "steps": 2, **values}))
        return
    if tiny.denoiser(method):
        with pytest.raises(UsageError, match=r"cannot give|demonstrations|needs numbers as actions"):
            learn(start(tmp_path / "r", **{"method": method, "steps": 2, **values}))
        return
    run = start(tmp_path / "r", **{"method": method, "steps": 300 if task.startswith("gym") else 2, **values})
    before = weights(run)
    record = learn(run)
    assert not torch.equal(before, weights(run)) or record["lr"] == 0, "a rate the method chose, from noise"
    assert record["loss"] == record["loss"]
    assert record["skipped"] == 0


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("lora", [None, {"r": 4}])
def test_a_language_model_trains_on_chat_prompts_and_loads_with_plain_transformers(
    architecture, lora, tmp_path, text, tiny_model
):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    policy = {"name": f"hf:{tiny_model(architecture)}"} | ({"lora": lora} if lora else {})
    run = start(tmp_path / "r", **{**text, "policy": policy, "steps": 3})
    frozen = {n: p.detach().clone() for n, p in run.policy.named_parameters() if not p.requires_grad}
    learn(run)
    assert bool(frozen) == bool(lora)
    assert all(torch.equal(p, frozen[n]) for n, p in run.policy.named_parameters() if n in frozen)
    assert json.loads(lines(tmp_path / "r")[1])["kl_ref"] == 0
    run.policy.save(tmp_path / "saved")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    ids = torch.tensor([AutoTokenizer.from_pretrained(tmp_path / "saved")("the cat")["input_ids"]])
    with torch.no_grad():
        assert torch.allclose(plain(ids).logits, run.policy.inner(ids).logits, atol=1e-5)


def test_the_reference_of_a_policy_started_from_an_adapter_is_that_policy(tmp_path, text):
    first = start(tmp_path / "a", **{**text, "policy": {**text["policy"], "lora": {"r": 4}}, "steps": 3})
    learn(first)
    first.policy.save(tmp_path / "saved")
    again = start(tmp_path / "b", **{**text, "policy": f"hf:{tmp_path / 'saved' / 'adapter'}", "steps": 1})
    learn(again)
    assert json.loads(lines(tmp_path / "b")[1])["kl_ref"] == 0
    base = LanguageModel.load(text["policy"]["name"][3:], lora={"r": 4})
    assert any(
        not torch.equal(a, b) for a, b in zip(snapshot(base).values(), again.anchors["ref"].values(), strict=True)
    )


def test_anchors_hold_only_what_training_changes(tmp_path, text):
    run = start(tmp_path / "a", **{**text, "policy": {**text["policy"], "lora": {"r": 4}}})
    assert all("lora" in n for n, t in trainable_state(run.policy).items() if isinstance(t, torch.nn.Parameter))
    assert sum(t.numel() for t in run.anchors["ref"].values()) < sum(p.numel() for p in run.policy.parameters()) / 2


def test_a_policy_evaluated_under_another_temperature_than_it_sampled_is_reported(tmp_path, text):
    run = start(tmp_path / "r", **{**text, "steps": 1})
    rollout = run.task.rollout

    def hotter(policy, requests, seed):
        rows, metrics = rollout(policy, requests, seed)
        policy.filter = Filter(temperature=3.0)
        return rows, metrics

    run.task.rollout = hotter
    with pytest.warns(UserWarning, match="likely causes: another temperature"):
        record = learn(run)
    assert record["mismatch"] > 0.02


def test_sampling_and_evaluation_agree_up_to_rounding(tmp_path, text):
    assert learn(start(tmp_path / "r", **{**text, "steps": 2, "autocast": "off"}))["mismatch"] < 1e-4


def test_rounding_to_bfloat16_is_no_mistake_of_the_policy(tmp_path, text):
    run = start(tmp_path / "r", **{**text, "steps": 1, "autocast": "on"})
    assert precision(run) == torch.bfloat16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert learn(run)["mismatch"] < 0.05
        warn_of_mismatch(0.04, precision(run))
    with pytest.warns(UserWarning, match="disagree by 0.04 nats"):
        warn_of_mismatch(0.04, torch.float32)


@pytest.mark.parametrize("micro", [1, 10**6])
def test_the_disagreement_is_measured_once_before_the_first_of_many_updates(tmp_path, text, micro):
    """From its loss, not by a pass of its own."""
    many = {"steps": 2, "micro": micro, "step": {"lr": 0.1, "epochs": 2, "minibatch": 6}, "autocast": "off"}
    run = start(tmp_path / "r", **{**text, **many})
    with mock.patch("anypo.loops.diagnostics.sampled_mismatch", side_effect=AssertionError):
        record = learn(run)
    assert record["updates"] == 4
    assert record["kl_old"] > 1e-3
    assert 0 < record["mismatch"] < 1e-4
