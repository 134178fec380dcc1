"""GRPO: PPO without a critic; the baseline is the group of answers to the same prompt."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.policy_gradient.ppo import ppo
from anypo.parts.credit import Baseline, Combine
from anypo.parts.reduce import Mean
from anypo.parts.step import Adam
from anypo.parts.terms import Divergence

grpo = register_method(
    ppo.but(
        critic=[],
        credit=[Combine(), Baseline("group", center="mean", scale="std")],
        reduce=Mean("row"),
        step=Adam(),
        terms=[Divergence("k3", anchor="ref", coef=0.04)],
        card=Card(
            id="grpo",
            beta="terms.divergence.coef",
            title="DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
            year=2024,
            arxiv="2402.03300",
            equation="L = mean_i 1/|o_i| sum_t [-min(r A_i, clip(r, 1-eps, 1+eps) A_i) + beta k3],  A_i = (s_i - mean) / std",
            source="arXiv 2402.03300, eq. 3 and 4",
            claim="Without a critic it matches PPO on mathematics at lower memory.",
            claims=(
                Claim(
                    "Without a critic it comes within five points of PPO.",
                    "learning",
                    "success",
                    against="ppo",
                    margin=-0.05,
                ),
            ),
        ),
    )
)
