"""Learning hidden codes: the experiment most claims use."""

from __future__ import annotations

import statistics
from typing import Any

from anypo.evidence.experiments.assemble import Measures, assemble_in_memory
from anypo.evidence.toys import Codes
from anypo.loops.learn import learn
from anypo.method.method import Method


def train_on_codes(
    method: Method,
    seed: int,
    *,
    batches: int = 100,
    lr: float = 0.1,
    requests: int = 16,
    samples: int = 8,
    epochs: int = 1,
    minibatch: int = 0,
    **task: Any,
) -> Measures:
    """Train on hidden codes.

    Args:
        method: the method to train.
        seed: of the task, the weights and the sampling.
        batches, lr, requests, samples, epochs, minibatch: where the method leaves them open.
        task: settings of `toys.Codes`.

    Returns:
        success, solved, worst, passk, weakest, entropy: at the end, exact, see `Codes.evaluate`.
        curve: mean success over the run. batches_to_80: batches until it reaches 0.8.
        ratio_max: largest ratio. kl_old: mean divergence from the sampling policy. spike: largest gradient norm over the median one.
        length_right, length_wrong, hint: means over the last tenth of the run.
        live_rows: share of rows with an advantage. dead_groups: share of groups whose outcomes are equal. decisions: per batch.
    """
    run = assemble_in_memory(
        method, Codes(seed=seed, **task), seed, batches=batches, lr=lr, requests=requests, samples=samples, epochs=epochs,
        minibatch=minibatch,
    )  # fmt: skip
    records: list[dict[str, Any]] = []
    learn(run, records.append)
    held = [r for r in records if "eval/success" in r]
    last = {name.removeprefix("eval/"): value for name, value in held[-1].items() if name.startswith("eval/")}
    late = records[-max(1, batches // 10) :]

    def mean(name: str, selected: list[dict[str, Any]]) -> float:
        values = [r[name] for r in selected if name in r]
        return sum(values) / len(values) if values else 0.0

    norms = [r["grad_norm"] for r in records if r.get("grad_norm", 0) > 0]
    reached = [r["batch"] for r in held if r["eval/success"] >= 0.8]
    return {
        **last,
        "curve": mean("eval/success", held),
        "batches_to_80": float(reached[0] if reached else batches + 1),
        "ratio_max": max((r.get("ratio_max", 1.0) for r in records[1:]), default=1.0),
        "kl_old": mean("kl_old", records),
        "spike": max(norms) / statistics.median(norms) if norms else 1.0,
        "length_right": mean("length_right", late),
        "length_wrong": mean("length_wrong", late),
        "hint": mean("hint", late),
        "dead_groups": mean("dead_groups", records),
        "live_rows": mean("live_rows", records),
        "decisions": mean("decisions", records),
    }
