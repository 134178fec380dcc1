"""Causal language models of transformers as policies: a decision is a token."""

from __future__ import annotations

import copy
import inspect
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from anypo.errors import UsageError, unknown
from anypo.policies.chunked import functionals
from anypo.policies.sampling import Filter, Sample, generate
from anypo.types import Trajectories

Prompt = str | list[dict[str, Any]]
"""Plain text, or chat messages `{"role": ..., "content": ...}`."""

DTYPES = ("float32", "bfloat16", "float16", "float64")
SETTINGS = "anypo.json"
VALUE_HEAD = "value_head.safetensors"


class LanguageModel(nn.Module):
    """Samples completions and evaluates given ones again, under the same filtered distribution.

    model: a causal language model of transformers, possibly wrapped by peft. tokenizer: its tokenizer. max_new: tokens
    a completion may have when nobody says otherwise. stop: strings that end a completion. value: learn V(s_t), a linear
    map of the last hidden state before token t, zero at the start. Dropout stays off, so kept log-probs are exact.
    """

    exact = True
    independent = False

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        value: bool = False,
        filter: Filter | None = None,
        stop: str | Sequence[str] = (),
        max_new: int | None = None,
        name: str = "the model",
    ):
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.filter = filter or Filter()
        self.stop = (stop,) if isinstance(stop, str) else tuple(stop)
        self.name = name
        self.eos = _eos(self.inner, tokenizer)
        embedding = self.inner.get_input_embeddings()
        if len(tokenizer) > embedding.num_embeddings:
            raise UsageError(
                f"the tokenizer of {name} has {len(tokenizer)} tokens but the model embeds only "
                f"{embedding.num_embeddings}; use the tokenizer the model was trained with, or resize the embedding"
            )
        self.vocabulary = embedding.num_embeddings
        self.context: int | None = getattr(self.inner.config, "max_position_embeddings", None)
        self.max_new = max_new or min(256, self.context // 2 if self.context else 256)
        self.value_head = _zero_linear(self.inner.config.hidden_size, self.inner.dtype) if value else None
        self.train(False)
        self._split = self._splits()
        self._reads_positions = "position_ids" in inspect.signature(self._reader.forward).parameters

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        lora: dict[str, Any] | None = None,
        value: bool = False,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        stop: str | Sequence[str] | None = None,
        max_new: int | None = None,
        seed: int = 0,
        dtype: str = "float32",
    ) -> LanguageModel:
        """The model at `source`: a directory, or a name on the Hugging Face Hub.

        lora: train adapters `dict(r=8, alpha=16, target="all-linear")` on a frozen model (Hu et al. 2021,
        arXiv:2106.09685); missing keys take these values. A source that is itself a peft adapter is loaded with the
        adapter trainable. Sampling settings left out come from a directory written by `save`, else temperature 1,
        everything kept. Raises UsageError where the source cannot be loaded.
        """
        model, tokenizer = _load(str(source), dtype)
        if lora is not None:
            model = _adapt(model, lora, seed)
        settings, head = _saved(Path(source))
        given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "stop": stop, "max_new": max_new}
        settings |= {k: v for k, v in given.items() if v is not None}
        filter = Filter(**{k: settings.pop(k) for k in ("temperature", "top_k", "top_p") if k in settings})
        policy = cls(model, tokenizer, value=value or bool(head), filter=filter, name=str(source), **settings)
        if head and policy.value_head is not None:
            policy.value_head.load_state_dict(head)
        return policy

    # what the model is made of

    @property
    def inner(self) -> Any:
        """The transformers model itself; adapters live inside its layers."""
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model

    @property
    def _reader(self) -> Any:
        """What reads tokens: the model without its output layer where that is the same thing, else the whole model."""
        return self.inner.base_model if self._split else self.inner

    @property
    def device(self) -> torch.device:
        return self.inner.device

    def train(self, mode: bool = True) -> LanguageModel:
        """Always evaluation mode: dropout would make the ratio of an unchanged policy differ from 1."""
        return super().train(False)

    @torch.no_grad()
    def _splits(self) -> bool:
        """Whether logits = output layer(last hidden state); false e.g. where a model caps or scales its logits."""
        inner, head = self.inner, self.inner.get_output_embeddings()
        if head is None or inner.base_model is inner:
            return False
        ids = torch.arange(min(8, self.vocabulary), device=self.device)[None]
        hidden = getattr(inner.base_model(input_ids=ids), "last_hidden_state", None)
        want = inner(input_ids=ids).logits
        return hidden is not None and torch.allclose(head(hidden), want.to(head.weight.dtype), rtol=1e-4, atol=1e-5)

    # text

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt; chat messages go through the chat template, up to where the answer begins."""
        if isinstance(prompt, str):
            ids = self.tokenizer(prompt)["input_ids"]
        elif getattr(self.tokenizer, "chat_template", None) is None:
            raise UsageError(
                f"the tokenizer of {self.name} has no chat template; put a chat_template.jinja beside it, "
                "or give prompts as plain text"
            )
        else:
            ids = self._encode_chat(prompt)
        if not ids:
            raise UsageError(f"the prompt {prompt!r} has no tokens; give at least one character")
        return list(ids)

    def _encode_chat(self, messages: list[dict[str, Any]]) -> list[int]:
        from jinja2 import TemplateError

        try:
            return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        except TemplateError as error:
            raise UsageError(f"the chat template of {self.name} refuses the messages: {error}") from error

    def encode_hint(self, hint: str) -> list[int]:
        """Token ids of text that goes between a prompt and its completion."""
        return list(self.tokenizer(hint, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Sequence[int] | Int[Tensor, " step"]) -> str:
        """Text of token ids, special tokens left out."""
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    # decisions

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        generator: torch.Generator,
        *,
        samples: int | Sequence[int] = 1,
        max_new: int | None = None,
        greedy: bool = False,
    ) -> Sample:
        """Completions of token-id prompts, `samples` of each (one number, or one per prompt), together in prompt order.

        Raises UsageError for a prompt that leaves no room for `max_new` tokens in the model's context.
        """
        max_new = max_new or self.max_new
        for i, prompt in enumerate(prompts):
            if not self.fits(len(prompt), max_new):
                raise UsageError(f"prompt {i} {self.room(len(prompt), max_new)}")
        return generate(
            self._next,
            prompts,
            [samples] * len(prompts) if isinstance(samples, int) else samples,
            generator,
            filter=self.filter,
            max_new=max_new,
            greedy=greedy,
            eos=torch.tensor(self.eos, dtype=torch.long, device=self.device),
            stops=self._stops if self.stop else None,
        )

    def fits(self, prompt: int, max_new: int) -> bool:
        """Whether a prompt of that many tokens leaves room for max_new further ones."""
        return self.context is None or prompt + max_new <= self.context

    def room(self, prompt: int, max_new: int) -> str:
        """Why a prompt does not fit, to follow its name."""
        return (
            f"has {prompt} tokens, which with {max_new} new ones exceeds the context of {self.context} tokens "
            f"of {self.name}; shorten it or lower max_new"
        )

    def evaluate(self, b: Trajectories, want: Collection[str]) -> dict[str, Float[Tensor, "row step"]]:
        """`logp`, `entropy`, `value` of the completions in `b.trace`, as wanted; 0 where b.mask is false.

        One pass over prompt + completion, padded on the right: attention is causal, so the padding reaches nothing.
        Only hidden states that predict a decision go through the output layer, in chunks.
        """
        if "value" in want and self.value_head is None:
            raise UsageError(
                "this method reads values, but the language model has no value head; load it with value=True"
            )
        valid = b.valid
        prompt, start, completion = b.trace["prompt"], b.trace["prompt_length"], b.trace["completion"]
        row, step = valid.nonzero(as_tuple=True)
        place = start[row] + step  # where each decision stands in its sequence
        width = int(place.max()) if len(place) else 1  # the last decision itself is never read
        ids = torch.zeros(len(prompt), prompt.shape[1] + completion.shape[1], dtype=torch.long, device=prompt.device)
        ids[:, : prompt.shape[1]] = prompt
        ids.scatter_(1, start[:, None] + torch.arange(completion.shape[1], device=ids.device), completion)

        out = self._reader(input_ids=ids[:, :width], use_cache=False, **self._hidden_too("value" in want))
        states = out.last_hidden_state if self._split else out.logits
        found: dict[str, Tensor] = {}
        if "logp" in want or "entropy" in want:
            head = self.inner.get_output_embeddings() if self._split else _same
            picked = states[row, place - 1]
            found |= functionals(picked, head, completion[row, step], self.filter, want, self.vocabulary)
        if "value" in want and self.value_head is not None:
            last = states if self._split else out.hidden_states[-1]
            found["value"] = self.value_head(last[row, place - 1])[:, 0].to(
                torch.promote_types(last.dtype, torch.float32)
            )
        return {k: x.new_zeros(valid.shape).index_put((row, step), x) for k, x in found.items()}

    def observe(self, b: Trajectories) -> None:
        """Nothing to learn about token ids."""

    def _hidden_too(self, wanted: bool) -> dict[str, bool]:
        return {"output_hidden_states": True} if wanted and not self._split else {}

    def _next(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Logits after the last token of each row, and the cache to go on with."""
        more = {"position_ids": positions} if self._reads_positions else {}
        out = self._reader(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **more)
        if self._split:
            return self.inner.get_output_embeddings()(out.last_hidden_state[:, -1]), out.past_key_values
        return out.logits[:, -1], out.past_key_values

    def _stops(self, ids: Int[Tensor, "live step"]) -> Bool[Tensor, " live"]:
        """Whether a row's text now contains a stop string. A character is at most four tokens, so a tail is enough."""
        tail = ids[:, -4 * max(map(len, self.stop)) :].tolist()
        texts = self.tokenizer.batch_decode(tail, clean_up_tokenization_spaces=False)
        return torch.tensor([any(s in text for s in self.stop) for text in texts], device=ids.device)

    # files

    def save(self, directory: str | Path) -> None:
        """Write a directory that plain transformers loads, and that `LanguageModel.load` restores with all settings.

        A model with adapters is written merged; the adapter alone goes to `adapter/`, where `load` makes it trainable
        again.
        """
        from safetensors.torch import save_file

        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        model = self.model
        if hasattr(model, "peft_config"):
            model.save_pretrained(directory / "adapter")
            model = copy.deepcopy(model).merge_and_unload()
        model.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)
        settings = asdict(self.filter) | {"stop": self.stop, "max_new": self.max_new}
        (directory / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")
        if self.value_head is not None:
            save_file({k: v.contiguous() for k, v in self.value_head.state_dict().items()}, directory / VALUE_HEAD)


def _zero_linear(width: int, dtype: torch.dtype) -> nn.Linear:
    """A linear map to one number that starts at zero, without a draw from the global generator."""
    linear = cast(nn.Linear, nn.utils.skip_init(nn.Linear, width, 1, dtype=dtype))
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _same(x: Tensor) -> Tensor:
    return x


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
