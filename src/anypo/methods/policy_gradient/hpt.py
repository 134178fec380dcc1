"""HPT: where every sample of a prompt fails, learn from its demonstration instead."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.method.term import Term
from anypo.methods.policy_gradient.dr_grpo import dr_grpo
from anypo.parts.collect import WithDemonstrations
from anypo.parts.credit import Baseline, Combine, GateBySuccess
from anypo.parts.step import Adam
from anypo.parts.terms import Entropy
from anypo.parts.trust import Unclipped

hpt = register_method(
    dr_grpo.but(
        collect=WithDemonstrations(),
        credit=[Combine(), Baseline("group", center="mean", scale=None), GateBySuccess(above=0.0)],
        trust=Unclipped(),
        step=Adam(grad_norm=80.0),
        terms=[Term(rows="expert"), Entropy(0.001)],
        card=Card(
            id="hpt",
            title="Towards a Unified View of Large Language Model Post-Training",
            year=2025,
            arxiv="2509.04419",
            equation="L = alpha L_RL + beta L_SFT per prompt, (alpha, beta) = (1, 0) where mean score > gamma else (0, 1)",
            source="arXiv 2509.04419; TsinghuaC3I/Unify-Post-Training, mix_trainer.py and mix_core_alg.py",
            claim="Gated switching beats SFT, GRPO, SFT then GRPO, LUFFY and SRFT on six mathematics suites.",
            claims=(
                Claim(
                    "Demonstrations solve codes that GRPO never finds by chance.",
                    "demonstrations",
                    "success",
                    against="grpo",
                ),
            ),
            weight=lambda r, a: r * a,
        ),
    )
)
