"""ReinFlow: PPO on the likelihood of the whole chain of a flow policy, whose steps have learned noise."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.policy_gradient.ppo import ppo
from anypo.parts.credit import SegmentGae, Whiten
from anypo.parts.critic import Value
from anypo.parts.ratio import ChainRatio
from anypo.parts.terms import ChainEntropy
from anypo.parts.trust import Clip

reinflow = register_method(
    ppo.but(
        critic=[Value(0.5)],
        credit=[SegmentGae(0.99, 0.95), Whiten()],
        ratio=ChainRatio(limit=1.0),
        trust=Clip(0.01, 0.01),
        terms=[ChainEntropy(0.03)],
        card=Card(
            id="reinflow",
            title="ReinFlow: Fine-tuning Flow Matching Policy with Online Reinforcement Learning",
            year=2025,
            arxiv="2505.22094",
            family="generative",
            equation="L = -mean min(r A, clip(r) A) + c_v L_V - 0.03 sum_k H_k / (K + 1),  log r = l - l_old,  l = log p(chain) / (K + 1)",
            source="arXiv 2505.22094, sec. 4; ReinFlow/ReinFlow, ppoflow.py and train_ppo_flow_agent.py (bound of the noise)",
            claim="Exact chain likelihoods with learned noise fine-tune flow policies of one to four steps.",
            claims=(
                Claim(
                    "A flow policy of four steps with learned noise earns more than with DPPO.",
                    "denoising",
                    "curve",
                    against="dppo",
                    settings={"steps": 4, "noise": "learned"},
                ),
            ),
        ),
    )
)
