"""anypo: policy optimization in which every published method is a difference from one you already know."""

from typing import TYPE_CHECKING, Any

import anypo.methods  # noqa: F401 - before the function of the same name, which is the public one
from anypo import parts
from anypo.method.card import Card, Claim, Reduction
from anypo.method.method import Method
from anypo.method.registry import method, methods, register_method
from anypo.parts.registry import register_part
from anypo.policies import register_policy
from anypo.tasks import register_task
from anypo.types import Comparisons, Request, Trajectories

if TYPE_CHECKING:
    from anypo.api import TrainedRun, compare, load, resume, train

__version__ = "0.1.0"
__all__ = [
    "Card",
    "Claim",
    "Comparisons",
    "Method",
    "Reduction",
    "Request",
    "TrainedRun",
    "Trajectories",
    "compare",
    "load",
    "method",
    "methods",
    "parts",
    "register_method",
    "register_part",
    "register_policy",
    "register_task",
    "resume",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import what trains and loads runs when it is first used."""
    if name in ("TrainedRun", "compare", "load", "resume", "train"):
        from anypo import api

        return getattr(api, name)
    raise AttributeError(f"module 'anypo' has no attribute {name!r}")
