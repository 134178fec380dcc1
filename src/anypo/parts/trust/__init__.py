"""Trust: how far a decision's log-ratio may carry its advantage. The surrogate is maximised."""

from anypo.parts.trust.clip import Clip, RecentredClip, StepClip, TruncatedWeight, TwoBranchClip
from anypo.parts.trust.cloning import Matching, NoPolicyLoss, WeightedBC
from anypo.parts.trust.gates import FiberGate, HazardModulated, VariancePenalty
from anypo.parts.trust.groupwise import SetContrast, ShortestContrast
from anypo.parts.trust.likelihood import Likelihood, MaskedLikelihood, SelfWeightedLikelihood, Unclipped
from anypo.parts.trust.pairwise import BiasedContrast, OddsContrast, PairContrast, PairwiseClip, RewardContrast
from anypo.parts.trust.pathwise import BestExpert, Pathwise
from anypo.parts.trust.ratio_regression import BoundedTarget, MedianTarget
from anypo.parts.trust.unpaired import ProspectValue

__all__ = [
    "BestExpert",
    "BiasedContrast",
    "BoundedTarget",
    "Clip",
    "FiberGate",
    "HazardModulated",
    "Likelihood",
    "MaskedLikelihood",
    "Matching",
    "MedianTarget",
    "NoPolicyLoss",
    "OddsContrast",
    "PairContrast",
    "PairwiseClip",
    "Pathwise",
    "ProspectValue",
    "RecentredClip",
    "RewardContrast",
    "SelfWeightedLikelihood",
    "SetContrast",
    "ShortestContrast",
    "StepClip",
    "TruncatedWeight",
    "TwoBranchClip",
    "Unclipped",
    "VariancePenalty",
    "WeightedBC",
]
