"""MDPO: mirror descent: ten steps on the unclipped surrogate with a divergence from the sampling policy whose weight grows."""

from anypo.method.card import Card, Claim, Reduction
from anypo.method.registry import register_method
from anypo.methods.policy_gradient.ppo import ppo
from anypo.parts.credit import Gae, Whiten
from anypo.parts.critic import Value
from anypo.parts.knobs import Reciprocal
from anypo.parts.step import Adam
from anypo.parts.terms import Divergence
from anypo.parts.trust import Clip, Unclipped

mdpo = register_method(
    ppo.but(
        critic=[Value(coef=0.5)],
        credit=[Gae(gamma=0.99, lam=0.95), Whiten(ddof=0)],
        trust=Unclipped(),
        step=Adam(epochs=10, minibatch=0, grad_norm=0.5),
        terms=[Divergence("proximal", anchor="old", coef=Reciprocal(1.0, 0.0))],
        card=Card(
            id="mdpo",
            title="Mirror Descent Policy Optimization",
            year=2020,
            arxiv="2005.09814",
            equation="L = mean -r A + (1/t_k) (r log r - r + 1),  t_k = 1 - k/K over the batches, ten steps a batch",
            source="arXiv 2005.09814, on-policy form; manantomar/Mirror-Descent-Policy-Optimization, mdpo_on/mdpo.py",
            claim="Approximate mirror descent in several steps matches or beats TRPO, PPO and SAC; the constraint need not be enforced.",
            claims=(
                Claim(
                    "Ten unclipped steps with a divergence penalty come within five points of PPO's ten clipped ones.",
                    "learning",
                    "success",
                    against="ppo",
                    margin=-0.05,
                    settings={"epochs": 10},
                ),
            ),
            reduces=(
                Reduction(
                    "ppo",
                    {"trust": Clip(0.2, 0.2), "terms": [], "critic": [Value(0.5, clip=0.2)]},
                    {"credit": [Gae(0.99, 0.95), Whiten(ddof=0)]},
                ),
            ),
        ),
    )
)
