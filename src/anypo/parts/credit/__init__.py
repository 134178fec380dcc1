"""Credit: outcomes and values -> advantage, return targets, mask. A chain of pure links."""

from anypo.parts.credit.baselines import Baseline, Combine, WeightedBaseline
from anypo.parts.credit.channels import BetaNormalize, DecoupledBaseline
from anypo.parts.credit.denoising import DenoisingDiscount, FirstSteps, SegmentGae
from anypo.parts.credit.filters import (
    BalancedDrop,
    DropTruncated,
    GateBySuccess,
    KeepExtremes,
    KeepInformative,
    MaxVarianceRows,
    TopTokens,
)
from anypo.parts.credit.normalize import BatchScale, LimitAdvantage, Standardize, Whiten
from anypo.parts.credit.pessimistic import PessimisticBaseline
from anypo.parts.credit.q_advantage import Advantage
from anypo.parts.credit.reference_point import ReferencePoint
from anypo.parts.credit.returns import AddAdvantage, ExtendedGae, Gae, NStep, Returns
from anypo.parts.credit.risk import MixedValueAtRisk
from anypo.parts.credit.segments import AddProgress, EntropyModulate
from anypo.parts.credit.stability import KeepStable

__all__ = [
    "AddAdvantage",
    "AddProgress",
    "Advantage",
    "BalancedDrop",
    "Baseline",
    "BatchScale",
    "BetaNormalize",
    "Combine",
    "DecoupledBaseline",
    "DenoisingDiscount",
    "DropTruncated",
    "EntropyModulate",
    "ExtendedGae",
    "FirstSteps",
    "Gae",
    "GateBySuccess",
    "KeepExtremes",
    "KeepInformative",
    "KeepStable",
    "LimitAdvantage",
    "MaxVarianceRows",
    "MixedValueAtRisk",
    "NStep",
    "PessimisticBaseline",
    "ReferencePoint",
    "Returns",
    "SegmentGae",
    "Standardize",
    "TopTokens",
    "WeightedBaseline",
    "Whiten",
]
