"""Supervised fine-tuning: known losses, transformers' own, and runs on prompts with answers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from killed import Command, train_and_kill

import anypo
from anypo.config import from_dict
from anypo.errors import UsageError
from anypo.evidence.experiments.assemble import assemble_in_memory
from anypo.evidence.toys import Codes
from anypo.loops.collect import collect
from anypo.loops.gradients import gradient
from anypo.loops.learn import learn
from anypo.policies.language.model import LanguageModel
from anypo.runs.folder import continue_run, create
from anypo.runs.run import Run
from anypo.tasks.text.pairs import Pairs, check_pair
from anypo.tasks.text.records import Record
from anypo.tasks.text.task import TextTask
from anypo.types import Request, Trajectories

pytestmark = pytest.mark.entry("sft")
ASK = [{"role": "user", "content": "what is 2+2?"}]
ROWS: list[dict[str, Any]] = [
    {"prompt": "the cat sat on", "answer": " the mat"},
    {"prompt": "the", "solution": " cat said that the hat was flat", "answer": "not this"},
    {"prompt": ASK, "answer": "4"},
    {"prompt": [{"role": "system", "content": "be kind"}, *ASK], "answer": "it is 4, I said"},
]
SUMS = [{"prompt": f"{i}+{j}=", "answer": str(i + j)} for i in range(5) for j in range(5)]


@pytest.fixture(params=["llama", "qwen2", "gpt2"])
def policy(request: pytest.FixtureRequest, tiny_model: Callable[..., Path]) -> LanguageModel:
    return LanguageModel.load(tiny_model(request.param))


def run_of(policy: LanguageModel) -> Run:
    task = TextTask("t", ROWS, ROWS, [])
    task.prepare(policy)
    settings = {"batches": 1, "lr": 1e-3, "requests": len(ROWS), "samples": 1, "epochs": 1, "minibatch": 0}
    return assemble_in_memory(anypo.method("sft"), task, 0, **settings, policy=policy)


def demonstrated(policy: LanguageModel) -> Trajectories:
    """The batch of the method, in the order of ROWS."""
    rows = collect(run_of(policy)).rows
    assert rows is not None
    return anypo.method("sft").prepare(rows.rows(rows.need("start").argsort()))


def texts(policy: LanguageModel, row: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Prompt and answer as token ids, written with transformers alone: chats by the template, which ends an answer with <|end|>;
    plain text is ended by </s>."""
    t, answer = policy.tokenizer, row.get("solution", row["answer"])
    if isinstance(row["prompt"], str):
        return t(row["prompt"])["input_ids"], t(answer)["input_ids"] + [t.eos_token_id]
    begun = t.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
    whole = t.apply_chat_template([*row["prompt"], {"role": "assistant", "content": answer}], tokenize=False)
    assert whole.startswith(begun)
    assert whole.endswith("<|end|>")
    return t(begun)["input_ids"], t(whole[len(begun) :])["input_ids"]


def test_the_loss_is_transformers_own_on_the_answers_tokens(policy: LanguageModel) -> None:
    rows = [texts(policy, row) for row in ROWS]
    width = max(len(p) + len(a) for p, a in rows)
    ids = torch.tensor([p + a + [0] * (width - len(p) - len(a)) for p, a in rows])
    labels = torch.tensor([[-100] * len(p) + a + [-100] * (width - len(p) - len(a)) for p, a in rows])
    theirs = policy.model(input_ids=ids, labels=labels).loss
    parameters = list(policy.model.parameters())
    wanted = torch.autograd.grad(theirs, parameters)

    method, batch = anypo.method("sft"), demonstrated(policy)
    for micro in (10_000, 8):
        metrics = gradient(method, policy, batch, micro)
        assert float(metrics["loss"]) == pytest.approx(float(theirs), rel=1e-5)
        for p, grad in zip(parameters, wanted, strict=True):
            torch.testing.assert_close(p.grad, grad, rtol=1e-3, atol=1e-5)
        policy.zero_grad()


def test_every_token_of_an_answer_counts_once_the_one_that_ends_it_too(policy: LanguageModel) -> None:
    batch = demonstrated(policy)
    assert batch.lengths.tolist() == [len(texts(policy, row)[1]) for row in ROWS]
    method = anypo.method("sft")
    logp = -torch.arange(1.0, 1 + math.prod(batch.shape)).reshape(batch.shape)
    loss, _ = method.loss(batch.but(logp=logp))
    counted = [-float(logp[i, t]) for i, n in enumerate(batch.lengths.tolist()) for t in range(n)]
    assert float(loss) == pytest.approx(sum(counted) / len(counted))


def test_the_held_out_measure_is_the_likelihood_of_a_token_of_the_solutions(policy: LanguageModel) -> None:
    task = TextTask("t", ROWS, ROWS, [])
    task.prepare(policy)
    total = count = 0.0
    for prompt, answer in (texts(policy, row) for row in ROWS):
        logp = policy.model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        total += float(logp.detach()[torch.arange(len(answer)), answer].sum())
        count += len(answer)
    measures = task.evaluate(policy, 0)
    assert task.metric == "log_likelihood"
    assert measures["log_likelihood"] == pytest.approx(total / count, rel=1e-5)
    assert measures["perplexity"] == pytest.approx(math.exp(-total / count), rel=1e-4)


