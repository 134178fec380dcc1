"""AWM: the pretraining loss itself, weighted by the advantage; the policy is held near its own moving average."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.generative.flow_grpo import flow_grpo
from anypo.parts.credit import Baseline, BatchScale, Combine, LimitAdvantage
from anypo.parts.ratio import MatchingRatio
from anypo.parts.terms import GuessDivergence
from anypo.parts.trust import Clip

awm = register_method(
    flow_grpo.but(
        credit=[Combine(), Baseline("group", scale=None), BatchScale(1e-4), LimitAdvantage(5.0, unit=1.0)],
        ratio=MatchingRatio("draw", limit=None, weighting="ghuber"),
        trust=Clip(1.0, 1.0),
        terms=[GuessDivergence(0.001, "ref"), GuessDivergence(1.0, "ema", decay=0.3)],
        card=Card(
            id="awm",
            title="Advantage Weighted Matching: Aligning RL with Pretraining in Diffusion Models",
            year=2025,
            arxiv="2509.25050",
            family="generative",
            equation="L = -mean_j min(r_j A, clip(r_j, 0, 2) A) + beta |v - v_ref|^2 + |v - v_ema|^2,  log r_j = g(L_old,j) - g(L_j)",
            source="arXiv 2509.25050; scxue/advantage_weighted_matching, train_sd3_awm.py (there no times of first step and last tenth)",
            claim="Keeping the pretraining loss lowers the variance and trains many times faster than Flow-GRPO.",
            claims=(
                Claim(
                    "It reaches nine tenths of the reward in fewer batches than Flow-GRPO.",
                    "denoising",
                    "batches_to_90",
                    against="flow-grpo",
                    better="lower",
                ),
            ),
        ),
    )
)
