"""Step: how parameters move."""

from anypo.parts.step.optimizers import Adam, RMSProp
from anypo.parts.step.snr import SnrAdam
from anypo.parts.step.transport import Transport

__all__ = ["Adam", "RMSProp", "SnrAdam", "Transport"]
