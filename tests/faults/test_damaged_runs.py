"""A damaged or missing file of a run, and what a run depends on and changed meanwhile, end in one sentence."""

import json
import os
import shutil

import numpy as np
import pytest
from killed import FORKS, Command

from anypo import config as configuration
from anypo.errors import RunError, UsageError
from anypo.loops.learn import learn
from anypo.report.console import finish, result_of
from anypo.runs.checkpoint import newest
from anypo.runs.folder import continue_run, create, reopen

BANDIT = {"method": "grpo", "task": "bandit", "steps": 4, "checkpoint_every": 1}


def start(folder, **values):
    return create(configuration.from_dict({**BANDIT, "out": str(folder), **values}))


def crash(run, batch=2):
    """Train until an error after the metrics of a batch and before its checkpoint."""

    def stop(record):
        if record["batch"] == batch:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        learn(run, stop)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run that stopped in its second batch; copy it before use."""
    folder = tmp_path_factory.mktemp("runs") / "r"
    crash(start(folder))
    return folder


@pytest.fixture
def run(interrupted, tmp_path):
    return shutil.copytree(interrupted, tmp_path / "r")


def flip(path):
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    """Leave a third of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


FILES = ("anchor-ref.safetensors", "inputs.json", "metrics.jsonl", "manifest.json", "policy.safetensors", "state.pt")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [flip, os.unlink, cut])
def test_a_damaged_file_of_a_run_is_refused_by_name(run, name, damage):
    path = run / name if (run / name).exists() else newest(run) / name
    damage(path)
    with pytest.raises(UsageError, match=name) as refusal:
        continue_run(run)
    assert "\n" not in str(refusal.value)


def test_another_result_than_the_one_written_is_refused(tmp_path):
    run = start(tmp_path / "r", steps=1)
    learn(run)
    finish(run)
    path = tmp_path / "r" / "result.json"
    path.write_text(path.read_text().replace('"after": 0', '"after": 9'))
    with pytest.raises(UsageError, match=r"result\.json is damaged; delete it"):
        result_of(tmp_path / "r")
    path.unlink()
    assert finish(continue_run(tmp_path / "r")).startswith(str(tmp_path / "r"))


def test_the_checkpoint_before_a_damaged_one_takes_its_place(run, tmp_path):
    learn(continue_run(run))
    flip(newest(run) / "state.pt")
    shutil.rmtree(newest(run))
    learn(continue_run(run))
    learn(start(tmp_path / "whole"))
    assert (run / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_numbers_that_are_not_finite_are_null_in_the_metrics(tmp_path):
    run = start(tmp_path / "r", steps=2)
    rollout = run.task.rollout
    run.task.rollout = lambda *a: (lambda rows, metrics: (rows, {**metrics, "odd": float("nan"), "far": float("inf")}))(
        *rollout(*a)
    )
    learn(run)

    def refuse(name):
        raise AssertionError(name)

    records = [
        json.loads(x, parse_constant=refuse) for x in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [record["odd"] for record in records[1:]] == [None, None] == [record["far"] for record in records[1:]]


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_all_files_of_a_run_have_the_mode_of_the_umask(tmp_path, mask, tiny_model):
    (tmp_path / "p.jsonl").write_text("".join(f'{{"prompt": "the {i}"}}\n' for i in range(6)))
    before = os.umask(mask)
    try:
        run = start(
            tmp_path / "r", task={"name": f"jsonl:{tmp_path / 'p.jsonl'}", "reward": "regex:a", "max_new": 3},
            policy=f"hf:{tiny_model('llama')}", steps=1, collect={"requests": 2, "samples": 2},
        )  # fmt: skip
        learn(run)
        finish(run)
    finally:
        os.umask(before)
    files = [p for p in (tmp_path / "r").rglob("*") if p.is_file()]
    assert {oct(p.stat().st_mode & 0o777) for p in files} == {oct(0o666 & ~mask)}
    assert {"model.safetensors", "policy.safetensors", "anchor-ref.safetensors", "state.pt"} <= {p.name for p in files}


def test_a_folder_that_cannot_be_written_ends_the_run_in_one_sentence(run):
    (run / "checkpoints" / ".batch-00000002").write_text("in the way")
    with pytest.raises(RunError, match=r"cannot write to .*go on with `anypo resume"):
        learn(continue_run(run))


# -------------------------------------------------------------------- what changed meanwhile


@pytest.fixture
def text(tmp_path, tiny_model):
    """Prompts, a reward and a model of one's own, all of which can change."""
    (tmp_path / "p.jsonl").write_text("".join(f'{{"prompt": "the {i}"}}\n' for i in range(6)))
    (tmp_path / "r.py").write_text("def length(completions, **_):\n    return [float(len(c)) for c in completions]\n")
    shutil.copytree(tiny_model("llama"), tmp_path / "model")
    return {
        "task": {"name": f"jsonl:{tmp_path / 'p.jsonl'}", "reward": f"{tmp_path / 'r.py'}:length", "max_new": 3},
        "policy": {"name": f"hf:{tmp_path / 'model'}", "lora": {"r": 2}}, "collect": {"requests": 2, "samples": 2},
    }  # fmt: skip


def change_reward(folder):
    (folder / "r.py").write_text((folder / "r.py").read_text() + "raise SystemExit\n")


def change_data(folder):
    (folder / "p.jsonl").write_text((folder / "p.jsonl").read_text().replace("the 1", "the 9"))


def change_weights(folder):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1e-3
    model.save_pretrained(folder / "model")


def change_tokenizer(folder):
    path = folder / "model" / "chat_template.jinja"
    path.write_text(path.read_text() + " ")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (change_reward, "r.py changed since"),
        (change_data, "the data of jsonl"),
        (change_weights, "the base weights of"),
        (change_tokenizer, "the tokenizer of"),
    ],
)
def test_a_run_goes_on_only_with_what_it_started_with(text, tmp_path, change, named):
    crash(start(tmp_path / "r", **text))
    change(tmp_path)
    with pytest.raises(UsageError, match=named):
        continue_run(tmp_path / "r")


