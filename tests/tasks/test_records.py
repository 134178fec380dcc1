"""Rows from files, folders and lists; system messages; what is held out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

import anypo
from anypo.cli.app import read_config
from anypo.errors import UsageError
from anypo.policies.language.model import LanguageModel
from anypo.tasks import make_task
from anypo.tasks.text.jsonl import make_jsonl_task
from anypo.tasks.text.pairs import load_pairs, make_pairs_task
from anypo.tasks.text.records import load_records
from anypo.tasks.text.task import as_prompt

ASK = [{"role": "user", "content": "what is 2+2?"}]
ROWS: list[dict[str, Any]] = [
    {"prompt": [{"role": "user", "content": f"{i}+1="}], "answer": str(i + 1), "level": i} for i in range(10)
]
MIXED = [{"prompt": ASK, "answer": "4", "level": 3}, {"prompt": [{"role": "user", "content": "hi", "name": "ann"}]}]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def every_form(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The same rows in each form that is read."""
    data = Dataset.from_list(rows)
    data.to_parquet(folder / "rows.parquet")
    data.save_to_disk(folder / "one")
    DatasetDict(train=data, test=data.select([0])).save_to_disk(folder / "two")
    return {
        "jsonl": write(folder / "rows.jsonl", rows),
        "parquet": folder / "rows.parquet",
        "folder": folder / "one",
        "folder of splits": folder / "two",
        "list": rows,
        "Dataset": data,
        "DatasetDict": DatasetDict(train=data),
    }


