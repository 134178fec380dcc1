"""DSAC-T: SAC with a Gaussian return critic, whose mean is regressed on mean targets and whose gradient does not scale with rewards."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.control.sac import sac
from anypo.parts.critic import ActionValue, GaussianReturn, PolicySample, SoftBackup
from anypo.parts.knobs import Alternate, Temperature, Tracked
from anypo.parts.trust import Pathwise

alpha = Temperature()
dsac_t = register_method(
    sac.but(
        critic=[
            ActionValue(
                "q",
                PolicySample(of="target"),
                SoftBackup(alpha=alpha),
                regress=GaussianReturn(Tracked("q_std1"), Tracked("q_std2")),
                every=2,
            )
        ],
        trust=Pathwise(of="min", alpha=alpha, coef=Alternate(period=2)),
        card=Card(
            id="dsac-t",
            title="Distributional Soft Actor-Critic with Three Refinements",
            year=2023,
            arxiv="2310.05858",
            family="control",
            equation="grad_q = m^2 (q - y_q) / (std^2 + eps);  grad_std = m^2 (std^2 - (y_z - q)^2) / (std^3 + eps),  y_z within 3 m of q",
            source="arXiv 2310.05858; Jingliang-Duan/DSAC-v2, dsac_v2.py (gradient scale; first m; delay_update 2)",
            claim="Matches or beats SAC without tuning and is robust to the scale of rewards.",
            claims=(
                Claim(
                    "With rewards a hundred times larger it ends nearer to the goal than SAC.",
                    "replay",
                    "return",
                    against="sac",
                    settings={"reward_scale": 100.0},
                ),
            ),
        ),
    )
)
