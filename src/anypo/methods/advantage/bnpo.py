"""BNPO: the baseline's scale is a Beta density fitted to the batch's success rates."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.policy_gradient.grpo import grpo
from anypo.parts.credit import BetaNormalize
from anypo.parts.reduce import Mean
from anypo.parts.trust import Clip

bnpo = register_method(
    grpo.but(
        credit=[BetaNormalize()],
        trust=Clip(0.2, 0.28, dual=10.0),
        reduce=Mean("sum"),
        terms=[],
        card=Card(
            id="bnpo",
            title="BNPO: Beta Normalization Policy Optimization",
            year=2025,
            arxiv="2506.02864",
            family="advantage",
            equation="A_i = (R_i - p) / Beta(p; max(1 + a/3, 1), max(1 + b/3, 1)),  (a, b) fitted to the groups' p by moments",
            source="arXiv 2506.02864; changyi7231/BNPO, advantage function and run script",
            claim="The normalised gradient has the least variance among Beta normalisers; most stable training, best average accuracy.",
            claims=(
                Claim(
                    "Its gradient varies less than GRPO's on right-or-wrong rewards.",
                    "gradient",
                    "variance",
                    against="grpo",
                    better="lower",
                    settings={"binary": True},
                ),
            ),
        ),
    )
)
