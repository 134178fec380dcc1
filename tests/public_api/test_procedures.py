"""Procedures: registered beside methods, run from the command line, verified by known answers and claims, found in files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor
from typer.testing import CliRunner, Result

import anypo
from anypo import Card, Claim, Procedure
from anypo.cli.app import app
from anypo.errors import UsageError
from anypo.estimators.best_of_n import curve
from anypo.estimators.dataset import measures
from anypo.evidence import verify
from anypo.evidence.check import check_object
from anypo.evidence.digest import digest
from anypo.evidence.experiments.registry import run_experiment
from anypo.method.registry import ENTRIES, entries, entry, system

FILE = '''
"""A procedure of one's own."""
from dataclasses import dataclass
from typing import Literal, Optional

from torch import Tensor

import anypo
from anypo.parts.store.episodes import Table


def total(values: list[float], *, scale: float = 1.0, how: Literal["sum", "mean"] = "sum") -> float:
    """Add numbers.

    Args:
        values: the numbers.
        scale: factor of each.
        how: sum or mean.
    """
    return scale * sum(values) / (len(values) if how == "mean" else 1)


def three_numbers_add_up() -> None:
    assert total([1.0, 2.0, 3.0]) == 6.0, "1 + 2 + 3 is not 6"


def wrong_answer() -> None:
    assert total([1.0]) == 2.0, "1 is not 2"


def bare(values):
    return values


CARD = anypo.Card("total", "A sum", 2026, None, equation="sum x", source="this file", claim="Addition works.")
mine = anypo.Procedure(CARD, total, (three_numbers_add_up,), "analysis")
wrong = anypo.Procedure(CARD, total, (three_numbers_add_up, wrong_answer), "analysis")
lacking = anypo.Procedure(CARD, bare, (), "analysis")
number = 3


def weigh(scale: float, data: Table, weight: Optional[Tensor] = None, *, other: Optional[Table] = None) -> Tensor:
    """Weigh rewards."""
    rewards = data["reward"] if other is None else data["reward"] + other["reward"]
    return scale * (rewards if weight is None else rewards * weight).sum()


weighed = anypo.Procedure(CARD, weigh, (three_numbers_add_up,), "analysis")
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def registry() -> Iterator[None]:
    """What a test registers is gone afterwards."""
    entries()
    known = dict(ENTRIES)
    yield
    ENTRIES.clear()
    ENTRIES.update(known)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def call_json(*arguments: object) -> object:
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(*arguments: object) -> str:
    error = call(*arguments).exception
    assert isinstance(error, UsageError), error
    return str(error)


