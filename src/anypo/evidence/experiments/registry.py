"""The experiments by name."""

from __future__ import annotations

import inspect
from typing import Any

from anypo.errors import UsageError, unknown
from anypo.evidence.experiments.assemble import Experiment, Measures
from anypo.evidence.experiments.codes import train_on_codes
from anypo.evidence.experiments.control import replay_reach, train_control
from anypo.evidence.experiments.generative import train_in_plane
from anypo.evidence.experiments.gradients import follow_direction, gradient_quality
from anypo.evidence.experiments.language import permute_letters
from anypo.evidence.experiments.preferences import choose_by_proxy, fit_scores, train_on_proxies
from anypo.method.method import Method
from anypo.method.procedure import Procedure


def on_codes(text: str, **defaults: Any) -> tuple[Experiment, dict[str, Any], str]:
    """Return an entry of EXPERIMENTS: hidden codes with these settings."""
    return train_on_codes, defaults, text


EXPERIMENTS: dict[str, tuple[Experiment, dict[str, Any], str]] = {
    "gradient": (
        gradient_quality,
        {},
        "bias and variance of the gradient against the exact one, on enumerable sequences",
    ),
    "stale-gradient": (gradient_quality, {"drift": 0.5}, "the same after the policy has moved since it sampled"),
    "bandit": (gradient_quality, {"length": 1, "symbols": 10, "repeats": 200}, "the same on a bandit with ten arms"),
    "direction": (follow_direction, {}, "agreement of the followed direction with the exact gradient along a run"),
    "learning": on_codes("plain on-policy learning of hidden codes"),
    "staleness": on_codes("the sampling policy is renewed every eighth batch only", sync=8),
    "mismatch": on_codes("sampler and learner disagree about log-probabilities (0.3 nats)", noise_logp=0.3),
    "retention": on_codes("two right symbols per position: what variety is left", slack=1, symbols=6, batches=150),
    "sparse": on_codes("codes too long to be found by chance", length=8, batches=150),
    "multi-reward": on_codes("two outcome channels, one worth ten times the other", parts=2, scale=10.0),
    "noise": on_codes("Gaussian noise on every score", noise=0.5),
    "heavy-tail": on_codes("heavy-tailed noise on every score", tail=0.3),
    "flips": on_codes("one score in five is inverted", flips=0.2),
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
    "proxies": (train_on_proxies, {}, "five reward models with independent errors; the true reward is measured"),
    "selection": (choose_by_proxy, {}, "samples are chosen by a proxy whose errors have heavy tails"),
    "recovery": (fit_scores, {}, "known scores of ten items, from comparisons that follow Bradley-Terry"),
    "layers": (permute_letters, {}, "a small language model learns a permutation of letters"),
    "denoising": (
        train_in_plane,
        {"paying": (0, 1)},
        "a pretrained generative policy is rewarded at two of its four points",
    ),
    "modes": (
        train_in_plane,
        {"batches": 150},
        "a pretrained generative policy is rewarded at all four points: modes kept",
    ),
    "cloning": (
        train_in_plane,
        {"pretraining": 0, "batches": 1000, "lr": 2e-3, "requests": 128, "samples": 1},
        "behaviour cloning of an expert that uses four points of the plane",
    ),
    "control": (train_control, {}, "CartPole for 20,000 steps"),
    "replay": (replay_reach, {}, "a point reaches for a goal, 1,440 decisions"),
    "offline": (replay_reach, {"data": "mixed"}, "the same from recorded episodes, four in five of them random"),
    "two-peaks": (
        replay_reach,
        {"peaks": True, "batches": 600, "first": 64, "reward_scale": 20.0},
        "one decision with two equally good answers",
    ),
}
"""Name -> (function, settings it is run with unless a claim says otherwise, what it is about)."""


CHEAP = ("gradient", "stale-gradient", "bandit", "direction", "selection")
"""Experiments that take under five seconds for ten seeds of two entries."""


def run_experiment(name: str, entry: Method | Procedure, seed: int, settings: dict[str, Any]) -> Measures:
    """Run one experiment.

    Args:
        name: a key of EXPERIMENTS.
        entry: the method or procedure under test.
        seed: of the task, the weights and the sampling.
        settings: override the experiment's own.

    Raises:
        UsageError: an unknown experiment or setting, or an entry of the other kind.
    """
    if name not in EXPERIMENTS:
        raise unknown("experiment", name, EXPERIMENTS)
    function, defaults, _ = EXPERIMENTS[name]
    kind = "procedure" if isinstance(entry, Procedure) else "method"
    if kind not in inspect.signature(function).parameters:
        raise UsageError(f"the experiment {name!r} is not for a {kind}, and {entry.card.id} is one")
    try:
        return function(entry, seed, **{**defaults, **settings})
    except TypeError as error:
        if "unexpected keyword" in str(error):
            raise UsageError(f"the experiment {name!r} has no such setting: {error}") from None
        raise
