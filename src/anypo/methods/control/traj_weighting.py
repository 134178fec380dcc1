"""Trajectory weighting: TD3+BC on data in which good trajectories are drawn more often. The store serves every offline method."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.control.td3_bc import td3_bc
from anypo.parts.store import WeightedTrajectories

traj_weighting = register_method(
    td3_bc.but(
        store=WeightedTrajectories(by="advantage", temperature=0.1),
        card=Card(
            id="traj-weighting",
            title="Harnessing Mixed Offline Reinforcement Learning Datasets via Trajectory Weighting",
            year=2023,
            arxiv="2306.13085",
            family="control",
            equation="P(transition t) ~ exp(x / 0.1),  x the scaled advantage G - V(s_0) of its trajectory",
            source="arXiv 2306.13085, eq. 6, 8; Improbable-AI/harness-offline-rl",
            claim="The same offline methods exploit mixed data much better and are nearly unchanged elsewhere.",
            claims=(
                Claim(
                    "On data four fifths of which are random it beats TD3+BC.",
                    "offline",
                    "return",
                    against="td3-bc",
                ),
            ),
        ),
    )
)
