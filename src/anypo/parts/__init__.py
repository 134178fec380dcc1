"""The parts, one module per stage. `anypo.parts.MinPrefix()` in Python is `min-prefix` on the command line."""

from anypo.parts._register import PARTS, describe, find, stage_of
from anypo.parts.collect import Ask, DynamicSampling, HintLadder, Window, WithDemonstrations
from anypo.parts.credit import Baseline, Combine, DropTruncated, Gae, KeepInformative, NStep, Returns, Whiten
from anypo.parts.critic import Value
from anypo.parts.curvature import KeepStable
from anypo.parts.demonstrations import GateBySuccess, Imitate, Share
from anypo.parts.knobs import Linear, Staircase
from anypo.parts.partial import ExtendedGae, FinishedValue
from anypo.parts.perception import Perception
from anypo.parts.ratio import InnerRatio, LogRatio, MinPrefix
from anypo.parts.reduce import Mean
from anypo.parts.score import KlPenalty, OverlongPenalty
from anypo.parts.step import Adam, RMSProp, Sgd, SnrAdam, Transport
from anypo.parts.store import Fresh, Replay
from anypo.parts.terms import Divergence, Entropy
from anypo.parts.trust import Clip, Likelihood, RecentredClip, TruncatedWeight, Unclipped

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
    "ExtendedGae",
    "FinishedValue",
    "Fresh",
    "Gae",
    "GateBySuccess",
    "HintLadder",
    "Imitate",
    "InnerRatio",
    "KeepInformative",
    "KeepStable",
    "KlPenalty",
    "Likelihood",
    "Linear",
    "LogRatio",
    "Mean",
    "MinPrefix",
    "NStep",
    "OverlongPenalty",
    "Perception",
    "RMSProp",
    "RecentredClip",
    "Replay",
    "Returns",
    "Sgd",
    "Share",
    "SnrAdam",
    "Staircase",
    "Transport",
    "TruncatedWeight",
    "Unclipped",
    "Value",
    "Whiten",
    "Window",
    "WithDemonstrations",
    "describe",
    "find",
    "stage_of",
]
