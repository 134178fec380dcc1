"""Names as they are typed on the command line."""

from __future__ import annotations

import re


def kebab(name: str) -> str:
    """Return a class name in kebab case: MinPrefix -> min-prefix."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()
