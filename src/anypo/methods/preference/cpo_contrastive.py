"""CPO: DPO without a reference, beside imitation of the preferred answer."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.preference.dpo import dpo
from anypo.parts.ratio import LogRatio
from anypo.parts.terms import LikeBest

cpo_contrastive = register_method(
    dpo.but(
        ratio=LogRatio("row", how="sum", anchor="none"),
        terms=[LikeBest(1.0, over="token")],
        card=Card(
            id="cpo-contrastive",
            title="Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in Machine Translation",
            year=2024,
            arxiv="2401.08417",
            family="preference",
            equation="L = -log sigma(beta log pi(y_w) - beta log pi(y_l)) - c token-mean log pi(y_w)",
            source="arXiv 2401.08417; token mean as released",
            claim="DPO against a uniform reference plus behaviour cloning goes beyond the quality of its data.",
            claims=(
                Claim(
                    "Without a reference it comes within five points of DPO.",
                    "learning",
                    "success",
                    against="dpo",
                    margin=-0.05,
                ),
            ),
        ),
    )
)
