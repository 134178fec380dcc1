"""A run's policy as a file that other programs load without anypo."""

from __future__ import annotations

import copy
from pathlib import Path

from anypo.errors import UsageError, unknown
from anypo.policies.control.program import FORMATS, save_program
from anypo.protocols import HasActionSpace, SavesModel
from anypo.runs.run import Run


def export_policy(run: Run, folder: Path, to: str = "torch", out: Path | None = None) -> Path:
    """Write the greedy action of a run's control policy as a program; returns its file.

    Args:
        run: as one of its checkpoints left it.
        folder: the run's.
        to: torch, for `torch.export.load`; or onnx.
        out: the file; None: RUN/policy.pt2 or RUN/policy.onnx.

    Raises:
        UsageError: the run has no control policy, or one that is no function of tensors; or packages are missing.
    """
    if to not in FORMATS:
        raise unknown("format", to, FORMATS)
    if isinstance(run.policy, SavesModel):
        raise UsageError(f"language models are saved already: transformers loads {folder / 'model'} without anypo")
    task = run.task
    if not isinstance(task, HasActionSpace):
        raise UsageError(f"{folder} is a run of {task.name}, which has no actions to export")
    policy = copy.deepcopy(run.policy).cpu().requires_grad_(False)
    path = out or folder / f"policy.{FORMATS[to][0]}"
    save_program(policy, task.observation_space, task.action_space, to, path)
    return path
