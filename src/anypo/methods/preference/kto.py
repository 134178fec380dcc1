"""KTO: answers are marked good or bad one by one, and valued against a reference point as people value gains and losses."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.preference.dpo import dpo
from anypo.parts.credit import Combine, ReferencePoint
from anypo.parts.reduce import Mean
from anypo.parts.trust import ProspectValue

kto = register_method(
    dpo.but(
        credit=[Combine(), ReferencePoint()],
        trust=ProspectValue(beta=0.1, gain=1.0, loss=1.0),
        reduce=Mean("row"),
        card=Card(
            id="kto",
            title="KTO: Model Alignment as Prospect Theoretic Optimization",
            year=2024,
            arxiv="2402.01306",
            family="preference",
            equation="L = lam (1 - sigma(+-beta (log pi/ref - z0)))",
            source="arXiv 2402.01306; eq. 8; the reference point from mismatched pairs is taken before the batch's update",
            claim="Marks on single answers match what preference pairs teach.",
            claims=(Claim("It comes within five points of DPO.", "learning", "success", against="dpo", margin=-0.05),),
        ),
    )
)