def write_scores(path: Path, samples: int = 16) -> tuple[Tensor, Tensor]:
    """Write proxy and gold of samples as JSON lines; returns both."""
    g = torch.Generator().manual_seed(0)
    proxy, gold = torch.randn(2, samples, generator=g, dtype=torch.float64)
    rows = [{"proxy": p, "gold": q, "human": -q} for p, q in zip(proxy.tolist(), gold.tolist(), strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return proxy, gold


def write_transitions(path: Path, episodes: int = 3, **columns: np.ndarray) -> None:
    """Write episodes of four transitions."""
    n = 4 * episodes
    rng = np.random.default_rng(0)
    content = {
        "observations": rng.standard_normal((n, 2)).astype(np.float32),
        "actions": rng.integers(0, 3, n),
        "rewards": np.arange(n, dtype=np.float32),
        "terminals": np.arange(n) % 4 == 3,
    }
    np.savez(path, **{**content, **columns})


# -------------------------------------------------------------------- running


def test_best_of_n_is_run_on_a_file_of_scores(folder: Path) -> None:
    proxy, gold = write_scores(folder / "scores.jsonl")
    rows = call_json("run", "best-of-n", "scores.jsonl")
    assert rows == [vars(point) for point in curve(proxy, gold, [1, 2, 4, 8, 16])]
    rows = call_json("run", "best-of-n", "scores.jsonl", "--ns", "1,3", "--gold=human")
    assert rows == [vars(point) for point in curve(proxy, -gold, [1, 3])]


def test_arrays_and_whole_numbers_are_read_as_the_parameters_take_them(folder: Path) -> None:
    proxy, gold = np.array([3, 1, 2, 5, 0, 4]), np.linspace(0, 1, 6)
    np.savez("scores.npz", proxy=proxy, gold=gold, prompt=np.array([0, 0, 0, 7, 7, 7]))
    rows = call_json("run", "best-of-n", "scores.npz", "--group", "prompt", "--ns", "3")
    assert [row["proxy"] for row in rows] == [(3 + 5) / 2]
    assert call_json("run", "best-of-n", "scores.npz", "--ns", "6")[0]["proxy"] == 5


def test_dataset_perspective_is_run_on_a_data_set(folder: Path) -> None:
    write_transitions(folder / "data.npz")
    write_transitions(folder / "more.npz", episodes=30)
    figures = call_json("run", "dataset-perspective", "data.npz", "--reference", "more.npz", "--low", 0, "--high", 100)
    assert figures == call_json("describe", "data.npz", "--reference", "more.npz", "--low", 0, "--high", 100)
    assert figures["episodes"] == 3
    assert figures["return_mean"] == pytest.approx(22.0)
    assert figures["trajectory_quality"] == pytest.approx(0.22)
    assert 0 < figures["state_action_coverage"] < 1
    assert measures.__module__ == "anypo.estimators.dataset"


def test_a_result_is_printed_as_a_table(folder: Path) -> None:
    write_scores(folder / "scores.jsonl")
    printed = call("run", "best-of-n", "scores.jsonl", "--ns", "1,2").stdout
    head, *rows = [line for line in printed.splitlines() if line[0] in "│┃"]
    assert [word.strip() for word in head.strip("┃").split("┃")] == ["n", "kl", "proxy", "gold"]
    assert len(rows) == 2
    write_transitions(folder / "data.npz")
    assert "unique_pairs" in call("run", "dataset-perspective", "data.npz").stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "ppo"], "ppo is a method: anypo train ppo"),
        (["train", "best-of-n"], "best-of-n is a procedure: anypo run best-of-n"),
        (["microscope", "best-of-n"], "best-of-n is a procedure: anypo run best-of-n"),
        (["run", "best-of-m"], "unknown procedure 'best-of-m'; did you mean 'best-of-n'?"),
        (["train", "dual-rl"], "dual-rl is a system of several entries: f-dvl, recoil"),
        (
            ["run", "best-of-n"],
            "best-of-n takes 1 input, not 0: anypo run best-of-n FILE [--ns N,...] [--group COLUMN]",
        ),
        (
            ["run", "best-of-n", "scores.jsonl", "--grup", "3"],
            "unknown flag of best-of-n: '--grup'; did you mean '--group'?",
        ),
        (["run", "best-of-n", "scores.jsonl", "--ns", "0"], "--ns"),
        (["run", "best-of-n", "scores.jsonl", "--ns", "99"], "the best of 99 needs n between 1 and the 16 samples"),
        (["run", "best-of-n", "scores.jsonl", "--ns"], "the flag --ns needs a value"),
        (["run", "best-of-n", "scores.jsonl", "--gold", "gould"], "has no column 'gould' in every row; --gold COLUMN"),
        (["run", "best-of-n", "absent.npz"], "there is no data file absent.npz"),
        (["run", "dataset-perspective", "data.npz", "--low", "much"], "--low is 'much'; it takes a number"),
        (["explain", "best-of-n", "--trust", "clip"], "best-of-n is no method, so it has no stages to replace"),
        (["explain", "dual-rl", "--trust", "clip"], "dual-rl is no method, so it has no stages to replace"),
    ],
)
def test_what_cannot_be_run_is_one_sentence(folder: Path, arguments: list[str], sentence: str) -> None:
    write_scores(folder / "scores.jsonl")
    write_transitions(folder / "data.npz")
    text = refused(*arguments)
    assert sentence in text
    assert "\n" not in text


