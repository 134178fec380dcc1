"""Load and save language models."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from anypo.errors import UsageError, unknown

DTYPES = ("float32", "bfloat16", "float16", "float64")


SETTINGS = "anypo.json"


VALUE_HEAD = "value_head.safetensors"


def _value_heads(width: int, heads: int, dtype: torch.dtype) -> nn.Linear:
    """A linear map to one number per head: the first starts at zero, further ones differ from it and from each other."""
    linear = cast(nn.Linear, nn.utils.skip_init(nn.Linear, width, heads, dtype=dtype))
    noise = 0.01 * torch.randn(heads, width, generator=torch.Generator().manual_seed(0))
    noise[:1] = 0
    with torch.no_grad():
        linear.weight.copy_(noise)
    nn.init.zeros_(linear.bias)
    return linear


def _eos(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Every token that ends a completion: the tokenizer's and all of the model's."""
    found = {tokenizer.eos_token_id}
    for config in (model.generation_config, model.config):
        ids = getattr(config, "eos_token_id", None)
        found |= set(ids) if isinstance(ids, list) else {ids}
    return tuple(sorted(found - {None}))


def _load(source: str, dtype: str) -> tuple[Any, Any]:
    """(model, tokenizer) of a directory or a name on the hub."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # loading a file is no progress of the run

    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    path = Path(source)
    adapter = (path / "adapter_config.json").is_file()
    if path.is_dir() and not adapter and not (path / "config.json").is_file():
        raise UsageError(f"{source} is not a model: it has neither config.json nor adapter_config.json")
    if not path.is_dir() and not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", source):
        raise UsageError(
            f"there is no directory {source}; give a model's directory or its name on the Hugging Face Hub"
        )
    try:
        base = _base_of(path) if adapter else source
        model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
        if adapter:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, source, is_trainable=True)
        own = not adapter or (path / "tokenizer_config.json").is_file()
        tokenizer = _tokenizer(source if own else base)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UsageError(f"cannot load the model {source}: {_first_line(error)}") from error
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
        raise UsageError(f"the tokenizer of {source} has neither a pad nor an eos token; set eos_token in its config")
    return model, tokenizer


def _tokenizer(source: str) -> Any:
    """The tokenizer as its files declare it. AutoTokenizer puts the model type's own class, with its own splitting and
    special tokens, in the place of a generic one for some types (Qwen2), so a generic one is loaded by name."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    declared = get_tokenizer_config(source).get("tokenizer_class")
    generic = declared in ("TokenizersBackend", "PreTrainedTokenizerFast")
    return (PreTrainedTokenizerFast if generic else AutoTokenizer).from_pretrained(source)


def _base_of(adapter: Path) -> str:
    base = json.loads((adapter / "adapter_config.json").read_text()).get("base_model_name_or_path")
    if not base:
        raise ValueError("its adapter_config.json does not name the base model; set base_model_name_or_path")
    return base


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _adapt(model: Any, lora: dict[str, Any], seed: int) -> Any:
    """The model with fresh trainable adapters; they start as the identity."""
    from peft import LoraConfig, get_peft_model

    wrong = set(lora) - {"r", "alpha", "target"}
    if wrong:
        raise UsageError(f"lora takes r, alpha and target, not {', '.join(sorted(wrong))}")
    if hasattr(model, "peft_config"):
        raise UsageError("the model is already an adapter and loads with it trainable; leave lora out")
    config = LoraConfig(
        r=lora.get("r", 8),
        lora_alpha=lora.get("alpha", 16),
        target_modules=lora.get("target", "all-linear"),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            raise UsageError(f"cannot adapt the model: {_first_line(error)}") from error


def _saved(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Sampling settings and value head of a directory written by `save`; empty where there are none."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        settings = json.loads((path / SETTINGS).read_text()) if (path / SETTINGS).is_file() else {}
        head = load_file(path / VALUE_HEAD) if (path / VALUE_HEAD).is_file() else {}
    except (ValueError, SafetensorError) as error:
        raise UsageError(f"{SETTINGS} or {VALUE_HEAD} in {path} is damaged: {_first_line(error)}") from error
    return settings, head
