"""Control online and offline."""

from __future__ import annotations

from typing import Any

from anypo import policies
from anypo.config import Config
from anypo.evidence.experiments.assemble import Measures, assemble_in_memory
from anypo.evidence.reach import Reach
from anypo.loops.learn import learn
from anypo.method.method import Method


def control(method: Method, seed: int, *, env: str = "CartPole-v1", steps: int = 20_000, **step: Any) -> Measures:
    """A short run on a Gymnasium task with the task's own settings: final mean return, mean over the run, and ratio_max."""
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


def replayed(
    method: Method, seed: int, *, batches: int = 60, first: int = 192, ratio: float = 1.0, late: int = 0, **task: Any
) -> Measures:
    """Value learning on `reach.Reach` (its settings): 2 episodes a batch, networks of 64-64, minibatches of 64.

    return: greedy, at the end; curve: mean over the run; overestimation (where there is a Q-network); modes (two peaks). With data, and a
    method that collects nothing, every batch is 24 updates on the data. Methods that do not replay train as they do elsewhere.
    late: batches learned from the data before anything is collected.
    """
    toy = Reach(seed=seed, **task)
    if method.traits["replays"]:
        own = method.stages["store"].ratio
        method = method.configure({"store": {"batch": 64, "start": first, "idle": 24, "ratio": own * ratio}})
        if hasattr(method.stages["collect"], "first"):
            method = method.configure({"collect": {"first": first, "after": late}})
        spec = {"name": method.policy, "hidden": [64, 64]}
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
