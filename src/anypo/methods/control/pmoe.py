"""PMOE: SAC with a mixture of experts, of which only the one whose action is best learns."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.control.sac import sac
from anypo.parts.critic import ActionValue, PolicySample, SoftBackup
from anypo.parts.knobs import Temperature
from anypo.parts.trust import BestExpert

alpha = Temperature()
pmoe = register_method(
    sac.but(
        critic=[ActionValue("q", PolicySample(), SoftBackup(alpha=alpha))],
        trust=BestExpert(alpha=alpha),
        card=Card(
            id="pmoe",
            title="Probabilistic Mixture-of-Experts for Efficient Deep Reinforcement Learning",
            year=2021,
            arxiv="2104.09122",
            family="control",
            equation="k* = argmax_k min_i Q_i(s, a_k);  L = alpha log pi_k*(a_k*) - min_i Q_i(s, a_k*) + mean_k (w_k - 1[k = k*])^2",
            source="arXiv 2104.09122; quantumiracle/Popular-RL-Algorithms (component density in the target)",
            claim="A mixture with a gate trained on winning frequency beats unimodal policies and finds distinct experts.",
            claims=(
                Claim(
                    "Where two actions are equally good it finds both more often than SAC.",
                    "two-peaks",
                    "modes",
                    against="sac",
                ),
            ),
        ),
    )
)
