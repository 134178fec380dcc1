"""ReCOIL: imitation from any data by matching mixtures of occupancies; no reward, no discriminator."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.control.iql import iql
from anypo.parts.critic import DualValue, MixtureMatching, StateValue, TakenAction

recoil = register_method(
    iql.but(
        critic=[StateValue("v", TakenAction("q"), regress=DualValue(lam=0.7), norm=True), MixtureMatching()],
        card=Card(
            id="recoil",
            title="Dual RL: Unification and New Methods for Reinforcement and Imitation Learning (ReCOIL)",
            year=2023,
            arxiv="2302.08560",
            family="control",
            system="dual-rl",
            equation="L_Q = beta (mean_D Q(s, pi) - mean_E Q(s, a)) + (1/4) mean_mix (gamma V(s') - Q)^2, V an implicit maximum",
            source="arXiv 2302.08560, chi2 case, derivation checked on a small MDP; states D are all of the data",
            claim="Imitates from arbitrary data where density-ratio methods fail.",
            confidence="reconstructed",
            claims=(
                Claim(
                    "With an expert's episodes marked among random ones it beats BC on all of them, without rewards.",
                    "offline",
                    "return",
                    against="bc",
                    settings={"marked": True},
                ),
            ),
        ),
    )
)
