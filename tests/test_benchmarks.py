"""The scripts in benchmarks/ run and say what they are there to say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def printed(script: str, *arguments: str) -> list[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.splitlines()


def test_ensembles_end_above_a_single_reward_model_at_the_largest_n(tmp_path: Path) -> None:
    lines = printed("overoptimization.py", "--seeds", "10", "--samples", "4000", "--png", str(tmp_path / "p.png"))
    at_end = {line.split()[0]: float(line.split()[6]) for line in lines[1:5]}
    assert min(at_end["mean"], at_end["wco"], at_end["uwo"]) > at_end["single"] > 0.3
    assert (tmp_path / "p.png").stat().st_size > 10_000


def test_speed_is_printed_for_every_kind_and_size() -> None:
    lines = printed("ppo_cartpole.py", "--rounds", "1", "--scale", "0.03")
    medians = {line.split()[0]: float(line.split()[2]) for line in lines if "median" in line}
    assert medians.keys() == {"gym", "tensor"}
    lines = printed("many_environments.py", "--powers", "3", "6")
    assert [line.split()[0] for line in lines] == ["2^3", "2^6"]
    assert min(*medians.values(), *(float(line.split()[2]) for line in lines)) > 0


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
