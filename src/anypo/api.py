"""Train, load and use runs from Python: what the command line does, with objects where it has names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anypo.config import Config, from_dict
from anypo.errors import OBJECT, UsageError
from anypo.flags import assign
from anypo.loops.complete import complete_prompt
from anypo.loops.evaluate import held_out
from anypo.loops.learn import learn
from anypo.method.method import Method
from anypo.method.registry import ENTRIES
from anypo.policies.control.spaces import is_batch, space_from_dict
from anypo.protocols import HasActionSpace, Task
from anypo.report.console import finish, records, result_of
from anypo.rng import BatchRng
from anypo.runs.export import export_policy
from anypo.runs.folder import continue_run, create, reopen, saved_config
from anypo.runs.inputs import read_inputs
from anypo.runs.objects import Objects
from anypo.runs.run import Run
from anypo.tasks.control.factory import MadeEnvironments, SpacesOnly, factory_of
from anypo.tasks.control.video import film_episode
from anypo.types import MASK

Callback = Callable[[dict[str, Any]], None]


def train(
    method: str | Method = "grpo",
    *,
    task: Any = "sums",
    policy: Any = None,
    reward: Any = None,
    callback: Callback = lambda record: None,
    **settings: Any,
) -> TrainedRun:
    """Train a method in a folder of its own, as `anypo train` does.

    Args:
        method: an id, FILE.py:NAME, or a Method.
        task: a name of `anypo tasks`; a Gymnasium environment, or a class or function that makes one; rows with a `prompt` (a
            list of dictionaries, a `datasets.Dataset`); a Task; or a dictionary of the task's options with one of these under
            `name`, `env` or `rows`.
        policy: a name of `anypo tasks`, a dictionary with options, or a pair (transformers model, tokenizer).
        reward: of a text task: a function (prompts, completions, **columns) -> scores, a name, or a list of such.
        callback: called with the record of every batch, a dictionary of metrics.
        settings: keys of the YAML file, `steps=...`, `out=...`, `seed=...`, `trust={"high": 0.3}`.

    Raises:
        UsageError: something cannot be done as asked.
        RunError: the run had to stop.

    Example:
        >>> run = anypo.train("ppo", task="gym:CartPole-v1", steps=20_000)
        >>> run.predict(observation)
    """
    values = nest(settings)
    method_name, own_method = name_method(method)
    task_values, own_task, rewards = name_task(task, reward, int(values.get("seed", 0)))
    policy_values, own_policy = name_policy(policy)
    config = from_dict({**values, "method": method_name, "task": task_values, "policy": policy_values})
    return finish_training(create(config, Objects(own_method, own_task, own_policy, rewards)), callback)


def resume(
    folder: str | Path,
    steps: int | None = None,
    *,
    method: Method | None = None,
    task: Any = None,
    policy: Any = None,
    reward: Any = None,
    callback: Callback = lambda record: None,
    allow_code: bool = False,
) -> TrainedRun:
    """Train a run further from its newest checkpoint, as `anypo resume` does.

    Args:
        folder: the run's.
        steps: a new total length.
        method, task, policy, reward: the objects it was trained with, where these were given from Python.
        callback: called with the record of every batch.
        allow_code: execute the run's Python files although they are not those it started with.
    """
    folder = Path(folder)
    objects = objects_of(folder, method, task, policy, reward)
    result = result_of(folder)
    if result and (steps or 0) <= result["done"]:
        return TrainedRun(reopen(folder, objects=objects, allow_code=allow_code), folder)
    return finish_training(continue_run(folder, steps, objects, allow_code=allow_code), callback)


def load(
    folder: str | Path,
    checkpoint: str = "last",
    *,
    method: Method | None = None,
    task: Any = None,
    policy: Any = None,
    reward: Any = None,
    allow_code: bool = False,
) -> TrainedRun:
    """Load a run as one of its checkpoints left it.

    Args:
        folder: the run's.
        checkpoint: `last`, `best`, or the number of a batch.
        method, task, policy, reward: the objects it was trained with, where these were given from Python; `predict` does not
            need the environment.
        allow_code: execute the run's Python files although they are not those it started with.
    """
    folder = Path(folder)
    objects = objects_of(folder, method, task, policy, reward)
    spaces = read_inputs(folder)["spaces"] if objects.task is None else None
    if spaces is not None:
        name = saved_config(folder).task["name"]
        objects = replace(objects, task=SpacesOnly(name, *(space_from_dict(spaces[k]) for k in ("obs", "action"))))
    return TrainedRun(reopen(folder, checkpoint, objects, allow_code=allow_code), folder)


def compare(
    *methods: str, task: str, seeds: int = 5, jobs: int = 1, out: str | Path | None = None, **settings: Any
) -> dict[str, Any]:
    """Compare methods on equal seeds, as `anypo compare` does.

    Args:
        methods: ids, each with settings of its own behind a colon if it has any, `ppo:trust.high=0.3`.
        task: a name of `anypo tasks`.
        seeds: runs per method.
        jobs: runs at once.
        out: folder of the runs.
        settings: keys of the YAML file, of all runs.

    Returns:
        The content of table.json: interquartile means, intervals, probabilities of improvement; of one seed its values alone.
    """
    from anypo.report.compare import run_comparison

    return run_comparison(
        methods,
        {**nest(settings), "task": task},
        seeds=seeds,
        jobs=jobs,
        folder=None if out is None else Path(out),
        say=lambda line: None,
    )


class TrainedRun:
    """A run at one of its checkpoints: `predict`, `sample`, `evaluate`, `metrics`, `result`."""

    def __init__(self, run: Run, folder: Path):
        self.run, self.folder = run, folder
        self.random = torch.Generator().manual_seed(run.config.seed)

    def __repr__(self) -> str:
        return f"TrainedRun({str(self.folder)!r}, batch={self.run.batch})"

    @property
    def config(self) -> Config:
        """The run's complete configuration."""
        return self.run.config

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The records of all batches."""
        return records(self.folder)

    @property
    def result(self) -> dict[str, Any] | None:
        """Content of result.json, the measure before and after; None for a run that is not finished."""
        return result_of(self.folder)

    def predict(self, obs: Any, deterministic: bool = True, action_mask: Any = None) -> Any:
        """Return the policy's action for an observation, as the environment takes it; for a batch of observations one row each.

        Args:
            obs: an observation of the task's space, or a batch of them.
            deterministic: the mode instead of a sample.
            action_mask: allowed choices, True or 1, with the shape of `obs`'s batch; by default the `action_mask` of a
                dictionary.

        Raises:
            UsageError: the run is none of control.
        """
        task, policy = self.run.task, self.run.policy
        if not isinstance(task, HasActionSpace):
            raise UsageError(f"{self.folder} is a run of {task.name}, which has no actions; use sample(prompt)")
        batch = is_batch(task.observation_space, obs)
        rows = list(obs) if batch else [obs]
        encoded = torch.from_numpy(policy.encode_batch(rows))
        if action_mask is None and isinstance(rows[0], dict):
            action_mask = None if MASK not in rows[0] else [row[MASK] for row in rows]
        mask = None if action_mask is None else torch.as_tensor(np.atleast_2d(np.asarray(action_mask, bool)))
        with torch.no_grad():
            decisions = policy.act(
                encoded, BatchRng(self.random, len(rows)), greedy=deterministic, action_mask=mask, valued=False
            )
        actions = policy.env_action(decisions.action)
        return actions if batch else actions[0]

    def sample(
        self,
        prompt: str | Sequence[dict[str, Any]],
        n: int = 1,
        *,
        greedy: bool = False,
        max_new: int | None = None,
        seed: int = 0,
    ) -> list[str]:
        """Return completions of a prompt.

        Args:
            prompt: text, or chat messages.
            n: completions.
            greedy: the likeliest token every time.
            max_new: tokens at most.
            seed: of the draws.

        Raises:
            UsageError: the run has no language model.
        """
        _, completions = complete_prompt(self.run, prompt, n, greedy=greedy, max_new=max_new, seed=seed)
        return [self.run.policy.decode(ids) for ids in completions]

    def export(self, to: str = "torch", out: str | Path | None = None) -> Path:
        """Write the greedy action of a control policy as a program that loads without anypo, as `anypo export` does.

        Args:
            to: torch, for `torch.export.load`; or onnx.
            out: the file; None: policy.pt2 or policy.onnx in the run's folder.

        Returns:
            The file.
        """
        return export_policy(self.run, self.folder, to, None if out is None else Path(out))

    def evaluate(
        self, episodes: int | None = None, seed: int | None = None, video: str | Path | None = None
    ) -> dict[str, float]:
        """Measure the greedy policy on held-out starts.

        Args:
            episodes: held-out episodes or prompts; None: the run's own number.
            seed: of the evaluation; None: the run's.
            video: file of a film of the first episode, where Gymnasium draws the environment.
        """
        config = self.run.config
        before = config.episodes, config.seed
        config.episodes, config.seed = episodes or config.episodes, config.seed if seed is None else seed
        try:
            if video is not None:
                film_episode(self.run.task, self.run.policy, config.seed, Path(video))
            return {name.removeprefix("eval/"): value for name, value in held_out(self.run).items()}
        finally:
            config.episodes, config.seed = before


def nest(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings as the YAML file holds them: dotted keys as nested dictionaries, paths as text."""
    values: dict[str, Any] = {}
    for key, value in settings.items():
        assign(values, key, str(value) if isinstance(value, Path) else value)
    return values


