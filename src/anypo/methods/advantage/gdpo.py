"""GDPO: GRPO whose reward channels are normalised one by one before they are added."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.policy_gradient.grpo import grpo
from anypo.methods.policy_gradient.ppo import clipped_weight
from anypo.parts.credit import DecoupledBaseline

gdpo = register_method(
    grpo.but(
        credit=[DecoupledBaseline()],
        terms=[],
        card=Card(
            id="gdpo",
            title="GDPO: Group reward-Decoupled Normalization Policy Optimization for Multi-reward RL Optimization",
            year=2026,
            arxiv="2601.05242",
            family="advantage",
            equation="A = batch z-score of sum_k w_k Z_k,  Z_k = (R_k - mean_group) / (std_group + 1e-4)",
            source="arXiv 2601.05242; NVlabs/GDPO, trainer ports; its conditional rewards: `--score gate-channels`",
            claim="Keeps apart what summed rewards confuse; better and more stable on tool use, mathematics and code.",
            claims=(
                Claim(
                    "The channel that is worth less is learned better than when scores are added first.",
                    "multi-reward",
                    "weakest",
                    against="grpo",
                ),
            ),
            weight=clipped_weight(0.2, 0.2),
        ),
    )
)
