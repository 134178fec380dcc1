"""Every python example of the documents runs, every metric is explained, the picture and the map of the library are current."""

import importlib
import importlib.util
import inspect
import json
import re
import sys
import tomllib
from functools import reduce
from pathlib import Path

import pytest

import anypo
from anypo import config as configuration
from anypo.loops.learn import learn
from anypo.method.registry import ENTRIES
from anypo.parts.registry import PARTS
from anypo.runs.folder import create

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES)
def test_the_python_examples_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    anypo.methods()
    known, parts = dict(ENTRIES), {slot: dict(found) for slot, found in PARTS.items()}
    space = {"__name__": "example"}
    try:
        for example in re.findall(r"```python(?: file=\S+)?\n(.*?)```", (ROOT / page).read_text(), re.S):
            exec(compile(example, page, "exec"), space)
    finally:
        ENTRIES.clear()
        ENTRIES.update(known)
        for slot, found in parts.items():
            PARTS[slot].clear()
            PARTS[slot].update(found)


def test_the_page_on_releases_names_the_pythons_and_systems_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pythons = [x.rpartition(" ")[2] for x in project["classifiers"] if re.search(r"Python :: 3\.\d+$", x)]
    text = (ROOT / "docs" / "release.md").read_text()
    assert f"Python {', '.join(pythons[:-1])} and {pythons[-1]}" in text
    assert project["requires-python"] == f">={pythons[0]}"
    assert sys.version_info[:2] in [tuple(map(int, python.split("."))) for python in pythons]
    assert project["version"] == anypo.__version__
    for name in ("deprecated", "What is included", "How a release is made", "Supported systems"):
        assert name in text


def test_every_relative_link_of_a_page_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text()):
            assert ((ROOT / page).parent / target).exists(), (page, target)


@pytest.mark.parametrize(
    "values",
    [{"method": "ppo", "task": "gym:CartPole-v1", "steps": 4096}, {"method": "grpo", "task": "bandit", "steps": 2}],
    ids=["control", "bandit"],
)
def test_every_metric_a_run_writes_is_documented(values, tmp_path):
    learn(create(configuration.from_dict({**values, "out": str(tmp_path / "r")})))
    text = (ROOT / "docs" / "metrics.md").read_text()
    for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines():
        for name in json.loads(line):
            assert f"`{name}`" in text, name


PLACES = re.findall(
    r"^\| (.+)\? \| \[.+\]\(\.\./(\S+)\) \| `([\w.]+):([\w.]+)` \|$",
    (ROOT / "docs" / "architecture.md").read_text(),
    re.M,
)


def test_the_map_answers_every_question_of_its_table():
    assert len(PLACES) >= 12
    assert len(PLACES) == (ROOT / "docs" / "architecture.md").read_text().count("? |")


@pytest.mark.parametrize(("question", "path", "module", "name"), PLACES, ids=[place[0] for place in PLACES])
def test_what_the_map_names_is_defined_in_the_file_it_names(question, path, module, name):
    answer = reduce(getattr, name.split("."), importlib.import_module(module))
    assert inspect.unwrap(answer).__module__ == module
    assert path == f"src/{module.replace('.', '/')}.py"


@pytest.fixture(scope="module")
def rooms():
    """docs/rooms.py as a module."""
    spec = importlib.util.spec_from_file_location("rooms", ROOT / "docs" / "rooms.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_of_the_rooms_is_that_of_the_import_graph(rooms):
    imports = rooms.room_imports()
    assert set(rooms.CONTENT) == set(imports)
    assert rooms.PICTURE.read_text() == rooms.draw(imports), "run `python docs/rooms.py`"


def test_an_import_that_others_imply_is_not_drawn_and_every_other_one_is(rooms):
    imports = {"a": {"b", "c", "d"}, "b": {"c"}, "c": set(), "d": set()}
    assert rooms.reduce_edges(imports) == {"a": {"b", "d"}, "b": {"c"}, "c": set(), "d": set()}
    levels, paths = rooms.layered(rooms.reduce_edges(imports))
    assert [[name for name in level if ">" not in name] for level in levels] == [["a"], ["b"], ["c", "d"]]
    assert sorted((path[0], path[-1]) for path in paths) == [("a", "b"), ("a", "d"), ("b", "c")]