PACKAGE = {
    "mine.py": """
from anypo.tasks.bandit import Bandit
from PIECES import sizes

class Coins(Bandit):
    name = "coins"

    def __init__(self, *, seed=0):
        import LATE
        super().__init__(contexts=LATE.CONTEXTS, arms=sizes.ARMS, seed=seed)
""",
    "PIECES/__init__.py": "",
    "PIECES/sizes.py": "from .more import ARMS\n",
    "PIECES/more.py": "ARMS = 3\n",
    "LATE.py": "CONTEXTS = 2\n",
    "unused.py": "",
}


@pytest.mark.parametrize("name", ["PIECES/__init__.py", "PIECES/more.py", "LATE.py"])
@pytest.mark.parametrize("change", [lambda path: path.write_text(path.read_text() + "# edited\n"), os.unlink])
def test_a_module_that_a_file_imports_is_part_of_what_a_run_started_with(tmp_path, name, change):
    def named(text):  # modules of a process need names of their own
        return text.replace("PIECES", f"pieces_{tmp_path.name}").replace("LATE", f"late_{tmp_path.name}")

    for path, text in PACKAGE.items():
        (tmp_path / named(path)).parent.mkdir(exist_ok=True)
        (tmp_path / named(path)).write_text(named(text))
    crash(start(tmp_path / "r", task=f"{tmp_path / 'mine.py'}:Coins"))
    (tmp_path / "unused.py").write_text("# edited\n")
    continue_run(tmp_path / "r")
    change(tmp_path / named(name))
    sentence = rf"{named(name)} changed since the run in .* started; .*--allow-code"
    for use in (continue_run, reopen):
        with pytest.raises(UsageError, match=sentence) as refusal:
            use(tmp_path / "r")
        assert "\n" not in str(refusal.value)


def test_the_module_of_an_environment_is_part_of_what_a_run_started_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "roads.py").write_text(
        "import gymnasium\nfrom gymnasium.envs.classic_control import CartPoleEnv\nimport road_length\n"
        "gymnasium.register('Road-v0', entry_point=CartPoleEnv, max_episode_steps=road_length.STEPS)\n"
    )
    (tmp_path / "road_length.py").write_text("STEPS = 5\n")
    values = {"method": "ppo", "task": {"name": "gym:roads:Road-v0", "envs": 1, "eval_episodes": 1}, "steps": 1}
    learn(start("r", **values))
    assert continue_run(tmp_path / "r", 2).steps == 2
    (tmp_path / "road_length.py").write_text("STEPS = 6\n")
    with pytest.raises(UsageError, match=r"road_length.py changed since the run in .* started"):
        continue_run(tmp_path / "r", 2)


def test_changed_transitions_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    columns = {"observations": rng.normal(size=(60, 3)), "actions": rng.uniform(-2, 2, (60, 1))}
    columns |= {"rewards": rng.normal(size=60), "terminals": np.arange(60) % 20 == 19}
    np.savez(tmp_path / "d.npz", **columns)
    values = {"method": "iql", "task": {"name": f"data:{tmp_path / 'd.npz'}", "env": "Pendulum-v1"}, "steps": 6}
    small = {"store": {"batch": 4, "idle": 2}, "policy": {"hidden": [4]}, "episodes": 1}
    crash(start(tmp_path / "r", **values, **small), 1)
    columns["rewards"][7] += 0.5
    np.savez(tmp_path / "d.npz", **columns)
    with pytest.raises(UsageError, match=r"the data of data:.*are not those the run"):
        continue_run(tmp_path / "r")