def finish_training(run: Run, callback: Callback) -> TrainedRun:
    """Train a run to its end and write its result; one that fails before its first batch leaves no folder."""
    folder = run.folder
    if folder is None:
        raise UsageError("a run without a folder has nowhere to write its result")
    try:
        learn(run, callback)
    except BaseException:
        if run.claim and not run.begun:
            run.claim.withdraw()
        raise
    finish(run)
    return TrainedRun(run, folder)


def objects_of(folder: Path, method: Method | None, task: Any, policy: Any, reward: Any) -> Objects:
    """Return objects that are given again.

    Args:
        folder: of the run.
        method, task, policy, reward: as for `train`.
    """
    config = saved_config(folder)
    own_task, rewards = None, ()
    if task is not None:
        options = {key: value for key, value in config.task.items() if key not in ("name", "reward")}
        named = task if isinstance(task, dict) else {task_key(task): task}
        _, own_task, rewards = name_task({**options, **named}, reward, config.seed)
    elif reward is not None:
        rewards = tuple(reward) if isinstance(reward, list) else (reward,)
    return Objects(method, own_task, None if policy is None else name_policy(policy)[1], rewards)


def name_method(method: str | Method) -> tuple[str, Method | None]:
    """Return a method's name in config.yaml, and the object where the name does not give it."""
    if isinstance(method, str):
        return method, None
    known = ENTRIES.get(method.card.id)
    if isinstance(known, Method) and known.stages == method.stages and known.later == method.later:
        return method.card.id, None
    return f"{OBJECT}{method.card.id}", method


