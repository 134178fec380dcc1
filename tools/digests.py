"""Compare the numbers the working tree computes with those of a commit: `python tools/digests.py --base COMMIT`, minutes on one core.

Every run of the table is made twice, on one thread and in float32, once from the commit's `src` and once from the working tree's. Two
runs are equal if their metrics.jsonl have the same bytes and all weights of the newest checkpoint and all anchors the same digests.
Digests depend on the machine and on PyTorch, so they are never stored: the two sides always run in a pair. The flags of the table are
the working tree's; the base model of the task `sums` comes from the cache both sides share.

Exits with 1 if any run differs or fails.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

ROOT = Path(__file__).parents[1]
ENTRY = """import os, anypo
if not anypo.__file__.startswith(os.environ["PYTHONPATH"]):
    raise SystemExit(f"{anypo.__file__} is not below {os.environ['PYTHONPATH']}")
from anypo.cli import main
main()
"""
ALWAYS = "--threads 1 --autocast off --device cpu --seed 0"
TEXT = "--task sums --collect.requests 8 --collect.samples 4 --episodes 16"
DEMONSTRATIONS = "--policy.pretrain 50 --collect.requests 4 --collect.samples 8"

RUNS = {
    # policy gradient
    "grpo": "grpo --task bandit --step.epochs 2 --step.minibatch 32 --steps 20",
    "r2vpo": f"r2vpo {TEXT} --step.epochs 2 --step.minibatch 16 --steps 3",
    "capo-curvature": f"capo-curvature {TEXT} --step.lr 1e-3 --step.minibatch 16 --steps 3",
    "hpt": f"hpt {TEXT} --steps 3",
    "ppo": "ppo --task gym:CartPole-v1 --steps 4096 --episodes 2",
    "a2c": "a2c --task tensor:CartPole-v1 --task.envs 32 --steps 8192 --episodes 4",
    # advantage
    "bupo": "bupo --task sums --ratio.layer 1 --collect.requests 2 --collect.samples 4 --episodes 8 --steps 34",
    "knapsack-rl": f"knapsack-rl {TEXT} --steps 4",
    # guidance, decision theory
    "ghpo": f"ghpo {TEXT} --steps 3",
    "n-pg-igt": "n-pg-igt --task bandit --steps 20",
    # preference
    "rlhf-ppo": "rlhf-ppo --task sums --collect.requests 32 --step.minibatch 32 --micro 24 --episodes 16 --steps 2",
    "dpo-lora": "dpo --task pairs:{pairs} --policy hf:{model} --policy.lora.r 4 --step.lr 1e-3 --step.epochs 2",
    "kto": "kto --task pairs:{marks} --policy hf:{model} --step.lr 1e-3 --step.minibatch 16",
    "bt-rm": "bt-rm --task pairs:{pairs} --policy hf:{model} --step.lr 1e-3 --step.epochs 2",
    # control
    "sac": "sac --task gym:Pendulum-v1 --store.start 200 --steps 400 --episodes 1",
    "dqn": "dqn --task gym:CartPole-v1 --store.start 200 --steps 1000 --episodes 1",
    "iql": "iql --task data:{transitions} --task.env Pendulum-v1 --steps 200 --episodes 1",
    "rlpd": "rlpd --task data:{transitions} --task.env Pendulum-v1 --store.ratio 1 --steps 200 --episodes 1",
    # generative
    "flow-grpo": f"flow-grpo --task multimodal --policy flow {DEMONSTRATIONS} --steps 4",
    "dppo": f"dppo --task multimodal --policy diffusion {DEMONSTRATIONS} --steps 4",
}
"""The arguments of `anypo train` by the run's name; what stands in braces is a file of `write_inputs`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="HEAD", help="commit the working tree is compared with")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), metavar="NAME", help="some of the runs")
    parser.add_argument("--jobs", type=int, default=1, help="pairs at once")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(options.jobs) as pool:
        folder = Path(temporary)
        extract(options.base, folder / "base")
        inputs = write_inputs(folder / "inputs") if any("{" in RUNS[name] for name in options.only) else {}
        sources = {"base": folder / "base" / "src", "tree": ROOT / "src"}
        results = pool.map(lambda name: compare(name, inputs, sources, folder), options.only)
        equal = 0
        for name, (same, text) in zip(options.only, results, strict=True):
            print(f"{name:15} {text}", flush=True)
            equal += same
    print(f"{equal} of {len(options.only)} runs are equal to {options.base}")
    sys.exit(equal < len(options.only))


def extract(commit: str, folder: Path) -> None:
    """Write the commit's `src` into the folder."""
    command = ["git", "-C", str(ROOT), "archive", "--format=tar", commit, "src"]
    done = subprocess.run(command, capture_output=True)
    if done.returncode:
        sys.exit(f"digests: {done.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")


