"""The parts, one module per stage. `anypo.parts.MinPrefix()` in Python is `min-prefix` on the command line."""

from anypo.parts._register import PARTS, describe, find, stage_of
from anypo.parts.collect import Ask, DynamicSampling
from anypo.parts.credit import Baseline, Combine, DropTruncated, Gae, KeepInformative, NStep, Returns, Whiten
from anypo.parts.critic import Value
from anypo.parts.knobs import Linear
from anypo.parts.ratio import LogRatio, MinPrefix
from anypo.parts.reduce import Mean
from anypo.parts.score import KlPenalty, OverlongPenalty
from anypo.parts.step import Adam, RMSProp, Sgd, SnrAdam, Transport
from anypo.parts.store import Fresh
from anypo.parts.terms import Divergence, Entropy
from anypo.parts.trust import Clip, Likelihood, TruncatedWeight

__all__ = [
    "PARTS",
    "Adam",
    "Ask",
    "Baseline",
    "Clip",
    "Combine",
    "Divergence",
    "DropTruncated",
    "DynamicSampling",
    "Entropy",
    "Fresh",
    "Gae",
    "KeepInformative",
    "KlPenalty",
    "Likelihood",
    "Linear",
    "LogRatio",
    "Mean",
    "MinPrefix",
    "NStep",
    "OverlongPenalty",
    "RMSProp",
    "Returns",
    "Sgd",
    "SnrAdam",
    "Transport",
    "TruncatedWeight",
    "Value",
    "Whiten",
    "describe",
    "find",
    "stage_of",
]
