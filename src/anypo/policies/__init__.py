"""Policies by the name typed on the command line; `hf:NAME_OR_DIR` takes any causal language model of transformers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from anypo.errors import UsageError, unknown
from anypo.views import Network

POLICIES = {
    "mlp": "perceptrons for control: categorical or Gaussian, with a value head where the method learns one",
    "flow": "flow matching for control, with --policy.pretrain 1000 on a task's demonstrations",
    "diffusion": "denoising diffusion for control, likewise",
    "table": "a softmax table, for bandits",
    "squashed": "a tanh-squashed Gaussian with value networks (sac)",
    "deterministic": "a deterministic policy with value networks (td3)",
    "gaussian": "a Gaussian with a fixed deviation, or a categorical, with value networks (iql)",
    "experts": "a mixture of squashed Gaussians with value networks (pmoe)",
    "greedy": "the best choice by a Q-network (dqn)",
    "tiny": "the small decoder of the default task, warm-started once and cached",
    "hf:NAME_OR_DIR": "any causal language model of transformers, with --policy.lora.r 8 as an adapter",
}


ACTORS = {
    "squashed": "SquashedGaussian",
    "deterministic": "Deterministic",
    "gaussian": "GaussianActor",
    "experts": "Experts",
    "greedy": "Greedy",
}


def make_policy(
    spec: dict[str, Any],
    task: Any,
    *,
    value: bool | tuple[str, ...],
    seed: int,
    networks: Mapping[str, Network] | None = None,
) -> Any:
    """The policy of `{name: ..., options}` for a task; without a name, the task's own default."""
    options = dict(spec)
    name = options.pop("name", None) or getattr(task, "default_policy", None)
    if name is None:
        raise UsageError(f"the task {task.name} needs a policy: --policy hf:NAME_OR_DIR")
    kind, _, source = str(name).partition(":")
    known = [k.partition(":")[0] for k in POLICIES]
    if kind not in known:
        raise unknown("policy", str(name), POLICIES)
    if (kind in ("tiny", "hf")) != hasattr(task, "records"):
        raise UsageError(f"the policy {name} cannot act in the task {task.name}")
    if networks and kind not in ACTORS:
        raise UsageError(
            f"the policy {name} has no value networks, which the method learns; use one of {', '.join(ACTORS)}"
        )
    if kind in ACTORS:
        from anypo.policies.control import off_policy as actors

        cls = getattr(actors, ACTORS[kind])
        _check(kind, options, actors.Actor, *(["experts"] if kind == "experts" else []))
        return cls(task.observation_space, task.action_space, value=value, networks=networks, seed=seed, **options)
    if kind in ("mlp", "table", "flow", "diffusion"):
        return _control(kind, options, task, value, seed)
    from anypo.policies.language.model import LanguageModel

    if kind == "tiny":
        from anypo.policies.language import tiny

        if not hasattr(task, "demonstrations"):
            raise UsageError(f"the task {task.name} has no base model of its own: --policy hf:NAME_OR_DIR")
        source = str(tiny.base(task.name, *task.demonstrations()))
    elif not source:
        raise UsageError("this policy is written hf:NAME_OR_DIR")
    _check(name, options, LanguageModel.load)
    return LanguageModel.load(source, value=value, seed=seed, **options)


def _control(kind: str, options: dict[str, Any], task: Any, value: bool | tuple[str, ...], seed: int) -> Any:
    if kind == "table":
        from anypo.policies.tabular import SoftmaxTable

        if not hasattr(task, "arms"):
            raise UsageError(f"the policy table needs a task with contexts and arms, {task.name} has none")
        _check(kind, options, SoftmaxTable)
        return SoftmaxTable(task.starts, task.arms, value=value, seed=seed, **options)
    from anypo.policies.control.mlp import MLPPolicy
    from anypo.policies.generative.diffusion import DiffusionPolicy
    from anypo.policies.generative.flow import FlowPolicy
    from anypo.policies.generative.pretrain import pretrain

    steps = int(options.pop("pretrain", 0))
    classes: dict[str, Any] = {"mlp": MLPPolicy, "flow": FlowPolicy, "diffusion": DiffusionPolicy}
    _check(kind, options, classes[kind])
    policy = classes[kind](task.observation_space, task.action_space, value=value, seed=seed, **options)
    if steps:
        if not hasattr(task, "experts"):
            raise UsageError(f"the task {task.name} has no demonstrations to pretrain a policy on")
        pretrain(policy, task.experts(policy, 2000, torch.Generator().manual_seed(seed)), steps, seed=seed)
    return policy


def _check(name: str, options: dict[str, Any], make: Any, *more: str) -> None:
    own = ("value", "seed", "networks")
    keywords = [p.name for p in inspect.signature(make).parameters.values() if p.kind == p.KEYWORD_ONLY]
    known = [*more, *(keyword for keyword in keywords if keyword not in own)]
    for option in options:
        if option not in known:
            raise unknown(f"option of the policy {name}:", option, known)
