"""Generation: prompts of a group are prefilled once, finished rows leave the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anypo.policies.language.filter import Filter


def draw_tokens(p: Float[Tensor, "row vocab"], u: Float[Tensor, " row"]) -> Int[Tensor, " row"]:
    """The token at quantile u in [0, 1) of each row; tokens of probability 0 are never drawn."""
    cdf = p.double().cumsum(-1)
    return torch.searchsorted(cdf, (u * cdf[:, -1])[:, None], right=True)[:, 0].clamp(max=p.shape[1] - 1)


@dataclass(slots=True)
class Sample:
    """Sampled completions, the samples of a prompt together.

    ids: right-padded tokens as sampled, terminator included. lengths: tokens per row. logp: log-probability (nats) of
    each token under the distribution it was drawn from, 0 beyond the length. stopped: ended by itself, not by the
    budget.
    """

    ids: Int[Tensor, "row step"]
    lengths: Int[Tensor, " row"]
    logp: Float[Tensor, "row step"]
    stopped: Bool[Tensor, " row"]

    @property
    def mask(self) -> Bool[Tensor, "row step"]:
        return torch.arange(self.ids.shape[1], device=self.ids.device) < self.lengths[:, None]


Forward = Callable[[Tensor, Tensor, Tensor, Any], tuple[Tensor, Any]]
"""(ids, attention mask, positions, cache) -> (logits of the last position [row, vocab], cache); without a cache it begins one.
A cache has `reorder_cache(rows)`; one that takes further rows also `append(cache)` and `drop(columns)`."""


CHECK = {True: 1, False: 4}
"""Tokens between two looks at which rows have ended, on a CPU (True) and elsewhere, where a look waits for the device."""


SHARED = 0.75
"""Rows that have written the same are written as one while there are at most so many different ones a row."""


SPARE = 0.125
"""Share of the slots that is free before the rows left are moved together and others take their place."""


@dataclass(slots=True)
class _Slots:
    """The rows being written: their number in the batch, tokens written, tokens of the prompt, first column, not ended."""

    row: Int[Tensor, " slot"]
    step: Int[Tensor, " slot"]
    prompt: Int[Tensor, " slot"]
    start: Int[Tensor, " slot"]
    live: Bool[Tensor, " slot"]

    def __getitem__(self, index: Int[Tensor, " some"]) -> _Slots:
        return _Slots(*(getattr(self, f.name)[index] for f in fields(self)))

    def __add__(self, other: _Slots) -> _Slots:
        return _Slots(*(torch.cat([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)))


@torch.no_grad()
def generate(
    forward: Forward,
    prompts: Sequence[Sequence[int]],
    samples: Sequence[int],
    generator: torch.Generator,
    *,
    filter: Filter,
    max_new: int,
    greedy: bool,
    eos: Int[Tensor, " eos"],
    stops: Callable[[list[list[int]]], list[bool]] | None = None,
    slots: int | None = None,
) -> Sample:
    """Sample completions token by token, at most `slots` (None: all) at a time; `stops` says which rows end with a stop string.

    A prompt is read once for all its samples that begin together, and where none waits, so is every token that follows while
    most samples of a prompt agree. Rows that have ended leave their slots to rows that wait.
    All rows write the same column of the cache, each having begun at one of its own. The draws of a row depend on its place
    in the batch, not on when it is written or when others end.
    """
    device = eos.device
    origin = [i for i, count in enumerate(samples) for _ in range(count)]
    n = len(origin)
    at_once = min(slots or n, n)
    seeds = torch.randint(2**62, (n,), generator=generator, device=generator.device).to(device)
    tokens = torch.zeros(n, max_new, dtype=torch.long, device=device)
    logp = torch.zeros(n, max_new, dtype=torch.float64, device=device)
    lengths = torch.full((n,), max_new, device=device)
    stopped = torch.zeros(n, dtype=torch.bool, device=device)

    def enter(rows: range) -> tuple[_Slots, Tensor, Any, int, Tensor | None]:
        """The slots of new rows, the logits after their prompts, the cache of these, its columns, and the line of the cache that
        each row reads where that is not its own."""
        which = sorted({origin[i] for i in rows})
        some = [prompts[i] for i in which]
        width = max(map(len, some))
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in some], device=device)
        size = torch.tensor([len(p) for p in some], device=device)
        positions = torch.arange(width, device=device) - (width - size)[:, None]
        logits, cache = forward(ids, positions >= 0, positions.clamp(min=0), None)
        line = None
        if len(rows) != len(which):
            line = torch.tensor([which.index(origin[i]) for i in rows], device=device)
            logits, size = logits[line], size[line]
            if n > at_once:
                cache.reorder_cache(line)
                line = None
        row = torch.arange(rows.start, rows.stop, device=device)
        return _Slots(row, torch.zeros_like(row), size, width - size, row >= 0), logits, cache, width, line

    waiting, ends, t = range(at_once, n), {max_new}, 0
    every = CHECK[device.type == "cpu"]
    now, logits, cache, columns, line = enter(range(at_once))
    one = torch.empty(0, dtype=torch.long, device=device)  # of every line, a row that reads it
    while True:
        distribution = filter(logits)
        if greedy:
            token = distribution.argmax(-1)
        else:
            token = draw_tokens(distribution.exp(), uniform(seeds[now.row], now.step))
        taken = distribution.gather(1, token[:, None])[:, 0].to(logp.dtype)
        place = (now.row, now.step.clamp(max=max_new - 1))  # rows that have ended go on until the next look
        tokens[place] = torch.where(now.live, token, tokens[place])
        logp[place] = torch.where(now.live, taken, logp[place])
        now.step = now.step + 1
        t += 1

        ended = torch.isin(token, eos)
        if stops is not None:
            done = zip(tokens[now.row].tolist(), now.step.tolist(), strict=True)
            ended |= torch.tensor(stops([row[:k] for row, k in done]), device=device)
        ended &= now.live
        lengths[now.row] = torch.where(ended, now.step, lengths[now.row])
        stopped[now.row] |= ended
        now.live = now.live & ~ended & (now.step < max_new)

        if line is not None:
            stay = now.live.nonzero()[:, 0]
            now, token = now[stay], token[stay]
            kinds, line = torch.unique(line[stay] * logits.shape[1] + token, return_inverse=True)
            parent = kinds // logits.shape[1]
            one = torch.empty_like(kinds).scatter_(0, line, torch.arange(len(line), device=device))
            if len(kinds) > SHARED * len(stay):
                parent, line = parent[line], None
            cache.reorder_cache(parent)
        elif t % every == 0 or t in ends:
            stay = now.live.nonzero()[:, 0]  # this waits for the device
            if len(stay) <= (1 - SPARE) * len(now.row):
                now, token = now[stay], token[stay]
                cache.reorder_cache(stay)
                if hasattr(cache, "drop") and len(stay) and (unused := int(now.start.min())) >= columns // 2:
                    cache.drop(unused)
                    now.start, columns = now.start - unused, columns - unused
        if len(now.row):
            columns += 1
            mask = torch.arange(columns, device=device) >= now.start[:, None]
            position = (now.prompt + now.step.clamp(max=max_new - 1) - 1)[:, None]
            given = (token[:, None], mask, position)
            if line is not None:  # rows of a line agree in all of that
                given = tuple(x[one] for x in given)
            logits, cache = forward(*given, cache)
            logits = logits if line is None else logits[line]
        elif not waiting:
            break
        free = at_once - len(now.row)
        if waiting and (free == at_once or (free >= SPARE * at_once and hasattr(cache, "append"))):
            more, first, other, width, line = enter(waiting[:free])
            waiting = waiting[free:]
            ends.add(t + max_new)
            if free == at_once:
                now, logits, cache, columns = more, first, other, width
            else:
                cache.append(other)
                now.start, more.start = now.start + max(0, width - columns), more.start + max(0, columns - width)
                now, logits, columns = now + more, torch.cat([logits, first]), max(columns, width)

    longest = int(lengths.max())
    return Sample(
        tokens[:, :longest], lengths, logp[:, :longest].to(torch.promote_types(logits.dtype, torch.float32)), stopped
    )


def uniform(seed: Int[Tensor, " row"], step: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
    """Number `step` of the stream `seed`, uniform in [0, 1): the hash of a counter, so streams are read at any place.

    Source: splitmix64 (Steele, Lea & Flood 2014); int64 products wrap around, which is what it takes.
    """

    def shifted(x: Tensor, bits: int) -> Tensor:
        return (x >> bits) & (2 ** (64 - bits) - 1)

    z = seed + (step + 1) * -0x61C8864680B583EB
    z = (z ^ shifted(z, 30)) * -0x40A7B892E31B1A47
    z = (z ^ shifted(z, 27)) * -0x6B2FB644ECCEEE15
    return shifted(z ^ shifted(z, 31), 11).double() * 2.0**-53
