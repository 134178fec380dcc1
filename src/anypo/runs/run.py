"""A run: everything that has state. Nothing here is global; a checkpoint is the whole of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from anypo.config import Config
from anypo.method.method import Method
from anypo.policies.weights import snapshot
from anypo.protocols import Anneals, BatchSpec
from anypo.runs.claim import ClaimedFolder
from anypo.stages import OpenStore, Stepper
from anypo.tasks.pool import StartPool
from anypo.views import Refresh


@dataclass
class Run:
    """The live objects of a run; `state` and `restore` are what a checkpoint holds."""

    config: Config
    method: Method
    task: Any
    policy: Any
    pool: StartPool
    store: OpenStore
    stepper: Stepper
    want: BatchSpec
    generator: torch.Generator
    folder: Path | None
    steps: int
    anchors: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    strategy: Any = None
    """How updates that repeat are computed (`loops/compiled_update.py`); begun by the first update."""
    batch: int = 0
    done: int = 0
    finished: bool = False
    """Batches finished, and the same in the task's unit (environment steps); the run is finished when
    done reaches steps, or earlier at its target."""
    before: int = 0
    """`done` before the last batch."""
    begun: bool = False
    """The untrained policy has been measured, and the first checkpoint written."""
    claim: ClaimedFolder | None = None
    """Keeps other processes from the folder while the run is trained."""
    remarks: list[str] = field(default_factory=list)
    """What the plan says about how the run was resumed."""
    number: int = 0
    turn: int = 0
    seen: dict[str, float] = field(default_factory=dict)
    """Number of the present phase, the batch its cycle began with, and the latest metrics that the next phase waits for."""
    skipped: int = 0
    missing: int = 0
    """Updates skipped in a row, and batches in a row without a reward."""

    def __post_init__(self) -> None:
        self.phase = self.method.phases[0]

    @cached_property
    def device(self) -> torch.device:
        """Where the policy is."""
        return next(self.policy.parameters()).device

    @property
    def metric(self) -> str:
        """The held-out measure that heads the run: the configured one, else the task's own."""
        return self.config.metric or self.task.metric

    @cached_property
    def following(self) -> dict[str, Refresh]:
        """The anchors that follow every so many parameter updates."""
        return {name: rule for name, rule in self.rules.items() if rule.per == "update"}

    @cached_property
    def rules(self) -> dict[str, Refresh]:
        """The anchors of every phase, with their refresh rules."""
        return {name: rule for phase in self.method.phases for name, rule in phase.anchors.items()}

    def anchor(self, name: str) -> dict[str, torch.Tensor]:
        """Return the weights of an anchor; an anchor that is read for the first time begins as the policy is now."""
        if name not in self.anchors:
            self.anchors[name] = snapshot(self.policy)
        return self.anchors[name]

    def advance(self, metrics: dict[str, float]) -> None:
        """Count a batch and what it was in the task's unit; the step's schedule follows."""
        lasted = {"batches": 1.0, "environment steps": metrics.get("env_steps"), "updates": metrics["updates"]}
        self.batch += 1
        self.before, self.done = self.done, self.done + int(lasted[self.task.unit] or 0)
        self.stepper.progress = min(1.0, self.done / self.steps)
        if isinstance(self.policy, Anneals):
            self.policy.anneal(self.stepper.progress)
        self.finished = self.done >= self.steps

    def state(self) -> dict[str, Any]:
        return {
            "batch": self.batch,
            "done": self.done,
            "finished": self.finished,
            "skipped": self.skipped,
            "missing": self.missing,
            "generator": self.generator.get_state(),
            "stepper": self.stepper.state_dict(),
            "knobs": self.method.state_dict(),
            "pool": self.pool.state_dict(),
            "store": self.store.state_dict(),
            "task": self.task.state_dict(),
            "phase": {"number": self.number, "turn": self.turn, "seen": self.seen},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Load what `state` returned into a run in the same phase."""
        self.turn, self.seen = state["phase"]["turn"], state["phase"]["seen"]
        self.batch, self.done, self.finished = state["batch"], state["done"], state["finished"]
        self.skipped, self.missing = state["skipped"], state["missing"]
        self.generator.set_state(state["generator"])
        self.stepper.load_state_dict(state["stepper"])
        self.method.load_state_dict(state["knobs"])
        self.pool.load_state_dict(state["pool"])
        self.store.load_state_dict(state["store"])
        self.task.load_state_dict(state["task"])
        self.begun = True
