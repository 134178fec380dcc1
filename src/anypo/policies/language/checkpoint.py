"""Load and save language models."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anypo.errors import UsageError, unknown
from anypo.policies.language.backbone import has_adapters
from anypo.policies.language.filter import Filter

DTYPES = ("float32", "bfloat16", "float16", "float64")


SETTINGS = "anypo.json"


VALUE_HEAD = "value_head.safetensors"


def load_pretrained(source: str, dtype: str) -> tuple[Any, Any]:
    """Return the model and the tokenizer of a directory or a name on the hub."""
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
        model, info = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
            base, dtype=getattr(torch, dtype), output_loading_info=True, trust_remote_code=False
        )
        if info["missing_keys"]:
            raise ValueError(
                f"its files have no weights for {min(info['missing_keys'])}, which its config.json asks for"
            )
        if adapter:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, source, is_trainable=True)
        complete = not adapter or (path / "tokenizer_config.json").is_file()
        tokenizer = _load_tokenizer(source if complete else base)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UsageError(f"cannot load the model {source}: {_first_line(error)}") from error
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
        raise UsageError(f"the tokenizer of {source} has neither a pad nor an eos token; set eos_token in its config")
    return model, tokenizer


def _load_tokenizer(source: str) -> Any:
    """Load the tokenizer as its files declare it. AutoTokenizer puts the model type's own class, with its own splitting and
    special tokens, in the place of a generic one for some types (Qwen2), so a generic one is loaded by name."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    declared = get_tokenizer_config(source).get("tokenizer_class")
    generic = declared in ("TokenizersBackend", "PreTrainedTokenizerFast")
    return (PreTrainedTokenizerFast if generic else AutoTokenizer).from_pretrained(source, trust_remote_code=False)


def _base_of(adapter: Path) -> str:
    base = json.loads((adapter / "adapter_config.json").read_text()).get("base_model_name_or_path")
    if not base:
        raise ValueError("its adapter_config.json does not name the base model; set base_model_name_or_path")
    return base


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def add_adapters(model: Any, lora: dict[str, Any], seed: int) -> Any:
    """Wrap a model in fresh trainable adapters, W + (alpha / r) B A with B = 0 at the start.

    Source: Hu et al. 2021, arXiv:2106.09685.

    Args:
        model: a causal language model of transformers.
        lora: r (8), alpha (16), target ("all-linear").
        seed: of A.
    """
    from peft import LoraConfig, get_peft_model

    wrong = set(lora) - {"r", "alpha", "target"}
    if wrong:
        raise UsageError(f"lora takes r, alpha and target, not {', '.join(sorted(wrong))}")
    if has_adapters(model):
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


def load_settings(path: Path, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a policy's filter, stop, max_new and value, and the weights of its value head (empty where there is none).

    Settings come from the options, where these are not None, else from a directory written by `save_policy`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        settings = json.loads((path / SETTINGS).read_text()) if (path / SETTINGS).is_file() else {}
        head = load_file(path / VALUE_HEAD) if (path / VALUE_HEAD).is_file() else {}
    except (ValueError, SafetensorError) as error:
        raise UsageError(f"{SETTINGS} or {VALUE_HEAD} in {path} is damaged: {_first_line(error)}") from error
    settings |= {name: value for name, value in options.items() if value is not None}
    filter = Filter(**{name: settings.pop(name) for name in ("temperature", "top_k", "top_p") if name in settings})
    names = settings.pop("heads", ("value",))
    saved = tuple(names) if head else ()
    return {**settings, "filter": filter, "value": saved}, head


def save_policy(
    directory: Path, model: Any, tokenizer: Any, settings: dict[str, Any], value_head: nn.Module | None
) -> None:
    """Write a directory that plain transformers loads.

    Args:
        directory: made where it is missing.
        model: written merged where it has adapters; these alone go to `adapter/`.
        tokenizer: of the model.
        settings: for `load_settings`.
        value_head: likewise.
    """
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    if has_adapters(model):
        model.save_pretrained(directory / "adapter")
        model = copy.deepcopy(model).merge_and_unload()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    (directory / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")
    if value_head is not None:
        save_file({k: v.contiguous() for k, v in value_head.state_dict().items()}, directory / VALUE_HEAD)
