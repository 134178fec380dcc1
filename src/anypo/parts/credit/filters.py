"""Credit links that mask rows and decisions; statistics before them include every row."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from anypo.numbers import Number
from anypo.parts.ops.channels import z_score
from anypo.parts.ops.groups import group_stats, index_groups
from anypo.parts.ops.outcomes import informative_rows, scored
from anypo.parts.registry import register_part
from anypo.ranges import Finite, Share
from anypo.types import Trajectories


@register_part("credit")
@dataclass(frozen=True)
class KeepExtremes:
    """Rows whose score is neither the highest nor the lowest of their group lose their mask: the best and the worst make the pair.

    mask = 1[s_i is max s or min s of the group]. Equal ones stay together; a group without differences forms no pair.
    """

    reads = ("group",)

    def __call__(self, b: Trajectories) -> Trajectories:
        b = scored(b)
        score = b.need("score")
        index, groups = index_groups(b.need("group"))
        known = b.lengths > 0  # rows without outcome have lost their mask
        ends = []
        for worst, sign in ((torch.inf, "amin"), (-torch.inf, "amax")):
            end = score.new_full((groups,), worst)
            ends.append(end.scatter_reduce(0, index, torch.where(known, score, worst), sign)[index])
        return b.but(mask=b.valid & ((score == ends[0]) | (score == ends[1])).unsqueeze(1))


@register_part("credit")
@dataclass(frozen=True)
class KeepInformative:
    """mask = 1[max s > min s over the group]: the decisions of a group without differences leave every denominator."""

    reads = ("group",)

    def __call__(self, b: Trajectories) -> Trajectories:
        return b.but(mask=b.valid & informative_rows(b).unsqueeze(1))


@register_part("credit")
@dataclass(frozen=True)
class DropTruncated:
    """mask = 1[row not cut by its generation budget]; nothing happens where the batch does not say which were."""

    def __call__(self, b: Trajectories) -> Trajectories:
        return b if b.truncated is None else b.but(mask=b.valid & (b.truncated == 0).unsqueeze(1))


@register_part("credit")
@dataclass(frozen=True)
class GateBySuccess:
    """Per group: where the samples' mean score exceeds `above`, the policy learns from the samples, else from the group's
    demonstrations; the others lose their mask. Source: HPT, arXiv 2509.04419.
    """

    above: Finite[Number] = 0.0
    reads = ("group",)

    def __call__(self, b: Trajectories) -> Trajectories:
        b = scored(b)
        solved = group_stats(b.need("score"), b.group)[1] > float(self.above)
        expert = b.get("expert_mask")
        keep = solved if expert is None else solved != (expert != 0)
        return b.but(mask=b.valid & keep.unsqueeze(1))


def count_of(share: Number, total: int) -> int:
    """ceil(share * total), rounding errors aside."""
    return min(total, math.ceil(float(share) * total - 1e-9))


@register_part("credit")
@dataclass(frozen=True)
class MaxVarianceRows:
    """Keep the ceil(share N) rows whose group-normalised advantages vary most: the i lowest and the rest from the top, with the
    smallest i at which the variance is largest. Source: D3S, arXiv 2509.22115.
    """

    share: Share[Number] = 0.25
    reads = ("group",)

    def __call__(self, b: Trajectories) -> Trajectories:
        b = scored(b)
        a = z_score(b.need("score"), b.group, 1e-6).nan_to_num()
        size, order = count_of(self.share, len(a)), a.argsort(stable=True)
        if size == len(a):
            return b
        chosen = [torch.cat([order[:i], order[len(a) - size + i :]]) for i in range(size + 1)]
        spreads = torch.stack([a[rows].var(correction=0) for rows in chosen])
        best = int((spreads >= spreads.max() * (1 - 1e-12)).nonzero()[0, 0])
        keep = torch.zeros(len(a), dtype=torch.bool, device=a.device).index_fill_(0, chosen[best], True)
        return b.but(mask=b.valid & keep.unsqueeze(1))


@register_part("credit")
@dataclass(frozen=True)
class TopTokens:
    """Keep the ceil(share M) of the M decisions with the largest |A| H; of equal ones the earlier. Source: D3S, arXiv 2509.22115."""

    share: Share[Number] = 0.2
    reads = ("advantage", "entropy")

    def __call__(self, b: Trajectories) -> Trajectories:
        key = (b.need("advantage").abs() * b.need("entropy").detach())[b.valid]
        size = count_of(self.share, len(key))
        if size == len(key):
            return b
        keep = torch.zeros(len(key), dtype=torch.bool, device=key.device)
        keep[key.argsort(descending=True, stable=True)[:size]] = True
        return b.but(mask=torch.zeros_like(b.valid).masked_scatter(b.valid, keep))


@register_part("credit")
@dataclass(frozen=True)
class BalancedDrop:
    """Per group, of the wrong rows (score <= 0.5) only the first as many as there are right ones stay; the others leave mask and
    statistics. Source: RED-Drop, arXiv 2509.24203.
    """

    reads = ("group",)

    def __call__(self, b: Trajectories) -> Trajectories:
        b = scored(b)
        score = b.need("score")
        index, groups = index_groups(b.need("group"))
        wrong = score <= 0.5
        right = torch.zeros(groups, dtype=torch.long, device=index.device).index_add_(0, index, (score > 0.5).long())
        rank = _rank(index, wrong, groups)
        drop = wrong & (rank > right[index])
        return b.but(mask=b.valid & ~drop.unsqueeze(1), score=score.masked_fill(drop, torch.nan))


def _rank(index: Tensor, flag: Tensor, groups: int) -> Tensor:
    """Rank of a flagged row within its group, from 1."""
    member = torch.nn.functional.one_hot(index, groups) * flag.long().unsqueeze(1)
    return member.cumsum(0).gather(1, index.unsqueeze(1))[:, 0]
