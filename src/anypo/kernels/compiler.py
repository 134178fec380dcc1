"""Compiled functions of tensors, made by torch's inductor: elementwise operations are merged and nothing goes through Python."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from anypo.errors import UsageError

Function = Callable[..., Sequence[Tensor]]


def require_compiler() -> None:
    """UsageError where there is none."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        raise UsageError("--compile on needs a C++ compiler (g++, or the one CXX names), and there is none")


def trace(function: Function, given: Sequence[Tensor]) -> torch.fx.GraphModule:
    """The operations the function makes of tensors of these shapes; RuntimeError where it has to know a number on its way."""
    graph = make_fx(lambda *tensors: function(*tensors), tracing_mode="fake")(*given)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def compile_graph(graph: torch.fx.GraphModule, given: Sequence[Tensor]) -> Function:
    """The recorded operations as machine code for tensors of these shapes.

    torch.compile would look at every input of every call to see whether the code still fits, which takes longer than a small
    network; here the caller knows.
    """
    import torch._inductor as inductor

    options: dict[str, Any] = {"cpp_wrapper": True, "cpp.threads": torch.get_num_threads()}
    with torch.no_grad():
        return inductor.compile(graph, list(given), options=options)  # pyright: ignore[reportReturnType]


class CompiledFn:
    """A function of contiguous tensors that is compiled for every combination of shapes it meets."""

    def __init__(self, function: Function):
        self.function = function
        self.made: dict[tuple[torch.Size, ...], Function] = {}

    def __call__(self, *given: Tensor) -> Sequence[Tensor]:
        shapes = tuple([x.shape for x in given])
        if shapes not in self.made:
            self.made[shapes] = compile_graph(trace(self.function, given), given)
        return self.made[shapes](*given)
