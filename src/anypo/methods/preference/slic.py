"""SLiC-HF: a margin on sequence likelihoods, and imitation of the preferred answer."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.preference.dpo import dpo
from anypo.parts.ratio import LogRatio
from anypo.parts.terms import LikeBest
from anypo.parts.trust import PairContrast

slic = register_method(
    dpo.but(
        ratio=LogRatio("row", how="sum", anchor="none"),
        trust=PairContrast("hinge", beta=1.0, margin=1.0),
        terms=[LikeBest(0.1, over="sum")],
        card=Card(
            id="slic",
            title="SLiC-HF: Sequence Likelihood Calibration with Human Feedback",
            year=2023,
            arxiv="2305.10425",
            family="preference",
            equation="L = max(0, delta - log pi(y_w) + log pi(y_l)) - lambda log pi(y_w)",
            source="arXiv 2305.10425, sec. 2",
            claim="Calibration on pairs matches PPO at much lower cost.",
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
