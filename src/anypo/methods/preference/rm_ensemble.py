"""Reward-model ensembles: a score on which several reward models disagree is worth less."""

from anypo.method.card import Card, Claim, Reduction
from anypo.method.registry import register_method
from anypo.methods.policy_gradient.grpo import grpo
from anypo.parts.score import ConservativeScore

rm_ensemble = register_method(
    grpo.but(
        score=[ConservativeScore("uwo", lam=0.1)],
        card=Card(
            id="rm-ensemble",
            title="Reward Model Ensembles Help Mitigate Overoptimization",
            year=2023,
            arxiv="2310.02743",
            family="preference",
            equation="s = mean_k R_k - lam Var_k R_k (uwo), min_k R_k (wco), or mean_k R_k",
            source="arXiv 2310.02743, sec. 3; lam and the unbiased variance as in its code for training",
            claim="Conservative aggregation practically removes overoptimization, and always reduces it for PPO.",
            reduces=(Reduction("grpo", {"score": []}),),
            claims=(
                Claim(
                    "With five wrong proxies it ends with a higher true reward than GRPO on one of them.",
                    "proxies",
                    "success",
                    against="grpo",
                ),
            ),
        ),
    )
)
