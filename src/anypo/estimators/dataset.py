"""Measures of a data set for offline learning: quality, coverage, spread of returns. Source: arXiv 2111.04714; arXiv 2306.13085."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from anypo.errors import UsageError
from anypo.method.card import Card
from anypo.method.procedure import Procedure
from anypo.method.registry import register_procedure
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
        low: return of a random policy, which TQ needs.
        high: return of an expert policy, which TQ needs.
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


def draw_episodes(seed: int, pairs: int = 12, episodes: int = 8, length: int = 5) -> Table:
    """Draw recorded episodes with choices for actions, for checks.

    Args:
        seed: of all numbers.
        pairs: distinct (s, a) there may be.
        episodes, length: number and length of the episodes.
    """
    g = torch.Generator().manual_seed(seed)
    n = episodes * length
    pair = torch.randint(pairs, (n,), generator=g)
    return {
        "obs": (pair // 2)[:, None].float(),
        "action": pair % 2,
        "reward": torch.randn(n, generator=g),
        "episode": torch.arange(n) // length,
    }


def repeat_episodes(data: Table) -> Table:
    """Return the same episodes twice."""
    shifted = {**data, "episode": data["episode"] + data["episode"].max() + 1}
    return {name: torch.cat([data[name], shifted[name]]) for name in data}


def entropy_is_at_most_that_of_equal_shares() -> None:
    """exp(H) <= u(D) on random data, with equality where all pairs are equally frequent."""
    for seed in range(20):
        data = draw_episodes(seed)
        h, u = occupancy_entropy(data), unique_pairs(data)
        assert math.exp(h) <= u + 1e-9, f"exp(H) is {math.exp(h):.6g} with {u} distinct pairs (seed {seed})"
    equal = {**draw_episodes(0), "obs": torch.arange(40)[:, None].float(), "action": torch.zeros(40, dtype=torch.long)}
    off = abs(occupancy_entropy(equal) - math.log(unique_pairs(equal)))
    assert off < 1e-9, f"the entropy of equally frequent pairs is off by {off:.3g}"


def ends_of_the_scales_are_0_and_1() -> None:
    """TQ = 0 at the random policy's return, 1 at the expert's; SACo(D_ref) = 1."""
    data = draw_episodes(0)
    mean = float(discounted_returns(data).mean())
    ends = [trajectory_quality(data, mean, mean + 2), trajectory_quality(data, mean - 2, mean)]
    assert max(abs(ends[0]), abs(ends[1] - 1)) < 1e-9, f"TQ goes from {ends[0]:.6g} to {ends[1]:.6g}"
    coverage = state_action_coverage(data, data)
    assert coverage == 1, f"the reference covers {coverage:.6g} of itself"


def repeated_data_measure_the_same() -> None:
    """TQ and SACo of data recorded twice are those of the data."""
    data, reference = draw_episodes(1), draw_episodes(2, pairs=20)
    twice = repeat_episodes(data)
    for name, one, two in (
        ("TQ", trajectory_quality(data, -5.0, 5.0), trajectory_quality(twice, -5.0, 5.0)),
        ("SACo", state_action_coverage(data, reference), state_action_coverage(twice, reference)),
    ):
        assert abs(one - two) < 1e-9, f"{name} is {one:.6g}, and {two:.6g} of the data recorded twice"


register_procedure(
    Procedure(
        Card(
            id="dataset-perspective",
            title="A Dataset Perspective on Offline Reinforcement Learning",
            year=2021,
            arxiv="2111.04714",
            family="control",
            equation="TQ = (mean g - g_random)/(g_expert - g_random),  SACo = u(D)/u(D_ref),  H = -sum rho log rho",
            source="arXiv 2111.04714, eq. 3 and 5; kschweig/OfflineRL; the opportunity of arXiv 2306.13085, eq. 9",
            claim="DQN's kind needs coverage (SACo); constrained policies need coverage or quality (TQ); BC matches the best at high TQ.",
        ),
        measures,
        known=(entropy_is_at_most_that_of_equal_shares, ends_of_the_scales_are_0_and_1, repeated_data_measure_the_same),
        kind="analysis",
    )
)
