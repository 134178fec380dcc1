"""The scripts in benchmarks/ run and say what they are there to say."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

ROOT = Path(__file__).parents[1]


def printed(script: str, *arguments: str) -> list[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.splitlines()


@pytest.mark.slow
def test_ensembles_end_above_a_single_reward_model_at_the_largest_n(tmp_path: Path) -> None:
    lines = printed("overoptimization.py", "--seeds", "10", "--samples", "4000", "--png", str(tmp_path / "p.png"))
    gold = {line.split()[0]: [float(x) for x in line.split()[1:7]] for line in lines[1:5]}
    lost = {name: max(curve) - curve[-1] for name, curve in gold.items()}
    assert lost["single"] > 0.5
    assert lost["wco"] < lost["single"] - 0.2
    assert lost["uwo"] < lost["wco"]
    assert min(gold["wco"][-1], gold["uwo"][-1]) > gold["single"][-1]
    assert (tmp_path / "p.png").stat().st_size > 10_000


def test_speed_is_printed_for_every_kind() -> None:
    lines = printed("ppo_cartpole.py", "--kinds", "gym", "tensor", "--rounds", "1", "--scale", "0.01")
    medians = {line.split()[1]: float(line.split()[3]) for line in lines if "median" in line}
    assert medians.keys() == {"gym", "tensor"}
    assert min(medians.values()) > 0


def test_speed_is_printed_for_every_size() -> None:
    lines = printed("many_environments.py", "--powers", "3", "6")
    assert [line.split()[0] for line in lines] == ["2^3", "2^6"]
    assert min(float(line.split()[2]) for line in lines) > 0


def test_the_output_layer_takes_less_memory_in_chunks_and_gives_the_same_gradient() -> None:
    lines = printed("head_memory.py", "--tokens", "1024", "--vocabulary", "131072", "--width", "64")
    dense, chunked = (line.split() for line in lines[:2])
    assert (dense[0], chunked[0]) == ("dense", "chunked")
    assert float(chunked[1]) < float(dense[1])
    assert float(chunked[-1]) == pytest.approx(float(dense[-1]), rel=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_grpo_step_of_a_language_model_is_measured(tmp_path: Path, precision: str) -> None:
    sizes = ("--steps", "2", "--prompts", "2", "--samples", "2", "--new", "4")
    found = json.loads(
        printed("text_grpo.py", "anypo", "--folder", str(tmp_path), "--precision", precision, *sizes)[-1]
    )
    assert len(found["seconds"]) == len(found["processor"]) == 2
    assert 0 < found["tokens"] <= 2 * 2 * 4


def test_the_time_to_an_accuracy_is_none_where_the_limit_comes_first(tmp_path: Path) -> None:
    tiny.language_model(tmp_path / "model", "qwen2")
    (tmp_path / "heldout.json").write_text(json.dumps([{"prompt": "12+34=", "answer": "46"}]))
    sizes = ("--rows", "16", "--lr", "1e-4", "--every", "1", "--threads", "1")
    found = json.loads(
        printed("text_accuracy.py", "anypo", "--folder", str(tmp_path), "--limit", "0", "--target", "2", *sizes)[-1]
    )
    assert [point["step"] for point in found["curve"]] == [0, 1]
    assert found["seconds"] is None
    assert found["curve"][1]["seconds"] > found["curve"][0]["seconds"] == 0


def test_speed_is_compared_with_a_commit_by_the_scripts_and_the_package_of_either_side(tmp_path: Path) -> None:
    for name in ("src", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for command in (
        "init --quiet",
        "add src/*.py benchmarks/*.py",
        "reset --quiet benchmarks/many_environments.py src/anypo/methods/control/dqn.py",
        "-c user.name=x -c user.email=x@example.org commit --quiet -m base",
    ):
        subprocess.run(["git", "-C", str(tmp_path), *command.split()], check=True)
    cases = ("--cases", "environments-2^12", "dqn", "ppo-gym", "--rounds", "1", "--scale", "0.1")
    done = subprocess.run(
        [
            sys.executable,
            str(tmp_path / "benchmarks" / "quick.py"),
            "--base",
            "HEAD",
            *cases,
            "--json",
            str(tmp_path / "f"),
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )
    assert done.returncode == 1
    assert "environments-2^12 fails (base): " in done.stderr  # it has no such script
    assert "dqn fails (base): anypo: unknown method 'dqn'" in done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["case", "ppo-gym"]
    found = json.loads((tmp_path / "f").read_text())["cases"]
    assert found.keys() == {"ppo-gym"}
    assert found["ppo-gym"]["ratio"] == pytest.approx(found["ppo-gym"]["tree"][0] / found["ppo-gym"]["base"][0])
    assert found["ppo-gym"]["ratio"] > 0


def test_a_case_is_marked_where_every_round_is_slower() -> None:
    spec = importlib.util.spec_from_file_location("quick", ROOT / "benchmarks" / "quick.py")
    assert spec is not None
    assert spec.loader is not None
    quick = importlib.util.module_from_spec(spec)
    sys.modules["quick"] = quick  # dataclasses look their module up
    spec.loader.exec_module(quick)
    rate, memory = quick.CASES["sac"], quick.CASES["head-memory"]
    slower = quick.compare(rate, [100.0, 80.0, 120.0], [90.0, 76.0, 108.0])
    assert (slower["ratio"], slower["min"], slower["max"]) == pytest.approx((0.9, 0.9, 0.95))
    assert slower["mark"] == "slower"
    assert quick.compare(rate, [100.0, 80.0, 120.0], [90.0, 80.0, 108.0])["mark"] == ""
    assert quick.compare(rate, [90.0, 76.0, 108.0], [100.0, 80.0, 120.0])["mark"] == ""
    assert quick.compare(rate, [100.0], [90.0])["mark"] == ""  # one round has no range
    assert quick.compare(memory, [100.0, 100.0, 100.0], [125.0, 110.0, 110.0])["mark"] == "larger"
    assert quick.compare(memory, [125.0, 110.0], [100.0, 100.0])["ratio"] == pytest.approx(1.175)


@pytest.mark.slow
def test_pairs_teach_a_rule_and_leave_the_rest_of_the_answer(tmp_path: Path) -> None:
    lines = printed("preferences.py", "--out", str(tmp_path / "p"))
    found = {
        words[0]: (float(words[1]), float(words[3]))
        for line in lines
        if len(words := line.split()) == 4 and "->" in words
    }
    assert found["accuracy"][0] < 0.6
    assert found["accuracy"][1] > 0.9
    assert found["backwards"][1] > 0.8


@pytest.mark.parametrize(
    "script",
    [["sac.py", "--env", "Pendulum-v1", "--steps", "50"], ["offline.py", "--methods", "iql", "--updates", "100"]],
)
def test_updates_of_value_learning_are_timed(script: list[str]) -> None:
    lines = printed(*script, "--kinds", "plain", "--rounds", "1")
    medians = [float(line.split()[3]) for line in lines if "median" in line]
    assert len(medians) == 2
    assert min(medians) > 0
