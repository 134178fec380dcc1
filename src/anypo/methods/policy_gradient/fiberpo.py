"""FiberPO: a row's common drift and its tokens' deviations from it have budgets of their own."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.policy_gradient.grpo import grpo
from anypo.parts.trust import FiberGate

fiberpo = register_method(
    grpo.but(
        trust=FiberGate(up=0.15, down=0.10, eps=0.02),
        terms=[],
        card=Card(
            id="fiberpo",
            title="Fibration Policy Optimization",
            year=2026,
            arxiv=None,
            equation="L = -mean_i 1/|o_i| sum_t G_t A_t,  G_t = exp(g(log s+) - g(log s-)) f_t",
            source="arXiv 2604.03044 (JoyAI-LLM Flash, by the same group), sec. 3.3, definition 3.1, eq. 1 to 5; budgets are ours",
            claim="Validation .668 to .786 with entropy kept, where GRPO collapses and GSPO stagnates.",
            claims=(
                Claim(
                    "Ratios stay smaller than GRPO's when a batch is used thirty times.",
                    "reuse",
                    "ratio_max",
                    against="grpo",
                    better="lower",
                    settings={"epochs": 30},
                ),
            ),
        ),
    )
)
