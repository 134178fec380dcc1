"""Bias, variance and direction of gradients on an enumerable problem."""

from __future__ import annotations

from typing import Any

import torch

from anypo.evidence.experiments.assemble import Measures, assemble_in_memory
from anypo.evidence.toys import Sequences
from anypo.loops.gradients import gradient
from anypo.loops.learn import learn
from anypo.loops.views import minibatch_views, with_views
from anypo.method.method import Method
from anypo.protocols import KeepsDirection
from anypo.rng import BatchRng


def gradient_quality(
    method: Method,
    seed: int,
    *,
    repeats: int = 100,
    requests: int = 4,
    samples: int = 8,
    drift: float = 0.0,
    **task: Any,
) -> Measures:
    """Compare the objective's gradient on batches of enumerable sequences with the exact gradient of the expected reward.

    Args:
        method: the method to train.
        seed: of the task, the weights and the sampling.
        repeats: number of batches.
        requests, samples: of one batch.
        drift: distance (standard deviation per logit) the policy has moved since the rows were sampled.
        task: settings of `toys.Sequences`.

    Returns:
        cosine: mean over batches. bias: sine of the angle between the mean estimate and the truth, sampling noise included.
        variance: tr Cov / |mean|^2. gain: projection of the mean estimate on the truth, over its length.
    """
    toy = Sequences(seed=seed, **task)
    run = assemble_in_memory(
        method, toy, seed, batches=1, lr=0.1, requests=requests, samples=samples, epochs=1, minibatch=0
    )
    group = torch.arange(requests).repeat_interleave(samples)
    old = run.policy.logits.detach().clone()
    new = old + drift * torch.randn(old.shape, generator=torch.Generator().manual_seed(seed + 1))
    estimates = []
    for _ in range(repeats):
        with torch.no_grad():
            run.policy.logits.copy_(old)
        rows = method.prepare(
            with_views(run, method, toy.batch(run.policy, group, BatchRng(run.generator, len(group))))
        )
        with torch.no_grad():
            run.policy.logits.copy_(new)
        run.policy.logits.grad = None
        gradient(method, run.policy, minibatch_views(run, method, rows), run.config.micro)
        grad = run.policy.logits.grad
        estimates.append(torch.zeros_like(old).double() if grad is None else -grad.double())
    with torch.no_grad():
        run.policy.logits.copy_(new)
    truth = toy.exact_gradient(run.policy).flatten()
    estimates = torch.stack(estimates).flatten(1)
    mean = estimates.mean(0)
    angle = torch.nn.functional.cosine_similarity(mean, truth, dim=0, eps=1e-12)
    return {
        "cosine": float(torch.nn.functional.cosine_similarity(estimates, truth[None], dim=1, eps=1e-12).mean()),
        "bias": float((1 - angle.square()).clamp(min=0).sqrt()),
        "variance": float((estimates - mean).square().sum(1).mean() / mean.square().sum().clamp(min=1e-24)),
        "gain": float(mean @ truth / truth.square().sum()),
    }


def follow_direction(
    method: Method,
    seed: int,
    *,
    batches: int = 150,
    lr: float = 0.05,
    samples: int = 4,
    noise: float = 0.3,
    **task: Any,
) -> Measures:
    """Compare the direction of every step with the exact gradient at the policy's weights, over a run on sequences.

    Args:
        method: the method to train.
        seed: of the task, the weights and the sampling.
        batches, lr, samples: where the method leaves them open.
        noise: of the reward.
        task: settings of `toys.Sequences`.

    Returns:
        cosine, error: cosine and squared error of unit vectors, means over the run. success: at the end.
    """
    toy = Sequences(seed=seed, noise=noise, **task)
    run = assemble_in_memory(
        method, toy, seed, batches=batches, lr=lr, requests=1, samples=samples, epochs=1, minibatch=0
    )
    cosines: list[float] = []

    def watch(record: dict[str, Any]) -> None:
        if record["batch"] == 0:
            return
        followed = run.stepper.direction if isinstance(run.stepper, KeepsDirection) else None
        ascent = followed[0] if followed else -run.policy.logits.grad
        truth = toy.exact_gradient(run.policy).flatten()
        cosines.append(float(torch.nn.functional.cosine_similarity(ascent.double().flatten(), truth, dim=0, eps=1e-12)))

    last = learn(run, watch)
    mean = sum(cosines) / len(cosines)
    return {"cosine": mean, "error": 2 - 2 * mean, "success": last["eval/success"]}
