"""Preference data: what is read, what is refused, and runs on it with a small model on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from entries import entries

import anypo
from anypo import config as configuration
from anypo.errors import UsageError
from anypo.loops.evaluate import held_out
from anypo.loops.learn import learn
from anypo.policies.language.model import LanguageModel
from anypo.runs.folder import create, reopen
from anypo.runs.run import Run
from anypo.tasks.text.pairs import Pairs, check_pair, load_pairs
from anypo.tasks.text.records import Record
from anypo.types import Request

CHAT = [{"role": "user", "content": "what is 2+2?"}]
ROOT = Path(__file__).parents[2]
OFFLINE = ("dpo", "ipo", "kto", "simpo", "slic", "orpo-odds", "rpo-sft", "cpo-contrastive", "copg", "cpl", "bt-rm")


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("qwen2", kind="char")


@pytest.fixture(scope="module")
def policy(model: Path) -> LanguageModel:
    return LanguageModel.load(model)


def rule(i: int) -> dict[str, Any]:
    """Answers with an `a` are preferred to those with a `b`."""
    return {"prompt": f"say {i}:", "chosen": f"a{i % 7}a", "rejected": f"b{i % 5}"}


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def run(folder: Path, data: Path, model: Path, method: str, **values: Any) -> Run:
    given = {
        "method": method, "task": {"name": f"pairs:{data}", **values.pop("task", {})}, "policy": f"hf:{model}", "steps": 8,
        "collect": {"requests": 16}, "step": {"lr": 3e-3}, "out": str(folder),
    }  # fmt: skip
    return create(configuration.from_dict(given | values))


# reading


def test_a_record_is_a_group_of_its_two_answers_with_marks(policy: LanguageModel) -> None:
    records = [check_pair(Record(rule(i))) for i in range(4)]
    task = Pairs("p", records[:3], records[3:])
    task.prepare(policy)
    b, metrics = task.rollout(policy, [Request(2, 8), Request(0)], 0)
    assert b.check() is b
    assert b.group.tolist() == [0, 0, 1, 1]
    assert b.extra["preferred"].tolist() == [1, 0, 1, 0]
    assert b.logp_old is None
    assert b.score is None
    assert task.texts(policy, b) == [("say 2:", "a2a"), ("say 2:", "b2"), ("say 0:", "a0a"), ("say 0:", "b0")]
    last = [row[n - 1] for row, n in zip(b.trace["completion"].tolist(), b.lengths.tolist(), strict=True)]
    assert last == [policy.end] * 4
    assert metrics == {"length": 3.5, "tokens": 14.0}


def test_chat_messages_give_the_answer_after_the_prompt() -> None:
    said = lambda text: [{"role": "assistant", "content": text}]  # noqa: E731
    short = check_pair(Record(prompt=CHAT, chosen=said("4"), rejected="5"))
    long = check_pair(Record(prompt=CHAT, chosen=CHAT + said("4"), rejected=CHAT + said("5")))
    text = check_pair(Record(prompt="what is 2+2?", chosen=CHAT + said("4"), rejected=said("5")))
    assert [(r["chosen"], r["rejected"]) for r in (short, long, text)] == [("4", "5")] * 3
    other = [{"role": "user", "content": "what is 3+3?"}]
    with pytest.raises(
        UsageError, match="the record has a `chosen` that is neither text nor one chat message after the prompt"
    ):
        check_pair(Record(prompt=CHAT, chosen=other + said("4"), rejected="5"))


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"prompt": "a", "chosen": "b"}', "has no `rejected`"),
        ('{"chosen": "b", "rejected": "c"}', "needs a `prompt`"),
        ('{"prompt": "a", "completion": "b", "label": "good"}', "the `label` 'good'; it must be true or false"),
        ('{"prompt": "a", "chosen": 3, "rejected": "c"}', "has a `chosen` that is neither text"),
        ('{"prompt": "a", "chosen', "is not JSON"),
        ("[1, 2]", "is a list"),
    ],
)
def test_a_malformed_line_is_one_sentence_with_file_and_line(line: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(rule(0)) + "\n\n" + line + "\n")
    with pytest.raises(UsageError) as caught:
        load_pairs(path)
    assert sentence in str(caught.value)
    assert str(caught.value).startswith(f"{path} line 3 ")
    assert "\n" not in str(caught.value)


def test_a_folder_of_datasets_gives_the_same_records(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list([rule(i) for i in range(6)])
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=data, test=data.select([0])).save_to_disk(tmp_path / "two")
    wanted = load_pairs(write(tmp_path / "p.jsonl", [rule(i) for i in range(6)]))
    assert load_pairs(tmp_path / "one") == load_pairs(tmp_path / "two") == wanted
    datasets.DatasetDict(other=data).save_to_disk(tmp_path / "three")
    with pytest.raises(UsageError, match="no split `train`, only other"):
        load_pairs(tmp_path / "three")
    with pytest.raises(UsageError, match="is no data set"):
        load_pairs(tmp_path)


def test_answers_beyond_the_context_are_named_or_cut(policy: LanguageModel, tmp_path: Path) -> None:
    records = load_pairs(write(tmp_path / "p.jsonl", [rule(0), rule(1) | {"chosen": "a" * 200}, rule(2)]))
    with pytest.raises(UsageError, match=r"line 2 has 6 tokens of prompt and 201 of an answer, more than the context"):
        Pairs("p", records, records).prepare(policy)
    task = Pairs("p", records, records, max_new=10)
    task.prepare(policy)
    b, _ = task.rollout(policy, [Request(1)], 0)
    assert b.lengths.tolist() == [10, 3]
    assert b.trace["completion"][0, -1] != policy.end


def test_scores_of_the_file_are_the_score(policy: LanguageModel) -> None:
    records = [check_pair(Record(rule(i) | {"score_chosen": 2 + i, "score_rejected": 0.5})) for i in range(3)]
    task = Pairs("p", records, records)
    task.prepare(policy)
    b, _ = task.rollout(policy, [Request(1), Request(2)], 0)
    assert b.score.tolist() == [3.0, 0.5, 4.0, 0.5]


# measuring


def test_held_out_measures_are_those_of_the_log_ratios_to_the_start(model: Path) -> None:
    policy = LanguageModel.load(model)
    records = [check_pair(Record(rule(i))) for i in range(40)]
    task = Pairs("p", records[:1], records)
    task.prepare(policy)
    assert task.evaluate(policy, 0)["ranking_accuracy"] == 0.5
    before = [logp(policy, r, k) for r in records for k in ("chosen", "rejected")]
    with torch.no_grad():
        policy.inner.get_output_embeddings().weight.mul_(0.9)
    after = [logp(policy, r, k) for r in records for k in ("chosen", "rejected")]
    gap = [(after[i] - before[i]) - (after[i + 1] - before[i + 1]) for i in range(0, 80, 2)]
    found = task.evaluate(policy, 0)
    assert found["margin"] == pytest.approx(sum(gap) / 40, abs=1e-4)
    assert found["ranking_accuracy"] == pytest.approx(sum(g > 0 for g in gap) / 40)
    assert found["logp_chosen"] == pytest.approx(sum(after[::2]) / 40, abs=1e-4)
    few = task.evaluate(policy, 0, episodes=10)
    assert few["margin"] == pytest.approx(sum(gap[:10]) / 10, abs=1e-4)


def logp(policy: LanguageModel, record: dict[str, Any], key: str) -> float:
    """log pi of an answer by transformers alone."""
    prompt = policy.encode(record["prompt"])
    ids = torch.tensor([[*prompt, *policy.encode_hint(record[key]), policy.end]])
    with torch.no_grad():
        logps = policy.model(ids).logits.log_softmax(-1)[0]
    return float(sum(logps[t - 1, ids[0, t]] for t in range(len(prompt), ids.shape[1])))


def test_mismatched_answers_are_those_of_the_next_group(policy: LanguageModel) -> None:
    records = [check_pair(Record(rule(i))) for i in range(3)]
    task = Pairs("p", records, records)
    task.prepare(policy)
    b, _ = task.rollout(policy, [Request(0), Request(1), Request(2)], 0)
    found = policy.mismatched(b)
    for row, (i, j) in enumerate([(0, 1), (0, 1), (1, 2), (1, 2), (2, 0), (2, 0)]):
        wanted = logp(policy, {"prompt": records[i]["prompt"], "chosen": records[j]["chosen"]}, "chosen")
        assert float(found[row]) == pytest.approx(wanted, abs=1e-4)
    alone = policy.mismatched(b.rows(torch.tensor([0, 1])))
    assert float(alone[1]) == pytest.approx(logp(policy, records[0], "chosen"), abs=1e-4)


def test_rewards_judge_greedy_answers_of_held_out_prompts(tmp_path: Path, model: Path) -> None:
    data = write(tmp_path / "p.jsonl", [rule(i) for i in range(30)])
    made = run(tmp_path / "r", data, model, "dpo", task={"reward": "regex:a", "heldout": 0.3}, steps=1)
    found = held_out(made)
    task = made.task
    prompts = [made.policy.encode(r["prompt"]) for r in task.heldout]
    texts = [
        made.policy.decode(row[:n])
        for done in [made.policy.sample(prompts, None, max_new=task.max_new, greedy=True)]
        for row, n in zip(done.ids.tolist(), done.lengths.tolist(), strict=True)
    ]
    assert found["eval/accuracy"] == pytest.approx(sum("a" in t for t in texts) / 9)
    assert len(texts) == 9
    assert {"eval/ranking_accuracy", "eval/margin", "eval/reward", "eval/length", "eval/logp_chosen"} <= set(found)


# training


@pytest.mark.parametrize("name", entries(OFFLINE))
def test_training_on_pairs_learns_to_rank_held_out_answers(name: str, tmp_path: Path, model: Path) -> None:
    data = write(tmp_path / "p.jsonl", [rule(i) for i in range(60)])
    settings = {"trust": {"beta": 10.0}} if name in ("kto", "rpo-sft") else {}
    last = learn(run(tmp_path / "r", data, model, name, task={"heldout": 0.2}, **settings))
    records = [json.loads(x) for x in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert records[0]["eval/ranking_accuracy"] == 0.5
    assert last["eval/ranking_accuracy"] >= 0.9
    assert last["eval/margin"] > 0
    documented = (ROOT / "docs" / "metrics.md").read_text()
    assert [k for k in last if f"`{k}`" not in documented] == []
    assert "mismatch" not in last
    if name == "kto":
        assert records[1]["kl_shift"] == 0.0  # the policy is its reference
        assert any(r["kl_shift"] > 0 for r in records[2:])


def test_marks_on_single_answers_train_kto_and_are_refused_by_dpo(tmp_path: Path, model: Path) -> None:
    rows = [
        {"prompt": r["prompt"], "completion": r[key], "label": key == "chosen"}
        for r in map(rule, range(40))
        for key in ("chosen", "rejected")
    ]
    data = write(tmp_path / "p.jsonl", rows)
    last = learn(run(tmp_path / "r", data, model, "kto", trust={"beta": 10.0}, task={"heldout": 0.2}))
    assert last["eval/ranking_accuracy"] >= 0.9
    with pytest.raises(UsageError, match="holds single marked answers; use a method that takes marks, such as kto"):
        run(tmp_path / "s", data, model, "dpo")


def test_a_method_that_needs_samples_says_so(tmp_path: Path, model: Path) -> None:
    data = write(tmp_path / "p.jsonl", [rule(i) for i in range(10)])
    with pytest.raises(UsageError, match=r"grpo: the credit stage .* needs the field 'score', which the"):
        learn(run(tmp_path / "r", data, model, "grpo"))


def test_a_resumed_run_measures_from_the_same_start(tmp_path: Path, model: Path) -> None:
    data = write(tmp_path / "p.jsonl", [rule(i) for i in range(30)])
    last = learn(run(tmp_path / "r", data, model, "dpo", steps=3))
    again = held_out(reopen(tmp_path / "r"))
    assert again == {k: v for k, v in last.items() if k.startswith("eval/")}


def test_the_gradient_of_a_run_is_that_of_the_formula(model: Path) -> None:
    """DPO's loss on a batch of data, by transformers alone in float64."""
    policy = LanguageModel.load(model, dtype="float64")
    records = [check_pair(Record(rule(i))) for i in range(5)]
    task = Pairs("p", records, records)
    task.prepare(policy)
    b, _ = task.rollout(policy, [Request(i) for i in range(5)], 0)
    ref = policy.evaluate(b, {"logp"})["logp"].detach()
    with torch.no_grad():
        policy.inner.get_output_embeddings().weight.mul_(0.9)
    found, _ = anypo.method("dpo").loss(b.but(logp_ref=ref, logp=policy.evaluate(b, {"logp"})["logp"]))
    gaps = [logp(policy, r, "chosen") - logp(policy, r, "rejected") for r in records]
    before = [float(ref[2 * i].sum() - ref[2 * i + 1].sum()) for i in range(5)]
    u = torch.tensor([x - y for x, y in zip(gaps, before, strict=True)], dtype=torch.float64)
    assert float(found.detach()) == pytest.approx(float(torch.nn.functional.softplus(-0.1 * u).mean()), rel=1e-9)


