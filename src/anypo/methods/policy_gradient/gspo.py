"""GSPO: GRPO whose ratio, and clip, belong to the whole answer: the geometric mean of its token ratios."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.policy_gradient.grpo import grpo
from anypo.parts.ratio import LogRatio
from anypo.parts.trust import Clip

gspo = register_method(
    grpo.but(
        ratio=LogRatio("row", how="mean"),
        trust=Clip(low=3e-4, high=4e-4),
        terms=[],
        card=Card(
            id="gspo",
            title="Group Sequence Policy Optimization",
            year=2025,
            arxiv="2507.18071",
            equation="L = -mean_i min(s_i A_i, clip(s_i, 1-eps_l, 1+eps_h) A_i),  s_i = exp(1/|o_i| sum_t log r_t)",
            source="arXiv 2507.18071, eq. 5 to 7",
            claim="Mixture-of-experts models train stably without routing replay, and more efficiently than with GRPO.",
            claims=(Claim("Stale data cost it less than GRPO.", "staleness", "success", against="grpo"),),
        ),
    )
)
