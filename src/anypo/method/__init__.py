"""Methods: named fillings of the nine stages, written as differences from one another."""

from anypo.method.card import Card, Claim, Reduction
from anypo.method.method import Method
from anypo.method.registry import METHODS, load_methods, method, methods, register_method
from anypo.method.term import Term

__all__ = [
    "METHODS",
    "Card",
    "Claim",
    "Method",
    "Reduction",
    "Term",
    "load_methods",
    "method",
    "methods",
    "register_method",
]
