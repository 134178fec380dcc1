"""Check an object of a user's file against what the library expects of a method, procedure, part, reward, environment, task or policy."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from typing_extensions import get_protocol_members

from anypo import plugins
from anypo.errors import UsageError
from anypo.evidence.properties import check_known, check_properties
from anypo.evidence.tryouts import Findings, small_run, try_environment, try_policy, try_task
from anypo.method.method import Method
from anypo.method.procedure import Procedure
from anypo.method.registry import method
from anypo.protocols import Task
from anypo.stages import CHAINS, LEVELS, declared
from anypo.tasks import make_task
from anypo.tasks.text.rewards import KEYWORDS, make_reward

TRIED_CASES = 2
"""Random batches per property."""
PROMPTS, ANSWERS = ["1+1=", "2+2="], ["2", "5"]
"""What a reward is tried on."""
ONE, TWO = ("credit", "score", "ratio", "critic"), ("trust", "reduce", "terms")
"""Stages whose parts are called with a batch alone, and with another argument before or after it."""


def check_object(name: str) -> Findings:
    """Check what FILE.py:NAME names.

    Args:
        name: as typed.

    Raises:
        UsageError: there is no such file or name, or the object is nothing that anypo takes.
    """
    if not plugins.names_file(name):
        raise UsageError(f"{name!r} is no FILE.py:NAME")
    thing = plugins.load_from_file(name, "object")
    if isinstance(thing, Procedure):
        return check_procedure(thing)
    if isinstance(thing, Method):
        return check_method(method(name))
    if is_environment(thing):
        return try_environment(thing)
    if not callable(thing):
        raise UsageError(
            f"{name} is a {type(thing).__name__}; check takes a method, procedure, part, reward, environment, task or policy"
        )
    if isinstance(thing, type):
        return check_class(name, thing)
    parameters = inspect.signature(thing).parameters.values()
    needed = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if {p.name for p in parameters} & {*KEYWORDS} or any(p.kind is p.VAR_KEYWORD for p in parameters):
        return check_reward(thing)
    if needed:
        return try_policy(name, thing)
    return try_environment(thing) if is_environment(thing()) else try_task(name, thing)


def is_environment(thing: Any) -> bool:
    """Return whether an object is a Gymnasium environment or a class of them."""
    try:
        from gymnasium import Env
    except ImportError:
        return False
    return isinstance(thing, Env) or (isinstance(thing, type) and issubclass(thing, Env))


def check_class(name: str, cls: type) -> Findings:
    """Check a class: a part, a task or a policy, by what it has.

    Args:
        name: as typed.
        cls: the class.
    """
    if is_dataclass(cls):
        return check_part(cls)
    if any(hasattr(cls, member) for member in ("act", "functionals", "env_action")):
        return try_policy(name, cls)
    if any(hasattr(cls, member) for member in ("rollout", "recipe")):
        return try_task(name, cls)
    if {"reset", "step"} <= {*dir(cls)}:
        report = Findings("environment")
        report.demand(False, "it does not inherit from gymnasium.Env")
        return report
    raise UsageError(
        f"{name} is a class that has neither `rollout` (a task) nor `act` (a policy) nor `step` (an environment), and is no"
        f" dataclass (a part); a task has {', '.join(f'`{m}`' for m in sorted(get_protocol_members(Task)))}"
    )


def check_method(mine: Method) -> Findings:
    """Check the properties that hold for every method."""
    report = Findings("method")
    record = report.attempt("a random batch", lambda: check_properties(mine, TRIED_CASES))
    if record is not None:
        report.missing += record["failed"]
        report.holds.append(f"{record['passed']} of {record['of']} properties hold on {record['cases']} random batches")
    return report


def check_procedure(mine: Procedure) -> Findings:
    """Check the known answers of a procedure, and whether a command line can read its parameters."""
    report = Findings("procedure")
    bare = [name for name, p in mine.parameters().items() if p.annotation is p.empty]
    report.demand(
        not bare, f"the parameters {', '.join(bare)} of `call` have no annotation, by which `anypo run` reads them"
    )
    report.demand(mine.known, "it has no check with a known answer")
    record = report.attempt("a known answer", lambda: check_known(mine))
    if record is not None:
        report.missing += record["failed"]
        report.holds.append(f"{record['passed']} of {record['of']} known answers hold")
    return report


def check_reward(function: Any) -> Findings:
    """Call a reward with two completions, as text and as chat messages."""
    report = Findings("reward")
    reward = report.attempt("its signature", lambda: make_reward(function))
    if reward is None:
        return report
    columns = {name: list(ANSWERS) for name in reward.columns}
    chat = [
        [[{"role": role, "content": text}] for text in texts]
        for role, texts in (("user", PROMPTS), ("assistant", ANSWERS))
    ]
    refused = []
    for form, prompts, completions in (("text", PROMPTS, ANSWERS), ("chat messages", *chat)):
        trial = Findings("reward")
        scores = trial.attempt(form, lambda p=prompts, c=completions: reward(p, c, [[1], [2]], columns))
        refused += trial.missing
        if scores is not None:
            report.holds.append(f"completions {ANSWERS} as {form} score {scores}")
    if not report.holds:
        tried = "".join(f", {name} = {values}" for name, values in columns.items())
        report.missing += [f"called with the completions {ANSWERS}{tried} as {sentence}" for sentence in refused]
    return report


def check_part(cls: Any) -> Findings:
    """Check a part: its fields and declarations, and the properties of a method with it in each stage its call fits."""
    report = Findings("part")
    for f in fields(cls):
        bare = f.default is MISSING and f.default_factory is MISSING
        report.demand(not bare, f"the field {f.name} has no default, so the name alone does not make it")
    level = declared(cls, "level")
    report.demand(level in LEVELS, f"level is {level!r}; it is one of {', '.join(LEVELS)}")
    report.demand(isinstance(declared(cls, "reads"), tuple), "reads is no tuple of names")
    stages = stages_of(cls)
    report.demand(stages, "it is called with neither a batch nor a batch and one argument more, so it fits no stage")
    part = None if report.missing else report.attempt("making it", cls)
    if part is None:
        return report
    refused = []
    for stage, mine in fillings(part, stages):
        if stage in ("collect", "store", "step", "score"):
            trial = Findings("part")
            trial.train(trial.attempt("a run", lambda m=mine: small_run(make_task({"name": "bandit"}, 0), m)))
        else:
            trial = check_method(mine)
        sentences = [f"as {stage} of {mine.card.id}: {sentence}" for sentence in (trial.holds + trial.missing)]
        if not trial.missing:
            report.holds += sentences
            return report
        refused = sentences[len(trial.holds) :] if trial.holds else refused + sentences  # one that ran fits the stage
        if trial.holds:
            break
    report.missing += refused
    return report


def fillings(part: Any, stages: tuple[str, ...]) -> Iterator[tuple[str, Method]]:
    """Yield methods with a part in each of several stages; a link of credit also after the links that are there.

    Args:
        part: the object.
        stages: where it may fit.
    """
    for stage in stages:
        base = method("ppo" if stage == "critic" else "grpo")
        if stage == "credit":
            links = base.stages[stage]
            yield stage, base.but(credit=(links[0], part))
            yield stage, base.but(credit=(*links, part))
        else:
            filling: dict[str, Any] = {stage: (part,) if stage in CHAINS else part}
            yield stage, base.but(**filling)


def stages_of(cls: Any) -> tuple[str, ...]:
    """Return the stages that a part may fill, by its methods and the arguments of its call."""
    if hasattr(cls, "open"):
        return ("store",)
    if hasattr(cls, "bind"):
        return ("step",)
    if "__call__" not in dir(cls):
        return ()
    if inspect.isgeneratorfunction(cls.__call__):
        return ("collect",)
    arguments = len(inspect.signature(cls.__call__).parameters) - 1
    return {1: ONE, 2: TWO}.get(arguments, ())
