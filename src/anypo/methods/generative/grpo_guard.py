"""GRPO-Guard: Flow-GRPO with ratios that are centred and scaled equally at every step, so that clipping acts on both signs."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.generative.flow_grpo import flow_grpo
from anypo.parts.ratio import NormalisedRatio
from anypo.parts.reduce import StepWidthMean
from anypo.parts.trust import Clip

grpo_guard = register_method(
    flow_grpo.but(
        ratio=NormalisedRatio(),
        trust=Clip(2e-6, 2e-6),
        reduce=StepWidthMean("token"),
        terms=[],
        card=Card(
            id="grpo-guard",
            title="GRPO-Guard: Mitigating Implicit Over-Optimization in Flow Matching via Regulated Clipping",
            year=2025,
            arxiv="2510.22319",
            family="generative",
            equation="L = -mean 1/h min(r A, clip(r) A),  r = exp(s (log pi/pi_old + |m - m_old|^2 / (2 s^2)))",
            source="arXiv 2510.22319; verl-project/verl-omni, docs/algo/grpo_guard.md and GRPOGuardLoss",
            claim="Centred ratios are clipped on both sides, and the true reward falls less while the proxy rises.",
            claims=(
                Claim(
                    "With a judge that can be fooled, more of the true reward is left than with Flow-GRPO.",
                    "modes",
                    "gold",
                    against="flow-grpo",
                    settings={"bump": 1.5, "epochs": 2},
                ),
            ),
        ),
    )
)
