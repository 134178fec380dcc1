"""Keys and values of the tokens read so far, in preallocated blocks; and attention over few tokens on a CPU."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

BLOCK = 16
"""Columns by which a full buffer grows."""


SHORT = 256
"""Columns up to which plain products are faster in bfloat16."""


NAME = "anypo_short"


class BlockLayer(CacheLayerMixin):
    """Keys and values of one layer, [row, head, column, width] each; the columns in use are the first `length`.

    All columns are kept, also where a layer attends only to a window: its mask leaves the others out.
    """

    is_sliding = False
    keys: Any
    values: Any

    def __init__(self):
        super().__init__()
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = (x[:, :, :0] for x in (key_states, value_states))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new columns and return the whole buffers: the mask leaves out what is not in use, and products of buffers
        without gaps are fast."""
        key_states, value_states = rounded_cache(key_states, value_states)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        old, room = self.length, self._room(key_states.shape[2])
        self.length += key_states.shape[2]
        if room > self.keys.shape[2]:
            self.keys, self.values = (_laid(x[:, :, :old], 0, room) for x in (self.keys, self.values))
        self.keys[:, :, old : self.length], self.values[:, :, old : self.length] = key_states, value_states
        return self.keys, self.values

    def _room(self, more: int) -> int:
        """Columns of the buffers once that many further ones are in use; the first are as many as the prompts need."""
        now, need = self.keys.shape[2] if self.is_initialized else 0, self.length + more
        return now if need <= now else need + (BLOCK if self.length else 0)

    def append(self, other: BlockLayer) -> None:
        """The rows of another layer behind the own ones, the columns of both ending where the longer of them end."""
        length = max(self.length, other.length)
        room = max(self.keys.shape[2], length)
        for name in ("keys", "values"):
            pieces = [_laid(getattr(x, name)[:, :, : x.length], length - x.length, room) for x in (self, other)]
            setattr(self, name, torch.cat(pieces))
        self.length = length

    def drop(self, columns: int) -> None:
        """Forget the first columns."""
        self.keys, self.values = (x[:, :, columns:].contiguous() for x in (self.keys, self.values))
        self.length -= columns

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._room(query_length), 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # its name in older versions of transformers


class Blocks(Cache):
    """The layers of a model that only attends; see `BlockLayer`."""

    layers: list[BlockLayer]  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, layers: int):
        super().__init__(layers=[BlockLayer() for _ in range(layers)])

    def append(self, other: Blocks) -> None:
        for own, new in zip(self.layers, other.layers, strict=True):
            if new.is_initialized:  # else the layer reads what another one wrote
                own.append(new)

    def drop(self, columns: int) -> None:
        for layer in self.layers:
            if layer.is_initialized:
                layer.drop(columns)


def opened(config: Any) -> Blocks | None:
    """An empty cache for the model of that configuration; None where it keeps more than keys and values."""
    layers = DynamicCache(config=config).layers
    return Blocks(len(layers)) if {type(x) for x in layers} <= {DynamicLayer, DynamicSlidingWindowLayer} else None


def plain_cache(config: Any) -> bool:
    """Whether every layer of the model of that configuration attends to all that came before."""
    return {type(x) for x in DynamicCache(config=config).layers} <= {DynamicLayer}


def rounded_cache(*tensors: Tensor) -> tuple[Tensor, ...]:
    """As autocast rounds them, which attention would do each time it reads them."""
    kind = tensors[0].device.type
    return tuple(x.to(torch.get_autocast_dtype(kind)) for x in tensors) if torch.is_autocast_enabled(kind) else tensors


class Rounded(DynamicCache):
    """A cache with gradients; without the rounding it would keep all in float32, as rotated keys are."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        key_states, value_states = rounded_cache(key_states, value_states)
        return super().update(key_states, value_states, *args, **kwargs)


def branched(cache: DynamicCache, line: Int[Tensor, " row"]) -> DynamicCache:
    """A cache that goes on from rows `line` of another, which stays as it is; gradients reach that one."""
    branch = copy.copy(cache)
    branch.layers = [copy.copy(layer) for layer in cache.layers]
    branch.reorder_cache(line)  # pyright: ignore[reportArgumentType]
    return branch


def _laid(x: Tensor, first: int, room: int) -> Tensor:
    """x [row, head, column, width] from column `first` on in zeros with `room` columns."""
    made = x.new_zeros(*x.shape[:2], room, x.shape[3])
    made[:, :, first : first + x.shape[2]] = x
    return made


def short(
    module: Any,
    query: Float[Tensor, "row head query width"],
    key: Float[Tensor, "row group column width"],
    value: Float[Tensor, "row group column out"],
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """softmax(scaling q k^T) v, the softmax in float32: plain products, which on a CPU are several times faster than the fused
    kernel for a single query, and in bfloat16 for short sequences. Anything else goes to that kernel."""
    rows, heads, queries, width = query.shape
    half = value.dtype == torch.bfloat16 and key.shape[2] <= SHORT
    plain = query.device.type == "cpu" and (queries == 1 or half) and more.get("position_bias") is None
    if attention_mask is not None and (attention_mask.dtype != torch.bool or attention_mask.shape[1] != 1):
        plain = False
    if not plain:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **more)  # pyright: ignore[reportReturnType]
    key, shared = key.to(value.dtype), heads // key.shape[1]
    grouped = (query * (width**-0.5 if scaling is None else scaling)).to(key.dtype)
    grouped = grouped.reshape(rows, key.shape[1], shared * queries, width)
    scores = (grouped @ key.mT).view(rows, heads, queries, key.shape[2])
    if attention_mask is None and queries > 1:
        attention_mask = torch.ones(queries, key.shape[2], dtype=torch.bool, device=key.device).tril()
    if attention_mask is not None:  # finite, as padding attends to nothing
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    weights = (
        scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
        .to(value.dtype)
        .view(rows, key.shape[1], shared * queries, key.shape[2])
    )
    return (weights @ value).view(rows, heads, queries, value.shape[-1]).transpose(1, 2), None


@contextmanager
def attending(config: Any) -> Iterator[None]:
    """Inside, a model that attends by PyTorch's fused kernel does so by `short`."""
    before = config._attn_implementation
    config._attn_implementation = NAME if before == "sdpa" else before
    try:
        yield
    finally:
        config._attn_implementation = before


AttentionInterface.register(NAME, short)

AttentionMaskInterface.register(NAME, sdpa_mask)
