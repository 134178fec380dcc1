"""Pretrain a generative policy on demonstrations."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from anypo.policies.control.mlp import MLPPolicy
from anypo.policies.generative.denoiser import Denoiser
from anypo.types import Trajectories


def pretrain(
    policy: MLPPolicy,
    data: tuple[Shaped[Tensor, "sample stored"], Float[Tensor, "sample component"]],
    steps: int,
    *,
    lr: float = 5e-3,
    batch: int = 128,
    seed: int = 0,
) -> list[float]:
    """Clone an expert's behaviour: Adam steps, the learning rate falling to 0, on the mean of the policy's functional `imitation`:
    the matching loss of a generative policy, the likelihood of a Gaussian one.

    Args:
        policy: the policy to train in place.
        data: encoded observations, and actions as the policy stores them.
        steps: optimizer steps.
        lr: learning rate at the start.
        batch: samples per step.
        seed: of the minibatches and the policy's draws.

    Returns:
        The loss of every step.
    """
    obs, action = data
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(policy.parameters(), lr)
    losses = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        index = torch.randint(len(obs), (batch,), generator=generator)
        trace = policy.trace(obs[index], action[index], generator)
        error = -policy.evaluate(Trajectories(trace=trace), {policy.imitation})[policy.imitation].mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        losses.append(error.item())
    if isinstance(policy, Denoiser):
        policy.freeze_base()
    return losses
