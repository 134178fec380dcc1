"""Generative policies in the plane."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Any

from anypo.errors import UsageError
from anypo.evidence.experiments.assemble import Measures, assemble_in_memory
from anypo.loops.learn import learn
from anypo.method.method import Method


def train_in_plane(
    method: Method,
    seed: int,
    *,
    policy: str | None = None,
    pretraining: int = 1000,
    batches: int = 100,
    lr: float = 1e-3,
    requests: int = 8,
    samples: int = 16,
    epochs: int = 1,
    steps: int = 10,
    noise: str | None = None,
    **task: Any,
) -> Measures:
    """Train a policy that has cloned the expert of `tasks.plane.Multimodal`.

    Args:
        method: the method to train.
        seed: of the task, the weights and the sampling.
        policy: flow, diffusion or mlp; None: the first that offers what the method reads.
        pretraining: steps of behaviour cloning.
        batches, lr, requests, samples, epochs: where the method leaves them open.
        steps, noise: of a generative policy.
        task: settings of `Multimodal`.

    Returns:
        reward, gold, precision, coverage, modes: of samples at the end, see `Multimodal.evaluate`.
        curve: mean reward over the run. batches_to_90: batches until it reaches 0.9.
    """
    from anypo.tasks.plane import Multimodal

    needed = {view.functional for view in (method.live | method.views).values()} - {*method.heads}
    options = {"steps": steps} | ({} if noise is None else {"noise": noise})
    chosen = {"mlp": {}, method.policy: method.policy_options | options}
    candidates = (
        clone_expert(
            kind, pretraining, method.heads, seed, tuple(chosen.get(kind, options).items()), tuple(task.items())
        )
        for kind in (("flow", "diffusion", "mlp") if policy is None else (policy,))
    )
    able = next((p for p in candidates if needed <= p.functionals), None)
    if able is None:
        raise UsageError(f"no policy of the plane gives all that {method.card.id} reads: {', '.join(sorted(needed))}")
    run = assemble_in_memory(
        method, Multimodal(**task), seed, batches=batches, lr=lr, requests=requests, samples=samples, epochs=epochs,
        minibatch=0, policy=deepcopy(able),
    )  # fmt: skip
    run.config.evaluate_every = max(1, batches // 20)
    records: list[dict[str, Any]] = []
    last = learn(run, records.append)
    held = [r for r in records if "eval/reward" in r]
    reached = [r["batch"] for r in held if r["eval/reward"] >= 0.9]
    return {
        **{name.removeprefix("eval/"): value for name, value in last.items() if name.startswith("eval/")},
        "curve": sum(r["eval/reward"] for r in held) / len(held),
        "batches_to_90": float(reached[0] if reached else batches + 1),
    }


@cache
def clone_expert(
    kind: str, pretraining: int, heads: tuple[str, ...], seed: int, options: tuple[Any, ...], task: tuple[Any, ...]
) -> Any:
    """Return a policy after behaviour cloning, equal for all methods under one seed.

    Args:
        kind: name of the policy.
        pretraining: steps of behaviour cloning.
        heads: its value heads.
        seed: of weights and data.
        options: of the policy, as (name, value).
        task: settings of `Multimodal`, as (name, value).
    """
    from anypo import policies
    from anypo.tasks.plane import Multimodal

    spec = {"name": kind, "pretrain": pretraining, **dict(options)}
    return policies.make_policy(spec, Multimodal(**dict(task)), value=heads, seed=seed)
