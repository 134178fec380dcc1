"""Make a Gymnasium environment by its id; what cannot be made is one sentence."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

import anypo
from anypo.errors import UsageError, unknown
from anypo.plugins import module_file


def make_env(name: str, env: Any, env_kwargs: dict[str, Any]) -> Any:
    """Make an environment.

    Args:
        name: of the task, for messages.
        env: an id as Gymnasium writes it, ID or MODULE:ID, or a specification; a module may be in the working directory.
        env_kwargs: arguments of the environment.

    Raises:
        UsageError: Gymnasium or the simulator is not installed, the id is unknown, or the environment cannot be made.
    """
    try:
        import gymnasium
    except ImportError as error:
        raise UsageError(f'{name} needs Gymnasium; run `pip install "anypo[control]"`') from error
    module, known_as = module_and_id(env)
    if module:
        import_env_module(name, module)
    spec = gymnasium.registry.get(known_as) if isinstance(env, str) else env
    try:
        live = gymnasium.make(known_as if isinstance(env, str) else env, disable_env_checker=True, **env_kwargs)
    except gymnasium.error.NamespaceNotFound as error:
        raise UsageError(
            f"{name}: nothing installed here registers {known_as.partition('/')[0]}/...; environments of another package are"
            f" written gym:MODULE:{known_as} with the module that registers them"
        ) from error
    except (gymnasium.error.DependencyNotInstalled, ModuleNotFoundError) as error:
        raise UsageError(f"{name} needs a simulator that is not completely installed; {remedy(spec, error)}") from error
    except gymnasium.error.Error as error:
        if spec is not None and known_as in gymnasium.registry:
            raise UsageError(f"{name} cannot be made: {describe_error(error)}") from error
        raise unknown("environment", known_as, gymnasium.registry) from error
    except Exception as error:
        arguments = f" with env_kwargs {env_kwargs}" if env_kwargs else ""
        raise UsageError(f"{name} cannot be made{arguments}: {describe_error(error)}") from error
    for space in ("observation_space", "action_space"):
        if not isinstance(getattr(live, space, None), gymnasium.Space):
            raise UsageError(f"{name} has no {space}; an environment says what it takes and gives as Gymnasium spaces")
    return live


def module_and_id(env: Any) -> tuple[str, str]:
    """Return the module to import before an environment is made ("": none), and its id."""
    if isinstance(env, str):
        module, _, known_as = env.rpartition(":")
        return module, known_as
    entry = env.entry_point if isinstance(env.entry_point, str) else ""
    return "" if entry.startswith("gymnasium.") else entry.partition(":")[0], env.id


def registered_spec(env: Any) -> Any:
    """Return the specification behind an id that Gymnasium knows by now; anything else as it is."""
    import gymnasium

    return gymnasium.registry.get(module_and_id(env)[1], env) if isinstance(env, str) else env


def import_env_module(name: str, module: str) -> ModuleType:
    """Import a module that registers an environment or has a wrapper; the working directory is on the path, as with `python -m`.

    Args:
        name: of the task, for messages.
        module: dotted name.

    Raises:
        UsageError: there is no such module, or importing it fails.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module)
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name is not None
        if missing and (module == error.name or module.startswith(f"{error.name}.")):  # pyright: ignore[reportAttributeAccessIssue]
            raise UsageError(
                f"{name}: there is no module {module!r}, neither in the working directory nor installed"
            ) from error
        raise UsageError(f"{name}: importing the module {module} raised {describe_error(error)}") from error


def find_again(module: str, files: list[str]) -> None:
    """Let a module be found that was one of these files, also where the working directory is another one now."""
    parts = module.split(".")
    for path in map(Path, () if module_file(module) else files):
        place = path.parent if path.stem == "__init__" else path.with_suffix("")
        if list(place.parts[-len(parts) :]) == parts:
            sys.path.append(str(place.parents[len(parts) - 1]))


def remedy(spec: Any, error: Exception) -> str:
    """Return what to install for an environment whose simulator is missing."""
    entry = "" if spec is None else str(spec.entry_point)
    if entry.startswith("gymnasium.envs."):
        return f'run `pip install "gymnasium[{entry.split(".")[2]}]"`'
    return describe_error(error)


def describe_error(error: BaseException) -> str:
    """Type and first line of an error, and the line that raised it where that is the user's code."""
    import gymnasium

    libraries = [Path(module.__file__).parent for module in (anypo, gymnasium, importlib) if module.__file__]
    text = error.msg if isinstance(error, SyntaxError) else (str(error).splitlines() or [""])[0]
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError):
        frames.append((error.filename or "", error.lineno))
    places = [
        f" ({Path(file).name}, line {line})"
        for file, line in frames
        if not file.startswith("<") and not any(Path(file).is_relative_to(library) for library in libraries)
    ]
    return f"{type(error).__name__}: {text}{places[-1] if places else ''}"
