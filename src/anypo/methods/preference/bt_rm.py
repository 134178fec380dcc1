"""Bradley-Terry reward model: a scalar score per answer, so that the difference of two scores explains which one is preferred."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.preference.dpo import dpo
from anypo.parts.ratio import LearnedScore
from anypo.parts.trust import PairContrast

bt_rm = register_method(
    dpo.but(
        ratio=LearnedScore(),
        trust=PairContrast("logistic", beta=1.0),
        card=Card(
            id="bt-rm",
            title="Training language models to follow instructions with human feedback (its Bradley-Terry reward model)",
            year=2017,
            arxiv="1706.03741",
            family="preference",
            system="instructgpt",
            equation="L = -log sigma(r_w - r_l - m),  r a scalar head at the answer's end",
            source="arXiv 1706.03741, sec. 2.2.3; arXiv 2203.02155, eq. 1",
            claim="Maximum likelihood recovers the reward up to a constant when preferences follow Bradley-Terry.",
            claims=(
                Claim(
                    "Scores are recovered more exactly than by IPO's squares.",
                    "recovery",
                    "rmse",
                    against="ipo",
                    better="lower",
                ),
            ),
        ),
    )
)
