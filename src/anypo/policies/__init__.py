"""Policies by the name typed on the command line; `hf:NAME_OR_DIR` takes any causal language model of transformers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import torch

from anypo import plugins
from anypo.errors import UsageError, unknown
from anypo.protocols import HasArms, HasBaseTexts, HasExperts, HasLabels, HasRecords
from anypo.ranges import Range, check, parameter_hints
from anypo.views import Network


@dataclass(frozen=True)
class PolicySpec:
    """A policy to build: KIND or KIND:SOURCE with options, for a task.

    value: a value head, or the names of several. networks: those it carries beside its own, by name.
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
        options = {
            option: check(f"policy.{option}", hints.get(option, Any), value) for option, value in self.options.items()
        }
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
    policy = spec.build(cls, task.observation_space, task.action_space, networks=spec.networks)
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
    return spec.build(SoftmaxTable, spec.task.starts, spec.task.arms, networks=spec.networks)


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

    whole: Any = spec.task
    task = whole.base if isinstance(whole, HasLabels) else whole
    if not isinstance(task, HasBaseTexts):
        raise UsageError(f"the task {spec.task.name} has no base model of its own: --policy hf:NAME_OR_DIR")
    return _language_model(spec, str(tiny.base(task.name, *task.demonstrations())))


def _hf(spec: PolicySpec) -> Any:
    if not spec.source:
        raise UsageError("this policy is written hf:NAME_OR_DIR")
    return _language_model(spec, spec.source)


def _of_run(spec: PolicySpec) -> Any:
    raise UsageError("--policy run:RUN is the policy of a finished run; only a new run can start from it")


def _language_model(spec: PolicySpec, source: str) -> Any:
    from anypo.policies.language.model import LanguageModel

    policy = spec.build(LanguageModel.load, source, networks=spec.networks)
    if half := {p.dtype for p in policy.parameters() if p.requires_grad} & {torch.float16, torch.bfloat16}:
        raise UsageError(
            f"weights in {str(half.pop()).removeprefix('torch.')} are too coarse to train, small steps round to none; leave out"
            " --policy.dtype (--autocast multiplies in bfloat16 where that is faster), or train an adapter with --policy.lora.r 8"
        )
    return policy


@dataclass(frozen=True)
class Kind:
    """A kind of policy.

    form: as typed. about: one line for lists. build: makes it, importing what it needs, so that naming policies stays quick.
    language: writes text. networks: carries networks beside its own.
    """

    form: str
    about: str
    build: Callable[[PolicySpec], Any]
    language: bool = False
    networks: bool = True


LIBRARY_POLICIES = (
    Kind(
        "mlp", "perceptrons for control: categorical or Gaussian, with a value head where the method learns one", _mlp
    ),
    Kind("flow", "flow matching for control, with --policy.pretrain 1000 on a task's demonstrations", _flow),
    Kind("diffusion", "denoising diffusion for control, likewise", _diffusion),
    Kind("table", "a softmax table, for bandits", _table),
    Kind("squashed", "a tanh-squashed Gaussian with value networks (sac)", _actor),
    Kind("deterministic", "a deterministic policy with value networks (td3)", _actor),
    Kind("gaussian", "a Gaussian with a fixed deviation, or a categorical, with value networks (iql)", _actor),
    Kind("experts", "a mixture of squashed Gaussians with value networks (pmoe)", _actor),
    Kind("greedy", "the best choice by a Q-network (dqn)", _actor),
    Kind("tiny", "the small decoder of the default task, warm-started once and cached", _tiny, language=True),
    Kind(
        "hf:NAME_OR_DIR",
        "any causal language model of transformers, with --policy.lora.r 8 as an adapter",
        _hf,
        language=True,
    ),
    Kind(
        "run:RUN",
        "the policy of another run with its weights, those of --policy.checkpoint best, last (default) or a batch's number",
        _of_run,
    ),
)

POLICIES = {kind.form.partition(":")[0]: kind for kind in LIBRARY_POLICIES}
"""Kinds of policies by the text before the colon."""

_Factory = TypeVar("_Factory", bound=Callable[..., Any])


def register_policy(
    name: str, about: str = "", *, language: bool = False, networks: bool = False
) -> Callable[[_Factory], _Factory]:
    """Register a policy class or factory under the name typed on the command line; a decorator.

    It is called with the task's observation and action space (one that writes text: with the task), the keywords `value` (a
    value head, or the names of several), `seed`, `networks` where it carries some beside its own, and the options of `--policy.`.

    Args:
        name: as typed.
        about: one line for lists; the first of the docstring where it is left out.
        language: it writes text.
        networks: it carries networks beside its own.

    Raises:
        UsageError: the name is taken.

    Example:
        >>> @register_policy("linear")
        ... class Linear(MLPPolicy): ...
    """

    def add(factory: _Factory) -> _Factory:
        if name in POLICIES:
            raise UsageError(f"the policy name {name!r} is taken; choose another")
        POLICIES[name] = kind_of(name, factory, about, language=language, networks=networks)
        return factory

    return add


def kind_of(name: str, factory: Any, about: str = "", *, language: bool = False, networks: bool = False) -> Kind:
    """Return the kind of a class or factory from elsewhere.

    Args:
        name: as typed.
        factory: called as `register_policy` says.
        about, language, networks: as there.
    """
    if not callable(factory):
        raise UsageError(f"{name} is a {type(factory).__name__}; a policy is a class or a function that makes one")

    def build(spec: PolicySpec) -> Any:
        task = spec.task
        spaces = (task,) if language else (task.observation_space, task.action_space)
        more: dict[str, Any] = {"networks": spec.networks} if networks else {}
        return spec.build(factory, *spaces, **more)

    return Kind(name, about or (factory.__doc__ or "").strip().partition("\n")[0], build, language, networks)


def load_policies() -> dict[str, Kind]:
    """Import the entry points `anypo.policies`, each a factory or class; returns the registry."""
    for name in plugins.installed("policies"):
        if name not in POLICIES:
            factory = plugins.load_installed("policies", name)
            if name not in POLICIES:  # else its module has registered it
                register_policy(name)(factory)
    return POLICIES


def find_kind(name: str, task: Any) -> Kind:
    """Return the kind of policy of that name, FILE.py:NAME included.

    Raises:
        UsageError: there is none.
    """
    kind = name.partition(":")[0]
    if plugins.names_file(name):
        factory = plugins.load_from_file(name, "policy")
        takes = inspect.signature(factory).parameters if callable(factory) else {}
        language, networks = isinstance(task, HasRecords), "networks" in takes
        return kind_of(name, factory, language=language, networks=networks)
    if kind not in POLICIES and kind not in load_policies():
        raise unknown("policy", name, [k.form for k in POLICIES.values()])
    return POLICIES[kind]


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
        networks: those it carries beside its own, by name.

    Raises:
        UsageError: for an unknown policy or option, or one that the task or the method cannot use.
    """
    options = dict(spec)
    name = options.pop("name", None) or task.default_policy
    if name is None:
        raise UsageError(f"the task {task.name} needs a policy: --policy hf:NAME_OR_DIR")
    policy = PolicySpec(str(name), options, task, value, networks or {}, seed)
    kind = find_kind(policy.name, task)
    if kind.language != isinstance(task, HasRecords):
        raise UsageError(f"the policy {name} cannot act in the task {task.name}")
    if networks and not kind.networks:
        raise UsageError(f"the policy {name} carries no networks beside its own, which the method learns")
    return kind.build(policy)


def policy_kind(policy: Any) -> str:
    """Name of a policy on the command line, or of its class."""
    return getattr(policy, "kind", type(policy).__name__)
