"""Play many copies of an environment: from given states, or on from the current ones."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anypo.kernels.compiler import CompiledFn
from anypo.protocols import ActsByTensors
from anypo.rng import ChunkRng, RowRng
from anypo.tasks.control.tensor.environment import State
from anypo.tasks.control.tensor.rows import add_values, make_batch
from anypo.tasks.control.tensor.window import StepWindow, pad_rows
from anypo.types import Trajectories

if TYPE_CHECKING:
    from anypo.tasks.control.tensor.task import Tensors

STRIDE = 8
"""Steps in one call of compiled code."""


Stops = list[tuple[Int[Tensor, " stop"], Float[Tensor, "stop feature"]]]
"""Positions in the flat window [env * step] where an episode or the window ends, and the observations that follow."""


def play_episodes(
    task: Tensors,
    policy: Any,
    state: State,
    limits: Int[Tensor, " row"],
    group: Int[Tensor, " row"],
    rng: RowRng,
    explore: dict[str, float],
) -> tuple[Trajectories, dict[str, float]]:
    """Play one episode from every state; one that is over is not stepped any more.

    Args:
        task: the environment and how its rows are made.
        policy: decides.
        state: where the episodes begin.
        limits: steps of an episode at most.
        group: of the rows.
        rng: of the policy's samples, a stream per row.
        explore: noise of the policy's actions.
    """
    rows = len(limits)
    window, live = StepWindow(rows, int(limits.max())), torch.arange(rows)
    lengths, done = torch.zeros(rows, dtype=torch.long), torch.zeros(rows, dtype=torch.bool)
    obs, t = task.env.observe(state), 0
    last = torch.empty(rows, obs.shape[1])
    while len(live):
        rng.at(t, live)
        decided = policy.act(obs, rng, valued=False, **explore)
        state, reward, terminated, _ = task.env.step(state, task.env_action(decided.action))
        window.write(live, t, decided, obs, reward=reward)
        obs, t = task.env.observe(state), t + 1
        over = terminated | (t >= limits[live])
        if bool(over.any()):
            ended = live[over]
            last[ended], done[ended], lengths[ended] = obs[over], terminated[over], t
            state, live, obs = state[:, ~over], live[~over], obs[~over]
    fields = add_values(task, policy, {name: x[:, :t] for name, x in window.fields.items()})
    mask = torch.arange(t) < lengths[:, None]
    if "value" in fields:
        fields["value"] = torch.where(mask[:, :, None], fields["value"], 0.0)
    returns = fields["reward"].sum(1)
    metrics = {
        "env_steps": float(lengths.sum()),
        "train/return": float(returns.mean()),
        "train/length": float(lengths.float().mean()),
    }
    return make_batch(task, policy, fields, mask, last, done, group), metrics


def continue_episodes(
    task: Tensors, policy: Any, horizon: int, key: tuple[int, int], explore: dict[str, float]
) -> tuple[Trajectories, dict[str, float]]:
    """Continue the current episodes: `horizon` steps of every environment, chunk by chunk, cut into one row per piece of an episode.

    Args:
        task: its states are advanced.
        policy: decides.
        horizon: steps of every environment.
        key: seed and number of the request, of which all random numbers follow.
        explore: noise of the policy's actions.
    """
    window, before = StepWindow(task.envs, horizon), task.state[-1].long()
    stops = walk_window(task, policy, window, key, explore)
    # flat, one environment after the other, a piece is a run that ends with its episode or with the window
    over = window.fields.pop("over")
    closing = over.clone()
    closing[:, -1] = True
    stop = closing.flatten().nonzero()[:, 0]
    start = torch.cat([stop.new_zeros(1), stop[:-1] + 1])
    lengths, env, ended = stop - start + 1, start // horizon, over.flatten()[stop]
    where, obs = (torch.cat(parts) for parts in zip(*stops, strict=True))
    last = obs[where.argsort()]  # one for every stop

    running = torch.cat([torch.zeros(1, dtype=torch.float64), window.fields["reward"].flatten().double().cumsum(0)])
    leading = start % horizon == 0
    returns = running[stop + 1] - running[start] + torch.where(leading, task.total[env], 0)
    task.total[env[~ended]], task.total[env[ended & (stop % horizon == horizon - 1)]] = returns[~ended], 0.0
    metrics = {"env_steps": float(over.numel())}
    if bool(ended.any()):
        played = lengths + torch.where(leading, before[env], 0)
        metrics |= {
            "train/return": float(returns[ended].mean()),
            "train/length": float(played[ended].double().mean()),
        }
    done, fields = window.fields.pop("done").flatten()[stop], add_values(task, policy, window.fields)
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    if len(stop) > task.envs:  # else the window has the rows already
        fields = {name: pad_rows(x.flatten(0, 1), start, mask) for name, x in fields.items()}
    return make_batch(task, policy, fields, mask, last, done, torch.arange(len(stop))), metrics


def walk_window(
    task: Tensors, policy: Any, window: StepWindow, key: tuple[int, int], explore: dict[str, float]
) -> Stops:
    """Fill the window chunk by chunk, in compiled code where task and policy allow it.

    Args:
        task: its states are advanced.
        policy: decides.
        window: is filled.
        key: seed and number of the request, of which all random numbers follow.
        explore: noise of the policy's actions.
    """
    several = task.compiles and isinstance(policy, ActsByTensors) and not explore
    walk = walk_compiled if several else partial(walk_chunk, explore=explore)
    stops: Stops = []
    with nullcontext() if several else policy.frozen_for_rollout():
        for first in range(0, task.envs, task.chunk):
            envs = slice(first, min(first + task.chunk, task.envs))
            decisions, resets = (ChunkRng((*key, use), envs, task.envs) for use in range(2))
            stops += walk(task, policy, window, envs, decisions, resets)
    return stops


def walk_chunk(
    task: Tensors,
    policy: Any,
    window: StepWindow,
    envs: slice,
    rng: ChunkRng,
    resets: ChunkRng,
    explore: dict[str, float],
) -> Stops:
    """Fill the window of one chunk, step by step.

    Every step draws a new start for every environment, of which those whose episode is over take theirs.

    Args:
        task: its states of these environments are advanced.
        policy: decides.
        window: is filled.
        envs: the chunk.
        rng: of the policy's samples.
        resets: of new starts.
        explore: noise of the policy's actions.
    """
    state = task.state[:, envs].contiguous()
    obs, at = task.env.observe(state), torch.arange(envs.start, envs.stop) * window.steps
    stops: Stops = []
    for t in range(window.steps):
        decided = policy.act(obs, rng, valued=False, **explore)
        state, reward, terminated, truncated = task.env.step(state, task.env_action(decided.action))
        over = terminated | truncated
        window.write(envs, t, decided, obs, reward=reward, over=over, done=terminated)
        ended = over.nonzero()[:, 0] if t < window.steps - 1 else slice(None)
        stops.append((at[ended] + t, task.env.observe(state[:, ended]).clone()))
        state = torch.where(over, task.fresh_states(resets), state)
        obs = task.env.observe(state)
    task.state[:, envs] = state
    return stops


def walk_compiled(
    task: Tensors, policy: ActsByTensors, window: StepWindow, envs: slice, rng: ChunkRng, resets: ChunkRng
) -> Stops:
    """`walk_chunk`, several steps at a time in compiled code.

    Args:
        task: its states of these environments are advanced.
        policy: decides.
        window: is filled.
        envs: the chunk.
        rng: of the policy's noise.
        resets: of new starts.
    """
    stride = task.compiled.setdefault(policy, CompiledFn(partial(stride_fn, task, policy)))
    state, params = task.state[:, envs].contiguous(), policy.act_params()
    at = torch.arange(envs.start, envs.stop) * window.steps
    stops: Stops = []
    for t in range(0, window.steps, STRIDE):
        count = min(STRIDE, window.steps - t)
        noise = torch.stack([policy.action_noise(rng) for _ in range(count)])
        fresh = torch.stack([task.fresh_states(resets) for _ in range(count)])
        state, after, obs, action, logp, reward, over, done = stride(state, noise, fresh, *params)
        fields = {"logp": logp.unsqueeze(-1), "trace.obs": obs.unsqueeze(2), "trace.action": action.unsqueeze(2)}
        window.fill(envs, t, fields | {"reward": reward, "over": over, "done": done})
        ended = over.clone()
        ended[-1] |= t + count == window.steps
        step, env = ended.nonzero(as_tuple=True)
        stops.append((at[env] + t + step, after[step, env]))
    task.state[:, envs] = state
    return stops


def stride_fn(
    task: Tensors,
    policy: Any,
    state: State,
    noise: Float[Tensor, "step env number"],
    fresh: Float[Tensor, "step quantity env"],
    *params: Tensor,
) -> tuple[Tensor, ...]:
    """Several steps as a function of tensors.

    Args:
        task: the environment.
        policy: decides.
        state: where the steps begin.
        noise: of the policy's samples.
        fresh: new starts, for environments whose episode is over.
        params: of the policy.

    Returns:
        The state after the last step, and of every step [step, env, ...]: the observation that follows, observation, action,
        log-probability, reward, whether the episode was over, and whether it was terminated.
    """
    steps: list[tuple[Tensor, ...]] = []
    for numbers, start in zip(noise.unbind(0), fresh.unbind(0), strict=True):
        obs = task.env.observe(state)
        action, logp = policy.act_fn(obs, numbers, *params)
        action = action.squeeze(-1) if policy.scalar else action
        state, reward, terminated, truncated = task.env.step(state, task.env_action(action))
        over = terminated | truncated
        steps.append((task.env.observe(state), obs, action, logp, reward, over, terminated))
        state = torch.where(over, start, state)
    return state, *(torch.stack(field) for field in zip(*steps, strict=True))
