"""The measure that heads a run, ranks its checkpoints and compares methods."""

from __future__ import annotations

import json
import sys

import pytest

import anypo
from anypo.config import from_dict
from anypo.errors import UsageError
from anypo.loops.learn import learn
from anypo.report.console import finish
from anypo.runs.folder import create, reopen


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """A terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")


def test_the_named_measure_heads_a_run_and_ranks_its_checkpoints(tmp_path):
    values = {"method": "grpo", "task": "bandit", "steps": 4, "evaluate_every": 1, "metric": "spread"}
    run = create(from_dict({**values, "out": str(tmp_path / "r")}))
    spread = iter([0.1, 0.2, 0.9, 0.3, 0.4])
    run.task.evaluate = lambda *_: {"reward": 1.0, "spread": next(spread)}
    learn(run)
    assert finish(run).endswith("spread 0.1 -> 0.4")
    assert json.loads((tmp_path / "r" / "result.json").read_text())["metric"] == "spread"
    assert reopen(tmp_path / "r", "best").batch == 2


def test_a_target_is_one_of_the_named_measure(tmp_path):
    run = create(
        from_dict(
            {"method": "grpo", "task": "bandit", "steps": 9, "evaluate_every": 1, "metric": "spread", "target": 2}
            | {"out": str(tmp_path / "r")}
        )
    )
    spread = iter([0.1, 1.0, 3.0])
    run.task.evaluate = lambda *_: {"reward": 5.0, "spread": next(spread)}
    assert learn(run)["batch"] == 2


@pytest.mark.parametrize(
    ("metric", "sentence"),
    [
        ("rewrd", "unknown metric 'rewrd'; did you mean 'reward'?"),
        ("regret", "of regret less is better; --metric takes a measure of which more is better: reward"),
    ],
)
def test_a_measure_that_cannot_head_a_run_is_refused_in_one_sentence(call, tmp_path, metric, sentence):
    code, _, errors = call("train", "grpo", "--task", "bandit", "--steps", 2, "--metric", metric, "--out", "r")
    assert (code, errors) == (2, f"anypo: {sentence}\n")
    assert not (tmp_path / "r").exists()


def test_the_mean_score_heads_a_run_where_rewards_are_graded_and_accuracy_can_be_named(tmp_path, tiny_model):
    rows = [{"prompt": f"the {i}"} for i in range(6)]
    values = {"task": {"rows": rows, "max_new": 3}, "reward": lambda completions, **_: [0.2] * len(completions)}
    values |= {"policy": f"hf:{tiny_model('llama')}", "steps": 1, "collect": {"requests": 2, "samples": 2}}
    assert anypo.train("grpo", **values, out=tmp_path / "a").result["metric"] == "reward"
    run = anypo.train("grpo", **values, metric="accuracy", out=tmp_path / "b")
    assert (run.result["metric"], run.result["after"]) == ("accuracy", 0.0)


def test_compare_ranks_by_the_named_measure_and_finished_runs_keep_their_others(tmp_path):
    flags = {"task": "tensor:CartPole-v1", "steps": 1, "seeds": 1, "out": tmp_path / "c", "episodes": 2}
    first = anypo.compare("ppo", "a2c", **flags)
    again = anypo.compare("ppo", "a2c", **flags, metric="length")
    assert (first["metric"], again["metric"]) == ("return", "length")
    with pytest.raises(UsageError, match="unknown metric 'lenght'; did you mean 'length'"):
        anypo.compare("ppo", "a2c", **flags, metric="lenght")
    with pytest.raises(UsageError, match="compared by one measure; give --metric for all"):
        anypo.compare("ppo", "ppo:metric=length", **flags)


def test_one_seed_claims_no_interval_and_says_why(call, tmp_path):
    code, out, _ = call("compare", "reinforce", "grpo", "--task", "bandit", "--seeds", 1, "--steps", 2, "--out", "c")
    assert code == 0
    assert not any("interval" in line or " to " in line for line in out[2:-2])
    assert out[-2] == "no interval: one seed does not tell how far another would be from it; --seeds 5 does"
    rows = json.loads((tmp_path / "c" / "table.json").read_text())["methods"]
    assert [row["interval"] for row in rows] == [None, None]
    assert not any("improves" in row for row in rows)


def test_a_comparison_of_variants_is_readable_on_80_columns(call):
    variants = [f"grpo:trust.low=0.1,trust.high=0.{i},step.lr=0.05" for i in (2, 3)]
    code, out, _ = call("compare", *variants, "--task", "bandit", "--seeds", 2, "--steps", 2, "--out", "c")
    assert code == 0
    table = out[4:-2]
    assert max(map(len, table)) <= 80
    assert not any("…" in line for line in table)
    names = "".join(line.strip("│").split("│")[0].strip() for line in table if line.startswith("│"))
    assert names == "".join(variants)
    assert sum("to" in line for line in table) == 2


def test_compare_asks_for_missing_packages_before_it_trains(call, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "rliable", None)
    code, _, errors = call("compare", "grpo", "rloo", "--task", "bandit", "--out", "c")
    assert (code, errors) == (2, 'anypo: compare needs rliable; run `pip install "anypo[report]"`\n')
    assert not (tmp_path / "c").exists()