def task_key(task: Any) -> str:
    """Return the key of a task in a dictionary of options: `name`, `rows`, `env` or `task`."""
    if isinstance(task, str):
        return "name"
    if isinstance(task, Task):
        return "task"
    return "rows" if isinstance(task, list) or hasattr(task, "column_names") else "env"


def name_task(task: Any, reward: Any, seed: int) -> tuple[dict[str, Any], Any, tuple[Any, ...]]:
    """Return a task's values in config.yaml, the object where they do not give it, and rewards for a task that is named.

    Args:
        task, reward: as for `train`.
        seed: of the run.
    """
    options = dict(task) if isinstance(task, dict) else {task_key(task): task}
    rewards = [] if reward is None else reward if isinstance(reward, list) else [reward]
    named = [r if isinstance(r, str) else f"{OBJECT}{getattr(r, '__name__', type(r).__name__)}" for r in rewards]
    written = {"reward": named} if rewards else {}
    if "name" in options:
        return {**options, **written}, None, tuple(rewards) if any(n.startswith(OBJECT) for n in named) else ()
    if "task" in options:
        ready = options.pop("task")
        return {"name": f"{OBJECT}{ready.name}"}, ready, ()
    if "rows" in options:
        from anypo.tasks.text.jsonl import make_jsonl_task

        rows = options.pop("rows")
        if hasattr(options.get("heldout"), "column_names"):  # config.yaml holds lists, no tables
            options["heldout"] = [dict(row) for row in options["heldout"]]
        return {"name": f"{OBJECT}rows", **options, **written}, make_jsonl_task(rows, rewards, **options), ()
    if "env" in options:
        make, name = factory_of(options.pop("env"))
        return {"name": f"{OBJECT}{name}", **options}, MadeEnvironments(make, name, **{"seed": seed, **options}), ()
    raise UsageError("a task given as a dictionary needs one of the keys `name`, `env` and `rows`")


def name_policy(policy: Any) -> tuple[dict[str, Any], Callable[..., Any] | None]:
    """Return a policy's values in config.yaml, and what makes it where they do not."""
    if policy is None or isinstance(policy, str | dict):
        return {} if policy is None else {"name": policy} if isinstance(policy, str) else policy, None
    if not (isinstance(policy, tuple) and len(policy) == 2):
        raise UsageError("a policy is a name, a dictionary with its options, or a pair (transformers model, tokenizer)")
    model, tokenizer = policy
    name = getattr(model, "name_or_path", "") or type(model).__name__
    return {"name": f"{OBJECT}{name}"}, partial(wrap_model, model, tokenizer, name)


def wrap_model(model: Any, tokenizer: Any, name: str, *, value: Any, seed: int, networks: Any = None) -> Any:
    """Return the policy around a loaded language model.

    Args:
        model, tokenizer: of transformers.
        name: for messages.
        value: a value head, or the names of several.
        seed: of the networks' weights.
        networks: those it carries beside its own, by name.
    """
    from anypo.policies.language.model import LanguageModel

    return LanguageModel(model, tokenizer, value=value, name=name, networks=networks, seed=seed)
