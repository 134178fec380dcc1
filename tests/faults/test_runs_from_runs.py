"""A saved model loads again, a run starts from another one, and the cache of base models may be unwritable."""

import json
import os

import pytest
import torch
from killed import Command

from anypo import config as configuration
from anypo.errors import UsageError
from anypo.loops.learn import learn
from anypo.policies.language.model import LanguageModel
from anypo.policies.language.tiny import cache_folder
from anypo.policies.weights import trainable_state
from anypo.report.console import finish
from anypo.runs.build import build
from anypo.runs.checkpoint import newest
from anypo.runs.folder import continue_run, create, reopen

SMALL = {"collect": {"requests": 2, "samples": 2}, "steps": 1}


def start(folder, **values):
    return create(configuration.from_dict({**values, "out": str(folder)}))


def trained(folder, **values):
    run = start(folder, **values)
    learn(run)
    finish(run)
    return run


@pytest.fixture
def task(tmp_path):
    (tmp_path / "p.jsonl").write_text("".join(f'{{"prompt": "the {i}"}}\n' for i in range(6)))
    return {"name": f"jsonl:{tmp_path / 'p.jsonl'}", "reward": "regex:a", "max_new": 3}


@pytest.fixture
def pairs(tmp_path):
    rows = [{"prompt": f"say {i}:", "chosen": f"a{i}a", "rejected": f"b{i}"} for i in range(12)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"pairs:{tmp_path / 'd.jsonl'}"


@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_the_model_of_a_dpo_run_is_trained_further_by_grpo(tmp_path, task, pairs, tiny_model, lora):
    policy = {"name": f"hf:{tiny_model('llama')}", "lora": lora}
    first = trained(tmp_path / "dpo", method="dpo", task=pairs, policy=policy, steps=2, collect={"requests": 4})
    again = LanguageModel.load(tmp_path / "dpo" / "model")
    ids = torch.tensor([[8, 9, 10]])
    with torch.no_grad():
        torch.testing.assert_close(again.model(ids).logits, first.policy.model(ids).logits)
    command = [
        "train", "grpo", "--task", task["name"], "--reward", "regex:a", "--task.max_new", 3, "--steps", 1,
        "--policy", "hf:dpo/model", "--collect.requests", 2, "--collect.samples", 2, "--out", "grpo",
    ]  # fmt: skip
    code, out, errors = Command(tmp_path, *command).end()
    assert (code, errors) == (0, "")
    assert out[-1].startswith("grpo  accuracy")
    weights = tmp_path / "dpo" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    code, _, errors = Command(tmp_path, *command[:-1], "again").end()
    assert code == 2
    assert "model.safetensors is damaged" in errors


@pytest.mark.parametrize(
    ("learner", "values"),
    [
        ("ppo", {"task": "gym:CartPole-v1", "steps": 512, "collect": {"requests": 2}, "episodes": 1}),
        ("sac", {"task": "gym:Pendulum-v1", "steps": 60, "policy": {"hidden": [4]}, "episodes": 1}),
        ("ppo", {"task": "bandit", "steps": 3}),
    ],
)
def test_a_control_run_starts_from_another_run(tmp_path, learner, values):
    first = trained(tmp_path / "a", method=learner, **values)
    second = build(configuration.from_dict({**values, "method": learner, "policy": f"run:{tmp_path / 'a'}"}))
    for name, tensor in trainable_state(first.policy).items():
        assert torch.equal(tensor, trainable_state(second.policy)[name]), name


def test_a_language_model_starts_from_another_run_and_outlives_it(tmp_path, task, pairs, tiny_model):
    first = trained(
        tmp_path / "dpo", method="dpo", task=pairs, policy=f"hf:{tiny_model('llama')}", steps=2, collect={"requests": 4}
    )
    second = start(tmp_path / "ppo", method="rlhf-ppo", task=task, policy=f"run:{tmp_path / 'dpo'}", **SMALL)
    theirs, ours = trainable_state(first.policy), trainable_state(second.policy)
    assert all(torch.equal(tensor, ours[name]) for name, tensor in theirs.items())
    assert all(torch.equal(second.anchors["ref"][name], tensor) for name, tensor in theirs.items())
    learn(second)
    os.rename(tmp_path / "dpo", tmp_path / "gone")
    assert reopen(tmp_path / "ppo").batch == continue_run(tmp_path / "ppo", 2).batch == 1


def test_a_run_starts_from_the_checkpoint_it_names(tmp_path):
    trained(tmp_path / "a", method="grpo", task="bandit", steps=3, checkpoint_every=1)
    name = newest(tmp_path / "a").parent / "batch-00000002"
    run = build(
        configuration.from_dict({"task": "bandit", "policy": {"name": f"run:{tmp_path / 'a'}", "checkpoint": 2}})
    )
    assert run.config.policy == {"name": "table", "start": str(name)}
    with pytest.raises(UsageError, match="keeps no checkpoint '7'"):
        build(configuration.from_dict({"task": "bandit", "policy": {"name": f"run:{tmp_path / 'a'}", "checkpoint": 7}}))


def test_weights_of_another_shape_are_refused_in_one_sentence(tmp_path):
    trained(tmp_path / "a", method="grpo", task="bandit", steps=1)
    other = {"task": {"name": "bandit", "arms": 3}, "policy": f"run:{tmp_path / 'a'}"}
    with pytest.raises(UsageError, match=r"do not fit this policy and task: logits differs"):
        build(configuration.from_dict(other))


@pytest.mark.parametrize(("name", "cache"), [("ANYPO_CACHE", "/dev/null/cache"), ("HOME", "/dev/null/.cache/anypo")])
def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch, name, cache):
    monkeypatch.delenv("ANYPO_CACHE", raising=False)
    monkeypatch.setenv(name, cache.removesuffix("/.cache/anypo"))
    with pytest.raises(UsageError, match=rf"^cannot write the cache {cache}: Not a directory; set ANYPO_CACHE"):
        start(tmp_path / "r", method="grpo", steps=1)
    assert not (tmp_path / "r").exists()


def test_a_user_without_a_home_needs_one_only_where_no_cache_is_named(tmp_path, monkeypatch):
    def nobody(number):
        raise KeyError(number)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", nobody)
    monkeypatch.delenv("ANYPO_CACHE", raising=False)
    with pytest.raises(UsageError, match=r"^there is no home folder for the cache; set ANYPO_CACHE"):
        cache_folder()
    monkeypatch.setenv("ANYPO_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
