"""Measures of a data set for offline learning: quality, coverage, spread of returns. Source: arXiv 2111.04714; arXiv 2306.13085."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from anypo.errors import UsageError
from anypo.parts.store.episodes import Table, episode_returns, trajectory_values


def discounted_returns(data: Table, gamma: float = 1.0) -> Float[Tensor, " episode"]:
    """g_b = sum_t gamma^t r_{b,t} of every episode."""
    if gamma == 1.0:
        return episode_returns(data)
    episode = data["episode"]
    count = torch.zeros(int(episode.max()) + 1, dtype=torch.long).index_add_(0, episode, torch.ones_like(episode))
    step = torch.arange(len(episode)) - (count.cumsum(0) - count)[episode]
    weighted = data["reward"].double() * gamma ** step.double()
    return torch.zeros(len(count), dtype=torch.float64).index_add_(0, episode, weighted)


def trajectory_quality(data: Table, low: float, high: float, gamma: float = 1.0) -> float:
    """TQ = (mean return - low) / (high - low); low: of a random policy, high: of an expert trained online. May exceed 1.

    Source: arXiv 2111.04714, eq. 3.
    """
    if not high > low:
        raise UsageError(f"the expert's return ({high:g}) has to exceed the random policy's ({low:g})")
    return (float(discounted_returns(data, gamma).mean()) - low) / (high - low)


def cells(data: Table, bins: int = 100, bounds: tuple[Tensor, Tensor] | None = None) -> Int[np.ndarray, " transition"]:
    """Index the distinct (s, a) pairs of all transitions, with continuous dimensions cut into bins.

    Args:
        data: the transitions.
        bins: cells per dimension.
        bounds: lowest and highest (s, a), by default those of the data.
    """
    action = data["action"]
    discrete = not action.is_floating_point()
    x = data["obs"] if discrete else torch.cat([data["obs"], action], 1)
    low, high = bounds if bounds is not None else (x.min(0).values, x.max(0).values)
    cut = ((x - low) / (high - low).clamp(min=1e-12) * bins).floor().clamp(0, bins - 1).long()
    if discrete:
        cut = torch.cat([cut, action.reshape(len(action), -1)], 1)
    return np.unique(cut.numpy(), axis=0, return_inverse=True)[1].reshape(-1)


def limits(*tables: Table) -> tuple[Tensor, Tensor]:
    """Return the lowest and highest (s, a) over several data sets, the common bounds of their cells."""
    discrete = not tables[0]["action"].is_floating_point()
    pairs = [t["obs"] if discrete else torch.cat([t["obs"], t["action"]], 1) for t in tables]
    return torch.stack([x.min(0).values for x in pairs]).min(0).values, torch.stack(
        [x.max(0).values for x in pairs]
    ).max(0).values


def unique_pairs(data: Table, bins: int = 100, bounds: tuple[Tensor, Tensor] | None = None) -> int:
    """u(D) = number of distinct (s, a) pairs, see `cells`."""
    return int(cells(data, bins, bounds).max()) + 1


def state_action_coverage(data: Table, reference: Table, bins: int = 100) -> float:
    """SACo = u(D) / u(D_ref), D_ref the replayed experience of online training. Source: arXiv 2111.04714, eq. 5."""
    bounds = limits(data, reference)
    return unique_pairs(data, bins, bounds) / unique_pairs(reference, bins, bounds)


def occupancy_entropy(data: Table, bins: int = 100, bounds: tuple[Tensor, Tensor] | None = None) -> float:
    """H = -sum rho log rho of the empirical occupancy (nats); exp(H) <= u(D), equal iff all pairs are equally frequent."""
    rho = np.bincount(cells(data, bins, bounds)) / len(data["reward"])
    return float(-(rho * np.log(rho)).sum())


def opportunity(data: Table) -> float:
    """Positive-sided variance E[max(G - V(s_0), 0)^2], V a linear regression of returns on first states: the possible gain of
    reweighting. Source: arXiv 2306.13085, eq. 9."""
    return float(trajectory_values(data, "advantage").clamp(min=0).square().mean())


def measures(
    data: Table, low: float | None = None, high: float | None = None, reference: Table | None = None
) -> dict[str, Any]:
    """Compute all measures of this module.

    Args:
        data: the transitions.
        low, high: returns of a random and of an expert policy, which TQ needs.
        reference: replayed experience, which SACo needs.

    Returns:
        The measures by name.
    """
    returns = episode_returns(data)
    lengths = np.bincount(data["episode"].numpy())
    results: dict[str, Any] = {
        "episodes": len(returns),
        "transitions": len(data["reward"]),
        "return_mean": float(returns.mean()),
        "return_min": float(returns.min()),
        "return_max": float(returns.max()),
        "length_mean": float(lengths.mean()),
        "reward_zero_share": float((data["reward"] == 0).float().mean()),
        "unique_pairs": unique_pairs(data),
        "occupancy_entropy": occupancy_entropy(data),
        "opportunity": opportunity(data),
    }
    if low is not None and high is not None:
        results |= {"random_return": float(low), "expert_return": float(high)}
        results["trajectory_quality"] = trajectory_quality(data, low, high)
    if reference is not None:
        results["state_action_coverage"] = state_action_coverage(data, reference)
    return results
