"""SAC: off-policy actor-critic that maximises return and entropy, whose weight is tuned by a dual."""

from anypo.method.card import Card, Claim
from anypo.method.method import Method
from anypo.method.registry import register_method
from anypo.parts.collect import Explore
from anypo.parts.critic import ActionValue, PolicySample, SoftBackup
from anypo.parts.knobs import Temperature
from anypo.parts.reduce import Mean
from anypo.parts.step import Adam
from anypo.parts.store import Transitions
from anypo.parts.trust import Pathwise

alpha = Temperature()
sac = register_method(
    Method(
        collect=Explore(first=1000),
        score=[],
        store=Transitions(batch=256),
        critic=[ActionValue("q", PolicySample(), SoftBackup(alpha=alpha))],
        credit=[],
        ratio=None,
        trust=Pathwise(of="min", alpha=alpha),
        reduce=Mean("token"),
        terms=[],
        step=Adam(lr=3e-4, epochs=1, minibatch=0, grad_norm=None, schedule="constant", warmup=0),
        card=Card(
            id="sac",
            title="Soft Actor-Critic Algorithms and Applications",
            year=2018,
            arxiv="1812.05905",
            family="control",
            equation="y = r + gamma (1-d) [min_i Qbar_i(s', a') - alpha log pi(a'|s')];  L_pi = alpha log pi(a|s) - min_i Q_i(s, a)",
            source="arXiv 1812.05905, eq. 5, 7, 18; all networks move at once",
            claim="Off-policy maximum entropy learning is sample-efficient and stable without tuning per task.",
            claims=(
                Claim(
                    "In 1,440 decisions it gets a point nearer to its goal than DDPG does.",
                    "replay",
                    "return",
                    against="ddpg",
                ),
            ),
        ),
    )
)
