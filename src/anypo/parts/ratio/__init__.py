"""Ratio: logp and an anchor -> the log-ratio x, per decision [N, T] or per row [N]."""

from anypo.parts.ratio.denoising import ChainRatio, MatchingRatio, NormalisedRatio
from anypo.parts.ratio.layer import InnerRatio
from anypo.parts.ratio.log_ratio import LogRatio
from anypo.parts.ratio.prefix import MinPrefix
from anypo.parts.ratio.reward_model import LearnedScore

__all__ = ["ChainRatio", "InnerRatio", "LearnedScore", "LogRatio", "MatchingRatio", "MinPrefix", "NormalisedRatio"]
