"""Seconds per GRPO step, beside TRL's GRPOTrainer: `python benchmarks/text_grpo.py [--peer PYTHON]`, minutes on two cores.

A Qwen2 of 4.2 million parameters (256 wide, 4 layers, 4 heads, 99 tokens), 16 prompts x 8 samples x at most 48 new tokens, one
update a batch, no KL, in float32 and in bfloat16. Both sides start from the same weights, prompts and reward, and run one after the
other, alternating, each in a process of its own with as many threads. Printed: the median seconds per step of every process, and per
precision the ratio of the medians over all steps with the smallest and largest ratio of the paired processes; the same for the seconds
of processor time, which other programs on the machine disturb less. PYTHON is an interpreter that has requirements-peers.txt
(default: this one).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WARM = 3
"""Steps at the start of a process that are not counted."""

REWARD = """def digits(completions, **columns):
    return [sum(c.isdigit() for c in text) / max(1, len(text)) for text in completions]
"""


def write_model(directory: Path, layers: int = 4, hidden: int = 256) -> None:
    """Random weights and a character tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    tokens = ["<pad>", "<eos>", "<unk>", *map(chr, range(32, 127)), "\n"]
    raw = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    raw.decoder = decoders.Fuse()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>", "padding_side": "left"}
    PreTrainedTokenizerFast(tokenizer_object=raw, **special).save_pretrained(directory)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokens), hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=512, bos_token_id=None, eos_token_id=1, pad_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(directory)


