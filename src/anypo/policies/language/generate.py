"""Generation: tokens are drawn row by row from streams of their own, whatever else is being written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anypo.policies.language.filter import Filter
from anypo.policies.language.slots import Forward, Slots, Writer


def draw_tokens(p: Float[Tensor, "row vocab"], u: Float[Tensor, " row"]) -> Int[Tensor, " row"]:
    """Return the token at quantile u in [0, 1) of each row; tokens of probability 0 are never drawn."""
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


class Completions:
    """A `Sample` in the making: n rows of max_new tokens."""

    def __init__(self, n: int, max_new: int, device: torch.device):
        self.max_new = max_new
        self.ids = torch.zeros(n, max_new, dtype=torch.long, device=device)
        self.logp = torch.zeros(n, max_new, dtype=torch.float64, device=device)
        self.lengths = torch.full((n,), max_new, device=device)
        self.stopped = torch.zeros(n, dtype=torch.bool, device=device)

    def write(self, slots: Slots, token: Int[Tensor, " slot"], logp: Float[Tensor, " slot"]) -> None:
        """Write the next token of every slot that has not ended, and count it.

        Args:
            slots: the rows; the tokens of each are counted in place.
            token: of each slot.
            logp: of the token.
        """
        place = (slots.row, slots.step.clamp(max=self.max_new - 1))  # ended rows are continued until the next check
        self.ids[place] = torch.where(slots.live, token, self.ids[place])
        self.logp[place] = torch.where(slots.live, logp.to(self.logp.dtype), self.logp[place])
        slots.step = slots.step + 1

    def end(self, slots: Slots, stops: Bool[Tensor, " slot"]) -> None:
        """End rows that stop, and those whose budget is used up; both are noted in `slots.live`."""
        stops = stops & slots.live
        self.lengths[slots.row] = torch.where(stops, slots.step, self.lengths[slots.row])
        self.stopped[slots.row] |= stops
        slots.live = slots.live & ~stops & (slots.step < self.max_new)

    def to_sample(self, dtype: torch.dtype) -> Sample:
        """Return the rows, cut at the longest; logp in this dtype, at least float32."""
        longest = int(self.lengths.max())
        logp = self.logp[:, :longest].to(torch.promote_types(dtype, torch.float32))
        return Sample(self.ids[:, :longest], self.lengths, logp, self.stopped)


@torch.no_grad()
def generate(
    forward: Forward,
    prompts: Sequence[Sequence[int]],
    samples: Sequence[int],
    seeds: Int[Tensor, " row"] | None,
    *,
    filter: Filter,
    max_new: int,
    greedy: bool,
    eos: Int[Tensor, " eos"],
    stops: Callable[[list[list[int]]], list[bool]] | None = None,
    slots: int | None = None,
) -> Sample:
    """Sample completions token by token.

    A prompt is read once for all its samples that begin together, and where none waits, so is every token that follows while
    most samples of a prompt agree. Rows that have ended leave their slots to rows that wait. The draws of a row depend on its
    seed alone, not on its place in the batch or when it is written.

    Args:
        forward: the model.
        prompts: token ids.
        samples: completions of each prompt.
        seeds: of the rows; None where nothing is drawn (greedy).
        filter: the distribution of a token, given its logits.
        max_new: tokens a completion may have.
        greedy: take the likeliest token each time.
        eos: tokens that end a completion.
        stops: returns which rows end with a stop string.
        slots: completions written at a time (None: all).
    """
    device = eos.device
    origin = [i for i, count in enumerate(samples) for _ in range(count)]
    n = len(origin)
    seeds = torch.zeros(n, dtype=torch.long, device=device) if seeds is None else seeds.to(device)
    writer = Writer(forward, prompts, origin, max_new, min(slots or n, n), device)
    rows = Completions(n, max_new, device)
    while True:
        now, distribution = writer.slots, filter(writer.logits)
        if greedy:
            token = distribution.argmax(-1)
        else:
            token = draw_tokens(distribution.exp(), uniform(seeds[now.row], now.step))
        rows.write(now, token, distribution.gather(1, token[:, None])[:, 0])
        ended = torch.isin(token, eos)
        if stops is not None:
            written = zip(rows.ids[now.row].tolist(), now.step.tolist(), strict=True)
            ended |= torch.tensor(stops([ids[:k] for ids, k in written]), device=device)
        rows.end(now, ended)
        if not writer.advance(token):
            return rows.to_sample(writer.logits.dtype)


def skip(seed: Int[Tensor, " row"], steps: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
    """Return the streams that begin where others are after so many numbers."""
    return seed + steps * -0x61C8864680B583EB


def uniform(seed: Int[Tensor, " row"], step: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
    """Return number `step` of the stream `seed`, uniform in [0, 1): the hash of a counter, so streams are read at any place.

    Source: splitmix64 (Steele, Lea & Flood 2014); int64 products wrap around, which is what it takes.
    """

    def shifted(x: Tensor, bits: int) -> Tensor:
        return (x >> bits) & (2 ** (64 - bits) - 1)

    z = skip(seed, step + 1)
    z = (z ^ shifted(z, 30)) * -0x40A7B892E31B1A47
    z = (z ^ shifted(z, 27)) * -0x6B2FB644ECCEEE15
    return shifted(z ^ shifted(z, 31), 11).double() * 2.0**-53
