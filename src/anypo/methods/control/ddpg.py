"""DDPG: the deterministic policy gradient, through a critic learned from replayed transitions."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.control.sac import sac
from anypo.parts.collect import Explore
from anypo.parts.critic import ActionValue, TargetAction
from anypo.parts.trust import Pathwise

ddpg = register_method(
    sac.but(
        collect=Explore(first=1000, noise=0.1),
        critic=[ActionValue("q", TargetAction(), ensemble=1)],
        trust=Pathwise(of="first", soft=False),
        card=Card(
            id="ddpg",
            title="Continuous control with deep reinforcement learning",
            year=2015,
            arxiv="1509.02971",
            family="control",
            equation="y = r + gamma (1-d) Qbar(s', mubar(s'));  L_mu = -Q(s, mu(s))",
            source="arXiv 1509.02971, eq. 5, 6; Gaussian exploration noise",
            claim="Deterministic policy gradients with replay and targets solve continuous control off-policy.",
            claims=(
                Claim(
                    "In 1,440 decisions it gets a point nearer to its goal than PPO does.",
                    "replay",
                    "return",
                    against="ppo",
                ),
            ),
        ),
    )
)
