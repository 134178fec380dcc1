"""Recorded updates make the numbers of plain ones, whatever has moved since they were recorded."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from entries import entries

import anypo
from anypo import config as configuration
from anypo.errors import UsageError
from anypo.loops.collect import collect
from anypo.loops.compiled_update import Trace, Traces, cannot_trace, trace_update
from anypo.loops.gradients import minibatch_loss, replay_loss
from anypo.loops.learn import learn
from anypo.loops.minibatches import flatten_decisions, minibatches
from anypo.loops.update import update
from anypo.loops.views import attach_noise, compute_views, with_views
from anypo.runs.build import build
from anypo.runs.phases import begin_phase

REPLAYING = [n for n in anypo.methods() if anypo.method(n).traits["replays"]]
DECIDING = ["a2c", "bpo", "cispo", "d3s", "dapo", "ddpo", "dppo", "ghpo", "ppo", "rec", "riskpo", "rlhf-ppo", "t-ppo"]
"""Methods that learn from minibatches of single decisions in rollouts of their own, by operations that read no number."""
PLAIN = {"prdc", "rlpd"}
"""Methods whose updates read numbers on their way: nearest neighbours, a subset that changes."""


def data_file(path, method):
    draw = np.random.default_rng(0)
    size, actions = (
        ((200, 4), draw.integers(0, 2, 200)) if method == "dqn" else ((200, 3), draw.uniform(-2, 2, (200, 1)))
    )
    columns = {"observations": draw.normal(size=size), "actions": actions, "rewards": draw.normal(size=200)}
    np.savez(path, **columns, terminals=np.arange(200) % 50 == 49, expert=np.arange(200) < 100)
    return path


def run_on(tmp_path, method, **values):
    """A run on data, after an update."""
    env = "CartPole-v1" if method == "dqn" else "Pendulum-v1"
    task = {"name": f"data:{data_file(tmp_path / 'd.npz', method)}", "env": env}
    small = {"policy": {"hidden": [16, 16]}, "store": {"batch": 32}, "threads": 1}
    run = build(configuration.from_dict({"method": method, "task": task, "steps": 400, **small, **values}))
    run.batch = 1
    plain_update(run)
    return run


def drawn(run):
    return attach_noise(run.policy, run.store.draw(run.generator), run.method.views | run.method.live, run.generator)


def plain_update(run):
    return update(run, run.method, run.method.prepare(compute_views(run, run.method, drawn(run))))


def gradients(run):
    found = {name: p.grad for name, p in run.policy.named_parameters()}
    for p in run.policy.parameters():
        p.grad = None
    return found


@pytest.mark.parametrize("method", entries(REPLAYING))
def test_a_recorded_update_has_the_loss_metrics_and_gradient_of_the_plain_one(method, tmp_path):
    run = run_on(tmp_path, method)
    made = Traces.of(run).of_rows(run, run.method, drawn(run))
    assert (made is None) == (method in PLAIN)
    for _ in range(3) if made else ():
        batch = drawn(run)
        replay = Traces.of(run).of_rows(run, run.method, batch)  # of the parts that are at work now
        assert replay is not None
        gradients(run)
        metrics, slopes = replay(batch), gradients(run)
        loss, expected = replay_loss(run, run.method, batch)
        loss.backward()
        wanted = gradients(run)
        assert metrics.keys() == expected.keys()
        for name, value in expected.items():
            assert metrics[name] == pytest.approx(float(value), rel=1e-5, abs=1e-6)
        for name, slope in wanted.items():
            assert (slope is None) == (slopes[name] is None)
            if slope is not None:
                torch.testing.assert_close(slopes[name], slope, rtol=1e-5, atol=1e-7)
                assert slopes[name].is_contiguous()
        plain_update(run)  # weights, anchors and knobs move


def test_learning_replays_and_records_once(tmp_path):
    run = run_on(tmp_path, "iql")
    run.batch = 0
    learn(run)
    assert len(Traces.of(run).traces) == 1
    assert next(iter(Traces.of(run).traces.values())) is not None


def minibatch(run, size):
    """A minibatch of single decisions of a rollout."""
    method = begin_phase(run)
    rows = collect(run).rows
    batch = method.prepare(with_views(run, method, rows))
    return next(minibatches(flatten_decisions(batch, method, True, size), method, size, run.generator))


@pytest.mark.parametrize("method", entries(DECIDING))
def test_a_recorded_minibatch_has_the_loss_metrics_and_gradient_of_the_plain_one(method):
    task = {"name": "gym:CartPole-v1", "envs": 2}
    run = build(configuration.from_dict({"method": method, "task": task, "steps": 800, "step": {"minibatch": 16}}))
    part = minibatch(run, 16)
    assert cannot_trace(run, run.method, part) is None
    replay = trace_update(run, run.method, part, minibatch_loss)
    assert replay is not None
    for _ in range(2):
        metrics, slopes = replay(part), gradients(run)
        loss, expected = minibatch_loss(run, run.method, part)
        loss.backward()
        for name, slope in gradients(run).items():
            torch.testing.assert_close(slopes[name], slope, rtol=1e-5, atol=1e-7)
        for name, value in expected.items():
            assert metrics[name] == pytest.approx(float(value), rel=1e-5, abs=1e-6)
        with torch.no_grad():
            for p in run.policy.parameters():
                p.add_(0.01 * torch.randn(p.shape))


COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


@COMPILER
@pytest.mark.slow
@pytest.mark.parametrize("task", ["gym:CartPole-v1", "tensor:Pendulum-v1"])
def test_a_compiled_run_learns_what_a_plain_one_learns(task):
    found = []
    for choice in ("off", "on"):
        values = {"method": "ppo", "steps": 20 * 64, "compile": choice, "threads": 1, "policy": {"hidden": [16, 16]}}
        step = {"epochs": 2, "minibatch": 32}
        run = build(configuration.from_dict(values | {"task": {"name": task, "envs": 4}, "step": step}))
        run.want = replace(run.want, horizon=16)
        learn(run)
        assert any(isinstance(made, Trace) for made in Traces.of(run).traces.values()) == (choice == "on")
        found.append(dict(run.policy.named_parameters()))
    for name, p in found[0].items():
        torch.testing.assert_close(found[1][name], p, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


def test_wanting_machine_code_without_a_compiler_is_an_error_of_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UsageError, match="needs a C\\+\\+ compiler"):
        run_on(tmp_path, "iql", compile="on")


@COMPILER
def test_machine_code_for_a_language_model_is_refused(tiny_model):
    values = {"method": "grpo", "task": "sums", "policy": {"name": f"hf:{tiny_model('llama')}"}, "compile": "on"}
    with pytest.raises(UsageError, match="gains nothing on a CPU"):
        build(configuration.from_dict(values))


def test_an_update_that_cannot_be_compiled_is_told_of(tmp_path):
    run = run_on(tmp_path, "prdc", compile="on")
    batch = drawn(run)
    with pytest.warns(UserWarning, match="the updates of prdc are not compiled: it needs host values"):
        assert Traces.of(run).of_rows(run, run.method, batch) is None


@COMPILER
@pytest.mark.slow
def test_machine_code_makes_the_same_numbers(tmp_path):
    run = run_on(tmp_path, "sac", compile="on")
    batch = drawn(run)
    replay = Traces.of(run).of_rows(run, run.method, batch)
    assert replay is not None
    gradients(run)
    metrics, slopes = replay(batch), gradients(run)
    loss, expected = replay_loss(run, run.method, batch)
    loss.backward()
    for name, slope in gradients(run).items():
        torch.testing.assert_close(slopes[name], slope, rtol=1e-5, atol=1e-6)
    assert metrics["loss"] == pytest.approx(float(expected["loss"]), rel=1e-5)
