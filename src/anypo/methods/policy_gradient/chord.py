"""CHORD: GRPO and imitation in one loss, the demonstrations' tokens weighted by how unsure the policy is of them."""

from anypo.method.card import Card, Claim, Reduction
from anypo.method.registry import register_method
from anypo.method.term import Term
from anypo.methods.policy_gradient.grpo import grpo
from anypo.parts.collect import WithDemonstrations
from anypo.parts.reduce import Mean, ScaledMean
from anypo.parts.trust import SelfWeightedLikelihood

MU = 0.1
"""Weight of imitation; 1 - MU is that of the policy's own samples."""

chord = register_method(
    grpo.but(
        collect=WithDemonstrations(apart=16),
        reduce=ScaledMean("token", coef=1 - MU),
        terms=[Term(trust=SelfWeightedLikelihood("uncertain"), rows="expert", coef=MU)],
        card=Card(
            id="chord",
            title="On-Policy RL Meets Off-Policy Experts: Harmonizing Supervised Fine-Tuning and Reinforcement Learning via"
            " Dynamic Weighting",
            year=2025,
            arxiv="2508.11408",
            equation="L = (1 - mu) L_GRPO + mu token-mean -phi log p,  phi = sg(p (1 - p))",
            source="arXiv 2508.11408; modelscope/Trinity-RFT, chord_policy_loss.py; 16 demonstrations a batch are ours",
            claim="Absorbs experts without losing exploration and beats SFT followed by RL.",
            claims=(
                Claim(
                    "Demonstrations solve codes that GRPO never finds by chance.",
                    "demonstrations",
                    "success",
                    against="grpo",
                ),
                Claim(
                    "Weighting tokens by p(1-p) keeps more entropy than plain imitation.",
                    "demonstrations",
                    "entropy",
                    against="hpt",
                ),
            ),
            reduces=(
                Reduction("grpo", {"reduce": Mean("token"), "terms": []}, {"reduce": Mean("token"), "terms": []}),
            ),
        ),
    )
)
