"""The two ways anypo refuses to go on: each is one sentence that says what is wrong and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """What was asked cannot be done as asked: an unknown name, a missing file, malformed input (exit code 2)."""


class RunError(RuntimeError):
    """A run that had started had to stop: a reward that raises, numbers that are not finite (exit code 1)."""


ALIKE = 0.65
"""How similar a known name must be to be suggested, as difflib measures it."""


LISTED = 20
"""Known names listed where none is similar."""


def unknown(kind: str, name: str, known: Iterable[str], prefix: str = "") -> UsageError:
    """Return the error for a name that is not registered; it names the nearest one.

    Args:
        kind: what the name should be, `method`.
        name: as it was typed.
        known: the registered names.
        prefix: of all names, as they are typed.
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=ALIKE) or [
        x for x in known if name and x.startswith(name)
    ]
    listed = ", ".join(prefix + x for x in known[:LISTED]) + f", ... ({len(known)} in all)" * (len(known) > LISTED)
    hint = f"did you mean {prefix + near[0]!r}?" if near else f"known: {listed}."
    return UsageError(f"unknown {kind} {prefix + name!r}; {hint}")


OBJECT = "object:"
"""Before the name of what was given from Python, where config.yaml has names."""


def missing_object(name: str, what: str) -> UsageError:
    """Return the error for an object that was given from Python and is needed again.

    Args:
        name: as in config.yaml.
        what: method, task, policy or reward.
    """
    return UsageError(
        f"the {what} {name.removeprefix(OBJECT)!r} was given from Python; hand it over again:"
        f" anypo.resume(RUN, {what}=...) or anypo.load(RUN, {what}=...)"
    )


FULL = (
    "No space left on device",
    "failed writing file",
    "Disk quota exceeded",
    "iostream error",
    "inline_container.cc",
)
"""How libraries say that a file could not be written to its end."""


def describe_failure(error: BaseException) -> str | None:
    """Return one sentence for an error of the machine: memory, disk, files; None for any other."""
    text = (str(error).splitlines() or [""])[0]
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "allocate memory" in text.lower()):
        what = f" ({text})" if text else ""
        return (
            f"out of memory{what}; make the batch smaller: --collect.requests, --collect.samples, --task.envs, --micro"
        )
    if any(words in text for words in FULL):
        return f"cannot write: {text}; make room, and go on with `anypo resume`"
    if isinstance(error, OSError) and error.errno is not None:
        where = "" if error.filename is None else f" {str(error.filename)[-200:]}"
        return f"cannot use the file{where}: {error.strerror}" if where else f"the system refused: {error.strerror}"
    return None


class MissingField(UsageError):
    """Raised by a part whose batch lacks a field; the method adds its name and the stage to it."""

    def __init__(self, field: str) -> None:
        super().__init__(f"the method needs the field {field!r}, which the rows of the task do not have")
        self.field = field
