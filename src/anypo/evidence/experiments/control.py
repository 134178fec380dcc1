"""Control online and offline."""

from __future__ import annotations

from typing import Any

from anypo import policies
from anypo.config import Config
from anypo.evidence.experiments.assemble import Measures, assemble_in_memory
from anypo.evidence.reach import Reach
from anypo.loops.learn import learn
from anypo.method.method import Method
from anypo.parts.collect import Explore


def train_control(method: Method, seed: int, *, env: str = "CartPole-v1", steps: int = 20_000, **step: Any) -> Measures:
    """Train on a Gymnasium task with the task's own settings.

    Args:
        method: the method to train.
        seed: of the task, the weights and the sampling.
        env: id of the environment.
        steps: environment steps.
        step: settings of the step stage.

    Returns:
        return: mean return at the end. curve: mean over the run. ratio_max: mean over the updates of the largest ratio.
    """
    from anypo.runs.build import build

    settings = {"task": {"name": f"gym:{env}"}, "steps": steps, "seed": seed, "evaluate_every": 4, "episodes": 10}
    config = Config(method=method.card.id, **settings)
    config.stages = {"step": step} if step else {}
    run = build(config)
    records: list[dict[str, Any]] = []
    last = learn(run, records.append)
    held = [r["eval/return"] for r in records if "eval/return" in r]
    ratio_max = sum(r["ratio_max"] for r in records if "ratio_max" in r) / max(
        1, sum("ratio_max" in r for r in records)
    )
    return {"return": last["eval/return"], "curve": sum(held) / len(held), "ratio_max": ratio_max}


def replay_reach(
    method: Method, seed: int, *, batches: int = 60, first: int = 192, ratio: float = 1.0, late: int = 0, **task: Any
) -> Measures:
    """Learn values on `reach.Reach`: 2 episodes a batch, networks of 64-64, minibatches of 64.

    With data, and a method that collects nothing, a batch is 24 updates on the data. Methods without a replay store train on-policy.

    Args:
        method: the method to train.
        seed: of the task, the weights and the sampling.
        batches: length of the run.
        first: decisions collected at random before learning.
        ratio: factor on the updates per decision.
        late: batches of updates on the data before anything is collected.
        task: settings of `Reach`.

    Returns:
        return: greedy, at the end. curve: mean over the run. overestimation: where there is a Q-network. modes: of two peaks.
    """
    toy = Reach(seed=seed, **task)
    if method.traits["replays"]:
        updates = method.stages["store"].ratio * ratio
        method = method.configure({"store": {"batch": 64, "start": first, "idle": 24, "ratio": updates}})
        if isinstance(method.stages["collect"], Explore):
            method = method.configure({"collect": {"first": first, "after": late}})
        spec = {"name": method.policy, "hidden": [64, 64], **method.policy_options}
    else:
        spec = {"name": "mlp"}
    policy = policies.make_policy(spec, toy, value=method.heads, networks=method.networks, seed=seed)
    run = assemble_in_memory(
        method, toy, seed, batches=batches, lr=1e-3, requests=2, samples=1, epochs=4, minibatch=0, policy=policy
    )
    records: list[dict[str, Any]] = []
    learn(run, records.append)
    held = [r for r in records if "eval/return" in r]
    last = {name.removeprefix("eval/"): value for name, value in held[-1].items() if name.startswith("eval/")}
    return {**last, "curve": sum(r["eval/return"] for r in held) / len(held)}
