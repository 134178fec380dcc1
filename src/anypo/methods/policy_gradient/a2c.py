"""A2C: REINFORCE with a learned value, n-step bootstrapped returns and an entropy bonus."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.policy_gradient.reinforce import reinforce
from anypo.parts.credit import NStep
from anypo.parts.critic import Value
from anypo.parts.reduce import Mean
from anypo.parts.step import RMSProp
from anypo.parts.terms import Entropy

a2c = register_method(
    reinforce.but(
        critic=[Value(coef=0.5)],
        credit=[NStep(n=5, gamma=0.99)],
        reduce=Mean("token"),
        step=RMSProp(lr=7e-4, epochs=1, grad_norm=0.5),
        terms=[Entropy(coef=0.01)],
        card=Card(
            id="a2c",
            title="Asynchronous Methods for Deep Reinforcement Learning (synchronous advantage actor-critic)",
            year=2016,
            arxiv="1602.01783",
            equation="L = -A_t log pi_t + c_v (V_t - R_t)^2 / 2 - c_e H_t,  R_t = sum_{k<n} gamma^k r_{t+k} + gamma^n V_{t+n}",
            source="arXiv 1602.01783, sec. 4, algorithm S3",
            claim="A bootstrapped critic reduces the variance of the gradient at the price of bias.",
            claims=(
                Claim(
                    "A learned baseline learns hidden codes faster than none.", "learning", "curve", against="reinforce"
                ),
            ),
            weight=lambda r, a: a,
        ),
    )
)
