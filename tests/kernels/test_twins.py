"""Every kernel computes what its plain twin computes, values and gradients, and the switch chooses between them.

A row is a function that calls the implementation it is handed and returns tensors by name; `@compare("MODULE.FUNCTION")` adds it.
"""

import importlib
import inspect
import pkgutil
from itertools import pairwise

import pytest
import torch
from torch import nn

from anypo import kernels
from anypo.config import from_dict
from anypo.errors import UsageError
from anypo.kernels import adamw, mlp
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


# small networks and their optimizer


@compare("mlp.tanh_", atol=3e-7)
def few_numbers(tanh_):
    return {"out": tanh_(torch.linspace(-30, 30, 100))}


@compare("mlp.tanh_", atol=3e-7)
def many_numbers(tanh_):
    return {"out": tanh_(torch.linspace(-30, 30, 2 * mlp.SMALL))}


def layers(*widths):
    """Weights and biases in turn, of the size they have in a network."""
    return [
        (0.3 * leaf(*shape, seed=k)).detach().requires_grad_()
        for k, (inputs, outputs) in enumerate(pairwise(widths))
        for shape in ((outputs, inputs), (outputs,))
    ]


def evaluated(mlp, rows, widths, kinds):
    """Output and gradients; the sums over rows are compared as means."""
    x, weights = leaf(rows, widths[0], seed=7), layers(*widths)
    found = with_gradients(mlp(x, weights, kinds), x=x, **{f"weight {k}": w for k, w in enumerate(weights)})
    return {name: t / rows if "weight" in name else t for name, t in found.items()}


@compare("mlp.mlp", atol=1e-5)
def few_rows(mlp):
    return evaluated(mlp, 40, (4, 64, 64, 2), (nn.Tanh, nn.Tanh))


@compare("mlp.mlp", atol=1e-5)
def many_rows_in_chunks(mlp):
    return evaluated(mlp, 4096 + 515, (20, 64, 64, 33), (nn.ReLU, nn.ReLU))


@compare("mlp.mlp", atol=1e-5)
def an_activation_after_the_last_layer(mlp):
    return evaluated(mlp, 600, (40, 32, 24), (nn.Tanh, nn.Tanh))


@compare("mlp.tanh_mlp", rtol=1e-4, atol=1e-5)
def frozen_weights(tanh_mlp):
    with torch.no_grad():
        return {"out": tanh_mlp(layers(4, 64, 64, 2))(leaf(30, 4, seed=7))}


def ensemble(ensemble_mlp, outputs, half):
    weights = [(0.3 * leaf(3, *shape, seed=k)).detach().requires_grad_() for k, shape in enumerate(((7, 24), (24, 24)))]
    weights.append((0.3 * leaf(3, 24, outputs, seed=2)).detach().requires_grad_())
    biases = [leaf(3, 1, width, seed=width) for width in (24, 24, outputs)]
    x, more = leaf(40, 4, seed=5), leaf(40, 3, seed=6)
    named = {f"weight {k}": w for k, w in enumerate(weights)} | {f"bias {k}": b for k, b in enumerate(biases)}
    return with_gradients(ensemble_mlp(x, more, weights, biases, half), x=x, more=more, **named)


@compare("ensemble_mlp.ensemble_mlp", rtol=1e-4, atol=1e-4)
def one_output(ensemble_mlp):
    return ensemble(ensemble_mlp, 1, half=False)


@compare("ensemble_mlp.ensemble_mlp", rtol=1e-4, atol=1e-4)
def many_outputs(ensemble_mlp):
    return ensemble(ensemble_mlp, 20, half=False)


@compare("ensemble_mlp.ensemble_mlp", rtol=1e-2, atol=2e-2)
def rounded_products(ensemble_mlp):
    return ensemble(ensemble_mlp, 1, half=True)


@compare("squashed_normal.squashed_sample")
def actions(squashed_sample):
    mean, log_std = leaf(9, 3), leaf(9, 3, seed=1)
    return with_gradients(squashed_sample(mean, log_std, leaf(9, 3, seed=2).detach()), mean=mean, log_std=log_std)


@compare("adamw.optimizer_step")
def steps_of_adamw(optimizer_step):
    parameters = [leaf(5, 3), leaf(3, seed=1)]
    optimizer = adamw.FusedAdamW(
        [{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.1}], 0.01, weight_decay=0.1, fused=True
    )
    for step in range(4):
        for p in parameters:
            p.grad = leaf(*p.shape, seed=step).detach()
        optimizer_step(optimizer)
    state = [optimizer.state[p] for p in parameters]
    return {f"parameter {k}": p.detach() for k, p in enumerate(parameters)} | {
        f"{name} {k}": s[name] for k, s in enumerate(state) for name in ("step", "exp_avg", "exp_avg_sq")
    }


@compare("adamw.total_norm")
def norm_of_gradients(total_norm):
    return {"norm": torch.tensor(total_norm([leaf(5, 3).detach(), leaf(7, seed=1).detach()]))}


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
