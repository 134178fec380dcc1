"""What the loop expects of policies, tasks and start pools."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from anypo.rng import Rng
from anypo.types import Request, Trajectories


@dataclass(frozen=True)
class BatchSpec:
    """How much one batch should hold: `requests` starts with `samples` rows each, `horizon` decisions per row at most."""

    requests: int
    samples: int
    horizon: int | None = None


@runtime_checkable
class Pool(Protocol):
    """Start states in a reproducible order; the position survives checkpoints, and so do rows left unfinished.
    continuing: its requests continue the current episodes. decisions: how many were collected so far.
    batches: number of the present batch, from 1."""

    continuing: bool
    unfinished: list[Trajectories]
    decisions: int
    batches: int

    def draw(self, requests: int, samples: int, horizon: int | None = None) -> list[Request]: ...


@runtime_checkable
class Policy(Protocol):
    """Samples decisions (each kind in its own way) and evaluates given ones again.

    exact: log-probs kept from sampling equal a fresh evaluation at the same parameters up to rounding.
    independent: each decision can be evaluated alone, so a batch may be cut into single decisions.
    """

    exact: bool
    independent: bool

    @property
    def functionals(self) -> frozenset[str]:
        """What `evaluate` can give: registered functionals, the names of its value heads, the outputs of value networks."""
        ...

    def evaluate(
        self, b: Trajectories, want: Collection[str], *, layer: int | None = None, temperature: float | None = None
    ) -> dict[str, Float[Tensor, "row step"]]:
        """Return the named functionals of the decisions in `b.trace`, at current parameters; read after block `layer`, of the
        distribution at another `temperature` than that of sampling."""
        ...

    def ablated(self, b: Trajectories, share: float, generator: torch.Generator) -> Trajectories:
        """b with each unit of its input (prompt token, feature) hidden independently with probability `share`."""
        ...

    def observe(self, b: Trajectories) -> None:
        """Learn input statistics from a batch, once, after the batch has been used."""
        ...


@runtime_checkable
class Task(Protocol):
    """Starts, a way to roll a policy out from them, and a held-out measure.

    name: as typed on the command line. metric: name of the held-out measure. channels: names of the reward channels.
    starts: number of training starts (None: unlimited). unit: what the length of a run counts ("batches",
    "environment steps"). continuing: requests may continue current episodes, so rows need not be whole episodes.
    default_policy: what it is trained with unless another policy is chosen (None: one has to be).
    """

    name: str
    metric: str
    channels: tuple[str, ...]
    starts: int | None
    unit: str
    continuing: bool
    default_policy: str | None

    def rollout(self, policy: Any, requests: list[Request], seed: int) -> tuple[Trajectories, dict[str, float]]:
        """Finished, scored rows, requests in order and their samples together, with `group` = index of the request;
        and metrics of the rollout. What is random depends on the seed, the number of the request and the row's place in it
        (`anypo.rng`). Requests whose start is None continue current episodes.
        A task with demonstrations has a method `demonstrate` beside it, which answers requests for them (`expert`)."""
        ...

    def evaluate(self, policy: Any, seed: int, episodes: int | None = None) -> dict[str, float]:
        """Greedy performance on held-out starts; holds at least `metric`."""
        ...

    def recipe(self, traits: dict[str, Any]) -> dict[str, Any]:
        """Loop settings that suit this task: lr, requests, samples, horizon, epochs, minibatches, steps, ... The task stays as it is."""
        ...

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class HasActionSpace(Protocol):
    """A control task: the policy acts in a Gymnasium space."""

    name: str
    observation_space: Any
    action_space: Any


@runtime_checkable
class Prepares(Protocol):
    """A task that checks the policy before the first batch: every prompt has to fit the model."""

    def prepare(self, policy: Any) -> None: ...


@runtime_checkable
class Compiles(Protocol):
    """A policy or task that can compile its rollouts."""

    def compile_rollouts(self) -> None: ...


@runtime_checkable
class HasTransitions(Protocol):
    """A task with recorded transitions: columns by name."""

    def transitions(self) -> dict[str, Tensor]: ...


@runtime_checkable
class StoresObservations(Protocol):
    """An encoder of observations as a store of transitions keeps them: bytes of each, and what the networks read."""

    nbytes: int

    def expand(self, obs: Tensor) -> Tensor: ...


@runtime_checkable
class HasDemonstrations(Protocol):
    """A task that answers requests with demonstrations."""

    def demonstrate(self, policy: Any, requests: list[Request]) -> Trajectories: ...


@runtime_checkable
class HasRecords(Protocol):
    """A task with training and held-out records."""

    records: list[Any]
    heldout: list[Any]


@runtime_checkable
class Anneals(Protocol):
    """A policy that changes with the progress of the run, in [0, 1]."""

    def anneal(self, progress: float) -> None: ...


@runtime_checkable
class Proposes(Protocol):
    """A policy that can propose actions beside those taken."""

    def propose(self, b: Trajectories, draw: Any, noise: Any) -> tuple[Tensor, Tensor | None]: ...
    def noise(self, b: Trajectories, draw: Any, generator: torch.Generator) -> Tensor | None: ...


@runtime_checkable
class ReadsNoise(Protocol):
    """A policy that computes functionals with normal numbers. noise_shape: of those per decision; None: it needs none."""

    def noise_shape(self, functional: str) -> tuple[int, ...] | None: ...


@runtime_checkable
class Configures(Protocol):
    """A task that a recipe configures before the first rollout: how many environments, whether rewards are scaled."""

    def configure(self, recipe: dict[str, Any]) -> None: ...


@runtime_checkable
class SavesModel(Protocol):
    """A policy that can be written as a model other programs load."""

    def save(self, folder: Path) -> None: ...


@runtime_checkable
class LinearReduce(Protocol):
    """A reduction sum_{i,t} c_{i,t} s_{i,t}, with its coefficients."""

    def coefficients(self, b: Trajectories) -> Tensor: ...


@runtime_checkable
class Scaled(Protocol):
    """A term of the loss that is multiplied by a coefficient; 0 switches it off."""

    coef: Any


@runtime_checkable
class SelectsRows(Protocol):
    """A term that is computed on some rows only: `expert` for demonstrations."""

    rows: str


@runtime_checkable
class Silent(Protocol):
    """A part that, with `silent` true, has no objective on purpose."""

    silent: bool


@runtime_checkable
class KeepsDirection(Protocol):
    """A stepper that keeps the direction of its last update, one tensor per parameter; empty before the first one."""

    direction: list[Tensor]


@runtime_checkable
class HasOptimizer(Protocol):
    """A stepper that moves parameters by one of torch's optimizers."""

    optimizer: torch.optim.Optimizer


