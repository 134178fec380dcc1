"""Training and using runs from Python, with objects where the command line has names."""

from __future__ import annotations

import json
from dataclasses import dataclass

import gymnasium
import numpy as np
import pytest
import tiny
from gymnasium import spaces
from transformers import AutoModelForCausalLM, AutoTokenizer

import anypo
from anypo.errors import UsageError
from anypo.parts.ops.log_ratio import importance_ratio
from anypo.parts.ops.surrogate import advantage_at
from anypo.policies.control.spaces import space_from_dict, space_to_dict

ROWS = [{"prompt": f"{i}+{j}=", "answer": str(i + j)} for i in range(4) for j in range(5)]


class Corridor(gymnasium.Env):
    """Five places in a row; right leads to the reward."""

    observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.time = 0, 0
        return self.look(), {}

    def look(self):
        return np.array([self.place / 4], np.float32)

    def step(self, action):
        self.place, self.time = max(0, self.place + (1 if action == 1 else -1)), self.time + 1
        return self.look(), float(self.place == 4), self.place == 4, self.time == 20, {}


class Lever(Corridor):
    """One number between 2 and 4 is to be chosen."""

    action_space = spaces.Box(2.0, 4.0, (1,), np.float32)

    def step(self, action):
        self.time += 1
        return self.look(), -float(abs(action[0] - 3)), False, self.time == 5, {}


@dataclass(frozen=True)
class SquaredTrust:
    """s = r A - coef (r - 1)^2."""

    coef: float = 0.5
    reads = ("advantage",)

    def __call__(self, x, b):
        r = importance_ratio(x)
        return r * advantage_at(x, b) - self.coef * (r - 1).square(), {}


def test_an_environment_is_trained_loaded_and_asked_for_actions(tmp_path):
    shown = []
    run = anypo.train("ppo", task=Corridor, steps=4096, out=tmp_path / "r", callback=shown.append)
    assert run.result["after"] > 0.9
    assert [record["batch"] for record in shown] == [0, 1, 2]
    assert run.metrics == shown
    action = run.predict(np.array([0.5], np.float32))
    assert np.shape(action) == ()
    assert Corridor.action_space.contains(action)
    assert run.predict(np.zeros((3, 1), np.float32)).shape == (3,)
    again = anypo.load(tmp_path / "r", task=Corridor)
    assert again.predict(np.array([0.5], np.float32)) == action
    alone = anypo.load(tmp_path / "r")
    assert alone.predict(np.array([0.5], np.float32)) == action
    with pytest.raises(UsageError, match="the task 'Corridor' was given from Python"):
        alone.evaluate()
    assert again.evaluate() == pytest.approx({**run.evaluate()})


def test_actions_lie_in_the_environments_space_and_samples_differ(tmp_path):
    run = anypo.train("ppo", task=Lever(), steps=1, out=tmp_path / "r")
    obs = np.zeros((50, 1), np.float32)
    assert len(np.unique(run.predict(obs))) == 1
    actions = run.predict(obs, deterministic=False)
    assert len(np.unique(actions)) > 10
    assert all(Lever.action_space.contains(action) for action in actions)
    with pytest.raises(
        UsageError, match=r"an observation has shape \(1,\), or one more dimension for a batch; not \(2,\)"
    ):
        run.predict(np.zeros(2, np.float32))


def test_what_cannot_be_written_down_is_asked_for_in_one_sentence(tmp_path):
    anypo.train("ppo", task=Corridor, steps=1, out=tmp_path / "r")
    assert "name: object:Corridor" in (tmp_path / "r" / "config.yaml").read_text()
    with pytest.raises(
        UsageError, match=r"the task 'Corridor' was given from Python; hand it over again: anypo.resume"
    ):
        anypo.resume(tmp_path / "r", steps=5000)
    longer = anypo.resume(tmp_path / "r", steps=4096, task=Corridor)
    assert longer.run.done == 4096


def test_rows_and_a_lambda_train_a_language_model(tmp_path):
    folder = tiny.language_model(tmp_path / "lm")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    run = anypo.train(
        "grpo",
        task={"rows": ROWS, "max_new": 4},
        reward=lambda completions, **_: [float("1" in c) for c in completions],
        policy=(model, tokenizer),
        steps=2,
        collect={"requests": 2, "samples": 4},
        out=tmp_path / "r",
    )
    assert len(run.sample("1+2=", n=3)) == 3
    with pytest.raises(UsageError, match=r"the task 'rows' was given from Python"):
        anypo.load(tmp_path / "r")


def test_a_method_object_is_trained_and_resumed(tmp_path):
    mine = anypo.method("grpo").but(trust=SquaredTrust(0.25), terms=[])
    values = {"task": "bandit", "steps": 20}
    anypo.train(mine, **values, out=tmp_path / "through")
    anypo.train(mine, **{**values, "steps": 10}, out=tmp_path / "r", checkpoint_every=1)
    longer = anypo.resume(tmp_path / "r", steps=20, method=mine)
    assert longer.run.method.texts()["trust"] == ["squared-trust(coef=0.25)"]
    with pytest.raises(UsageError, match="the method 'grpo' was given from Python"):
        anypo.load(tmp_path / "r")


def test_names_and_settings_are_those_of_the_command_line(tmp_path):
    run = anypo.train("ppo", task="bandit", trust={"high": 0.3}, steps=2, out=tmp_path / "r")
    assert run.config.stages["trust"]["high"] == 0.3
    saved = json.loads((tmp_path / "r" / "result.json").read_text())
    assert run.result["after"] == saved["after"]
    table = anypo.compare("ppo", "reinforce", task="bandit", steps=2, seeds=2, out=tmp_path / "c")
    assert [row["method"] for row in table["methods"]] == ["ppo", "reinforce"]


def test_importing_anypo_imports_no_loop():
    import subprocess
    import sys

    code = "import sys, anypo; print([m for m in sys.modules if m.startswith(('anypo.loops', 'anypo.api', 'gymnasium', 'transformers'))])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1.0, np.inf, (2, 3), np.float32),
        spaces.Box(0, 255, (4, 4, 1), np.uint8),
        spaces.Dict(
            {"a": spaces.Discrete(3, start=1), "b": spaces.Tuple([spaces.MultiBinary(4), spaces.MultiDiscrete([2, 5])])}
        ),
    ],
)
def test_spaces_survive_json(space):
    assert space_from_dict(json.loads(json.dumps(space_to_dict(space)))) == space
