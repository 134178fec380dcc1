"""SAFE: PPO on outcome scores with a pessimistic pair of critics and a divergence penalty that a controller switches."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.policy_gradient.ppo import ppo
from anypo.parts.credit import PessimisticBaseline
from anypo.parts.critic import PessimisticValue
from anypo.parts.step import Adam
from anypo.parts.terms import Entropy, EntropyGatedKl

safe = register_method(
    ppo.but(
        critic=[PessimisticValue(coef=0.5, alpha=0.3, clip=0.2, delta=0.5)],
        credit=[PessimisticBaseline(alpha=0.3)],
        step=Adam(epochs=2, minibatch=0, grad_norm=1.0),
        terms=[EntropyGatedKl(), Entropy(0.01)],
        card=Card(
            id="safe",
            title="SAFE: Stable Alignment Finetuning with Entropy-Aware Predictive Control for RLHF",
            year=2026,
            arxiv=None,
            equation="L = L_clip + 0.5 L_V + 0.1 max(Ks - threshold, 0)^2 max(0.5, 2 / (H + 0.1)) - 0.01 H,  A = whitened R - V",
            source="ryyzn9/SAFE, trainers/safe.py, controllers/, models/critic.py; the penalty there is a plain number and has no"
            " gradient, here it has one (`detached` restores theirs)",
            claim="5.15% more reward over training than PPO, with hardly any reward crash.",
            claims=(
                Claim(
                    "Heavy-tailed noise on the scores costs it less than PPO.", "heavy-tail", "success", against="ppo"
                ),
            ),
        ),
    )
)
