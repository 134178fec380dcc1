"""The steps of many environments as tensors that are filled in place."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from anypo.policies.decisions import Decisions


class StepWindow:
    """`steps` steps of `envs` environments, fields [env, step, ...] that are allocated at the first step."""

    def __init__(self, envs: int, steps: int):
        self.envs, self.steps = envs, steps
        self.fields: dict[str, Tensor] = {}
        self._columns: dict[tuple[str, int | None], tuple[Tensor, ...]] = {}

    def write(self, which: slice | Tensor, step: int, decided: Decisions, obs: Tensor, **outcome: Tensor) -> None:
        """Write one step of some of the environments: decisions, the observations they were made from, and what followed."""
        outcome["logp"], _, trace = decided.rows(obs)
        outcome |= {f"trace.{name}": x for name, x in trace.items()}
        for name, x in outcome.items():
            if isinstance(which, slice):
                self._column(name, x, which)[step].copy_(x)
            else:
                self._column(name, x, slice(None))[step][which] = x

    def fill(self, envs: slice, first: int, fields: dict[str, Tensor]) -> None:
        """Write several steps of adjacent environments from `first` on: tensors [step, env, ...]."""
        for name, x in fields.items():
            self._field(name, x[0])[envs, first : first + len(x)] = x.transpose(0, 1)

    def _field(self, name: str, like: Tensor) -> Tensor:
        """Return a field, [env, step, ...]; `like` is a step of it."""
        if name not in self.fields:
            self.fields[name] = like.new_zeros(self.envs, self.steps, *like.shape[1:])
        return self.fields[name]

    def _column(self, name: str, like: Tensor, envs: slice) -> tuple[Tensor, ...]:
        """Return the steps of a field of adjacent environments."""
        if (name, envs.start) not in self._columns:
            self._columns[name, envs.start] = self._field(name, like)[envs].unbind(1)
        return self._columns[name, envs.start]


def pad_rows(
    flat: Shaped[Tensor, "slot ..."], start: Int[Tensor, " row"], mask: Bool[Tensor, "row step"]
) -> Shaped[Tensor, "row step ..."]:
    """row[n, t] = flat[start[n] + t], zero where the mask is off."""
    at = torch.where(mask, start[:, None] + torch.arange(mask.shape[1]), 0)
    return flat[at].masked_fill_(~mask.reshape(*mask.shape, *[1] * (flat.ndim - 1)), 0)
