"""Score: shape the outcome before credit is assigned."""

from anypo.parts.score.channels import GateChannels
from anypo.parts.score.penalties import KlPenalty, OverlongPenalty, TokenKl
from anypo.parts.score.reward_ensemble import ConservativeScore

__all__ = ["ConservativeScore", "GateChannels", "KlPenalty", "OverlongPenalty", "TokenKl"]
