"""Prompts and preference data in Parquet files and folders of `datasets`."""

import pyarrow
import pyarrow.parquet
import pytest

from anypo.errors import UsageError
from anypo.tasks.text.jsonl import make_jsonl_task
from anypo.tasks.text.pairs import load_pairs, make_pairs_task
from anypo.tasks.text.records import load_records

PROMPTS = [{"prompt": f"{i}+1=", "answer": str(i + 1), "note": None if i % 2 else "even"} for i in range(12)]
CHATS = [{"prompt": [{"role": "user", "content": f"q{i}"}], "chosen": "yes", "rejected": "no"} for i in range(12)]


def written(folder, kind, rows):
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "d.parquet")
        return folder / "d.parquet"
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(rows).save_to_disk(str(folder / "d"))
    return folder / "d"


@pytest.mark.parametrize("kind", ["parquet", "folder"])
def test_prompts_and_pairs_are_read_from_tables(kind, tmp_path):
    (tmp_path / "p").mkdir(), (tmp_path / "c").mkdir()
    records = load_records(written(tmp_path / "p", kind, PROMPTS))
    assert [dict(r) for r in records] == [{k: v for k, v in row.items() if v is not None} for row in PROMPTS]
    assert str(records[3].where).endswith("row 3")
    task = make_jsonl_task(written(tmp_path / "p", kind, PROMPTS), ["exact"])
    assert len(task.records) + len(task.heldout) == 12
    assert [dict(r) for r in load_pairs(written(tmp_path / "c", kind, CHATS))] == CHATS
    assert make_pairs_task(tmp_path / "c" / ("d.parquet" if kind == "parquet" else "d")).paired


def test_tables_without_prompts_are_one_sentence(tmp_path):
    path = written(tmp_path, "parquet", [{"question": "1"}])
    with pytest.raises(UsageError, match=r"d\.parquet row 0 needs a `prompt`"):
        load_records(path)
    path.write_bytes(b"PAR1")
    with pytest.raises(UsageError, match="cannot be read"):
        load_records(path)
    with pytest.raises(UsageError, match="is empty"):
        load_records(written(tmp_path, "parquet", []))
    with pytest.raises(UsageError, match="is no data set"):
        load_records(tmp_path)
