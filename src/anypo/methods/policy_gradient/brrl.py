"""BRRL: the ratio is drawn to a bounded target instead of being clipped. For groups (GBPO), and with a median critic (BPO)."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.policy_gradient.grpo import grpo
from anypo.methods.policy_gradient.ppo import ppo
from anypo.parts.credit import Baseline, Combine, Gae
from anypo.parts.critic import Median, Value
from anypo.parts.reduce import Mean
from anypo.parts.step import Adam
from anypo.parts.trust import BoundedTarget, MedianTarget

PAPER = {
    "title": "Bounded Ratio Reinforcement Learning",
    "year": 2026,
    "arxiv": "2604.18578",
    "system": "bounded-ratio-rl",
    "source": "arXiv 2604.18578; bounded-ratio-rl/bounded_ratio_rl, sb3/BPO.py and gbpo in verl's core_algos",
    "claim": "Matches or beats PPO and GRPO in stability and return, with a bound on monotone improvement stated in the loss.",
}

brrl = register_method(
    grpo.but(
        credit=[Combine(), Baseline("group", center="mean", scale="std", alone=True)],
        trust=BoundedTarget(low=0.2, high=0.2, temp=1.0),
        reduce=Mean("token"),
        terms=[],
        card=Card(
            id="brrl",
            claims=(
                Claim(
                    "Ratios stay smaller than with clipping when batches are reused.",
                    "reuse",
                    "ratio_max",
                    against="grpo",
                    better="lower",
                ),
            ),
            equation="L = mean |r - rho| |A|,  rho = 1 - eps + 2 eps sigmoid((s - median) / std)",
            **PAPER,
        ),
    )
)

bpo = register_method(
    ppo.but(
        credit=[Gae(gamma=0.99, lam=0.95)],
        critic=[Value(coef=0.5), Median(coef=0.5)],
        trust=MedianTarget(low=0.3, high=0.3, temp=1e-3),
        step=Adam(grad_norm=1.0),
        card=Card(
            id="bpo",
            claims=(
                Claim(
                    "Ratios stay smaller than PPO's on CartPole with twenty epochs a batch.",
                    "control",
                    "ratio_max",
                    against="ppo",
                    better="lower",
                    settings={"epochs": 20},
                ),
            ),
            equation="L = mean |r - rho| |R - V|,  rho = 1 - eps + 2 eps sigmoid((R - u) / lambda)",
            **PAPER,
        ),
    )
)
