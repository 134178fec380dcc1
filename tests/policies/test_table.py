"""The softmax table: probabilities, gradient, padding."""

import numpy as np
import torch

from anypo.policies.tabular import SoftmaxTable
from anypo.rng import BatchRng
from anypo.types import Trajectories


def batch(policy):
    obs = torch.tensor([[0, 2], [1, 0]])
    decided = policy.act(obs.flatten(), BatchRng(torch.Generator().manual_seed(0), obs.numel()))
    return Trajectories(
        logp_old=decided.logp.view(2, 2),
        value=decided.value.view(2, 2),
        mask=torch.tensor([[True, True], [True, False]]),
        trace={"obs": obs, "action": decided.action.view(2, 2)},
    )


def test_an_unchanged_table_gives_ratio_one_where_decisions_count():
    policy = SoftmaxTable(3, 4, seed=2)
    b = batch(policy)
    again = policy.evaluate(b, ("logp", "value"))
    assert torch.equal(again["logp"][b.mask], b.logp_old[b.mask])
    assert again["logp"][1, 1] == 0
    assert torch.equal(again["value"], torch.zeros(2, 2))


def test_the_gradient_is_indicator_minus_probability():
    policy = SoftmaxTable(3, 4, seed=2)
    b = batch(policy).rows(torch.tensor([1]))
    policy.evaluate(b, ("logp",))["logp"].sum().backward()
    taken = int(b.trace["action"][0, 0])
    expected = torch.nn.functional.one_hot(torch.tensor(taken), 4) - policy.logits[1].softmax(0)
    torch.testing.assert_close(policy.logits.grad[1], expected)
    assert policy.logits.grad[[0, 2]].eq(0).all()


def test_greedy_takes_the_best_arm_and_arms_reach_the_environment_as_integers():
    policy = SoftmaxTable(2, 3, value=False)
    with torch.no_grad():
        policy.logits.copy_(torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, 1.0]]))
    decided = policy.act(torch.tensor([0, 1]), BatchRng(torch.Generator(), 2), greedy=True)
    assert policy.env_action(decided.action).tolist() == [1, 0]
    assert decided.value is None
    assert policy.encode(np.int64(1)) == 1
    entropy = policy.evaluate(
        Trajectories(trace={"obs": torch.tensor([[0]]), "action": torch.tensor([[1]])}), ("entropy",)
    )["entropy"]
    p = policy.logits[0].softmax(0)
    torch.testing.assert_close(entropy[0, 0], -(p * p.log()).sum())
