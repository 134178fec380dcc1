"""Seconds to an accuracy on the default task, beside TRL's GRPOTrainer: `python benchmarks/text_accuracy.py [--peer PYTHON]`, half an hour.

Both sides start from the base model of `sums` (a Llama of 0.6 million parameters, accuracy about 0.4), sample 8 completions a
prompt without a KL term, and are given the same settings, rows per batch x learning rate. With seed 0 each side chooses the one that
takes least processor time; what counts is the median over --seeds with that setting. TRL chooses between bfloat16 and, with its
fastest settings, float32; anypo runs as it does by itself. Greedy accuracy on the 500 held-out problems is measured by the same
function every few steps; neither it nor the start of the process counts. PYTHON is an interpreter that has requirements-peers.txt
(default: this one).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CLOCKS = ("seconds", "processor")
"""Seconds on the wall, and of processor time, which other programs on the machine disturb less."""

SAMPLES = 8
NEW = 4


class Watch:
    """Seconds of training at every evaluation; `done` once the accuracy or the limit is reached."""

    def __init__(self, options: argparse.Namespace, model: Callable[[], Any], tokenizer: Any):
        self.options, self.model, self.tokenizer = options, model, tokenizer
        self.problems = json.loads((options.folder / "heldout.json").read_text())
        self.curve: list[dict[str, float]] = []
        self.seconds = self.processor = 0.0
        self.start()

    def start(self) -> None:
        """Time counts from here."""
        self.since = time.perf_counter(), time.process_time()

    def step(self, number: int) -> None:
        if number:
            self.seconds += time.perf_counter() - self.since[0]
            self.processor += time.process_time() - self.since[1]
        if number % self.options.every == 0:
            found = accuracy(self.model(), self.tokenizer, self.problems)
            self.curve.append({"step": number, "seconds": self.seconds, "processor": self.processor, "accuracy": found})
        self.start()

    @property
    def done(self) -> bool:
        last = self.curve[-1]["accuracy"] if self.curve else 0.0
        return last >= self.options.target or self.processor > self.options.limit

    def found(self) -> dict[str, Any]:
        reached = self.curve[-1]["accuracy"] >= self.options.target
        clocks = {name: self.curve[-1][name] if reached else None for name in CLOCKS}
        return {**clocks, "curve": self.curve}


def accuracy(model: Any, tokenizer: Any, problems: list[dict[str, str]]) -> float:
    """Share of problems whose greedy completion is the answer; the prompts are equally long."""
    import torch

    ids = torch.tensor(tokenizer([p["prompt"] for p in problems])["input_ids"])
    training = model.training
    model.eval()
    with torch.no_grad():
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW, pad_token_id=tokenizer.pad_token_id
        )  # fmt: skip
    model.train(training)
    texts = tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
    return sum(text.strip() == p["answer"] for text, p in zip(texts, problems, strict=True)) / len(problems)


def run_anypo(options: argparse.Namespace) -> dict[str, Any]:
    from anypo.config import from_dict
    from anypo.loops.learn import learn
    from anypo.runs.build import build

    run = build(
        from_dict(
            {
                "method": "grpo", "task": "sums", "policy": {"name": f"hf:{options.folder / 'model'}"}, "terms": [],
                "collect": {"requests": options.rows // SAMPLES, "samples": SAMPLES},
                "step": {"lr": options.lr, "schedule": "constant", "warmup": 0},
                "episodes": 1, "evaluate_every": 10**6, "checkpoint_every": 10**6, "steps": 10**6, "threads": options.threads,
                "seed": options.seed,
            }
        )
    )  # fmt: skip
    watch = Watch(options, lambda: run.policy.inner, run.policy.tokenizer)

    def after(record: dict[str, float]) -> None:
        watch.step(int(record["batch"]))
        run.finished = watch.done

    learn(run, after)
    return watch.found()


def run_trl(options: argparse.Namespace) -> dict[str, Any]:
    import trl
    from datasets import Dataset
    from transformers import TrainerCallback

    def exact(completions: list[str], answer: list[str], **_: Any) -> list[float]:
        return [float(c.strip() == a) for c, a in zip(completions, answer, strict=True)]

    class Follow(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            watch.step(0)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            watch.step(state.global_step)
            control.should_training_stop = watch.done

    with tempfile.TemporaryDirectory() as out:
        trainer = trl.GRPOTrainer(
            model=str(options.folder / "model"),
            reward_funcs=exact,
            args=trl.GRPOConfig(
                output_dir=out, per_device_train_batch_size=options.rows, num_generations=SAMPLES, max_completion_length=NEW,
                max_steps=10**4, learning_rate=options.lr, lr_scheduler_type="constant", beta=0.0, gradient_checkpointing=False,
                bf16=options.precision == "bf16", use_cpu=True, logging_steps=10**4, report_to=[], save_strategy="no",
                disable_tqdm=True, seed=options.seed,
            ),
            train_dataset=Dataset.from_list(json.loads((options.folder / "train.json").read_text())),
            callbacks=[Follow()],
        )  # fmt: skip
        watch = Watch(options, lambda: trainer.accelerator.unwrap_model(trainer.model), trainer.processing_class)
        watch.start()
        trainer.train()
    return {**watch.found(), "trl": trl.__version__}


def measure(side: str, rows: int, lr: float, precision: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One process."""
    words = [
        side,
        f"--rows={rows}",
        f"--lr={lr}",
        f"--precision={precision}",
        f"--seed={seed}",
        f"--folder={options.folder}",
    ]
    words += [f"--{name}={getattr(options, name)}" for name in ("target", "limit", "every", "threads")]
    environment = {k: v for k, v in os.environ.items() if side == "anypo" or k != "PYTHONPATH"}
    environment["OMP_NUM_THREADS"] = str(options.threads)
    python = options.peer if side == "trl" else sys.executable
    done = subprocess.run([python, __file__, *words], check=True, stdout=subprocess.PIPE, text=True, env=environment)
    found = json.loads(done.stdout.splitlines()[-1])
    last = found["curve"][-1]
    print(
        f"{side:5} {precision} rows {rows:4} lr {lr:g} seed {seed}: accuracy {last['accuracy']:.3f} after {last['step']} steps,"
        f" {last['seconds']:.1f} s ({last['processor']:.1f} s of processor time)",
        flush=True,
    )
    return {"side": side, "rows": rows, "lr": lr, "precision": precision, "seed": seed, **found}


