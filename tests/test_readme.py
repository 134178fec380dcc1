"""The commands of README.md, typed as they are written, in an empty folder with the wheel and with a clone."""

from __future__ import annotations

import os
import re
import shlex
import sys
import sysconfig
from pathlib import Path

import pytest
from followed import ROOT, blocks, clone, commands, run

from anypo.config import from_dict
from anypo.flags import parse_flags
from anypo.method.registry import method
from anypo.plugins import names_file
from anypo.runs.claim import default_folders

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def session() -> list[tuple[str, list[str]]]:
    """The commands of README's path, each with the lines of output shown behind it."""
    (block,) = (block for block in blocks(ROOT / "README.md") if block.language == "console")
    steps: list[tuple[str, list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            steps.append((line[2:], []))
        else:
            steps[-1][1].append(line)
    return steps


def shape(text: str) -> list[str]:
    """The words of every line, numbers replaced: what does not depend on the machine."""
    lines = [
        re.sub(r"[^\w(): ]+", " ", re.sub(r"-?\d+(\.\d+)?(e-?\d+)?", "N", line)).split() for line in text.splitlines()
    ]
    return [" ".join(words) for words in lines if words]


def follow(folder: Path, steps: list[tuple[str, list[str]]], **environment: str) -> None:
    """Type the commands; every line that README shows has to be there, in that order."""
    for block in blocks(ROOT / "README.md"):
        if block.file:
            block.write(folder)
    for command, shown in steps:
        printed = iter(shape(run(command, folder, **environment)))
        for line in shape("\n".join(line for line in shown if line != "...")):
            assert line in printed, f"{command} does not print {line!r}"


def test_the_path_is_at_most_six_commands_and_shows_a_verdict_and_a_comparison():
    steps = session()
    assert len(steps) <= 6
    shown = {command.split()[1]: "\n".join(lines) for command, lines in steps}
    assert "Verdict    supported" in shown["explain"]
    assert "P: probability" in shown["compare"]
    assert any(line.startswith("runs/first  accuracy ") for line in shown["train"].splitlines())


@pytest.mark.slow
def test_readme_is_followed_literally_with_the_wheel(tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    copy = clone(tmp_path / "anypo")
    pip = f"{sys.executable} -m pip --disable-pip-version-check"
    run(f"{pip} wheel -q --no-deps --no-build-isolation -w {folder / 'dist'} {copy}", tmp_path)
    venv = tmp_path / "venv"
    run(f"{sys.executable} -m venv --without-pip {venv}", tmp_path)
    (site,) = (venv / "lib").glob("python*/site-packages")
    (site / "others.pth").write_text(
        sysconfig.get_paths()["purelib"] + "\n"
    )  # pip, and what anypo needs, are there already
    (venv / "bin" / "pip").write_text(f'#!/bin/sh\nexec {venv}/bin/python -m pip "$@"\n')
    (venv / "bin" / "pip").chmod(0o755)
    environment = {"PATH": f"{venv / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": "", "PIP_NO_INDEX": "1"}
    follow(folder, session(), **environment)
    where = run("python -c 'import anypo; print(anypo.__file__)'", folder, **environment)
    assert Path(where.strip()).is_relative_to(site)


@pytest.mark.slow
def test_readme_is_followed_literally_with_a_clone(tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    copy = clone(tmp_path / "anypo")
    names = commands(tmp_path / "bin", anypo="-m anypo", python="")
    environment = {"PATH": f"{names}:{os.environ['PATH']}", "PYTHONPATH": str(copy / "src")}
    install, *others = session()
    assert install[0].startswith("pip install ")
    follow(folder, others, **environment)


def test_a_run_folder_that_is_named_is_the_one_that_its_command_makes():
    lines = [
        line.partition(" #")[0].strip() for block in blocks(ROOT / "README.md") for line in block.text.splitlines()
    ]
    named = {
        word for line in lines if line.startswith(("anypo evaluate", "anypo sample")) for word in line.split()[2:3]
    }
    trained = [shlex.split(line)[2:] for line in lines if line.startswith("anypo train ")]
    folders = set()
    for words in trained:
        (name, *_), values = parse_flags(words)
        folders.add(values.get("out") or str(next(default_folders(from_dict({**values, "method": name})))))
    assert named
    assert named <= folders


def typed() -> list[str]:
    """Every `anypo train`, `compare` or `collect` on a page's block, without what stands for the reader's own names."""
    lines = [line for page in PAGES for block in blocks(page) for line in block.text.splitlines()]
    lines = [line.removeprefix("$ ").partition(" #")[0] for line in lines]
    return [line for line in lines if re.match(r"anypo (train|compare|collect) [a-z]", line) and "..." not in line]


@pytest.mark.parametrize("line", typed())
def test_a_command_on_a_page_names_methods_and_settings_that_there_are(line):
    words, settings = parse_flags(shlex.split(re.sub(r"--(seeds|jobs|quality|number|out) \S+", "", line))[2:])
    for name in words:
        if not names_file(name):
            stages = from_dict({**settings, "method": name.partition(":")[0]}).stages
            known = {slot: part for slot, part in stages.items() if not names_file(str(part))}
            assert method(name.partition(":")[0]).configure(known)
