"""The methods that change credit, selection or the mean: prepare, loss and gradients against independent loops in float64 (weights,
missing outcomes and channels, every option), and the known answers of their papers."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from references_advantage import (
    RECIPES,
    loss,
    prepare,
)
from strategies import gradients, random_advantage, random_batch
from torch import Tensor

import anypo
from anypo import Method, Trajectories
from anypo.parts import (
    AddProgress,
    Baseline,
    Combine,
    Decoupled,
    DecoupledBaseline,
    EntropyModulate,
    GateChannels,
    HingeDivergence,
    MaxVarianceRows,
    MixedValueAtRisk,
    Perception,
    ShortestContrast,
    TopTokens,
    WeightedBaseline,
)

CASES = 60
F64 = torch.float64


def f64(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=F64)


def close(x: Any, y: Any, rtol: float = 1e-10, atol: float = 1e-12) -> None:
    torch.testing.assert_close(torch.as_tensor(x, dtype=F64), torch.as_tensor(y, dtype=F64), rtol=rtol, atol=atol)


def built(recipe: str) -> Method:
    """The method of a recipe: the registered one, or a setting of it."""
    name, _ = RECIPES[recipe]
    z = [Combine(), Baseline("group")]
    variants: dict[str, dict[str, Any]] = {
        "gdpo-weights": {"credit": [DecoupledBaseline(weights=(2.0, 0.25))]},
        "gdpo-tokens": {"credit": [DecoupledBaseline(over="tokens")]},
        "gdpo-gated": {"score": [GateChannels(on=0)]},
        "riskpo-neutral": {"credit": [MixedValueAtRisk(averse=0.0, bundle=2)]},
        "riskpo-levels": {"credit": [MixedValueAtRisk(levels=(0.4, 0.6), averse=3.0, bundle=1)]},
        "empg-strong": {"credit": [*z, EntropyModulate(k=2.0, k_next=0.5, zeta=0.4)]},
        "d3s-half": {"credit": [*z, MaxVarianceRows(0.375), TopTokens(0.4)]},
        "d3s-all": {"credit": [*z, MaxVarianceRows(1.0), TopTokens(1.0)]},
        "thinkless-half": {"reduce": Decoupled(alpha=0.5)},
        "oblr-po-others": {"credit": [Combine(), WeightedBaseline(leave_one_out=True)]},
        "grpo-vps-third": {"credit": [*z, AddProgress(1 / 3)]},
        "papo-entropy": {"terms": [*anypo.method("papo").stages["terms"][:1], Perception(0.5, eta=0.05)]},
        "drpo-flat": {"trust": ShortestContrast(lam=1e9)},
        "drpo-sharp": {"trust": ShortestContrast(tau=0.5, lam=0.5), "terms": [HingeDivergence(beta=3.0, delta=0.05)]},
    }
    if recipe == "papo-dapo":
        return anypo.method("dapo", terms=[Perception(0.01, eta=0.03)])
    found = anypo.method(name, **variants.get(recipe, {}))
    if recipe == "riskpo-tracked":
        part = found.stages["credit"][0]
        part.low.value, part.high.value = RECIPES[recipe][1]["tracked"]
    if recipe == "d3s-late":
        found.update("batch", {}, 1.0, Trajectories())
    return found


def case(seed: int, recipe: str) -> Trajectories:
    """A random batch with everything the method may meet."""
    rng, name = np.random.default_rng([seed, 11]), RECIPES[recipe][0]
    rows, steps = int(rng.integers(1, 12)), int(rng.integers(1, 8))
    kinds = ["score", "scores", "reward"]
    if name == "grpo-vps":  # there a reward is progress
        kinds.remove("reward")
    if name == "d3s":  # rounded numbers would tie up to rounding errors
        kinds.remove("scores")
    if recipe.startswith("gdpo-"):
        kinds.remove("score")
    outcome, spread = kinds[seed % len(kinds)], (0.05, 0.3, 1.0, 3.0)[seed % 4]
    b = random_batch(seed, rows, steps, outcome=outcome, spread=spread, holes=(0.0, 0.3, 0.7)[seed % 7 % 3])

    def some(*shape: int) -> Tensor:
        return torch.as_tensor(rng.standard_normal(shape))

    if b.score is not None and seed % 2:
        b = b.but(score=some(rows) + 0.5)
    if name == "bnpo":  # rewards in [0, 1]
        b = b.but(
            score=None if b.score is None else b.score.clamp(0, 1),
            scores=None if b.scores is None else b.scores.clamp(0, 1),
            reward=None if b.reward is None else b.reward.abs().clamp(max=1) / steps,
        )
    if b.score is not None and seed % 5 == 0:
        b = b.but(score=b.score.masked_fill(torch.as_tensor(rng.random(rows) < 0.3), torch.nan))
    if name == "grpo-vps" and seed % 3:
        b = b.but(reward=0.3 * some(rows, steps))
    if name == "empg" and (recipe == "empg-rows" or seed % 7 == 0):
        b = b.but(segment=None)
    if name == "oblr-po" and seed % 4:
        norm = some(rows, steps).abs() * torch.as_tensor(rng.random((rows, 1)) < 0.8)
        b = b.but(extra={"score_norm": norm})
        if seed % 4 == 3:
            b = b.but(extra=b.extra | {"grad_norm": some(rows).square()})
    if name == "papo":
        far = torch.as_tensor(rng.choice([0.5, 3.0, 25.0], (rows, steps)))
        b = b.but(extra={"logp_ablated": b.logp + far * some(rows, steps)})
    return b


def as_arrays(b: Trajectories) -> dict[str, Any]:
    found = {f.name: getattr(b, f.name) for f in fields(b)} | b.extra | {"mask": b.valid}
    return {k: t.detach().numpy() if isinstance(t, Tensor) else t for k, t in found.items()}


def agree(found: Any, wanted: Any, what: str) -> None:
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9, err_msg=what)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda n: f"{n}-{CASES}batches")
def test_prepare_equals_the_reference(recipe: str) -> None:
    method = built(recipe)
    for seed in range(CASES):
        b = case(seed, recipe)
        found, wanted = method.prepare(b), prepare(recipe, as_arrays(b))
        np.testing.assert_array_equal(found.valid.numpy(), wanted["mask"], err_msg=f"mask, seed {seed}")
        if "advantage" in wanted:
            agree(found.advantage, wanted["advantage"], f"advantage, seed {seed}")


@pytest.mark.parametrize("given", ["prepared", "any advantage"])
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda n: f"{n}-{CASES}batches")
def test_loss_and_gradients_equal_the_reference(recipe: str, given: str) -> None:
    method = built(recipe)
    for seed in range(CASES):
        b = method.prepare(case(seed, recipe))
        if given != "prepared":
            b = random_advantage(b)
        found, _, slopes = gradients(method, b)
        wanted, hand = loss(recipe, as_arrays(b))
        agree(found, wanted, f"loss, seed {seed}")
        for leaf, slope in slopes.items():
            agree(slope, hand[leaf], f"gradient of {leaf}, seed {seed}")
