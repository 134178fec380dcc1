"""Value learning with real environments and data: replay, data sets of three formats, offline and then online."""

import math

import numpy as np
import pytest
import torch
from entries import entries
from gymnasium.spaces import Box, Discrete

import anypo
from anypo import Trajectories
from anypo import config as configuration
from anypo.errors import UsageError
from anypo.estimators.dataset import (
    limits,
    measures,
    occupancy_entropy,
    opportunity,
    state_action_coverage,
    trajectory_quality,
    unique_pairs,
)
from anypo.evidence.reach import Reach
from anypo.loops.learn import learn
from anypo.loops.views import attach_noise, evaluate_views
from anypo.networks.perceptrons import Ensemble
from anypo.parts.store import Transitions, WeightedTrajectories
from anypo.parts.store.episodes import trajectory_values
from anypo.parts.store.transitions import flattened
from anypo.policies.control.distributions import Squashed
from anypo.policies.control.off_policy import Experts, GaussianActor, SquashedGaussian
from anypo.runs.build import build
from anypo.runs.folder import create
from anypo.views import Draw, Network, View

REPLAYING = [n for n in anypo.methods() if anypo.method(n).traits["replays"]]
OFFLINE = [n for n in REPLAYING if getattr(anypo.method(n).stages["collect"], "offline", False)]
ONLINE = [n for n in REPLAYING if n not in OFFLINE]
SMALL = {"hidden": [16, 16]}


def weights(run):
    return {name: p.detach().clone() for name, p in run.policy.named_parameters()}


def start(folder, **values):
    config = configuration.from_dict(
        {"out": str(folder), "episodes": 1, "evaluate_every": 1000, "threads": 1, **values}
    )
    return create(config)


def pendulum_file(path, episodes=4, **more):
    """Recorded episodes of 20 random actions, cut by time."""
    import gymnasium

    env, rng = gymnasium.make("Pendulum-v1"), np.random.default_rng(0)
    columns = {
        name: [] for name in ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")
    }
    for episode in range(episodes):
        observation, _ = env.reset(seed=episode)
        for t in range(20):
            action = rng.uniform(-2, 2, 1).astype(np.float32)
            following, reward, terminated, _, _ = env.step(action)
            for name, value in zip(columns, (observation, action, reward, terminated, t == 19, following), strict=True):
                columns[name].append(value)
            observation = following
    np.savez(path, **{name: np.array(values) for name, values in columns.items()} | more)
    return path


# ------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("method", entries(ONLINE))
def test_every_replaying_method_trains_policy_and_values(method, tmp_path):
    env = "CartPole-v1" if method == "dqn" else "Pendulum-v1"
    ratio = min(anypo.method(method).stages["store"].ratio, 4.0)  # what more of the same would cost is time
    values = {"collect": {"first": 40}, "store": {"batch": 16, "start": 20, "ratio": ratio}, "policy": SMALL}
    run = start(tmp_path / "r", method=method, task=f"gym:{env}", steps=100, **values)
    before = weights(run)
    record = learn(run)
    still = [name for name, p in run.policy.named_parameters() if torch.equal(p, before[name])]
    assert not still
    assert record["skipped"] == 0
    assert record["updates"] == pytest.approx(50 * ratio)
    assert run.done == 100


@pytest.mark.parametrize("method", entries(OFFLINE))
def test_every_offline_method_trains_from_a_file(method, tmp_path):
    path = pendulum_file(tmp_path / "d.npz", expert=np.repeat([0.0, 1.0], 40))
    task = {"name": f"data:{path}", "env": "Pendulum-v1"}
    run = start(tmp_path / "r", method=method, task=task, steps=12, store={"batch": 16, "idle": 6}, policy=SMALL)
    before = weights(run)
    record = learn(run)
    assert not [name for name, p in run.policy.named_parameters() if torch.equal(p, before[name])]
    assert record["loss"] == record["loss"]
    assert (run.done, run.pool.decisions) == (12, 0)