def test_a_column_of_another_shape_is_refused(folder: Path) -> None:
    np.savez("scores.npz", proxy=np.zeros((4, 2)), gold=np.zeros(4))
    assert "the column 'proxy' has the shape [4, 2]" in refused("run", "best-of-n", "scores.npz")


# -------------------------------------------------------------------- one registry


def test_methods_as_json_have_kind_system_call_and_evidence_for_every_entry() -> None:
    cards = {card["id"]: card for card in call_json("methods")}
    assert sorted(cards) == sorted([*anypo.methods(), *anypo.procedures()])
    assert all(card["kind"] and card["call"] and card["evidence"] and "system" in card for card in cards.values())
    assert (cards["ppo"]["kind"], cards["ppo"]["call"]) == ("method", "anypo train ppo")
    assert cards["best-of-n"]["kind"] == "estimator"
    assert cards["best-of-n"]["call"] == "anypo run best-of-n FILE [--ns N,...] [--group COLUMN]"
    assert cards["dataset-perspective"]["call"].startswith("anypo run dataset-perspective DATASET [--low X]")
    assert {name for name, card in cards.items() if card["system"] == "dual-rl"} == {"f-dvl", "recoil"}


def test_a_paper_with_several_entries_names_a_system() -> None:
    """The same arXiv number twice is one paper."""
    cards = [entry(name).card for name in entries()]
    for one in cards:
        shared = [other for other in cards if one.arxiv is not None and other.arxiv == one.arxiv and other is not one]
        assert all(other.system == one.system is not None for other in shared), one.id
    assert all(len(system(name)) > 1 for name in {card.system for card in cards} - {None})


def test_explain_shows_a_procedure_and_all_entries_of_a_system() -> None:
    text = call("explain", "best-of-n").stdout
    for part in (
        "an estimator",
        "FILE: the columns proxy, gold",
        "estimate is the mean over all subsets",
        "known answers hold",
    ):
        assert part in text
    assert "numbers of samples" in text
    facts = call_json("explain", "best-of-n")
    assert (facts["kind"], len(facts["known"])) == ("estimator", 3)
    text = call("explain", "dual-rl").stdout
    assert text.startswith("dual-rl: f-dvl, recoil")
    assert "f-dvl = iql with critic changed" in text
    assert "recoil = iql with critic changed" in text
    assert [facts["id"] for facts in call_json("explain", "dual-rl")] == ["f-dvl", "recoil"]


def test_ids_and_systems_share_one_namespace(registry: None) -> None:
    taken = anypo.procedure("best-of-n")
    for card, sentence in (
        ({}, "the procedure id 'best-of-n' is taken"),
        ({"id": "ppo"}, "the procedure id 'ppo' is taken"),
        ({"id": "dual-rl"}, "the procedure id 'dual-rl' is the name of a system"),
        ({"id": "new", "system": "ppo"}, "the system 'ppo' of new has the id of an entry"),
    ):
        with pytest.raises(UsageError, match=sentence):
            anypo.register_procedure(replace(taken, card=replace(taken.card, **card)))
    new = anypo.register_procedure(replace(taken, card=replace(taken.card, id="new")))
    assert anypo.procedure("new") == new
    assert "new" in anypo.procedures()
    assert "new" not in anypo.methods()


def test_a_procedure_of_no_kind_is_refused() -> None:
    with pytest.raises(
        UsageError, match="unknown kind of the procedure best-of-n: 'estimate'; did you mean 'estimator'"
    ):
        replace(anypo.procedure("best-of-n"), kind="estimate")


# -------------------------------------------------------------------- evidence


