"""Dr. GRPO: GRPO without its two divisions, by the group's spread and by the row's length."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.policy_gradient.grpo import grpo
from anypo.methods.policy_gradient.ppo import clipped_weight
from anypo.parts.credit import Baseline, Combine
from anypo.parts.reduce import Mean

dr_grpo = register_method(
    grpo.but(
        credit=[Combine(), Baseline("group", center="mean", scale=None)],
        reduce=Mean("constant"),
        terms=[],
        card=Card(
            id="dr-grpo",
            title="Understanding R1-Zero-Like Training: A Critical Perspective",
            year=2025,
            arxiv="2503.20783",
            equation="L = -1/(N L) sum_{i,t} min(r A_i, clip(r, 1-eps, 1+eps) A_i),  A_i = s_i - mean",
            source="arXiv 2503.20783, sec. 3.1 and eq. 3; sail-sg/understand-r1-zero",
            claim="Wrong answers stop growing in length, without loss of accuracy.",
            claims=(
                Claim(
                    "Wrong answers end shorter than with GRPO where fillers are free.",
                    "length",
                    "length_wrong",
                    against="grpo",
                    better="lower",
                ),
            ),
            weight=clipped_weight(0.2, 0.2),
        ),
    )
)
