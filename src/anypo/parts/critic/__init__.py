"""Critic: value functions learned beside the policy. Each part returns a scalar to minimise; heads are made of pieces."""

from anypo.parts.critic import former_parts as former_parts
from anypo.parts.critic.aggregates import EnsembleMin, RandomSubset
from anypo.parts.critic.backups import OneStep, SoftBackup
from anypo.parts.critic.behaviour import AdvantageAutoencoder
from anypo.parts.critic.head import ActionValue, StateValue
from anypo.parts.critic.imitation import MixtureMatching
from anypo.parts.critic.median import Median
from anypo.parts.critic.next_actions import (
    DoubleGreedyAction,
    GreedyAction,
    NextState,
    PolicySample,
    TakenAction,
    TargetAction,
)
from anypo.parts.critic.penalties import Conservative, GradientPenalty
from anypo.parts.critic.pessimistic import PessimisticValue
from anypo.parts.critic.regressions import DualValue, Expectile, GaussianReturn, Gumbel, Huber, Squared
from anypo.parts.critic.value import FinishedValue, Value

__all__ = [
    "ActionValue",
    "AdvantageAutoencoder",
    "Conservative",
    "DoubleGreedyAction",
    "DualValue",
    "EnsembleMin",
    "Expectile",
    "FinishedValue",
    "GaussianReturn",
    "GradientPenalty",
    "GreedyAction",
    "Gumbel",
    "Huber",
    "Median",
    "MixtureMatching",
    "NextState",
    "OneStep",
    "PessimisticValue",
    "PolicySample",
    "RandomSubset",
    "SoftBackup",
    "Squared",
    "StateValue",
    "TakenAction",
    "TargetAction",
    "Value",
]
