"""Tasks by the name typed on the command line; some, such as `jsonl:FILE` and `gym:ENV_ID`, take the text after the colon."""

from __future__ import annotations

import inspect
import pkgutil
from dataclasses import dataclass
from typing import Any

from anypo.errors import UsageError, unknown
from anypo.protocols import Configures


@dataclass(frozen=True)
class Entry:
    """A kind of task.

    form: as typed; the text after a colon is the factory's first argument. about: one line for lists. factory: `module:name`,
    imported when a task is made. seeded: the run's seed is the factory's, unless the task's own is given. forwards: what takes
    the options that the factory hands on.
    """

    form: str
    about: str
    factory: str
    seeded: bool = False
    forwards: str | None = None

    def options(self) -> list[str]:
        """The names of all options."""
        names = [self.factory] if self.forwards is None else [self.factory, self.forwards]
        parameters = [p for name in names for p in inspect.signature(pkgutil.resolve_name(name)).parameters.values()]
        return [p.name for p in parameters if p.default is not p.empty]

    def make(self, argument: str, seed: int, options: dict[str, Any]) -> Any:
        """Make the task.

        Args:
            argument: the text after the colon.
            seed: the run's.
            options: of the factory.

        Raises:
            UsageError: nothing follows the colon, or an option does not exist.
        """
        kind, colon, _ = self.form.partition(":")
        if colon and not argument:
            raise UsageError(f"this task is written {self.form}")
        known = self.options()
        for option in options:
            if option not in known:
                raise unknown(f"option of the task {kind}:", option, known)
        make = pkgutil.resolve_name(self.factory)
        return make(*([argument] if colon else []), **({"seed": seed} if self.seeded else {}) | options)


ENTRIES = (
    Entry("sums", "add two numbers (text, exact verifier, the default)", "anypo.tasks.text.sums:Sums"),
    Entry(
        "jsonl:FILE",
        "your own prompts, with --reward: JSONL, Parquet, or a folder of `datasets`",
        "anypo.tasks.text.jsonl:make_jsonl_task",
    ),
    Entry(
        "pairs:FILE",
        "preference data: `prompt`, `chosen`, `rejected` a line, or `prompt`, `completion`, `label`",
        "anypo.tasks.text.pairs:make_pairs_task",
    ),
    Entry(
        "reasoning-gym:NAME",
        "any data set of reasoning-gym, its own verifier",
        "anypo.tasks.text.reasoning:make_reasoning_task",
    ),
    Entry(
        "gym:ENV_ID",
        "any Gymnasium environment with Box, Discrete or MultiDiscrete actions",
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

TASKS = {entry.form: entry.about for entry in ENTRIES}


def make_task(spec: dict[str, Any], seed: int) -> Any:
    """The task of `{name: ..., options}`; unknown names and options are errors that name the nearest."""
    options = dict(spec)
    name = str(options.pop("name"))
    kind, _, rest = name.partition(":")
    for entry in ENTRIES:
        if entry.form.partition(":")[0] == kind:
            return entry.make(rest, seed, options)
    raise unknown("task", name, TASKS)


def configure(task: Any, recipe: dict[str, Any]) -> None:
    """Apply to a task the settings of its recipe that concern its environments, where there are any."""
    if isinstance(task, Configures):
        task.configure(recipe)
