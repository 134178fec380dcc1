"""Control policies as programs that load without anypo."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import tiny
import torch
from gymnasium import spaces
from typer.testing import CliRunner

import anypo
from anypo.cli.app import app
from anypo.errors import UsageError

SPACES = {
    "discrete": (spaces.Box(-3.0, 3.0, (4,), np.float32), spaces.Discrete(3, start=5)),
    "parts": (
        spaces.Dict({"b": spaces.Box(0, 255, (2, 2), np.uint8), "a": spaces.MultiDiscrete([2, 3], start=[1, 0])}),
        spaces.MultiDiscrete([3, 4]),
    ),
    "tuple": (
        spaces.Tuple([spaces.Discrete(3, start=2), spaces.MultiBinary(4)]),
        spaces.Box(np.array([-1.0, 2.0]), np.array([1.0, np.inf])),
    ),
    "masked": (
        spaces.Dict({"action_mask": spaces.MultiBinary(4), "x": spaces.Box(-1.0, 1.0, (2,))}),
        spaces.Discrete(4),
    ),
}

SHORT = {"steps": 1, "episodes": 1, "step": {"epochs": 1}}
"""A run of one batch."""


class Noise(gymnasium.Env):
    """Observations without a pattern, and a reward for them."""

    def __init__(self, kind: str):
        self.observation_space, self.action_space = SPACES[kind]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.left = 10
        return draw(self.observation_space), {}

    def step(self, action):
        self.left -= 1
        return draw(self.observation_space), float(np.sum(action)), self.left == 0, False, {}


def draw(space):
    """Sample an observation; a mask allows something."""
    obs = space.sample()
    if isinstance(obs, dict) and "action_mask" in obs:
        obs["action_mask"][obs["action_mask"].sum() % 4] = 1
    return obs


def batch_of(rows):
    """Put observations together, as tensors in their structure."""
    if isinstance(rows[0], dict):
        return {name: batch_of([row[name] for row in rows]) for name in rows[0]}
    if isinstance(rows[0], tuple):
        return tuple(batch_of(list(column)) for column in zip(*rows, strict=True))
    return torch.from_numpy(np.stack([np.asarray(row) for row in rows]))


@pytest.mark.parametrize(
    ("learner", "kind", "settings"),
    [
        ("ppo", "discrete", {}),
        ("ppo", "parts", {}),
        ("ppo", "tuple", {}),
        ("ppo", "masked", {}),
        ("sac", "tuple", {"step": {}}),
        ("td3", "tuple", {"policy": {"normalize": True}, "step": {}}),
        ("dqn", "masked", {"step": {}}),
        ("pmoe", "tuple", {"step": {}}),
    ],
)
def test_an_exported_program_gives_the_actions_of_predict(learner, kind, settings, tmp_path):
    run = anypo.train(
        learner, task={"env": lambda: Noise(kind), "envs": 1}, **{**SHORT, **settings}, out=tmp_path / "r"
    )
    program = torch.export.load(run.export(out=tmp_path / "p.pt2")).module()
    space, action_space = SPACES[kind]
    space.seed(3)
    rows = [draw(space) for _ in range(40)]
    expected = run.predict(rows if isinstance(space, spaces.Dict | spaces.Tuple) else np.stack(rows))
    actions = program(batch_of(rows)).numpy()
    assert actions.dtype == expected.dtype
    np.testing.assert_allclose(actions, expected, atol=1e-6)
    assert all(action_space.contains(action) for action in actions)
    np.testing.assert_array_equal(program(batch_of(rows[:1])).numpy(), actions[:1])
    if kind == "masked":
        assert all(row["action_mask"][action] for row, action in zip(rows, actions, strict=True))


def test_a_program_loads_where_anypo_is_never_imported(tmp_path):
    run = anypo.train("ppo", task={"name": "gym:Pendulum-v1", "envs": 1}, **SHORT, out=tmp_path / "r")
    path = run.export()
    assert path == tmp_path / "r" / "policy.pt2"
    code = (
        "import sys, torch; act = torch.export.load(sys.argv[1]).module();"
        "print(act(torch.tensor([[1., 0., 2.]])).item(), 'anypo' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True).stdout
    action, imported = shown.split()
    assert imported == "False"
    assert float(action) == pytest.approx(run.predict(np.array([1, 0, 2], np.float32)).item(), abs=1e-6)


def test_a_table_is_exported_and_what_cannot_be_is_one_sentence(tmp_path):
    run = anypo.train("reinforce", task="bandit", steps=1, out=tmp_path / "r")
    actions = torch.export.load(run.export()).module()(torch.arange(8))
    assert actions.tolist() == [run.predict(context) for context in range(8)]
    with pytest.raises(UsageError, match="unknown format 'onxx'; did you mean 'onnx'"):
        run.export("onxx")
    flow = anypo.train("ppo", task="multimodal", policy="flow", **SHORT, out=tmp_path / "f")
    with pytest.raises(UsageError, match="the greedy action of FlowPolicy begins with noise"):
        flow.export()


def test_a_language_model_is_saved_already(tmp_path):
    folder = tiny.language_model(tmp_path / "lm")
    run = anypo.train(
        "grpo",
        task={"rows": [{"prompt": "1+"}, {"prompt": "2+"}], "max_new": 2},
        reward=lambda completions: [1.0] * len(completions),
        policy=f"hf:{folder}",
        collect={"requests": 1, "samples": 2},
        steps=1,
        out=tmp_path / "r",
    )
    with pytest.raises(UsageError, match=r"language models are saved already: transformers loads .*/r/model"):
        run.export()


def test_the_command_names_the_file(tmp_path):
    anypo.train("ppo", task={"name": "gym:CartPole-v1", "envs": 1}, **SHORT, out=tmp_path / "r")
    shown = CliRunner().invoke(app, ["export", str(tmp_path / "r"), "--out", str(tmp_path / "p.pt2")])
    assert shown.output.strip() == str(tmp_path / "p.pt2")
    assert (tmp_path / "p.pt2").stat().st_size


def test_onnx_gives_the_same_actions_where_it_is_installed(tmp_path):
    run = anypo.train("ppo", task={"env": lambda: Noise("discrete"), "envs": 1}, **SHORT, out=tmp_path / "r")
    if importlib.util.find_spec("onnxscript") is None:
        with pytest.raises(UsageError, match="--to onnx needs onnx and onnxscript; run `pip install"):
            run.export("onnx")
        return
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(run.export("onnx"))
    obs = np.random.default_rng(0).uniform(-3, 3, (20, 4)).astype(np.float32)
    (actions,) = session.run(None, {session.get_inputs()[0].name: obs})
    np.testing.assert_array_equal(actions, run.predict(obs))