@pytest.mark.parametrize("rows", [ROWS, MIXED], ids=["full", "columns that some rows lack"])
def test_every_form_of_a_data_set_gives_the_same_records(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    for form, source in every_form(tmp_path, rows).items():
        assert load_records(source) == rows, form


def test_every_form_gives_the_same_tasks_and_the_same_held_out_rows(tmp_path: Path) -> None:
    reward = ["exact"]
    wanted = make_jsonl_task(ROWS, reward)
    assert len(wanted.heldout) == 1
    for form, source in every_form(tmp_path, ROWS).items():
        task = make_jsonl_task(source, reward)
        assert (task.records, task.heldout) == (wanted.records, wanted.heldout), form
        assert make_jsonl_task(ROWS[:3], reward, heldout=source).heldout == ROWS, form


def test_preference_data_are_read_from_every_form(tmp_path: Path) -> None:
    rows = [{"prompt": f"say {i}", "chosen": "a", "rejected": "b"} for i in range(4)]
    for form, source in every_form(tmp_path, rows).items():
        assert load_pairs(source) == rows, form
    task = make_task({"name": f"pairs:{tmp_path / 'rows.parquet'}", "heldout": str(tmp_path / "two")}, 0)
    assert task.heldout == rows


def test_a_row_that_is_refused_is_named_in_every_form(tmp_path: Path) -> None:
    rows = [{"prompt": "a"}, {"prompt": ""}]
    names = {
        "jsonl": r"rows\.jsonl line 2 ",
        "parquet": r"rows\.parquet row 1 ",
        "folder": "one row 1 ",
        "list": "row 1 ",
    }
    forms = every_form(tmp_path, rows)
    for form, name in names.items():
        with pytest.raises(UsageError, match=f"{name}needs a `prompt`"):
            load_records(forms[form])
    with pytest.raises(UsageError, match="held-out row 1 needs a `prompt`"):
        make_jsonl_task(ROWS, ["exact"], heldout=rows)
    with pytest.raises(UsageError, match="the list is empty"):
        load_records([])
    (tmp_path / "bad.parquet").write_bytes(b"no table")
    with pytest.raises(UsageError, match=r"bad.parquet cannot be read") as error:
        load_records(tmp_path / "bad.parquet")
    assert "\n" not in str(error.value)


def test_rows_from_python_may_bring_a_second_set_for_evaluation(
    tmp_path: Path, tiny_model: Callable[..., Path]
) -> None:
    run = anypo.train(
        "sft",
        task={"rows": Dataset.from_list(ROWS), "heldout": Dataset.from_list(ROWS[:3])},
        policy=f"hf:{tiny_model('llama')}",
        steps=1,
        out=tmp_path / "r",
    )
    assert run.run.task.heldout == ROWS[:3]


# -------------------------------------------------------------------- system messages


def test_a_system_message_comes_before_every_chat_prompt_that_has_none() -> None:
    own = [{"role": "system", "content": "be brief"}, *ASK]
    rows = [*ROWS, {"prompt": own, "answer": "4"}]
    task = make_jsonl_task(rows, ["exact"], heldout=rows, system="be kind")
    plain = make_jsonl_task(rows, ["exact"], heldout=rows)
    said = {"role": "system", "content": "be kind"}
    for records, before in ((task.records, plain.records), (task.heldout, plain.heldout)):
        assert [r["prompt"] for r in records] == [[said, *r["prompt"]] for r in before[:-1]] + [own]
    assert (
        make_jsonl_task(ROWS, ["exact"], system="x").heldout[0]["answer"]
        == (make_jsonl_task(ROWS, ["exact"]).heldout[0]["answer"])
    ), "what is held out does not depend on it"
    assert ROWS[0]["prompt"][0]["role"] == "user", "rows given from Python stay as they are"
    assert as_prompt(task, "hi") == [said, {"role": "user", "content": "hi"}]
    assert as_prompt(plain, "hi") == [{"role": "user", "content": "hi"}]


def test_the_model_reads_the_system_message_in_pairs_too(tmp_path: Path, tiny_model: Callable[..., Path]) -> None:
    path = write(tmp_path / "p.jsonl", [{"prompt": r["prompt"], "chosen": "a", "rejected": "b"} for r in ROWS])
    task = make_pairs_task(path, system="be kind")
    policy = LanguageModel.load(tiny_model("llama"))
    task.prepare(policy)
    assert task.show_prompt(policy).startswith("<|system|>be kind<|end|><|user|>")


def test_a_system_message_before_plain_text_is_one_sentence(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [{"prompt": "a", "answer": "b"}, {"prompt": "c", "answer": "d"}])
    with pytest.raises(
        UsageError, match=r"goes before chat messages, and the prompt of .*p.jsonl line \d is plain text"
    ):
        make_jsonl_task(path, ["exact"], system="be kind")


def test_a_system_message_is_text_whatever_it_looks_like() -> None:
    for text in ("Answer: briefly", "42", "none", "[a, b]"):
        assert read_config(["grpo", "--task", "jsonl:x", "--task.system", text]).task["system"] == text


# -------------------------------------------------------------------- held out


@pytest.mark.parametrize(
    ("name", "options", "share", "size"),
    [("sums", {}, 0.01, 81), ("reasoning-gym:leg_counting", {"size": 30}, 0.2, 6), ("jsonl", {}, 0.2, 2)],
)
def test_heldout_is_a_share_or_a_file_in_every_task(
    name: str, options: dict[str, Any], share: float, size: int, tmp_path: Path
) -> None:
    if name == "jsonl":
        name, options = f"jsonl:{write(tmp_path / 'p.jsonl', ROWS)}", {"reward": "exact"}
    task = make_task({"name": name, **options, "heldout": share}, 0)
    assert len(task.heldout) == size
    held = write(tmp_path / "held.jsonl", task.heldout)
    again = make_task({"name": name, **options, "heldout": str(held)}, 0)
    assert json.dumps(again.heldout) == json.dumps(task.heldout), "its entries hold tuples, which JSON writes as lists"
    for wrong in (0.0, 1.0, 50.0):
        with pytest.raises(UsageError, match=rf"heldout .*{wrong}"):
            make_task({"name": name, **options, "heldout": wrong}, 0)


def test_sums_that_a_file_holds_out_are_not_trained_on(tmp_path: Path) -> None:
    held = write(tmp_path / "held.jsonl", [{"prompt": "12+34=", "answer": "46"}])
    task = make_task({"name": "sums", "heldout": str(held)}, 0)
    assert len(task.records) == 8099
    assert "12+34=" not in {r["prompt"] for r in task.records}
    assert len(make_task({"name": "sums"}, 0).heldout) == 500


def test_a_held_out_problem_without_its_entry_is_one_sentence(tmp_path: Path) -> None:
    held = write(tmp_path / "held.jsonl", [{"prompt": "a", "answer": "b"}])
    with pytest.raises(UsageError, match="line 1 has no `entry`, the problem as reasoning-gym writes it"):
        make_task({"name": "reasoning-gym:leg_counting", "size": 5, "heldout": str(held)}, 0)
