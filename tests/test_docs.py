"""Every python example of the documents runs, every metric a run writes is explained."""

import json
import re
from pathlib import Path

import pytest

import anypo
from anypo import config as configuration
from anypo.loops.learn import learn
from anypo.method.registry import METHODS
from anypo.parts.registry import PARTS
from anypo.runs.folder import create

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES)
def test_the_python_examples_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    anypo.methods()
    known, parts = dict(METHODS), {slot: dict(found) for slot, found in PARTS.items()}
    space = {"__name__": "example"}
    try:
        for example in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S):
            exec(compile(example, page, "exec"), space)
    finally:
        METHODS.clear()
        METHODS.update(known)
        for slot, found in parts.items():
            PARTS[slot].clear()
            PARTS[slot].update(found)


def test_every_relative_link_of_a_page_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text()):
            assert ((ROOT / page).parent / target).exists(), (page, target)


@pytest.mark.parametrize(("method", "task"), [("ppo", "gym:CartPole-v1"), ("grpo", "bandit")])
def test_every_metric_a_run_writes_is_documented(method, task, tmp_path):
    steps = 4096 if task.startswith("gym") else 2
    learn(create(configuration.from_dict({"method": method, "task": task, "steps": steps, "out": str(tmp_path / "r")})))
    text = (ROOT / "docs" / "metrics.md").read_text()
    for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines():
        for name in json.loads(line):
            assert f"`{name}`" in text, name
