"""A causal language model of transformers as what reads tokens and an output layer."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anypo.kernels.kv_cache import fast_attention, open_cache
from anypo.kernels.llama_decode import decode, write_out
from anypo.kernels.rms_norm import fast_norms, find_norms

WIDE = 128
"""Width of the hidden states from which matrix products take most of the time: in bfloat16 a batch of rollout and update takes 0.66 of its
time in float32 at width 128, as long at 64, longer at 32 (a CPU with AVX512-BF16)."""


class Backbone:
    """Access to a model, possibly wrapped by peft, whose modules a policy owns.

    name: of the model in errors. splits: logits = output layer(last hidden state); false e.g. where a model caps or scales its logits.
    norms: modules that normalize by the root mean square. step: the next token written out, where that is known.
    checkpointing: compute what a tile of tokens needs for the backward pass again instead of keeping it.
    """

    def __init__(self, model: Any, name: str, checkpointing: bool):
        self.model = model
        self.name = name
        self.checkpointing = checkpointing
        self.splits = self._splits()
        self.norms = find_norms(self.inner)
        self.step: Any = write_out(self.reader) if self.splits else None
        self.reads_positions = "position_ids" in inspect.signature(self.reader.forward).parameters

    @property
    def inner(self) -> Any:
        """The transformers model itself; adapters are inside its layers."""
        return self.model.get_base_model() if has_adapters(self.model) else self.model

    @property
    def reader(self) -> Any:
        """What reads tokens: the model without its output layer where it splits, else the whole model."""
        return self.inner.base_model if self.splits else self.inner

    @property
    def vocabulary(self) -> int:
        return self.inner.get_input_embeddings().num_embeddings

    @property
    def device(self) -> torch.device:
        return self.inner.device

    @property
    def large(self) -> bool:
        """Whether matrix products take most of the time."""
        return self.inner.config.hidden_size >= WIDE

    @torch.no_grad()
    def _splits(self) -> bool:
        inner, head = self.inner, self.inner.get_output_embeddings()
        if head is None or inner.base_model is inner:
            return False
        ids = torch.arange(min(8, self.vocabulary), device=self.device)[None]
        hidden = getattr(inner.base_model(input_ids=ids), "last_hidden_state", None)
        want = inner(input_ids=ids).logits
        return hidden is not None and torch.allclose(head(hidden), want.to(head.weight.dtype), rtol=1e-4, atol=1e-5)

    def head(self, layer: int | None = None) -> Any:
        """Return what makes logits of the states `forward.decision_states` returns for that layer."""
        return self.inner.get_output_embeddings() if self.splits or layer is not None else nn.Identity()

    @contextmanager
    def fast(self) -> Iterator[None]:
        """Let the model attend and, where gradients are taken, normalize by faster operations within a block."""
        with fast_attention(self.inner.config), fast_norms(self.norms if torch.is_grad_enabled() else ()):
            yield

    def read(self, **inputs: Any) -> Any:
        """Return the reader's output; with checkpointing only its inputs and output are kept for the backward pass."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(self._read_again, use_reentrant=False, preserve_rng_state=False, **inputs)
        return self.reader(**inputs)

    def _read_again(self, **inputs: Any) -> Any:
        """Return the reader's output, by the same operations also during the backward pass."""
        with self.fast():
            return self.reader(**inputs)

    def read_on(
        self,
        ids: Int[Tensor, "row token"],
        mask: Bool[Tensor, "row column"],
        positions: Int[Tensor, "row token"],
        cache: Any,
        **more: Any,
    ) -> Any:
        """Return the reader's output for tokens that follow those of a cache, which takes them in.

        Args:
            ids: the tokens.
            mask: columns of the cache that each row attends to, its new ones included.
            positions: of the tokens in their sequences.
            cache: keys and values so far; None: the model opens one.
            more: further arguments of the model.
        """
        place = {"position_ids": positions} if self.reads_positions else {}
        return self.reader(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **place, **more)

    def next_logits(
        self,
        ids: Int[Tensor, "row token"],
        mask: Bool[Tensor, "row column"],
        positions: Int[Tensor, "row token"],
        cache: Any,
    ) -> tuple[Float[Tensor, "row vocab"], Any]:
        """Return the logits after the last token of each row, and the cache to continue with; see `read_on`."""
        if cache is not None and self.step is not None:
            return self.inner.get_output_embeddings()(decode(self.step, ids, mask, positions, cache)), cache
        out = self.read_on(ids, mask, positions, open_cache(self.inner.config) if cache is None else cache)
        if self.splits:
            return self.inner.get_output_embeddings()(out.last_hidden_state[:, -1]), out.past_key_values
        return out.logits[:, -1], out.past_key_values


def has_adapters(model: Any) -> bool:
    """Return whether peft wraps the model."""
    return hasattr(model, "peft_config")


def end_tokens(model: Any, tokenizer: Any, turn_end: int | None = None) -> tuple[int, ...]:
    """Return every token that ends a completion: the tokenizer's, all of the model's, and the chat template's.

    Args:
        model: of transformers.
        tokenizer: its own.
        turn_end: of the chat template.
    """
    tokens = {tokenizer.eos_token_id, turn_end}
    for config in (model.generation_config, model.config):
        ids = getattr(config, "eos_token_id", None)
        tokens |= set(ids) if isinstance(ids, list) else {ids}
    return tuple(sorted(tokens - {None}))


def make_value_heads(width: int, heads: int, dtype: torch.dtype) -> nn.Linear:
    """Make a linear map to one number per head, V = W h + b, of at least float32.

    The first head starts at zero; further ones differ from it and from each other.
    """
    dtype = torch.promote_types(dtype, torch.float32)
    linear = cast(nn.Linear, nn.utils.skip_init(nn.Linear, width, heads, dtype=dtype))
    noise = 0.01 * torch.randn(heads, width, generator=torch.Generator().manual_seed(0))
    noise[:1] = 0
    with torch.no_grad():
        linear.weight.copy_(noise)
    nn.init.zeros_(linear.bias)
    return linear
