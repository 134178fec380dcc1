"""Settings arrive as they were typed, within their declared range, under the usual words; mistakes are one sentence."""

from __future__ import annotations

import errno
import re
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import torch
import yaml

import anypo
from anypo import policies
from anypo.config import Config, from_dict
from anypo.errors import UsageError, describe_failure, unknown
from anypo.flags import REWARDS, TEXTS, parse_flags
from anypo.parts.knobs.base import KNOBS
from anypo.parts.registry import PARTS, build_stage
from anypo.plain_yaml import dump_yaml, load_yaml
from anypo.policies.control import mlp, off_policy
from anypo.policies.generative import diffusion, flow
from anypo.policies.language.model import LanguageModel
from anypo.ranges import Range, alternatives, field_hints, parameter_hints
from anypo.runs.settings import spec_of
from anypo.stages import CHAINS, SLOTS
from anypo.tasks import TASKS, make_task
from anypo.tasks.text.verifiers import BUILT_IN

LOOKS_LIKE_YAML = (
    *(
        "###",
        "\n",
        "Question:",
        "User: ",
        "no",
        "null",
        "12:30",
        "- x",
        "#",
        "|",
        "2024_01_02",
        "007",
        "exp #1",
        "a: b",
    ),
    *("~", "{a}", "[", "1e3", "0x10", '"a"', "on", "1"),
)


# -------------------------------------------------------------------- text


@pytest.mark.parametrize("text", LOOKS_LIKE_YAML)
def test_text_arrives_as_it_was_typed(text):
    for spelling in (["--out", text], [f"--out={text}"], ["--set", f"out={text}"]):
        assert parse_flags(spelling)[1] == {"out": text}
    values = parse_flags(["--policy.stop", text, "--task", text, "--policy", text, "--device", text])[1]
    assert values == {"policy": {"stop": text, "name": text}, "task": text, "device": text}


@pytest.mark.parametrize("text", LOOKS_LIKE_YAML)
def test_text_survives_the_file_of_a_run(text, tmp_path):
    values = {"out": text, "policy": {"stop": [text]}, "step": {"lr": 3e-4}, "task": {"name": text, "size": 10}}
    (tmp_path / "c.yaml").write_text(dump_yaml(values))
    assert load_yaml(tmp_path / "c.yaml") == values
    assert yaml.safe_load((tmp_path / "c.yaml").read_text())["out"] == text


def test_a_list_in_brackets_is_a_list():
    assert parse_flags(["--policy.stop", '["a", "b: c"]'])[1] == {"policy": {"stop": ["a", "b: c"]}}
    assert parse_flags(["--critic", "[{part: value, clip: 0.1}]"])[1] == {"critic": [{"part": "value", "clip": 0.1}]}


@pytest.mark.parametrize(
    ("typed", "rewards"),
    [
        (r"regex:\d{1,3}$", [r"regex:\d{1,3}$"]),
        ("exact, numeric", ["exact", "numeric"]),
        ("a.py:f,regex:x, y,model:runs/a", ["a.py:f", "regex:x, y", "model:runs/a"]),
    ],
)
def test_a_comma_ends_a_reward_where_another_begins(typed, rewards):
    assert parse_flags(["--reward", typed])[1] == {"task": {"reward": rewards}}
    assert set(REWARDS) == set(BUILT_IN)


@pytest.mark.parametrize(
    ("typed", "value"),
    [("010", 10), ("1e3", 1000.0), (".5", 0.5), ("-3", -3), ("true", True), ("none", None)]
    + [(text, text) for text in ("1:30", "on", "0x10", "1_000", "2024-01-02", "1.2.3", "٣")],
)  # fmt: skip
def test_numbers_are_plain_decimals_on_the_command_line_and_in_a_file(typed, value, tmp_path):
    assert parse_flags(["--trust.low", typed])[1] == {"trust": {"low": value}}
    if typed == "none":
        return
    (tmp_path / "c.yaml").write_text(f"trust: {{low: {typed}}}\n" if typed != "1:30" else "trust: {low: 1:30}\n")
    assert load_yaml(tmp_path / "c.yaml") == {"trust": {"low": value}}


def test_every_option_that_is_text_is_read_as_text():
    for entry in TASKS.values():
        for name, hint in entry.options().items():
            if hint in (str, str | None):
                assert f"task.{name}" in TEXTS, name
    for name, hint in parameter_hints(LanguageModel.load).items():
        if hint is str:
            assert f"policy.{name}" in TEXTS, name


