"""IPO: the gap of log-ratios is drawn to a finite target instead of growing without end."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.preference.dpo import dpo
from anypo.parts.trust import PairContrast

ipo = register_method(
    dpo.but(
        trust=PairContrast("square", beta=0.1),
        card=Card(
            id="ipo",
            title="A General Theoretical Paradigm to Understand Learning from Human Preferences",
            year=2023,
            arxiv="2310.12036",
            family="preference",
            equation="L = (u - 1/(2 tau))^2",
            source="arXiv 2310.12036, eq. 17",
            claim="The gap stays finite even for deterministic labels.",
            claims=(Claim("More entropy is left than with DPO.", "retention", "entropy", against="dpo"),),
        ),
    )
)
