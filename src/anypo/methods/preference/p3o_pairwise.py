"""P3O: policy gradient on reward differences of pairs, each row's ratio clipped; blind to shifts of the reward."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.preference.dpo import dpo
from anypo.parts.ratio import LogRatio
from anypo.parts.trust import PairwiseClip

p3o_pairwise = register_method(
    dpo.but(
        ratio=LogRatio("row", how="sum", anchor="old"),
        trust=PairwiseClip(eps=0.2),
        card=Card(
            id="p3o-pairwise",
            title="Pairwise Proximal Policy Optimization: Harnessing Relative Feedback for LLM Alignment",
            year=2023,
            arxiv="2310.00212",
            family="preference",
            equation="maximise sum_i min(w_i r_i, w_i clip(r_i)) / 2,  w_i = sg[(R_i - R_j) r_j]",
            source="arXiv 2310.00212 (separate clipping)",
            claim="Invariant to shifts of the reward per prompt; a better frontier of KL and reward than PPO and DPO.",
            claims=(Claim("Noise on the scores costs it less than PPO.", "noise", "success", against="ppo"),),
            confidence="reconstructed",
        ),
    )
)
