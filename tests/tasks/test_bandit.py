"""The contextual bandit: groups, known optimum, reproducibility, learning."""

import pytest
import torch

from anypo.policies.control.mlp import MLPPolicy
from anypo.policies.tabular import SoftmaxTable
from anypo.tasks.bandit import Bandit
from anypo.types import Request


def test_rows_answer_their_requests_in_order():
    task = Bandit(noise=0.0)
    b, metrics = task.rollout(SoftmaxTable(8, 10), [Request(3, 2), Request(5, 3)], 0)
    assert b.check().shape == (5, 1)
    assert b.trace["obs"][:, 0].tolist() == [3, 3, 5, 5, 5]
    assert b.group.tolist() == [0, 0, 1, 1, 1]
    assert torch.equal(b.score, task.means[b.trace["obs"][:, 0], b.trace["action"][:, 0]])
    assert torch.equal(b.scores[:, 0], b.score)
    assert metrics["env_steps"] == 5


def test_noise_is_added_to_scores_only_and_a_missing_start_draws_a_context():
    task = Bandit(noise=0.5)
    b, _ = task.rollout(SoftmaxTable(8, 10), [Request(None)] * 4000, 0)
    noise = b.score - task.means[b.trace["obs"][:, 0], b.trace["action"][:, 0]]
    assert abs(noise.std() - 0.5) < 0.03
    assert b.trace["obs"].unique().tolist() == list(range(8))


def test_the_optimal_table_has_no_regret_and_the_worst_has_the_largest():
    task, table = Bandit(contexts=4, arms=3, seed=1), SoftmaxTable(4, 3)
    with torch.no_grad():
        table.logits.copy_(task.means)
    best = task.evaluate(table, 0)
    assert best["regret"] == 0
    assert best["reward"] == task.means.max(1).values.mean().item()
    with torch.no_grad():
        table.logits.copy_(-task.means)
    worst = task.evaluate(table, 0)
    assert worst["reward"] == pytest.approx(task.means.min(1).values.mean().item())
    assert worst["regret"] == pytest.approx(best["reward"] - worst["reward"])


def test_equal_seeds_give_equal_rollouts_and_other_seeds_other_means():
    one, two = (Bandit(seed=4).rollout(SoftmaxTable(8, 10, seed=1), [Request(0, 20)], 3)[0] for _ in range(2))
    assert torch.equal(one.score, two.score)
    assert not torch.equal(Bandit(seed=4).means, Bandit(seed=5).means)


def test_any_policy_over_its_spaces_can_play():
    task = Bandit()
    policy = MLPPolicy(task.observation_space, task.action_space)
    b, _ = task.rollout(policy, [Request(2, 3)], 0)
    torch.testing.assert_close(policy.evaluate(b, ("logp",))["logp"], b.logp_old, atol=1e-6, rtol=0)
    assert 0 <= task.evaluate(policy, 0)["reward"] <= 1


def test_policy_gradient_with_the_recipe_finds_nearly_the_best_arms():
    task, policy = Bandit(), SoftmaxTable(8, 10)
    recipe = task.recipe({"grouped": True})
    optimizer = torch.optim.Adam(policy.parameters(), recipe["lr"])
    for seed in range(recipe["steps"]):
        b, _ = task.rollout(policy, [Request(c, recipe["samples"]) for c in range(recipe["requests"])], seed)
        score = b.score.view(8, -1)
        advantage = (score - score.mean(1, keepdim=True)).flatten()
        loss = -(advantage * policy.evaluate(b, ("logp",))["logp"][:, 0]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert task.evaluate(policy, 0)["regret"] < 0.03