def test_an_empty_stop_string_is_refused(tiny_model):
    task = make_task({"name": "sums"}, 0)
    spec = {"name": f"hf:{tiny_model('llama')}", "stop": ""}
    with pytest.raises(UsageError, match=r"policy.stop is '', it must be a text that is not empty"):
        policies.make_policy(spec, task, value=False, seed=0)


@pytest.mark.parametrize(("typed", "weights"), [("0.5", [0.5]), ("1,0.5", [1.0, 0.5]), ("[1, 0.5]", [1.0, 0.5])])
def test_weights_are_one_number_or_several(typed, weights, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "c", "answer": "d"}\n')
    rewards = ["exact", "numeric"][: len(weights)]
    values = parse_flags([f"--task=jsonl:{tmp_path / 'p.jsonl'}", "--task.weights", typed])[1]
    task = make_task({**values["task"], "reward": rewards}, 0)
    assert task.weights.tolist() == weights


# -------------------------------------------------------------------- files

BOMB = "a: &a [1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{last}'] * 9)}]\n" for last, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("seed: 1\nsteps: 2\nseed: 3\n", "the key 'seed' is there twice"),
        ("step: {lr: 1, lr: 2}\n", "the key 'lr' is there twice"),
        (BOMB, "aliases"),
        ("base: &b {x: 1}\nseed: &s [*s, 1]\n", "aliases"),
        ("seed: " + "[" * 5000, "nested too deeply"),
        ("seed: !!python/object:os.system {}\n", "not valid YAML"),
        ("? [1]\n: 2\n", "not valid YAML"),
        ("- 1\n", "should hold `key: value` lines"),
    ],
)  # fmt: skip
def test_a_file_with_a_key_twice_or_a_bomb_is_refused_in_one_sentence(tmp_path, text, sentence):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UsageError, match=sentence) as refusal:
        load_yaml(tmp_path / "c.yaml")
    assert "\n" not in str(refusal.value)


def test_merge_keys_and_aliases_still_work(tmp_path):
    (tmp_path / "c.yaml").write_text("step: &s {lr: 0.1}\nother: {<<: *s, epochs: 2}\n")
    assert load_yaml(tmp_path / "c.yaml")["other"] == {"lr": 0.1, "epochs": 2}


# -------------------------------------------------------------------- ranges


def lacks_range(hint: Any) -> bool:
    """Whether some number that a hint allows, or a member of its lists, has no range beside it."""
    marker = Range(least=0.123)
    for option, limits in alternatives(hint, marker):
        inner = (
            [x for x in get_args(option) if x is not Ellipsis] if get_origin(option) in (tuple, list, Sequence) else []
        )
        if (option in (int, float) and limits is marker) or any(map(lacks_range, inner)):
            return True
    return False


def test_every_number_of_every_part_knob_task_and_policy_declares_its_range():
    classes = {cls for known in PARTS.values() for cls in known.values()} | set(KNOBS.values()) | {Config}
    hints = {f"{cls.__name__}.{f.name}": field_hints(cls)[f.name] for cls in classes for f in fields(cls) if f.init}
    hints |= {f"{entry.form} {name}": hint for entry in TASKS.values() for name, hint in entry.options().items()}
    kinds = (mlp.MLPPolicy, flow.FlowPolicy, diffusion.DiffusionPolicy, off_policy.Actor, off_policy.Experts)
    for factory in (*kinds, LanguageModel.load):
        names = [name for name in policies.keywords(factory) if name not in ("seed", "value", "networks")]
        hints |= {f"{factory.__qualname__} {name}": parameter_hints(factory)[name] for name in names}
    assert [path for path, hint in hints.items() if lacks_range(hint)] == []


