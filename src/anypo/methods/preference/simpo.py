"""SimPO: no reference; the reward is the mean log-likelihood, with a margin."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.preference.dpo import dpo
from anypo.parts.ratio import LogRatio
from anypo.parts.trust import PairContrast

simpo = register_method(
    dpo.but(
        ratio=LogRatio("row", how="mean", anchor="none"),
        trust=PairContrast("logistic", beta=2.0, margin=1.0),
        card=Card(
            id="simpo",
            title="SimPO: Simple Preference Optimization with a Reference-Free Reward",
            year=2024,
            arxiv="2405.14734",
            family="preference",
            equation="L = -log sigma(beta/|y_w| log pi(y_w) - beta/|y_l| log pi(y_l) - gamma)",
            source="arXiv 2405.14734, eq. 6",
            claim="A length-normalised reward without reference beats DPO and does not exploit length.",
            claims=(
                Claim(
                    "Right answers end no longer than with DPO where fillers are free.",
                    "length",
                    "length_right",
                    against="dpo",
                    better="lower",
                    margin=-0.05,
                ),
            ),
        ),
    )
)
