"""Can a rule be taught by pairs of answers alone? `python benchmarks/preferences.py [METHOD...]` (default: dpo), one core, minutes.

The rule: an answer ends in an even digit. A small Qwen2 is warm-started on answers that follow it half of the time, saved with
transformers, and trained by `anypo train METHOD --task pairs:FILE --policy hf:DIR` on pairs whose chosen answer follows the rule and
whose rejected one does not. Printed: the share of held-out prompts whose greedy answer follows the rule, before and after, and of
those that still answer the prompt itself (the word backwards).
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from anypo.policies.language import tiny

LETTERS, DIGITS = "abcdefghijkl", "0123456789"
REWARD = """def even(completions, **columns):
    return [float(c[-1:] in list("02468")) for c in completions]


def backwards(prompts, completions, **columns):
    return [float(c[:-1] == p[-2::-1]) for p, c in zip(prompts, completions)]
"""


def answer(word: str, digits: str, rng: random.Random) -> str:
    """The word backwards, and one of the digits."""
    return word[::-1] + rng.choice(digits)


def write_pairs(path: Path, words: list[str], rng: random.Random) -> None:
    """One pair a line: both answers say the word backwards, only the chosen one ends in an even digit."""
    rows = [
        {"prompt": f"{w}:", "chosen": answer(w, DIGITS[::2], rng), "rejected": answer(w, DIGITS[1::2], rng)}
        for w in words
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def warm_start(directory: Path, words: list[str], rng: random.Random, updates: int = 500) -> None:
    """A Qwen2 of a quarter million parameters that says words backwards and ends in any digit."""
    tokenizer, _ = tiny.fresh([*LETTERS, *DIGITS, ":"], 0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=96, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=32, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config)
    ids, labels = tiny.encode(tokenizer, [(f"{w}:", answer(w, DIGITS, rng)) for w in words])
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for update in range(updates):
        pick = torch.randint(len(ids), (128,))
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1, update / 50)
        loss = model(input_ids=ids[pick], labels=labels[pick]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", default=["dpo"])
    parser.add_argument("--out", type=Path, default=Path("runs/preferences"))
    parser.add_argument("--pairs", type=int, default=1200)
    parser.add_argument("--flags", default="--step.lr 1e-4 --steps 40", help="of anypo train")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder, rng = options.out, random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    words = sorted({"".join(rng.choices(LETTERS, k=4)) for _ in range(4000)})
    rng.shuffle(words)
    (folder / "rule.py").write_text(REWARD)
    write_pairs(folder / "pairs.jsonl", words[: options.pairs], rng)
    if not (folder / "base").exists():
        warm_start(folder / "base", words[options.pairs :], rng)
    for method in options.methods:
        out = folder / f"{method}-{time.strftime('%H%M%S')}"
        command = (
            f"train {method} --task pairs:{folder / 'pairs.jsonl'} --policy hf:{folder / 'base'} --reward {folder / 'rule.py'}:even"
            f" --reward {folder / 'rule.py'}:backwards {options.flags} --threads 1 --out {out}"
        )
        print(f"anypo {command}", flush=True)
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "anypo", *shlex.split(command)], check=True, stdout=subprocess.DEVNULL)
        held = [r for r in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()) if "eval/accuracy" in r]
        kept = [r["eval/reward"] - r["eval/accuracy"] for r in (held[0], held[-1])]
        print(f"  {'backwards':17} {kept[0]:8.3f} -> {kept[1]:8.3f}")
        for name in ("accuracy", "ranking_accuracy", "margin", "logp_chosen"):
            print(f"  {name:17} {held[0][f'eval/{name}']:8.3f} -> {held[-1][f'eval/{name}']:8.3f}")
        print(f"  {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