def prepare(folder: Path) -> None:
    """The model, prompts and reward both sides use."""
    if not (folder / "model").exists():
        write_model(folder / "model")
    prompts = [{"prompt": f"{a}+{b}="} for a in range(40) for b in range(40)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
    (folder / "digits.py").write_text(REWARD)


def run_anypo(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """Seconds of every step after the first ones."""
    import torch

    from anypo.config import from_dict
    from anypo.loops.learn import learn
    from anypo.runs.build import build

    run = build(
        from_dict(
            {
                "method": "grpo",
                "task": {"name": f"jsonl:{folder / 'prompts.jsonl'}", "reward": f"{folder / 'digits.py'}:digits", "max_new": options.new},
                "policy": {"name": f"hf:{folder / 'model'}"},
                "terms": [],
                "collect": {"requests": options.prompts, "samples": options.samples},
                "step": {"lr": 1e-4},
                "autocast": "on" if options.precision == "bf16" else "off",
                "episodes": 1,
                "evaluate_every": 10**6,
                "steps": WARM + options.steps + 1,  # the last one evaluates
            }
        )
    )  # fmt: skip
    clock, tokens = [], []

    def watch(record: dict[str, float]) -> None:
        clock.append((time.perf_counter(), time.process_time()))
        tokens.append(record.get("tokens", 0.0))

    learn(run, watch)
    return {**steps(clock[1:-1]), "tokens": statistics.mean(tokens[1 + WARM : -1]), "torch": torch.__version__}


def run_trl(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """The same for GRPOTrainer."""
    import torch
    import trl
    from datasets import Dataset
    from transformers import TrainerCallback

    rewards: dict[str, object] = {}
    exec((folder / "digits.py").read_text(), rewards)
    prompts = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    clock: list[tuple[float, float]] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_, **__) -> None:
            clock.append((time.perf_counter(), time.process_time()))

    with tempfile.TemporaryDirectory() as out:
        trainer = trl.GRPOTrainer(
            model=str(folder / "model"),
            reward_funcs=rewards["digits"],
            args=trl.GRPOConfig(
                output_dir=out, per_device_train_batch_size=options.prompts * options.samples, num_generations=options.samples,
                max_completion_length=options.new, max_steps=WARM + options.steps, learning_rate=1e-4, lr_scheduler_type="constant",
                beta=0.0, num_iterations=1, bf16=options.precision == "bf16", use_cpu=not torch.cuda.is_available(), logging_steps=1,
                report_to=[], save_strategy="no", disable_tqdm=True, seed=0,
            ),
            train_dataset=Dataset.from_list(prompts),
            callbacks=[Clock()],
        )  # fmt: skip
        trainer.train()
    logged = [r["completions/mean_length"] for r in trainer.state.log_history if "completions/mean_length" in r]
    tokens = statistics.mean(logged[WARM:]) * options.prompts * options.samples
    return {**steps(clock), "tokens": tokens, "torch": torch.__version__, "trl": trl.__version__}


def steps(clock: list[tuple[float, float]]) -> dict[str, list[float]]:
    """Differences of the times at which steps ended, the first ones left out."""
    pairs = list(itertools.pairwise(clock))[WARM - 1 :]
    return {name: [b[k] - a[k] for a, b in pairs] for k, name in enumerate(("seconds", "processor"))}


def measure(side: str, python: str, folder: Path, precision: str, options: argparse.Namespace) -> dict[str, object]:
    """One process of one side."""
    words = [side, "--folder", folder, "--precision", precision]
    for name in ("steps", "prompts", "samples", "new"):
        words += [f"--{name}", getattr(options, name)]
    environment = {k: v for k, v in os.environ.items() if side == "anypo" or k != "PYTHONPATH"}
    environment["OMP_NUM_THREADS"] = str(options.threads)
    command = [python, __file__, *map(str, words)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def compare(options: argparse.Namespace) -> dict[str, object]:
    """All processes, alternating, and the ratios."""
    from measured import machine

    with tempfile.TemporaryDirectory() as made:
        folder = options.folder or Path(made)
        found: dict[str, object] = {
            "machine": machine(),
            "settings": {k: v for k, v in vars(options).items() if k not in ("peer", "folder", "json")},
        }
        sides: dict[str, list[dict[str, object]]] = {}
        for repeat in range(options.repeats):
            for precision in options.precision.split(","):
                for side, python in (("anypo", sys.executable), ("trl", options.peer)):
                    one = measure(side, python, folder, precision, options)
                    sides.setdefault(f"{side} {precision}", []).append(one)
                    wall, processor = (statistics.median(one[k]) for k in ("seconds", "processor"))
                    print(
                        f"{side:5} {precision} {repeat}  {wall:6.3f} s/step, {processor:6.3f} s of processor time,"
                        f" {one['tokens']:5.0f} tokens",
                        flush=True,
                    )
        found["runs"] = sides
        for own, peer in (("fp32", "fp32"), ("bf16", "fp32"), ("bf16", "bf16")):
            if f"anypo {own}" in sides and f"trl {peer}" in sides:
                for clock in ("seconds", "processor"):
                    one = found[f"{clock}: anypo {own}, trl {peer}"] = ratio(
                        *([run[clock] for run in sides[side]] for side in (f"trl {peer}", f"anypo {own}"))
                    )
                    print(
                        f"anypo {own} is {one['ratio']:.2f} times as fast as TRL {peer} ({one['least']:.2f} to {one['most']:.2f})"
                        f" by {clock}",
                        flush=True,
                    )
    return found


def ratio(slow: list[list[float]], fast: list[list[float]]) -> dict[str, float]:
    """Ratio of the medians of all steps, and the extremes over the pairs of processes."""
    pairs = [statistics.median(a) / statistics.median(b) for a, b in zip(slow, fast, strict=True)]
    medians = [statistics.median(itertools.chain(*runs)) for runs in (slow, fast)]
    return {
        "peer": medians[0],
        "own": medians[1],
        "ratio": medians[0] / medians[1],
        "least": min(pairs),
        "most": max(pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side", nargs="?", choices=("compare", "anypo", "trl"), default="compare")
    parser.add_argument("--peer", default=sys.executable, help="interpreter that has trl")
    parser.add_argument("--precision", default="fp32,bf16")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each side")
    parser.add_argument("--steps", type=int, default=8, help="counted steps of a process")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--new", type=int, default=48)
    parser.add_argument("--folder", type=Path, help="where the shared model lies (default: made anew)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    if options.side == "compare":
        found = compare(options)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1, default=str) + "\n")
    else:
        prepare(options.folder)
        run = run_anypo if options.side == "anypo" else run_trl
        print(json.dumps(run(options.folder, options)))


if __name__ == "__main__":
    main()