@pytest.mark.parametrize("method", entries(["bc", "iql", "awac"]))
def test_offline_methods_with_a_likelihood_take_choices_too(method, tmp_path):
    rng = np.random.default_rng(0)
    data = {
        "observations": rng.standard_normal((60, 4)),
        "actions": rng.integers(0, 2, 60),
        "rewards": np.ones(60),
        "terminals": np.arange(60) % 10 == 9,
    }
    np.savez(tmp_path / "d.npz", **data)
    task = {"name": f"data:{tmp_path / 'd.npz'}", "env": "CartPole-v1"}
    assert math.isfinite(learn(start(tmp_path / "r", method=method, task=task, steps=100, policy=SMALL))["loss"])


def test_discrete_conservative_learning_is_dqn_with_one_more_head(tmp_path):
    path = tmp_path / "d.npz"
    rng = np.random.default_rng(0)
    np.savez(
        path,
        observations=rng.standard_normal((60, 4)),
        actions=rng.integers(0, 2, 60),
        rewards=np.ones(60),
        terminals=np.arange(60) % 10 == 9,
    )
    penalties = [{"part": "conservative", "draws": None}]
    critic = [{"part": "action-value", "next": "greedy-action", "ensemble": 1, "penalties": penalties}]
    run = start(
        tmp_path / "r",
        method="dqn",
        collect="from-data",
        critic=critic,
        task={"name": f"data:{path}", "env": "CartPole-v1"},
        steps=100,
        policy=SMALL,
    )
    assert learn(run)["conservative_gap"] > 0


@pytest.mark.parametrize("method", entries(["sac", "iql"]))
def test_a_method_that_cannot_act_there_is_refused_in_one_sentence(method, tmp_path):
    with pytest.raises(UsageError, match=r"needs numbers|learns from data"):
        start(tmp_path / "r", method=method, task="gym:CartPole-v1")
    with pytest.raises(UsageError, match=r"which reads `action`|learns from data"):
        start(tmp_path / "s", method=method, task="sums")


def test_ppo_refuses_data(tmp_path):
    path = pendulum_file(tmp_path / "d.npz")
    with pytest.raises(UsageError, match="use a method for offline data"):
        start(tmp_path / "r", method="ppo", task={"name": f"data:{path}", "env": "Pendulum-v1"})


def test_offline_then_online_in_one_run(tmp_path):
    """For three batches nothing is collected, then the same policy acts, and sees data and experience."""
    path = pendulum_file(tmp_path / "d.npz")
    task = {"name": f"data:{path}", "env": "Pendulum-v1"}
    collect = {"part": "explore", "after": 3, "first": 0}
    run = start(
        tmp_path / "r",
        method="awac",
        task=task,
        steps=60,
        collect=collect,
        store={"batch": 8, "idle": 5, "start": 0},
        policy=SMALL,
    )
    records = []
    learn(run, records.append)
    assert ["env_steps" in r for r in records] == [False, False, False, False, True]
    assert [r.get("updates") for r in records[1:]] == [5, 5, 5, 50]
    assert run.store.size == 50 == run.pool.decisions


# ------------------------------------------------------------------------------------------------ stores


def rows_of(n, first=0.0):
    """One row of n decisions whose observations count upwards."""
    obs = (first + torch.arange(n + 1.0)).unsqueeze(1)
    return Trajectories(
        mask=torch.ones(1, n, dtype=torch.bool),
        reward=obs[None, :n, 0] * 10,
        done=torch.tensor([True]),
        trace={"obs": obs[None, :n], "action": obs[None, :n] * 2},
        extra={"last": obs[None, n]},
    )


def test_rows_become_transitions_with_what_followed():
    table = flattened(Trajectories.cat([rows_of(3), rows_of(2, 100.0).but(done=torch.tensor([False]))]))
    assert table["obs"][:, 0].tolist() == [0, 1, 2, 100, 101]
    assert table["next"][:, 0].tolist() == [1, 2, 3, 101, 102]
    assert table["terminal"].tolist() == [0, 0, 1, 0, 0]
    assert table["reward"].tolist() == [0, 10, 20, 1000, 1010]


def test_the_oldest_experience_goes_first():
    store = Transitions(capacity=2000, start=0).open()
    for k in range(5):
        store.add(rows_of(700, 1000.0 * k))
    kept = sorted(store.kept["obs"][: store.size, 0].tolist())
    assert store.size == 2000
    assert kept == sorted([*range(2100, 2700), *range(3000, 3700), *range(4000, 4700)])


