"""RLHF by PPO: a learned reward at the end of an answer, and a price on every token for leaving the reference."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.policy_gradient.ppo import ppo
from anypo.parts.credit import Gae, Standardize
from anypo.parts.critic import Value
from anypo.parts.score import TokenKl
from anypo.parts.step import Adam

rlhf_ppo = register_method(
    ppo.but(
        score=[TokenKl(coef=0.05)],
        critic=[Value(coef=0.1, clip=0.2)],
        credit=[Standardize("reward", keep_mean=True), Gae(gamma=1.0, lam=0.95), Standardize("advantage")],
        step=Adam(grad_norm=0.5, eps=1e-5, epochs=4),
        card=Card(
            id="rlhf-ppo",
            title="Training language models to follow instructions with human feedback",
            year=2022,
            arxiv="2203.02155",
            family="preference",
            system="instructgpt",
            equation="r_t = -c (log pi_old - log pi_ref) + 1[t last] R;  PPO on whitened r with gamma 1",
            source="arXiv 2203.02155, eq. 2; whitening and value details as in the summarize-from-feedback code, arXiv 2403.17031",
            claim="PPO on a learned reward with KL control raises human preference over supervised fine-tuning.",
            claims=(
                Claim(
                    "On a reward that is partly wrong its price per token ends with a higher true reward than PPO without one.",
                    "proxies",
                    "success",
                    against="ppo",
                ),
            ),
        ),
    )
)
