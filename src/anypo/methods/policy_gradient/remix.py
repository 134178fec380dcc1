"""ReMix: GRPO on a mixture of fresh and recent rows, clipped around the policy the update starts from, then on fresh rows alone."""

from anypo.method.card import Card, Claim, Reduction
from anypo.method.registry import register_method
from anypo.methods.policy_gradient.grpo import grpo
from anypo.parts.knobs import Staircase
from anypo.parts.reduce import Mean
from anypo.parts.step import Adam
from anypo.parts.store import Fresh, Replay
from anypo.parts.terms import Divergence
from anypo.parts.trust import Clip, RecentredClip

BETA = 0.01
"""Weight of the two divergences together; their shares are lam and 1 - lam, lam falling from 1 to 0.5."""

remix = register_method(
    grpo.but(
        store=Replay(share=0.4, window=2),
        trust=RecentredClip(0.2),
        reduce=Mean("token"),
        step=Adam(epochs=2),
        terms=[
            Divergence("k3", anchor="ref", coef=Staircase(BETA, -0.1 * BETA, 0.5 * BETA, after=50, per=10), renew=50),
            Divergence("k3", anchor="prev", coef=Staircase(0.0, 0.1 * BETA, 0.5 * BETA, after=50, per=10)),
        ],
        card=Card(
            id="remix",
            title="Squeeze the Soaked Sponge: Efficient Off-policy Reinforcement Finetuning for Large Language Model",
            year=2025,
            arxiv="2507.06892",
            equation="L = -mean min(r A, clip(r, c-eps, c+eps) A) + beta [lam k3(ref) + (1-lam) k3(prev)],  c = pi_k / pi_old",
            source="arXiv 2507.06892 (Mix-PPG, KL-Convex, policy reincarnation); beta and the entropy bonus (0) are ours",
            claim="30 to 450 times fewer rollouts than comparable models; without reincarnation 4.84 points are lost.",
            claims=(
                Claim(
                    "It learns faster than GRPO from the same number of rollouts.", "learning", "curve", against="grpo"
                ),
            ),
            reduces=(
                Reduction("grpo", {"trust": Clip(0.2, 0.2), "terms": []}, {"reduce": Mean("token"), "terms": []}),
            ),
        ),
    ).then(50, store=Fresh(), trust=Clip(0.2, 0.2))
)
