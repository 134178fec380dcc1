"""A reward of your own on rows of your own: a small language model learns to count on.

Shown: rows as a list of dictionaries, a reward as a Python function that reads a column of them, a model and a tokenizer of transformers
that were made in this file, a callback per batch, and completions of the trained model. For a model of yours write
`policy="hf:path/or/name"`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import anypo

LETTERS = "abcdefgh"
ROWS = [{"prompt": LETTERS[i] + LETTERS[(i + 1) % 8], "follows": LETTERS[(i + 2) % 8]} for i in range(8)]


def right_letter(completions, follows, **columns):
    """Score 1 for the letter that follows the prompt's in the alphabet."""
    return [float(text == letter) for text, letter in zip(completions, follows, strict=True)]


def make_model() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Return a model with random weights that reads and writes single letters."""
    words = {name: i for i, name in enumerate(["<pad>", "<end>", *LETTERS])}
    raw = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<end>")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(words), max_position_embeddings=16, eos_token_id=1, pad_token_id=0, **shape)
    return LlamaForCausalLM(config), tokenizer


def show(record: dict[str, Any]) -> None:
    """Print the measure of a batch after which it was taken."""
    if "eval/accuracy" in record:
        print(f"batch {record['batch']}: accuracy {record['eval/accuracy']:.2f}")


def main(folder: Path) -> None:
    """Train, show what was learned, and complete a prompt."""
    run = anypo.train(
        "grpo",
        task={"rows": ROWS, "heldout": ROWS, "max_new": 1},  # the same prompts are measured: it is to learn them
        reward=right_letter,
        policy=make_model(),
        collect={"requests": 8, "samples": 16},
        step={"lr": 1e-2},
        steps=40,
        out=folder / "run",
        callback=show,
    )
    print(f"right answers: {run.result['before']:.2f} before, {run.result['after']:.2f} after")
    print("what follows cd?", run.sample("cd", greedy=True)[0])
    assert run.result["after"] > run.result["before"] + 0.5
    assert run.sample("cd", greedy=True) == ["e"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
