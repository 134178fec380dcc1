"""Best-of-n sampling: draw n answers, keep the one with the largest proxy reward. Its gold reward, and its divergence.

Source: arXiv 2210.10760 (gold reward over divergence); arXiv 2009.01325 (the unbiased estimator).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anypo.errors import UsageError
from anypo.method.card import Card, Claim
from anypo.method.procedure import Procedure
from anypo.method.registry import register_procedure
from anypo.ranges import Count


def weights(proxy: Float[Tensor, " sample"], n: int) -> Float[Tensor, " sample"]:
    """Probability that each of N scored samples is the best of n drawn without replacement: C(i-1, n-1) / C(N, n) for the i-th
    smallest. The members of a tied block share its weight evenly, so the order of the samples never matters.

    Raises UsageError unless 1 <= n <= N, and where a score is not finite.
    """
    size = len(proxy)
    if not 1 <= n <= size:
        raise UsageError(f"the best of {n} needs n between 1 and the {size} samples there are")
    if not bool(proxy.isfinite().all()):
        raise UsageError("best-of-n needs a finite proxy score for every sample")
    _, block, count = torch.unique(proxy, return_inverse=True, return_counts=True)
    above = count.cumsum(0)  # samples not better than the block's
    log_all = _log_choose(torch.tensor(float(size), dtype=torch.float64), n)
    share = (_log_choose(above.double(), n) - log_all).exp()  # P(the best is not above the block)
    mass = share.diff(prepend=share.new_zeros(1))
    return (mass / count)[block]


def _log_choose(m: Tensor, n: int) -> Tensor:
    """log C(m, n); -inf where m < n."""
    value = torch.lgamma(m + 1) - torch.lgamma((m - n).clamp(min=0) + 1) - math.lgamma(n + 1)
    return torch.where(m >= n, value, -torch.inf)


def best_of_n(proxy: Float[Tensor, " sample"], value: Float[Tensor, " sample"], n: int) -> float:
    """Unbiased estimate of the mean `value` (gold reward, or the proxy itself) of the best of n by `proxy`, from N >= n samples."""
    return float(weights(proxy, n) @ value.double())


def kl(n: int) -> float:
    """KL(best of n || one sample) = log n - (n - 1) / n in nats: exact for scores without ties, else an upper bound."""
    return math.log(n) - (n - 1) / n


@dataclass(frozen=True)
class CurvePoint:
    """The best of n samples: divergence (nats), mean proxy reward and mean gold reward."""

    n: int
    kl: float
    proxy: float
    gold: float


def curve(
    proxy: Float[Tensor, " sample"],
    gold: Float[Tensor, " sample"],
    ns: Sequence[Count[int]] | None = None,
    group: Int[Tensor, " sample"] | None = None,
) -> list[CurvePoint]:
    """Compute gold reward against divergence, one point per n.

    Args:
        proxy: scores that choose.
        gold: scores that count.
        ns: numbers of samples (default: the powers of two up to as many as there are).
        group: number of each sample's prompt, whose means are averaged (default: all are samples of one prompt).
    """
    prompts = [torch.arange(len(proxy))] if group is None else [(group == g).nonzero()[:, 0] for g in group.unique()]
    if ns is None:
        ns = [2**k for k in range(min(map(len, prompts)).bit_length())]

    def mean_of_best(value: Tensor, n: int) -> float:
        return fmean(best_of_n(proxy[rows], value[rows], n) for rows in prompts)

    return [CurvePoint(n, kl(n), mean_of_best(proxy, n), mean_of_best(gold, n)) for n in ns]


def fit(points: Sequence[tuple[float, float]], kind: Literal["bon", "rl"] = "bon") -> tuple[float, float]:
    """(alpha, beta) by least squares of gold = d (alpha - beta d) for best-of-n, d (alpha - beta log d) for reinforcement
    learning, d = sqrt(KL), to (KL, gold above its value at KL = 0). Points at KL = 0 are left out.
    Source: arXiv 2210.10760, sec. 3.1.
    """
    d, gold = torch.tensor([(math.sqrt(k), g) for k, g in points if k > 0], dtype=torch.float64).reshape(-1, 2).T
    if len(d) < 2:
        raise UsageError("a fit of gold over divergence needs two points with a divergence above 0")
    bend = d if kind == "bon" else d.log()
    alpha, beta = torch.linalg.lstsq(torch.stack([d, -d * bend], 1), gold[:, None]).solution[:, 0].tolist()
    return alpha, beta


def estimate_is_the_mean_over_all_subsets() -> None:
    """Compare with brute force over the C(12, n) subsets, with and without ties."""
    g = torch.Generator().manual_seed(0)
    value = torch.randn(12, generator=g, dtype=torch.float64)
    for n, proxy in itertools.product((1, 4, 11), (value.roll(1), torch.arange(12.0, dtype=torch.float64) % 4)):
        subsets = torch.tensor(list(itertools.combinations(range(12), n)))
        best = proxy[subsets] == proxy[subsets].max(1, keepdim=True).values
        expected = float(((value[subsets] * best).sum(1) / best.sum(1)).mean())
        off = abs(best_of_n(proxy, value, n) - expected)
        assert off < 1e-12, f"the estimate for n = {n} is off by {off:.3g}"


def divergence_is_that_of_a_normal_proxy() -> None:
    """Integrate n F^(n-1) f log(n F^(n-1)), the best of n normal scores having the density n F^(n-1) f."""
    x = torch.linspace(-9, 9, 20001, dtype=torch.float64)
    log_density = -0.5 * (x.square() + math.log(2 * math.pi))
    for n in (1, 2, 4, 16, 64):
        log_ratio = math.log(n) + (n - 1) * torch.special.log_ndtr(x)
        numeric = float(torch.trapezoid((log_ratio + log_density).exp() * log_ratio, x))
        assert abs(kl(n) - numeric) < 1e-6, f"the divergence for n = {n} is {kl(n):.6g}, the integral {numeric:.6g}"


def fit_recovers_its_law() -> None:
    """Fit points that follow d (alpha - beta d), and d (alpha - beta log d), exactly."""
    d = (0.5, 1.0, 2.0, 3.0)
    laws: tuple[tuple[Literal["bon", "rl"], list[float]], ...] = (("bon", [*d]), ("rl", [math.log(x) for x in d]))
    for kind, bends in laws:
        points = [(x * x, x * (1.2 - 0.3 * bend)) for x, bend in zip(d, bends, strict=True)]
        alpha, beta = fit(points, kind)
        assert math.hypot(alpha - 1.2, beta - 0.3) < 1e-9, f"the fit {kind} gives {alpha:.6g} and {beta:.6g}"


register_procedure(
    Procedure(
        Card(
            id="best-of-n",
            title="Scaling Laws for Reward Model Overoptimization (best-of-n sampling)",
            year=2022,
            arxiv="2210.10760",
            family="preference",
            equation="E gold(best of n) = sum_i C(i-1, n-1)/C(N, n) gold_(i) in the order of proxies;  KL = log n - (n-1)/n",
            source="arXiv 2210.10760, sec. 2 and 3.1; arXiv 2009.01325 for the estimator",
            claim="Gold reward rises with the divergence and then falls: gold = d (alpha - beta d), d = sqrt(KL).",
            claims=(
                Claim(
                    "Where the proxy's errors have heavy tails, the best of 4,096 samples has less gold reward than the best of 16.",
                    "selection",
                    "gold",
                    against="self",
                    ablate={"ns": [16]},
                    better="lower",
                ),
            ),
        ),
        curve,
        known=(estimate_is_the_mean_over_all_subsets, divergence_is_that_of_a_normal_proxy, fit_recovers_its_law),
        kind="estimator",
    )
)
