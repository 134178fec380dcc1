"""The parts, one module per stage. `anypo.parts.MinPrefix()` in Python is `min-prefix` on the command line."""

from anypo.parts._register import PARTS, describe, find, stage_of
from anypo.parts.bounded import BoundedTarget, Median, MedianTarget
from anypo.parts.channels import BetaNormalize, DecoupledBaseline, GateChannels
from anypo.parts.collect import Ask, DynamicSampling, Explore, FromData, HintLadder, Window, WithDemonstrations
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
from anypo.parts.gates import FiberGate, HazardModulated, MaskedLikelihood, TwoBranchClip, VariancePenalty
from anypo.parts.knapsack import KnapsackBudget, SuccessRate
from anypo.parts.knobs import Alternate, Clock, Cosine, Dual, Linear, Reciprocal, Staircase, Temperature, Tracked
from anypo.parts.pairs import (
    BiasedContrast,
    Centering,
    KeepExtremes,
    LikeBest,
    OddsContrast,
    PairContrast,
    PairwiseClip,
    ProspectValue,
    ReferencePoint,
    RewardContrast,
)
from anypo.parts.partial import ExtendedGae, FinishedValue
from anypo.parts.pathwise import Advantage, BestExpert, Clone, CloneAction, CloneGoodAction, Follow, Pathwise
from anypo.parts.perception import Perception
from anypo.parts.pessimism import EntropyGatedKl, KlController, PessimisticBaseline, PessimisticValue
from anypo.parts.quantiles import MixedValueAtRisk, TrackedQuantile
from anypo.parts.ratio import InnerRatio, LearnedScore, LogRatio, MinPrefix
from anypo.parts.reduce import Decoupled, Mean
from anypo.parts.rlhf import AdaptiveKl, ConservativeScore, Standardize, TokenKl
from anypo.parts.score import KlPenalty, OverlongPenalty
from anypo.parts.segments import AddProgress, EntropyModulate
from anypo.parts.selection import BalancedDrop, MaxVarianceRows, TopTokens
from anypo.parts.step import Adam, RMSProp, Sgd, SnrAdam, Transport
from anypo.parts.store import Fresh, Replay
from anypo.parts.terms import Divergence, Entropy
from anypo.parts.transitions import Transitions, WeightedTrajectories
from anypo.parts.trust import Clip, Likelihood, RecentredClip, TruncatedWeight, Unclipped
from anypo.parts.values import (
    TD,
    AdvantageAutoencoder,
    Conservative,
    DualValue,
    Expectile,
    GaussianTD,
    Gumbel,
    MixtureMatching,
    PolicyValue,
)

__all__ = [
    "PARTS",
    "TD",
    "Adam",
    "AdaptiveKl",
    "AddProgress",
    "Advantage",
    "AdvantageAutoencoder",
    "Alternate",
    "Ask",
    "BalancedDrop",
    "Baseline",
    "BestExpert",
    "BetaNormalize",
    "BiasedContrast",
    "BoundedTarget",
    "Centering",
    "Clip",
    "Clock",
    "Clone",
    "CloneAction",
    "CloneGoodAction",
    "Combine",
    "Conservative",
    "ConservativeScore",
    "Cosine",
    "Decoupled",
    "DecoupledBaseline",
    "Divergence",
    "DropTruncated",
    "Dual",
    "DualValue",
    "DynamicSampling",
    "Each",
    "Entropy",
    "EntropyGatedKl",
    "EntropyModulate",
    "Expectile",
    "Explore",
    "ExtendedGae",
    "FiberGate",
    "FinishedValue",
    "Follow",
    "Fresh",
    "FromData",
    "Gae",
    "GateBySuccess",
    "GateChannels",
    "GaussianTD",
    "Gumbel",
    "HazardModulated",
    "HingeDivergence",
    "HintLadder",
    "Imitate",
    "InnerRatio",
    "KeepExtremes",
    "KeepInformative",
    "KeepStable",
    "KlController",
    "KlPenalty",
    "KnapsackBudget",
    "LearnedScore",
    "LikeBest",
    "Likelihood",
    "Linear",
    "LogRatio",
    "MaskedLikelihood",
    "MaxVarianceRows",
    "Mean",
    "Median",
    "MedianTarget",
    "MinPrefix",
    "MixedValueAtRisk",
    "MixtureMatching",
    "NStep",
    "OddsContrast",
    "OverlongPenalty",
    "PairContrast",
    "PairwiseClip",
    "Pathwise",
    "Perception",
    "PessimisticBaseline",
    "PessimisticValue",
    "PolicyValue",
    "ProspectValue",
    "RMSProp",
    "RecentredClip",
    "Reciprocal",
    "ReferencePoint",
    "Replay",
    "Returns",
    "RewardContrast",
    "SetContrast",
    "Sgd",
    "Share",
    "ShortestContrast",
    "SnrAdam",
    "Staircase",
    "Standardize",
    "SuccessRate",
    "Temperature",
    "TokenKl",
    "TopTokens",
    "Tracked",
    "TrackedQuantile",
    "Transitions",
    "Transport",
    "TruncatedWeight",
    "TwoBranchClip",
    "Unclipped",
    "Value",
    "VariancePenalty",
    "WeightedBaseline",
    "WeightedTrajectories",
    "Whiten",
    "Window",
    "WithDemonstrations",
    "describe",
    "find",
    "stage_of",
]
