"""What a language model reads before each decision of a batch: rows in tiles of like length, shared prompts once."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anypo.errors import UsageError
from anypo.kernels.kv_cache import Rounded, branch_cache, open_cache
from anypo.kernels.unique_rows import unique_rows
from anypo.policies.language.backbone import Backbone
from anypo.types import Trajectories

TILE = {True: 2048, False: 16384}
"""Tokens read together when completions are evaluated: on a CPU (True) what stays in its caches, else enough to fill it."""


class States(NamedTuple):
    """Where each decision is in the batch, what the output layer reads for it, and the last hidden state before it."""

    row: Int[Tensor, " decision"]
    step: Int[Tensor, " decision"]
    read: Float[Tensor, "decision width"]
    last: Float[Tensor, "decision width"]


def decision_states(backbone: Backbone, b: Trajectories, layer: int | None = None, values: bool = False) -> States:
    """Read prompts and completions; returns the states of all decisions, in any order.

    Rows of like length are read together, each tile without the padding of longer ones. Prompts that several rows share
    are read once where that saves a twelfth of the tokens.

    Args:
        backbone: the model.
        b: rows with prompt, prompt_length and completion in their trace.
        layer: the output layer reads the residual stream after that block, without the final normalization.
        values: value heads read the last hidden state.
    """
    prompt, start, valid = b.trace["prompt"], b.trace["prompt_length"], b.valid
    until = (valid * torch.arange(1, valid.shape[1] + 1, device=valid.device)).amax(1)
    with backbone.fast():
        first, which = unique_rows(torch.cat([start[:, None], prompt], 1))
        saved = int(start.sum() - start[first].sum())
        in_one_pass = layer is not None or (backbone.checkpointing and torch.is_grad_enabled())
        pays = not in_one_pass and 12 * saved >= int((start + until).sum())
        if pays and open_cache(backbone.inner.config) is not None:
            pieces = read_branches(backbone, b, until, first, which, values)
        else:
            pieces = [
                read_rows(backbone, b, rows, layer, values) for rows in split_tiles(backbone, start + until, until)
            ]
    return States(*(torch.cat(parts) for parts in zip(*pieces, strict=True)))


def split_tiles(
    backbone: Backbone, length: Int[Tensor, " row"], until: Int[Tensor, " row"]
) -> list[Int[Tensor, " tile"]]:
    """Sort the rows with decisions (one row if there is none) by length, and put as many together as have TILE tokens.

    Args:
        backbone: the model, whose device decides.
        length: tokens of each row.
        until: steps up to the last decision of each row.
    """
    order, used = length.argsort(descending=True, stable=True), until > 0
    order = order[used[order]] if bool(used.any()) else order[:1]
    sizes, tile, longest = [], 0, 0
    for tokens in length[order].tolist():
        if not sizes or (tile + 1) * longest > TILE[backbone.device.type == "cpu"]:
            sizes.append(0)
            tile, longest = 0, tokens
        sizes[-1] += 1
        tile += 1
    return list(order.split(sizes))


def read_rows(
    backbone: Backbone, b: Trajectories, rows: Int[Tensor, " tile"], layer: int | None, values: bool
) -> States:
    """Read prompt and completion of rows in one pass.

    Args:
        backbone, b, layer, values: as in `decision_states`.
        rows: which of the batch.
    """
    prompt, start = b.trace["prompt"][rows], b.trace["prompt_length"][rows]
    completion = b.trace["completion"][rows]
    row, step = b.valid[rows].nonzero(as_tuple=True)
    place = start[row] + step  # of each decision in its sequence
    width = int(place.max()) if len(place) else 1  # the last decision itself is never read
    ids = join_text(prompt, start, completion)
    more = {"output_hidden_states": True} if layer is not None or (values and not backbone.splits) else {}
    out = backbone.read(input_ids=ids[:, :width], use_cache=False, **more)
    states = out.last_hidden_state if backbone.splits else out.logits
    last = states if backbone.splits else out.hidden_states[-1] if values else states
    if layer is not None:
        blocks = len(out.hidden_states) - 1
        if blocks < 2:
            raise UsageError(f"{backbone.name} has a single block, so it has no inner layer to read")
        states = out.hidden_states[min(layer, blocks - 2) + 1]
    return States(rows[row], step, states[row, place - 1], last[row, place - 1])


def read_branches(
    backbone: Backbone,
    b: Trajectories,
    until: Int[Tensor, " row"],
    first: Int[Tensor, " prompt"],
    which: Int[Tensor, " row"],
    values: bool,
) -> list[States]:
    """Read every distinct prompt once, then the completions, tile by tile.

    Args:
        backbone, b, values: as in `decision_states`.
        until: steps up to the last decision of each row.
        first: a row that has the prompt.
        which: the prompt of each row.
    """
    more = {"output_hidden_states": True} if values and not backbone.splits else {}

    def read(ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> tuple[Tensor, Tensor]:
        out = backbone.read_on(ids, mask, positions, cache, **more)
        states = out.last_hidden_state if backbone.splits else out.logits
        return states, states if backbone.splits else out.hidden_states[-1] if values else states

    valid, size = b.valid, b.trace["prompt_length"][first]
    width = int(size.max())
    column = torch.arange(width, device=which.device) - (width - size)[:, None]  # prompts end together
    ids = b.trace["prompt"][first].gather(1, column.clamp(min=0))
    cache = Rounded(config=backbone.inner.config)
    prompt_states, prompt_last = (x[:, -1:] for x in read(ids, column >= 0, column.clamp(min=0), cache))
    pieces = []
    for rows in split_tiles(backbone, until, until):
        prompt, longest = which[rows], int(until[rows].max()) - 1  # the last decision itself is never read
        # index_select, since the gradient of an index with repetitions depends on the order in which threads add
        states, last = prompt_states.index_select(0, prompt), prompt_last.index_select(0, prompt)
        if longest > 0:
            step = torch.arange(longest, device=which.device).expand(len(rows), -1)
            mask = torch.cat([column[prompt] >= 0, torch.ones_like(step, dtype=torch.bool)], 1)
            completion, positions = b.trace["completion"][rows, :longest], size[prompt][:, None] + step
            read_states, read_last = read(completion, mask, positions, branch_cache(cache, prompt))
            states, last = torch.cat([states, read_states], 1), torch.cat([last, read_last], 1)
        row, step = valid[rows].nonzero(as_tuple=True)
        pieces.append(States(rows[row], step, states[row, step], last[row, step]))
    return pieces


def join_text(
    prompt: Int[Tensor, "row prompt"], start: Int[Tensor, " row"], completion: Int[Tensor, "row step"]
) -> Int[Tensor, "row token"]:
    """Return each prompt's first `start` tokens and behind them its completion, padded on the right.

    Args:
        prompt: token ids, padded on the right.
        start: tokens of each prompt.
        completion: token ids.
    """
    ids = torch.zeros(len(prompt), prompt.shape[1] + completion.shape[1], dtype=torch.long, device=prompt.device)
    ids[:, : prompt.shape[1]] = prompt
    ids.scatter_(1, start[:, None] + torch.arange(completion.shape[1], device=ids.device), completion)
    return ids
