"""Flow-GRPO: GRPO on a flow model whose sampler is made stochastic without changing its marginals."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.generative.ddpo import ddpo
from anypo.parts.credit import Baseline, BatchScale, Combine, FirstSteps, LimitAdvantage
from anypo.parts.terms import MeanDivergence

flow_grpo = register_method(
    ddpo.but(
        credit=[Combine(), Baseline("group", scale=None), BatchScale(1e-4), LimitAdvantage(5.0), FirstSteps(0.99)],
        terms=[MeanDivergence(0.04)],
        card=Card(
            id="flow-grpo",
            title="Flow-GRPO: Training Flow Matching Models via Online RL",
            year=2025,
            arxiv="2505.05470",
            family="generative",
            equation="L = -mean_k min(r_k A, clip(r_k) A) + beta |m - m_ref|^2 / (2 sigma^2),  A = (s - group mean) / batch std",
            source="arXiv 2505.05470, eq. 9 to 12; yifan123/flow_grpo, config/grpo.py (clip 1e-4; last step not trained; sigma without h)",
            claim="Group-relative policy gradients train flow models with little reward hacking while the divergence is on.",
            claims=(
                Claim(
                    "More of the paying modes are kept than by DDPO, which has no divergence.",
                    "modes",
                    "modes",
                    against="ddpo",
                    settings={"batches": 300},
                ),
                Claim(
                    "It earns within five points of DDPO.",
                    "modes",
                    "reward",
                    against="ddpo",
                    margin=-0.05,
                ),
            ),
        ),
    )
)
