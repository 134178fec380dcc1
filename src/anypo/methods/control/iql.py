"""IQL: values by expectile regression on recorded actions alone, the policy by advantage-weighted likelihood."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.control.bc import bc
from anypo.parts.credit import Advantage
from anypo.parts.critic import ActionValue, Expectile, NextState, StateValue, TakenAction
from anypo.parts.knobs import Cosine
from anypo.parts.step import Adam
from anypo.parts.trust import WeightedBC

iql = register_method(
    bc.but(
        critic=[StateValue("v", TakenAction("q"), regress=Expectile(t=0.7)), ActionValue("q", NextState("v"))],
        credit=[Advantage(beta=3.0)],
        trust=WeightedBC(weighted=True),
        step=Adam(
            lr=3e-4, epochs=1, minibatch=0, grad_norm=None, schedule="constant", warmup=0, policy_lr=Cosine(3e-4, 0.0)
        ),
        card=Card(
            id="iql",
            title="Offline Reinforcement Learning with Implicit Q-Learning",
            year=2021,
            arxiv="2110.06169",
            family="control",
            equation="L_V = |t - 1(u<0)| u^2, u = min_i Qbar_i(s, a) - V(s);  L_Q = (Q_i - r - gamma (1-d) V(s'))^2;  "
            "L_pi = -min(exp(beta u), 100) log pi(a|s)",
            source="arXiv 2110.06169, eq. 5-7; all networks move at once",
            claim="Expectile backups on recorded actions do multi-step dynamic programming without asking for others.",
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
