"""DAPO: GRPO with a higher upper clip, the mean over all tokens, and no batch filled with groups that inform nothing."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.policy_gradient.grpo import grpo
from anypo.methods.policy_gradient.ppo import clipped_weight
from anypo.parts.collect import DynamicSampling
from anypo.parts.credit import Baseline, Combine, DropTruncated, KeepInformative
from anypo.parts.reduce import Mean
from anypo.parts.trust import Clip

dapo = register_method(
    grpo.but(
        collect=DynamicSampling(),
        credit=[Combine(), Baseline("group", center="mean", scale="std"), KeepInformative(), DropTruncated()],
        trust=Clip(low=0.2, high=0.28),
        reduce=Mean("token"),
        terms=[],
        card=Card(
            id="dapo",
            title="DAPO: An Open-Source LLM Reinforcement Learning System at Scale",
            year=2025,
            arxiv="2503.14476",
            equation="L = -1/sum|o_i| sum_{i,t} min(r A_i, clip(r, 1-eps_l, 1+eps_h) A_i) over groups with 0 < #correct < G",
            source="arXiv 2503.14476, eq. 8 to 13; its soft punishment of long answers, eq. 13: `--score overlong-penalty`",
            claim="50 points on AIME 2024 with a 32B model in half the steps of its predecessor.",
            claims=(
                Claim(
                    "More of the policy's entropy is left than with GRPO when batches are reused.",
                    "retention",
                    "entropy",
                    against="grpo",
                    settings={"epochs": 4},
                ),
                Claim(
                    "Fewer groups of a batch teach nothing.", "mixture", "dead_groups", against="grpo", better="lower"
                ),
            ),
            weight=clipped_weight(0.2, 0.28),
        ),
    )
)
