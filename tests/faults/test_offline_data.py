"""Recorded transitions in any common layout, and what cannot be read refused in one sentence when the file is read."""

import json
import warnings

import gymnasium
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from gymnasium import spaces
from typer.testing import CliRunner

from anypo.cli.app import app, main
from anypo.config import from_dict
from anypo.errors import UsageError
from anypo.loops.learn import learn
from anypo.loops.record_datasets import record_datasets
from anypo.runs.build import build
from anypo.tasks import make_task
from anypo.tasks.control.offline import make_file

minari = pytest.importorskip("minari")
N = 40
rng = np.random.default_rng(0)
OBSERVED = rng.uniform(-1, 1, (N, 3)).astype(np.float32)
TAKEN = rng.uniform(-2, 2, N).astype(np.float32)
PENDULUM = {
    "observations": OBSERVED,
    "next_observations": OBSERVED + 1,
    "actions": TAKEN[:, None],
    "rewards": np.arange(N, dtype=np.float32),
    "terminals": np.arange(N) % 10 == 9,
    "timeouts": np.arange(N) % 20 == 4,
}


class Pair(gymnasium.Env):
    """Observes a Tuple; or what `space` says."""

    observation_space = spaces.Tuple((spaces.Discrete(3, start=1), spaces.Box(-1.0, 1.0, (2,), np.float32)))
    action_space = spaces.Discrete(3, start=-1)

    def __init__(self, length=8):
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.t += 1
        return self.observation_space.sample(), 1.0, False, self.t >= self.length, {}


class Nested(Pair):
    observation_space = spaces.Dict(
        {"b": spaces.Dict({"image": spaces.Box(0, 255, (4, 4, 1), np.uint8)}), "a": spaces.MultiDiscrete([2, 3])}
    )


for cls in (Pair, Nested):
    gymnasium.register(f"Recorded{cls.__name__}-v0", entry_point=f"{__name__}:{cls.__name__}")


def pendulum(path, **changes):
    columns = {name: x for name, x in {**PENDULUM, **changes}.items() if x is not None}
    np.savez(path, **columns)
    return make_file(str(path), env="Pendulum-v1").transitions()


def equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name])


@pytest.mark.parametrize("names", [("terminals",), ("timeouts",), ("rewards",), ("rewards", "terminals", "timeouts")])
def test_columns_of_one_number_may_have_a_second_dimension(names, tmp_path):
    plain = pendulum(tmp_path / "a.npz")
    equal(pendulum(tmp_path / "b.npz", **{name: np.asarray(PENDULUM[name])[:, None] for name in names}), plain)
    assert (
        plain["episode"].tolist() == (np.cumsum(np.roll(PENDULUM["terminals"] | PENDULUM["timeouts"], 1)) - 1).tolist()
    )


def test_actions_of_one_number_may_lack_their_dimension_and_types_do_not_matter(tmp_path):
    plain = pendulum(tmp_path / "a.npz")
    other = {"actions": TAKEN, "terminals": PENDULUM["terminals"].astype(float), "observations": OBSERVED.astype(float)}
    equal(pendulum(tmp_path / "b.npz", **other), plain)


def test_one_element_lists_of_parquet_are_numbers(tmp_path):
    columns = {name: np.asarray(x).reshape(N, -1).tolist() for name, x in PENDULUM.items()}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "d.parquet")
    equal(make_file(str(tmp_path / "d.parquet"), env="Pendulum-v1").transitions(), pendulum(tmp_path / "a.npz"))


LAKE = {"observations": np.arange(N) % 16, "rewards": np.ones(N), "terminals": np.arange(N) % 10 == 9}


def lake(path, **changes):
    columns = LAKE | {"actions": np.arange(N) % 4, "next_observations": (np.arange(N) + 1) % 16} | changes
    np.savez(path, **columns)
    return make_file(str(path), env="FrozenLake-v1").transitions()


@pytest.mark.parametrize(
    "actions",
    [
        np.arange(N)[:, None] % 4,
        np.eye(4)[np.arange(N) % 4],
        (np.arange(N) % 4).astype(float),
        np.arange(N)[:, None] % 4 + 0.0,
    ],
)
def test_choices_may_be_one_hot_and_have_a_second_dimension(actions, tmp_path):
    plain = lake(tmp_path / "a.npz")
    assert plain["action"].tolist() == [i % 4 for i in range(N)]
    equal(lake(tmp_path / "b.npz", actions=actions), plain)
    hot = {
        name: np.eye(16)[x]
        for name, x in (("observations", LAKE["observations"]), ("next_observations", (np.arange(N) + 1) % 16))
    }
    equal(lake(tmp_path / "c.npz", actions=actions, **hot), plain)


