"""Environments that are functions of tensors as a task: one call of the policy and one of the environment per step of all copies."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from anypo.errors import UsageError, unknown
from anypo.kernels.compiler import CompiledFn
from anypo.policies.control.normalize import RunningNorm
from anypo.policies.decisions import Decisions
from anypo.protocols import ActsByTensors
from anypo.tasks.control.starts import configured_scale, reward_factor, scales_reward, start_seed
from anypo.tasks.control.tensor.classic import Acrobot, CartPole, MountainCarContinuous, Pendulum
from anypo.tasks.control.tensor.environment import Environment, State
from anypo.tasks.control.tensor.goals import GridWorld, PointMass
from anypo.types import Request, Trajectories

ENVIRONMENTS: dict[str, type[Environment]] = {
    "CartPole-v1": CartPole,
    "Pendulum-v1": Pendulum,
    "Acrobot-v1": Acrobot,
    "MountainCarContinuous-v0": MountainCarContinuous,
    "PointMass": PointMass,
    "GridWorld": GridWorld,
}


STEPS = {"Pendulum-v1": 1_000_000, "GridWorld": 1_000_000}
"""Recommended lengths that differ from the general one."""


STRIDE = 8
"""Steps in one call of compiled code."""


class _Window:
    """What `steps` steps of `envs` environments were like, [env, step, ...]: allocated at the first step, filled in place."""

    def __init__(self, envs: int, steps: int):
        self.envs, self.steps = envs, steps
        self.fields: dict[str, Tensor] = {}
        self._columns: dict[tuple[str, int | None], tuple[Tensor, ...]] = {}

    def write(self, which: slice | Tensor, step: int, decided: Decisions, obs: Tensor, **found: Tensor) -> None:
        """Note what some of the environments did at a step, and what came of it."""
        found["logp"], _, trace = decided.rows(obs)
        found |= {f"trace.{name}": x for name, x in trace.items()}
        for name, x in found.items():
            if isinstance(which, slice):
                self._column(name, x, which)[step].copy_(x)
            else:
                self._column(name, x, slice(None))[step][which] = x

    def fill(self, which: slice, first: int, found: dict[str, Tensor]) -> None:
        """Note what environments that lie together did at several steps from `first` on: tensors [step, env, ...]."""
        for name, x in found.items():
            self._field(name, x[0])[which, first : first + len(x)] = x.transpose(0, 1)

    def _field(self, name: str, like: Tensor) -> Tensor:
        """A field, [env, step, ...]; `like` is a step of it."""
        if name not in self.fields:
            self.fields[name] = like.new_zeros(self.envs, self.steps, *like.shape[1:])
        return self.fields[name]

    def _column(self, name: str, like: Tensor, own: slice) -> tuple[Tensor, ...]:
        """A field's steps, for some environments that lie together."""
        if (name, own.start) not in self._columns:
            self._columns[name, own.start] = self._field(name, like)[own].unbind(1)
        return self._columns[name, own.start]


