"""CONTRIBUTING.md, followed literally in a fresh clone, adds a part, a method and a task."""

import os
import re
import sys

import pytest
from followed import blocks, clone, commands, run


@pytest.mark.slow
def test_contributing_followed_literally_adds_a_part_a_method_and_a_task(tmp_path):
    copy = clone(tmp_path / "anypo")
    names = commands(tmp_path / "bin", anypo="-m anypo", pytest="-m pytest -p no:cacheprovider", python="")
    environment = {"PATH": f"{names}:{os.environ['PATH']}", "PYTHONPATH": str(copy / "src")}
    script, printed = "", ""
    for block in blocks(copy / "CONTRIBUTING.md"):
        if block.file:
            block.write(copy)
        elif block.language == "bash":
            for line in block.text.splitlines():
                printed += run(line, copy, **environment)
        elif block.language == "python":
            script += block.text
    (tmp_path / "script.py").write_text(script)
    printed += run(f"{sys.executable} {tmp_path / 'script.py'}", copy, **environment)
    assert "squared-trust(coef=0.1)" in printed  # the part, in a method's stage
    assert "variance-example: 12 of 12 properties" in printed
    assert "backwards: write a word backwards" in printed
    assert "## `backwards`" in (copy / "docs" / "tasks.md").read_text()
    assert len(re.findall(r"^\d+ passed", printed, re.M)) == 3  # a test that fails ends its command, and this test
