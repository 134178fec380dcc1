"""prepare, loss and gradients of the methods of every family against independent loops in float64."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from entries import entries
from references_families import advantages, d3s_mask, objective
from strategies import gradients, random_advantage, random_batch

import anypo
from anypo import Trajectories

CASES = 50
pytestmark = pytest.mark.known
CREDIT = (
    "gdpo", "bnpo", "riskpo", "empg", "oblr-po", "safe", "t-ppo", "mdpo", "brrl", "rec", "thinkless", "ghpo", "dhpo", "fiberpo",
    "mhpo", "r2vpo", "chord", "papo", "bupo", "remix", "knapsack-rl", "capo-curvature",
)  # fmt: skip
LOSS = (*CREDIT, "grpo-vps", "hpt", "real", "drpo", "d3s")


def case(seed: int, name: str) -> Trajectories:
    rng = np.random.default_rng(seed)
    rows, steps = int(rng.integers(1, 10)), int(rng.integers(1, 7))
    spread = (0.05, 0.3, 1.0)[seed % 3]
    extra = ("score_norm", "logp_ablated", "logp_start")
    outcome = "scores" if name == "gdpo" and seed % 2 else "score"
    b = random_batch(
        seed, rows, steps, spread=spread, holes=(0.0, 0.3)[seed % 2], outcome=outcome, extra=extra, optional=False
    )
    b = b.but(weight=None, scores=None if b.scores is None else b.scores.nan_to_num())
    near = {"logp_start": b.logp_old + 0.1 * b.extra["logp_start"], "logp_ablated": b.logp + b.extra["logp_ablated"]}
    return b.but(extra=b.extra | near)


def arrays(b: Trajectories) -> dict:
    found = {f.name: getattr(b, f.name) for f in fields(b)} | b.extra | {"mask": b.valid, "expert_mask": b.expert_mask}
    return {k: t.detach().numpy() if isinstance(t, torch.Tensor) else t for k, t in found.items()}


@pytest.mark.parametrize("name", entries(CREDIT), ids=lambda n: f"{n}-{CASES}batches")
def test_prepare_equals_the_reference(name: str) -> None:
    for seed in range(CASES):
        b = case(seed, name)
        found, wanted = anypo.method(name).prepare(b), advantages(name, arrays(b))
        np.testing.assert_allclose(found.advantage.numpy(), wanted, rtol=1e-6, atol=1e-9, err_msg=f"seed {seed}")


@pytest.mark.parametrize("name", entries(LOSS), ids=lambda n: f"{n}-{CASES}batches")
def test_loss_and_gradients_equal_the_reference(name: str) -> None:
    method = anypo.method(name)
    for seed in range(CASES):
        b = random_advantage(method.prepare(case(seed, name)))
        if b.value_old is not None:  # the critic has moved since
            b = b.but(value=b.value + 0.5 * torch.sin(torch.arange(b.value.numel()).reshape(b.shape)))
        found, _, slopes = gradients(method, b)
        held = arrays(b)
        leaves = {leaf: held[leaf].astype(float) for leaf in slopes}
        np.testing.assert_allclose(
            float(found), objective(name, held, leaves), rtol=1e-6, atol=1e-9, err_msg=f"seed {seed}"
        )
        rng = np.random.default_rng(seed)
        for leaf, slope in slopes.items():
            way = rng.standard_normal(leaves[leaf].shape)  # a directional derivative by central differences
            ends = [objective(name, held, leaves | {leaf: leaves[leaf] + h * way}) for h in (1e-6, -1e-6)]
            wanted = (ends[0] - ends[1]) / 2e-6
            np.testing.assert_allclose(
                float((slope.numpy() * way)[held["mask"]].sum()),
                wanted,
                rtol=2e-5,
                atol=2e-7,
                err_msg=f"{leaf}, seed {seed}",
            )


@pytest.mark.entry("d3s")
def test_d3s_keeps_the_rows_and_tokens_of_the_brute_force() -> None:
    for seed in range(CASES):
        b = case(seed, "d3s")
        found = anypo.method("d3s").prepare(b).valid.numpy()
        np.testing.assert_array_equal(found, d3s_mask(arrays(b)), err_msg=f"seed {seed}")
