"""Environments that are functions of tensors as a task: one call of the policy and one of the environment per step of all copies."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from anypo.errors import UsageError, unknown
from anypo.kernels.compiler import CompiledFn
from anypo.policies.control.normalize import RunningNorm
from anypo.ranges import Count, Range, Seed, Size
from anypo.rng import SPAN, ChunkRng, RowRng, held_out_seeds, request_keys, request_seeds
from anypo.tasks.control.starts import configured_scale, scales_reward, start_seed
from anypo.tasks.control.tensor.classic import Acrobot, CartPole, MountainCarContinuous, Pendulum
from anypo.tasks.control.tensor.environment import Environment, State
from anypo.tasks.control.tensor.goals import GridWorld, PointMass
from anypo.tasks.control.tensor.play import continue_episodes, play_episodes
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


class Tensors:
    """`envs` copies of an environment in one state tensor. An episode that ends is followed by the next in the same step.

    envs: how many. seed: of the starts (the run's). eval_episodes: held-out episodes, unless `--episodes` says.
    chunk: copies that are stepped together, one chunk after the other under the same policy, which bounds the memory of a step.
    scale_reward: as in the task gym. Checkpoints hold the states themselves. Given and held-out starts have seeds of their own.
    """

    metric = "return"
    channels = ("return",)
    unit = "environment steps"
    continuing = True
    starts = None
    default_policy = "mlp"

    def __init__(
        self,
        name: str,
        *,
        envs: Size[int] = 64,
        seed: Seed = 0,
        chunk: Count[int] = 4096,
        scale_reward: bool | None = None,
        eval_episodes: Annotated[int, Range(least=1, most=10_000)] = 20,
    ):
        from gymnasium.spaces import Box

        if name not in ENVIRONMENTS:
            raise unknown("tensor environment", name, ENVIRONMENTS)
        if min(envs, chunk, eval_episodes) < 1:
            raise UsageError(f"tensor:{name}: envs, chunk and eval_episodes take positive numbers")
        self.name, self.env_id = f"tensor:{name}", name
        self.env = ENVIRONMENTS[name]()
        self.observation_space, self.action_space = self.env.observation_space, self.env.action_space
        space = self.action_space
        self.bounds = (float(space.low.min()), float(space.high.max())) if isinstance(space, Box) else None
        self.limit = self.env.limit
        self.envs, self.seed, self.chunk, self.eval_episodes = envs, seed, chunk, eval_episodes
        self.scale_reward = scale_reward
        self.scale = None if scale_reward is False else RunningNorm(1)
        self.state = self.env.reset(torch.Generator().manual_seed(start_seed(seed, 1)), envs)
        self.total = torch.zeros(envs, dtype=torch.float64)
        """Undiscounted return of the episode every environment is in."""
        self.compiled: dict[Any, CompiledFn] = {}
        """Compiled steps, by the policy that decides."""
        self.compiles = False

    def compile_rollouts(self) -> None:
        """Make several steps of all environments one call of compiled code, where the policy's decisions are a function of tensors."""
        self.compiles = True

    def configure(self, recipe: dict[str, Any]) -> None:
        """Scale rewards or not, as the recipe says."""
        self.scale = configured_scale(self.scale, recipe)

    def rollout(self, policy: Any, requests: list[Request], seed: int) -> tuple[Trajectories, dict[str, float]]:
        """Rows of whole episodes from given starts, or `horizon` steps of every environment where all starts are None.

        A given start is a seed: the rows of its request begin in the same state, and `horizon` cuts them. Otherwise the current
        episodes continue: the steps of an environment are one row per episode, and every row is a group. Each row has `done`
        (terminal; a time limit is not), `bootstrap`, the value of its last state, and that state's observation `last`.
        """
        explore = {"random": requests[0].random, "noise": requests[0].noise}
        explore = explore if any(explore.values()) else {}
        starts = [r.start for r in requests if r.start is not None]
        if not starts:
            horizon = requests[0].horizon
            if horizon is None:
                raise UsageError(f"{self.name}: requests that continue current episodes need a horizon")
            return continue_episodes(self, policy, horizon, (seed, request_keys(requests)[0]), explore)
        if len(starts) < len(requests):
            raise UsageError(f"{self.name}: one rollout cannot mix given starts with starts that are None")
        samples = torch.tensor([r.samples for r in requests])
        limits = torch.tensor([min(r.horizon or self.limit, self.limit) for r in requests]).repeat_interleave(samples)
        state = self._begin([start_seed(self.seed, 0, start) for start in starts]).repeat_interleave(samples, 1)
        group = torch.arange(len(requests)).repeat_interleave(samples)
        rng = RowRng(request_seeds(seed, requests), SPAN)
        return play_episodes(self, policy, state, limits, group, rng, explore)

    def evaluate(self, policy: Any, seed: int, episodes: int | None = None) -> dict[str, float]:
        """Mean, standard deviation and mean length of greedy episodes from held-out seeds, the same ones every time."""
        episodes = self.eval_episodes if episodes is None else episodes
        state = self._begin([start_seed(i, held_out=True) for i in range(episodes)])
        total, live = torch.zeros(episodes, dtype=torch.float64), torch.arange(episodes)
        lengths, rng = torch.zeros(episodes, dtype=torch.float64), RowRng(held_out_seeds(seed, episodes), SPAN)
        while len(live):
            rng.at(int(lengths[live[0]]), live)
            decided = policy.act(self.env.observe(state), rng, greedy=True, valued=False)
            state, reward, terminated, truncated = self.env.step(state, self.env_action(decided.action))
            total[live] += reward
            lengths[live] += 1
            on = ~(terminated | truncated)
            state, live = state[:, on], live[on]
        measures = {"return": total.mean(), "return_std": total.std(correction=0), "length": lengths.mean()}
        return {name: float(value) for name, value in measures.items()}

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
        """Return the states of the environments, and the scale of the rewards."""
        return {
            "state": self.state.clone(),
            "total": self.total.clone(),
            "scale": self.scale.state_dict() if self.scale else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["state"].shape != self.state.shape:
            raise UsageError(
                f"{self.name}: the checkpoint has {state['state'].shape[1]} environments, the task {self.envs}; "
                "use the same number"
            )
        self.state, self.total = state["state"].clone(), state["total"].clone()
        if self.scale:
            self.scale.load_state_dict(state["scale"])

    def _begin(self, seeds: list[int]) -> State:
        """Return the state each seed starts in."""
        return torch.cat([self.env.reset(torch.Generator().manual_seed(seed), 1) for seed in seeds], 1)

    def fresh_states(self, rng: ChunkRng) -> State:
        """Return a start for every environment of a chunk."""
        return rng.gather(lambda block: self.env.reset(block.generator, block.rows), 1)

    def env_action(self, action: Shaped[Tensor, "env *component"]) -> Shaped[Tensor, "env *component"]:
        """Map decisions to the environment's actions: choices as they are, numbers from [-1, 1] onto its bounds and clipped to them."""
        if self.bounds is None:
            return action
        low, high = self.bounds
        return (low + (action + 1) / 2 * (high - low)).clamp(low, high)