def test_an_edited_configuration_is_said(run):
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("lr: 0.05", "lr: 0.1"))
    assert continue_run(run).remarks == ["config.yaml was edited since the run started: step.lr 0.05 -> 0.1"]


# -------------------------------------------------------------------- length, checkpoints, working directory


def test_resume_with_steps_sets_the_total_length_and_schedules_follow(tmp_path):
    run = start(tmp_path / "r", steps=4, step={"lr": 0.1, "schedule": "linear"})
    learn(run)
    finish(run)
    code, out, _ = Command(tmp_path, "resume", "r", "--steps", 8).end()
    assert code == 0
    assert any("the length changes from 4 to 8 batches after 4" in line and "differ" in line for line in out)
    records = [json.loads(x) for x in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert [record["batch"] for record in records] == list(range(9))
    assert [r["lr"] for r in records[5:]] == pytest.approx([0.1 * (1 - i / 8) for i in range(4, 8)])
    assert result_of(tmp_path / "r")["done"] == 8
    code, out, _ = Command(tmp_path, "resume", "r", "--steps", 3).end()
    assert (code, out[0]) == (0, "r is finished")
    assert result_of(tmp_path / "r")["done"] == 8


def test_an_unfinished_run_shortened_below_what_is_done_is_finished(run):
    code, out, _ = Command(run.parent, "resume", "r", "--steps", 1).end()
    assert code == 0
    assert out[-1].startswith("r  reward ")
    assert result_of(run)["done"] == 1


def test_a_knob_follows_the_new_length(tmp_path):
    run = start(tmp_path / "r", steps=4, trust={"low": {"knob": "linear", "start": 0.4, "end": 0.0}})
    learn(run)
    assert float(run.method.stages["trust"].low) == pytest.approx(0.0)
    longer = continue_run(tmp_path / "r", 8)
    assert float(longer.method.stages["trust"].low) == pytest.approx(0.2)


def test_the_best_checkpoint_is_kept_and_named(tmp_path):
    run = start(tmp_path / "r", steps=8, evaluate_every=1)
    measure = iter([0.1, 0.2, 0.7, 0.3, 0.7, 0.1, 0.2, 0.3, 0.4])
    run.task.evaluate = lambda *_: {"reward": next(measure), "regret": 0.0}
    learn(run)
    kept = sorted(p.name for p in (tmp_path / "r" / "checkpoints").iterdir())
    assert kept == ["batch-00000002", "batch-00000007", "batch-00000008"]
    assert [reopen(tmp_path / "r", name).batch for name in ("best", "last", "7")] == [2, 8, 7]
    with pytest.raises(UsageError, match=r"keeps no checkpoint '5'; there are best, last, 2, 7, 8"):
        reopen(tmp_path / "r", "5")
    code, out, _ = Command(tmp_path, "evaluate", "r", "--checkpoint", "best").end()
    assert code == 0
    assert "after 2 batches" in out[0]


def test_a_run_means_the_same_in_any_working_directory(tmp_path, text, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = {"name": "jsonl:p.jsonl", "reward": "r.py:length", "heldout": "p.jsonl", "max_new": 3}
    learn(start("r", task=relative, policy="hf:model", steps=1, collect=text["collect"]))
    (tmp_path / "elsewhere").mkdir()
    for words in (("evaluate", tmp_path / "r"), ("sample", "../r", "the"), ("resume", "../r", "--steps", 2)):
        code, _, errors = Command(tmp_path / "elsewhere", *words).end()
        assert (code, errors.replace(f"anypo: executes {tmp_path / 'r.py'}\n", "")) == (0, ""), words


def test_a_full_disk_ends_a_run_in_one_sentence_and_it_goes_on(tmp_path):
    values = {"method": "grpo", "task": "bandit", "steps": 30, "checkpoint_every": 5, "evaluate_every": 1000}
    process = FORKS.Process(target=train_below, args=(values, tmp_path / "r", 14_000))
    process.start()
    process.join()
    assert (tmp_path / "sentence").read_text().startswith(f"cannot write to {tmp_path / 'r'}: File too large; ")
    learn(continue_run(tmp_path / "r"))
    learn(create(configuration.from_dict({**values, "out": str(tmp_path / "whole")})))
    assert (tmp_path / "r" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def train_below(values, folder, limit):
    """Train where no file may have more than so many bytes; write down what ended the run."""
    import resource

    import torch

    torch.set_num_threads(1)
    run = create(configuration.from_dict({**values, "out": str(folder)}))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        learn(run)
    except RunError as error:
        (folder.parent / "sentence").write_text(str(error))
