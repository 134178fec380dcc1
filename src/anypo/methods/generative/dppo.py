"""DPPO: PPO in two layers of time; advantages belong to actions, ratios to denoising steps, and noisy steps count less."""

from anypo.method.card import Card, Claim, Reduction
from anypo.method.registry import register_method
from anypo.methods.policy_gradient.ppo import ppo
from anypo.parts.credit import DenoisingDiscount, Gae, SegmentGae, Whiten
from anypo.parts.critic import Value
from anypo.parts.trust import StepClip

dppo = register_method(
    ppo.but(
        critic=[Value(0.5)],
        credit=[SegmentGae(0.99, 0.95), Whiten(), DenoisingDiscount(0.99)],
        trust=StepClip(first=0.001, last=0.01, c=3.0),
        card=Card(
            id="dppo",
            title="Diffusion Policy Policy Optimization",
            year=2024,
            arxiv="2409.00588",
            family="generative",
            equation="L = -mean min(r A_i, clip(r, 1-eps_i, 1+eps_i) A_i) + c_v L_V,  A_i = gamma_d^(K-1-i) GAE(action)",
            source="arXiv 2409.00588, sec. 4; ReinFlow/ReinFlow, model/diffusion/diffusion_ppo.py",
            claim="Policy gradients fine-tune a pretrained diffusion policy stably and further than other fine-tuning.",
            claims=(
                Claim(
                    "One advantage per action earns more than PPO with one per denoising step.",
                    "denoising",
                    "curve",
                    against="ppo",
                    settings={"policy": "diffusion"},
                ),
            ),
            reduces=(
                Reduction(
                    "ppo",
                    {"credit": (Gae(0.99, 0.95), Whiten()), "trust": StepClip(0.2, 0.2)},
                    {"critic": (Value(0.5),)},
                ),
            ),
        ),
    )
)
