"""The parts, one module per stage. `anypo.parts.MinPrefix()` in Python is `min-prefix` on the command line."""

from anypo.parts._register import PARTS, describe, find, stage_of
from anypo.parts.bounded import BoundedTarget, Median, MedianTarget
from anypo.parts.channels import BetaNormalize, DecoupledBaseline, GateChannels
from anypo.parts.collect import Ask, DynamicSampling, HintLadder, Window, WithDemonstrations
from anypo.parts.contrast import Each, HingeDivergence, SetContrast, ShortestContrast
from anypo.parts.credit import (
    Baseline,
    Combine,
    DropTruncated,
    Gae,
    KeepInformative,
    NStep,
    Returns,
    WeightedBaseline,
    Whiten,
)
from anypo.parts.critic import Value
from anypo.parts.curvature import KeepStable
from anypo.parts.demonstrations import GateBySuccess, Imitate, Share
from anypo.parts.denoising import (
    BatchScale,
    ChainRatio,
    DenoisingDiscount,
    GuessDivergence,
    LimitAdvantage,
    Matching,
    MatchingRatio,
    MeanDivergence,
    NormalisedRatio,
    OnlyDemonstrations,
    PerWidth,
    SegmentGae,
    StepClip,
)
from anypo.parts.gates import FiberGate, HazardModulated, MaskedLikelihood, TwoBranchClip, VariancePenalty
from anypo.parts.knapsack import KnapsackBudget, SuccessRate
from anypo.parts.knobs import Dual, Linear, Reciprocal, Staircase
from anypo.parts.pairs import (
    BiasedContrast,
    LikeBest,
    OddsContrast,
    PairContrast,
    PairwiseClip,
    ProspectValue,
    RewardContrast,
)
from anypo.parts.partial import ExtendedGae, FinishedValue
from anypo.parts.perception import Perception
from anypo.parts.pessimism import EntropyGatedKl, KlController, PessimisticBaseline, PessimisticValue
from anypo.parts.quantiles import MixedValueAtRisk, TrackedQuantile
from anypo.parts.ratio import InnerRatio, LogRatio, MinPrefix
from anypo.parts.reduce import Decoupled, Mean
from anypo.parts.score import KlPenalty, OverlongPenalty
from anypo.parts.segments import AddProgress, EntropyModulate
from anypo.parts.selection import BalancedDrop, MaxVarianceRows, TopTokens
from anypo.parts.step import Adam, RMSProp, Sgd, SnrAdam, Transport
from anypo.parts.store import Fresh, Replay
from anypo.parts.terms import Divergence, Entropy
from anypo.parts.trust import Clip, Likelihood, RecentredClip, TruncatedWeight, Unclipped

__all__ = [
    "PARTS",
    "Adam",
    "AddProgress",
    "Ask",
    "BalancedDrop",
    "Baseline",
    "BatchScale",
    "BetaNormalize",
    "BiasedContrast",
    "BoundedTarget",
    "ChainRatio",
    "Clip",
    "Combine",
    "Decoupled",
    "DecoupledBaseline",
    "DenoisingDiscount",
    "Divergence",
    "DropTruncated",
    "Dual",
    "DynamicSampling",
    "Each",
    "Entropy",
    "EntropyGatedKl",
    "EntropyModulate",
    "ExtendedGae",
    "FiberGate",
    "FinishedValue",
    "Fresh",
    "Gae",
    "GateBySuccess",
    "GateChannels",
    "GuessDivergence",
    "HazardModulated",
    "HingeDivergence",
    "HintLadder",
    "Imitate",
    "InnerRatio",
    "KeepInformative",
    "KeepStable",
    "KlController",
    "KlPenalty",
    "KnapsackBudget",
    "LikeBest",
    "Likelihood",
    "LimitAdvantage",
    "Linear",
    "LogRatio",
    "MaskedLikelihood",
    "Matching",
    "MatchingRatio",
    "MaxVarianceRows",
    "Mean",
    "MeanDivergence",
    "Median",
    "MedianTarget",
    "MinPrefix",
    "MixedValueAtRisk",
    "NStep",
    "NormalisedRatio",
    "OddsContrast",
    "OnlyDemonstrations",
    "OverlongPenalty",
    "PairContrast",
    "PairwiseClip",
    "PerWidth",
    "Perception",
    "PessimisticBaseline",
    "PessimisticValue",
    "ProspectValue",
    "RMSProp",
    "RecentredClip",
    "Reciprocal",
    "Replay",
    "Returns",
    "RewardContrast",
    "SegmentGae",
    "SetContrast",
    "Sgd",
    "Share",
    "ShortestContrast",
    "SnrAdam",
    "Staircase",
    "StepClip",
    "SuccessRate",
    "TopTokens",
    "TrackedQuantile",
    "Transport",
    "TruncatedWeight",
    "TwoBranchClip",
    "Unclipped",
    "Value",
    "VariancePenalty",
    "WeightedBaseline",
    "Whiten",
    "Window",
    "WithDemonstrations",
    "describe",
    "find",
    "stage_of",
]
