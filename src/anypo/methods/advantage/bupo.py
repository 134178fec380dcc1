"""BuPO: GRPO that first trains the policy an inner layer already forms, then the whole model."""

from anypo.method.card import Card, Claim, Reduction
from anypo.method.registry import register_method
from anypo.methods.policy_gradient.grpo import grpo
from anypo.parts.ratio import InnerRatio, LogRatio
from anypo.parts.reduce import Mean
from anypo.parts.trust import Clip

bupo = register_method(
    grpo.but(
        ratio=InnerRatio(layer=5),
        trust=Clip(0.2, 0.2, dual=10.0),
        reduce=Mean("token"),
        terms=[],
        card=Card(
            id="bupo",
            title="Bottom-up Policy Optimization: Your Language Model Policy Secretly Contains Internal Policies",
            year=2025,
            arxiv="2512.19673",
            family="advantage",
            equation="30 batches of GRPO on pi_l = softmax(h_l W_U) with samples of pi, then GRPO on pi",
            source="arXiv 2512.19673; Trae1ounG/BuPO, model forward and scripts",
            claim="Briefly aligning a low layer first beats GRPO on mathematics; doing it for too long makes the model collapse.",
            claims=(
                Claim(
                    "A language model whose inner layer is trained first answers better than with GRPO.",
                    "layers",
                    "success",
                    against="grpo",
                ),
            ),
            reduces=(
                Reduction(
                    "grpo",
                    {"ratio": LogRatio("token")},
                    {"trust": Clip(0.2, 0.2, dual=10.0), "reduce": Mean("token"), "terms": []},
                ),
            ),
        ),
    ).then(30, ratio=LogRatio("token"))
)