def test_updates_follow_the_decisions_collected_and_wait_for_the_start():
    store = Transitions(ratio=0.3, start=20).open()
    found = []
    for _ in range(6):
        store.add(rows_of(10))
        found.append(store.draws())
    assert found == [0, 3, 3, 3, 3, 3]


def data_of(returns, length=1, states=None):
    """Episodes of equal rewards that sum to the given returns."""
    n = len(returns)
    states = torch.zeros(n, 1) if states is None else states
    return {
        "obs": states.repeat_interleave(length, 0),
        "action": torch.linspace(-1, 1, n * length).unsqueeze(1),
        "next": torch.zeros(n * length, 1),
        "reward": torch.tensor(returns).repeat_interleave(length) / length,
        "terminal": torch.ones(n * length),
        "episode": torch.arange(n).repeat_interleave(length),
    }


def test_symmetric_minibatches_are_exactly_half_data():
    store = Transitions(batch=64, share=0.5, start=0).open()
    store.fill(data_of([0.0] * 50) | {"obs": torch.full((50, 1), -1.0)})
    store.add(rows_of(30))
    g = torch.Generator().manual_seed(0)
    for _ in range(5):
        assert int((store.draw(g).trace["obs"] == -1).sum()) == 32


def test_without_a_share_data_and_experience_are_one():
    store = Transitions(batch=4000, start=0).open()
    store.fill(data_of([0.0] * 30) | {"obs": torch.full((30, 1), -1.0)})
    store.add(rows_of(90))
    drawn = store.draw(torch.Generator().manual_seed(0)).trace["obs"]
    assert float((drawn == -1).float().mean()) == pytest.approx(0.25, abs=0.03)


def test_weights_of_trajectories_have_the_papers_known_answers():
    """95 episodes of return 0 and 5 of return 1: a share 5 e^10 / (95 + 5 e^10) of good ones; odds of start states by advantage."""
    data = data_of([0.0] * 95 + [1.0] * 5)
    chances = WeightedTrajectories(by="return").chances(data)
    assert float(chances[95:].sum()) == pytest.approx(5 * math.exp(10) / (95 + 5 * math.exp(10)))
    uniform = WeightedTrajectories(by="return", temperature=1e9).chances(data)
    assert float(uniform[95:].sum()) == pytest.approx(0.05, rel=1e-4)
    two = data_of([0.0, 1.0, 10.0, 11.0], states=torch.tensor([[0.0], [0.0], [1.0], [1.0]]))
    by_return, by_advantage = (WeightedTrajectories(by=by).chances(two) for by in ("return", "advantage"))
    for good, bad in ((1, 0), (3, 2)):
        assert float(by_return[good] / by_return[bad]) == pytest.approx(math.exp(10 / 11))
        assert float(by_advantage[good] / by_advantage[bad]) == pytest.approx(math.exp(10), rel=1e-6)
    store = WeightedTrajectories(batch=2000, by="return").open()
    store.fill(data)
    assert float(store.draw(torch.Generator().manual_seed(0)).reward.mean()) > 0.99


def test_equal_returns_leave_the_data_as_they_are():
    chances = WeightedTrajectories().chances(data_of([3.0] * 10))
    assert torch.allclose(chances, torch.full((10,), 0.1, dtype=chances.dtype))
    assert opportunity(data_of([3.0] * 10)) == pytest.approx(0.0, abs=1e-12)


def test_the_nearest_recorded_pair_with_states_weighing_more_and_more():
    """beta -> infinity returns the action recorded in the same state; beta -> 0 the nearest action of any state."""
    data = data_of([0.0] * 5)
    data["obs"] = torch.arange(5.0).unsqueeze(1)
    query = Trajectories(trace={"obs": torch.tensor([[[2.0]]]), "action": torch.tensor([[[0.9]]])})
    for beta, wanted in ((1e6, 0.0), (1e-6, 1.0)):
        store = Transitions(beta=beta).open()
        store.fill(data)
        assert float(store.nearest(query)) == wanted


# ------------------------------------------------------------------------------------------------ policies


