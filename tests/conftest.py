"""Shapes in signatures are checked while tests run; tests share the machine, so one thread each."""

import hashlib
import os
from datetime import date

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

install_import_hook("anypo", "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)
os.environ.setdefault("ANYPO_SLOW_SAMPLE", date.today().isoformat())  # the same for all workers of a run


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", type=float, default=0.25, help="share of the tests marked slow to run, others every day")


def pytest_report_header(config: pytest.Config) -> str:
    return f"slow tests: {config.getoption('slow'):.0%} of them, the sample of {os.environ['ANYPO_SLOW_SAMPLE']}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the slow tests a sample runs, by the hash of day and name; `--slow 1` runs all, `-m slow` nothing else."""

    def chosen(item: pytest.Item) -> bool:
        text = f"{os.environ['ANYPO_SLOW_SAMPLE']} {item.nodeid}"
        return int(hashlib.sha256(text.encode()).hexdigest(), 16) / 2**256 < config.getoption("slow")

    left = [item for item in items if item.get_closest_marker("slow") and not chosen(item)]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in set(left)]
