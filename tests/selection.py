"""Which entries and tests a run takes: a tenth of the entries by the date, those that changed since their record, a shard.

As a script it prints the ids of the chosen entries, for `anypo verify`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from datetime import date

DAY = "ANYPO_TEST_DATE"
ENTRY_PERIOD = 10
"""Days between two runs of an entry's tests that has not changed."""
SLOW_PERIOD = 4
"""Days between two runs of a slow test that is no entry's."""
MANY = 25
"""Changed entries beyond which only their properties are tested."""


def hashed(name: str) -> int:
    return int(hashlib.sha256(name.encode()).hexdigest(), 16)


def due(name: str, day: date, period: int) -> bool:
    """Whether a name's turn is on this day: it has one in any `period` days in a row."""
    return (hashed(name) + day.toordinal()) % period == 0


def sample_day() -> date:
    """The date of the sample: ANYPO_TEST_DATE, else today."""
    text = os.environ.get(DAY)
    return date.fromisoformat(text) if text else date.today()


def parse_shard(text: str) -> tuple[int, int]:
    """`2/8` as (2, 8)."""
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise argparse.ArgumentTypeError(f"a shard is I/N with 1 <= I <= N, not {text!r}")
    return int(index), int(count)


def in_shard(name: str, shard: tuple[int, int]) -> bool:
    index, count = shard
    return hashed(name) % count == index - 1


def changed() -> set[str]:
    """The entries whose digest is not the one in the ledger."""
    from anypo.evidence.digest import digests
    from anypo.evidence.verify import ledger

    rows = ledger()
    return {name for name, digest in digests().items() if rows.get(name, {}).get("digest") != digest}


def sampled(names: list[str], day: date, changed: set[str]) -> list[str]:
    """The entries all of whose tests run: those due, and those changed unless these are many."""
    few = changed if len(changed) <= MANY else set()
    return [name for name in names if due(name, day, ENTRY_PERIOD) or name in few]


def main() -> None:
    from anypo.method.registry import entries

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", action="store_true", help="the entries of the date's sample and the changed ones")
    parser.add_argument("--shard", type=parse_shard, default=(1, 1), metavar="I/N", help="this part of them")
    options = parser.parse_args()
    names = sampled(entries(), sample_day(), changed()) if options.sample else entries()
    sys.stdout.writelines(f"{name}\n" for name in names if in_shard(name, options.shard))


if __name__ == "__main__":
    main()
