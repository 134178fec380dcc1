"""Terms: further objectives beside the main one, reduced like it unless they say otherwise. Scalars to minimise."""

from anypo.parts.terms.denoising import ChainEntropy, GuessDivergence, MeanDivergence
from anypo.parts.terms.divergence import Divergence, HingeDivergence
from anypo.parts.terms.entropy import Entropy
from anypo.parts.terms.gated_kl import EntropyGatedKl
from anypo.parts.terms.imitation import CloneAction, CloneGoodAction, LikeBest
from anypo.parts.terms.perception import Perception

__all__ = [
    "ChainEntropy",
    "CloneAction",
    "CloneGoodAction",
    "Divergence",
    "Entropy",
    "EntropyGatedKl",
    "GuessDivergence",
    "HingeDivergence",
    "LikeBest",
    "MeanDivergence",
    "Perception",
]
