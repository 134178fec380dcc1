"""What exists for speed alone.

A kernel is a function that readable PyTorch code could replace without changing a result by more than rounding. It may live here if

- that code, its plain twin, stands beside it with the same signature (`@kernel(plain)`), and a row of tests/kernels/test_twins.py
  compares values and gradients of both;
- it needs what the rest of the library does without: custom gradients (`torch.autograd.Function`), torch's compiler, oneDNN's operators,
  C's allocator, caches of intermediate results;
- it takes tensors, modules and optimizers: kernels know no method, policy, task or run.

`use("plain")`, or `anypo train ... --kernels plain`, makes every kernel call its twin: it decides whether a kernel is at fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from anypo.errors import unknown

P = ParamSpec("P")
R = TypeVar("R")

KINDS = ("fast", "plain")


@dataclass(frozen=True)
class Kernel:
    """Both implementations of one function."""

    fast: Callable[..., Any]
    plain: Callable[..., Any]


KERNELS: dict[str, Kernel] = {}
"""Every kernel of the modules imported so far, by `MODULE.FUNCTION`."""

_plain = False


def use(kind: str) -> None:
    """Make kernels compute by themselves ("fast") or by their plain twins ("plain") from now on."""
    global _plain
    if kind not in KINDS:
        raise unknown("kind of kernels", kind, KINDS)
    _plain = kind == "plain"


def plain() -> bool:
    """Return whether kernels call their plain twins."""
    return _plain


@contextmanager
def using(kind: str) -> Iterator[None]:
    """`use` within a block."""
    before = KINDS[_plain]
    use(kind)
    try:
        yield
    finally:
        use(before)


def kernel(twin: Callable[P, R]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Register a function as the fast form of `twin`, which it calls while kernels are plain."""

    def register(fast: Callable[P, R]) -> Callable[P, R]:
        @wraps(fast)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            return twin(*args, **kwargs) if _plain else fast(*args, **kwargs)

        KERNELS[f"{fast.__module__.rpartition('.')[2]}.{fast.__name__}"] = Kernel(fast, twin)
        return call

    return register
