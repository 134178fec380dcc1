"""Collect: which rows a batch consists of. Generators: yield requests, receive their finished rows, return the batch."""

from anypo.parts.collect.ask import Ask
from anypo.parts.collect.budget import KnapsackBudget
from anypo.parts.collect.demonstrations import OnlyDemonstrations, WithDemonstrations
from anypo.parts.collect.explore import Explore
from anypo.parts.collect.offline import FromData
from anypo.parts.collect.partial_rollouts import Window
from anypo.parts.collect.resample import DynamicSampling, HintLadder

__all__ = [
    "Ask",
    "DynamicSampling",
    "Explore",
    "FromData",
    "HintLadder",
    "KnapsackBudget",
    "OnlyDemonstrations",
    "Window",
    "WithDemonstrations",
]
