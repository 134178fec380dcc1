"""Tasks by the name typed on the command line; some, such as `jsonl:FILE` and `gym:ENV_ID`, take the text after the colon."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from typing_extensions import get_protocol_members

from anypo import plugins
from anypo.errors import UsageError, unknown
from anypo.protocols import Configures, Task
from anypo.ranges import check, parameter_hints
from anypo.tasks.options import Option, read_options


@dataclass(frozen=True)
class Entry:
    """A kind of task.

    form: as typed; the text after a colon is the factory's first argument. about: one line for lists. factory: makes the task;
    of `module:name` the module is imported then. seeded: the run's seed is the factory's, unless the task's own is given.
    forwards: what takes the options that the factory hands on.
    """

    form: str
    about: str
    factory: str | Callable[..., Any]
    seeded: bool = False
    forwards: str | None = None

    def options(self) -> dict[str, Any]:
        """Return the annotations of all options, by name."""
        names = [self.factory] if self.forwards is None else [self.forwards, self.factory]
        hints = {}
        for make in map(resolve_factory, names):
            named = [p.name for p in inspect.signature(make).parameters.values() if p.default is not p.empty]
            hints |= {name: parameter_hints(make).get(name, Any) for name in named}
        return hints

    def make(self, argument: str, seed: int, options: dict[str, Any]) -> Any:
        """Make the task.

        Args:
            argument: the text after the colon.
            seed: the run's.
            options: of the factory.

        Raises:
            UsageError: nothing follows the colon, or an option does not exist or is out of its range.
        """
        kind, colon, _ = self.form.partition(":")
        if colon and not argument:
            raise UsageError(f"this task is written {self.form}")
        known = self.options()
        for option in options:
            if option not in known:
                raise unknown(f"option of the task {kind}:", str(option), known)
        options = {option: check(f"task.{option}", known[option], value) for option, value in options.items()}
        make = resolve_factory(self.factory)
        return make(*([argument] if colon else []), **({"seed": seed} if self.seeded else {}) | options)


def describe_options(entry: Entry) -> list[Option]:
    """Return all options of a task, with what they take, defaults and meaning."""
    names = [entry.factory] if entry.forwards is None else [entry.factory, entry.forwards]
    return read_options([resolve_factory(name) for name in names])


def resolve_factory(factory: str | Callable[..., Any]) -> Callable[..., Any]:
    """Return a factory, imported where it is given as `module:name`."""
    return pkgutil.resolve_name(factory) if isinstance(factory, str) else factory


LIBRARY_TASKS = (
    Entry("sums", "add two numbers (text, exact verifier, the default)", "anypo.tasks.text.sums:Sums"),
    Entry(
        "jsonl:FILE",
        "your own prompts: JSONL, Parquet or a folder of `datasets`; with --reward, or for sft",
        "anypo.tasks.text.jsonl:make_jsonl_task",
    ),
    Entry(
        "pairs:FILE",
        "preference data in such files: `prompt`, `chosen`, `rejected`, or `prompt`, `completion`, `label`",
        "anypo.tasks.text.pairs:make_pairs_task",
    ),
    Entry(
        "reasoning-gym:NAME",
        "any data set of reasoning-gym, its own verifier",
        "anypo.tasks.text.reasoning:make_reasoning_task",
    ),
    Entry(
        "mixture:NAME,NAME",
        "several text tasks at once, measured apart; `--methods.1 dapo` gives the second a method of its own",
        "anypo.tasks.text.mixture:make_mixture",
        seeded=True,
    ),
    Entry(
        "gym:ENV_ID",
        "any Gymnasium environment with Box, Discrete, MultiDiscrete or MultiBinary actions",
        "anypo.tasks.control.gym:Gym",
        seeded=True,
    ),
    Entry(
        "tensor:NAME",
        "many copies at once: CartPole-v1, Pendulum-v1, Acrobot-v1, MountainCarContinuous-v0, PointMass, GridWorld",
        "anypo.tasks.control.tensor:Tensors",
        seeded=True,
    ),
    Entry(
        "minari:ID",
        "a Minari data set, with the environment it comes from",
        "anypo.tasks.control.offline:make_minari",
        seeded=True,
        forwards="anypo.tasks.control.gym:Gym",
    ),
    Entry(
        "data:FILE",
        "transitions in an .npz or Parquet file, with --task.env ENV_ID",
        "anypo.tasks.control.offline:make_file",
        seeded=True,
        forwards="anypo.tasks.control.gym:Gym",
    ),
    Entry("bandit", "a contextual bandit whose best arms are known", "anypo.tasks.bandit:Bandit"),
    Entry(
        "multimodal",
        "actions in the plane, several of which are equally good; with demonstrations",
        "anypo.tasks.plane:Multimodal",
    ),
)

TASKS = {entry.form.partition(":")[0]: entry for entry in LIBRARY_TASKS}
"""Kinds of tasks by the text before the colon."""

_Factory = TypeVar("_Factory", bound=Callable[..., Any])


def register_task(form: str, about: str = "") -> Callable[[_Factory], _Factory]:
    """Register a task class or factory under the name typed on the command line; a decorator.

    Args:
        form: `name`, or `name:REST` where the text after the colon is the factory's first argument.
        about: one line for lists; the first of the docstring where it is left out.

    Raises:
        UsageError: the name is taken.

    Example:
        >>> @register_task("coin:SIDES")
        ... def coin(sides, seed=0): ...
    """
    kind = form.partition(":")[0]

    def add(factory: _Factory) -> _Factory:
        if kind in TASKS:
            raise UsageError(f"the task name {kind!r} is taken; choose another")
        TASKS[kind] = entry_of(form, factory, about)
        return factory

    return add


def entry_of(form: str, factory: Any, about: str = "") -> Entry:
    """Return the entry of a class or factory from elsewhere; the run's seed is passed where it takes a `seed`.

    Args:
        form: as typed.
        factory: makes the task.
        about: one line for lists; the first of the docstring where it is left out.
    """
    if not callable(factory):
        raise UsageError(f"{form} is a {type(factory).__name__}; a task is a class or a function that makes one")
    seeded = "seed" in inspect.signature(factory).parameters
    return Entry(form, about or (factory.__doc__ or "").strip().partition("\n")[0], factory, seeded)


def load_tasks() -> dict[str, Entry]:
    """Import the entry points `anypo.tasks`, each a factory or class; returns the registry."""
    for form in plugins.installed("tasks"):
        if form.partition(":")[0] not in TASKS:
            factory = plugins.load_installed("tasks", form)
            if form.partition(":")[0] not in TASKS:  # else its module has registered it
                register_task(form)(factory)
    return TASKS


def find_entry(name: str) -> tuple[Entry, str]:
    """Return the kind of task of a name, FILE.py:NAME included, and the text after its colon; an unknown name is an error that names
    the nearest."""
    kind, _, rest = name.partition(":")
    if plugins.names_file(name):
        return entry_of(name.rpartition(":")[2], plugins.load_from_file(name, "task")), ""
    if kind not in TASKS and kind not in load_tasks():
        raise unknown("task", name, [entry.form for entry in TASKS.values()])
    return TASKS[kind], rest


def make_task(spec: dict[str, Any], seed: int) -> Any:
    """Return the task of `{name: ..., options}`, FILE.py:NAME included; unknown names and options are errors that name the nearest."""
    options = dict(spec)
    name = str(options.pop("name"))
    entry, rest = find_entry(name)
    task = entry.make(rest, seed, options)
    if not isinstance(task, Task):
        raise UsageError(
            f"{name} made a {type(task).__name__}, which is no task: it lacks {', '.join(lacking(task, Task))}"
        )
    return task


def lacking(candidate: Any, protocol: type) -> list[str]:
    """Return the names of a protocol that an object does not have."""
    return [name for name in sorted(get_protocol_members(protocol)) if not hasattr(candidate, name)]


def configure(task: Any, recipe: dict[str, Any]) -> None:
    """Apply to a task the settings of its recipe that concern its environments, where there are any."""
    if isinstance(task, Configures):
        task.configure(recipe)


def write_options_page() -> str:
    """Write the options of the library's tasks as a Markdown page."""
    lines = [
        "# Tasks and their options",
        "",
        "Written by `anypo tasks --report docs/tasks.md` from the signatures and docstrings; `anypo tasks NAME` prints one table, also of",
        "your own tasks. An option is `--task.OPTION VALUE` on the command line and a key below `task` in the YAML file.",
    ]
    for entry in LIBRARY_TASKS:
        rows = [(f"`{o.name}`", o.takes, f"`{o.value}`", o.about) for o in describe_options(entry)]
        table = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
        head = ["| option | takes | default | meaning |", "|---|---|---|---|"]
        lines += ["", f"## `{entry.form}`", "", f"{entry.about[0].upper()}{entry.about[1:]}.", "", *head]
        lines += [f"| {row} |" for row in table]
    return "\n".join(lines) + "\n"
