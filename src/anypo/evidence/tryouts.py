"""Try an environment, a task or a policy from elsewhere: what each protocol asks for is called once, and a batch is trained."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anypo.config import Config
from anypo.errors import RunError, UsageError
from anypo.loops.learn import learn
from anypo.method.method import Method
from anypo.policies import PolicySpec, kind_of
from anypo.protocols import HasRecords, Policy, Task
from anypo.runs.build import build
from anypo.runs.objects import Objects
from anypo.runs.run import Run
from anypo.tasks import entry_of, lacking, make_task
from anypo.tasks.control.factory import MadeEnvironments, factory_of
from anypo.types import Trajectories

TRIED_STEPS = 20
"""Steps an environment is tried for."""
ACTS = ("act", "encode", "encode_batch", "env_action", "frozen_for_rollout", "parameters", "state_dict", "value_of")
"""What tasks and runs call of a policy beside the protocol `Policy`."""
TRIED_TASKS = ("bandit", "gym:CartPole-v1", "gym:Pendulum-v1")
"""Tasks that a policy is tried in where it can be made: with choices, and with numbers, as observations and actions."""


@dataclass
class Findings:
    """What was tried of an object and holds, and one sentence for each thing that is missing or fails."""

    kind: str
    holds: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def demand(self, condition: Any, sentence: str) -> bool:
        """Note a sentence unless the condition holds; returns the condition."""
        if not condition:
            self.missing.append(sentence)
        return bool(condition)

    def demand_members(self, absent: list[str], remedy: str) -> None:
        """Note the members that an object does not have, if there are any, and what to do."""
        self.demand(not absent, f"it lacks {', '.join(f'`{name}`' for name in absent)}; {remedy}")

    def attempt(self, what: str, call: Callable[[], Any]) -> Any:
        """Return what a call of the user's code gives; None where it raises, which is noted.

        Args:
            what: subject of the sentence.
            call: without arguments.
        """
        try:
            return call()
        except (UsageError, RunError) as error:
            self.missing.append(f"{what}: {error}")
        except Exception as error:  # any code of a user's
            self.missing.append(f"{what} raises {type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
        return None

    def train(self, run: Run | None) -> None:
        """Train one batch, if there is a run."""
        before = len(self.missing)
        if run is not None:
            self.attempt("training a batch", lambda: learn(run))
            if len(self.missing) == before:
                self.holds.append(f"{run.config.method} trains a batch")


def small_run(task: Any, method: Method | None = None, policy: Callable[..., Any] | None = None) -> Run:
    """Build a run of one batch in memory.

    Args:
        task: an object.
        method: what is trained with; None: reinforce.
        policy: called with the keywords value, networks and seed; None: the task's own.
    """
    name = "reinforce" if method is None else method.card.id
    return build(Config(name, {"name": task.name}, steps=1, episodes=1), objects=Objects(method, task, policy))


def try_environment(env: Any) -> Findings:
    """Try a Gymnasium environment, or what makes one: spaces, reset, steps, and whether a seed and actions decide an episode."""
    report = Findings("environment")
    make, name = factory_of(env)
    first = report.attempt("making it", make)
    if first is None:
        return report
    for space in ("observation_space", "action_space"):
        report.demand(hasattr(first, space), f"it has no {space}")
    if report.missing:
        return report
    first.action_space.seed(0)
    actions = [first.action_space.sample() for _ in range(TRIED_STEPS)]
    one = report.attempt("an episode", lambda: play(report, first, actions))
    if report.missing:
        return report
    other = report.attempt("a second episode", lambda: play(report, first, actions))
    same = repr(one) == repr(other)
    if report.demand(same, "the same seed and actions give another episode, so a run of it cannot be resumed exactly"):
        report.holds.append(f"{len(one)} steps lie in its spaces and follow from the seed and the actions")
    report.train(report.attempt("a run", lambda: small_run(MadeEnvironments(make, name, envs=1))))
    return report


def play(report: Findings, env: Any, actions: list[Any]) -> list[Any]:
    """Play an episode and note what breaks Gymnasium's interface; returns observations and rewards.

    Args:
        report: takes the sentences.
        env: the environment.
        actions: at most these.
    """
    start = env.reset(seed=0)
    if not report.demand(
        isinstance(start, tuple) and len(start) == 2 and isinstance(start[1], dict),
        "reset returns no pair (observation, info), where info is a dictionary",
    ):
        return []
    trail: list[Any] = []
    inside(report, env, start[0], "reset")
    for action in actions:
        values = env.step(action)
        if not report.demand(
            isinstance(values, tuple) and len(values) == 5,
            "step returns no five values (observation, reward, terminated, truncated, info)",
        ):
            return trail
        observation, reward, terminated, truncated, info = values
        inside(report, env, observation, "step")
        finite = isinstance(reward, numbers.Real | np.number) and bool(np.isfinite(float(reward)))
        report.demand(finite, f"step returns the reward {reward!r}; it must be a finite number")
        for name, value in (("terminated", terminated), ("truncated", truncated)):
            report.demand(
                isinstance(value, bool | np.bool_), f"step returns {name} = {value!r}; it must be True or False"
            )
        report.demand(isinstance(info, dict), "step returns an info that is no dictionary")
        trail.append((observation, reward))
        if report.missing or terminated or truncated:
            break
    return trail


def inside(report: Findings, env: Any, observation: Any, method: str) -> None:
    """Note an observation that is not in the environment's space.

    Args:
        report: takes the sentence.
        env: the environment.
        observation: as returned.
        method: that returned it.
    """
    space = env.observation_space
    report.demand(
        space.contains(observation),
        f"{method} returns {type(observation).__name__} {np.asarray(observation, object).tolist()!r:.60}, which is not in {space}",
    )


def try_task(name: str, factory: Any) -> Findings:
    """Try a task class or factory: the protocol, a rollout twice, the held-out measure, its state, a batch of training.

    Args:
        name: as typed.
        factory: makes it.
    """
    report = Findings("task")
    task = report.attempt("making it", lambda: entry_of(name.rpartition(":")[2], factory).make("", 0, {}))
    if task is None:
        return report
    report.demand_members(lacking(task, Task), "Task in anypo.protocols says what they are")
    if report.missing:
        return report
    if task.default_policy is None or isinstance(task, HasRecords):
        report.holds.append("it has what a task needs; it was not rolled out, as that needs a language model")
        return report
    run = report.attempt("a run", lambda: small_run(task))
    if run is not None:
        try_rollouts(report, run)
        report.train(run)
    return report


def try_rollouts(report: Findings, run: Run) -> None:
    """Roll a policy out twice and measure it.

    Args:
        report: takes the sentences.
        run: of the task and the policy.
    """
    task, policy = run.task, run.policy
    requests = run.pool.number(run.pool.draw(2, 2, run.want.horizon))
    state = task.state_dict()
    answer = report.attempt("rollout", lambda: task.rollout(policy, requests, 0))
    if answer is None:
        return
    if not report.demand(
        isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[0], Trajectories),
        "rollout returns no pair (Trajectories, metrics)",
    ):
        return
    rows = answer[0]
    outcomes = {name: x for name in ("score", "scores", "reward") if (x := rows.get(name)) is not None}
    report.demand(outcomes, "rows of a rollout have neither `score`, `scores` nor `reward`")
    report.demand(rows.logp_old is not None, "rows of a rollout have no `logp_old`")
    report.attempt("load_state_dict", lambda: task.load_state_dict(state))
    again = report.attempt("a second rollout", lambda: task.rollout(policy, requests, 0))
    if again is not None and outcomes and rows.logp_old is not None:
        same = all(same_rows(rows.get(name), again[0].get(name)) for name in ("logp_old", *outcomes))
        report.demand(
            same, "the same requests, seed and state give another rollout; draw random numbers by `anypo.rng`"
        )
        if same and policy.exact:
            logp = policy.evaluate(rows, {"logp"})["logp"].detach()
            off = float((logp - rows.logp_old)[rows.valid].abs().max())
            report.demand(
                off < 1e-4, f"the policy is `exact`, but evaluate and rollout differ in logp by up to {off:.2g}"
            )
    measures = report.attempt("evaluate", lambda: task.evaluate(policy, 0, 1))
    if measures is not None:
        report.demand(task.metric in measures, f"evaluate returns no {task.metric!r}, the task's metric")
    if not report.missing:
        report.holds.append(f"a rollout of {rows.shape[0]} rows can be repeated; {task.metric} is measured")


def same_rows(one: Tensor | None, other: Tensor | None) -> bool:
    """Return whether two fields of batches are equal to the last bit."""
    return one is not None and other is not None and torch.equal(one, other)


def try_policy(name: str, factory: Any) -> Findings:
    """Try a policy class or factory in each of TRIED_TASKS that it can be made for: the protocol, a rollout twice, a batch of training.

    Args:
        name: as typed.
        factory: makes it.
    """
    report, refused = Findings("policy"), []
    for place in TRIED_TASKS:
        trial = Findings("policy")
        task = make_task({"name": place}, seed=0)
        make = partial(make_for, name, factory, task)
        policy = trial.attempt(f"making it for {place}", lambda make=make: make(value=(), networks={}, seed=0))
        if policy is None:
            refused += trial.missing
            continue
        members = [*lacking(policy, Policy), *(member for member in ACTS if not hasattr(policy, member))]
        trial.demand_members(members, "the base class ActorCritic of anypo.policies.control.actor_critic has them")
        run = None if trial.missing else trial.attempt("a run", lambda t=task, m=make: small_run(t, policy=m))
        if run is not None:
            try_rollouts(trial, run)
            trial.train(run)
        report.holds += [f"{place}: {sentence}" for sentence in trial.holds]
        report.missing += [f"{place}: {sentence}" for sentence in trial.missing]
    report.missing += [] if report.holds or report.missing else refused
    return report


def make_for(name: str, factory: Any, task: Any, *, value: Any, networks: Any, seed: int) -> Any:
    """Make a policy for a task.

    Args:
        name, factory: of the policy.
        task: where it acts.
        value, networks, seed: as `policies.make_policy` passes them.
    """
    return kind_of(name, factory).build(PolicySpec(name, {}, task, value, networks, seed))
