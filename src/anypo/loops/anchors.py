"""Refresh anchors."""

from __future__ import annotations

import math

from anypo.policies.weights import ema, ema_
from anypo.runs.run import Run


def follow(run: Run) -> None:
    """Renew the anchors that count parameter updates, after each of them."""
    for name, rule in run.following.items():
        if rule.every and run.stepper.updates % rule.every == 0:
            ema_(run.anchor(name), run.policy, rule.decay)


def refresh(run: Run, *, late: bool = False) -> None:
    """Renew the anchors whose turn it is, from the policy as it is before this batch's update, or after it."""
    for name, rule in run.rules.items():
        if (
            name in run.anchors
            and rule.per == "batch"
            and rule.late == late
            and (rule.at == run.batch + 1 or (rule.every and (run.batch + 1) % rule.every == 0))
        ):
            limit = math.inf if rule.ramp is None else rule.ramp * run.stepper.updates
            run.anchors[name] = ema(run.anchors[name], run.policy, min(rule.decay, limit))