def test_every_registered_method_is_within_the_ranges_of_its_parts():
    for name in anypo.methods():
        method = anypo.method(name)
        for slot in SLOTS:
            assert build_stage(slot, spec_of(slot, method)) is not None or method.stages[slot] is None


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--step.grad_norm=-1", "step.grad_norm is -1, it must be above 0"),
        ("--step.lr=nan", "step.lr is nan, it must be at least 0"),
        ("--step.policy_lr=.nan", "step.policy_lr is nan"),
        ("--step.lr=inf", "step.lr is inf"),
        ("--step.minibatch=-3", "step.minibatch is -3"),
        ("--step.warmup=-1", "step.warmup is -1"),
        ("--step.betas=[0.9, 1]", "step.betas is .*below 1"),
        ("--terms.divergence.coef=nan", "terms.divergence.coef is nan"),
        ("--credit=gae --credit.gae.gamma=2", "credit.gae.gamma is 2, it must be from 0 to 1"),
        ("--credit=gae --credit.gae.lam=3", "credit.gae.lam is 3"),
        ("--store=transitions --store.idle=-1", "store.idle is -1"),
        ("--store=transitions --store.ratio=-1", "store.ratio is -1"),
        ("--store=transitions --store.share=1e308", "store.share is 1e"),
        ("--trust.low={knob: linear, start: 0.2, end: -0.1}", "trust.low is 0.2->-0.1, it must be at least 0"),
        ("--trust.low={knob: linear}", "the knob 'linear' needs start and end"),
        ("--trust.low={knob: linear, start: 0, end: .nan}", "trust.low.end is nan, it must be finite"),
        ("--trust.low={knob: linear, start: 0, end: 1, until: 2}", "trust.low.until is 2"),
        ("--seed=-1", "seed is -1, it must be from 0 to 4,294,967,295"),
        ("--seed=1:30", "seed is '1:30'; it takes a whole number"),
        ("--threads=1000000", "threads is 1000000, it must be from 1 to 512"),
        ("--target=nan", "target is nan, it must be finite"),
        ("--steps=1.5", "steps is 1.5; it takes a whole number"),
        ("--steps=99999999999999999999", "steps is 99999999999999999999"),
        ("--trackers=3", "unknown tracker '3'"),
        ("--device=null", "unknown device 'null'"),
    ],
)
def test_a_value_outside_its_range_is_refused_in_one_sentence(call, flag, sentence, tmp_path):
    code, _, error = call(
        "train", "grpo", "--task", "bandit", "--steps", 2, "--out", "r", *flag.replace(" --", "\0--").split("\0")
    )
    assert code == 2
    assert error.count("\n") == 1
    assert re.search(sentence, error), error
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("task", "policy", "sentence"),
    [
        ({"name": "gym:CartPole-v1", "envs": 1e9}, {}, "task.envs is 1000000000.0, it must be from 1 to 10,000"),
        ({"name": "bandit", "noise": -1}, {}, "task.noise is -1"),
        ({"name": "gym:CartPole-v1"}, {"hidden": [64, 0]}, "policy.hidden is .* it must be from 1 to 4,096"),
        ({"name": "gym:CartPole-v1"}, {"hidden": "wide"}, "policy.hidden is 'wide'; it takes a list of a whole number"),
    ],
)
def test_options_of_tasks_and_policies_have_ranges_too(task, policy, sentence):
    with pytest.raises(UsageError, match=sentence):
        policies.make_policy({"name": "mlp", **policy}, make_task(task, 0), value=True, seed=0)


def test_one_number_is_a_list_of_one_layer():
    task = make_task({"name": "gym:CartPole-v1", "envs": 1}, 0)
    policy = policies.make_policy({"name": "mlp", "hidden": 16}, task, value=False, seed=0)
    assert sum(p.shape == (16, 4) for p in policy.parameters()) == 1


# -------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("learner", "flag", "path"),
    [
        ("grpo", "--lr", "step.lr"),
        ("grpo", "--learning-rate", "step.lr"),
        ("grpo", "--learning_rate", "step.lr"),
        ("grpo", "--total-timesteps", "steps"),
        ("grpo", "--group-size", "collect.samples"),
        ("grpo", "--num-generations", "collect.samples"),
        ("grpo", "--batch-size", "step.minibatch"),
        ("dqn", "--batch-size", "store.batch"),
        ("grpo", "--beta", "terms.divergence.coef"),
        ("dpo", "--beta", "trust.beta"),
    ],
)
def test_usual_words_stand_for_settings(learner, flag, path):
    words, values = parse_flags([learner, flag, "4"])
    config = from_dict({**values, "method": words[0]})
    expected = from_dict({**parse_flags([f"--{path}", "4"])[1], "method": learner})
    assert config == expected
    assert anypo.method(learner).configure(config.stages)


def test_a_word_that_stands_for_no_or_several_settings_lists_the_candidates():
    with pytest.raises(UsageError, match="reinforce has no setting that --beta could stand for"):
        from_dict({"method": "reinforce", "beta": 0.1})
    stages = {"credit": "advantage", "score": "kl-penalty"}
    with pytest.raises(UsageError, match=r"name the one you mean: --score.kl-penalty.beta, --credit.advantage.beta"):
        from_dict({"method": "ppo", "beta": 0.1, **stages})


@pytest.mark.parametrize("typed", ["gsm8k", "ALE/Pong-v5", "toys:Base-v0"])
def test_a_suggestion_is_similar_to_what_was_typed(typed):
    names = [*anypo.methods(), "sums", "Ant-v5", "FrozenLake-v1", "rpo-sft"]
    assert "did you mean" not in str(unknown("name", typed, names))
    assert "did you mean 'grpo'" in str(unknown("method", "grppo", names))
    assert len(str(unknown("name", typed, names))) < 600


