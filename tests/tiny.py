"""Small real language models on disk, some thousand parameters each (Llama, Qwen2, ...), with a real tokenizer.

Tests take them from the fixture `tiny_model`, which makes each once per run; what is to be changed is written anew.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch

import anypo
from anypo.policies.generative.diffusion import DiffusionPolicy
from anypo.policies.generative.flow import FlowPolicy

CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEXT = "the cat sat on the mat and the hat was flat; that is what the cat said. 1+2=3, 4+5=9, 17-8=9, 12*3=36. "
SPECIAL = ["<pad>", "<s>", "</s>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]


def tokenizer(directory: str | Path, *, kind: str = "bpe", pad: bool = True, eos: bool = True, chat: bool = True):
    """A byte-level tokenizer: `bpe` with merges, so decoding and encoding again may change ids, or `char` without."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = len(SPECIAL) + len(alphabet) + (40 if kind == "bpe" else 0)
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator([TEXT * 4], trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token="</s>" if eos else None,
        pad_token="<pad>" if pad else None,
    )
    if chat:
        made.chat_template = CHAT
    made.save_pretrained(directory)
    return made


def model(
    directory: str | Path, architecture: str = "llama", *, vocabulary: int, seed: int = 0, scale: float = 0.3, **more
):
    """Random weights of that scale, large enough that the next-token distribution is far from uniform."""
    import transformers

    config = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": scale,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    } | more
    kinds = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
        "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel),
        "gemma2": (transformers.Gemma2Config, transformers.Gemma2ForCausalLM),
        "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    }
    make_config, make_model = kinds[architecture]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = make_model(make_config(**config))
    made.save_pretrained(directory)
    return made


def language_model(
    directory: str | Path, architecture: str = "llama", *, kind: str = "bpe", seed: int = 0, **more
) -> Path:
    """Write a model and its tokenizer into one directory."""
    vocabulary = len(tokenizer(directory, kind=kind))
    model(directory, architecture, vocabulary=vocabulary, seed=seed, **more)
    return Path(directory)


def shared_model(
    root: Path, architecture: str = "llama", *, kind: str = "bpe", seed: int = 0, **more: float | None
) -> Path:
    """Return the directory of that model below `root`, written by the first process that asks for it."""
    settings = "".join(f"-{name}={value}" for name, value in sorted(more.items()))
    directory = root / f"{architecture}-{kind}-{seed}{settings}"
    if not directory.exists():
        partial = Path(tempfile.mkdtemp(dir=root))
        language_model(partial, architecture, kind=kind, seed=seed, **more)
        try:
            partial.rename(directory)
        except OSError:  # another process was faster
            shutil.rmtree(partial)
    return directory


def denoiser(name):
    """The policy for a method that reads what only policies that denoise their actions say; None for any other method."""
    method = anypo.method(name)
    read = {view.functional for view in (method.live | method.views).values()} - {"logp", "entropy", "score_norm"}
    kinds = {"flow": FlowPolicy, "diffusion": DiffusionPolicy}
    return next((kind for kind, cls in kinds.items() if read & (cls.base_functionals | {cls.imitation})), None)