def test_a_squashed_density_integrates_to_one_and_is_a_change_of_variables():
    policy = Squashed(torch.tensor([[0.4]], dtype=torch.float64), torch.tensor([[-0.3]], dtype=torch.float64))
    a = torch.linspace(-1, 1, 200_001, dtype=torch.float64)[1:-1].unsqueeze(1)
    density = policy.logp(a).exp()
    assert float(torch.trapezoid(density, a[:, 0])) == pytest.approx(1.0, abs=1e-4)
    u = a.atanh()
    normal = torch.distributions.Normal(0.4, math.exp(-0.3)).log_prob(u) - torch.log1p(-a.square())
    inner = slice(1000, -1000)
    torch.testing.assert_close(policy.logp(a)[inner], normal[inner, 0], rtol=1e-5, atol=1e-5)
    noise = torch.tensor([[1.3]], dtype=torch.float64)
    action, logp = policy.at(noise)
    torch.testing.assert_close(logp, policy.logp(action))


def actor(cls=SquashedGaussian, space=None, **networks):
    return cls(Box(-1, 1, (3,)), space or Box(-1, 1, (2,)), hidden=(8, 8), networks=networks, seed=0)


def observed(policy, rows=5, **more):
    g = torch.Generator().manual_seed(1)
    trace = {
        "obs": torch.randn(rows, 1, 3, generator=g),
        "next": torch.randn(rows, 1, 3, generator=g),
        "action": torch.rand(rows, 1, 2, generator=g) * 2 - 1,
    }
    return Trajectories(mask=torch.ones(rows, 1, dtype=torch.bool), trace=trace | more)


def test_the_gradient_of_a_proposed_action_stops_at_the_value_network():
    policy = actor(q=Network("action", 2))
    draw = Draw(live=True)
    views = {"q_pi": View("q", draw=draw), "logp": View("logp", draw=draw)}
    b = attach_noise(policy, observed(policy), views, torch.Generator().manual_seed(0))
    seen = evaluate_views(policy, b, views)
    assert seen["q_pi"].shape == (5, 1, 2)
    seen["q_pi"].sum().backward()
    assert all(p.grad is None for p in policy.critics.parameters())
    assert all(p.grad is not None for p in policy.actor.parameters())
    action = evaluate_views(policy, b, {"action": View("action", draw=draw)})["action"]
    shown = b.but(trace={**b.trace, "action": action})
    torch.testing.assert_close(evaluate_views(policy, shown, {"q": View("q")})["q"], seen["q_pi"])
    torch.testing.assert_close(
        evaluate_views(policy, shown, {"l": View("logp")})["l"], seen["logp"], rtol=1e-3, atol=1e-4
    )


def test_given_actions_carry_no_gradient_and_many_of_them_are_judged_at_once():
    policy = actor(q=Network("action", 2))
    views = {"q_many": View("q", draw=Draw(count=4)), "logp_many": View("logp", draw=Draw(count=4))}
    b = attach_noise(policy, observed(policy), views, torch.Generator().manual_seed(0))
    seen = evaluate_views(policy, b, views)
    assert (seen["q_many"].shape, seen["logp_many"].shape) == ((5, 1, 4, 2), (5, 1, 4))
    seen["q_many"].sum().backward()
    assert all(p.grad is None for p in policy.actor.parameters())
    assert all(p.grad is not None for p in policy.critics.parameters())


def test_an_ensemble_is_its_members_one_by_one_and_norm_bounds_it_far_out():
    g = torch.Generator().manual_seed(0)
    net, bounded = (Ensemble(3, (4, 16, 16, 1), norm, g) for norm in (False, True))
    x = torch.randn(7, 4, generator=g)
    for k in range(3):
        out = x
        for i, (w, c) in enumerate(zip(net.weights, net.biases, strict=True)):
            out = out @ w[k] + c[k]
            out = out.relu() if i < 2 else out
        torch.testing.assert_close(net(x)[:, k], out)
    near, far = x, 1e4 * x
    assert float(net(far).abs().max() / net(near).abs().max()) > 1e3
    width, last = 16, bounded.weights[-1]
    bound = last.norm(dim=1).squeeze(1) * math.sqrt(width) + bounded.biases[-1].abs().squeeze(2).squeeze(1)
    assert bool((bounded(far)[..., 0].abs() <= bound + 1e-4).all())


