"""PPO: A2C whose surrogate is clipped around the sampling policy, so that a batch may be used for several epochs."""

import torch

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.policy_gradient.a2c import a2c
from anypo.parts.credit import Gae, Whiten
from anypo.parts.critic import Value
from anypo.parts.ratio import LogRatio
from anypo.parts.step import Adam
from anypo.parts.trust import Clip


def clipped_weight(low: float, high: float):
    """W(r, A) = r A, and 0 once the ratio has left [1 - low, 1 + high] in the direction that A rewards."""

    def weight(r: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        return torch.where(((a > 0) & (r > 1 + high)) | ((a < 0) & (r < 1 - low)), 0.0, r * a)

    return weight


ppo = register_method(
    a2c.but(
        critic=[Value(coef=0.5, clip=0.2)],
        credit=[Gae(gamma=0.99, lam=0.95), Whiten()],
        ratio=LogRatio("token"),
        trust=Clip(low=0.2, high=0.2),
        step=Adam(grad_norm=0.5),
        terms=[],
        card=Card(
            id="ppo",
            title="Proximal Policy Optimization Algorithms",
            year=2017,
            arxiv="1707.06347",
            equation="L = -mean_t min(r_t A_t, clip(r_t, 1-eps, 1+eps) A_t) + c_v L_V,  r_t = pi / pi_old",
            source="arXiv 1707.06347, eq. 7 and 9; value clipping and whitening as in the reference implementation; "
            "`add-advantage` mixes reward channels, each with a value head",
            claim="The clipped surrogate gives the stability of a trust region with first-order updates.",
            claims=(
                Claim(
                    "Using a batch eight times learns more from it than A2C's single use.",
                    "reuse",
                    "curve",
                    against="a2c",
                ),
            ),
            weight=clipped_weight(0.2, 0.2),
        ),
    )
)
