"""Online DPO: the pair is the best and the worst of several answers that the policy itself has just given."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.preference.dpo import dpo
from anypo.parts.credit import Combine, KeepExtremes

online_dpo = register_method(
    dpo.but(
        credit=[Combine(), KeepExtremes()],
        card=Card(
            id="online-dpo",
            title="Direct Language Model Alignment from Online AI Feedback",
            year=2024,
            arxiv="2402.04792",
            family="preference",
            equation="L = -log sigma(beta u),  y_w and y_l the best and the worst of G samples of the policy",
            source="arXiv 2402.04792, algorithm 1 (G = 2); best and worst of G: arXiv 2405.07863",
            claim="Feedback on the policy's own samples improves on pairs collected beforehand.",
            claims=(
                Claim(
                    "Where answers may be partly right, the extreme pair learns more than all pairs.",
                    "learning",
                    "curve",
                    against="dpo",
                    settings={"share": True},
                ),
            ),
        ),
    )
)
