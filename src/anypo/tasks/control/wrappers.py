"""Gymnasium wrappers by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from anypo.errors import UsageError, unknown
from anypo.plugins import load_from_file, names_file
from anypo.tasks.control.make_env import describe_error, import_env_module

Wrappers = str | dict[str, Any] | list[str | dict[str, Any]]
"""Names, or {NAME: {KEYWORD: value}}; the first one is the innermost."""

LEARNING = {
    "NormalizeObservation": "the policy normalizes observations itself (--policy.normalize)",
    "NormalizeReward": "rewards are scaled already (--task.scale_reward)",
}
"""Wrappers with statistics that no checkpoint holds, so that a resumed run would go on without them, and what does the same."""


def wrap_env(name: str, env: Any, wrappers: Wrappers | None) -> Any:
    """Put wrappers round an environment.

    Args:
        name: of the task, for messages.
        env: the environment.
        wrappers: as typed; each is a name of `gymnasium.wrappers`, MODULE:CLASS or FILE.py:CLASS.

    Raises:
        UsageError: there is no such wrapper, or it cannot be made.
    """
    from gymnasium import Env

    for known_as, keywords in wrapper_specs(wrappers):
        wrap = find_wrapper(name, known_as)
        try:
            env = wrap(env, **keywords)
        except Exception as error:
            arguments = f" with {keywords}" if keywords else ""
            raise UsageError(
                f"{name}: the wrapper {known_as} cannot be made{arguments}: {describe_error(error)}"
            ) from error
        if not isinstance(env, Env):
            raise UsageError(f"{name}: the wrapper {known_as} made a {type(env).__name__}, which is no environment")
    return env


def wrapper_specs(wrappers: Wrappers | None) -> list[tuple[str, dict[str, Any]]]:
    """Return name and keywords of each wrapper."""
    specs: list[tuple[str, dict[str, Any]]] = []
    for entry in wrappers if isinstance(wrappers, list) else [wrappers] if wrappers else []:
        named = {entry: None} if isinstance(entry, str) else entry
        if not isinstance(named, dict):
            raise UsageError(f"task.wrappers has {entry!r}; it takes names, and {{NAME: {{KEYWORD: value}}}}")
        for known_as, keywords in named.items():
            if not isinstance(keywords, dict | None):
                raise UsageError(
                    f"the wrapper {known_as} has the arguments {keywords!r}; they are written {{{known_as}: {{KEYWORD: value}}}}"
                )
            specs.append((known_as, keywords or {}))
    return specs


def map_names(wrappers: Wrappers | None, rename: Callable[[str], str]) -> list[str | dict[str, Any]]:
    """Return wrappers with other names."""
    return [{rename(name): keywords} if keywords else rename(name) for name, keywords in wrapper_specs(wrappers)]


def find_wrapper(name: str, known_as: str) -> Callable[..., Any]:
    """Return the class, or function of an environment, behind a wrapper's name.

    Args:
        name: of the task, for messages.
        known_as: of the wrapper.

    Raises:
        UsageError: there is none, or it keeps statistics.
    """
    from gymnasium import wrappers

    if names_file(known_as):
        return load_from_file(known_as, "wrapper")
    module, _, attribute = known_as.rpartition(":")
    if module:
        imported = import_env_module(name, module)
        if not hasattr(imported, attribute):
            raise unknown(f"name in the module {module}:", attribute, [n for n in vars(imported) if n[0] != "_"])
        return getattr(imported, attribute)
    if attribute in LEARNING:
        raise UsageError(f"the wrapper {attribute} keeps statistics that no checkpoint holds; {LEARNING[attribute]}")
    known = [n for n in wrappers.__all__ if n[0].isupper() and n not in LEARNING]
    if attribute not in known:
        raise unknown("wrapper", attribute, known)
    return getattr(wrappers, attribute)
