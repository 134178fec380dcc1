"""XQL: IQL with the soft maximum of Q by Gumbel regression."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.control.iql import iql
from anypo.parts.credit import Advantage
from anypo.parts.critic import ActionValue, Gumbel, NextState, StateValue, TakenAction

xql = register_method(
    iql.but(
        critic=[
            StateValue("v", TakenAction("q"), regress=Gumbel(beta=2.0), norm=True),
            ActionValue("q", NextState("v")),
        ],
        credit=[Advantage(beta=0.5)],
        card=Card(
            id="xql",
            title="Extreme Q-Learning: MaxEnt RL without Entropy",
            year=2023,
            arxiv="2301.02328",
            family="control",
            equation="L_V = exp(z) - z - 1,  z = (min_i Qbar_i(s, a) - V(s)) / beta;  weight exp((Q - V) / beta)",
            source="arXiv 2301.02328, eq. 11; Div99/XQL (clip 7, scaled by the batch's largest z; grad_pen is gradient-penalty)",
            claim="Extreme-value regression learns the soft optimal value directly from data.",
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
