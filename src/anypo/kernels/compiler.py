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
from anypo.kernels import kernel

Function = Callable[..., Sequence[Tensor]]


def require_compiler() -> None:
    """Raise UsageError where there is no C++ compiler."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        raise UsageError("--compile on needs a C++ compiler (g++, or the one CXX names), and there is none")


def trace(function: Function, inputs: Sequence[Tensor]) -> torch.fx.GraphModule:
    """Record the operations the function makes of tensors of these shapes.

    Raises RuntimeError where it needs a host value (data-dependent control flow).
    """
    graph = make_fx(lambda *tensors: function(*tensors), tracing_mode="fake")(*inputs)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def run_graph(graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Function:
    """Return the recorded operations as a function that calls one after the other."""
    return graph


@kernel(run_graph)
def compile_graph(graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Function:
    """Compile the recorded operations for tensors of these shapes.

    torch.compile would look at every input of every call to see whether the code still fits, which takes longer than a small
    network; here the caller knows.
    """
    import torch._inductor as inductor

    options: dict[str, Any] = {"cpp_wrapper": True, "cpp.threads": torch.get_num_threads()}
    with torch.no_grad():
        return inductor.compile(graph, list(inputs), options=options)  # pyright: ignore[reportReturnType]


class CompiledFn:
    """A function of contiguous tensors that is compiled for every combination of shapes it meets."""

    def __init__(self, function: Function):
        self.function = function
        self.compiled: dict[tuple[torch.Size, ...], Function] = {}

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        shapes = tuple([x.shape for x in inputs])
        if shapes not in self.compiled:
            self.compiled[shapes] = compile_graph(trace(self.function, inputs), inputs)
        return self.compiled[shapes](*inputs)
