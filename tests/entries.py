"""Parameters of tests that are about one entry each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def entries(values: Iterable[Any], entry: Callable[[Any], str] | None = None) -> list[Any]:
    """Parameters for `pytest.mark.parametrize`, each marked with its entry: `entry(value)`, else itself or its first item."""
    params = []
    for value in values:
        items = value if isinstance(value, tuple) else (value,)
        params.append(pytest.param(*items, marks=pytest.mark.entry(entry(value) if entry else items[0])))
    return params
