"""Random flags on short runs end well, or in one sentence; `make fuzz N=5000` tries more of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("first", [0, 50])
def test_random_flags_end_in_a_result_or_in_one_sentence(first):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(ROOT / "tools" / "fuzz.py"), "--cases", "50", "--first", str(first)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "50 cases, 0 failures" in done.stdout
