"""Method files hold their difference, card and claim."""

from __future__ import annotations

import ast
import statistics
from pathlib import Path

import anypo

SOURCE = Path(anypo.__file__).parent
FILES = sorted(p for p in (SOURCE / "methods").rglob("*.py") if p.name != "__init__.py")


def lines_of_code(path: Path) -> int:
    """Non-blank lines outside docstrings and cards."""
    tree = ast.parse(path.read_text())
    left_out: set[int] = set()
    for node in ast.walk(tree):
        docstring = (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        )
        card = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Card"
        if docstring or card:
            left_out |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return sum(bool(line.strip()) and n not in left_out for n, line in enumerate(path.read_text().splitlines(), 1))


def test_the_median_method_file_is_short_and_none_is_long() -> None:
    sizes = {path.stem: lines_of_code(path) for path in FILES}
    assert statistics.median(sizes.values()) <= 40, sizes
    assert max(sizes.values()) <= 120, sizes
