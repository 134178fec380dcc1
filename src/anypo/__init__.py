"""anypo: policy optimization in which every published method is a difference from one you already know."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anypo import parts
    from anypo.comparisons import Comparisons
    from anypo.method.card import Card, Claim, Reduction
    from anypo.method.method import Method
    from anypo.method.procedure import Procedure
    from anypo.method.registry import method, methods, procedure, procedures, register_method, register_procedure
    from anypo.method.term import Term
    from anypo.parts.registry import register_part
    from anypo.policies import register_policy
    from anypo.tasks import register_task
    from anypo.types import Request, Trajectories

if TYPE_CHECKING:
    from anypo.api import TrainedRun, compare, load, resume, train

__version__ = "0.1.0"
__all__ = [
    "Card",
    "Claim",
    "Comparisons",
    "Method",
    "Procedure",
    "Reduction",
    "Request",
    "Term",
    "TrainedRun",
    "Trajectories",
    "compare",
    "load",
    "method",
    "methods",
    "parts",
    "procedure",
    "procedures",
    "register_method",
    "register_part",
    "register_policy",
    "register_procedure",
    "register_task",
    "resume",
    "train",
]


HOMES = {
    **dict.fromkeys(("TrainedRun", "compare", "load", "resume", "train"), "anypo.api"),
    "Card": "anypo.method.card",
    "Claim": "anypo.method.card",
    "Comparisons": "anypo.comparisons",
    "Method": "anypo.method.method",
    "Procedure": "anypo.method.procedure",
    "Reduction": "anypo.method.card",
    "Term": "anypo.method.term",
    "Request": "anypo.types",
    "Trajectories": "anypo.types",
    "procedure": "anypo.method.registry",
    "procedures": "anypo.method.registry",
    "register_method": "anypo.method.registry",
    "register_part": "anypo.parts.registry",
    "register_policy": "anypo.policies",
    "register_procedure": "anypo.method.registry",
    "register_task": "anypo.tasks",
}


class _Package(ModuleType):
    """Imports public names when they are asked for, so that `anypo --help` does not wait for torch."""

    def __getattr__(self, name: str) -> Any:
        if name == "parts":
            return importlib.import_module("anypo.parts")
        if name not in HOMES:
            raise AttributeError(f"module 'anypo' has no attribute {name!r}")
        return getattr(importlib.import_module(HOMES[name]), name)

    @property
    def method(self) -> Any:
        """The function; importing the package of the same name does not hide it."""
        return importlib.import_module("anypo.method.registry").method

    @method.setter
    def method(self, module: ModuleType) -> None:
        del module

    @property
    def methods(self) -> Any:
        """The function, likewise."""
        return importlib.import_module("anypo.method.registry").methods

    @methods.setter
    def methods(self, module: ModuleType) -> None:
        del module


sys.modules[__name__].__class__ = _Package
