"""Credit and critic for rows that may not be finished yet."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from anypo.parts._register import register
from anypo.parts.credit import Gae, Returns
from anypo.parts.critic import Value
from anypo.parts.statistics import last_valid
from anypo.types import Trajectories


def finished(b: Trajectories) -> Bool[Tensor, " row"]:
    """Rows that ended: all of them unless `done` (or a bootstrap value) says otherwise."""
    if b.done is not None:
        return b.done != 0
    return torch.full((b.shape[0],), b.bootstrap is None, device=b.valid.device)


@register("credit")
@dataclass(frozen=True)
class ExtendedGae(Gae):
    """GAE in which the value of what follows an unfinished row is held at that of its last decision, V(s_l) := V(s_{l-1}).

    returns: the sum of rewards to go, for the rows that are finished. Source: T-PPO, arXiv 2506.15050.
    """

    def __call__(self, b: Trajectories) -> Trajectories:
        assert b.value is not None
        value = b.value.detach()
        held = torch.where(last_valid(b.valid), value, 0.0).sum(1)
        after = b.but(bootstrap=torch.where(finished(b), 0.0, held), done=None)
        returns = Returns(self.gamma)(b).advantage
        return super().__call__(after).but(returns=returns, bootstrap=b.bootstrap, done=b.done)


@register("critic")
@dataclass(frozen=True)
class FinishedValue(Value):
    """The value loss on all decisions of the rows that are finished; the others wait. Source: T-PPO, arXiv 2506.15050."""

    def __call__(self, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        return super().__call__(b.but(mask=b.valid & finished(b).unsqueeze(1)))
