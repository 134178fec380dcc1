"""GHPO: GRPO that shows more and more of the reference solution where every sample fails."""

from anypo.method.card import Card, Claim, Reduction
from anypo.method.registry import register_method
from anypo.methods.policy_gradient.grpo import grpo
from anypo.methods.policy_gradient.ppo import clipped_weight
from anypo.parts.collect import HintLadder
from anypo.parts.credit import Baseline, Combine
from anypo.parts.reduce import Mean

ghpo = register_method(
    grpo.but(
        collect=HintLadder(rungs=(0.0, 0.25, 0.5, 0.75)),
        credit=[Combine(), Baseline("group", center="mean", scale="std", eps=1e-4)],
        reduce=Mean("token"),
        terms=[],
        card=Card(
            id="ghpo",
            title="GHPO: Adaptive Guidance for Stable and Efficient LLM Reinforcement Learning",
            year=2025,
            arxiv="2507.10628",
            family="guidance_agents",
            equation="a group that fails entirely is sampled again given h[:w|h|], w = 0.25, 0.5, 0.75; GRPO given q and h[:w|h|]",
            source="arXiv 2507.10628; hkgc-1/GHPO, ghpo_trainer.py",
            claim="About 5% over GRPO on six mathematics benchmarks, with fewer groups that teach nothing.",
            claims=(
                Claim(
                    "Codes that GRPO never finds by chance are solved without hints in the end.",
                    "sparse",
                    "success",
                    against="grpo",
                ),
                Claim(
                    "Hints that grow until a sample is right solve more codes than a fixed hint of one half.",
                    "sparse",
                    "success",
                    against="self",
                    ablate={"collect.rungs": [0.0, 0.5]},
                ),
            ),
            weight=clipped_weight(0.2, 0.2),
            reduces=(
                Reduction(
                    "grpo",
                    {"credit": [Combine(), Baseline("group")]},
                    {"reduce": Mean("token"), "terms": []},
                ),
            ),
        ),
    )
)
