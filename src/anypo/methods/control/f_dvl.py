"""f-DVL: IQL with the implicit maximiser of a dual: a total-variation or chi2 surrogate that no outlier can blow up."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.control.iql import iql
from anypo.parts.critic import ActionValue, DualValue, Huber, NextState, StateValue, TakenAction

f_dvl = register_method(
    iql.but(
        critic=[
            StateValue("v", TakenAction("q"), regress=DualValue(lam=0.7), norm=True),
            ActionValue("q", NextState("v"), regress=Huber(20.0)),
        ],
        card=Card(
            id="f-dvl",
            title="Dual RL: Unification and New Methods for Reinforcement and Imitation Learning",
            year=2023,
            arxiv="2302.08560",
            family="control",
            system="dual-rl",
            equation="L_V = lam fbar(u) - (1 - lam) u,  fbar = max(u, 0) (tv) or max(u + u^2/4, 0) (chi2), u = min_i Qbar_i - V",
            source="arXiv 2302.08560; hari-sikchi/DVL, with the chi2 line 0 for u <= 0",
            claim="Total-variation and chi2 surrogates do not diverge as XQL's does, at equal or better scores.",
            confidence="reconstructed",
            claims=(
                Claim(
                    "On mixed data with a wild reward now and then it does better than XQL.",
                    "offline",
                    "return",
                    against="xql",
                    settings={"outliers": 0.01},
                ),
            ),
        ),
    )
)
