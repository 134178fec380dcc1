from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from anypo.errors import RunError, UsageError
from anypo.policies.language.model import LanguageModel
from anypo.tasks.text import jsonl, reasoning
from anypo.tasks.text.records import load_records
from anypo.tasks.text.task import TextTask, combine
from anypo.types import Request

CHAT = [{"role": "user", "content": "what is 2+2?"}]
RECORDS: list[dict[str, Any]] = [{"prompt": "the cat", "answer": "sat"}, {"prompt": CHAT, "answer": "4", "level": 2}]


@pytest.fixture(scope="module")
def policy(tiny_model: Callable[..., Path]) -> LanguageModel:
    made = LanguageModel.load(tiny_model("llama"), max_new=8)
    made.eos = tuple(range(2, made.vocabulary, 8))  # completions of different lengths
    return made


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def task(*rewards: Any, records: list | None = None, heldout: list | None = None, **more: Any) -> TextTask:
    return TextTask("t", records or RECORDS, heldout or RECORDS, rewards or ["exact"], max_new=8, **more)


def size(completions: list[Any], **_: Any) -> list[float]:
    return [float(len(c if isinstance(c, str) else c[0]["content"])) for c in completions]


# rolling out


def test_rows_follow_their_requests_and_can_be_evaluated_again(policy: LanguageModel):
    b, metrics = task(size).rollout(policy, [Request(1, 3), Request(0, 2), Request(1, 1)], 0)
    assert b.check() is b
    assert b.group.tolist() == [0, 0, 0, 1, 1, 2]
    assert b.trace["prompt_length"].tolist() == [len(policy.encode(RECORDS[i]["prompt"])) for i in (1, 1, 1, 0, 0, 1)]
    torch.testing.assert_close(policy.evaluate(b, ["logp"])["logp"], b.logp_old, rtol=0, atol=1e-4)
    assert b.scores.shape == (6, 1)
    assert torch.equal(b.score, b.scores[:, 0])
    texts = task().texts(policy, b)
    assert b.score.tolist() == [len(completion) for _, completion in texts]
    assert texts[3][0] == "the cat"
    assert metrics["reward"] == metrics["reward/size"] == pytest.approx(float(b.score.mean()))
    assert metrics["tokens"] == float(b.mask.sum())
    assert metrics["length"] == pytest.approx(float(b.lengths.float().mean()))


def test_rewards_see_prompts_completions_ids_and_columns_of_their_rows(policy: LanguageModel):
    seen: dict[str, list] = {}

    def spy(**given: Any) -> list[float]:
        seen.update(given)
        return [0.0] * len(given["prompts"])

    b, _ = task(spy).rollout(policy, [Request(0, 2), Request(1, 1)], 0)
    assert seen["prompts"] == ["the cat", "the cat", CHAT]
    assert seen["answer"] == ["sat", "sat", "4"]
    assert seen["level"] == [None, None, 2]
    assert [len(ids) for ids in seen["completion_ids"]] == b.lengths.tolist()
    assert seen["completion_ids"][0] == b.trace["completion"][0, : b.lengths[0]].tolist()
    assert isinstance(seen["completions"][0], str)
    assert [m["role"] for m in seen["completions"][2]] == ["assistant"]
    task(spy).rollout(policy, [Request(0, 1)], 0)
    assert seen["level"] == [None], "a column of the data set is there even where no row of the batch has it"


def test_cut_and_empty_completions_are_counted(policy: LanguageModel):
    b, metrics = task(size).rollout(policy, [Request(0, 64)], 0)
    assert b.budget == 8
    assert 0 < metrics["truncated"] < 1
    assert metrics["truncated"] == pytest.approx(float(b.truncated.float().mean()))
    cut = b.truncated.nonzero()[:, 0]
    assert (b.lengths[cut] == 8).all()
    texts = [completion for _, completion in task().texts(policy, b)]
    assert metrics["empty"] == pytest.approx(sum(not t.strip() for t in texts) / 64)
    assert b.lengths.min() >= 1, "an empty completion still decided to end"


def test_a_request_may_bring_its_horizon_and_a_hint(policy: LanguageModel):
    b, _ = task(size).rollout(policy, [Request(0, 2, horizon=3, hint=" sat"), Request(0, 1, horizon=3)], 0)
    assert b.budget == 3
    assert b.mask.shape[1] <= 3
    hinted = b.trace["prompt"][0, : b.trace["prompt_length"][0]].tolist()
    assert policy.decode(hinted) == "the cat sat"
    assert hinted[: b.trace["prompt_length"][2]] == policy.encode("the cat")
    with pytest.raises(UsageError, match="share their horizon"):
        task(size).rollout(policy, [Request(0, 2, horizon=3), Request(0, 1)], 0)
    with pytest.raises(UsageError, match="starts every request at a record"):
        task(size).rollout(policy, [Request(None)], 0)


def test_equal_seeds_give_equal_rollouts(policy: LanguageModel):
    one, two, three = (task(size).rollout(policy, [Request(0, 4)], s)[0] for s in (0, 0, 1))
    assert torch.equal(one.logp_old, two.logp_old)
    assert not torch.equal(one.score, three.score) or one.logp_old.shape != three.logp_old.shape


