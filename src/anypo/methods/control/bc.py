"""BC: the likelihood of the actions in the data."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.control.sac import sac
from anypo.parts.collect import FromData
from anypo.parts.trust import WeightedBC

bc = register_method(
    sac.but(
        collect=FromData(),
        critic=[],
        trust=WeightedBC(),
        card=Card(
            id="bc",
            title="ALVINN: An Autonomous Land Vehicle in a Neural Network",
            year=1988,
            arxiv=None,
            family="control",
            equation="L = -log pi(a | s) over the data",
            source="Pomerleau, NIPS 1988",
            claim="Supervised imitation matches the policy that made the data.",
            claims=(
                Claim(
                    "On an expert's data it does as well as IQL, within half a reward.",
                    "offline",
                    "return",
                    against="iql",
                    margin=-0.5,
                    settings={"data": "expert"},
                ),
            ),
        ),
    )
)
