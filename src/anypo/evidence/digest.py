"""The digest of a method or procedure: a hash of its file, its parts or function with what these call, and its card.

Layout, comments, docstrings, imports and the module of a definition do not change it. The shared vocabulary (types, views,
stages), policies and tasks are no part of it. `python -m anypo.evidence.digest` prints the digests; `--stamp` writes them into the
rows of the ledger that have none.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from anypo.method.method import Method
from anypo.method.procedure import Procedure
from anypo.method.registry import LIBRARY, entries
from anypo.method.registry import entry as find
from anypo.stages import SLOTS

FOLLOWED = ("anypo.parts.", "anypo.methods.", "anypo.kernels.", "anypo.estimators.")
"""Modules whose functions and classes are followed when a part names them."""
ADDED = ("system", "ablate")
"""Fields of cards and claims that are left out where they are empty: older digests were made without them."""
LENGTH = 16


def digest(entry: Method | Procedure) -> str:
    """Hash an entry's file, the source of its parts or its function and of what these call, its settings and its card."""
    file, functions = entry_files().get(entry.card.id, ("", ()))
    content: dict[str, Any] = {"file": file, "card": settings(entry.card)}
    if isinstance(entry, Procedure):
        content["definitions"] = definitions([entry.call, *entry.known, *functions])
    else:
        stages = [{slot: phase.parts(slot) for slot in SLOTS} for phase in entry.phases]
        content["definitions"] = definitions([*instance_types(stages), *functions])
        content["stages"] = [[phase.text() for phase in entry.later], entry.length, settings(stages)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:LENGTH]


def digests() -> dict[str, str]:
    """Return the digest of every registered method and procedure."""
    return {name: digest(find(name)) for name in entries()}


def stamp(path: Path, overwrite: bool = False) -> list[str]:
    """Write digests into the ledger's rows that have none, or into all of them; returns the names of these rows."""
    ledger = json.loads(path.read_text())
    current = digests()
    rows = {n: row for n, row in ledger["methods"].items() if n in current and (overwrite or "digest" not in row)}
    for name, row in rows.items():
        row["digest"] = current[name]
    path.write_text(json.dumps(ledger, indent=1, sort_keys=True) + "\n")
    return sorted(rows)


# -------------------------------------------------------------------- values


