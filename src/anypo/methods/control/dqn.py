"""DQN: Q-learning with a network, replayed transitions and a target network."""

from anypo.method.card import Card, Claim
from anypo.method.registry import register_method
from anypo.methods.control.sac import sac
from anypo.parts.collect import Explore
from anypo.parts.critic import ActionValue, GreedyAction, Huber
from anypo.parts.knobs import Linear
from anypo.parts.step import Adam
from anypo.parts.store import Transitions
from anypo.parts.trust import NoPolicyLoss

dqn = register_method(
    sac.but(
        collect=Explore(first=1000, random=Linear(1.0, 0.05, until=0.3)),
        store=Transitions(batch=64, capacity=100_000, ratio=0.5),
        critic=[ActionValue("q", GreedyAction(), regress=Huber(1.0), ensemble=1, tau=1.0, every=128)],
        trust=NoPolicyLoss(),
        step=Adam(lr=2.3e-3, epochs=1, minibatch=0, grad_norm=10.0, schedule="constant", warmup=0),
        card=Card(
            id="dqn",
            title="Human-level control through deep reinforcement learning",
            year=2015,
            arxiv=None,
            family="control",
            equation="L = Huber_1(Q(s, a) - y),  y = r + gamma (1-d) max_a' Qbar(s', a')",
            source="Mnih et al., Nature 518, 2015; target copied every 128 updates; `double-greedy-action` as in arXiv 1509.06461",
            claim="Replay and a target network make deep Q-learning stable.",
            claims=(
                Claim(
                    "With five moves to choose from it is nearer to the goal than PPO after 1,440 decisions.",
                    "replay",
                    "return",
                    against="ppo",
                    settings={"discrete": True},
                ),
            ),
        ),
    )
)
