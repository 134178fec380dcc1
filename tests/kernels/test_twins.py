"""Every kernel computes what its plain twin computes, values and gradients, and the switch chooses between them.

A row is a function that calls the implementation it is handed and returns tensors by name; `@compare("MODULE.FUNCTION")` adds it.
"""

import importlib
import inspect
import pkgutil

import pytest
import torch

from anypo import kernels
from anypo.config import from_dict
from anypo.errors import UsageError
from anypo.runs.build import build

ROWS = {}


def compare(name, rtol=1e-5, atol=1e-6):
    """Add a row for a kernel; a kernel may have several."""

    def add(case):
        ROWS[f"{name}-{case.__name__}"] = (name, case, {"rtol": rtol, "atol": atol})
        return case

    return add


def leaf(*shape, seed=0, dtype=torch.float32):
    """Normal random numbers with a gradient."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()


def with_gradients(out, **inputs):
    """The outputs and the gradients of their weighted sum."""
    outputs = out if isinstance(out, tuple) else (out,)
    total = sum((x * leaf(*x.shape, seed=9).detach()).sum() for x in outputs)
    gradients = torch.autograd.grad(total, list(inputs.values()))
    named = {f"out{i}": x.detach() for i, x in enumerate(outputs)}
    return named | {f"gradient of {name}": x for name, x in zip(inputs, gradients, strict=True)}


# language models


@compare("rms_norm.rms_norm")
def rows_of_a_batch(rms_norm):
    x, weight = leaf(3, 5, 16), leaf(16, seed=1)
    return with_gradients(rms_norm(x, weight, 1e-6), x=x, weight=weight)


# the comparison


@pytest.mark.parametrize("row", ROWS)
def test_a_kernel_computes_what_its_twin_computes(row):
    name, case, tolerance = ROWS[row]
    importlib.import_module(f"anypo.kernels.{name.split('.')[0]}")
    kernel = kernels.KERNELS[name]
    fast, plain = case(kernel.fast), case(kernel.plain)
    assert fast.keys() == plain.keys()
    assert any(bool(x.any()) for x in plain.values())
    for key, want in plain.items():
        torch.testing.assert_close(fast[key], want, **tolerance, msg=lambda m, key=key: f"{key}: {m}")


def test_every_kernel_has_a_row_and_the_signature_of_its_twin():
    for module in pkgutil.iter_modules(kernels.__path__):
        importlib.import_module(f"anypo.kernels.{module.name}")
    assert {name for name, _, _ in ROWS.values()} == kernels.KERNELS.keys()
    for name, kernel in kernels.KERNELS.items():
        assert inspect.signature(kernel.fast) == inspect.signature(kernel.plain), name


def test_the_switch_chooses_for_a_block_and_is_put_back():
    @kernels.kernel(lambda x: x + 1)
    def double(x):
        return 2 * x

    del kernels.KERNELS["test_twins.double"]
    assert (double(3), kernels.plain()) == (6, False)
    with kernels.using("plain"):
        assert (double(3), kernels.plain()) == (4, True)
    assert (double(3), kernels.plain()) == (6, False)
    with pytest.raises(UsageError, match="fast"):
        kernels.use("fats")


def test_a_run_sets_the_switch():
    values = {"method": "ppo", "task": "gym:CartPole-v1", "steps": 1}
    with kernels.using("fast"):
        for kind in kernels.KINDS:
            build(from_dict(values | {"kernels": kind}))
            assert kernels.plain() == (kind == "plain")
        with pytest.raises(UsageError, match="leave out --compile on"):
            build(from_dict(values | {"kernels": "plain", "compile": "on"}))
    with pytest.raises(UsageError, match="kernels"):
        from_dict({"kernels": "slow"})
