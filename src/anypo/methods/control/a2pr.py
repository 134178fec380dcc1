"""A2PR: TD3+BC held at the better one of the recorded action and an autoencoder's, where that is better than average."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.control.td3_bc import td3_bc
from anypo.parts.critic import ActionValue, AdvantageAutoencoder, OneStep, Squared, StateValue, TargetAction
from anypo.parts.knobs import Alternate
from anypo.parts.terms import CloneGoodAction

a2pr = register_method(
    td3_bc.but(
        critic=[
            ActionValue("q", TargetAction(noise=0.2, clip=0.5), every=2),
            StateValue("v", TargetAction(noise=0.2, clip=0.5, by="both", head="q"), OneStep(), regress=Squared(1.0)),
            AdvantageAutoencoder(),
        ],
        terms=[CloneGoodAction(coef=Alternate(period=2))],
        card=Card(
            id="a2pr",
            title="Adaptive Advantage-Guided Policy Regularization for Offline Reinforcement Learning",
            year=2024,
            arxiv="2405.19909",
            family="control",
            equation="L = -lam mean Q_1(s, pi(s)) + mean[g (pi(s) - abar)^2],  abar = argmax over {a, VAE(s, pi(s))} of Q_1 - V",
            source="ltlhuuu/A2PR (autoencoder at 1e-3); the gradient through the autoencoder's action only with `through`",
            claim="Regularising to high-advantage actions alone beats TD3+BC, most clearly on mixed data.",
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
