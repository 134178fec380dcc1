"""Best-of-n against brute force, against simulation, and its curve fits."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from anypo.errors import UsageError
from anypo.estimators.best_of_n import best_of_n, curve, fit, kl, weights


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n", [1, 2, 4, 11, 12])
def test_the_estimator_equals_the_mean_over_all_subsets(n: int, ties: bool) -> None:
    rng = np.random.default_rng(n)
    proxy = rng.integers(0, 4, 12).astype(float) if ties else rng.standard_normal(12)
    value = rng.standard_normal(12)
    found = []
    for subset in itertools.combinations(range(12), n):
        top = max(proxy[i] for i in subset)
        found.append(np.mean([value[i] for i in subset if proxy[i] == top]))  # ties are broken evenly
    assert best_of_n(torch.tensor(proxy), torch.tensor(value), n) == pytest.approx(np.mean(found), abs=1e-12)


def test_the_order_of_samples_never_matters() -> None:
    g = torch.Generator().manual_seed(0)
    proxy, value = torch.randint(5, (40,), generator=g).double(), torch.randn(40, generator=g).double()
    order = torch.randperm(40, generator=g)
    assert best_of_n(proxy, value, 7) == pytest.approx(best_of_n(proxy[order], value[order], 7), abs=1e-14)


def test_weights_are_probabilities_for_many_samples() -> None:
    proxy = torch.randn(12600, generator=torch.Generator().manual_seed(1)).double()
    for n in (1, 2, 64, 1024, 12600):
        w = weights(proxy, n)
        assert float(w.sum()) == pytest.approx(1.0, abs=1e-10)
        assert (w >= 0).all()
    assert float(weights(proxy, 12600)[proxy.argmax()]) == pytest.approx(1.0)


@pytest.mark.parametrize("n", [2, 4, 16, 64])
def test_the_divergence_on_a_gaussian_proxy_is_the_formula(n: int) -> None:
    """The best of n has density n F^(n-1) f, so KL = E[log n + (n-1) log F], with F of the best sampled as U^(1/n)."""
    rng = np.random.default_rng(n)
    best = rng.standard_normal((200_000 // n, n)).max(1)
    cdf = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in best])
    assert kl(n) == pytest.approx(np.mean(math.log(n) + (n - 1) * np.log(cdf)), rel=0.02)


def test_a_curve_holds_proxy_and_gold_of_the_chosen() -> None:
    proxy = torch.arange(8.0, dtype=torch.float64)
    points = curve(proxy, -proxy, [1, 2, 8])
    assert [p.kl for p in points] == [0.0, math.log(2) - 0.5, math.log(8) - 7 / 8]
    assert points[0].proxy == pytest.approx(3.5)
    assert points[2].gold == pytest.approx(-7.0)
    assert all(p.gold == pytest.approx(-p.proxy) for p in points)


@pytest.mark.parametrize("kind", ["bon", "rl"])
def test_a_fit_finds_the_law_that_made_the_points(kind: str) -> None:
    kls = [0.0, 0.1, 0.5, 1.0, 3.0, 6.0]
    bend = math.sqrt if kind == "bon" else (lambda k: math.log(math.sqrt(k)))
    points = [(k, math.sqrt(k) * (1.2 - 0.3 * bend(k)) if k else 0.0) for k in kls]
    assert fit(points, kind) == pytest.approx((1.2, 0.3))


def test_what_cannot_be_estimated_is_refused() -> None:
    with pytest.raises(UsageError, match="between 1 and the 3 samples"):
        weights(torch.zeros(3), 4)
    with pytest.raises(UsageError, match="finite"):
        weights(torch.tensor([0.0, math.nan]), 1)
    with pytest.raises(UsageError, match="two points"):
        fit([(0.0, 0.0), (1.0, 1.0)])
