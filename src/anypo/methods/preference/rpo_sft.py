"""RPO: DPO with a small imitation term, which is pessimism about answers that were never compared."""

from anypo.method.card import Card, Claim, Reduction
from anypo.method.registry import register_method
from anypo.methods.preference.dpo import dpo
from anypo.parts.terms import LikeBest
from anypo.parts.trust import PairContrast

rpo_sft = register_method(
    dpo.but(
        trust=PairContrast("logistic", beta=0.01),
        terms=[LikeBest(0.005 * 0.01, over="sum")],
        card=Card(
            id="rpo-sft",
            title="Provably Mitigating Overoptimization in RLHF: Your SFT Loss is Implicitly an Adversarial Regularizer",
            year=2024,
            arxiv="2405.16436",
            family="preference",
            equation="L = -log sigma(beta u) - eta beta log pi(y_w),  beta 0.01, eta 0.005",
            source="arXiv 2405.16436; sum over tokens as released",
            claim="The imitation term stops the fall of the preferred answer's likelihood and improves on DPO.",
            claims=(Claim("It ends higher than DPO.", "learning", "success", against="dpo"),),
            reduces=(Reduction("dpo", {"terms": []}, {"trust": PairContrast("logistic", beta=0.01)}),),
        ),
    )
)