def test_autocast_rounds_the_inner_products_only():
    net = Ensemble(2, (4, 64, 64, 1), False, torch.Generator().manual_seed(0))
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    exact = net(x)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = net(x)
    assert rounded.dtype == torch.float32
    assert 0 < float((rounded - exact).abs().max()) < 0.02 * float(exact.abs().max())


def test_the_experts_density_is_that_of_the_mixture():
    policy = actor(Experts)
    b = observed(policy)
    found = policy.evaluate(b, {"logp", "routing"})
    parts = policy.distribution(b.trace["obs"], None)
    each = torch.stack([parts._select(torch.full((5, 1), k), parts.parts.mean) for k in range(4)])
    assert each.shape == (4, 5, 1, 2)
    logp = (parts.gate + parts.parts.logp(b.trace["action"].unsqueeze(-2))).logsumexp(-1)
    torch.testing.assert_close(found["logp"], logp)
    torch.testing.assert_close(found["routing"].sum(-1), torch.ones(5, 1))


def test_categorical_proposals_have_the_policys_frequencies():
    policy = actor(GaussianActor, Discrete(3), q=Network("action", 1))
    obs = torch.zeros(6000, 1, 3)
    b = Trajectories(mask=torch.ones(6000, 1, dtype=torch.bool), trace={"obs": obs, "action": obs[..., 0].long()})
    draw = Draw()
    b = attach_noise(policy, b, {"q": View("q", draw=draw)}, torch.Generator().manual_seed(0))
    seen = evaluate_views(
        policy, b, {"a": View("action", draw=draw), "l": View("logp", draw=draw), "q": View("q", draw=draw)}
    )
    shares = torch.bincount(seen["a"].flatten(), minlength=3) / 6000
    p = policy.distribution(obs[:1, 0], None).logps[0].exp()[0]
    torch.testing.assert_close(shares, p.detach(), atol=0.02, rtol=0)
    assert seen["q"].shape == (6000, 1, 1)


# ------------------------------------------------------------------------------------------------ data sets


def test_minari_files_are_written_by_collect_and_read_back(tmp_path, monkeypatch):
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    from anypo.loops.record_datasets import record_datasets
    from anypo.tasks import make_task

    config = configuration.from_dict(
        {
            "method": "sac",
            "task": "gym:Pendulum-v1",
            "steps": 100,
            "episodes": 1,
            "evaluate_every": 1,
            "collect": {"first": 50},
            "store": {"batch": 8, "start": 20, "ratio": 0.1},
            "policy": SMALL,
        }
    )
    means = record_datasets(build(config), ["random", "mixed"], 5, "tiny")
    assert set(means) == {"tiny/random-v0", "tiny/mixed-v0"}
    task = make_task({"name": "minari:tiny/mixed-v0"}, seed=0)
    table = task.transitions()
    assert len(table["reward"]) == 5 * 200
    assert float(table["reward"].sum() / 5) == pytest.approx(means["tiny/mixed-v0"], rel=1e-4)
    assert bool((table["action"].abs() <= 1).all())
    same = table["episode"][1:] == table["episode"][:-1]
    torch.testing.assert_close(table["next"][:-1][same], table["obs"][1:][same])
    assert float(table["terminal"].sum()) == 0.0  # a time limit is not an end
    assert task.low is not None
    assert task.low == pytest.approx(task.low)
    values = {"method": "bc", "task": "minari:tiny/mixed-v0", "steps": 100, "policy": SMALL}
    assert learn(start(tmp_path / "r", **values))["updates"] == 100


def test_parquet_and_npz_hold_the_same(tmp_path):
    import pyarrow
    import pyarrow.parquet

    from anypo.tasks.control.offline import make_file

    npz = pendulum_file(tmp_path / "d.npz")
    with np.load(npz) as arrays:
        columns = {name: arrays[name].tolist() for name in arrays.files}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "d.parquet")
    one, other = (make_file(str(tmp_path / f"d.{end}"), env="Pendulum-v1").transitions() for end in ("npz", "parquet"))
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name])


