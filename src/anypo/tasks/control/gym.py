"""Any Gymnasium environment as a task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from anypo.errors import RunError, UsageError
from anypo.policies.control.normalize import RunningNorm
from anypo.policies.weights import first_bad_weight
from anypo.ranges import Filled, Range, Seed
from anypo.rng import SPAN, EpisodeRng, RowRng, held_out_seeds, request_keys, request_seeds, row_seeds
from anypo.tasks.control.env_copy import EnvCopy, stack_masks
from anypo.tasks.control.first_calls import describe_mismatch
from anypo.tasks.control.make_env import make_env, registered_spec
from anypo.tasks.control.recipes import loop_settings
from anypo.tasks.control.rollout_log import RolloutLog
from anypo.tasks.control.starts import configured_scale, further_bootstraps, reward_factor, scales_reward, start_seed
from anypo.tasks.control.workers import Copy, Workers
from anypo.tasks.control.wrappers import Wrappers, wrap_env
from anypo.types import Request, Trajectories

ENVS = 8
"""Environments of a method that does not replay transitions."""


NO_LIMIT = 1000
"""Decisions after which an episode is cut where neither the environment nor the request has a limit."""


class Gym:
    """`envs` copies of a Gymnasium environment, stepped together under one call of the policy per step.

    Every episode starts from an explicit seed, so an episode is its seed and its actions: groups share a start state
    by sharing the seed, and a checkpoint restores an episode by playing it again. The copies are stepped one by one
    rather than through a Gymnasium vector environment: only those whose episode runs are stepped, without autoreset.

    env: an id, or a specification with settings of its own. envs: by default 8, and 1 for methods that replay transitions. seed: of
    the starts (the run's). env_kwargs: keywords of the environment, `--task.env_kwargs.NAME value`. wrappers: names of
    gymnasium.wrappers, MODULE:CLASS or FILE.py:CLASS, each alone or as {NAME: {KEYWORD: value}}; the first is the innermost.
    workers: processes that hold and step the environments (none: this one). eval_episodes: held-out episodes, unless `--episodes`
    says. scale_reward: divide the learner's rewards by rms(r) / (1 - gamma) (none: unless the method replays transitions). That
    estimate includes this rollout, so that discounted returns lie about within +-1 at once, which PPO's value clip of 0.2 presumes;
    metrics and evaluation are in raw rewards. info_rewards: keys of the environment's `info` whose numbers are reward channels,
    `reward.KEY`, on the scale of the reward.
    """

    metric = "return"
    channels = ("return",)
    unit = "environment steps"
    continuing = True
    starts = None
    default_policy = "mlp"

    def __init__(
        self,
        env: Any,
        *,
        envs: Annotated[int, Range(least=1, most=10_000)] | None = None,
        seed: Seed = 0,
        scale_reward: bool | None = None,
        env_kwargs: dict[str, Any] | None = None,
        wrappers: Wrappers | None = None,
        workers: Annotated[int, Range(least=1, most=512)] | None = None,
        eval_episodes: Annotated[int, Range(least=1, most=10_000)] = 20,
        info_rewards: Sequence[Filled[str]] = (),
    ):
        self.spec, self.env_id, self.env_kwargs = env, env if isinstance(env, str) else env.id, env_kwargs or {}
        self.name = f"gym:{self.env_id}"
        self.seed, self.eval_episodes, self.wrappers = seed, eval_episodes, wrappers
        self.info_rewards = tuple(info_rewards)
        self.requested_envs, self.scale_reward = envs, scale_reward
        self.workers, first, count = None, self._make(), envs or ENVS
        if workers is None:
            self.copies: list[Copy] = [first, *self._make_several(count - 1)]
        else:
            self.spec = registered_spec(env)  # what was registered here is not registered there
            self.workers = Workers(self.name, self._make, min(workers, count))
            self.copies = self._make_several(count)
        self.eval_copies: list[Copy] = []
        env = first.env
        self.env_spec = env.spec
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self.limit = (env.spec.max_episode_steps if env.spec else None) or NO_LIMIT
        self.scale = None if scale_reward is False else RunningNorm(1)
        self.episodes = 0
        """Episodes begun by requests that continue current episodes: the position in the stream of seeds."""

    @property
    def envs(self) -> int:
        return len(self.copies)

    def configure(self, recipe: dict[str, Any]) -> None:
        """Use as many environments as the recipe says, and scale their rewards or not."""
        envs = recipe["envs"]
        self.copies = [*self.copies[:envs], *self._make_several(max(0, envs - self.envs))]
        self.scale = configured_scale(self.scale, recipe)

    def make_env(self, **options: Any) -> Any:
        """Make a copy of the environment in its wrappers, with further options of `gymnasium.make`."""
        return wrap_env(self.name, self.make_inner_env(**options), self.wrappers)

    def make_inner_env(self, **options: Any) -> Any:
        """Make a copy of the environment without the wrappers."""
        return make_env(self.name, self.spec, {**self.env_kwargs, **options})

    def _make(self) -> EnvCopy:
        return EnvCopy(self.make_env(), self.name, self.info_rewards)

    def _make_several(self, count: int) -> list[Copy]:
        return [self._make() for _ in range(count)] if self.workers is None else list(self.workers.make(count))

    def rollout(self, policy: Any, requests: list[Request], seed: int) -> tuple[Trajectories, dict[str, float]]:
        """Rows of whole episodes from given starts, or `horizon` steps of every environment where all starts are None.

        A given start is a reset seed derived from it: the rows of its request share the start state, and `horizon` cuts
        them. Otherwise the current episodes continue: the steps of an environment are cut into one row per episode, and
        every row is a group. Each row has `done` (terminal; a time limit is not) and `bootstrap`, the value of its last state.
        """
        episodes = [
            (r.start, r.samples, min(r.horizon or self.limit, self.limit)) for r in requests if r.start is not None
        ]
        explore = {"random": requests[0].random, "noise": requests[0].noise}
        explore = explore if any(explore.values()) else {}
        if not episodes:
            horizon = requests[0].horizon
            if horizon is None:
                raise UsageError(f"{self.name}: requests that continue current episodes need a horizon")
            rng = RowRng(row_seeds(seed, request_keys(requests)[:1], [self.envs]), min(horizon, SPAN))
            with policy.frozen_for_rollout():
                log = self.play(policy, self.copies, self._fresh(), rng, steps=horizon, explore=explore)
            group = torch.arange(len(log.done))
        elif len(episodes) < len(requests):
            raise UsageError(f"{self.name}: one rollout cannot mix given starts with starts that are None")
        else:
            for copy in self.copies:
                copy.over = True
            starts = ((start_seed(self.seed, 0, start), limit) for start, n, limit in episodes for _ in range(n))
            rng = EpisodeRng(request_seeds(seed, requests))
            with policy.frozen_for_rollout():
                log = self.play(policy, self.copies, starts, rng, explore=explore)
            group = torch.arange(len(requests)).repeat_interleave(torch.tensor([r.samples for r in requests]))
        return make_rows(self, policy, log, group), log.metrics(self.info_rewards)

    def evaluate(self, policy: Any, seed: int, episodes: int | None = None) -> dict[str, float]:
        """Mean, standard deviation and mean length of greedy episodes from held-out seeds, the same ones every time."""
        episodes = self.eval_episodes if episodes is None else episodes
        self.eval_copies += self._make_several(max(0, min(episodes, self.eval_episodes) - len(self.eval_copies)))
        starts = ((start_seed(i, held_out=True), self.limit) for i in range(episodes))
        rng = EpisodeRng(held_out_seeds(seed, episodes))
        log = self.play(policy, self.eval_copies, starts, rng, greedy=True)
        returns, lengths = np.array(log.finished).T
        channels = {name: sum(x) / episodes for name, x in log.by_channel(self.info_rewards).items()}
        measures = {
            "return": float(returns.mean()),
            "return_std": float(returns.std()),
            "length": float(lengths.mean()),
        }
        return measures | channels

    def recipe(self, traits: dict[str, Any]) -> dict[str, Any]:
        """Loop settings (minibatch in decisions, steps in environment steps), and what `configure` takes."""
        envs = self.requested_envs or (1 if traits.get("replays") else ENVS)
        return {"envs": envs, "scale_reward": scales_reward(self.scale_reward, traits)} | loop_settings(
            self.env_id, self.observation_space, self.limit, traits, envs
        )

    def state_dict(self) -> dict[str, Any]:
        """How to reach the states of the simulators again, as they cannot be stored."""
        return {
            "episodes": self.episodes,
            "scale": self.scale.state_dict() if self.scale else None,
            "seats": [copy.state_dict() for copy in self.copies],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Play the unfinished episodes again; RunError where an environment does not reach its state."""
        if len(state["seats"]) != len(self.copies):
            raise UsageError(
                f"{self.name}: the checkpoint has {len(state['seats'])} environments, the task {len(self.copies)}; "
                "use the same number"
            )
        self.episodes = state["episodes"]
        if self.scale:
            self.scale.load_state_dict(state["scale"])
        for i, (copy, saved) in enumerate(zip(self.copies, state["seats"], strict=True)):
            if not copy.replay(saved):
                raise RunError(
                    f"{self.name}: playing the unfinished episode of environment {i} again did not reach the saved "
                    "observation; the simulator is not deterministic or has another version, so start a new run"
                )

    def _fresh(self) -> Iterator[tuple[int, None]]:
        while True:
            self.episodes += 1
            yield start_seed(self.seed, 1, self.episodes), None

    def play(
        self,
        policy: Any,
        copies: list[Copy],
        starts: Iterator[tuple[int, int | None]],
        rng: RowRng,
        *,
        steps: int | None = None,
        greedy: bool = False,
        explore: dict[str, float] | None = None,
    ) -> RolloutLog:
        """Step the copies together; one whose episode is over takes the next (seed, limit), until there is none.

        Rows are numbered in the order of `starts`, after those of the episodes already under way.
        rng: numbers of a seat each with `steps`, of a row each without.
        """
        log = RolloutLog()
        for copy in copies:
            if not copy.over:
                log.open(copy)
        while steps is None or len(log.obs) < steps:
            over = [copy for copy in copies if copy.over]
            if over and (begun := list(islice(starts, len(over)))):
                copies[0].reset_all(over[: len(begun)], begun)
                for copy in over[: len(begun)]:
                    log.open(copy)
            live = [copy for copy in copies if not copy.over]
            if not live:
                break
            obs = self._encode(policy, live)
            mask = stack_masks(live)
            begin_decision(rng, live, len(log.obs))
            decided = policy.act(obs, rng, greedy=greedy, action_mask=mask, valued=False, **(explore or {}))
            if not greedy:  # evaluation needs outcomes only
                log.add_decisions(obs, mask, decided)
            log.row += [copy.row for copy in live]
            log.reward += live[0].step_all(live, policy.env_action(decided.action))
            if self.info_rewards:
                log.channels += [copy.channel_rewards for copy in live]
            for copy in live:
                if copy.over:
                    log.close(copy, self._encode(policy, [copy])[0])
        for copy in copies:
            if not copy.over:
                log.close(copy, self._encode(policy, [copy])[0])
        check_finite(self.name, log, policy)
        return log

    def _encode(self, policy: Any, copies: list[Copy]) -> Tensor:
        try:
            return torch.from_numpy(policy.encode_batch([copy.observation for copy in copies]))
        except (TypeError, ValueError, KeyError, IndexError):
            for copy in copies:
                if problem := describe_mismatch(self.observation_space, copy.observation):
                    at = f"step {copy.length} of an episode"
                    raise UsageError(f"{self.name} gave an observation at {at} that {problem}") from None
            raise


def make_rows(task: Gym, policy: Any, log: RolloutLog, group: Tensor) -> Trajectories:
    """Return the log as padded rows. Where an action is several decisions, they follow each other, with the reward on the last
    and `segment` numbering the environment's steps.

    Args:
        task: its running scale of rewards is updated.
        policy: evaluates the observations.
        log: of the rollout.
        group: of the rows.
    """
    (obs, logp, trace), (row, step) = log.decisions(), log.steps()
    draws = logp.shape[1]
    at = row.repeat_interleave(draws), (draws * step[:, None] + torch.arange(draws)).flatten()
    shape = len(log.done), draws * (int(step.max()) + 1)

    def rows(x: Tensor) -> Tensor:
        x = x.flatten(0, 1)
        return x.new_zeros((*shape, *x.shape[1:])).index_put(at, x)

    reward = torch.tensor(log.reward)
    rewards = {f"reward.{name}": torch.tensor(x) for name, x in log.by_channel(task.info_rewards).items()}
    if task.scale:
        factor = reward_factor(task.scale, reward)
        reward, rewards = reward * factor, {name: x * factor for name, x in rewards.items()}
    last = torch.arange(draws) == draws - 1
    done = torch.tensor(log.done)
    final = torch.stack(log.last)
    value, bootstrap = policy.value_of(obs), policy.value_of(final)
    return Trajectories(
        logp_old=rows(logp),
        value=None if value is None else rows(value[:, None].expand(-1, draws)),
        mask=rows(torch.ones(len(step), draws, dtype=torch.bool)),
        reward=rows(torch.where(last, reward[:, None], 0.0)),
        group=group,
        segment=rows(step[:, None].expand(-1, draws)) if draws > 1 else None,
        bootstrap=torch.zeros(len(done)) if bootstrap is None else bootstrap.masked_fill(done, 0.0),
        done=done,
        trace={name: rows(x) for name, x in trace.items()},
        extra={
            "last": final,
            **log.last_masks(),
            **{name: rows(torch.where(last, x[:, None], 0.0)) for name, x in rewards.items()},
            **further_bootstraps(policy, final, done),
        },
    )


def check_finite(name: str, log: RolloutLog, policy: Any) -> None:
    """Refuse observations and rewards that are not finite; those that weights which are not finite lead to are left to the update.

    Args:
        name: of the task.
        log: of the rollout.
        policy: that played it.

    Raises:
        RunError: naming the step of the episode.
    """
    if (step := log.first_bad_observation()) is not None and first_bad_weight(policy) is None:
        raise RunError(f"{name} gave an observation that is not finite at step {step} of an episode")
    finite = np.abs(log.reward) <= np.finfo(np.float32).max
    if not finite.all():
        bad = int(np.flatnonzero(~finite)[0])
        raise RunError(f"{name} gave the reward {log.reward[bad]} at step {log.steps()[1][bad]} of an episode")
    if not np.isfinite(log.channels).all():
        bad = int(np.flatnonzero(~np.isfinite(log.channels).all(1))[0])
        raise RunError(f"{name} gave the channels {log.channels[bad]} at step {log.steps()[1][bad]} of an episode")


def begin_decision(rng: RowRng, copies: list[Copy], step: int) -> None:
    """Go on to the numbers of the next decision: of every row where episodes are rows, else of every environment.

    Args:
        rng: of the rollout.
        copies: those that are stepped.
        step: decisions of the rollout so far.
    """
    if isinstance(rng, EpisodeRng):
        rng.at_each(np.array([copy.length for copy in copies]), np.array([copy.row for copy in copies]))
    else:
        rng.at(step)