def compare(name: str, inputs: dict[str, Path], sources: dict[str, Path], folder: Path) -> tuple[bool, str]:
    """Make a run on either side; returns whether they are equal, and what to print."""
    for side, source in sources.items():
        words = [word.format(**inputs) for word in RUNS[name].split()]
        if error := train(words, source, folder / side / name):
            return False, f"fails ({side}): {error}"
    runs = [folder / side / name for side in sources]
    metrics, weights = [(run / "metrics.jsonl").read_text() for run in runs], [read_weights(run) for run in runs]
    if not any(json.loads(line).get("grad_norm") for line in metrics[0].splitlines()):
        return False, "fails: the gradient is zero in every batch"
    if difference := compare_metrics(*metrics) or compare_weights(*weights):
        return False, f"differs: {difference}"
    content = metrics[0] + "".join(f"{key} {digest(tensor)}" for key, tensor in sorted(weights[0].items()))
    return True, f"equal  {hashlib.sha256(content.encode()).hexdigest()[:16]}"


def train(arguments: list[str], source: Path, out: Path) -> str | None:
    """Make a run from the source; returns the last line of its errors if it fails."""
    out.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-c", ENTRY, "train", *arguments, *ALWAYS.split(), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=out.parent)
    return (done.stderr.strip().splitlines() or ["no message"])[-1] if done.returncode else None


def compare_metrics(base: str, tree: str) -> str | None:
    """The first batch and metric in which two metrics.jsonl differ, with both values; None where all bytes are equal."""
    if base == tree:
        return None
    lines = base.splitlines(), tree.splitlines()
    for old, new in zip(*lines, strict=False):
        if old == new:
            continue
        records = json.loads(old), json.loads(new)
        batch = records[0]["batch"]
        for metric in records[0] | records[1]:
            values = [json.dumps(record[metric]) if metric in record else "missing" for record in records]
            if values[0] != values[1]:
                return f"batch {batch}, {metric}: {values[0]} and {values[1]}"
        return f"batch {batch}: the metrics stand in another order or spelling"
    return f"{len(lines[0])} and {len(lines[1])} lines of metrics"


def compare_weights(base: dict[str, Tensor], tree: dict[str, Tensor]) -> str | None:
    """The first weight whose digests differ, with the largest absolute difference; None where all are equal."""
    for name in base | tree:
        if name not in base or name not in tree:
            return f"{name} is only in the {'base' if name in base else 'tree'}"
        old, new = base[name], tree[name]
        if old.shape != new.shape or old.dtype != new.dtype:
            kinds = [f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}" for tensor in (old, new)]
            return f"{name}: {kinds[0]} and {kinds[1]}"
        if digest(old) != digest(new):
            return f"{name}: max |difference| {float((old.double() - new.double()).abs().max()):.3g}"
    return None


def digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes."""
    import torch

    return hashlib.sha256(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def read_weights(run: Path) -> dict[str, Tensor]:
    """All weights of a run's newest checkpoint, and its anchors, by `FILE:WEIGHT`."""
    from safetensors.torch import load_file

    files = [*max((run / "checkpoints").glob("batch-*")).glob("*.safetensors"), *run.glob("anchor-*.safetensors")]
    return {f"{path.stem}:{name}": tensor for path in sorted(files) for name, tensor in load_file(path).items()}


def write_inputs(folder: Path) -> dict[str, Path]:
    """Write what runs read from files, the same for both sides: preferences, marked answers, transitions, a language model."""
    import numpy as np

    folder.mkdir()
    answers = [(f"{a}+{b}=", str(a + b), str(a + b + 1)) for a in range(10, 16) for b in range(20, 30)]
    rows: dict[str, list[dict[str, Any]]] = {
        "pairs": [{"prompt": prompt, "chosen": right, "rejected": wrong} for prompt, right, wrong in answers],
        "marks": [
            {"prompt": prompt, "completion": (wrong, right)[i % 2], "label": bool(i % 2)}
            for i, (prompt, right, wrong) in enumerate(answers)
        ],
    }
    for name, records in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    draw, count = np.random.default_rng(0), 2000
    angle, speed = draw.uniform(-np.pi, np.pi, count), draw.uniform(-8, 8, count)
    np.savez(
        folder / "transitions.npz",
        observations=np.stack([np.cos(angle), np.sin(angle), speed], 1).astype(np.float32),
        actions=draw.uniform(-2, 2, (count, 1)).astype(np.float32),
        rewards=-(angle**2 + 0.1 * speed**2).astype(np.float32),
        terminals=np.zeros(count, bool),
        timeouts=np.arange(count) % 200 == 199,
    )
    write_model(folder / "model")
    return {name: folder / f"{name}.jsonl" for name in rows} | {
        "transitions": folder / "transitions.npz",
        "model": folder / "model",
    }


def write_model(folder: Path) -> None:
    """Write a Llama of random weights with a tokenizer of characters."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", *"0123456789+="])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


if __name__ == "__main__":
    main()
