"""The scripts in tools/ find what they are there to find."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def digests() -> ModuleType:
    spec = importlib.util.spec_from_file_location("digests", ROOT / "tools" / "digests.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lines(*records: dict[str, float]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def test_metrics_that_differ_are_named_with_their_batch(digests: ModuleType) -> None:
    start = {"batch": 0, "loss": 1.0}
    base = lines(start, {"batch": 1, "loss": 0.5, "kl": float("nan")})
    assert digests.compare_metrics(base, base) is None
    for record, difference in (
        ({"batch": 1, "loss": 0.5000001, "kl": float("nan")}, "batch 1, loss: 0.5 and 0.5000001"),
        ({"batch": 1, "loss": 0.5, "kl": 0.0}, "batch 1, kl: NaN and 0.0"),
        ({"batch": 1, "loss": 0.5}, "batch 1, kl: NaN and missing"),
        ({"batch": 1, "kl": float("nan"), "loss": 0.5}, "batch 1: the metrics stand in another order or spelling"),
    ):
        assert digests.compare_metrics(base, lines(start, record)) == difference
    assert digests.compare_metrics(base, lines(start)) == "2 and 1 lines of metrics"


def test_weights_that_differ_are_named_with_the_size_of_the_difference(digests: ModuleType) -> None:
    base = {"policy:a": torch.zeros(2), "policy:b": torch.ones(2, 3, dtype=torch.bfloat16)}
    assert digests.compare_weights(base, {name: tensor.clone() for name, tensor in base.items()}) is None
    for changed, difference in (
        ({"policy:a": torch.tensor([0.0, -0.25])}, "policy:a: max |difference| 0.25"),
        ({"policy:a": torch.tensor([0.0, -0.0])}, "policy:a: max |difference| 0"),
        ({"policy:b": torch.ones(6, dtype=torch.bfloat16)}, "policy:b: bfloat16 [2, 3] and bfloat16 [6]"),
        ({"anchor:a": torch.zeros(2)}, "anchor:a is only in the tree"),
    ):
        assert digests.compare_weights(base, base | changed) == difference


@pytest.mark.slow
def test_a_run_that_the_changed_source_does_not_concern_stays_equal(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src")
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "digests.py", tmp_path / "tools")
    for command in ("init --quiet", "add *.py", "-c user.name=x -c user.email=x@example.org commit --quiet -m base"):
        subprocess.run(["git", "-C", str(tmp_path), *command.split()], check=True)
    task = tmp_path / "src" / "anypo" / "tasks" / "bandit.py"  # its learning rate, which n-pg-igt does not take
    changed = task.read_text().replace('"lr": 0.05', '"lr": 0.0500001')
    assert changed != task.read_text()
    task.write_text(changed)
    command = [sys.executable, str(tmp_path / "tools" / "digests.py"), "--only", "grpo", "n-pg-igt", "--jobs", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    grpo, other, count = done.stdout.splitlines()
    assert grpo.startswith("grpo            differs: batch 1, ")
    assert other.startswith("n-pg-igt        equal  ")
    assert (done.returncode, count) == (1, "1 of 2 runs are equal to HEAD")
