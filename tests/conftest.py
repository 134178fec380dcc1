"""Shapes in signatures are checked while tests run; tests share the machine, so one thread each."""

import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import install_import_hook

install_import_hook("anypo", "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)
pytest_plugins = ["suite"]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Small language models on disk, `tiny_model("qwen2", kind="char")`, each made once per run."""
    from tiny import shared_model

    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "models"
    root.mkdir(exist_ok=True)
    return partial(shared_model, root)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Any]:
    """Runs `anypo ...` in an empty folder; returns (exit code, stdout lines, stderr)."""
    from anypo.cli import app

    monkeypatch.chdir(tmp_path)

    def run(*arguments: Any) -> tuple[Any, list[str], str]:
        monkeypatch.setattr(sys, "argv", ["anypo", *map(str, arguments)])
        try:
            app.main()
            code: Any = 0
        except SystemExit as stop:
            code = stop.code or 0
        printed = capsys.readouterr()
        return code, printed.out.splitlines(), printed.err

    return run
