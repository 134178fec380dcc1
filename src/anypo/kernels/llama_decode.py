"""The next token of a decoder of the Llama family, written out: a quarter of the operations that the modules make of it."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from anypo.kernels.kv_cache import Blocks, plain_cache, rounded_cache

DECODER_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}


PRODUCTS = {"q_proj", "k_proj", "v_proj", "o_proj"}


AGREE = 64
"""Difference from the modules, in units of the last place."""


class DecodeStep:
    """Hidden states of one further token per row, from the embedding to the final normalization.

        x <- x + O softmax(R q (R k)^T / sqrt(d)) v,  x <- x + mlp(norm(x)),  R the rotation by the position

    A row's keys and values stand in the columns of its line of the cache that the mask shows.
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
        for layer, kept in zip(self.model.layers, cache.layers, strict=True):
            x = x + self.attended(layer.self_attn, rms_normalized(layer.input_layernorm, x), cos, sin, mask, kept)
            x = x + layer.mlp(rms_normalized(layer.post_attention_layernorm, x))
        return rms_normalized(self.model.norm, x)

    def attended(self, part: Any, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, kept: Any) -> Tensor:
        rows, lines = len(x), len(x) * self.groups
        both = torch.cat([part.q_proj(x), part.k_proj(x)], 1).view(rows, -1, self.width)
        both = torch.addcmul(both * cos, both.roll(self.width // 2, 2), sin)
        key, value = both[:, self.heads :, None], part.v_proj(x).view(rows, self.groups, 1, self.width)
        key, value = (buffer.flatten(0, 1) for buffer in kept.update(key, value))
        query = both[:, : self.heads].to(key.dtype).reshape(lines, -1, self.width)
        hidden = torch.nn.functional.pad(~mask, (0, key.shape[1] - mask.shape[1]), value=True)
        scores = (query @ key.mT).view(rows, self.heads, -1)
        weights = scores.masked_fill_(hidden[:, None], -torch.inf).softmax(-1).view(lines, -1, key.shape[1])
        return part.o_proj((weights @ value).view(rows, -1))


def rms_normalized(module: Any, x: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
    """Rounded at once to what all products that follow would round it to."""
    return rounded_cache(nn.functional.rms_norm(x, x.shape[1:], module.weight, module.variance_epsilon))[0]


@torch.no_grad()
def written(model: Any) -> DecodeStep | None:
    """The step of the model; None where it is made of other parts, or disagrees with them on a few tokens."""
    layers = getattr(model, "layers", ())
    made = [{name for name, _ in layer.named_children()} for layer in layers]
    attends = [{name for name, _ in getattr(layer, "self_attn", layer).named_children()} for layer in layers]
    if (
        not layers
        or any(m != DECODER_PARTS for m in made)
        or any(a != PRODUCTS for a in attends)
        or not plain_cache(model.config)
    ):
        return None
    needed = (model, "rotary_emb"), (layers[0].self_attn, "scaling"), (layers[0].input_layernorm, "variance_epsilon")
    if not all(hasattr(part, name) for part, name in needed):
        return None
    with torch.autocast(model.device.type, enabled=False):
        ids = torch.arange(6, device=model.device).view(2, 3) % model.config.vocab_size
        place, cache = torch.arange(3, device=model.device).expand(2, 3), Blocks(len(layers))
        want = model(input_ids=ids, position_ids=place).last_hidden_state[:, 2]
        model(input_ids=ids[:, :2], position_ids=place[:, :2], past_key_values=cache, use_cache=True)
        step = DecodeStep(model)
        found = step(ids[:, 2:], torch.ones_like(ids, dtype=torch.bool), place[:, 2:], cache)
    return step if (found - want).norm() <= AGREE * torch.finfo(want.dtype).eps * want.norm() else None