# reward models


@pytest.fixture(scope="module")
def reward_models(tmp_path_factory: pytest.TempPathFactory, model: Path) -> list[Path]:
    """Two reward models that have learned the rule from the command line's own steps."""
    from anypo.report.console import finish

    folder = tmp_path_factory.mktemp("rm")
    data = write(folder / "p.jsonl", [rule(i) for i in range(60)])
    for seed in (0, 1):
        made = run(folder / f"rm{seed}", data, model, "bt-rm", seed=seed, steps=8)
        learn(made)
        finish(made)
    return [folder / "rm0", folder / "rm1"]


def test_a_saved_reward_model_scores_texts_as_it_did_in_its_run(reward_models: list[Path]) -> None:
    from anypo.tasks.text.rewards import make_reward

    made = reopen(reward_models[0])
    reward = make_reward(f"model:{reward_models[0]}")
    assert reward.name == "rm0"
    records = made.task.heldout
    prompts = [r["prompt"] for r in records]
    found = [reward(prompts, [r[key] for r in records], [[]] * len(records), {}) for key in ("chosen", "rejected")]
    gap = [x - y for x, y in zip(*found, strict=True)]
    measured = held_out(made)
    assert measured["eval/margin"] == pytest.approx(sum(gap) / len(gap), abs=1e-4)
    assert measured["eval/ranking_accuracy"] == pytest.approx(sum(g > 0 for g in gap) / len(gap))


