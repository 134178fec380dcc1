"""N-PG-IGT: REINFORCE with normalised momentum whose samples are taken where the momentum is going."""

from anypo.method.card import Card, Claim, Reduction
from anypo.method.registry import register_method
from anypo.methods.policy_gradient.reinforce import reinforce
from anypo.parts.step import Transport

n_pg_igt = register_method(
    reinforce.but(
        step=Transport(lr=1e-2, epochs=1, eta=0.5),
        card=Card(
            id="n-pg-igt",
            title="Stochastic Policy Gradient Methods: Improved Sample Complexity for Fisher-non-degenerate Policies",
            year=2023,
            arxiv="2302.01734",
            family="decision_theory",
            equation="d <- (1-eta) d + eta g(tau, th~), tau ~ pi_th~, th~ = th + (1-eta)/eta (th - th_old);  th <- th + lr d/|d|",
            source="arXiv 2302.01734, algorithm 1; constants eta = 0.5 and lr = 0.01 from the ranges it suggests",
            claim="Global optimality to eps in O(eps^-2.5) trajectories instead of O(eps^-3), one trajectory a step.",
            claims=(
                Claim(
                    "The direction it follows is closer to the exact gradient than a fresh estimate.",
                    "direction",
                    "error",
                    against="reinforce",
                    better="lower",
                ),
            ),
            weight=lambda r, a: a,
            reduces=(Reduction("reinforce"),),
        ),
    )
)