def worst_of_n(proxy: Float[Tensor, " sample"], gold: Float[Tensor, " sample"], ns: list[int] | None = None):
    """Choose the smallest proxy instead of the largest."""
    return curve(-proxy, gold, ns)


def claimed(*claims: Claim, known=()) -> Procedure:
    card = Card("worst-of-n", "", 2026, None, equation="", source="", claim="", claims=claims)
    return Procedure(card, worst_of_n, known, "estimator")


def test_a_claim_may_be_against_a_procedure(registry: None) -> None:
    settings = {"samples": 64, "error": 0.1}
    claim = Claim("It is worse.", "selection", "gold", against="best-of-n", better="lower", settings=settings)
    anypo.register_procedure(claimed(claim))
    record = verify.examine("worst-of-n", [0, 1, 2])
    assert record["verdict"] == verify.SUPPORTED
    assert record["claims"][0]["against"] == "best-of-n"
    assert record["digest"] == digest(anypo.procedure("worst-of-n"))


def test_a_claim_against_oneself_changes_what_it_says() -> None:
    claim = Claim("More is chosen.", "selection", "kl", against="self", ablate={"ns": [4]}, settings={"samples": 64})
    result = verify.run_claim(claimed(claim), claim, [0, 1])
    assert result["values"] == [[pytest.approx(np.log(64) - 63 / 64), pytest.approx(np.log(4) - 3 / 4)]] * 2
    assert verify.opponent(result) == "itself with ns=[4]"
    other = Claim("Steps have a size.", "learning", "success", "self", settings={"batches": 5}, ablate={"step.lr": 0.0})
    grpo = verify.run_claim(anypo.method("grpo"), other, [0])
    start = run_experiment("learning", anypo.method("grpo").configure({"step": {"lr": 0.0}}), 0, {"batches": 5})
    assert grpo["values"][0][1] == start["success"] != grpo["values"][0][0]
    with pytest.raises(UsageError, match=r"unknown parameter of worst-of-n: 'm'"):
        claimed().but({"m": 1})


def test_a_claim_against_oneself_names_what_is_changed_and_no_other_does() -> None:
    for against, ablate in (("self", {}), ("grpo", {"trust.low": 0.1})):
        with pytest.raises(UsageError, match="names in `ablate` what is changed"):
            Claim("", "learning", "success", against=against, ablate=ablate)


def test_an_experiment_refuses_an_entry_of_the_other_kind() -> None:
    with pytest.raises(UsageError, match="the experiment 'learning' is not for a procedure, and best-of-n is one"):
        run_experiment("learning", anypo.procedure("best-of-n"), 0, {})
    with pytest.raises(UsageError, match="the experiment 'selection' is not for a method, and grpo is one"):
        run_experiment("selection", anypo.method("grpo"), 0, {})


def test_a_known_answer_that_is_wrong_is_reported_with_its_sentence() -> None:
    def right() -> None:
        pass

    def always_two() -> None:
        raise AssertionError("it is three")

    record = verify.check_known(claimed(known=(right, always_two)))
    assert record == {"passed": 1, "of": 2, "cases": 2, "failed": ["always two: it is three"]}


@pytest.mark.parametrize("procedure", anypo.procedures())
def test_the_known_answers_of_every_procedure_hold(procedure: str) -> None:
    record = verify.check_known(anypo.procedure(procedure))
    assert record["of"] >= 3
    assert record["failed"] == []


def test_known_answers_notice_a_wrong_estimator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anypo.estimators.best_of_n.kl", lambda n: float(np.log(n)))
    monkeypatch.setattr("anypo.estimators.best_of_n.weights", lambda proxy, n: torch.full_like(proxy, 1 / len(proxy)))
    monkeypatch.setattr("anypo.estimators.dataset.occupancy_entropy", lambda data: 9.0)
    failed = [s for name in anypo.procedures() for s in verify.check_known(anypo.procedure(name))["failed"]]
    assert [sentence.partition(":")[0] for sentence in failed] == [
        "estimate is the mean over all subsets",
        "divergence is that of a normal proxy",
        "entropy is at most that of equal shares",
    ]


