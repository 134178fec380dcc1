"""What is not finite ends a run in one sentence that names its origin, and reaches neither checkpoint nor result."""

from __future__ import annotations

import json

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from anypo import config as configuration
from anypo.errors import RunError, UsageError
from anypo.loops.finite import PATIENCE
from anypo.loops.learn import learn
from anypo.parts.knobs import Clock
from anypo.report.console import finish
from anypo.runs.files import DUMPS
from anypo.runs.folder import create, reopen
from anypo.runs.run import Run

BANDIT = {"method": "grpo", "task": "bandit", "steps": 20, "checkpoint_every": 1, "evaluate_every": 50}


class Hole(gymnasium.Env):
    """Ten steps of random numbers, one of which is missing in the fourth observation."""

    observation_space = Box(-1.0, 1.0, (3,), np.float32)

    def __init__(self, box: bool = False):
        self.action_space = Box(-1.0, 1.0, (1,), np.float32) if box else Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observe(), {}

    def observe(self):
        x = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        if self.t == 3:
            x[1] = np.nan
        return x

    def step(self, action):
        self.t += 1
        return self.observe(), 1.0, False, self.t >= 10, {}


gymnasium.register("Hole-v0", entry_point=Hole)


def start(folder, **values) -> Run:
    return create(configuration.from_dict({**BANDIT, "out": str(folder), **values}))


def spoil(run: Run, batches: int | None = None) -> None:
    """Make the log-probabilities of the first batches (None: of all) NaN."""
    rollout = run.task.rollout

    def broken(policy, requests, seed):
        rows, metrics = rollout(policy, requests, seed)
        if batches is None or run.batch < batches:
            rows = rows.but(logp_old=torch.full_like(rows.logp_old, torch.nan))
        return rows, metrics

    run.task.rollout = broken


def strict(text: str):
    """Read JSON as other programs do: NaN is none."""

    def refuse(constant):
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
    ("learner", "box"), [("dqn", False), ("ppo", False), ("a2c", False), ("grpo", False), ("sac", True), ("td3", True)]
)
def test_an_observation_that_is_not_finite_is_named_with_its_environment_and_step(tmp_path, learner, box):
    task = {"name": "gym:Hole-v0", "env_kwargs": {"box": box}, "eval_episodes": 1}
    run = start(tmp_path / "r", method=learner, task=task, steps=200)
    with pytest.raises(RunError, match="gym:Hole-v0 gave an observation that is not finite at step 3 of an episode"):
        learn(run)


@pytest.mark.parametrize("column", ["observations", "next_observations", "actions", "rewards", "terminals", "timeouts"])
def test_a_row_of_data_that_is_not_finite_is_named(tmp_path, column):
    from anypo.tasks.control.offline import make_file

    g = np.random.default_rng(0)
    columns = {
        "observations": g.normal(size=(40, 3)),
        "next_observations": g.normal(size=(40, 3)),
        "actions": g.uniform(-1, 1, (40, 1)),
        "rewards": g.normal(size=40),
        "terminals": np.zeros(40),
        "timeouts": np.arange(40) % 20 == 19.0,
    }
    columns[column] = columns[column].astype(float)
    columns[column][5] = np.nan
    np.savez(tmp_path / "d.npz", **columns)
    sentence = f"the {column.replace('_', ' ')[:-1]} of row 5 is not finite|{column} of row 5 is nan; it must be 0 or 1"
    with pytest.raises(UsageError, match=sentence):
        make_file(str(tmp_path / "d.npz"), env="Pendulum-v1")


def test_updates_of_one_a_batch_are_counted_across_batches(tmp_path):
    run = start(tmp_path / "r")
    spoil(run)
    with pytest.raises(
        RunError, match=f"{PATIENCE} updates in a row were not finite: the batch's logp_old is the first"
    ):
        learn(run)
    assert run.batch == PATIENCE - 1
    assert len(list((tmp_path / "r" / "nonfinite").iterdir())) == DUMPS
    assert not (tmp_path / "r" / "result.json").exists()


def test_the_count_of_skipped_updates_survives_a_checkpoint(tmp_path):
    run = start(tmp_path / "r")
    spoil(run)
    run.steps = PATIENCE - 1
    with pytest.raises(RunError, match="the last 4 of the run's 4 updates were not finite"):
        learn(run)
    again = reopen(tmp_path / "r")
    assert again.skipped == again.batch > 0
    spoil(again)
    with pytest.raises(RunError, match=f"{PATIENCE} updates in a row"):
        learn(again)
    assert again.batch == PATIENCE - 1


