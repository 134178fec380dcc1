"""What a task recommends."""

import itertools
import json

import numpy as np
import pytest
import torch

import anypo
from anypo.config import from_dict
from anypo.evidence.reach import Reach
from anypo.evidence.toys import Codes, Sequences
from anypo.runs.settings import resolve
from anypo.tasks import TASKS, make_task

TRAITS = [
    {"critic": critic, "grouped": grouped, "whole": whole, "replays": False, "reuse": reuse}
    for critic, grouped, whole, reuse in itertools.product((False, True), repeat=4)
]
REPLAYS = {"critic": True, "grouped": False, "whole": False, "replays": True, "reuse": True}


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """One task of every registered kind, by its kind."""
    folder = tmp_path_factory.mktemp("tasks")
    prompts = [{"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(20)]
    pairs = [{"prompt": f"{i}+1=", "chosen": str(i + 1), "rejected": str(i)} for i in range(20)]
    for name, rows in (("prompts", prompts), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ends = np.arange(60) % 10 == 9
    columns = {
        "observations": np.zeros((60, 4)),
        "actions": np.zeros(60, int),
        "rewards": np.ones(60),
        "terminals": ends,
    }
    np.savez(folder / "data.npz", **columns)
    specs = {
        "sums": {"name": "sums"},
        "jsonl": {"name": f"jsonl:{folder / 'prompts.jsonl'}", "reward": "exact"},
        "pairs": {"name": f"pairs:{folder / 'pairs.jsonl'}"},
        "reasoning-gym": {"name": "reasoning-gym:leg_counting", "size": 20, "heldout": 0.25},
        "mixture": {
            "name": f"mixture:sums,jsonl:{folder / 'prompts.jsonl'}",
            "of": {"1": {"reward": ["exact"]}},
        },
        "gym": {"name": "gym:CartPole-v1"},
        "tensor": {"name": "tensor:CartPole-v1"},
        "data": {"name": f"data:{folder / 'data.npz'}", "env": "CartPole-v1"},
        "bandit": {"name": "bandit"},
        "multimodal": {"name": "multimodal"},
    }
    return {kind: make_task(spec, seed=0) for kind, spec in specs.items()}


def check(task, traits):
    before, state = dict(vars(task)), task.state_dict()
    recipe = task.recipe(traits)
    assert recipe == task.recipe(traits)
    after = vars(task)
    assert before.keys() == after.keys()
    assert [name for name, value in before.items() if after[name] is not value] == []
    torch.testing.assert_close(task.state_dict(), state, rtol=0, atol=0)


@pytest.mark.parametrize("kind", sorted(set(TASKS) - {"minari"}))  # read as `data` is
def test_a_recipe_leaves_the_task_as_it_is(kind, registered):
    for traits in [REPLAYS] if kind == "data" else [*TRAITS, REPLAYS]:
        check(registered[kind], traits)


@pytest.mark.parametrize("task", [Codes(problems=2), Sequences(), Reach()], ids=lambda task: task.name)
def test_a_recipe_leaves_a_toy_as_it_is(task):
    for traits in [*TRAITS, REPLAYS]:
        check(task, traits)


@pytest.mark.parametrize("kind", ["jsonl", "pairs"])
def test_an_adapter_is_trained_at_ten_times_the_rate_of_all_weights(kind, registered, tiny_model):
    learner = {"jsonl": "rloo", "pairs": "dpo"}[kind]
    task = registered[kind]
    values = {"method": learner, "task": task.name, "collect": {"requests": 2}}
    config = from_dict(values | {"policy": f"hf:{tiny_model('llama')}"})
    method = anypo.method(learner)
    rates = []
    for lora in (None, {"r": 2}):
        config.policy["lora"] = lora
        rates.append(resolve(config, task, method).method.stages["step"].lr)
    assert rates[1] == pytest.approx(10 * rates[0])
    fixed = method.configure({"step": {"lr": 3e-4}})
    assert resolve(config, task, fixed).method.stages["step"].lr == 3e-4