def test_without_next_observations_the_step_before_a_cut_is_left_out(tmp_path):
    from anypo.tasks.control.offline import make_file

    path = pendulum_file(tmp_path / "d.npz")
    with np.load(path) as arrays:
        columns = {name: arrays[name] for name in arrays.files if name != "next_observations"}
        whole = make_file(str(path), env="Pendulum-v1").transitions()
        np.savez(path, **columns)
    table = make_file(str(path), env="Pendulum-v1").transitions()
    assert len(table["reward"]) == 4 * 19
    assert int(table["episode"].max()) == 3
    keep = (torch.arange(80) % 20) != 19
    torch.testing.assert_close(table["next"], whole["next"][keep])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rewards": None}, "no column 'rewards'"),
        ({"rewards": np.full(80, np.nan)}, "reward of row 0 is not finite"),
        ({"actions": np.zeros((3, 1))}, "actions has 3 rows, rewards 80"),
        ({"observations": np.zeros((80, 9)), "next_observations": np.zeros((80, 9))}, "observations have 9 numbers"),
        ({name: np.zeros((0, 1)) for name in ("observations", "actions", "next_observations")}, "rows, rewards 80"),
    ],
)
def test_bad_data_end_in_one_sentence(change, sentence, tmp_path):
    from anypo.tasks.control.offline import make_file

    path = pendulum_file(tmp_path / "d.npz")
    with np.load(path) as arrays:
        columns = {name: arrays[name] for name in arrays.files} | change
    np.savez(path, **{name: x for name, x in columns.items() if x is not None})
    with pytest.raises(UsageError, match=sentence):
        make_file(str(path), env="Pendulum-v1")


def test_a_damaged_or_missing_file_is_named(tmp_path):
    from anypo.tasks.control.offline import make_file

    (tmp_path / "d.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(UsageError, match=r"d\.npz"):
        make_file(str(tmp_path / "d.npz"), env="Pendulum-v1")
    with pytest.raises(UsageError, match="there is no data file"):
        make_file(str(tmp_path / "e.npz"), env="Pendulum-v1")


def test_measures_of_data_have_their_known_values():
    g = torch.Generator().manual_seed(0)
    for _ in range(100):
        n = int(torch.randint(2, 40, (), generator=g))
        data = data_of([1.0] * n)
        data["obs"] = torch.randint(3, (n, 1), generator=g).float()
        data["action"] = torch.randint(2, (n,), generator=g)
        assert math.exp(occupancy_entropy(data)) <= unique_pairs(data) * (1 + 1e-12)
    even = data_of([1.0] * 6) | {"obs": torch.arange(6.0).unsqueeze(1), "action": torch.zeros(6, dtype=torch.long)}
    assert math.exp(occupancy_entropy(even)) == pytest.approx(6)
    assert (trajectory_quality(data_of([2.0]), 2.0, 5.0), trajectory_quality(data_of([5.0]), 2.0, 5.0)) == (0.0, 1.0)
    assert state_action_coverage(even, even) == 1.0
    twice = {name: torch.cat([x, x + 6 if name == "episode" else x]) for name, x in even.items()}
    assert state_action_coverage(twice, even) == 1.0
    assert trajectory_quality(twice, 0.0, 4.0) == trajectory_quality(even, 0.0, 4.0)
    found = measures(even, 0.0, 2.0, even)
    assert (found["episodes"], found["transitions"], found["trajectory_quality"]) == (6, 6, 0.5)
    assert limits(even, twice)[1].tolist() == [5.0]
    with pytest.raises(UsageError, match="has to exceed"):
        trajectory_quality(even, 3.0, 1.0)


def test_advantages_take_the_start_state_out_of_returns():
    two = data_of([0.0, 1.0, 10.0, 11.0], states=torch.tensor([[0.0], [0.0], [1.0], [1.0]]))
    found = trajectory_values(two, "advantage")
    torch.testing.assert_close(found, torch.tensor([-0.5, 0.5, -0.5, 0.5], dtype=torch.float64))


# ------------------------------------------------------------------------------------------------ learning


@pytest.mark.slow
def test_iql_beats_cloning_on_mixed_data_and_the_experts_data_are_as_good_as_they_say():
    from anypo.evidence.experiments.registry import run_experiment

    found = {m: run_experiment("offline", anypo.method(m), 0, {})["return"] for m in ("bc", "iql")}
    assert found["iql"] > found["bc"] + 2
    table = Reach(seed=0, data="expert").transitions()
    random = Reach(seed=0, data="random").transitions()
    assert float(table["reward"].mean()) > float(random["reward"].mean()) + 0.3
