"""MinPRO: CISPO whose ratio also carries the smallest ratio of the tokens before it."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.policy_gradient.cispo import cispo
from anypo.parts.ratio import MinPrefix

minpro = register_method(
    cispo.but(
        ratio=MinPrefix(),
        card=Card(
            id="minpro",
            title="A Step Back: Prefix Importance Ratio Stabilizes Policy Optimization",
            year=2026,
            arxiv="2601.22718",
            equation="L = -1/sum|o_i| sum_{i,t} sg(clip(w_t, 0, 5)) A_i log pi_t,  w_t = r_t min_{j<t} r_j",
            source="arXiv 2601.22718, abstract and secondary descriptions; no equations or code could be read, the cap is ours",
            confidence="reconstructed",
            claim="More stable training and higher peak accuracy than GRPO, GSPO and CISPO on stale data.",
            claims=(
                Claim(
                    "The smallest earlier ratio makes stale data cheaper than in CISPO.",
                    "staleness",
                    "success",
                    against="cispo",
                ),
            ),
        ),
    )
)
