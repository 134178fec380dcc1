"""Random numbers of rollouts follow from (seed, request, sample), whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from anypo import config, rng
from anypo.evidence.reach import Reach
from anypo.evidence.toys import Codes, Sequences
from anypo.loops.collect import collect
from anypo.policies.control.mlp import MLPPolicy
from anypo.policies.control.off_policy import SquashedGaussian
from anypo.policies.generative.flow import FlowPolicy
from anypo.policies.language.generate import skip, uniform
from anypo.policies.language.model import LanguageModel
from anypo.policies.tabular import SoftmaxTable
from anypo.rng import ChunkRng, EpisodeRng, RowRng, hashed, keyed, row_seeds
from anypo.runs.build import build
from anypo.tasks.bandit import Bandit
from anypo.tasks.control.gym import Gym
from anypo.tasks.control.tensor.task import Tensors
from anypo.tasks.plane import Multimodal
from anypo.tasks.pool import StartPool
from anypo.tasks.text.task import TextTask
from anypo.types import Request, Trajectories

KINDS = ("rand", "randn", "exponential")


# streams


def test_the_hash_is_splitmix64():
    stream = np.array([1234567], np.uint64)  # the reference implementation's numbers for this seed
    assert hashed(stream, np.arange(3, dtype=np.uint64)).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_a_key_is_read_number_by_number():
    assert keyed(3, [5, 7], 2).tolist() == [keyed(3, 5, 2)[0], keyed(3, 7, 2)[0]]
    keys = [keyed(a, b, c)[0] for a in range(8) for b in range(-1, 8) for c in range(8)]
    assert len(set(keys)) == len(keys)
    assert row_seeds(3, [5, 7], [1, 2]).tolist() == [int(k.view(np.int64)) for k in
        (keyed(3, 5, 0)[0], keyed(3, 7, 0)[0], keyed(3, 7, 1)[0])]  # fmt: skip


def test_streams_of_tensors_and_of_arrays_are_the_same():
    seeds, steps = row_seeds(0, range(50), [1] * 50), torch.arange(50) % 7
    bits = hashed(seeds.numpy().view(np.uint64), steps.numpy().view(np.uint64))
    assert uniform(seeds, steps).tolist() == ((bits >> np.uint64(11)) * 2.0**-53).tolist()
    assert torch.equal(uniform(skip(seeds, steps), torch.zeros_like(steps)), uniform(seeds, steps))


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_draws_the_same_alone_and_among_others(kind):
    def draw(numbers: RowRng, steps: int) -> torch.Tensor:
        return torch.stack([torch.cat([numbers.at(t).rand(2), getattr(numbers, kind)(3)], 1) for t in range(steps)], 1)

    seeds = row_seeds(0, [1, 2], [3, 4])
    whole = draw(RowRng(seeds, 4), 10)
    order = torch.tensor([6, 2, 3])
    assert torch.equal(draw(RowRng(seeds[order], 4), 10), whole[order])
    assert torch.equal(draw(RowRng(seeds[4:5], 7), 10), whole[4:5])
    assert whole.flatten().unique().numel() == whole.numel()
    numbers = RowRng(seeds, 4)
    assert torch.equal(numbers.at(9, order).rand(2), whole[order, 9, :2])


def test_rows_at_different_decisions_draw_the_same_numbers():
    seeds, g = row_seeds(4, [0], [5]), np.random.default_rng(0)
    plain, ragged = RowRng(seeds, 3), EpisodeRng(seeds, 3)
    whole = torch.stack([torch.cat([plain.at(t).randn(2), plain.exponential()[:, None]], 1) for t in range(12)], 1)
    for _ in range(20):
        rows = g.permutation(5)[:3]
        steps = g.integers(0, 12, 3)
        ragged.at_each(steps, rows)
        drawn = torch.cat([ragged.randn(2), ragged.exponential()[:, None]], 1)
        assert torch.equal(drawn, whole[torch.from_numpy(rows), torch.from_numpy(steps)])


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_distributed_as_they_should(kind):
    x = getattr(RowRng(row_seeds(0, [0], [2000]), 1), kind)(50).double()
    mean, deviation, skewness = {"rand": (0.5, 12**-0.5, 0), "randn": (0, 1, 0), "exponential": (1, 1, 2)}[kind]
    assert float(x.mean()) == pytest.approx(mean, abs=0.015)
    assert float(x.std()) == pytest.approx(deviation, rel=0.015)
    z = (x - mean) / deviation
    assert float((z**3).mean()) == pytest.approx(skewness, abs=0.1)
    assert float((z[:, 1:] * z[:, :-1]).mean()) == pytest.approx(0, abs=0.015)  # numbers of a row
    assert float((z[1:] * z[:-1]).mean()) == pytest.approx(0, abs=0.015)  # rows
    assert x.min() >= 0 if kind != "randn" else x.isfinite().all()
    assert kind != "rand" or x.max() < 1


def test_chunks_take_their_slices_of_blocks(monkeypatch):
    monkeypatch.setattr(rng, "ENVS_PER_BLOCK", 8)

    def draw(size: int) -> torch.Tensor:
        chunks = [ChunkRng((3, 1), slice(i, min(i + size, 21)), 21) for i in range(0, 21, size)]
        drawn = [torch.cat([c.exponential(2), c.randn(1), c.rand()[:, None]], 1) for c in chunks]
        states = [c.gather(lambda block: torch.rand(3, block.rows, generator=block.generator), 1) for c in chunks]
        return torch.cat([torch.cat(drawn), torch.cat(states, 1).T], 1)

    whole = draw(21)
    assert whole.unique().numel() == whole.numel()
    for size in (1, 5, 8, 16):
        assert torch.equal(draw(size), whole)


# tasks


def gym_rows() -> tuple[Any, Any]:
    task = Gym("CartPole-v1", envs=3, scale_reward=False)
    return task, MLPPolicy(task.observation_space, task.action_space, normalize=False)


def tensor_rows() -> tuple[Any, Any]:
    task = Tensors("PointMass", envs=3, scale_reward=False)
    return task, MLPPolicy(task.observation_space, task.action_space, normalize=False)


def flow_rows() -> tuple[Any, Any]:
    task = Multimodal()
    return task, FlowPolicy(task.observation_space, task.action_space, steps=4)


def reach_rows() -> tuple[Any, Any]:
    task = Reach()
    return task, SquashedGaussian(task.observation_space, task.action_space, hidden=(16,))


def code_rows() -> tuple[Any, Any]:
    task = Codes(noise=0.3, tail=0.1, flips=0.1)
    return task, task.policy((), 0)


def sequence_rows() -> tuple[Any, Any]:
    task = Sequences(noise=0.3)
    return task, task.policy((), 0)


@pytest.fixture(scope="module")
def text_rows(tmp_path_factory) -> Callable[[], tuple[Any, Any]]:
    policy = LanguageModel.load(tiny.language_model(tmp_path_factory.mktemp("llama")), max_new=8)
    policy.eos = tuple(range(2, policy.vocabulary, 8))  # completions of different lengths
    records = [{"prompt": "the cat", "answer": "sat"}, {"prompt": "a dog and a cat", "answer": "4"}]

    def length(completions: list[str], **_: Any) -> list[float]:
        return [float(len(c)) for c in completions]

    return lambda: (TextTask("t", records, records, [length], max_new=8), policy)


def rows_of(b: Trajectories, group: int) -> list[dict[str, torch.Tensor]]:
    """What was drawn, decided and given in the rows of a group."""
    decided = {name: b.trace[name] for name in ("completion", "action", "noise", "time") if name in b.trace}
    given = {name: x for name in ("logp_old", "score", "reward") if (x := b.get(name)) is not None}
    rows = (b.group == group).nonzero()[:, 0].tolist()
    return [{name: x[i] if x.ndim == 1 else x[i, b.valid[i]] for name, x in (decided | given).items()} for i in rows]


def equal(some: list[dict[str, torch.Tensor]], others: list[dict[str, torch.Tensor]]) -> bool:
    """Random numbers and choices bit for bit; what policies compute differs by rounding in another batch."""

    def same(name: str, x: torch.Tensor, y: torch.Tensor) -> bool:
        if x.is_floating_point() and name not in ("noise", "time"):
            return x.shape == y.shape and torch.allclose(x, y, atol=1e-4)
        return torch.equal(x, y)

    return len(some) == len(others) and all(
        same(name, x, other[name]) for row, other in zip(some, others, strict=True) for name, x in row.items()
    )


TASKS = {
    "bandit": lambda: (Bandit(), SoftmaxTable(8, 10)),
    "gym": gym_rows,
    "tensor": tensor_rows,
    "flow": flow_rows,
    "reach": reach_rows,
    "codes": code_rows,
    "sequences": sequence_rows,
    "text": None,
}


@pytest.mark.parametrize("name", TASKS)
def test_rows_of_a_request_do_not_depend_on_the_batch(name, text_rows):
    make = TASKS[name] or text_rows
    horizon = None if name in ("text", "bandit", "flow", "codes", "sequences") else 9
    explore = {"random": 0.3, "noise": 0.2} if name == "reach" else {}

    def ask(key: int, samples: int = 3, start: int = 0) -> Request:
        return Request(start, samples, horizon, key=key, **explore)

    def roll(*requests: Request, seed: int = 1) -> Trajectories:
        task, policy = make()
        return task.rollout(policy, list(requests), seed)[0]

    alone = rows_of(roll(ask(5)), 0)
    assert len(alone) == 3
    second = 0 if name in ("flow", "sequences") else 1
    assert equal(rows_of(roll(ask(4, 2, second), ask(5), ask(6, 1)), 1), alone)
    assert equal(rows_of(roll(ask(6, 1), ask(9), ask(4, 2, second), ask(5)), 3), alone)
    assert equal(rows_of(roll(ask(5, 5)), 0)[:3], alone)  # further samples
    assert not equal(alone[:1], alone[1:2])
    assert not equal(alone[1:2], alone[2:])
    for other in (roll(ask(6)), roll(ask(5), seed=2)):
        assert not equal(rows_of(other, 0), alone)


def test_slots_do_not_change_what_is_written(text_rows):
    task, policy = text_rows()
    requests = [Request(0, 4, key=3), Request(1, 3, key=8)]
    whole = task.rollout(policy, requests, 0)[0]
    try:
        policy.slots = 2
        few = task.rollout(policy, requests, 0)[0]
    finally:
        policy.slots = None
    assert torch.equal(few.trace["completion"], whole.trace["completion"])


def test_a_row_that_goes_on_reads_its_stream_where_it_stopped(text_rows):
    task, policy = text_rows()
    whole = task.rollout(policy, [Request(0, 1, 8, key=k) for k in range(6)], 0)[0]
    long = [i for i in range(6) if int(whole.lengths[i]) > 4]
    assert long
    cut = [
        Trajectories(
            mask=whole.mask[i : i + 1, :3],
            logp_old=whole.logp_old[i : i + 1, :3],
            trace={"completion": whole.trace["completion"][i : i + 1, :3]},
        )
        for i in long
    ]
    going = [Request(0, 1, 5, prefix=row, key=i) for i, row in zip(long, cut, strict=True)]
    after = task.rollout(policy, going, 0)[0]
    for n, i in enumerate(long):
        assert (
            after.trace["completion"][n, after.valid[n]].tolist()
            == whole.trace["completion"][i, whole.valid[i]].tolist()
        )


def test_environments_that_continue_draw_by_environment_and_request():
    def roll(envs: int, key: int) -> list[list[int]]:
        task = Gym("CartPole-v1", envs=envs)
        policy = MLPPolicy(task.observation_space, task.action_space, normalize=False)
        b = task.rollout(policy, [Request(None, horizon=7, key=key)], 0)[0]
        assert b.shape == (envs, 7)  # no episode is that short, so the environments' starts are the same
        return b.trace["action"].tolist()

    assert roll(5, 3)[:2] == roll(2, 3)
    assert roll(2, 3) != roll(2, 4)


def test_continuing_tensors_draw_the_same_in_chunks(monkeypatch):
    monkeypatch.setattr(rng, "ENVS_PER_BLOCK", 8)

    def roll(chunk: int, key: int, name: str = "CartPole-v1") -> Trajectories:
        task = Tensors(name, envs=21, chunk=chunk, scale_reward=False)
        policy = MLPPolicy(task.observation_space, task.action_space, normalize=False)
        return task.rollout(policy, [Request(None, horizon=60, key=key)], 0)[0]

    whole = roll(100, 2)
    assert len(whole.valid) > 21  # with episodes that end, and starts
    for chunk in (5, 8, 16):
        pieces = roll(chunk, 2)
        assert torch.equal(pieces.trace["action"], whole.trace["action"])
        assert torch.equal(pieces.trace["obs"], whole.trace["obs"])
    assert not torch.equal(roll(100, 3).trace["action"][:, :5], whole.trace["action"][:, :5])


# numbers of requests


def test_requests_are_numbered_over_the_run_and_its_checkpoints():
    pool = StartPool(4, 0)
    assert [r.key for r in pool.number(pool.draw(3, 1))] == [0, 1, 2]
    restored = StartPool(4, 0)
    restored.load_state_dict(pool.state_dict())
    assert [r.key for r in restored.number(restored.draw(2, 1))] == [3, 4]
    ranks = [StartPool(4, 0, rank=rank, world=2) for rank in range(2)]
    keys = [r.key for pool in ranks for _ in range(2) for r in pool.number(pool.draw(2, 1))]
    assert sorted(keys) == list(range(8))


def test_an_ask_is_numbered_on_and_asks_again_with_new_numbers():
    run = build(config.from_dict({"method": "dapo", "task": "bandit", "steps": 3}))
    asked, rollout = [], run.task.rollout

    def watched(policy, requests, seed):
        asked.append([r.key for r in requests])
        rows, metrics = rollout(policy, requests, seed)
        return rows.but(score=torch.zeros_like(rows.score), scores=None), metrics  # nothing to learn from: ask again

    run.task.rollout = watched
    collect(run)
    assert len(asked) > 1
    keys = [key for ask in asked for key in ask]
    assert keys == list(range(len(keys)))