class Tensors:
    """`envs` copies of an environment in one state tensor. An episode that ends is followed by the next in the same step.

    chunk: so many copies are walked together, one group after the other under the same policy, so that what a step of the policy
    needs stays small. scale_reward: as in the task gym (on, but for methods that replay transitions). States are saved in
    checkpoints as they are. Starts that are given, and held-out ones, are drawn from a seed of their own.
    """

    metric = "return"
    channels = ("return",)
    unit = "environment steps"
    standing = True
    starts = None
    default_policy = "mlp"

    def __init__(
        self,
        name: str,
        *,
        envs: int = 64,
        seed: int = 0,
        chunk: int = 4096,
        scale_reward: bool | None = None,
        eval_episodes: int = 20,
    ):
        if name not in ENVIRONMENTS:
            raise unknown("tensor environment", name, ENVIRONMENTS)
        if min(envs, chunk, eval_episodes) < 1:
            raise UsageError(f"tensor:{name}: envs, chunk and eval_episodes take positive numbers")
        self.name, self.env_id = f"tensor:{name}", name
        self.env = ENVIRONMENTS[name]()
        self.observation_space, self.action_space = self.env.observation_space, self.env.action_space
        boxed = hasattr(self.action_space, "low")
        self.bounds = (float(self.action_space.low.min()), float(self.action_space.high.max())) if boxed else None
        self.limit = self.env.limit
        self.envs, self.seed, self.chunk, self.eval_episodes = envs, seed, chunk, eval_episodes
        self.scale_reward = scale_reward
        self.scale = None if scale_reward is False else RunningNorm(1)
        self.generator = torch.Generator().manual_seed(start_seed(seed, 1))
        self.state = self.env.reset(self.generator, envs)
        self.total = torch.zeros(envs, dtype=torch.float64)
        """Undiscounted return of the episode every environment is in."""
        self.native: dict[Any, CompiledFn] = {}
        """Compiled steps, by the policy that decides."""
        self.compiles = False

    def compile_rollouts(self) -> None:
        """From now on, where the policy's decisions are a function of tensors, several steps of all are one call of compiled code."""
        self.compiles = True

    def configure(self, recipe: dict[str, Any]) -> None:
        """Scale rewards or not, as the recipe says."""
        self.scale = configured_scale(self.scale, recipe)

    def rollout(
        self, policy: Any, requests: list[Request], generator: torch.Generator
    ) -> tuple[Trajectories, dict[str, float]]:
        """Rows of whole episodes from given starts, or `horizon` steps of every environment where all starts are None.

        A given start is a seed: the rows of its request begin in the same state, and `horizon` cuts them. Going on, the steps of
        an environment are one row per episode touched, and every row is a group. Each row has `done` (terminal; a time limit is
        not), `bootstrap`, the value of the state it stopped in, and that state's observation `last`.
        """
        explore = {"random": requests[0].random, "noise": requests[0].noise}
        explore = explore if any(explore.values()) else {}
        given = [r.start for r in requests if r.start is not None]
        if not given:
            horizon = requests[0].horizon
            if horizon is None:
                raise UsageError(f"{self.name}: requests that go on where the environments stand need a horizon")
            return self._go_on(policy, horizon, generator, explore)
        if len(given) < len(requests):
            raise UsageError(f"{self.name}: one rollout cannot mix given starts with starts that are None")
        samples = torch.tensor([r.samples for r in requests])
        limits = torch.tensor([min(r.horizon or self.limit, self.limit) for r in requests]).repeat_interleave(samples)
        state = self._begin([start_seed(self.seed, 0, start) for start in given]).repeat_interleave(samples, 1)
        group = torch.arange(len(requests)).repeat_interleave(samples)
        return self._episodes(policy, state, limits, group, generator, explore)

    def evaluate(self, policy: Any, generator: torch.Generator, episodes: int | None = None) -> dict[str, float]:
        """Mean, standard deviation and mean length of greedy episodes from held-out seeds, the same ones every time."""
        episodes = self.eval_episodes if episodes is None else episodes
        state = self._begin([start_seed(i, held_out=True) for i in range(episodes)])
        total, live = torch.zeros(episodes, dtype=torch.float64), torch.arange(episodes)
        lengths = torch.zeros(episodes, dtype=torch.float64)
        while len(live):
            decided = policy.act(self.env.observe(state), generator, greedy=True, valued=False)
            state, reward, terminated, truncated = self.env.step(state, self._accepted(decided.action))
            total[live] += reward
            lengths[live] += 1
            on = ~(terminated | truncated)
            state, live = state[:, on], live[on]
        found = {"return": total.mean(), "return_std": total.std(correction=0), "length": lengths.mean()}
        return {name: float(value) for name, value in found.items()}

    def recipe(self, traits: dict[str, Any]) -> dict[str, Any]:
        """Loop settings (minibatch in decisions, steps in environment steps), and what `configure` takes."""
        return {"scale_reward": scales_reward(self.scale_reward, traits)} | self._settings(traits)

    def _settings(self, traits: dict[str, Any]) -> dict[str, Any]:
        steps = STEPS.get(self.env_id, 500_000)
        if traits.get("replays"):
            rows = {"requests": self.envs, "samples": 1, "horizon": max(1, 64 // self.envs)}
            return rows | {"lr": 3e-4, "epochs": 1, "minibatch": 0, "steps": 100_000}
        if traits.get("critic") and not traits.get("whole"):
            rows = {"requests": self.envs, "samples": 1, "horizon": 128}
            if not traits.get("reuse", True):
                rows |= {"horizon": 16, "minibatch": None, "epochs": 1}
            return {"epochs": 4, "minibatch": 2048, "lr": 1e-3, "schedule": "linear", "steps": steps} | rows
        rows = {"requests": 4, "samples": 8} if traits.get("grouped") else {"requests": 16, "samples": 1}
        return rows | {"horizon": self.limit, "lr": 3e-3, "epochs": 1, "minibatch": 4096, "steps": steps}

    def state_dict(self) -> dict[str, Any]:
        """Everything: the states themselves."""
        return {
            "state": self.state.clone(),
            "total": self.total.clone(),
            "generator": self.generator.get_state(),
            "scale": self.scale.state_dict() if self.scale else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["state"].shape != self.state.shape:
            raise UsageError(
                f"{self.name}: the checkpoint has {state['state'].shape[1]} environments, the task {self.envs}; "
                "use the same number"
            )
        self.state, self.total = state["state"].clone(), state["total"].clone()
        self.generator.set_state(state["generator"])
        if self.scale:
            self.scale.load_state_dict(state["scale"])

    # ---------------------------------------------------------------- playing

    def _begin(self, seeds: list[int]) -> State:
        """The state each seed starts in."""
        return torch.cat([self.env.reset(torch.Generator().manual_seed(seed), 1) for seed in seeds], 1)

    def _accepted(self, action: Shaped[Tensor, "env *component"]) -> Shaped[Tensor, "env *component"]:
        """Decisions as the environment accepts them: choices, or numbers with [-1, 1] mapped onto its bounds and clipped to them."""
        if self.bounds is None:
            return action
        low, high = self.bounds
        return (low + (action + 1) / 2 * (high - low)).clamp(low, high)

    def _episodes(
        self,
        policy: Any,
        state: State,
        limits: Int[Tensor, " row"],
        group: Int[Tensor, " row"],
        generator: torch.Generator,
        explore: dict[str, float],
    ) -> tuple[Trajectories, dict[str, float]]:
        """One episode from every state, of at most `limits` steps each; those that are over are not stepped any more."""
        rows = len(limits)
        window, live = _Window(rows, int(limits.max())), torch.arange(rows)
        lengths, done = torch.zeros(rows, dtype=torch.long), torch.zeros(rows, dtype=torch.bool)
        obs, t = self.env.observe(state), 0
        last = torch.empty(rows, obs.shape[1])
        while len(live):
            decided = policy.act(obs, generator, valued=False, **explore)
            state, reward, terminated, _ = self.env.step(state, self._accepted(decided.action))
            window.write(live, t, decided, obs, reward=reward)
            obs, t = self.env.observe(state), t + 1
            over = terminated | (t >= limits[live])
            if bool(over.any()):
                ended = live[over]
                last[ended], done[ended], lengths[ended] = obs[over], terminated[over], t
                state, live, obs = state[:, ~over], live[~over], obs[~over]
        fields = self._valued(policy, {name: x[:, :t] for name, x in window.fields.items()})
        mask = torch.arange(t) < lengths[:, None]
        if "value" in fields:
            fields["value"] = torch.where(mask[:, :, None], fields["value"], 0.0)
        returns = fields["reward"].sum(1)
        metrics = {
            "env_steps": float(lengths.sum()),
            "train/return": float(returns.mean()),
            "train/length": float(lengths.float().mean()),
        }
        return self._batch(policy, fields, mask, last, done, group), metrics

    def _go_on(
        self, policy: Any, horizon: int, generator: torch.Generator, explore: dict[str, float]
    ) -> tuple[Trajectories, dict[str, float]]:
        """`horizon` steps of every environment, chunk by chunk, cut into one row per piece of an episode."""
        window, before = _Window(self.envs, horizon), self.state[-1].long()
        seen: list[tuple[Tensor, Tensor]] = []
        several = self.compiles and isinstance(policy, ActsByTensors) and not explore
        walk = self._march if several else partial(self._walk, explore=explore)
        with nullcontext() if several else policy.frozen_for_rollout():
            for first in range(0, self.envs, self.chunk):
                seen += walk(policy, window, slice(first, min(first + self.chunk, self.envs)), generator)
        # flat, one environment after the other, a piece is a run that ends with its episode or with the window
        over = window.fields.pop("over")
        closing = over.clone()
        closing[:, -1] = True
        stop = closing.flatten().nonzero()[:, 0]
        start = torch.cat([stop.new_zeros(1), stop[:-1] + 1])
        lengths, env, ended = stop - start + 1, start // horizon, over.flatten()[stop]
        where, obs = (torch.cat(parts) for parts in zip(*seen, strict=True))
        last = obs[where.argsort()]  # one for every stop

        running = torch.cat([torch.zeros(1, dtype=torch.float64), window.fields["reward"].flatten().double().cumsum(0)])
        leading = start % horizon == 0
        returns = running[stop + 1] - running[start] + torch.where(leading, self.total[env], 0)
        self.total[env[~ended]], self.total[env[ended & (stop % horizon == horizon - 1)]] = returns[~ended], 0.0
        metrics = {"env_steps": float(over.numel())}
        if bool(ended.any()):
            played = lengths + torch.where(leading, before[env], 0)
            metrics |= {
                "train/return": float(returns[ended].mean()),
                "train/length": float(played[ended].double().mean()),
            }
        done, fields = window.fields.pop("done").flatten()[stop], self._valued(policy, window.fields)
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        if len(stop) > self.envs:  # else the window has the rows already
            fields = {name: pad_rows(x.flatten(0, 1), start, mask) for name, x in fields.items()}
        return self._batch(policy, fields, mask, last, done, torch.arange(len(stop))), metrics

    def _walk(
        self, policy: Any, window: _Window, own: slice, generator: torch.Generator, explore: dict[str, float]
    ) -> list[tuple[Int[Tensor, " stop"], Float[Tensor, "stop feature"]]]:
        """The whole window of one chunk. Returns (position in the flat window, observation) of what followed where an episode, or
        the window, ended. Every step draws a new start for every environment, of which those whose episode is over take theirs."""
        state = self.state[:, own].contiguous()
        obs, at, seen = self.env.observe(state), torch.arange(own.start, own.stop) * window.steps, []
        for t in range(window.steps):
            decided = policy.act(obs, generator, valued=False, **explore)
            state, reward, terminated, truncated = self.env.step(state, self._accepted(decided.action))
            over = terminated | truncated
            window.write(own, t, decided, obs, reward=reward, over=over, done=terminated)
            ended = over.nonzero()[:, 0] if t < window.steps - 1 else slice(None)
            seen.append((at[ended] + t, self.env.observe(state[:, ended]).clone()))
            state = torch.where(over, self.env.reset(self.generator, len(over)), state)
            obs = self.env.observe(state)
        self.state[:, own] = state
        return seen

    def _march(
        self, policy: Any, window: _Window, own: slice, generator: torch.Generator
    ) -> list[tuple[Int[Tensor, " stop"], Float[Tensor, "stop feature"]]]:
        """`_walk`, several steps at a time in compiled code."""
        native = self.native.setdefault(policy, CompiledFn(partial(self._steps, policy)))
        state, params, n = self.state[:, own].contiguous(), policy.act_params(), own.stop - own.start
        at, seen = torch.arange(own.start, own.stop) * window.steps, []
        for t in range(0, window.steps, STRIDE):
            count = min(STRIDE, window.steps - t)
            noise = torch.stack([policy.action_noise(n, generator) for _ in range(count)])
            fresh = torch.stack([self.env.reset(self.generator, n) for _ in range(count)])
            state, after, obs, action, logp, reward, over, done = native(state, noise, fresh, *params)
            found = {"logp": logp.unsqueeze(-1), "trace.obs": obs.unsqueeze(2), "trace.action": action.unsqueeze(2)}
            window.fill(own, t, found | {"reward": reward, "over": over, "done": done})
            ended = over.clone()
            ended[-1] |= t + count == window.steps
            step, env = ended.nonzero(as_tuple=True)
            seen.append((at[env] + t + step, after[step, env]))
        self.state[:, own] = state
        return seen

    def _steps(
        self,
        policy: Any,
        state: State,
        noise: Float[Tensor, "step env number"],
        fresh: Float[Tensor, "step quantity env"],
        *params: Tensor,
    ) -> tuple[Tensor, ...]:
        """The state some steps later, and of every step [step, env, ...]: what followed, observation, action, log-probability,
        reward, whether the episode was over, and whether it was by itself."""
        made: list[tuple[Tensor, ...]] = []
        for numbers, start in zip(noise.unbind(0), fresh.unbind(0), strict=True):
            obs = self.env.observe(state)
            action, logp = policy.act_fn(obs, numbers, *params)
            action = action.squeeze(-1) if policy.scalar else action
            state, reward, terminated, truncated = self.env.step(state, self._accepted(action))
            over = terminated | truncated
            made.append((self.env.observe(state), obs, action, logp, reward, over, terminated))
            state = torch.where(over, start, state)
        return state, *(torch.stack(found) for found in zip(*made, strict=True))

    def _valued(self, policy: Any, fields: dict[str, Tensor]) -> dict[str, Tensor]:
        """The fields of steps, and the value of every state acted in where the policy has a value head."""
        obs = fields["trace.obs"][:, :, 0]
        value = self._value_of(policy, obs.flatten(0, 1))
        return fields if value is None else fields | {"value": value.view(*obs.shape[:2], 1).expand_as(fields["logp"])}

    def _value_of(self, policy: Any, obs: Float[Tensor, "state feature"]) -> Float[Tensor, " state"] | None:
        """V of many states, a chunk at a time."""
        values = [policy.value_of(some) for some in obs.split(self.chunk)]
        return None if values[0] is None else torch.cat(values)

    def _batch(
        self,
        policy: Any,
        fields: dict[str, Shaped[Tensor, "row step ..."]],
        mask: Bool[Tensor, "row step"],
        last: Float[Tensor, "row feature"],
        done: Bool[Tensor, " row"],
        group: Int[Tensor, " row"],
    ) -> Trajectories:
        """Rows of steps as rows of decisions. Where an action is several decisions, they stand one after the other, the reward on
        the last and `segment` numbering the environment's steps."""
        reward, draws = fields["reward"], fields["logp"].shape[2]
        if self.scale:
            reward = reward * reward_factor(self.scale, reward[mask])
        segment = None
        if draws > 1:
            segment = torch.arange(mask.shape[1]).repeat_interleave(draws).expand(len(mask), -1)
            reward = torch.nn.functional.pad(reward[:, :, None], (draws - 1, 0)).flatten(1, 2)
            mask = mask.repeat_interleave(draws, 1)
        bootstrap = self._value_of(policy, last)
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
            extra={"last": last},
        )


def pad_rows(
    flat: Shaped[Tensor, "slot ..."], start: Int[Tensor, " row"], mask: Bool[Tensor, "row step"]
) -> Shaped[Tensor, "row step ..."]:
    """Rows of consecutive slots from `start` on, zero where the mask is off."""
    at = torch.where(mask, start[:, None] + torch.arange(mask.shape[1]), 0)
    return flat[at].masked_fill_(~mask.reshape(*mask.shape, *[1] * (flat.ndim - 1)), 0)
