"""DDPO: denoising as a decision process; every step has the credit of the sample and its own exact likelihood ratio."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.policy_gradient.grpo import grpo
from anypo.methods.policy_gradient.ppo import clipped_weight
from anypo.parts.credit import Baseline, Combine, LimitAdvantage
from anypo.parts.reduce import Mean
from anypo.parts.trust import Clip

ddpo = register_method(
    grpo.but(
        credit=[Combine(), Baseline("group", eps=1e-8), LimitAdvantage(5.0)],
        trust=Clip(1e-4, 1e-4),
        reduce=Mean("token"),
        terms=[],
        card=Card(
            id="ddpo",
            title="Training Diffusion Models with Reinforcement Learning",
            year=2023,
            arxiv="2305.13301",
            family="generative",
            equation="L = -mean_k min(r_k A, clip(r_k) A),  r_k = p/p_old (x_{k-1} | x_k),  A = clip((s - mean) / std, -5, 5)",
            source="arXiv 2305.13301, eq. 5; kvablack/ddpo-pytorch (statistics per prompt over 16 batches, here over the group)",
            claim="Exact likelihoods of denoising steps optimise a reward better than reward-weighted regression.",
            weight=clipped_weight(1e-4, 1e-4),
            claims=(
                Claim(
                    "With the same samples it earns within five points of GRPO.",
                    "denoising",
                    "reward",
                    against="grpo",
                    margin=-0.05,
                    settings={"policy": "diffusion"},
                ),
            ),
        ),
    )
)