@runtime_checkable
class Multiplies(Protocol):
    """A policy that says whether its products are large enough for bfloat16 to be faster."""

    large: bool


@runtime_checkable
class HasArms(Protocol):
    """A bandit: `starts` contexts with `arms` arms each."""

    starts: int
    arms: int


@runtime_checkable
class ShowsPrompt(Protocol):
    """A task that shows its first prompt as a language model reads it."""

    def show_prompt(self, policy: Any) -> str: ...


@runtime_checkable
class HasExperts(Protocol):
    """A task with an expert whose actions a policy can be pretrained on."""

    def experts(self, policy: Any, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]: ...


@runtime_checkable
class HasLabels(Protocol):
    """A mixture of tasks, with their names in order, and the one whose base model it takes."""

    labels: tuple[str, ...]
    base: Any


@runtime_checkable
class HasBaseTexts(Protocol):
    """A task with texts, (prompt, answer) to train on and held out, that warm-start a small base model."""

    name: str

    def demonstrations(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]: ...


@runtime_checkable
class ActsByTensors(Protocol):
    """A policy whose decisions are a function of tensors, which can be compiled together with an environment's steps."""

    def frozen_for_rollout(self) -> AbstractContextManager[None]: ...
    def action_noise(self, rng: Rng) -> Tensor: ...
    def act_params(self) -> list[Tensor]: ...
    def act_fn(self, obs: Tensor, noise: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]: ...


@runtime_checkable
class WrapsModel(Protocol):
    """A policy around a model of transformers, with its `config`."""

    inner: Any


@runtime_checkable
class HasTokenizer(Protocol):
    """A policy that reads and writes text through a tokenizer of transformers."""

    tokenizer: Any
