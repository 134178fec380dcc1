"""Runs that were killed, or stopped by an error, go on to the same metrics and weights, byte by byte."""

import json

import numpy as np
import pytest
import torch
from entries import entries
from killed import train_and_kill

from anypo import config as configuration
from anypo.loops.learn import learn
from anypo.runs.checkpoint import newest
from anypo.runs.folder import continue_run, create

ON_POLICY = {
    "method": "grpo", "steps": 12, "checkpoint_every": 1, "collect": {"requests": 4, "samples": 3}, "step": {"lr": 1e-3},
}  # fmt: skip
CONTROL = {"method": "ppo", "steps": 7168, "checkpoint_every": 1, "episodes": 2, "step": {"epochs": 2}}
REPLAY = {
    "method": "sac", "task": "gym:Pendulum-v1", "steps": 600, "checkpoint_every": 1, "episodes": 1, "evaluate_every": 1000,
    "collect": {"first": 60}, "store": {"batch": 8, "start": 40, "ratio": 0.3}, "policy": {"hidden": [16, 16]}, "threads": 1,
}  # fmt: skip
BANDIT = {"method": "grpo", "task": "bandit", "steps": 40, "checkpoint_every": 3, "evaluate_every": 3}
STATEFUL = {
    "task": "bandit", "steps": 40, "checkpoint_every": 5, "evaluate_every": 10, "threads": 1,
    "collect": {"requests": 4, "samples": 4},
}  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory, tiny_model):
    """Chat prompts and a user's reward function for a small language model."""
    folder = tmp_path_factory.mktemp("text")
    rows = [{"prompt": [{"role": "user", "content": f"{i}+{i}"}], "answer": str(2 * i)} for i in range(9)]
    (folder / "chat.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "reward.py").write_text(
        "def vowels(prompts, completions, answer, **kwargs):\n"
        "    return [sum(c in 'aeiou' for c in x[0]['content']) / 1.5 for x in completions]\n"
    )
    return {
        "task": {"name": f"jsonl:{folder / 'chat.jsonl'}", "reward": f"{folder / 'reward.py'}:vowels", "max_new": 6},
        "policy": {"name": f"hf:{tiny_model('qwen2')}", "stop": ["e", "t"]},
    }


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Transitions of a pendulum."""
    path, rng = tmp_path_factory.mktemp("data") / "d.npz", np.random.default_rng(0)
    columns = {"observations": rng.normal(size=(200, 3)), "actions": rng.uniform(-2, 2, (200, 1))}
    np.savez(path, **columns, rewards=rng.normal(size=200), terminals=np.arange(200) % 50 == 49)
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Preferred and other answers."""
    path = tmp_path_factory.mktemp("pairs") / "p.jsonl"
    rows = [{"prompt": f"say {i}:", "chosen": f"a{i % 7}a", "rejected": f"b{i % 5}"} for i in range(60)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def lines(folder):
    return (folder / "metrics.jsonl").read_text().splitlines()


def weights(run):
    return torch.cat([p.detach().flatten() for p in run.policy.parameters()])


def compare_with_whole(values, folder, whole):
    """Finish the run in `folder`; it must end as one that was never interrupted."""
    again = continue_run(folder)
    assert again.batch > 0
    learn(again)
    uninterrupted = create(configuration.from_dict({**values, "out": str(whole)}))
    learn(uninterrupted)
    assert lines(folder) == lines(whole)
    assert torch.equal(weights(again), weights(uninterrupted))


def under_way(folder):
    """Whether a run has written four lines of metrics and a checkpoint after the first."""
    metrics = folder / "metrics.jsonl"
    return metrics.exists() and len(lines(folder)) >= 4 and newest(folder).name > "batch-00000000"


@pytest.mark.parametrize(
    "loop", ["text", "control", "replay", "offline", "preferences", "generative", "phases", "bandit"]
)
def test_a_killed_run_resumes_to_the_same_bytes(loop, tmp_path, text, recorded, pairs, tiny_model):
    values = {
        "text": lambda: ON_POLICY | text,
        "control": lambda: CONTROL | {"task": "gym:CartPole-v1", "collect": {"requests": 8}},
        "replay": lambda: REPLAY,
        "offline": lambda: {
            "method": "iql", "task": {"name": f"data:{recorded}", "env": "Pendulum-v1"}, "steps": 120, "checkpoint_every": 1,
            "evaluate_every": 1000, "episodes": 1, "store": {"batch": 16, "idle": 6}, "policy": {"hidden": [16, 16]}, "threads": 1,
        },
        "preferences": lambda: {
            "method": "dpo", "task": f"pairs:{pairs}", "policy": f"hf:{tiny_model('qwen2', kind='char')}", "steps": 20,
            "checkpoint_every": 1, "collect": {"requests": 16}, "step": {"lr": 3e-3},
        },
        "generative": lambda: {
            "method": "dppo", "task": "multimodal", "policy": {"name": "diffusion", "steps": 3}, "steps": 30,
            "checkpoint_every": 1, "collect": {"requests": 2, "samples": 4}, "step": {"epochs": 2, "minibatch": 8},
        },
        "phases": lambda: STATEFUL | {"method": "remix", "steps": 70},
        "bandit": lambda: BANDIT,
    }[loop]()  # fmt: skip
    train_and_kill({**values, "out": str(tmp_path / "killed")}, under_way)
    compare_with_whole(values, tmp_path / "killed", tmp_path / "whole")


class Crash(Exception):
    """An error in the middle of a run."""


def crash(values, folder, batch):
    """Train until an error after the metrics of a batch and before its checkpoint."""

    def stop(record):
        if record["batch"] == batch:
            raise Crash

    with pytest.raises(Crash):
        learn(create(configuration.from_dict({**values, "out": str(folder)})), stop)


@pytest.mark.parametrize("method", entries(["riskpo", "knapsack-rl", "n-pg-igt", "safe", "oblr-po", "r2vpo", "remix"]))
def test_state_of_knobs_stores_anchors_and_steps_survives_an_error(method, tmp_path):
    values, batch = STATEFUL | {"method": method}, 13
    if method == "remix":  # in its second phase
        values, batch = values | {"steps": 70}, 58
    crash(values, tmp_path / "crashed", batch)
    compare_with_whole(values, tmp_path / "crashed", tmp_path / "whole")


@pytest.mark.parametrize("method", entries(["sac", "td3", "rlpd", "dsac-t"]))
def test_a_replaying_run_survives_an_error(method, tmp_path):
    values = REPLAY | {"method": method, "steps": 200}
    crash(values, tmp_path / "crashed", 3)
    compare_with_whole(values, tmp_path / "crashed", tmp_path / "whole")


@pytest.mark.parametrize("kind", ["tensor", "dapo"])
def test_a_run_on_tensors_and_one_that_samples_again_survive_an_error(kind, tmp_path, text):
    task = {"name": "tensor:CartPole-v1", "envs": 8, "chunk": 5}
    again = ON_POLICY | text | {"method": "dapo", "steps": 8, "collect": {"requests": 3, "samples": 3}}
    values = {"tensor": CONTROL | {"task": task}, "dapo": again}[kind]
    crash(values, tmp_path / "crashed", 4)
    compare_with_whole(values, tmp_path / "crashed", tmp_path / "whole")
