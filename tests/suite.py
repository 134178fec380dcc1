"""The suite as a pytest plugin: tests belong to entries, runs take samples and shards, and every test has a limit of CPU time."""

from __future__ import annotations

import os
import resource
from collections import defaultdict
from collections.abc import Iterator

import pytest
from selection import DAY, ENTRY_PERIOD, MANY, SLOW_PERIOD, changed, due, in_shard, parse_shard, sample_day, sampled

SLOWEST = 20
"""Tests listed at the end of a run."""
ENTRY_LIMIT, KNOWN_LIMIT = 15.0, 5.0
"""CPU seconds that all tests of an entry may take together, and its known answers."""
STARTED = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("suite")
    group.addoption("--entry", action="append", default=[], metavar="ID", help="only the tests of this entry")
    group.addoption("--sample", action="store_true", help="a tenth of the entries by the date, and the changed ones")
    group.addoption("--shard", type=parse_shard, metavar="I/N", help="only the tests whose hash falls into part I of N")
    group.addoption(
        "--cpu-limit", type=float, default=20.0, metavar="SECONDS", help="CPU time of a test not marked slow"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("sample"):
        os.environ[DAY] = sample_day().isoformat()  # the same for all workers of a run
    config.pluginmanager.register(Times(), "times")


def pytest_report_header(config: pytest.Config) -> str | None:
    if not config.getoption("sample"):
        return None
    import anypo

    moved, names, day = changed(), anypo.methods(), sample_day()
    chosen = [name for name in names if due(name, day, ENTRY_PERIOD)]
    few = len(moved) <= MANY
    text = ", ".join(sorted(moved)) or "none" if few else f"{len(moved)}, of which only the properties are tested"
    return (
        f"sample: {len(chosen)} of {len(names)} entries (again: {DAY}={day.isoformat()}): {', '.join(chosen)}"
        f"\nchanged entries: {text}"
    )


# -------------------------------------------------------------------- which tests run


def entries_of(item: pytest.Item) -> set[str]:
    """The entries a test is about."""
    return {name for mark in item.iter_markers("entry") for name in mark.args}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted, kept = set(config.getoption("entry")), list(items)
    if wanted:
        kept = [item for item in kept if wanted & entries_of(item)]
        absent = wanted - {name for item in kept for name in entries_of(item)}
        if absent and not hasattr(config, "workerinput"):
            raise pytest.UsageError(f"no test is marked with the entry {', '.join(map(repr, sorted(absent)))}")
    if config.getoption("sample"):
        kept = list(sample(kept))
    if config.getoption("shard"):
        kept = [item for item in kept if in_shard(item.nodeid, config.getoption("shard"))]
    stay = set(kept)
    config.hook.pytest_deselected(items=[item for item in items if item not in stay])
    items[:] = kept


def sample(items: list[pytest.Item]) -> Iterator[pytest.Item]:
    """The tests of sampled entries, the properties of all that changed, the slow ones that are due, and all the rest."""
    day, moved = sample_day(), changed()
    names = {name for item in items for name in entries_of(item)}
    chosen = set(sampled(sorted(names), day, moved))
    for item in items:
        about = entries_of(item)
        if about:
            runs = bool(about & chosen) or (item.get_closest_marker("property") is not None and bool(about & moved))
        else:
            runs = item.get_closest_marker("slow") is None or due(item.nodeid, day, SLOW_PERIOD)
        if runs:
            yield item


# -------------------------------------------------------------------- how long they may take


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    used = [resource.getrusage(of) for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    item.stash[STARTED] = cpu_seconds()
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    try:
        result = yield
    finally:
        seconds, limit = cpu_seconds() - item.stash[STARTED], item.config.getoption("cpu_limit")
        known = item.get_closest_marker("known") is not None
        item.user_properties += [("cpu", seconds), ("entries", sorted(entries_of(item))), ("known", known)]
    if seconds > limit and item.get_closest_marker("slow") is None:
        pytest.fail(f"{seconds:.1f} CPU seconds; a test that is not marked slow may take {limit:g}", pytrace=False)
    return result


class Times:
    """CPU seconds of tests and of entries, from all workers, for the end of the run."""

    def __init__(self) -> None:
        self.items: list[tuple[float, str]] = []
        self.entries: dict[str, float] = defaultdict(float)
        self.known: dict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        properties = dict(report.user_properties)
        if report.when != "call" or "cpu" not in properties:
            return
        self.items.append((properties["cpu"], report.nodeid))
        for name in properties["entries"]:
            self.entries[name] += properties["cpu"]
            self.known[name] += properties["cpu"] * properties["known"]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.items:
            return
        write = terminalreporter.write_line
        slowest = sorted(self.items, reverse=True)[:SLOWEST]
        write(f"{sum(seconds for seconds, _ in self.items):.0f} CPU seconds in {len(self.items)} tests; the slowest:")
        for seconds, nodeid in slowest:
            write(f"{seconds:7.1f}  {nodeid}")
        if self.entries:
            total, name = max((seconds, name) for name, seconds in self.entries.items())
            known, answered = max((seconds, name) for name, seconds in self.known.items())
            write(
                f"{len(self.entries)} entries: at most {total:.1f} CPU seconds each ({name}; {ENTRY_LIMIT:g} allowed),"
                f" {known:.1f} of known answers ({answered}; {KNOWN_LIMIT:g} allowed)"
            )
