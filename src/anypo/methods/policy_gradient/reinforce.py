"""REINFORCE: the likelihood of every decision, weighted by the return that followed it."""

from anypo.method.card import Card, Claim
from anypo.method.method import Method
from anypo.method.registry import register_method
from anypo.parts.collect import Ask
from anypo.parts.credit import Returns
from anypo.parts.reduce import Mean
from anypo.parts.step import Adam
from anypo.parts.store import Fresh
from anypo.parts.trust import Likelihood

reinforce = register_method(
    Method(
        Card(
            id="reinforce",
            title="Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning",
            year=1992,
            arxiv=None,
            equation="L = -mean_i sum_t G_t log pi(a_t | s_t),  G_t = sum_{k>=t} gamma^(k-t) r_k",
            source="Williams 1992, Machine Learning 8, eq. 4 and theorem 1",
            claim="The estimate of the gradient of the expected return is unbiased on on-policy data.",
            claims=(
                Claim(
                    "Its gradient is closer in direction to the exact one than GRPO's, which divides by the group's spread.",
                    "gradient",
                    "bias",
                    against="grpo",
                    better="lower",
                    settings={"repeats": 1000, "requests": 16},
                ),
            ),
            weight=lambda r, a: a,
        ),
        collect=Ask(),
        score=(),
        store=Fresh(),
        critic=(),
        credit=(Returns(gamma=1.0),),
        ratio=None,
        trust=Likelihood(),
        reduce=Mean("sum"),
        step=Adam(epochs=1),
        terms=(),
    )
)
