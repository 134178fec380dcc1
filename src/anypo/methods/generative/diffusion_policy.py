"""Diffusion Policy: behaviour cloning of the expert's actions by a conditional denoising diffusion model."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.policy_gradient.sft import sft
from anypo.parts.trust import Matching

diffusion_policy = register_method(
    sft.but(
        trust=Matching("denoising"),
        card=Card(
            id="diffusion-policy",
            title="Diffusion Policy: Visuomotor Policy Learning via Action Diffusion",
            year=2023,
            arxiv="2303.04137",
            family="generative",
            equation="L = mean |e - eps(x_k, k, o)|^2,  x_k = sqrt(abar_k) a + sqrt(1 - abar_k) e,  a from demonstrations",
            source="arXiv 2303.04137, eq. 3 to 5; without the average of weights and without chunks of actions",
            claim="On multimodal demonstrations it covers all modes where a Gaussian policy averages them.",
            claims=(
                Claim(
                    "It samples as precisely as flow matching from the same demonstrations.",
                    "cloning",
                    "precision",
                    against="flow-matching-policy",
                    margin=-0.05,
                ),
            ),
        ),
    )
)