def compare(options: argparse.Namespace) -> dict[str, Any]:
    from measured import machine

    from anypo.policies.language import tiny
    from anypo.tasks.text.sums import Sums

    task = Sums()
    (options.folder / "model").symlink_to(tiny.base(task.name, *task.demonstrations()), target_is_directory=True)
    for name, records in (("train", task.records), ("heldout", task.heldout)):
        (options.folder / f"{name}.json").write_text(json.dumps(records))
    settings = [(int(rows), float(lr)) for rows, lr in (pair.split("x") for pair in options.settings.split(","))]
    runs = []
    for rows, lr in settings:
        runs += [measure("anypo", rows, lr, "auto", 0, options), measure("trl", rows, lr, "bf16", 0, options)]
    if best := fastest(runs, "trl"):
        runs.append(measure("trl", best["rows"], best["lr"], "fp32", 0, options))
    chosen = [best for side in ("anypo", "trl") if (best := fastest(runs, side))]
    for seed in map(int, options.seeds.split(",")):  # the sides in turns
        runs += [measure(*(one[k] for k in ("side", "rows", "lr", "precision")), seed, options) for one in chosen]
    hidden = ("peer", "folder", "json", "rows", "lr", "precision", "side", "seed")
    found = {
        "machine": machine(),
        "settings": {k: v for k, v in vars(options).items() if k not in hidden},
        "runs": runs,
    }
    for clock in CLOCKS:
        own, peer = (median(runs, side, clock) for side in ("anypo", "trl"))
        found[f"median {clock}"] = {"anypo": own, "trl": peer}
        if own and peer:
            found[f"sooner by {clock}"] = peer / own
            print(f"anypo is there {peer / own:.2f} times as soon by {clock} ({own:.1f} and {peer:.1f})")
    return found


def fastest(runs: list[dict[str, Any]], side: str) -> dict[str, Any] | None:
    """The run of a side that was there with least processor time."""
    there = [run for run in runs if run["side"] == side and run["processor"] is not None]
    return min(there, key=lambda run: run["processor"], default=None)


def median(runs: list[dict[str, Any]], side: str, clock: str) -> float | None:
    """Over the seeds after the one that settings were chosen with; None where most were not there in time."""
    times = [math.inf if run[clock] is None else run[clock] for run in runs if run["side"] == side and run["seed"]]
    found = statistics.median(times) if times else math.inf
    return found if math.isfinite(found) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side", nargs="?", choices=("compare", "anypo", "trl"), default="compare")
    parser.add_argument("--peer", default=sys.executable, help="interpreter that has trl")
    parser.add_argument(
        "--settings", default="256x1e-4,512x1e-4,512x2e-4,1024x1e-4,1024x2e-4", help="rows x learning rate"
    )
    parser.add_argument("--seeds", default="1,2,3", help="seeds that count; settings are chosen with seed 0")
    parser.add_argument("--target", type=float, default=0.9)
    parser.add_argument("--limit", type=float, default=90.0, help="seconds of processor time of a run")
    parser.add_argument("--every", type=int, default=5, help="steps between evaluations")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--lr", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--precision", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side != "compare":
        print(json.dumps((run_anypo if options.side == "anypo" else run_trl)(options)))
        return
    with tempfile.TemporaryDirectory() as made:
        options.folder = Path(made)
        found = compare(options)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
