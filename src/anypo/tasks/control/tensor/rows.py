"""Steps of environments as rows of decisions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from anypo.tasks.control.starts import further_bootstraps, reward_factor
from anypo.types import Trajectories

if TYPE_CHECKING:
    from anypo.tasks.control.tensor.task import Tensors


def add_values(task: Tensors, policy: Any, fields: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the value of every observation acted on, where the policy has a value head.

    Args:
        task: its chunk bounds how many are evaluated together.
        policy: evaluates.
        fields: [row, step, ...].
    """
    obs = fields["trace.obs"][:, :, 0]
    value = chunked_values(policy, obs.flatten(0, 1), task.chunk)
    return fields if value is None else fields | {"value": value.view(*obs.shape[:2], 1).expand_as(fields["logp"])}


def chunked_values(policy: Any, obs: Float[Tensor, "state feature"], chunk: int) -> Float[Tensor, " state"] | None:
    """V = policy.value_of(obs) of many observations, a chunk at a time; None without a value head."""
    values = [policy.value_of(part) for part in obs.split(chunk)]
    return None if values[0] is None else torch.cat(values)


def make_batch(
    task: Tensors,
    policy: Any,
    fields: dict[str, Shaped[Tensor, "row step ..."]],
    mask: Bool[Tensor, "row step"],
    last: Float[Tensor, "row feature"],
    done: Bool[Tensor, " row"],
    group: Int[Tensor, " row"],
) -> Trajectories:
    """Make a batch of rows of steps. Where an action is several decisions, they follow each other, with the reward on the last and
    `segment` numbering the environment's steps.

    Args:
        task: its running scale of rewards is updated.
        policy: evaluates the last observations.
        fields: of all steps; log-probabilities and traces have a third dimension, the decisions of an action.
        mask: steps that were taken.
        last: observation after a row's last step.
        done: whether that one is terminal.
        group: of the rows.
    """
    reward, draws = fields["reward"], fields["logp"].shape[2]
    if task.scale:
        reward = reward * reward_factor(task.scale, reward[mask])
    segment = None
    if draws > 1:
        segment = torch.arange(mask.shape[1]).repeat_interleave(draws).expand(len(mask), -1)
        reward = torch.nn.functional.pad(reward[:, :, None], (draws - 1, 0)).flatten(1, 2)
        mask = mask.repeat_interleave(draws, 1)
    bootstrap = chunked_values(policy, last, task.chunk)
    bootstrap = torch.zeros(len(done)) if bootstrap is None else bootstrap.masked_fill(done, 0.0)
    decisions = {name: x.flatten(1, 2) for name, x in fields.items() if name != "reward"}
    return Trajectories(
        logp_old=decisions.pop("logp"),
        value=decisions.pop("value", None),
        mask=mask,
        reward=reward,
        group=group,
        segment=segment,
        bootstrap=bootstrap,
        done=done,
        trace={name.removeprefix("trace."): x for name, x in decisions.items()},
        extra={"last": last, **further_bootstraps(policy, last, done)},
    )