def spoiled(name, row, value):
    column = np.array(PENDULUM[name], float)
    column[row] = value
    return {name: column}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"actions": np.zeros((N, 3))}, "actions have 3 numbers, the environment's 1"),
        ({"actions": np.full((N, 1), "left")}, rf"the column 'actions' has the type <U4 and the shape \({N}, 1\); it must hold numb"),
        ({"actions": np.array([{}] * N)}, rf"the column 'actions' has the type object and the shape \({N},\); it must hold numbers"),
        ({"rewards": np.zeros((N, 2))}, rf"the column 'rewards' has the shape \({N}, 2\); it needs one number a row"),
        ({"rewards": np.float32(1)}, r"the column 'rewards' has the type float32 and the shape \(\); it must hold numbers"),
        ({"observations": OBSERVED[:, :1]}, "observations have 1 numbers, the environment's 3"),
        ({"observations": OBSERVED[:, 0]}, "observations have 1 numbers, the environment's 3"),
        (spoiled("observations", 5, np.nan), "the observation of row 5 is not finite"),
        (spoiled("next_observations", 6, np.inf), "the next observation of row 6 is not finite"),
        (spoiled("actions", 7, np.nan), "the action of row 7 is not finite"),
        (spoiled("rewards", 8, np.nan), "the reward of row 8 is not finite"),
        (spoiled("terminals", 9, np.nan), "terminals of row 9 is nan; it must be 0 or 1"),
        (spoiled("timeouts", 3, 2), "timeouts of row 3 is 2.0; it must be 0 or 1"),
        (spoiled("actions", 4, 2.5), r"the action of row 4 is \[2.5\], outside Box\(-2.0, 2.0, \(1,\), float32\); clip the"),
        ({"terminals": PENDULUM["terminals"][:3]}, f"terminals has 3 rows, rewards {N}"),
        ({name: np.zeros((0, *np.shape(x)[1:])) for name, x in PENDULUM.items()}, "is empty"),
        ({"next_observations": None, **{n: x[:0] for n, x in PENDULUM.items() if n != "next_observations"}}, "is empty"),
    ],
)  # fmt: skip
def test_what_is_no_such_data_is_refused_with_column_and_row(changes, sentence, tmp_path):
    with pytest.raises(UsageError, match=sentence) as caught:
        pendulum(tmp_path / "d.npz", **changes)
    assert "d.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("actions", "sentence"),
    [
        (np.arange(N) % 4 + 1, r"actions of row 3: \[4\] is no choice \(0 to 3\)"),
        (np.arange(N) % 4 + 0.5, r"actions of row 0: \[0.5\] is no choice"),
        (np.ones((N, 4)), "actions have 4 columns that are not one-hot"),
        (np.zeros((N, 2)), "actions have 2 numbers, the environment's 1"),
    ],
)
def test_choices_outside_the_space_are_named(actions, sentence, tmp_path):
    with pytest.raises(UsageError, match=sentence):
        lake(tmp_path / "d.npz", actions=actions)
    with pytest.raises(UsageError, match=r"observations of row 15: \[16\] is no choice \(0 to 15\)"):
        lake(tmp_path / "d.npz", observations=np.arange(N) % 16 + 1)