# several rewards


def test_the_score_is_the_weighted_sum_of_the_channels_that_are_there():
    nan = math.nan
    scores = torch.tensor([[1.0, 2.0], [nan, 2.0], [nan, nan]])
    got = combine(scores, torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(got, torch.tensor([2.0, 1.0, nan]), equal_nan=True)


def test_one_missing_reward_leaves_every_other_row_as_it_was(policy: LanguageModel):
    def half(completions: list[Any], **_: Any) -> list[float | None]:
        return [0.1 * x for x in size(completions)]

    def gap(completions: list[Any], **_: Any) -> list[float | None]:
        return [None, *half(completions)[1:]]

    requests = [Request(0, 3), Request(1, 3)]
    whole, _ = task(size, half, weights=[1.0, 0.3]).rollout(policy, requests, 0)
    holed, metrics = task(size, gap, weights=[1.0, 0.3]).rollout(policy, requests, 0)
    assert torch.equal(whole.score[1:], holed.score[1:])
    assert torch.equal(whole.scores[1:], holed.scores[1:])
    assert holed.score[0] == whole.scores[0, 0], "the channel that is there, alone"
    assert holed.scores[0, 1].isnan()
    assert metrics["reward_missing"] == pytest.approx(1 / 12)
    assert metrics["reward/gap"] == pytest.approx(float(holed.scores[1:, 1].mean()))


def test_a_failing_reward_ends_the_run_naming_itself_and_the_prompt(policy: LanguageModel):
    def bad(completions: list[Any], **_: Any) -> list[float]:
        return [1.0, math.nan]

    with pytest.raises(RunError, match=r"'bad' returned nan for row 1 \(prompt 'the cat'\)"):
        task(bad).rollout(policy, [Request(0, 2)], 0)


# held-out


def test_evaluation_is_greedy_and_counts_first_rewards_above_one_half(policy: LanguageModel):
    done = policy.sample([policy.encode(r["prompt"]) for r in RECORDS], None, greedy=True)
    first = policy.decode(done.ids[0, : done.lengths[0]])
    heldout = [RECORDS[0] | {"answer": first}, RECORDS[1] | {"answer": "something else"}]
    t = task("exact", size, heldout=heldout, weights=[1.0, 0.0])
    one, two = t.evaluate(policy, 1), t.evaluate(policy, 2)
    assert one == two
    assert one["accuracy"] == 0.5
    assert one["reward"] == 0.5
    assert one["length"] == pytest.approx(float(done.lengths.float().mean()))
    assert t.evaluate(policy, 0, episodes=1)["accuracy"] == 1.0


# what is refused before a run


def test_a_prompt_that_leaves_no_room_is_refused_naming_its_line(policy: LanguageModel, tmp_path: Path):
    path = tmp_path / "data.jsonl"
    path.write_text(
        "\n".join(json.dumps({"prompt": p}) for p in ("a", "b", "", "xyz" * 60)).replace('{"prompt": ""}', "")
    )
    long = TextTask("t", load_records(path), RECORDS, [size], max_new=8)
    with pytest.raises(UsageError, match=r"data\.jsonl line 4 has \d+ tokens, .*context of 128"):
        long.prepare(policy)
    task().prepare(policy)


def test_max_new_is_the_policys_where_the_task_has_none(policy: LanguageModel):
    t = TextTask("t", RECORDS, RECORDS, [size])
    t.prepare(policy)
    assert t.max_new == t.recipe({})["horizon"] == policy.max_new


def test_tasks_that_cannot_work_are_refused():
    for wrong, says in [
        (lambda: TextTask("t", [], RECORDS, ["exact"]), "no training"),
        (lambda: TextTask("t", RECORDS, [], ["exact"]), "no held-out"),
        (lambda: TextTask("t", RECORDS, RECORDS, []).recipe({}), "no reward: --reward"),
        (
            lambda: TextTask("t", [{"prompt": "a"}], RECORDS, []).recipe({"imitates": True}),
            "record 0 of the records has neither",
        ),
        (lambda: task("exact", "exact"), "same name"),
        (lambda: task("exact", size, weights=[1.0]), "one weight each"),
        (lambda: task(records=[{"prompt": "a"}]), "record 0 of the records has no 'answer'"),
        (lambda: task(size, heldout=[{"prompt": 3}]), "held-out record 0 of the records has no usable prompt"),
    ]:
        with pytest.raises(UsageError, match=says):
            wrong()


def test_the_recipe_groups_samples_where_the_method_compares_them():
    assert {task().recipe({"grouped": True})[k] for k in ("requests", "samples")} == {16, 8}
    assert task().recipe({})["samples"] == 1
    assert task().recipe({"lora": True})["lr"] > task().recipe({})["lr"]


# JSONL


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    return path


def test_a_jsonl_file_keeps_every_column_and_knows_its_lines(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", {"prompt": "a", "x": 1}, "", {"prompt": CHAT, "x": [2]})
    records = load_records(path)
    assert records == [{"prompt": "a", "x": 1}, {"prompt": CHAT, "x": [2]}]
    assert [r.where for r in records] == [f"{path} line 1", f"{path} line 3"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"prompt": "b"', "line 2 is not JSON"),
        ("\x80", "line 2 is not JSON"),
        ("[1]", "line 2 is a list"),
        ({"question": "b"}, "line 2 needs a `prompt`"),
        ({"prompt": ""}, "line 2 needs a `prompt`"),
        ({"prompt": [{"role": "user"}]}, "line 2 needs a `prompt`"),
        ({"prompt": []}, "line 2 needs a `prompt`"),
    ],
)
def test_a_malformed_line_is_named(line: Any, says: str, tmp_path: Path):
    path = tmp_path / "a.jsonl"
    text = line if isinstance(line, str) else json.dumps(line)
    path.write_bytes(b'{"prompt": "a"}\n' + text.encode("latin-1"))
    with pytest.raises(UsageError, match=says) as error:
        load_records(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_files_without_records_are_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="no file"):
        load_records(tmp_path / "absent.jsonl")
    with pytest.raises(UsageError, match="is empty"):
        load_records(write(tmp_path / "a.jsonl", "", ""))


def test_the_split_depends_on_the_prompts_alone_and_keeps_equal_prompts_together(tmp_path: Path):
    lines = [{"prompt": f"p{min(i, 50)}", "i": i} for i in range(100)]
    t = jsonl.make_jsonl_task(write(tmp_path / "a.jsonl", *lines), [size], heldout=0.2)
    again = jsonl.make_jsonl_task(write(tmp_path / "b.jsonl", *lines[::-1]), [size], heldout=0.2)
    held = {r["prompt"] for r in t.heldout}
    assert len(held) == 10
    assert held == {r["prompt"] for r in again.heldout}
    assert not held & {r["prompt"] for r in t.records}
    assert len(t.records) + len(t.heldout) == 100


def test_held_out_records_may_come_from_a_file(tmp_path: Path):
    path, other = write(tmp_path / "a.jsonl", {"prompt": "a"}), write(tmp_path / "b.jsonl", {"prompt": "b"})
    assert jsonl.make_jsonl_task(path, [size], heldout=other).heldout == [{"prompt": "b"}]
    with pytest.raises(UsageError, match="single prompt"):
        jsonl.make_jsonl_task(path, [size])
    with pytest.raises(UsageError, match="between 0 and 1"):
        jsonl.make_jsonl_task(path, [size], heldout=2.0)


def test_a_missing_answer_is_refused_naming_file_and_line(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", {"prompt": "a", "answer": 1}, {"prompt": "b"}, {"prompt": "c", "answer": 1})
    with pytest.raises(UsageError, match=r"a\.jsonl line 2 has no 'answer', which the reward 'exact' needs"):
        jsonl.make_jsonl_task(path, ["exact"])


def test_failing_rewards_of_a_jsonl_task_may_be_dropped_and_are_counted(policy: LanguageModel, tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "def mine(completions, prompts):\n    return [1.0 if prompts[0] == 'a' else 1 / 0]\n"
    )
    path = write(tmp_path / "a.jsonl", *({"prompt": p} for p in "abc"))
    spec = f"{tmp_path / 'mine.py'}:mine"
    t = jsonl.make_jsonl_task(path, [spec], heldout=path, max_new=4, timeout=5.0, on_error="drop")
    b, metrics = t.rollout(policy, [Request(i, 2) for i in range(3)], 0)
    torch.testing.assert_close(b.score, torch.tensor([1.0, 1.0] + [math.nan] * 4), equal_nan=True)
    assert metrics["reward_failed/mine"] == 4
    assert metrics["reward"] == 1
    with pytest.raises(RunError, match="'mine' raised ZeroDivisionError"):
        jsonl.make_jsonl_task(path, [spec], heldout=path, max_new=4).rollout(policy, [Request(1, 2)], 0)


# reasoning-gym


def test_reasoning_gym_problems_are_judged_by_their_own_verifier(policy: LanguageModel):
    t = reasoning.make_reasoning_task("leg_counting", size=5, heldout=0.6, max_new=4)
    assert (len(t.records), len(t.heldout)) == (5, 3)
    assert not {r["prompt"] for r in t.records} & {r["prompt"] for r in t.heldout}
    (verify,) = t.rewards
    entry = t.records[0]["entry"]
    texts = [entry["answer"], f"I think <answer> {entry['answer']} </answer>", "nothing"]
    assert verify(["p"] * 3, texts, [[0]] * 3, {"entry": [entry] * 3}) == [1, 1, 0]
    assert [r["prompt"] for r in reasoning.make_reasoning_task("leg_counting", size=5, heldout=0.6).records] == [
        r["prompt"] for r in t.records
    ]
    with pytest.raises(UsageError, match="exceeds the context"):
        t.prepare(policy)


def test_an_unknown_reasoning_gym_name_is_refused_naming_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'leg_counting'"):
        reasoning.make_reasoning_task("leg_counter")
