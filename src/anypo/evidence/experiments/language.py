"""Language models."""

from __future__ import annotations

from typing import Any

import torch

from anypo.evidence.experiments.assemble import Measures, assemble_in_memory
from anypo.loops.learn import learn
from anypo.method.method import Method


def permute_letters(
    method: Method, seed: int, *, batches: int = 90, lr: float = 1e-3, requests: int = 12, samples: int = 8
) -> Measures:
    """Train a new decoder of three blocks to answer each letter with its image under a hidden permutation.

    Args:
        method: the method to train.
        seed: of the task, the weights and the sampling.
        batches, lr, requests, samples: where the method leaves them open.

    Returns:
        success: greedy, at the end. curve: mean over the run.
    """
    from anypo.policies.language.model import LanguageModel
    from anypo.policies.language.tiny import fresh
    from anypo.tasks.text.task import TextTask

    letters = "abcdefghijkl"
    order = torch.randperm(len(letters), generator=torch.Generator().manual_seed(seed)).tolist()
    records = [{"prompt": a, "answer": letters[i]} for a, i in zip(letters, order, strict=True)]
    tokenizer, model = fresh(letters, seed)
    task = TextTask("letters", records, records, ["exact"], metric="success", max_new=1)
    run = assemble_in_memory(
        method, task, seed, batches=batches, lr=lr, requests=requests, samples=samples, epochs=1, minibatch=0,
        policy=LanguageModel(model, tokenizer, value=method.heads, max_new=1),
    )  # fmt: skip
    metrics: list[dict[str, Any]] = []
    last = learn(run, metrics.append)
    held = [r["eval/success"] for r in metrics if "eval/success" in r]
    return {"success": last["eval/success"], "curve": sum(held) / len(held)}
