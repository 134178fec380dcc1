"""DHPO: half GRPO, half GSPO: token and row ratios, each clipped in its own box, are mixed."""

from anypo.method.card import Card, Claim, Reduction
from anypo.method.registry import register_method
from anypo.methods.policy_gradient.grpo import grpo
from anypo.parts.trust import TwoBranchClip

dhpo = register_method(
    grpo.but(
        trust=TwoBranchClip(low=0.2, high=0.2, row_low=3e-4, row_high=4e-4, weight="half"),
        terms=[],
        card=Card(
            id="dhpo",
            title="Orchestrating Tokens and Sequences: Dynamic Hybrid Policy Optimization for RLVR",
            year=2026,
            arxiv="2601.05607",
            equation="L = mean_i 1/|o_i| sum_t w L_token(clip 0.2) + (1 - w) L_row(clip 3e-4, 4e-4),  w = 1/2",
            source="arXiv 2601.05607, eq. 8 to 11 and table 1 as read in secondary sources; the boxes are GRPO's and GSPO's",
            confidence="reconstructed",
            claim="Mixing both granularities beats GRPO and GSPO on seven mathematics benchmarks.",
            claims=(
                Claim(
                    "Stale data cost the mixture less than token ratios alone.", "staleness", "success", against="grpo"
                ),
                Claim(
                    "Stale data cost the mixture less than row ratios alone.", "staleness", "success", against="gspo"
                ),
            ),
            reduces=(
                Reduction("grpo", {"trust": TwoBranchClip(weight="token")}, {"terms": []}),
                Reduction("gspo", {"trust": TwoBranchClip(weight="row")}),
            ),
        ),
    )
)
