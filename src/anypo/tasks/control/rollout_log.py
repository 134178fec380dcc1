"""The log of a rollout of several Gymnasium environments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from anypo.policies.decisions import Decisions
from anypo.tasks.control.workers import Copy
from anypo.types import LAST_MASK, MASK


@dataclass(slots=True)
class RolloutLog:
    """A rollout in order of time: tensors [B, ...] per joint step of B environments, lists per action, and lists per row or
    episode."""

    obs: list[Tensor] = field(default_factory=list)
    masks: list[Tensor | None] = field(default_factory=list)
    decided: list[Decisions] = field(default_factory=list)
    reward: list[float] = field(default_factory=list)
    channels: list[list[float]] = field(default_factory=list)
    row: list[int] = field(default_factory=list)
    done: list[bool] = field(default_factory=list)
    last: list[Any] = field(default_factory=list)
    last_mask: list[Any] = field(default_factory=list)
    finished: list[tuple[float, int]] = field(default_factory=list)

    def open(self, copy: Copy) -> None:
        """Begin a row with the copy's episode."""
        copy.row = len(self.done)
        self.done.append(False)
        self.last.append(None)
        self.last_mask.append(None)

    def add_decisions(self, obs: Tensor, mask: Tensor | None, decided: Decisions) -> None:
        """Add the decisions of one joint step."""
        self.obs.append(obs)
        self.decided.append(decided)
        self.masks.append(mask)

    def decisions(self) -> tuple[Tensor, Float[Tensor, "action draw"], dict[str, Tensor]]:
        """Observation, log-probabilities and trace of all actions, each of them K decisions in turn."""
        obs = torch.cat(self.obs)
        traces = [d.trace for d in self.decided if d.trace is not None]
        joint = Decisions(
            torch.cat([d.action for d in self.decided]),
            torch.cat([d.logp for d in self.decided]),
            None,
            {name: torch.cat([trace[name] for trace in traces]) for name in traces[0]} if traces else None,
        )
        logp, _, trace = joint.rows(obs)
        masks = [mask for mask in self.masks if mask is not None]
        if masks:  # a step without a mask allows everything
            width = masks[0].shape[1]
            steps = zip(self.masks, self.obs, strict=True)
            everything = [torch.ones(len(o), width, dtype=torch.bool) if m is None else m for m, o in steps]
            trace = trace | {MASK: torch.cat(everything)[:, None]}
        return obs, logp, trace

    def close(self, copy: Copy, features: Tensor) -> None:
        """End the copy's row, at the end of its episode or before."""
        self.done[copy.row], self.last[copy.row], self.last_mask[copy.row] = copy.done, features, copy.mask
        if copy.over:
            self.finished.append((copy.total, copy.length))

    def last_masks(self) -> dict[str, Tensor]:
        """Return what is allowed after every row's last action, where there were masks."""
        like = next((mask for mask in self.masks if mask is not None), None)
        if like is None:
            return {}
        everything = np.ones(like.shape[1], bool)
        return {LAST_MASK: torch.from_numpy(np.stack([everything if m is None else m for m in self.last_mask]))}

    def steps(self) -> tuple[Int[Tensor, " action"], Int[Tensor, " action"]]:
        """Row and position in the row of every action."""
        row = torch.tensor(self.row)
        lengths = row.bincount(minlength=len(self.done))
        first = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
        return row, torch.empty_like(row).index_copy_(0, row.argsort(stable=True), torch.arange(len(row)) - first)

    def first_bad_observation(self) -> int | None:
        """Step in its episode of the first observation that is not finite; None where all are."""
        if self.obs:
            bad = ~torch.cat(self.obs).isfinite()
            bad = bad.flatten(1).any(1) if bad.ndim > 1 else bad
            if bool(bad.any()):
                return int(self.steps()[1][bad.nonzero()[0, 0]])
        lengths = np.bincount(self.row, minlength=len(self.done))
        ends = (n for last, n in zip(self.last, lengths, strict=True) if not bool(last.isfinite().all()))
        return next((int(n) for n in ends), None)

    def by_channel(self, names: Sequence[str]) -> dict[str, list[float]]:
        """Return the rewards of every channel, one per action."""
        return {name: [step[k] for step in self.channels] for k, name in enumerate(names)}

    def metrics(self, names: Sequence[str] = ()) -> dict[str, float]:
        """Environment steps, mean return and length of the episodes that ended, and the mean reward of each channel per step."""
        metrics = {"env_steps": float(len(self.reward))}
        metrics |= {f"train/{name}": float(np.mean(x)) for name, x in self.by_channel(names).items()}
        if self.finished:
            returns, lengths = np.array(self.finished).T
            metrics |= {"train/return": float(returns.mean()), "train/length": float(lengths.mean())}
        return metrics
