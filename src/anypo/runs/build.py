"""Build the live objects of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from anypo import kernels, policies, tasks
from anypo.config import Config
from anypo.errors import UsageError, unknown
from anypo.kernels.compiler import require_compiler
from anypo.kernels.malloc import keep_memory
from anypo.method.method import Method
from anypo.method.per_task import per_task
from anypo.method.registry import method as find_method
from anypo.networks import outputs_of
from anypo.policies import policy_kind
from anypo.policies.weights import snapshot
from anypo.protocols import Compiles, HasLabels, Prepares, Proposes
from anypo.runs.binding import open_store, param_groups
from anypo.runs.inputs import check_models
from anypo.runs.objects import Objects, refuse_missing
from anypo.runs.origin import START, load_origin, resolve_origin
from anypo.runs.run import Run
from anypo.runs.settings import Settings, complete, resolve
from anypo.tasks.pool import StartPool

NO_OBJECTS = Objects()


def build(config: Config, folder: Path | None = None, objects: Objects = NO_OBJECTS, *, fresh: bool = True) -> Run:
    """Build a run from its configuration; the run's own `config` is the complete one, which builds it again.

    Args:
        config: names what the run is made of.
        folder: where it writes; None: it lives in memory.
        objects: given instead of names.
        fresh: the policy starts with the weights of the run it is taken from, if any; without, they will be loaded anyway.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    if resolve_device(config.device).type == "cpu":
        be_deterministic()
    check_models(config)
    kernels.use(config.kernels)
    keep_memory()
    method, task = objects.find_method(config), objects.make_task(config)
    config = resolve_origin(replace(config, threads=torch.get_num_threads()))
    settings = resolve(config, task, method)
    if config.methods:
        settings = replace(settings, method=method_per_task(settings, task))
    method, config = settings.method, settings.config
    check_groups(settings, task)
    networks = merge_phases(method, "networks")
    needs = {"value": tuple(merge_phases(method, "heads")), "networks": networks, "seed": config.seed}
    spec = {key: value for key, value in config.policy.items() if key != START}
    if objects.policy is None:
        refuse_missing(spec["name"], None, "policy")
        policy = policies.make_policy(spec, task, **needs)
    else:
        policy = objects.policy(**needs)
    if fresh and START in config.policy:
        load_origin(policy, Path(config.policy[START]))
    policy.to(resolve_device(config.device))
    if config.compile == "on":
        compile_where_possible(policy, task)
    if isinstance(task, Prepares):
        task.prepare(policy)
    return assemble(settings, task, policy, folder)


def method_per_task(settings: Settings, task: Any) -> Method:
    """Return the method that has another one for some tasks of a mixture.

    Args:
        settings: with the method of the others.
        task: the mixture.

    Raises:
        UsageError: the task is no mixture.
    """
    if not isinstance(task, HasLabels):
        raise UsageError(f"methods: the task {task.name} is one task; `mixture:A,B` joins several")
    return per_task(
        settings.method,
        settings.config.methods,
        task.labels,
        lambda name: complete(find_method(name), settings.recipe),
    )


def merge_phases(method: Method, name: str) -> dict[str, Any]:
    """Return the heads or networks of all phases, by name."""
    by_phase = [getattr(phase, name) for phase in method.phases]
    named = [names if isinstance(names, dict) else dict.fromkeys(names) for names in by_phase]
    return {key: value for names in named for key, value in names.items()}


def be_deterministic() -> None:
    """Make operations that several threads share add in a fixed order; one thread has one order anyway."""
    if torch.get_num_threads() > 1:
        torch.use_deterministic_algorithms(True, warn_only=True)
        deterministic: Any = torch.utils.deterministic
        deterministic.fill_uninitialized_memory = False  # a debugging aid that would cost time


def assemble(settings: Settings, task: Any, policy: Any, folder: Path | None = None) -> Run:
    """Make a run of a task and a policy.

    Args:
        settings: complete ones, as `resolve` gives them.
        task: where the rows come from.
        policy: what is trained.
        folder: where the run writes; a run without one lives in memory.

    Raises:
        UsageError: the policy has nothing to train or is of no use to the method, or the method needs data the task does not have.
    """
    method, seed = settings.method, settings.config.seed
    tasks.configure(task, settings.recipe)
    if not param_groups(policy):
        raise UsageError(f"the policy {settings.config.policy['name']!r} has no trainable parameter")
    check_policy(method, policy)
    run = Run(
        config=settings.config,
        method=method,
        task=task,
        policy=policy,
        pool=StartPool(task.starts, seed, settings.continuing),
        store=open_store(method, task, policy),
        stepper=method.stages["step"].bind(param_groups(policy, method.moves)),
        want=settings.spec,
        generator=torch.Generator().manual_seed(seed),
        folder=folder,
        steps=settings.steps,
    )
    run.anchors = {name: snapshot(policy) for name in run.rules}
    return run


def check_groups(settings: Settings, task: Any) -> None:
    """Raise UsageError where a method that compares the samples of a start gets one of each."""
    method, sampled = settings.method, getattr(task, "sampled", True)
    if method.traits["grouped"] and sampled and settings.spec.samples == 1:
        raise UsageError(
            f"{method.card.id} compares the samples of a start; --collect.samples 1 leaves nothing to compare, take 2 or more"
        )


def check_policy(method: Method, policy: Any) -> None:
    """Raise UsageError where the method needs actions the policy cannot propose, or trains networks that the policy does not act by."""
    networks = getattr(policy, "networks", {})
    itself = set(getattr(policy, "functionals", ())) - outputs_of(networks).keys()
    live = [view for phase in method.phases for view in phase.live.values()]
    if networks and itself and not any(view.functional in itself or (view.draw and view.draw.live) for view in live):
        raise UsageError(
            f"the method {method.card.id} trains networks alone, by which the policy {policy_kind(policy)} does not act; leave out"
            " --policy"
        )
    others = [view for phase in method.phases for view in (phase.views | phase.late_views).values()]
    if any(view.draw for view in [*live, *others]) and not isinstance(policy, Proposes):
        raise UsageError(f"the policy {policy_kind(policy)} cannot propose actions, which the method needs")


def compile_where_possible(policy: Any, task: Any) -> None:
    """Compile the rollouts of policy and task.

    Raises:
        UsageError: the kernels are plain, there is no compiler, or the policy is a language model on a CPU.
    """
    if kernels.plain():
        raise UsageError("--kernels plain computes without compiled code; leave out --compile on")
    require_compiler()
    if not policy.independent and next(policy.parameters()).device.type == "cpu":
        raise UsageError("--compile on takes minutes for a language model and gains nothing on a CPU; leave it out")
    for part in (policy, task):
        if isinstance(part, Compiles):
            part.compile_rollouts()


def resolve_device(name: str) -> torch.device:
    """Return the device of that name; `auto` is a GPU where torch sees one."""
    capable = torch.cuda.is_available()
    try:
        device = torch.device(("cuda" if capable else "cpu") if name == "auto" else name)
    except RuntimeError:
        raise unknown("device", name, ("auto", "cpu", "cuda")) from None
    if device.type == "cuda" and not capable:
        raise UsageError("the device cuda was asked for, but torch sees no GPU here; use --device cpu")
    return device
