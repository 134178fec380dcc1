"""OBLR-PO: the baseline weighs scores by gradient norms, and the learning rate follows the gradient's signal-to-noise ratio."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.policy_gradient.grpo import grpo
from anypo.methods.policy_gradient.ppo import clipped_weight
from anypo.parts.credit import Combine, WeightedBaseline
from anypo.parts.step import SnrAdam

oblr_po = register_method(
    grpo.but(
        credit=[Combine(), WeightedBaseline(leave_one_out=False)],
        step=SnrAdam(decay=0.9),
        terms=[],
        card=Card(
            id="oblr-po",
            title="OBLR-PO: A Theoretical Framework for Stable Reinforcement Learning",
            year=2025,
            arxiv="2511.23310",
            family="advantage",
            equation="A_i = R_i - sum_j w_j R_j / sum_j w_j,  w = |grad log pi|^2;  lr = lr_max SNR / (1 + SNR)",
            source="arXiv 2511.23310, abstract and summaries; baseline and step size derived again from the descent lemma, on Adam's step",
            confidence="reconstructed",
            claim="The gradient-weighted baseline has least variance, and a rate proportional to SNR / (1 + SNR) guarantees convergence.",
            claims=(
                Claim(
                    "Its gradient varies less than with the mean as the baseline.",
                    "gradient",
                    "variance",
                    against="dr-grpo",
                    better="lower",
                ),
                Claim(
                    "A step size that follows the signal-to-noise ratio learns more from noisy scores.",
                    "noise",
                    "success",
                    against="dr-grpo",
                ),
            ),
            weight=clipped_weight(0.2, 0.2),
        ),
    )
)
