"""AWAC: the policy's own Q, and advantage-weighted likelihood of the actions in one store of data and experience."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.control.iql import iql
from anypo.parts.credit import Advantage
from anypo.parts.critic import ActionValue, PolicySample
from anypo.parts.step import Adam

awac = register_method(
    iql.but(
        critic=[ActionValue("q", PolicySample())],
        credit=[Advantage(beta=1.0, drawn=True)],
        step=Adam(lr=3e-4, epochs=1, minibatch=0, grad_norm=None, schedule="constant", warmup=0, policy_penalty=1e-4),
        card=Card(
            id="awac",
            title="AWAC: Accelerating Online Reinforcement Learning with Offline Datasets",
            year=2020,
            arxiv="2006.09359",
            family="control",
            equation="L_pi = -min(exp(A / lambda), 100) log pi(a|s),  A = Q(s, a) - Q(s, a~),  a~ ~ pi",
            source="arXiv 2006.09359, eq. 8 and 13; rail-berkeley/rlkit, awac1.py (penalty 1e-4); online with --collect explore",
            claim="Implicit constraints by advantage weighting allow offline learning and fine-tuning in one.",
            claims=(
                Claim(
                    "On data four fifths of which are random it beats BC.",
                    "offline",
                    "return",
                    against="bc",
                ),
            ),
        ),
    )
)
