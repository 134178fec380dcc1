"""Best-of-n sampling: draw n answers, keep the one with the largest proxy reward. Its gold reward, and its divergence.

Source: arXiv 2210.10760 (gold reward over divergence); arXiv 2009.01325 (the unbiased estimator).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from anypo.errors import UsageError


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


def curve(proxy: Float[Tensor, " sample"], gold: Float[Tensor, " sample"], ns: Sequence[int]) -> list[CurvePoint]:
    """Compute gold reward against divergence, one point per n.

    Args:
        proxy: scores that choose.
        gold: scores that count.
        ns: numbers of samples.
    """
    return [CurvePoint(n, kl(n), best_of_n(proxy, proxy, n), best_of_n(proxy, gold, n)) for n in ns]


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
