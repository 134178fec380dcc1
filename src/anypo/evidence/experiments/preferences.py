"""Preferences and proxy rewards."""

from __future__ import annotations

from typing import Any

import torch

from anypo.comparisons import Comparisons
from anypo.evidence.experiments.assemble import Measures, assemble_in_memory
from anypo.evidence.toys import Sequences
from anypo.loops.learn import learn
from anypo.method.method import Method
from anypo.method.procedure import Procedure


def train_on_proxies(
    method: Method,
    seed: int,
    *,
    batches: int = 150,
    lr: float = 0.1,
    requests: int = 1,
    samples: int = 64,
    minibatch: int = 0,
    proxies: int = 5,
    **task: Any,
) -> Measures:
    """Train on sequences that are scored by proxies of the true reward only.

    Args:
        method: the method to train.
        seed: of the task, the weights and the sampling.
        batches, lr, requests, samples, minibatch: where the method leaves them open.
        proxies: number of reward channels.
        task: settings of `toys.Sequences`.

    Returns:
        success: true reward at the end, 0 for the worst and 1 for the best outcome. peak: its maximum over the run. fall: the loss
        since then.
    """
    toy = Sequences(seed=seed, proxies=proxies, **task)
    run = assemble_in_memory(
        method, toy, seed, batches=batches, lr=lr, requests=requests, samples=samples, epochs=1, minibatch=minibatch
    )
    records: list[dict[str, Any]] = []
    last = learn(run, records.append)["eval/success"]
    peak = max(r["eval/success"] for r in records if "eval/success" in r)
    return {"success": last, "peak": peak, "fall": peak - last}


def choose_by_proxy(procedure: Procedure, seed: int, *, samples: int = 4096, error: float = 1.0) -> Measures:
    """Choose among samples by a proxy whose errors have heavy tails (Student's t with 2 degrees of freedom).

    Args:
        procedure: called with proxy and true reward of the samples, it returns a curve over the number chosen from.
        seed: of rewards and errors.
        samples: number of samples, whose true rewards are standard normal.
        error: scale of the proxy's errors.

    Returns:
        gold, proxy: rewards at the last point of the curve. kl: its divergence from the samples.
    """
    g = torch.Generator().manual_seed(seed)
    gold, normal = torch.randn(2, samples, generator=g, dtype=torch.float64)
    chi2 = -2 * torch.rand(samples, generator=g, dtype=torch.float64).clamp(min=1e-12).log()
    last = procedure.call(gold + error * normal / (chi2 / 2).sqrt(), gold)[-1]
    return {"gold": last.gold, "proxy": last.proxy, "kl": last.kl}


def fit_scores(
    method: Method, seed: int, *, items: int = 10, comparisons: int = 5000, updates: int = 1500, lr: float = 0.05
) -> Measures:
    """Fit one number per item to comparisons drawn from Bradley-Terry probabilities of known scores.

    The number is the item's learned score and, after a softmax, its log-probability: reward models and policies fit the same numbers.

    Args:
        method: its loss is minimised.
        seed: of scores and comparisons.
        items, comparisons, updates, lr: of the problem and of Adam.

    Returns:
        rmse: to the known scores, both centred, at the best scale, over their standard deviation. scale: the best scale.
    """
    g = torch.Generator().manual_seed(seed)
    truth = torch.randn(items, generator=g, dtype=torch.float64)
    i, j = torch.randint(items, (2, comparisons), generator=g)
    first = torch.rand(comparisons, generator=g, dtype=torch.float64) < torch.sigmoid(truth[i] - truth[j])
    w, l = torch.where(first, i, j)[i != j], torch.where(first, j, i)[i != j]  # noqa: E741
    kinds, count = torch.unique(w * items + l, return_counts=True)
    w, l = kinds // items, kinds % items  # noqa: E741
    fitted = torch.zeros(items, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([fitted], lr)
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = lr * (1 - update / updates)
        logp, ref = fitted.log_softmax(0), torch.zeros(len(w), dtype=torch.float64)
        pairs = Comparisons(
            logp[w], logp[l], ref, ref, score_chosen=fitted[w], score_rejected=fitted[l], weight=count / count.double().mean()
        )  # fmt: skip
        loss, _ = method.loss(pairs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, y = (v.detach() - v.detach().mean() for v in (fitted, truth))
    scale = (x @ y) / (x @ x).clamp(min=1e-24)
    return {"rmse": float((scale * x - y).square().mean().sqrt() / y.square().mean().sqrt()), "scale": float(scale)}
