"""What a run of the suite takes: one entry, the sample of a date with the changed entries, a shard; and the limit of CPU time."""

from __future__ import annotations

import json
import sys
from datetime import date, timedelta
from pathlib import Path

import pytest
import selection
from suite import entries_of

import anypo
from anypo.evidence import verify
from anypo.evidence.digest import digests

pytest_plugins = ["pytester"]
NAMES = anypo.methods()  # imported here, since pytester forgets what was imported in a test
FOLDER = """
import pytest

def entries(names):
    return [pytest.param(name, marks=pytest.mark.entry(name)) for name in names]

@pytest.mark.parametrize("name", entries(f"entry-{i}" for i in range(40)))
def test_entry(name):
    pass

@pytest.mark.property
@pytest.mark.parametrize("name", entries(["grpo", "ppo", "sac"]))
def test_property(name):
    pass

@pytest.mark.parametrize("name", entries(["grpo", "ppo", "sac"]))
def test_answer(name):
    pass

@pytest.mark.entry("grpo", "ppo")
def test_two_entries():
    pass

@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_slow(number):
    pass

@pytest.mark.parametrize("number", range(5))
def test_rest(number):
    pass
"""


@pytest.fixture
def folder(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A small suite, beside a ledger with the present digest of every method."""
    monkeypatch.setattr(verify, "LEDGER", pytester.path / "ledger.json")
    pytester.makeini("[pytest]\naddopts = -p no:hypothesispytest\nmarkers =\n  entry\n  property\n  known\n  slow\n")
    pytester.makeconftest(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\npytest_plugins = ['suite']\n"
    )
    pytester.makepyfile(test_small=FOLDER)
    write_ledger(pytester.path, digests())
    return pytester


def write_ledger(path: Path, rows: dict[str, str]) -> None:
    methods = {name: {"digest": digest} for name, digest in rows.items()}
    (path / "ledger.json").write_text(json.dumps({"methods": methods}))


def collected(folder: pytest.Pytester, *arguments: str) -> set[str]:
    """The tests a run would take."""
    result = folder.runpytest_inprocess("--collect-only", "-q", *arguments)
    assert result.ret == 0
    return {line.partition("::")[2] for line in result.outlines if "::" in line}


# -------------------------------------------------------------------- entries


def test_one_entry_runs_alone(folder: pytest.Pytester) -> None:
    assert collected(folder, "--entry", "entry-3") == {"test_entry[entry-3]"}
    assert collected(folder, "--entry", "ppo") == {"test_property[ppo]", "test_answer[ppo]", "test_two_entries"}
    assert len(collected(folder, "--entry", "entry-3", "--entry", "sac")) == 3


def test_an_entry_without_tests_is_an_error_of_one_sentence(folder: pytest.Pytester) -> None:
    result = folder.runpytest_inprocess("--entry", "nobody")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: no test is marked with the entry 'nobody'" in result.errlines


def test_an_entry_without_tests_is_an_error_for_workers_too(folder: pytest.Pytester) -> None:
    result = folder.runpytest_inprocess("-n", "1", "--entry", "nobody")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_every_test_with_a_method_as_a_parameter_names_its_entry(request: pytest.FixtureRequest) -> None:
    """What is not marked always runs, so that it is among the tests of this run."""
    names = set(NAMES)
    params = {item.nodeid: getattr(item, "callspec", None) for item in request.session.items if not entries_of(item)}
    about = {
        nodeid
        for nodeid, spec in params.items()
        if spec is not None and any(spec.params.get(k) in names for k in ("name", "method"))
    }
    assert about == set()


# -------------------------------------------------------------------- the sample of a date


def on(folder: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, day: str) -> set[str]:
    monkeypatch.setenv("ANYPO_TEST_DATE", day)
    return collected(folder, "--sample")


def test_the_same_date_gives_the_same_sample_and_another_date_another(
    folder: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, again, other = (on(folder, monkeypatch, day) for day in ("2026-11-28", "2026-11-28", "2026-11-29"))
    assert first == again
    assert {t for t in first if "entry-" in t}.isdisjoint(other)
    assert {f"test_rest[{i}]" for i in range(5)} <= first & other


def test_any_days_in_a_row_run_every_name_once() -> None:
    for start, period in (("2026-12-28", 10), ("2027-02-27", 4)):
        first = date.fromisoformat(start)
        days = [first + timedelta(i) for i in range(period)]
        runs = [name for day in days for name in NAMES if selection.due(name, day, period)]
        assert sorted(runs) == NAMES


def test_a_test_about_two_entries_runs_with_either(folder: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    days = [date(2026, 11, 1) + timedelta(i) for i in range(10)]
    day = next(day for day in days if selection.due("ppo", day, 10))
    about = {"test_property[ppo]", "test_answer[ppo]", "test_two_entries"}
    assert about <= on(folder, monkeypatch, day.isoformat())


def test_the_head_says_how_to_repeat_a_sample(folder: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYPO_TEST_DATE", "2026-11-28")
    result = folder.runpytest_inprocess("--sample")
    (line,) = [line for line in result.outlines if line.startswith("sample: ")]
    assert "(again: ANYPO_TEST_DATE=2026-11-28)" in line
    assert "changed entries: none" in result.outlines


def test_the_script_prints_the_entries_of_the_sample_and_of_shards(
    folder: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def printed(*arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["selection", *arguments])
        selection.main()
        return capsys.readouterr().out.split()

    monkeypatch.setenv("ANYPO_TEST_DATE", "2026-11-28")
    names = sorted([*NAMES, *anypo.procedures()])
    due = [name for name in names if selection.due(name, selection.sample_day(), 10)]
    assert printed("--sample") == due
    assert sorted(printed("--shard", "1/2") + printed("--shard", "2/2")) == printed() == names


# -------------------------------------------------------------------- changed entries


def a_day_without(names: set[str]) -> str:
    """A date on which the turn of none of these entries comes."""
    days = (date(2026, 11, i) for i in range(1, 29))
    return next(day for day in days if not any(selection.due(name, day, 10) for name in names)).isoformat()


def test_all_tests_of_a_changed_entry_run(folder: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    day = a_day_without({"grpo", "ppo", "sac"})
    about = {"test_property[grpo]", "test_answer[grpo]", "test_two_entries"}
    before = on(folder, monkeypatch, day)
    assert about.isdisjoint(before)
    write_ledger(folder.path, digests() | {"grpo": "another"})
    assert on(folder, monkeypatch, day) == before | about


def test_of_many_changed_entries_the_properties_run(folder: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    day = a_day_without({"grpo", "ppo", "sac"})
    before = on(folder, monkeypatch, day)
    write_ledger(folder.path, {})
    assert on(folder, monkeypatch, day) == before | {f"test_property[{name}]" for name in ("grpo", "ppo", "sac")}


# -------------------------------------------------------------------- shards


def test_shards_are_disjoint_and_complete(folder: pytest.Pytester) -> None:
    shards = [collected(folder, "--shard", f"{i}/3") for i in (1, 2, 3)]
    assert all(shards)
    assert sum(map(len, shards)) == len(set().union(*shards))
    assert set().union(*shards) == collected(folder)


@pytest.mark.parametrize("text", ["0/3", "4/3", "2", "a/b"])
def test_a_shard_that_does_not_exist_is_refused(text: str, folder: pytest.Pytester) -> None:
    result = folder.runpytest_inprocess("--shard", text)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"a shard is I/N with 1 <= I <= N, not '{text}'" in "\n".join(result.errlines)


# -------------------------------------------------------------------- CPU time

BUSY = """
import subprocess, sys, time
import pytest

def work(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass

def test_idle():
    time.sleep(0.6)

def test_busy():
    work(0.5)

@pytest.mark.slow
def test_allowed():
    work(0.5)

def test_busy_child():
    code = "import time\\nwhile time.process_time() < 0.5: pass"
    subprocess.run([sys.executable, "-c", code], check=True)

@pytest.fixture
def made():
    work(0.5)

def test_busy_setup(made):
    pass
"""


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["here", "worker"])
def test_a_test_above_its_limit_of_cpu_time_fails_unless_it_is_slow(
    workers: tuple[str, ...], folder: pytest.Pytester
) -> None:
    folder.makepyfile(test_small=BUSY)
    result = folder.runpytest_inprocess("--cpu-limit", "0.4", *workers)
    result.assert_outcomes(passed=2, failed=3)
    failed = {line.split("::")[1].split()[0] for line in result.outlines if line.startswith("FAILED")}
    assert failed == {"test_busy", "test_busy_child", "test_busy_setup"}
    result.stdout.re_match_lines([r"0\.[5-9] CPU seconds; a test that is not marked slow may take 0\.4"])
    result.stdout.re_match_lines([r"\d+ CPU seconds in 5 tests; the slowest:", r" +[01]\.\d  test_small\.py::test_"])


def test_the_end_of_a_run_names_the_entry_that_took_most(folder: pytest.Pytester) -> None:
    folder.makepyfile(
        test_small="""
        import time
        import pytest

        def work(seconds):
            end = time.process_time() + seconds
            while time.process_time() < end:
                pass

        @pytest.mark.entry("grpo")
        def test_training():
            work(0.3)

        @pytest.mark.known
        @pytest.mark.entry("grpo", "ppo")
        def test_answer():
            work(0.1)
        """
    )
    result = folder.runpytest_inprocess()
    result.stdout.re_match_lines([r"2 entries: at most 0\.\d CPU seconds each \(grpo; .*, 0\.\d of known answers .*"])
