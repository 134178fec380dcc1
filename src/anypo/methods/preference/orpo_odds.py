"""ORPO: imitation of the preferred answer with a penalty on the odds of the other; one stage, no reference."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.preference.dpo import dpo
from anypo.parts.ratio import LogRatio
from anypo.parts.terms import LikeBest
from anypo.parts.trust import OddsContrast

orpo_odds = register_method(
    dpo.but(
        ratio=LogRatio("row", how="mean", anchor="none"),
        trust=OddsContrast(coef=0.1),
        terms=[LikeBest(1.0, over="row")],
        card=Card(
            id="orpo-odds",
            title="ORPO: Monolithic Preference Optimization without Reference Model",
            year=2024,
            arxiv="2403.07691",
            family="preference",
            equation="L = -m_w - lambda log sigma(odds_w - odds_l),  m = mean log pi, odds = m - log(1 - e^m)",
            source="arXiv 2403.07691, eq. 6 and 7",
            claim="Imitation plus an odds-ratio penalty aligns in one stage.",
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
