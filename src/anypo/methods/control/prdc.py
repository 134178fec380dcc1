"""PRDC: TD3+BC held at the nearest recorded pair of state and action instead of the action recorded in this state."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.control.td3_bc import td3_bc
from anypo.parts.knobs import Alternate
from anypo.parts.terms import CloneAction

prdc = register_method(
    td3_bc.but(
        terms=[CloneAction(to="nearest", coef=Alternate(period=2))],
        card=Card(
            id="prdc",
            title="Policy Regularization with Dataset Constraint for Offline Reinforcement Learning",
            year=2023,
            arxiv="2306.06569",
            family="control",
            equation="L = -lam mean Q_1(s, pi(s)) + mean (pi(s) - a_j)^2,  j = argmin_i |(beta s, pi(s)) - (beta s_i, a_i)|",
            source="arXiv 2306.06569, eq. 5-7; LAMDA-RL/PRDC (beta 2, one neighbour)",
            claim="Regularising to the nearest recorded pair beats constraints on distributions and supports.",
            claims=(
                Claim(
                    "On data four fifths of which are random it beats TD3+BC.",
                    "offline",
                    "return",
                    against="td3-bc",
                ),
            ),
        ),
    )
)
