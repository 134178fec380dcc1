"""Critic: value functions learned beside the policy. Each part returns a scalar to minimise."""

from anypo.parts.critic.behaviour import AdvantageAutoencoder, PolicyValue
from anypo.parts.critic.conservative import Conservative
from anypo.parts.critic.distributional import GaussianTD
from anypo.parts.critic.imitation import MixtureMatching
from anypo.parts.critic.implicit import DualValue, Expectile, Gumbel
from anypo.parts.critic.median import Median
from anypo.parts.critic.pessimistic import PessimisticValue
from anypo.parts.critic.td import TD
from anypo.parts.critic.value import FinishedValue, Value

__all__ = [
    "TD",
    "AdvantageAutoencoder",
    "Conservative",
    "DualValue",
    "Expectile",
    "FinishedValue",
    "GaussianTD",
    "Gumbel",
    "Median",
    "MixtureMatching",
    "PessimisticValue",
    "PolicyValue",
    "Value",
]