def test_a_healthy_update_ends_the_count_and_a_skipped_one_moves_no_knob(tmp_path):
    clock = Clock()
    run = start(tmp_path / "r", steps=PATIENCE + 3)
    run.method = run.method.but(trust=type(run.method.stages["trust"])(low=clock))
    spoil(run, PATIENCE - 1)
    learn(run)
    assert run.skipped == 0
    assert clock.ticks == run.stepper.updates == 4


def before_batch(run: Run, batch: int, act) -> None:
    """Call `act` before the rollout of a batch."""
    rollout = run.task.rollout

    def first(policy, requests, seed):
        if run.batch == batch - 1:
            act()
        return rollout(policy, requests, seed)

    run.task.rollout = first


def test_weights_that_stopped_being_finite_are_never_in_a_checkpoint(tmp_path):
    run = start(tmp_path / "r", steps=6)
    before_batch(run, 3, lambda: next(run.policy.parameters()).data.view(-1)[1].fill_(torch.inf))
    with pytest.raises(RunError, match=r"the policy's weight \S+ is not finite after \d+ updates"):
        learn(run)
    assert reopen(tmp_path / "r").batch == 2


def test_an_optimizer_that_is_not_finite_is_never_in_a_checkpoint(tmp_path):
    run = start(tmp_path / "r", steps=6, step={"part": "adam", "lr": 0.1, "policy_penalty": None})

    def spoil_moments():
        for state in run.stepper.state_dict()["optimizer"]["state"].values():
            state["exp_avg_sq"].fill_(torch.nan)

    before_batch(run, 3, spoil_moments)
    with pytest.raises(RunError, match="is not finite after"):
        learn(run)
    assert reopen(tmp_path / "r").batch == 2


def test_a_language_model_with_a_missing_weight_is_refused_before_it_learns(tmp_path, tiny_model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = tiny_model("llama")
    model = AutoModelForCausalLM.from_pretrained(source)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 5] = torch.nan
    model.save_pretrained(tmp_path / "lm")
    AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path / "lm")
    run = language_run(tmp_path, tmp_path / "lm", "exact")
    with pytest.raises(RunError, match=r"layers\.1\.mlp\.down_proj\.weight is not finite before the first update"):
        learn(run)
    assert not list((tmp_path / "r" / "checkpoints").glob("batch-*"))
    assert not (tmp_path / "r" / "model").exists()


def language_run(folder, model, reward, **values) -> Run:
    rows = [{"prompt": f"the {c} cat", "answer": c} for c in "abcdefgh"]
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"name": f"jsonl:{folder / 'p.jsonl'}", "reward": reward, "max_new": 3, **values}
    sizes = {"collect": {"requests": 2, "samples": 2}, "steps": 3}
    return start(folder / "r", task=task, policy={"name": f"hf:{model}"}, **sizes)


REWARDS = """
def never(completions, **_):
    return [None] * len(completions)


def held_out_only(prompts, completions, **_):
    return [1.0 if len(set(prompts)) == 1 and len(prompts) == 1 else None for _ in completions]


def fails(completions, **_):
    raise KeyError("gold")
"""


@pytest.mark.parametrize(
    ("reward", "options", "sentence"),
    [
        ("never", {}, "no held-out completion of .* has a score"),
        ("fails", {"on_error": "drop"}, "no held-out completion of .* has a score"),
        ("held_out_only", {}, "every reward of the last 3 batches is missing"),
    ],
)
def test_a_run_without_any_reward_ends_in_one_sentence(tmp_path, tiny_model, reward, options, sentence):
    (tmp_path / "r.py").write_text(REWARDS)
    run = language_run(tmp_path, tiny_model("llama"), f"{tmp_path / 'r.py'}:{reward}", **options)
    with pytest.raises(RunError, match=sentence):
        learn(run)


def test_metrics_and_result_are_json_whatever_a_batch_gave(tmp_path):
    run = start(tmp_path / "r", steps=4)
    spoil(run, 2)
    learn(run)
    finish(run)
    records = [strict(text) for text in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert records[1]["grad_norm"] is None
    assert records[-1]["grad_norm"] >= 0
    assert strict((tmp_path / "r" / "result.json").read_text())["done"] == 4
