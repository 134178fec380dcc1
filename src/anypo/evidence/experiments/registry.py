"""The experiments by name."""

from __future__ import annotations

from typing import Any

from anypo.errors import UsageError, unknown
from anypo.evidence.experiments.assemble import Experiment, Measures
from anypo.evidence.experiments.codes import trained
from anypo.evidence.experiments.control import control, replayed
from anypo.evidence.experiments.generative import plane
from anypo.evidence.experiments.gradients import direction, gradient_quality
from anypo.evidence.experiments.language import layers
from anypo.evidence.experiments.preferences import proxied, recovered
from anypo.method.method import Method


def on_codes(text: str, **defaults: Any) -> tuple[Experiment, dict[str, Any], str]:
    return trained, defaults, text


EXPERIMENTS: dict[str, tuple[Experiment, dict[str, Any], str]] = {
    "gradient": (
        gradient_quality,
        {},
        "bias and variance of the gradient against the exact one, on enumerable sequences",
    ),
    "stale-gradient": (gradient_quality, {"drift": 0.5}, "the same after the policy has moved since it sampled"),
    "bandit": (gradient_quality, {"length": 1, "symbols": 10, "repeats": 200}, "the same on a bandit with ten arms"),
    "direction": (direction, {}, "agreement of the followed direction with the exact gradient along a run"),
    "learning": on_codes("plain on-policy learning of hidden codes"),
    "staleness": on_codes("the sampling policy is renewed every eighth batch only", sync=8),
    "mismatch": on_codes("sampler and learner disagree about log-probabilities (0.3 nats)", noise_logp=0.3),
    "retention": on_codes("two right symbols per position: what variety is left", slack=1, symbols=6, batches=150),
    "sparse": on_codes("codes too long to be found by chance", length=8, batches=150),
    "multi-reward": on_codes("two outcome channels, one worth ten times the other", parts=2, scale=10.0),
    "noise": on_codes("Gaussian noise on every score", noise=0.5),
    "heavy-tail": on_codes("heavy-tailed noise on every score", tail=0.3),
    "flips": on_codes("one verdict in five is wrong", flips=0.2),
    "length": on_codes("fillers are free: how long answers get", filler=True, length=3, batches=150),
    "mixture": on_codes(
        "easy and hard codes under one sampling budget", graded=True, length=6, problems=24, batches=120
    ),
    "horizon": on_codes("one decision of twelve decides the outcome", length=12, critical=5, alive=False),
    "demonstrations": on_codes(
        "hard codes with demonstrations, a tenth of whose symbols are wrong", length=8, quality=0.9
    ),
    "reuse": on_codes("every batch is used eight times", epochs=8),
    "large-steps": on_codes("steps ten times too large", lr=1.0),
    "proxies": (proxied, {}, "five reward models that are each wrong in their own way; the true reward is measured"),
    "recovery": (recovered, {}, "known scores of ten items, from comparisons that follow Bradley-Terry"),
    "layers": (layers, {}, "a small language model learns a permutation of letters"),
    "denoising": (plane, {"paying": (0, 1)}, "a pretrained generative policy is paid at two of its four points"),
    "modes": (
        plane,
        {"batches": 150},
        "a pretrained generative policy is paid at all four points: which of them it keeps",
    ),
    "cloning": (
        plane,
        {"pretraining": 0, "batches": 1000, "lr": 2e-3, "requests": 128, "samples": 1},
        "behaviour cloning of an expert who uses four points of the plane",
    ),
    "control": (control, {}, "CartPole for 20,000 steps"),
    "replay": (replayed, {}, "a point reaches for a goal, 1,440 decisions"),
    "offline": (replayed, {"data": "mixed"}, "the same from recorded episodes, four in five of them random"),
    "two-peaks": (
        replayed,
        {"peaks": True, "batches": 600, "first": 64, "reward_scale": 20.0},
        "one decision with two equally good answers",
    ),
}
"""Name -> (function, settings it is run with unless a claim says otherwise, what it is about)."""


CHEAP = ("gradient", "stale-gradient", "bandit", "direction")
"""Experiments that take under five seconds for ten seeds of two methods."""


def run_experiment(name: str, method: Method, seed: int, settings: dict[str, Any]) -> Measures:
    """One method, one seed; UsageError for an unknown experiment or setting."""
    if name not in EXPERIMENTS:
        raise unknown("experiment", name, EXPERIMENTS)
    function, defaults, _ = EXPERIMENTS[name]
    try:
        return function(method, seed, **{**defaults, **settings})
    except TypeError as error:
        if "unexpected keyword" in str(error):
            raise UsageError(f"the experiment {name!r} has no such setting: {error}") from None
        raise
