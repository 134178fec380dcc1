"""prepare, loss and gradients of the shipped methods against independent loops in float64."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from entries import entries
from references import DEFINITIONS, loss, prepare
from strategies import gradients, random_advantage, random_batch

import anypo
from anypo import Trajectories

CASES = 100
pytestmark = pytest.mark.known


def as_arrays(b: Trajectories) -> dict:
    found = {f.name: getattr(b, f.name) for f in fields(b)} | {"mask": b.valid}
    return {k: t.detach().numpy() if isinstance(t, torch.Tensor) else t for k, t in found.items()}


def cases(seed: int):
    rng = np.random.default_rng(seed)
    rows, steps = int(rng.integers(1, 9)), int(rng.integers(1, 8))
    outcome, spread = ("score", "scores", "reward")[seed % 3], (0.0, 0.1, 0.5, 3.0)[seed % 4]
    return random_batch(seed, rows, steps, outcome=outcome, spread=spread, holes=(0.0, 0.3, 0.7)[seed % 5 % 3])


def close(found, wanted, what: str) -> None:
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9, err_msg=what)


@pytest.mark.parametrize("name", entries(DEFINITIONS), ids=lambda n: f"{n}-{CASES}batches")
def test_prepare_equals_the_reference(name: str) -> None:
    for seed in range(CASES):
        b = cases(seed)
        found, wanted = anypo.method(name).prepare(b), prepare(name, as_arrays(b))
        assert (found.valid.numpy() == wanted["mask"]).all(), f"mask, seed {seed}"
        close(found.advantage, wanted["advantage"], f"advantage, seed {seed}")
        if "returns" in wanted:
            close(found.returns, wanted["returns"], f"returns, seed {seed}")
            close(found.value_old[found.valid], b.value[found.valid], f"value_old, seed {seed}")


@pytest.mark.parametrize("given", ["prepared", "any advantage"])
@pytest.mark.parametrize("name", entries(DEFINITIONS), ids=lambda n: f"{n}-{CASES}batches")
def test_loss_and_gradients_equal_the_reference(name: str, given: str) -> None:
    method = anypo.method(name)
    for seed in range(CASES):
        b = method.prepare(cases(seed))
        if given != "prepared":
            b = random_advantage(b)
        if b.value_old is not None:  # the critic has moved since
            b = b.but(value=b.value + 0.5 * torch.sin(torch.arange(b.value.numel()).reshape(b.shape)))
        found, _, slopes = gradients(method, b)
        wanted, hand = loss(name, as_arrays(b))
        close(found, wanted, f"loss, seed {seed}")
        for leaf, slope in slopes.items():
            close(slope, hand[leaf], f"gradient of {leaf}, seed {seed}")
