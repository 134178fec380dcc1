"""Decisions: the output of sampling, and how valid ones are gathered and scattered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from anypo.errors import UsageError
from anypo.types import Trajectories


@dataclass(slots=True)
class Decisions:
    """Output of `act` for B observations: action [B] or [B, A], its log-probability (nats), the state's value.

    An action that results from K successive decisions has logp [B, K], and `trace` holds [B, K, ...] to evaluate each again.
    """

    action: Shaped[Tensor, "batch *action"]
    logp: Float[Tensor, "batch *draw"]
    value: Float[Tensor, " batch"] | None
    trace: dict[str, Tensor] | None = None

    def rows(
        self, obs: Shaped[Tensor, "batch ..."]
    ) -> tuple[Float[Tensor, "batch draw"], Float[Tensor, "batch draw"] | None, dict[str, Tensor]]:
        """Return logp, value and trace of the successive decisions, K = 1 where the action was one decision."""
        logp = self.logp if self.logp.ndim == 2 else self.logp[:, None]
        value = None if self.value is None else self.value[:, None].expand_as(logp)
        if self.trace is None:
            return logp, value, {"obs": obs[:, None], "action": self.action[:, None]}
        return logp, value, self.trace


def names_of(value: bool | Sequence[str]) -> tuple[str, ...]:
    """Return the names of the value heads: one called `value` for True."""
    return (("value",) if value else ()) if isinstance(value, bool) else tuple(value)


def flat(x: Shaped[Tensor, "row step ..."], valid: Bool[Tensor, "row step"] | None) -> Shaped[Tensor, "decision ..."]:
    """Gather the valid decisions (None: all), one after the other."""
    return x.flatten(0, 1) if valid is None else x[valid]


def scatter_valid(x: Float[Tensor, "decision ..."], valid: Bool[Tensor, "row step"]) -> Float[Tensor, "row step ..."]:
    """Scatter values of the valid decisions, in order, to their places; 0 elsewhere."""
    if len(x) == valid.numel():
        return x.reshape(*valid.shape, *x.shape[1:])
    return x.new_zeros(*valid.shape, *x.shape[1:]).index_put((valid,), x)


def valid_mask(b: Trajectories) -> Bool[Tensor, "row step"]:
    """Return which decisions of the batch's trace are valid."""
    return b.valid if b.mask is not None else torch.ones(b.trace["obs"].shape[:2], dtype=torch.bool)


def refuse_text_views(layer: int | None, temperature: float | None) -> None:
    """Raise UsageError where a view asks a policy without text for an inner layer or another temperature."""
    if layer is not None or temperature is not None:
        raise UsageError("the method reads an inner layer, or another temperature, which only language models offer")
