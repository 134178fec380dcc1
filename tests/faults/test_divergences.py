"""Estimators of divergences in float32."""

from __future__ import annotations

import pytest
import torch

from anypo.parts.ops.log_ratio import divergence


@pytest.mark.parametrize("kind", ["k2", "k3", "proximal"])
@pytest.mark.parametrize("scale", [1e-6, 1e-4, 1e-2])
def test_a_divergence_of_small_log_ratios_is_never_negative_and_has_the_mean_of_double_precision(
    kind: str, scale: float
) -> None:
    d = scale * torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    found, exact = divergence(d, kind), divergence(d.double(), kind)
    assert (found >= 0).all()
    assert float(found.double().mean()) == pytest.approx(float(d.double().square().mean()) / 2, rel=0.01 + scale)
    assert float(found.double().mean()) == pytest.approx(float(exact.mean()), rel=0.01)


def test_the_proximal_estimator_is_the_bregman_form_of_the_ratio() -> None:
    """-r d - r + 1 with r = exp(-d), and its slope."""
    d = torch.linspace(-3, 3, 61, dtype=torch.float64, requires_grad=True)
    found = divergence(d, "proximal")
    torch.testing.assert_close(found, -(-d).exp() * d - (-d).exp() + 1)
    (slope,) = torch.autograd.grad(found.sum(), d)
    torch.testing.assert_close(slope, d * (-d).exp())
