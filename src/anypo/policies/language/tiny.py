"""A small decoder made on the spot: a character tokenizer, a Llama of about 0.6 million parameters, and a short supervised
warm start. What it writes is an ordinary transformers directory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anypo.errors import RunError, UsageError

RECIPE = {"hidden": 128, "layers": 3, "heads": 4, "context": 64, "lr": 1e-3, "rows": 256, "until": 0.7, "limit": 2000}
"""Size of the decoder and its warm start, which stops once `until` of the held-out completions are reproduced, or fails at
`limit` updates."""


Example = tuple[str, str]
"""(prompt, completion)."""


def base(name: str, train: Sequence[Example], heldout: Sequence[Example]) -> Path:
    """Return the directory of a warm-started model; made once and kept in the cache ($ANYPO_CACHE, ~/.cache/anypo).

    Args:
        name: the directory begins with it.
        train: what the model learns from.
        heldout: what decides when it has learned enough.
    """
    cache = cache_folder()
    content = json.dumps([RECIPE, list(train), list(heldout), torch.__version__]).encode()
    target = cache / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}"
    if not (target / "config.json").exists():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            work = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=cache))
        except OSError as error:
            raise UsageError(
                f"cannot write the cache {cache}: {error.strerror}; set ANYPO_CACHE to a folder that can be written"
            ) from None
        warm_start(work, train, heldout)
        try:
            work.rename(target)
        except OSError:  # another process was faster
            shutil.rmtree(work)
    return target


def cache_folder() -> Path:
    """Return $ANYPO_CACHE, else ~/.cache/anypo.

    Raises:
        UsageError: there is no home, as in containers whose user has no name.
    """
    if "ANYPO_CACHE" in os.environ:
        return Path(os.environ["ANYPO_CACHE"])
    try:
        return Path.home() / ".cache" / "anypo"
    except RuntimeError:
        raise UsageError(
            "there is no home folder for the cache; set ANYPO_CACHE to a folder that can be written"
        ) from None


def warm_start(directory: Path, train: Sequence[Example], heldout: Sequence[Example], seed: int = 0) -> float:
    """Train a new decoder on the examples until it answers `until` of the held-out ones; returns that share.

    Args:
        directory: where model and tokenizer are written.
        train: what it learns from.
        heldout: what it is measured on.
        seed: of the weights and the minibatches.

    Raises:
        RunError: the share is not reached in `limit` updates.
    """
    alphabet = sorted({c for prompt, completion in (*train, *heldout) for c in prompt + completion})
    tokenizer, model = fresh(alphabet, seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), RECIPE["lr"])
    ids, labels = encode(tokenizer, train)
    held = encode(tokenizer, heldout)
    accuracy = 0.0
    for update in range(1, int(RECIPE["limit"]) + 1):
        pick = torch.randint(len(train), (int(RECIPE["rows"]),), generator=generator)
        optimizer.param_groups[0]["lr"] = RECIPE["lr"] * min(1.0, update / 50)
        loss = model(input_ids=ids[pick], labels=labels[pick]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if update % 10 == 0:
            accuracy = greedy_accuracy(model, *held)
            if accuracy >= RECIPE["until"]:
                break
    else:
        raise RunError(f"the warm start reached an accuracy of only {accuracy:.2f} in {RECIPE['limit']} updates")
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return accuracy


def fresh(alphabet: Sequence[str], seed: int) -> tuple[Any, Any]:
    """Make a character tokenizer over `alphabet` and an untrained decoder for it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", *alphabet])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")
    hidden = int(RECIPE["hidden"])
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=int(RECIPE["layers"]),
        num_attention_heads=int(RECIPE["heads"]),
        num_key_value_heads=int(RECIPE["heads"]),
        max_position_embeddings=int(RECIPE["context"]),
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return tokenizer, LlamaForCausalLM(config)


def encode(tokenizer: Any, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Return right-padded ids and labels; only the completion and its end are labelled."""
    rows = [(tokenizer(p)["input_ids"], [*tokenizer(c)["input_ids"], tokenizer.eos_token_id]) for p, c in examples]
    width = max(len(p) + len(c) for p, c in rows)
    ids = torch.tensor([p + c + [0] * (width - len(p) - len(c)) for p, c in rows])
    labels = torch.tensor([[-100] * len(p) + c + [-100] * (width - len(p) - len(c)) for p, c in rows])
    return ids, labels


@torch.no_grad()
def greedy_accuracy(model: Any, ids: Tensor, labels: Tensor) -> float:
    """Return the share of examples whose every labelled token is the model's first choice.

    Args:
        model: the decoder.
        ids: right-padded tokens.
        labels: -100 where a token is not labelled.
    """
    choice, target = model(input_ids=ids).logits[:, :-1].argmax(-1), labels[:, 1:]
    return float(((choice == target) | (target == -100)).all(1).float().mean())
