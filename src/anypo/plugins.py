"""Names that come from outside the library: objects in Python files (`FILE.py:NAME`) and entry points of installed packages."""

from __future__ import annotations

import ast
import hashlib
import importlib
import os
import sys
from collections.abc import Iterator
from functools import cache
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from anypo.errors import UsageError

MODULES: dict[Path, ModuleType] = {}
"""Files that objects were taken from, and their modules."""
CONTENTS: dict[Path, dict[Path, bytes]] = {}
"""What each of them, and the neighbours it imports, held when it was executed."""


def names_file(name: str) -> bool:
    """Return whether a name is written FILE.py:NAME."""
    file, colon, _ = name.rpartition(":")
    return bool(colon) and file.endswith(".py")


def find_path(file: str) -> Path:
    """Return the absolute path of a file as it is typed; `~` is the home folder where there is one."""
    return Path(os.path.expanduser(file)).resolve()  # Path.expanduser raises where there is none


def absolute_name(name: str) -> str:
    """Return FILE.py:NAME with an absolute path; another name as it is."""
    if not names_file(name):
        return name
    file, _, attribute = name.rpartition(":")
    return f"{find_path(file)}:{attribute}"


def load_from_file(name: str, kind: str) -> Any:
    """Return the object that `FILE.py:NAME` names; a file is executed once per process, and again when it or a neighbour it imports
    was edited.

    Args:
        name: as typed.
        kind: what the object is to be, for errors.

    Raises:
        UsageError: there is no such file, its code fails, or it has no such name.
    """
    file, _, attribute = name.rpartition(":")
    path = find_path(file)
    if not path.is_file():
        raise UsageError(f"there is no file {file} to take the {kind} {attribute!r} from")
    module = MODULES[path] if CONTENTS.get(path) == read_all(path) else execute(path)
    if not hasattr(module, attribute):
        known = ", ".join(n for n, x in vars(module).items() if getattr(x, "__module__", "") == module.__name__)
        raise UsageError(f"{file} has no {kind} {attribute!r}" + (f"; it has {known}" if known else ""))
    return getattr(module, attribute)


def read_all(path: Path) -> dict[Path, bytes]:
    """Return what a file and the neighbours it imports hold."""
    return {file: file.read_bytes() for file in with_neighbours(path)}


def execute(path: Path) -> ModuleType:
    """Execute a Python file as a module of its own, which may import its neighbours.

    Raises:
        UsageError: the file's code fails, or a neighbour has the name of another module.
    """
    contents = read_all(path)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    forget_edited(path, contents)
    name = f"anypo_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    module = sys.modules[name] = ModuleType(name)
    module.__file__ = str(path)
    try:
        exec(compile(contents[path], path, "exec"), vars(module))  # no bytecode of an earlier edit
    except UsageError:
        del sys.modules[name]
        raise
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UsageError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    check_neighbours(path)
    MODULES[path], CONTENTS[path] = module, contents
    return module


def forget_edited(path: Path, contents: dict[Path, bytes]) -> None:
    """Let a file's neighbours be imported again where one of them was edited since.

    Args:
        path: of the file.
        contents: what it and its neighbours hold now.
    """
    before = {file: text for file, text in CONTENTS.get(path, {}).items() if file != path}
    if any(contents.get(file) != text for file, text in before.items()):
        for file in before:
            sys.modules.pop(module_name(file, path.parent), None)
        importlib.invalidate_caches()


def check_neighbours(path: Path) -> None:
    """Refuse a file that got another module than the one beside it: of an installed package, or of another folder.

    Raises:
        UsageError: naming both.
    """
    for file in with_neighbours(path)[1:]:
        source = getattr(sys.modules.get(module_name(file, path.parent)), "__file__", None)
        if source is not None and Path(source).resolve() != file:
            raise UsageError(f"{path} imports {source} under the name of {file}; rename that")


def module_name(file: Path, folder: Path) -> str:
    """Return the dotted name by which a file below a folder is imported."""
    place = file.parent if file.name == "__init__.py" else file.with_suffix("")
    return ".".join(place.relative_to(folder).parts)


def with_neighbours(path: Path, folder: Path | None = None) -> list[Path]:
    """Return a Python file and the files of a folder, its own by default, that it imports, directly or through one another."""
    folder = folder or path.parent
    files: dict[Path, None] = {}
    queue = [path]
    while queue:
        file = queue.pop()
        if file not in files:
            files[file] = None
            queue += [module for name in imported_names(file, folder) for module in module_files(folder, name)]
    return list(files)


def module_sources(name: str) -> list[Path]:
    """Return the files of a module that is found beside the user or on Python's path, and of what it imports from there; those of
    installed packages are not listed."""
    source = module_file(name)
    if source is None:
        return []
    folder = source.parents[name.count(".") + (source.name == "__init__.py")]
    return [needed for file in module_files(folder, name) for needed in with_neighbours(file, folder)]


def module_file(name: str) -> Path | None:
    """Find the file of a module without importing it; None where there is none, or it is installed."""
    importlib.invalidate_caches()
    places: Any = [str(Path.cwd()), *sys.path]
    parts, origin = name.split("."), None
    for depth in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:depth]), places)
        if spec is None:
            return None
        places, origin = spec.submodule_search_locations or (), spec.origin
    installed = origin is None or {"site-packages", "dist-packages"} & set(Path(origin).parts)
    return None if installed or origin is None else Path(origin).resolve()


def imported_names(file: Path, folder: Path) -> Iterator[str]:
    """Dotted names that the import statements of a file may mean, in functions too; `from a import b` may mean a.b.

    Args:
        file: which may be no Python at all; executing it says so.
        folder: what relative imports are resolved in.
    """
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = (folder, *file.parents)[: node.level + 1][-1]
            if above.is_relative_to(folder):
                base = ".".join((*above.relative_to(folder).parts, *filter(None, [node.module])))
                yield from (f"{base}.{alias.name}".removeprefix(".") for alias in node.names)


def module_files(folder: Path, name: str) -> list[Path]:
    """Return the files of a folder that importing a dotted name executes."""
    pieces = name.split(".")
    places = [folder.joinpath(*pieces[: end + 1]) for end in range(len(pieces))]
    files = [file for place in places for file in (place / "__init__.py", place.with_name(f"{place.name}.py"))]
    return [file for file in files if file.is_file()]


def origin(of: Any) -> str | None:
    """Return where a class, function or method was defined: a file's path, or a package other than anypo; None for anypo's own."""
    module = sys.modules.get(getattr(of, "__module__", ""))
    for path, loaded in MODULES.items():
        if loaded is module:
            return str(path)
    root = module.__name__.partition(".")[0] if module else "anypo"
    return None if root == "anypo" else root


@cache
def installed(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of `anypo.GROUP` by name.

    Raises:
        UsageError: two packages offer one name.
    """
    points: dict[str, EntryPoint] = {}
    for point in entry_points(group=f"anypo.{group}"):
        if point.name in points and point.value != points[point.name].value:
            raise UsageError(f"{package(points[point.name])} and {package(point)} both offer {point.name!r} ({group})")
        points[point.name] = point
    return points


def package(point: EntryPoint) -> str:
    """Return the name of the package that an entry point belongs to."""
    return point.dist.name if point.dist else point.module


def load_installed(group: str, name: str) -> Any:
    """Return the object behind an entry point.

    Raises:
        UsageError: its package cannot be imported, or lacks the name.
    """
    point = installed(group)[name]
    try:
        return point.load()
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"{name!r} ({group}) of the package {package(point)} cannot be imported: {type(error).__name__}: {error}"
        ) from error
