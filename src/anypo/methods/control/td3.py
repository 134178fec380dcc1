"""TD3: deterministic policy gradient with two critics, smoothed target actions and delayed policy updates."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.control.ddpg import ddpg
from anypo.parts.critic import ActionValue, TargetAction
from anypo.parts.knobs import Alternate
from anypo.parts.trust import Pathwise

td3 = register_method(
    ddpg.but(
        critic=[ActionValue("q", TargetAction(noise=0.2, clip=0.5), every=2)],
        trust=Pathwise(of="first", soft=False, coef=Alternate(period=2)),
        card=Card(
            id="td3",
            title="Addressing Function Approximation Error in Actor-Critic Methods",
            year=2018,
            arxiv="1802.09477",
            family="control",
            equation="y = r + gamma (1-d) min_i Qbar_i(s', mubar(s') + clip(N(0, 0.2^2), +-0.5));  L = -Q_1(s, mu(s)) every other time",
            source="arXiv 1802.09477, alg. 1",
            claim="Two critics, smoothing and delay remove the overestimation of DDPG.",
            claims=(
                Claim(
                    "Its critic overestimates less than DDPG's where a point reaches for a goal.",
                    "replay",
                    "overestimation",
                    against="ddpg",
                    better="lower",
                ),
            ),
        ),
    )
)
