"""TD3+BC: TD3 on data, held at the recorded actions by a squared term on the scale of Q."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.control.td3 import td3
from anypo.parts.collect import FromData
from anypo.parts.knobs import Alternate
from anypo.parts.terms import CloneAction
from anypo.parts.trust import Pathwise

td3_bc = register_method(
    td3.but(
        collect=FromData(standardize=True),
        trust=Pathwise(of="first", soft=False, scale=2.5, coef=Alternate(period=2)),
        terms=[CloneAction(coef=Alternate(period=2))],
        card=Card(
            id="td3-bc",
            title="A Minimalist Approach to Offline Reinforcement Learning",
            year=2021,
            arxiv="2106.06860",
            family="control",
            equation="L = -lam mean Q_1(s, pi(s)) + mean (pi(s) - a)^2,  lam = 2.5 / mean |Q_1|",
            source="arXiv 2106.06860, eq. 3-5; sfujim/TD3_BC (states standardised)",
            claim="One cloning term and state normalisation make TD3 a strong offline method.",
            claims=(
                Claim(
                    "On data four fifths of which are random it beats BC.",
                    "offline",
                    "return",
                    against="bc",
                ),
            ),
        ),
    )
)
