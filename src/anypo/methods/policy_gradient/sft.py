"""SFT: the likelihood of the answers in the data, the base of what imitates."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.policy_gradient.grpo import grpo
from anypo.parts.collect import OnlyDemonstrations
from anypo.parts.reduce import Mean
from anypo.parts.trust import WeightedBC

sft = register_method(
    grpo.but(
        collect=OnlyDemonstrations(),
        credit=[],
        ratio=None,
        trust=WeightedBC(),
        reduce=Mean("token"),
        terms=[],
        card=Card(
            id="sft",
            title="Training language models to follow instructions with human feedback",
            year=2022,
            arxiv="2203.02155",
            system="instructgpt",
            equation="L = token-mean -log pi(answer | prompt), the token that ends the answer included",
            source="arXiv 2203.02155, section 3.5; the mean over answer tokens as in huggingface/trl, sft_trainer.py",
            claim="Fine-tuning on demonstrations is a start that reinforcement learning then improves on.",
            claims=(
                Claim(
                    "Demonstrations solve codes that GRPO never finds by chance.",
                    "demonstrations",
                    "success",
                    against="grpo",
                ),
                Claim(
                    "It repeats the demonstrations' mistakes, so CHORD, which also explores, ends higher.",
                    "demonstrations",
                    "success",
                    against="chord",
                    better="lower",
                ),
            ),
        ),
    )
)
