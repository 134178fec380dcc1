"""RLOO: REINFORCE with the mean of the other answers to the same prompt as baseline, the KL inside the reward."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.policy_gradient.reinforce import reinforce
from anypo.parts.credit import Baseline, Combine
from anypo.parts.score import KlPenalty

rloo = register_method(
    reinforce.but(
        score=[KlPenalty(beta=0.0)],
        credit=[Combine(), Baseline("group", center="leave-one-out", scale=None)],
        card=Card(
            id="rloo",
            title="Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in LLMs",
            year=2024,
            arxiv="2402.14740",
            equation="L = -mean_i A_i sum_t log pi_t,  A_i = s_i - mean_{j != i} s_j,  s_i = R_i - beta sum_t log(pi/pi_ref)",
            source="arXiv 2402.14740, eq. 3 and 8",
            claim="It beats PPO and DPO in reward from human feedback at lower cost.",
            claims=(
                Claim(
                    "Leaving the own sample out of the baseline lowers the gradient's variance against no baseline.",
                    "gradient",
                    "variance",
                    against="reinforce",
                    better="lower",
                ),
            ),
            weight=lambda r, a: a,
        ),
    )
)
