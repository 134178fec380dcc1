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

from anypo.kernels import kernel

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
        key_states, value_states = cast_for_autocast(key_states, value_states)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        old, room = self.length, self._room(key_states.shape[2])
        self.length += key_states.shape[2]
        if room > self.keys.shape[2]:
            self.keys, self.values = (_place(x[:, :, :old], 0, room) for x in (self.keys, self.values))
        self.keys[:, :, old : self.length], self.values[:, :, old : self.length] = key_states, value_states
        return self.keys, self.values

    def _room(self, more: int) -> int:
        """Return the columns of the buffers once `more` further ones are in use; the first are as many as the prompts need."""
        now, need = self.keys.shape[2] if self.is_initialized else 0, self.length + more
        return now if need <= now else need + (BLOCK if self.length else 0)

    def append(self, other: BlockLayer) -> None:
        """Add the rows of another layer behind those of this one; the columns of both end where the longer of them ends."""
        length = max(self.length, other.length)
        room = max(self.keys.shape[2], length)

        def join(ours: Tensor, theirs: Tensor) -> Tensor:
            pairs = ((ours, self.length), (theirs, other.length))
            return torch.cat([_place(x[:, :, :used], length - used, room) for x, used in pairs])

        self.keys, self.values = join(self.keys, other.keys), join(self.values, other.values)
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
        """Add the rows of another cache behind those of this one."""
        for layer, new in zip(self.layers, other.layers, strict=True):
            if new.is_initialized:  # else the layer reads what another one wrote
                layer.append(new)

    def drop(self, columns: int) -> None:
        """Forget the first columns."""
        for layer in self.layers:
            if layer.is_initialized:
                layer.drop(columns)


def leave_to_model(config: Any) -> Blocks | None:
    """Return None: the model opens a cache of its own."""
    return None


@kernel(leave_to_model)
def open_cache(config: Any) -> Blocks | None:
    """Return an empty cache for the model of that configuration; None where it keeps more than keys and values."""
    layers = DynamicCache(config=config).layers
    return Blocks(len(layers)) if {type(x) for x in layers} <= {DynamicLayer, DynamicSlidingWindowLayer} else None


def attends_to_all(config: Any) -> bool:
    """Return whether every layer of the model of that configuration attends to all that came before."""
    return {type(x) for x in DynamicCache(config=config).layers} <= {DynamicLayer}


def cast_for_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Round tensors as autocast does, which attention would do each time it reads them."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(x.to(torch.get_autocast_dtype(device)) for x in tensors)


class Rounded(DynamicCache):
    """A cache with gradients; without the rounding it would keep all in float32, as rotated keys are."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        key_states, value_states = cast_for_autocast(key_states, value_states)
        return super().update(key_states, value_states, *args, **kwargs)


def branch_cache(cache: DynamicCache, rows: Int[Tensor, " row"]) -> DynamicCache:
    """Return a cache that continues rows of another, which is not changed; gradients reach that one."""
    branch = copy.copy(cache)
    branch.layers = [copy.copy(layer) for layer in cache.layers]
    branch.reorder_cache(rows)  # pyright: ignore[reportArgumentType]
    return branch


def _place(x: Tensor, first: int, room: int) -> Tensor:
    """Return zeros with `room` columns in which x [row, head, column, width] begins at column `first`."""
    placed = x.new_zeros(*x.shape[:2], room, x.shape[3])
    placed[:, :, first : first + x.shape[2]] = x
    return placed


def fused_attention(
    module: Any,
    query: Float[Tensor, "row head query width"],
    key: Float[Tensor, "row group column width"],
    value: Float[Tensor, "row group column out"],
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """out = softmax(scaling q k^T) v by PyTorch's fused kernel, as transformers calls it."""
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **more)  # pyright: ignore[reportReturnType]


@kernel(fused_attention)
def short_attention(
    module: Any,
    query: Float[Tensor, "row head query width"],
    key: Float[Tensor, "row group column width"],
    value: Float[Tensor, "row group column out"],
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """out = softmax(scaling q k^T) v, the softmax in float32, by plain products: on a CPU they are several times faster than the fused
    kernel for a single query, and in bfloat16 for short sequences. Anything else goes to `fused_attention`.

    Args:
        module, dropout, more: what only the fused kernel reads.
        query, key, value: several heads of `query` share one group of `key` and `value`.
        attention_mask: where queries attend, [row, 1, query, column]; None: causal.
        scaling: of the products; None: width^(-1/2).

    Returns:
        [row, query, head, out], and None for the weights, which are not kept.
    """
    rows, heads, queries, width = query.shape
    half = value.dtype == torch.bfloat16 and key.shape[2] <= SHORT
    suits = query.device.type == "cpu" and (queries == 1 or half) and more.get("position_bias") is None
    if attention_mask is not None and (attention_mask.dtype != torch.bool or attention_mask.shape[1] != 1):
        suits = False
    if not suits:
        return fused_attention(module, query, key, value, attention_mask, dropout, scaling, **more)
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
def fast_attention(config: Any) -> Iterator[None]:
    """Let a model that attends by PyTorch's fused kernel do so by `short_attention` within a block."""
    before = config._attn_implementation
    config._attn_implementation = NAME if before == "sdpa" else before
    try:
        yield
    finally:
        config._attn_implementation = before


AttentionInterface.register(NAME, short_attention)

AttentionMaskInterface.register(NAME, sdpa_mask)
