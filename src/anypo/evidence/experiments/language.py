"""Language models."""

from __future__ import annotations

from typing import Any

import torch

from anypo.evidence.experiments.assemble import Measures, assemble_in_memory
from anypo.loops.learn import learn
from anypo.method.method import Method


def layers(
    method: Method, seed: int, *, batches: int = 90, lr: float = 1e-3, requests: int = 12, samples: int = 8
) -> Measures:
    """A new decoder of three blocks is to answer every letter with the one a hidden permutation names: greedy success."""
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
    records_: list[dict[str, Any]] = []
    last = learn(run, records_.append)
    held = [r["eval/success"] for r in records_ if "eval/success" in r]
    return {"success": last["eval/success"], "curve": sum(held) / len(held)}
