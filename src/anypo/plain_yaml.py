"""YAML as people write settings: numbers in plain decimal, `true` and `false`, everything else is text; no key twice, no bombs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from anypo.errors import UsageError

MOST_VALUES = 100_000
"""Values a file may hold after its aliases are written out."""


class Loader(yaml.SafeLoader):
    """Reads YAML without the readings of version 1.1, in which `010` is 8, `1:30` is 90 and `on` is true."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012 - as in the base class

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None and count_nodes(node, {}) > MOST_VALUES:
            raise yaml.YAMLError(f"its aliases stand for more than {MOST_VALUES:,} values")
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                raise yaml.YAMLError(f"line {node.start_mark.line + 1}: the key {key!r} is there twice")
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: Any) -> int:
        return int(self.construct_scalar(node))


class Dumper(yaml.SafeDumper):
    """Writes YAML that `Loader` reads as it was: text that one of both versions takes for a number is quoted."""


for name, pattern, first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?\d{1,4000}", list("-+0123456789")),
    ("float", r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.0123456789")),
    ("merge", r"<<", ["<"]),
):
    for kind in (Loader, Dumper):
        kind.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(rf"^(?:{pattern})$", re.ASCII), first)
Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)


def count_nodes(node: Any, sizes: dict[int, int | float]) -> int | float:
    """Count the values of a node once aliases are written out; without end where it holds itself.

    Args:
        node: of the document.
        sizes: of the nodes seen so far, by id; infinite while a node is being counted.
    """
    if id(node) not in sizes:
        sizes[id(node)] = float("inf")
        inner = node.value if isinstance(node, yaml.CollectionNode) else ()
        pairs = isinstance(node, yaml.MappingNode)
        sizes[id(node)] = 1 + sum(count_nodes(value, sizes) for item in inner for value in (item if pairs else (item,)))
    return sizes[id(node)]


def read_yaml(text: str, name: str) -> Any:
    """Read a YAML text.

    Args:
        text: what to read.
        name: of the text, for messages.

    Raises:
        UsageError: it is not valid, has a key twice, is nested too deeply or a bomb.
    """
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise UsageError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UsageError(f"{name} is nested too deeply") from None
    except (ValueError, TypeError) as error:  # a tag that does not fit its value, a list as a key
        raise UsageError(f"{name} is not valid YAML: {error}") from None


def load_yaml(path: Path) -> dict[str, Any]:
    """Read the content of a YAML file of settings."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    values = read_yaml(text, str(path))
    if not isinstance(values, dict):
        raise UsageError(f"{path} should hold `key: value` lines, it holds {type(values).__name__}")
    return values


def dump_yaml(values: dict[str, Any]) -> str:
    """Write settings as YAML, in their order."""
    return yaml.dump(values, Dumper=Dumper, sort_keys=False)