def test_verify_records_procedures_beside_methods(folder: Path) -> None:
    result = call("verify", "dataset-perspective", "--record", "--ledger", "evidence/ledger.json")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("dataset-perspective: 3 of 3 properties")
    row = json.loads((folder / "evidence" / "ledger.json").read_text())["methods"]["dataset-perspective"]
    assert (row["properties"]["of"], row["claims"]) == (3, [])
    assert row["digest"] == digest(anypo.procedure("dataset-perspective"))


def test_the_table_of_verdicts_holds_procedures_and_says_what_a_claim_changes() -> None:
    lines = verify.markdown().splitlines()
    assert any(line.startswith("| dataset-perspective |") and "3 of 3 known answers hold" in line for line in lines)
    assert any(line.startswith("| best-of-n |") and "itself with ns=[16]" in line for line in lines)
    assert any(line.startswith("| ghpo |") and "itself with collect.rungs=[0.0, 0.5]" in line for line in lines)


# -------------------------------------------------------------------- files


@pytest.fixture
def mine(folder: Path) -> str:
    (folder / "mine.py").write_text(FILE)
    return "mine.py"


def test_a_procedure_of_a_file_is_run_explained_and_verified(mine: str) -> None:
    assert call("run", f"{mine}:mine", "1,2,3.5").stdout == "6.5\n"
    assert call_json("run", f"{mine}:mine", "[1, 2]", "--scale", "2", "--how", "mean") == 3.0
    text = call("explain", f"{mine}:mine").stdout
    assert "anypo run total VALUES [--scale X] [--how sum|mean]" in text
    assert "factor of each" in text
    result = call("verify", f"{mine}:mine")
    assert result.exit_code == 0
    assert result.stdout.startswith("total: 1 of 1 properties")
    result = call("verify", f"{mine}:wrong")
    assert result.exit_code == 1
    assert "FAILED wrong answer: 1 is not 2" in result.stdout


def test_inputs_keep_their_order_and_a_tensor_may_have_a_file_of_its_own(mine: str, folder: Path) -> None:
    write_transitions(folder / "data.npz", episodes=1)
    np.savez("weights.npz", weight=np.array([0.0, 0.0, 1.0, 0.0]))
    usage = "anypo run total SCALE DATASET [--weight FILE] [--other DATASET]"
    assert usage in call("explain", f"{mine}:weighed").stdout
    assert call_json("run", f"{mine}:weighed", "-2", "data.npz") == -2 * (0 + 1 + 2 + 3)
    assert call_json("run", f"{mine}:weighed", "-2", "data.npz", "--weight", "weights.npz") == -2 * 2
    assert call_json("run", f"{mine}:weighed", "1", "data.npz", "--other", "data.npz") == 12


def test_what_is_wrong_with_a_procedure_of_a_file_is_one_sentence(mine: str) -> None:
    assert "is a int; a procedure is made by anypo.Procedure(card, call, known, kind)" in refused(
        "run", f"{mine}:number"
    )
    assert "mine.py:mine is a procedure: anypo run mine.py:mine" in refused("train", f"{mine}:mine")
    assert "--how is 'median'; it takes 'sum', 'mean'" in refused("run", f"{mine}:mine", "1", "--how", "median")


def test_check_tries_a_procedure_of_a_file(mine: str) -> None:
    findings = check_object(f"{mine}:mine")
    assert (findings.kind, findings.holds, findings.missing) == ("procedure", ["1 of 1 known answers hold"], [])
    assert check_object(f"{mine}:wrong").missing == ["wrong answer: 1 is not 2"]
    missing = check_object(f"{mine}:lacking").missing
    assert any("the parameters values of `call` have no annotation" in sentence for sentence in missing)
    assert "it has no check with a known answer" in missing
