"""Flow matching as behaviour cloning: the policy learns the straight velocity from noise to the expert's action."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.generative.diffusion_policy import diffusion_policy
from anypo.parts.trust import Matching

flow_matching_policy = register_method(
    diffusion_policy.but(
        trust=Matching("cfm"),
        card=Card(
            id="flow-matching-policy",
            title="Flow Matching for Generative Modeling",
            year=2022,
            arxiv="2210.02747",
            family="generative",
            equation="L = mean |v(x_t, t, o) - (a - z)|^2,  x_t = (1 - t) z + t a,  z ~ N(0, I),  t ~ U(0, 1)",
            source="arXiv 2210.02747, eq. 23, with the noise at time 0; as a policy: behaviour cloning",
            claim="It fits as well as a diffusion policy with fewer evaluations of the network.",
            claims=(
                Claim(
                    "With four steps it samples more precisely than a diffusion policy with four.",
                    "cloning",
                    "precision",
                    against="diffusion-policy",
                    settings={"steps": 4},
                ),
                Claim(
                    "It covers every mode as well as a diffusion policy.",
                    "cloning",
                    "coverage",
                    against="diffusion-policy",
                    margin=-0.03,
                ),
            ),
        ),
    )
)
