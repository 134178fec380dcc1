"""CQL: SAC on data with Q pushed down where the policy or chance would act, and up at the recorded actions."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.control.sac import sac
from anypo.parts.collect import FromData
from anypo.parts.critic import ActionValue, Conservative, PolicySample
from anypo.parts.knobs import Temperature
from anypo.parts.step import Adam
from anypo.parts.trust import Pathwise

cql = register_method(
    sac.but(
        collect=FromData(),
        critic=[ActionValue("q", PolicySample(), penalties=(Conservative(alpha=5.0),))],
        trust=Pathwise(of="min", alpha=Temperature()),
        step=Adam(lr=3e-4, epochs=1, minibatch=0, grad_norm=None, schedule="constant", warmup=0, policy_lr=1e-4),
        card=Card(
            id="cql",
            title="Conservative Q-Learning for Offline Reinforcement Learning",
            year=2020,
            arxiv="2006.04779",
            family="control",
            equation="L_Q = (Q - y)^2 / 2 + alpha [logsumexp_a Q(s, a) - Q(s, a_data)]",
            source="arXiv 2006.04779, eq. 4 and appendix F (10 actions each, importance-weighted; no entropy in the backup)",
            claim="The learned Q is a lower bound, which gives large gains on multi-modal and complex data.",
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
