"""Policies by the name typed on the command line; `hf:NAME_OR_DIR` takes any causal language model of transformers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch

from anypo.errors import UsageError, unknown
from anypo.protocols import HasArms, HasBaseTexts, HasExperts, HasRecords
from anypo.ranges import Range, check, parameter_hints
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


@dataclass(frozen=True)
class PolicySpec:
    """A policy to build: KIND or KIND:SOURCE with options, for a task.

    value: a value head, or the names of several. networks: value networks by name.
    """

    name: str
    options: dict[str, Any]
    task: Any
    value: bool | tuple[str, ...]
    networks: Mapping[str, Network]
    seed: int

    @property
    def kind(self) -> str:
        return self.name.partition(":")[0]

    @property
    def source(self) -> str:
        return self.name.partition(":")[2]

    def build(self, factory: Callable[..., Any], *arguments: Any, accepts: tuple[str, ...] = (), **more: Any) -> Any:
        """Call a factory with value, seed and the options, which have to be keywords of it or among `accepts`."""
        known = [k for k in dict.fromkeys((*accepts, *keywords(factory))) if k not in ("value", "seed", "networks")]
        for option in self.options:
            if option not in known:
                raise unknown(f"option of the policy {self.name}:", str(option), known)
        hints = parameter_hints(factory)
        options = {option: check(f"policy.{option}", hints[option], value) for option, value in self.options.items()}
        return factory(*arguments, value=self.value, seed=self.seed, **more, **options)


def keywords(function: Callable[..., Any]) -> list[str]:
    """Return the names of a function's keyword-only parameters."""
    return [p.name for p in inspect.signature(function).parameters.values() if p.kind == p.KEYWORD_ONLY]


def _mlp(spec: PolicySpec) -> Any:
    from anypo.policies.control.mlp import MLPPolicy

    return _pretrained(spec, MLPPolicy)


def _flow(spec: PolicySpec) -> Any:
    from anypo.policies.generative.flow import FlowPolicy

    return _pretrained(spec, FlowPolicy)


def _diffusion(spec: PolicySpec) -> Any:
    from anypo.policies.generative.diffusion import DiffusionPolicy

    return _pretrained(spec, DiffusionPolicy)


def _pretrained(spec: PolicySpec, cls: Callable[..., Any]) -> Any:
    from anypo.policies.generative.pretrain import pretrain

    steps = check("policy.pretrain", Annotated[int, Range(least=0, most=1_000_000)], spec.options.pop("pretrain", 0))
    task = spec.task
    policy = spec.build(cls, task.observation_space, task.action_space)
    if steps:
        if not isinstance(task, HasExperts):
            raise UsageError(f"the task {task.name} has no demonstrations to pretrain a policy on")
        data = task.experts(policy, 2000, torch.Generator().manual_seed(spec.seed))
        pretrain(policy, data, steps, seed=spec.seed)
    return policy


def _table(spec: PolicySpec) -> Any:
    from anypo.policies.tabular import SoftmaxTable

    if not isinstance(spec.task, HasArms):
        raise UsageError(f"the policy table needs a task with contexts and arms, {spec.task.name} has none")
    return spec.build(SoftmaxTable, spec.task.starts, spec.task.arms)


def _actor(spec: PolicySpec) -> Any:
    from anypo.policies.control import off_policy

    actors = {
        "squashed": off_policy.SquashedGaussian,
        "deterministic": off_policy.Deterministic,
        "gaussian": off_policy.GaussianActor,
        "experts": off_policy.Experts,
        "greedy": off_policy.Greedy,
    }
    spaces = spec.task.observation_space, spec.task.action_space
    return spec.build(actors[spec.kind], *spaces, accepts=tuple(keywords(off_policy.Actor)), networks=spec.networks)


def _tiny(spec: PolicySpec) -> Any:
    from anypo.policies.language import tiny

    if not isinstance(spec.task, HasBaseTexts):
        raise UsageError(f"the task {spec.task.name} has no base model of its own: --policy hf:NAME_OR_DIR")
    return _language_model(spec, str(tiny.base(spec.task.name, *spec.task.demonstrations())))


def _hf(spec: PolicySpec) -> Any:
    if not spec.source:
        raise UsageError("this policy is written hf:NAME_OR_DIR")
    return _language_model(spec, spec.source)


def _language_model(spec: PolicySpec, source: str) -> Any:
    from anypo.policies.language.model import LanguageModel

    return spec.build(LanguageModel.load, source)


LANGUAGE = {"tiny": _tiny, "hf": _hf}
WITH_NETWORKS = dict.fromkeys(("squashed", "deterministic", "gaussian", "experts", "greedy"), _actor)
BUILDERS = {"mlp": _mlp, "flow": _flow, "diffusion": _diffusion, "table": _table, **WITH_NETWORKS, **LANGUAGE}
"""Functions that build a policy of a kind; they import what they need, so that naming policies stays quick."""


def make_policy(
    spec: dict[str, Any],
    task: Any,
    *,
    value: bool | tuple[str, ...],
    seed: int,
    networks: Mapping[str, Network] | None = None,
) -> Any:
    """Build a policy for a task.

    Args:
        spec: `{name: ..., options}`; without a name, the task's default policy.
        task: the task it acts in.
        value: a value head, or the names of several.
        seed: of its weights.
        networks: value networks by name.

    Raises:
        UsageError: for an unknown policy or option, or one that the task or the method cannot use.
    """
    options = dict(spec)
    name = options.pop("name", None) or task.default_policy
    if name is None:
        raise UsageError(f"the task {task.name} needs a policy: --policy hf:NAME_OR_DIR")
    policy = PolicySpec(str(name), options, task, value, networks or {}, seed)
    if policy.kind not in BUILDERS:
        raise unknown("policy", policy.name, POLICIES)
    if (policy.kind in LANGUAGE) != isinstance(task, HasRecords):
        raise UsageError(f"the policy {name} cannot act in the task {task.name}")
    if networks and policy.kind not in WITH_NETWORKS:
        raise UsageError(
            f"the policy {name} has no value networks, which the method learns; use one of {', '.join(WITH_NETWORKS)}"
        )
    return BUILDERS[policy.kind](policy)
