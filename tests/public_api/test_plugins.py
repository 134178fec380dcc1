"""Methods, procedures, parts, tasks and policies from a user's file or an installed package, without a change to the library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from killed import train_and_kill

import anypo
from anypo.config import from_dict
from anypo.errors import UsageError
from anypo.evidence import verify
from anypo.evidence.verify import examine_all
from anypo.flags import parse_flags
from anypo.loops.learn import learn
from anypo.plugins import installed
from anypo.runs.build import build
from anypo.runs.folder import continue_run, create, reopen
from anypo.tasks.text.rewards import describe_rewards, make_reward

PARTS = '''
"""A part, a task, a policy and methods of one's own."""
from dataclasses import dataclass

import anypo
from anypo.parts.ops.log_ratio import importance_ratio
from anypo.parts.ops.surrogate import advantage_at
from anypo.policies.tabular import SoftmaxTable
from anypo.tasks.bandit import Bandit


@dataclass(frozen=True)
class SquaredTrust:
    """s = r A - coef (r - 1)^2."""

    coef: float = 0.5
    reads = ("advantage",)

    def __call__(self, x, b):
        r = importance_ratio(x)
        return r * advantage_at(x, b) - self.coef * (r - 1).square(), {}


class Coins(Bandit):
    """Two arms."""

    name = "coins"

    def __init__(self, *, sides: int = 2, seed: int = 0):
        super().__init__(contexts=3, arms=sides, seed=seed)


def table(observations, actions, *, value=True, seed=0, scale=1.0):
    """A table that begins elsewhere."""
    policy = SoftmaxTable(int(observations.n), int(actions.n), value=value, seed=seed)
    policy.logits.data.mul_(scale)
    return policy


gentler = anypo.method("grpo").but(trust=SquaredTrust(0.25), terms=[])
number = 3


def add(values: list[float]) -> float:
    """Add numbers."""
    return sum(values)