def test_several_reward_models_are_channels_of_an_ensemble(
    tmp_path: Path, model: Path, reward_models: list[Path]
) -> None:
    data = write(tmp_path / "prompts.jsonl", [{"prompt": f"say {i}:"} for i in range(20)])
    config = {
        "method": "rm-ensemble", "task": {"name": f"jsonl:{data}", "reward": [f"model:{m}" for m in reward_models], "max_new": 4},
        "policy": f"hf:{model}", "steps": 1, "collect": {"requests": 4, "samples": 4}, "out": str(tmp_path / "r"),
    }  # fmt: skip
    made = create(configuration.from_dict(config))
    assert made.task.channels == ("rm0", "rm1")
    b, _ = made.task.rollout(made.policy, [Request(0, 3)], 0)
    spread = (b.scores[:, 0] - b.scores[:, 1]).square() / 2
    torch.testing.assert_close(made.method.prepare(b).score, b.scores.mean(1) - 0.1 * spread)
    assert learn(made)["batch"] == 1


def test_what_is_no_reward_model_is_refused(tmp_path: Path, model: Path) -> None:
    from anypo.tasks.text.rewards import make_reward

    with pytest.raises(UsageError, match=r"holds no finished reward model; a reward model is written model:RUN"):
        make_reward(f"model:{tmp_path}")
    (tmp_path / "model").symlink_to(model)
    with pytest.raises(UsageError, match="has no value head, so it scores nothing; train it with bt-rm"):
        make_reward(f"model:{tmp_path}")