def settings(value: Any) -> Any:
    """Write a value as JSON: dataclasses by class name and fields, functions by name."""
    if is_dataclass(value) and not isinstance(value, type):
        present = [f.name for f in fields(value) if f.name not in ADDED or getattr(value, f.name)]
        return [type(value).__qualname__, {name: settings(getattr(value, name)) for name in present}]
    if isinstance(value, dict):
        return {str(key): settings(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [settings(x) for x in value]
    return getattr(value, "__qualname__", None) or repr(value)


def instance_types(value: Any) -> Iterator[type]:
    """Return the classes of all dataclass instances in a value."""
    if is_dataclass(value) and not isinstance(value, type):
        yield type(value)
        value = [getattr(value, f.name) for f in fields(value)]
    if isinstance(value, dict | list | tuple):
        for x in value.values() if isinstance(value, dict) else value:
            yield from instance_types(x)


# -------------------------------------------------------------------- source


def shape(node: Any) -> Any:
    """Write a syntax tree as JSON, without positions, docstrings and imports."""
    if isinstance(node, ast.AST):
        present = [(name, value) for name, value in ast.iter_fields(node) if value not in (None, []) and name != "ctx"]
        return [type(node).__name__, *([name, shape(value)] for name, value in present)]
    if isinstance(node, list):
        return [shape(x) for x in node if not (is_text(x) or isinstance(x, ast.Import | ast.ImportFrom))]
    return repr(node)


def is_text(node: Any) -> bool:
    """Check whether a statement is a string: a docstring."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@cache
def top_level(module: str) -> dict[str, ast.stmt]:
    """Return what a module defines and assigns, by name."""
    path = getattr(sys.modules.get(module), "__file__", None)
    names: dict[str, ast.stmt] = {}
    for node in ast.parse(Path(path).read_text()).body if path else ():
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id: node for target in targets if isinstance(target, ast.Name)}
    return names


@cache
def entry_files() -> dict[str, tuple[str, list[Callable[..., Any]]]]:
    """Return id -> text of an entry's file and the functions from elsewhere that it names, by the cards in the files."""
    entries()  # imports them
    files: dict[str, tuple[str, list[Callable[..., Any]]]] = {}
    for name in sorted(n for n in sys.modules if n.startswith(tuple(f"{package}." for package in LIBRARY))):
        tree = ast.parse(Path(str(sys.modules[name].__file__)).read_text())
        functions = [
            value for _, value in named_globals(name, tree) if is_followed(value) and not isinstance(value, type)
        ]
        text = json.dumps(shape(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Card":
                ids = [*node.args[:1], *(k.value for k in node.keywords if k.arg == "id")]
                files |= {str(x.value): (text, functions) for x in ids if isinstance(x, ast.Constant)}
    return files


def named_globals(module: str, node: ast.AST) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of the module's globals that the body of a definition names, decorators apart."""
    namespace = vars(sys.modules[module])
    skipped = {id(x) for d in getattr(node, "decorator_list", ()) for x in ast.walk(d)}
    names = {x.id for x in ast.walk(node) if isinstance(x, ast.Name) and id(x) not in skipped}
    return ((name, namespace[name]) for name in sorted(names) if name in namespace)


def is_followed(value: Any) -> bool:
    """Check whether a value is a function or class that is followed."""
    return hasattr(value, "__qualname__") and str(getattr(value, "__module__", "")).startswith(FOLLOWED)


def lineage(value: Any) -> Iterator[tuple[str, str]]:
    """Yield (module, name) of a function, or of a class and its followed bases."""
    bases = value.__mro__[1:] if isinstance(value, type) else ()
    return ((x.__module__, x.__qualname__) for x in (value, *filter(is_followed, bases)))


@cache
def definition(module: str, name: str) -> tuple[str, list[tuple[str, str]]] | None:
    """Return a definition's text and the definitions that it names; None where the module has none of that name."""
    node = top_level(module).get(name)
    if node is None:
        return None
    followed: list[tuple[str, str]] = []
    for other, value in named_globals(module, node):
        if is_followed(value):
            followed += lineage(value)
        elif other in top_level(module):
            followed.append((module, other))
    return json.dumps([name, shape(node)]), followed


def definitions(roots: Iterable[Any]) -> list[str]:
    """Return the texts of classes and functions, of their base classes, and of all that these name, sorted."""
    waiting = [place for root in roots for place in lineage(root)]
    texts: dict[tuple[str, str], str] = {}
    while waiting:
        place = waiting.pop()
        if place not in texts and (entry := definition(*place)) is not None:
            texts[place], followed = entry
            waiting += followed
    return sorted(texts.values())


def print_or_stamp() -> None:
    """Print the digests, or stamp them into the ledger."""
    from anypo.evidence.verify import LEDGER

    parser = argparse.ArgumentParser(prog="python -m anypo.evidence.digest", description=__doc__)
    parser.add_argument("--stamp", action="store_true", help="write digests into the ledger's rows that have none")
    parser.add_argument("--all", action="store_true", help="with --stamp: into all rows")
    parser.add_argument("--ledger", type=Path, default=LEDGER)
    options = parser.parse_args()
    if options.stamp:
        rows = stamp(options.ledger, options.all)
        sys.stdout.write(f"{len(rows)} rows stamped in {options.ledger}\n")
    else:
        sys.stdout.writelines(f"{value}  {name}\n" for name, value in digests().items())


if __name__ == "__main__":
    print_or_stamp()