@pytest.mark.parametrize(
    ("column", "sentence"),
    [
        ([[0.0], [1.0, 2.0]] * (N // 2), "the rows of the column 'actions' have different lengths"),
        ([0.0, None] * (N // 2), "the column 'actions' has the type object and the shape"),
        ([b"x"] * N, r"the column 'actions' has the type \|S1 and the shape"),
    ],
)
def test_parquet_columns_without_numbers_are_named(column, sentence, tmp_path):
    columns = {name: list(np.asarray(x).tolist()) for name, x in PENDULUM.items()} | {"actions": column}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "d.parquet")
    with pytest.raises(UsageError, match=sentence):
        make_file(str(tmp_path / "d.parquet"), env="Pendulum-v1")


def test_files_without_columns_are_one_sentence(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"")
    np.save(tmp_path / "b.npy", np.zeros(3))
    (tmp_path / "b.npy").rename(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", **PENDULUM, infos=np.array([{"a": 1}] * N))
    for name, sentence in (("a", "cannot be read"), ("b", "one array without a name")):
        with pytest.raises(UsageError, match=sentence):
            make_file(str(tmp_path / f"{name}.npz"), env="Pendulum-v1")
    equal(make_file(str(tmp_path / "c.npz"), env="Pendulum-v1").transitions(), pendulum(tmp_path / "d.npz"))


# ------------------------------------------------------------------------------------------------ Minari


@pytest.fixture
def library(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setattr("warnings.warn", lambda *_, **__: None)


def table_of(space, rows):
    """Rows of a space as Minari takes them."""
    if isinstance(space, spaces.Dict):
        return {name: table_of(space[name], [row[name] for row in rows]) for name in space}
    if isinstance(space, spaces.Tuple):
        return tuple(table_of(part, [row[i] for row in rows]) for i, part in enumerate(space))
    return [np.asarray(row, space.dtype) for row in rows]


def record(name, env_id, eval_env=None, limit=None, **settings):
    """Three random episodes as a Minari data set."""
    from minari.data_collector import EpisodeBuffer

    env, episodes = gymnasium.make(env_id, max_episode_steps=limit, **settings), []
    env.action_space.seed(0)
    for i in range(3):
        seen, actions, rewards, ends, cuts = [env.reset(seed=i)[0]], [], [], [], []
        while not (ends and (ends[-1] or cuts[-1])):
            actions.append(env.action_space.sample())
            observation, reward, end, cut, _ = env.step(actions[-1])
            seen.append(observation)
            rewards.append(float(reward)), ends.append(end), cuts.append(cut)
        observations = table_of(env.observation_space, seen)
        episodes.append(
            EpisodeBuffer(
                id=i, observations=observations, actions=actions, rewards=rewards, terminations=ends, truncations=cuts
            )
        )
    minari.create_dataset_from_buffers(
        name, episodes, env=env, eval_env=eval_env, algorithm_name="random", jpeg_encoding=False
    )
    return sum(len(episode.rewards) for episode in episodes)


@pytest.mark.parametrize("kind", ["Pair", "Nested"])
def test_nested_observations_are_read_and_learned_from(kind, library):
    rows = record(f"toy/{kind.lower()}-v0", f"Recorded{kind}-v0")
    task = {"name": f"minari:toy/{kind.lower()}-v0", "eval_episodes": 1}
    run = build(from_dict({"method": "bc", "task": task, "steps": 100, "policy": {"hidden": [8]}}))
    table = run.task.transitions()
    assert len(table["reward"]) == rows == 24
    assert sorted(set(table["action"].tolist())) == [0, 1, 2]
    same = table["episode"][1:] == table["episode"][:-1]
    assert torch.equal(table["next"][:-1][same], table["obs"][1:][same])
    assert table["obs"].dtype == torch.uint8
    learn(run)


def test_the_environment_is_the_data_sets_own_with_all_its_settings(library):
    record("toy/large-v0", "FrozenLake-v1", map_name="8x8", is_slippery=False)
    record("toy/short-v0", "CartPole-v1", limit=5)
    record("toy/other-v0", "CartPole-v1", eval_env=gymnasium.spec("CartPole-v0"))
    large = make_task({"name": "minari:toy/large-v0"}, seed=0)
    assert large.observation_space.n == 64
    assert large.copies[0].env.spec.kwargs["is_slippery"] is False
    icy = make_task({"name": "minari:toy/large-v0", "env_kwargs": {"is_slippery": True}}, seed=0)
    assert icy.copies[0].env.spec.kwargs == {"map_name": "8x8", "is_slippery": True}
    assert make_task({"name": "minari:toy/short-v0"}, seed=0).limit == 5
    assert make_task({"name": "minari:toy/short-v0", "env": "CartPole-v1"}, seed=0).limit == 500
    assert make_task({"name": "minari:toy/other-v0"}, seed=0).env_id == "CartPole-v0"


def test_data_of_another_observation_space_than_the_environments_are_refused(library):
    record("toy/nested-v0", "RecordedNested-v0")
    record("toy/small-v0", "FrozenLake-v1", map_name="8x8")
    for task, sentence in (
        ({"name": "minari:toy/nested-v0", "env": "RecordedPair-v0"}, "observations are no tuple of 2"),
        ({"name": "minari:toy/small-v0", "env": "FrozenLake-v1"}, r"is no choice \(0 to 15\)"),
        (
            {"name": "minari:toy/small-v0", "env": "RecordedNested-v0"},
            "observations have no keys, the environment's 'a', 'b'",
        ),
    ):
        with pytest.raises(UsageError, match=sentence):
            make_task(task, seed=0)


@pytest.mark.entry("dqn")
def test_recorded_data_keep_the_settings_of_their_environment_and_nested_observations(library):
    task = {"name": "gym:RecordedNested-v0", "env_kwargs": {"length": 3}, "eval_episodes": 1}
    values = {"collect": {"first": 10}, "store": {"batch": 4, "start": 10}, "policy": {"hidden": [8]}}
    config = from_dict({"method": "dqn", "task": task, "steps": 60, "evaluate_every": 1, **values})
    record_datasets(build(config), ["random"], 4, "own")
    again = make_task({"name": "minari:own/random-v0"}, seed=0)
    assert again.copies[0].env.spec.kwargs == {"length": 3}
    assert again.limit == 1000
    assert len(again.transitions()["reward"]) == 12
    raw = next(minari.load_dataset("own/random-v0").iterate_episodes()).observations
    assert raw["b"]["image"].shape == (4, 4, 4, 1)
    assert raw["b"]["image"].dtype == np.uint8
    assert raw["a"].max(0).tolist() <= [1, 2]


def describe(monkeypatch, capsys, *words):
    """What `anypo describe WORDS --json` measures, and what it says."""
    monkeypatch.setattr("sys.argv", ["anypo", "describe", *map(str, words), "--json"])
    with pytest.raises(SystemExit) as stop:
        main()
    out, errors = capsys.readouterr()
    return stop.value.code, json.loads(out or "null"), errors


@pytest.mark.entry("dqn")
def test_a_quality_is_shown_with_its_references_and_left_out_where_these_make_no_sense(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    values = {"store": {"start": 1000}, "policy": {"hidden": 8}, "steps": 30, "episodes": 1}
    run = build(from_dict({"method": "dqn", "task": {"name": "gym:CartPole-v1", "envs": 1}, **values}))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        record_datasets(run, ["random"], 3, "own")
    _, figures, _ = describe(monkeypatch, capsys, "minari:own/random-v0", "--low", 5, "--high", 25)
    assert (figures["random_return"], figures["expert_return"]) == (5.0, 25.0)
    assert figures["trajectory_quality"] == pytest.approx((figures["return_mean"] - 5) / 20)
    code, _, errors = describe(monkeypatch, capsys, "minari:own/random-v0", "--low", 25, "--high", 5)
    assert (code, errors.count("\n")) == (2, 1)
    code, figures, errors = describe(monkeypatch, capsys, "minari:own/random-v0")
    assert not code
    assert ("trajectory_quality" in figures) != ("no quality: the expert recorded with" in errors)


def test_described_data_have_their_own_environment(library, monkeypatch, capsys):
    record("toy/large-v0", "FrozenLake-v1", map_name="8x8")
    monkeypatch.setattr("sys.argv", ["anypo", "describe", "minari:toy/large-v0", "--json"])
    with pytest.raises(SystemExit):
        main()
    assert '"episodes": 3' in capsys.readouterr().out


def test_returns_that_data_state_of_themselves_are_taken_unless_a_flag_sets_them(library):
    record("toy/stated-v0", "FrozenLake-v1")
    minari.load_dataset("toy/stated-v0").storage.update_metadata({"ref_min_score": -1.0, "ref_max_score": 3.0})

    def quality(*words):
        result = CliRunner().invoke(app, [*words, "minari:toy/stated-v0", "--json"])
        figures = json.loads(result.stdout)
        return figures["trajectory_quality"], figures["return_mean"]

    for words in (("describe",), ("run", "dataset-perspective")):
        stated, mean = quality(*words)
        assert stated == pytest.approx((mean + 1) / 4)
        assert quality(*words, "--high", "1")[0] == pytest.approx((mean + 1) / 2)
