"""CoPG: policy gradient by contrast of regularised rewards, right on samples of any policy without importance weights."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.preference.dpo import dpo
from anypo.parts.trust import RewardContrast

copg = register_method(
    dpo.but(
        trust=RewardContrast(beta=0.1),
        card=Card(
            id="copg",
            title="Contrastive Policy Gradient: Aligning LLMs on sequence-level scores in a supervised-friendly fashion",
            year=2024,
            arxiv="2406.19185",
            family="preference",
            equation="maximise (dR - beta/2 dv) dv,  v = log pi/ref, over the pairs of a group",
            source="arXiv 2406.19185",
            claim="Its unique optimum is the KL-regularised one whatever policy sampled.",
            claims=(Claim("Stale data cost it less than RLOO.", "staleness", "success", against="rloo"),),
        ),
    )
)
