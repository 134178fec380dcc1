"""Pages followed literally: their code blocks, and a shell in which they run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(\w*)(?: file=(\S+?))?(?: after=\"(.*?)\")?\n(.*?)^```$", re.S | re.M)


@dataclass(frozen=True)
class Block:
    """A code block. file: where its text goes, after the line that holds `after` or as all of it; None: it is run."""

    language: str
    file: str | None
    after: str | None
    text: str

    def write(self, folder: Path) -> None:
        """Put the text where it belongs, below a folder."""
        path = folder / str(self.file)
        text = self.text
        if self.after is not None:
            before, mark, behind = path.read_text().partition(self.after)
            assert mark, f"{path} has no line with {self.after}"
            line, end, behind = behind.partition("\n")
            text = f"{before}{mark}{line}{end}{self.text}{behind}"
        path.write_text(text)


def blocks(page: Path) -> list[Block]:
    """The code blocks of a page."""
    return [Block(*(x or None for x in found[:3]), found[3]) for found in BLOCK.findall(page.read_text())]


def clone(folder: Path) -> Path:
    """A fresh clone of the repository's last commit."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    return folder


def run(command: str, folder: Path, **environment: str) -> str:
    """Output of a command of a shell; fails where it does."""
    done = subprocess.run(
        ["bash", "-ec", command], cwd=folder, capture_output=True, text=True, timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "80", **environment},
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def commands(folder: Path, **modules: str) -> Path:
    """A folder of commands, each a module of the Python that runs the tests."""
    folder.mkdir()
    for name, module in modules.items():
        (folder / name).write_text(f'#!/bin/sh\nexec {sys.executable} {module} "$@"\n')
        (folder / name).chmod(0o755)
    return folder