def test_it_learns_the_demonstrations_with_their_mistakes() -> None:
    task = Codes(problems=12, length=3, quality=0.7, seed=3)
    run = assemble_in_memory(
        anypo.method("sft"), task, 0, batches=300, lr=0.1, requests=12, samples=1, epochs=1, minibatch=0
    )
    shown = task.demonstrate(run.policy, [Request(i) for i in range(12)]).trace["action"]
    right = float((shown == task.codes).all(1).float().mean())
    assert 0 < right < 1
    assert learn(run)["eval/success"] == pytest.approx(right, abs=0.02)


@pytest.mark.parametrize(("lora", "gain"), [(None, 2.0), ({"r": 4}, 0.1)])
def test_prompts_with_answers_train_full_weights_and_adapters_without_a_reward(
    lora: Any, gain: float, tmp_path: Path
) -> None:
    model = tiny.language_model(tmp_path / "lm", scale=0.02)
    run = anypo.train(
        "sft",
        task={"rows": SUMS, "heldout": 0.2},
        policy={"name": f"hf:{model}"} | ({} if lora is None else {"lora": lora}),
        steps=20,
        step={"lr": 2e-2},
        collect={"requests": 8},
        out=tmp_path / "r",
    )
    first, last = run.metrics[0]["eval/log_likelihood"], run.metrics[-1]["eval/log_likelihood"]
    assert last > first + gain
    assert run.evaluate()["log_likelihood"] == pytest.approx(last, abs=1e-6)
    assert len(run.sample("1+2=", max_new=3)) == 1


def test_the_command_line_trains_on_a_file_and_measures_accuracy_where_a_reward_is_given(tmp_path: Path) -> None:
    tiny.language_model(tmp_path / "lm", scale=0.02)
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SUMS))
    words = ["train", "sft", "--task", "jsonl:p.jsonl", "--policy", "hf:lm", "--policy.max_new", "3", "--steps", "1"]
    for more, says in ((["--out", "a"], "log_likelihood"), (["--out", "b", "--reward", "exact"], "accuracy")):
        code, lines, errors = Command(tmp_path, *words, *more).end()
        assert code == 0, errors
        assert f"{says} " in lines[-1]


def test_a_killed_run_ends_with_the_same_numbers(tmp_path: Path, tiny_model: Callable[..., Path]) -> None:
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SUMS))
    values = {
        "method": "sft",
        "task": {"name": f"jsonl:{tmp_path / 'p.jsonl'}"},
        "policy": {"name": f"hf:{tiny_model('llama')}", "lora": {"r": 4}},
        "steps": 12,
        "checkpoint_every": 1,
    }
    learn(create(from_dict(values | {"out": str(tmp_path / "through")})))
    train_and_kill(
        values | {"out": str(tmp_path / "killed")}, lambda out: (out / "checkpoints" / "batch-00000003").exists()
    )
    learn(continue_run(tmp_path / "killed"))
    through, killed = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("through", "killed"))
    assert len(through.splitlines()) == 13
    assert through == killed


def test_the_preferred_answers_of_preference_data_are_imitated(policy: LanguageModel) -> None:
    rows = [
        {"prompt": "the", "chosen": " cat sat", "rejected": " hat"},
        {"prompt": ASK, "chosen": "4", "rejected": "5"},
    ]
    task = Pairs("p", *[[check_pair(Record(row)) for row in rows] for _ in range(2)])
    assert task.recipe(anypo.method("sft").traits)["samples"] == 1
    task.prepare(policy)
    shown = task.demonstrate(policy, [Request(1), Request(0)])
    assert [answer for _, answer in task.texts(policy, shown)] == ["4", " cat sat"]
    assert "ranking_accuracy" in task.evaluate(policy, 0)


def test_what_cannot_be_imitated_is_one_sentence_before_the_first_batch(
    tmp_path: Path, tiny_model: Callable[..., Path]
) -> None:
    def start(rows: list[dict[str, Any]], method: str = "sft", kind: str = "jsonl", **task: Any) -> Any:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        values = {"task": {"name": f"{kind}:{path}", **task}, "policy": {"name": f"hf:{tiny_model('llama')}"}}
        return create(from_dict({"method": method, "steps": 1, **values}))

    with pytest.raises(UsageError, match=r"rows.jsonl line 2 has neither `solution` nor `answer`"):
        start([SUMS[0], {"prompt": "1+1="}])
    with pytest.raises(
        UsageError, match=r"line 1 has 4 tokens of prompt and \d+ of an answer, more than the context of 128"
    ):
        start([{"prompt": "1+1=", "answer": "7" * 200}, SUMS[0]])
    with pytest.raises(
        UsageError, match=r"has no reward: --reward .* only a method that imitates answers, such as sft"
    ):
        start(SUMS, "grpo")
    with pytest.raises(UsageError, match=r"line \d has a single marked one"):
        start([{"prompt": p, "completion": "a", "label": True} for p in "abc"], kind="pairs")


def test_no_row_is_compared_with_how_it_was_sampled(tiny_model: Callable[..., Path]) -> None:
    run = run_of(LanguageModel.load(tiny_model("llama")))
    batch = demonstrated(run.policy)
    assert batch.logp_old is None
    assert batch.score is None
    assert "mismatch" not in learn(run)
