"""CPL: preferences over segments of behaviour are explained by the policy's own likelihoods, with a conservative bias."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.preference.dpo import dpo
from anypo.parts.ratio import LogRatio
from anypo.parts.trust import BiasedContrast

cpl = register_method(
    dpo.but(
        ratio=LogRatio("row", how="sum", anchor="none"),
        trust=BiasedContrast(alpha=0.1, lam=0.5),
        card=Card(
            id="cpl",
            title="Contrastive Preference Learning: Learning from Human Feedback without RL",
            year=2023,
            arxiv="2310.13639",
            family="preference",
            equation="L = softplus(-(a_w - lambda a_l)),  a = alpha sum_t log pi(a_t | s_t)",
            source="arXiv 2310.13639",
            claim="A supervised contrastive loss on segments recovers the optimal policy and matches reward learning plus RL.",
            claims=(
                Claim(
                    "Long rows with one decisive step are learned faster than with DPO.",
                    "horizon",
                    "curve",
                    against="dpo",
                ),
            ),
        ),
    )
)
