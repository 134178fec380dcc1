"""Methods: named fillings of the nine stages, written as differences from one another. Procedures: functions with a card."""

from anypo.method.card import Card, Claim, Reduction
from anypo.method.method import Method
from anypo.method.procedure import Procedure
from anypo.method.registry import ENTRIES, load_entries, method, methods, register_method, register_procedure
from anypo.method.term import Term

__all__ = [
    "ENTRIES",
    "Card",
    "Claim",
    "Method",
    "Procedure",
    "Reduction",
    "Term",
    "load_entries",
    "method",
    "methods",
    "register_method",
    "register_procedure",
]
