"""The next token of a decoder of the Llama family, written out: a quarter of the operations that its modules take."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from anypo.kernels import kernel
from anypo.kernels.kv_cache import BlockLayer, Blocks, attends_to_all, cast_for_autocast

DECODER_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}


PRODUCTS = {"q_proj", "k_proj", "v_proj", "o_proj"}


AGREE = 64
"""Difference from the modules, in units of the last place."""


class DecodeStep:
    """Hidden states of one further token per row, from the embedding to the final normalization.

        x <- x + O softmax(R q (R k)^T / sqrt(d)) v,  x <- x + mlp(norm(x)),  R the rotation by the position

    The keys and values of a row are in the columns of its row of the cache that the mask shows.
    """

    def __init__(self, model: Any):
        self.model = model
        config = model.config
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.width = model.layers[0].self_attn.head_dim
        self.scale = torch.ones(self.heads + self.groups, 1)  # of the queries, in the rotation
        self.scale[: self.heads] = model.layers[0].self_attn.scaling

    def __call__(
        self,
        ids: Int[Tensor, "row 1"],
        mask: Bool[Tensor, "row column"],
        positions: Int[Tensor, "row 1"],
        cache: Blocks,
    ) -> Float[Tensor, "row width"]:
        x = self.model.embed_tokens(ids[:, 0])
        cos, sin = (self.scale.to(x.device) * turn for turn in self.model.rotary_emb(x, positions))
        sin[..., : self.width // 2].neg_()
        for layer, past in zip(self.model.layers, cache.layers, strict=True):
            x = x + self.attend(layer.self_attn, normalize_hidden(layer.input_layernorm, x), cos, sin, mask, past)
            x = x + layer.mlp(normalize_hidden(layer.post_attention_layernorm, x))
        return normalize_hidden(self.model.norm, x)

    def attend(self, module: Any, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, past: BlockLayer) -> Tensor:
        """O softmax(R q (R k)^T / sqrt(d)) v; writes the key and value of this token into the cache."""
        rows, lines = len(x), len(x) * self.groups
        both = torch.cat([module.q_proj(x), module.k_proj(x)], 1).view(rows, -1, self.width)
        both = torch.addcmul(both * cos, both.roll(self.width // 2, 2), sin)
        key, value = both[:, self.heads :, None], module.v_proj(x).view(rows, self.groups, 1, self.width)
        key, value = (buffer.flatten(0, 1) for buffer in past.update(key, value))
        query = both[:, : self.heads].to(key.dtype).reshape(lines, -1, self.width)
        hidden = torch.nn.functional.pad(~mask, (0, key.shape[1] - mask.shape[1]), value=True)
        scores = (query @ key.mT).view(rows, self.heads, -1)
        weights = scores.masked_fill_(hidden[:, None], -torch.inf).softmax(-1).view(lines, -1, key.shape[1])
        return module.o_proj((weights @ value).view(rows, -1))


def decode_by_modules(
    step: DecodeStep,
    ids: Int[Tensor, "row 1"],
    mask: Bool[Tensor, "row column"],
    positions: Int[Tensor, "row 1"],
    cache: Any,
) -> Float[Tensor, "row width"]:
    """Return the hidden states of one further token per row as the modules of the model compute them.

    Args:
        step, ids, mask, positions, cache: as in `decode`.
    """
    out = step.model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
    return out.last_hidden_state[:, -1]


@kernel(decode_by_modules)
def decode(
    step: DecodeStep,
    ids: Int[Tensor, "row 1"],
    mask: Bool[Tensor, "row column"],
    positions: Int[Tensor, "row 1"],
    cache: Any,
) -> Float[Tensor, "row width"]:
    """Return the hidden states of one further token per row by the written-out step.

    Args:
        step: the model's, by `write_out`.
        ids: the tokens.
        mask: columns of the cache that each row attends to, its new one included.
        positions: of the tokens in their sequences.
        cache: keys and values so far; the token's are added.

    Returns:
        What the output layer reads.
    """
    return step(ids, mask, positions, cache)


def normalize_hidden(module: Any, x: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
    """Normalize, and round at once to what all products that follow would round to."""
    return cast_for_autocast(nn.functional.rms_norm(x, x.shape[1:], module.weight, module.variance_epsilon))[0]


def looks_like_llama(model: Any) -> bool:
    """Return whether the modules of the model have the names that `DecodeStep` reads."""
    layers = getattr(model, "layers", ())
    if not layers or not attends_to_all(model.config):
        return False
    for layer in layers:
        attention = getattr(layer, "self_attn", layer)
        if {name for name, _ in layer.named_children()} != DECODER_PARTS:
            return False
        if {name for name, _ in attention.named_children()} != PRODUCTS:
            return False
    needed = (model, "rotary_emb"), (layers[0].self_attn, "scaling"), (layers[0].input_layernorm, "variance_epsilon")
    return all(hasattr(module, name) for module, name in needed)


@torch.no_grad()
def write_out(model: Any) -> DecodeStep | None:
    """Write out the step of the model; None where it is made of other parts, or disagrees with them on a few tokens."""
    if not looks_like_llama(model):
        return None
    with torch.autocast(model.device.type, enabled=False):
        ids = torch.arange(6, device=model.device).view(2, 3) % model.config.vocab_size
        place, cache = torch.arange(3, device=model.device).expand(2, 3), Blocks(len(model.layers))
        want = model(input_ids=ids, position_ids=place).last_hidden_state[:, 2]
        model(input_ids=ids[:, :2], position_ids=place[:, :2], past_key_values=cache, use_cache=True)
        step = DecodeStep(model)
        hidden = step(ids[:, 2:], torch.ones_like(ids, dtype=torch.bool), place[:, 2:], cache)
    return step if (hidden - want).norm() <= AGREE * torch.finfo(want.dtype).eps * want.norm() else None
