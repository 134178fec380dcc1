"""Parameters of tests that are about one entry each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def entries(values: Iterable[Any], entry: Callable[[Any], str] = str) -> list[Any]:
    """Parameters for `pytest.mark.parametrize`, each marked with its entry: itself, or `entry(value)`."""
    return [
        pytest.param(*value if isinstance(value, tuple) else (value,), marks=pytest.mark.entry(entry(value)))
        for value in values
    ]