total = anypo.Procedure(anypo.Card("total", "A sum", 2026, None, "sum x", "here", "Addition works."), add, (), "analysis")
'''


@pytest.fixture
def mine(tmp_path: Path) -> str:
    """A file in the working directory of its own."""
    path = tmp_path / "mine.py"
    path.write_text(PARTS)
    return str(path)


def build_run(*flags: str):
    words, values = parse_flags(list(flags))
    return build(from_dict({"method": words[0], **values}))


def test_a_file_gives_method_part_task_and_policy(mine):
    run = build_run(
        f"{mine}:gentler", "--task", f"{mine}:Coins", "--task.sides", "4", "--policy", f"{mine}:table", "--steps", "2"
    )
    assert (run.method.card.id, run.method.card.base) == (f"{mine}:gentler", "grpo")
    assert run.task.arms == 4
    assert run.policy.logits.shape == (3, 4)
    assert "squared-trust(coef=0.25)" in run.method.explain()
    learn(run)


def test_a_method_of_a_file_with_a_card_of_its_own_is_verified_without_being_registered(tmp_path):
    (tmp_path / "carded.py").write_text(
        "import anypo\n"
        "claim = anypo.Claim('It is itself.', 'gradient', 'bias', against='grpo', settings={'repeats': 5})\n"
        "card = anypo.Card('carded', 'GRPO', 2026, None, '', '', '', claims=(claim,))\n"
        "mine = anypo.method('grpo').but(card=card)\n"
    )
    record = verify.examine(f"{tmp_path}/carded.py:mine", [0, 1], cases=1)
    assert (record["claims"][0]["effect"], record["properties"]["failed"]) == (0.0, [])


def test_a_part_of_a_file_fills_a_stage_of_any_method(mine):
    run = build_run("dapo", "--task", "bandit", "--trust", f"{mine}:SquaredTrust", "--trust.coef", "0.1")
    assert run.method.texts()["trust"] == ["squared-trust(coef=0.1)"]


def test_what_a_run_writes_down_builds_it_again_in_another_process(mine, tmp_path):
    run = build_run("dapo", "--task", "bandit", "--trust", f"{mine}:SquaredTrust", "--steps", "1")
    assert run.config.stages["trust"] == {"part": f"{mine}:SquaredTrust", "coef": 0.5}
    (tmp_path / "c.json").write_text(json.dumps(run.config.to_dict()))
    code = (
        "import json, sys; from anypo.config import from_dict; from anypo.runs.build import build;"
        "print(build(from_dict(json.load(open(sys.argv[1])))).method.texts()['trust'])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "c.json")], capture_output=True, text=True, check=True, cwd="/"
    )
    assert shown.stdout.strip() == "['squared-trust(coef=0.5)']"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["absent.py:x", "--task", "bandit"], "there is no file absent.py to take the method 'x' from"),
        (["MINE:nothing", "--task", "bandit"], "has no method 'nothing'; it has SquaredTrust, Coins, table, add"),
        (["~nosuchuser/a.py:x", "--task", "bandit"], "there is no file ~nosuchuser/a.py to take the method 'x' from"),
        (["MINE:number", "--task", "bandit"], "is a int; a method is made by anypo.method"),
        (["grpo", "--task", "MINE:number"], "is a int; a task is a class or a function"),
        (["grpo", "--task", "MINE:SquaredTrust"], "is no task: it lacks channels, continuing"),
        (["grpo", "--task", "bandit", "--policy", "MINE:number"], "is a int; a policy is a class or a function"),
        (["grpo", "--task", "bandit", "--trust", "MINE:Coins"], "is no part: a part is a dataclass"),
        (["grpo", "--task", "MINE:Coins", "--task.side", "3"], "unknown option of the task Coins: 'side'"),
    ],
)
def test_what_is_wrong_with_a_name_is_one_sentence(mine, flags, sentence):
    with pytest.raises(UsageError, match=r".+") as error:
        build_run(*(flag.replace("MINE", mine) for flag in flags))
    assert sentence in str(error.value)


def test_a_file_that_was_edited_is_executed_again(mine):
    assert build_run(f"{mine}:gentler", "--task", "bandit").method.stages["trust"].coef == 0.25
    Path(mine).write_text(PARTS.replace("0.25", "0.35"))
    assert build_run(f"{mine}:gentler", "--task", "bandit").method.stages["trust"].coef == 0.35


def test_a_file_that_fails_says_how(tmp_path):
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(UsageError, match=r"broken.py cannot be imported: ModuleNotFoundError: No module named"):
        build_run("grpo", "--task", f"{tmp_path}/broken.py:T")


def test_a_neighbour_that_was_edited_is_imported_again(tmp_path):
    (tmp_path / "own_sizes.py").write_text("from own_numbers import arms\n")
    (tmp_path / "mine.py").write_text(PARTS.replace("arms=sides", "arms=own_sizes.arms") + "import own_sizes\n")
    for arms in (3, 11):
        (tmp_path / "own_numbers.py").write_text(f"arms = {arms}\n")
        assert build_run("grpo", "--task", f"{tmp_path}/mine.py:Coins").task.arms == arms


def test_a_neighbour_that_has_the_name_of_another_module_is_refused(tmp_path):
    for folder, name in (("a", "shared_things"), ("b", "shared_things"), ("c", "rliable")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.py").write_text("arms = 2\n")
        (tmp_path / folder / "mine.py").write_text(f"from {name} import *\n" + PARTS)
    assert build_run("grpo", "--task", f"{tmp_path}/a/mine.py:Coins")
    for folder, name in (("b", "shared_things"), ("c", "rliable")):
        with pytest.raises(UsageError, match=rf"imports .* under the name of .*/{folder}/{name}.py; rename that"):
            build_run("grpo", "--task", f"{tmp_path}/{folder}/mine.py:Coins")


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(UsageError, match="the task name 'gym' is taken"):
        anypo.register_task("gym:OTHER")(lambda other: other)
    with pytest.raises(UsageError, match="the policy name 'mlp' is taken"):
        anypo.register_policy("mlp")(lambda observations, actions: None)
    with pytest.raises(UsageError, match="unknown stage 'thrust'; did you mean 'trust'"):
        anypo.register_part("thrust")
    with pytest.raises(UsageError, match="the method id 'grpo' is taken"):
        anypo.register_method(anypo.method("grpo"))


def test_a_method_of_a_file_is_compared_and_verified_as_any_other(mine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ("mine.py:gentler", "mine.py:gentler:trust.coef=0.1", "grpo")
    table = anypo.compare(*names, task="mine.py:Coins", steps=1, seeds=1, out="c")
    assert [row["method"] for row in table["methods"]] == list(names)
    coefs = [
        anypo.load(f"c/mine.py-gentler{rest}-0").config.stages["trust"]["coef"] for rest in ("", "-trust.coef-0.1")
    ]
    assert coefs == [0.25, 0.1]
    (name, record), *_ = examine_all([mine + ":gentler"], seeds=[0], quick=True, jobs=1)
    assert (name, record["properties"]["failed"]) == (mine + ":gentler", [])


def test_a_run_of_a_file_has_its_folder_below_runs(mine, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    anypo.train(f"{mine}:gentler", task=f"{mine}:Coins", steps=1)
    (folder,) = (tmp_path / "here" / "runs").iterdir()
    assert "mine.py-gentler" in folder.name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "mine.py"]


ENTRY_POINTS = """
[anypo.methods]
gentler = shop.things:gentler
[anypo.procedures]
total = shop.things:total
[anypo.parts]
trust.squared-trust = shop.things:SquaredTrust
[anypo.tasks]
coins = shop.things:Coins
[anypo.policies]
elsewhere = shop.things:table
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder as pip installs a package with entry points."""
    site = tmp_path / "site"
    (site / "shop").mkdir(parents=True)
    (site / "shop" / "__init__.py").write_text("")
    (site / "shop" / "things.py").write_text(PARTS)
    about = site / "shop-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: shop\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(ENTRY_POINTS)
    return site


def anypo_with(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-m", "anypo", *arguments],
        capture_output=True,
        text=True,
        cwd=site.parent,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200"},
        timeout=300,
    )


def test_an_installed_package_gives_method_part_task_and_policy(package):
    done = anypo_with(
        package, "train", "gentler", "--task", "coins", "--policy", "elsewhere", "--steps", "2", "--out", "run"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((package.parent / "run" / "result.json").read_text())


def test_verify_covers_the_method_of_a_package(package):
    done = anypo_with(package, "verify", "gentler", "--quick")
    assert done.stdout.startswith("gentler: 12 of 12 properties"), done.stderr


def test_lists_show_what_a_package_adds(package):
    assert "shop" in next(line for line in anypo_with(package, "methods").stdout.splitlines() if "A sum" in line)
    assert "shop" in next(line for line in anypo_with(package, "methods").stdout.splitlines() if "gentler" in line)
    assert "Two arms." in anypo_with(package, "tasks").stdout
    assert "squared-trust" in anypo_with(package, "parts", "--stage", "trust").stdout


def test_an_installed_package_gives_a_procedure(package):
    done = anypo_with(package, "run", "total", "1,2")
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr


REWARDS = """
[anypo.rewards]
vowels = judges:vowels
{name} = judges:vowels
"""


def install_rewards(site: Path, monkeypatch: pytest.MonkeyPatch, name: str = "again") -> None:
    """Put a package with rewards on the path."""
    (site / "judges.py").write_text(
        "def vowels(completions, **columns):\n    return [sum(c in 'aeiou' for c in text) / 10 for text in completions]\n"
    )
    about = site / "judges-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: judges\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(REWARDS.format(name=name))
    monkeypatch.syspath_prepend(site)
    installed.cache_clear()


@pytest.fixture
def forget_packages():
    yield
    installed.cache_clear()


@pytest.mark.usefixtures("forget_packages")
def test_an_installed_package_gives_rewards(tmp_path, monkeypatch, tiny_model):
    install_rewards(tmp_path, monkeypatch)
    (tmp_path / "p.jsonl").write_text(
        "".join(json.dumps({"prompt": f"the {i}", "answer": "a"}) + "\n" for i in range(6))
    )
    flags = [f"--task=jsonl:{tmp_path / 'p.jsonl'}", "--reward=vowels,exact", f"--policy=hf:{tiny_model('llama')}"]
    run = build_run("grpo", *flags, "--task.max_new=4", "--collect.requests=2", "--collect.samples=2", "--steps=1")
    assert run.task.channels == ("vowels", "exact")
    assert "reward/vowels" in learn(run)
    assert describe_rewards()["vowels"] == "of the package judges"
    with pytest.raises(UsageError, match="unknown reward 'vowls'; did you mean 'vowels'"):
        build_run("grpo", flags[0], "--reward=vowls", flags[2])


@pytest.mark.usefixtures("forget_packages")
def test_a_reward_of_a_package_cannot_take_a_built_in_name(tmp_path, monkeypatch):
    install_rewards(tmp_path, monkeypatch, "exact")
    with pytest.raises(UsageError, match="the reward name 'exact' of the package judges is taken; choose another"):
        make_reward("vowels")


def test_a_package_that_fails_takes_no_other_method_away(package):
    (package / "shop" / "things.py").write_text("raise RuntimeError('closed')\n")
    done = anypo_with(package, "explain", "grpo")
    assert done.returncode == 0
    assert "'gentler' (methods) of the package shop cannot be imported: RuntimeError: closed" in done.stderr


def test_a_run_from_a_file_resumes_after_a_kill_and_refuses_a_changed_file(mine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = {"method": "mine.py:gentler", "task": "mine.py:Coins", "policy": "mine.py:table", "steps": 30}
    values |= {"stages": {}, "checkpoint_every": 1, "evaluate_every": 10}
    values = {name: value for name, value in values.items() if name != "stages"}
    learn(create(from_dict({**values, "out": "through"})))
    train_and_kill({**values, "out": "killed"}, lambda out: (out / "checkpoints" / "batch-00000003").exists())
    monkeypatch.chdir("/")
    learn(continue_run(tmp_path / "killed"))
    lines = [
        [
            {k: v for k, v in json.loads(line).items() if not k.startswith("time")}
            for line in (tmp_path / run / "metrics.jsonl").open()
        ]
        for run in ("through", "killed")
    ]
    assert len(lines[0]) >= 30
    assert lines[0] == lines[1]
    Path(mine).write_text(PARTS.replace("0.25", "0.35"))
    for use in (continue_run, reopen):
        with pytest.raises(UsageError, match=r"mine.py changed since the run in .* started; .* add --allow-code"):
            use(tmp_path / "killed")
    assert reopen(tmp_path / "killed", allow_code=True).remarks == [f"executes {mine}"]
    with pytest.raises(UsageError, match=r"in Python, allow_code=True"):
        anypo.load(tmp_path / "killed")
    assert anypo.load(tmp_path / "killed", allow_code=True).evaluate()
    with pytest.raises(UsageError, match=r"mine.py changed"):
        anypo.resume(tmp_path / "killed", steps=31)
    assert anypo.resume(tmp_path / "killed", steps=31, allow_code=True).run.done == 31


def test_a_folder_of_an_older_format_is_one_sentence(tmp_path):
    learn(create(from_dict({"method": "grpo", "task": "bandit", "steps": 1, "out": str(tmp_path / "r")})))
    path = tmp_path / "r" / "inputs.json"
    path.rename(tmp_path / "r" / "versions.json")
    with pytest.raises(UsageError, match="has the format 1 of an older anypo, this one reads 3; start a new run"):
        continue_run(tmp_path / "r")
