"""Progress of a sequence of choices towards a known right one."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from anypo.errors import UsageError
from anypo.protocols import Policy
from anypo.types import Trajectories


@torch.no_grad()
def choice_progress(policy: Policy, b: Trajectories) -> Float[Tensor, "row step"]:
    """Compute C_{t+1} - C_t, where C_t is the probability of reaching the right outcome after t decisions: the product of the
    probabilities of the right remaining decisions while all earlier ones were right, else 0.

    Args:
        policy: whose probabilities.
        b: rows with `answer` and `answer_obs` in the trace: the right decisions and the observations before them.

    Raises:
        UsageError: there is no known answer.
    """
    if "answer" not in b.trace:
        raise UsageError("the method measures progress towards a known answer, and this task has none")
    right = b.but(trace={"obs": b.trace["answer_obs"], "action": b.trace["answer"]})
    remaining = policy.evaluate(right, {"logp"})["logp"].flip(1).cumsum(1).flip(1).exp()
    alive = torch.where(b.valid, b.trace["action"] == b.trace["answer"], True).cumprod(1)
    after = torch.cat([remaining[:, 1:], torch.ones_like(remaining[:, :1])], 1)
    before = torch.cat([torch.ones_like(alive[:, :1]), alive[:, :-1]], 1)
    return torch.where(b.valid, after * alive - remaining * before, 0.0)
