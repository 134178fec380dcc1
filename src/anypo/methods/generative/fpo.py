"""FPO: PPO whose likelihood ratio is the exponential of the fall of the flow-matching loss on the action taken."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.policy_gradient.ppo import ppo
from anypo.parts.credit import SegmentGae, Whiten
from anypo.parts.critic import Value
from anypo.parts.ratio import MatchingRatio
from anypo.parts.trust import Clip

fpo = register_method(
    ppo.but(
        critic=[Value(0.5)],
        credit=[SegmentGae(0.995, 0.95), Whiten()],
        ratio=MatchingRatio("segment", limit=3.0),
        trust=Clip(0.05, 0.05),
        card=Card(
            id="fpo",
            title="Flow Matching Policy Gradients",
            year=2025,
            arxiv="2507.21053",
            family="generative",
            equation="L = -mean min(r A, clip(r) A) + c_v L_V,  r = exp(mean_j L_old,j - L_j),  L_j = mean_d |v - (a - z_j)|^2",
            source="arXiv 2507.21053, eq. 11; akanazawa/fpo, playground/src/flow_policy/fpo.py (minibatches of actions; passes over a"
            " batch, there 16, are the task's)",
            claim="It matches Gaussian PPO in control while it learns multimodal actions, with any sampler.",
            claims=(
                Claim(
                    "It earns within five points of PPO on the likelihoods of the denoising steps.",
                    "denoising",
                    "reward",
                    against="ppo",
                    margin=-0.05,
                ),
            ),
        ),
    )
)