# -------------------------------------------------------------------- what ends in one sentence


@pytest.mark.parametrize(
    ("flags", "code", "sentence"),
    [
        (("--out", "x" * 300), 2, "File name too long"),
        (("--critic", "[{part: conservative}]"), 2, "is a penalty of a head"),
        (("--collect.samples", "100000000000"), 1, "out of memory"),
        (("--trust.low", "{knob: dual, start: 1, metric: kl_rf, bound: 0}"), 2, "unknown metric 'kl_rf'"),
        (("--set", "noequals"), 2, "--set takes PATH=VALUE"),
        (("--step..lr", "1"), 2, "empty piece"),
    ],
)
def test_common_mistakes_end_in_one_sentence(call, flags, code, sentence):
    ended, _, error = call("train", "ppo", "--task", "bandit", "--steps", 2, "--step.minibatch", 8, *flags)
    assert ended == code
    assert error.count("\n") == 1
    assert sentence in error


ODD = """from dataclasses import dataclass


@dataclass(frozen=True)
class Pixels:
    level = "decision"
    reads = ("advantage",)

    def __call__(self, x, b):
        return b.trace["pixels"], {}
"""


def test_a_part_that_looks_for_what_the_task_does_not_have_is_refused_in_one_sentence(call, tmp_path):
    (tmp_path / "odd.py").write_text(ODD)
    flags = ("--task", "bandit", "--steps", 2, "--step.minibatch", 8, "--trust", f"{tmp_path}/odd.py:Pixels")
    ended, _, error = call("train", "ppo", *flags)
    assert ended == 2
    assert error.count("\n") == 1
    assert "ppo with another trust does not fit the task" in error


def test_a_full_disk_ends_a_run_in_one_sentence(call):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, limits[1]))
    try:
        code, _, error = call("train", "grpo", "--task", "bandit", "--steps", 500, "--out", "r")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 1
    assert error.count("\n") == 1
    assert "File too large" in error or "cannot write" in error


def test_errors_of_the_machine_are_told_from_mistakes_in_the_program():
    with pytest.raises(OSError, match="No space left") as full, Path("/dev/full").open("w") as handle:
        handle.write("x")
    assert "cannot write" in str(describe_failure(full.value))
    with pytest.raises(RuntimeError) as memory:
        torch.empty(2**60)
    assert str(describe_failure(memory.value)).startswith("out of memory")
    assert "Permission denied" in str(describe_failure(PermissionError(errno.EACCES, "Permission denied", "/a/b")))
    assert describe_failure(RuntimeError("shapes differ")) is None
    assert describe_failure(KeyError("price")) is None


def test_a_chain_is_named_and_its_links_changed_by_flags():
    values = parse_flags(["--credit", "gae,whiten", "--credit.gae.lam", "0.5"])[1]
    chain = build_stage("credit", from_dict({"method": "ppo", **values}).stages["credit"])
    assert [type(part).__name__ for part in chain] == ["Gae", "Whiten"]
    assert chain[0].lam == 0.5
    assert "credit" in CHAINS
    values = parse_flags(["--credit", "segment-gae", "--credit.segment-gae.gamma", "0.5"])[1]
    (link,) = build_stage("credit", from_dict({"method": "ppo", **values}).stages["credit"])
    assert link.gamma == 0.5


def test_help_and_version_do_not_wait_for_torch():
    script = (
        "import sys\nfrom anypo.cli import main\nsys.argv = ['anypo', sys.argv[1]]\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\nassert 'torch' not in sys.modules\n"
    )
    for flag, word in (("--help", "train"), ("--version", anypo.__version__)):
        environment = {"PYTHONPATH": str(Path(anypo.__file__).parents[1]), "PATH": "/usr/bin:/bin"}
        done = subprocess.run(
            [sys.executable, "-c", script, flag], capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr
        assert word in done.stdout


def test_the_plan_says_that_a_length_is_rounded_up_and_what_it_amounts_to(call):
    flags = ("--task", "gym:CartPole-v1", "--task.envs", 1, "--task.eval_episodes", 1, "--step.epochs", 1)
    _, out, _ = call("train", "ppo", *flags, "--steps", 200)
    length = next(line for line in out if line.startswith("length"))
    assert "200 environment steps, rounded up to 208: at most 208 decisions and about 13 updates" in length


def test_a_store_of_transitions_wants_observations_and_says_so(call):
    code, _, error = call("train", "ppo", "--task", "bandit", "--store", "transitions", "--steps", "2", "--out", "r")
    assert code == 2
    assert "keeps transitions of observations, and the policy of the task bandit reads none" in error
    assert len(error.splitlines()) == 1
