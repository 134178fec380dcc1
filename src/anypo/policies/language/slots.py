"""The rows being written: prompts are read once, rows that agree are written as one, rows that wait take the places of ended ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Forward = Callable[[Tensor, Tensor, Tensor, Any], tuple[Tensor, Any]]
"""(ids, attention mask, positions, cache) -> (logits of the last position [row, vocab], cache); without a cache it begins one.
A cache has `reorder_cache(rows)`; one that takes further rows is a `GrowingCache`."""


CHECK = {True: 1, False: 4}
"""Tokens between two checks which rows have ended, on a CPU (True) and elsewhere, where a check waits for the device."""


SHARED = 0.75
"""Rows that have written the same are written as one while there are at most so many different ones a row."""


SPARE = 0.125
"""Share of the slots that is free before the rows left are moved together and others take their place."""


@runtime_checkable
class GrowingCache(Protocol):
    """A cache that takes the rows of another and forgets its first columns."""

    def append(self, other: Any) -> None: ...
    def drop(self, columns: int) -> None: ...


@dataclass(slots=True)
class Slots:
    """The rows being written: their number in the batch, tokens written, tokens of the prompt, first column, not ended."""

    row: Int[Tensor, " slot"]
    step: Int[Tensor, " slot"]
    prompt: Int[Tensor, " slot"]
    start: Int[Tensor, " slot"]
    live: Bool[Tensor, " slot"]

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, index: Int[Tensor, " some"]) -> Slots:
        return Slots(self.row[index], self.step[index], self.prompt[index], self.start[index], self.live[index])

    def __add__(self, other: Slots) -> Slots:
        return Slots(
            torch.cat([self.row, other.row]),
            torch.cat([self.step, other.step]),
            torch.cat([self.prompt, other.prompt]),
            torch.cat([self.start, other.start]),
            torch.cat([self.live, other.live]),
        )


class Prefill(NamedTuple):
    """New slots, the logits after their prompts, the cache of these and its columns; and the row of the cache that each slot
    reads where several read the same."""

    slots: Slots
    logits: Float[Tensor, "slot vocab"]
    cache: Any
    columns: int
    cache_row: Int[Tensor, " slot"] | None


class Writer:
    """The state between two tokens: slots, the logits of their next tokens, the cache.

    All slots write the same column of the cache, each having begun at one of its own.

    forward: the model. prompts: token ids. origin: the prompt of each row of the batch. max_new: tokens a row may have.
    at_once: slots.
    """

    def __init__(
        self,
        forward: Forward,
        prompts: Sequence[Sequence[int]],
        origin: Sequence[int],
        max_new: int,
        at_once: int,
        device: torch.device,
    ):
        self.forward, self.prompts, self.origin = forward, prompts, origin
        self.max_new, self.at_once, self.device = max_new, at_once, device
        self.check_every = CHECK[device.type == "cpu"]
        self.waiting = range(at_once, len(origin))
        self.tokens, self.budget_ends = 0, {max_new}
        self._begin(self._prefill(range(at_once)))

    def _prefill(self, rows: range) -> Prefill:
        """Read the prompts of rows, each once."""
        which = sorted({self.origin[i] for i in rows})
        prompts = [self.prompts[i] for i in which]
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=self.device)
        size = torch.tensor([len(p) for p in prompts], device=self.device)
        positions = torch.arange(width, device=self.device) - (width - size)[:, None]
        logits, cache = self.forward(ids, positions >= 0, positions.clamp(min=0), None)
        cache_row = None
        if len(rows) != len(which):
            cache_row = torch.tensor([which.index(self.origin[i]) for i in rows], device=self.device)
            logits, size = logits[cache_row], size[cache_row]
            if len(self.origin) > self.at_once:
                cache.reorder_cache(cache_row)
                cache_row = None
        row = torch.arange(rows.start, rows.stop, device=self.device)
        slots = Slots(row, torch.zeros_like(row), size, width - size, row >= 0)
        return Prefill(slots, logits, cache, width, cache_row)

    def _begin(self, new: Prefill) -> None:
        self.slots, self.logits, self.cache, self.columns, self.cache_row = new

    def advance(self, token: Int[Tensor, " slot"]) -> bool:
        """Read a token of every slot and let waiting rows begin; returns whether any row is left.

        Slots that have ended may be read for a while: to leave them out waits for the device.
        """
        self.tokens += 1
        reader = None
        if self.cache_row is not None:
            token, reader = self._merge(token, self.cache_row)
        elif self.tokens % self.check_every == 0 or self.tokens in self.budget_ends:
            token = self._compact(token)
        if len(self.slots):
            self._read(token, reader)
        elif not self.waiting:
            return False
        self._refill()
        return True

    def _merge(
        self, token: Int[Tensor, " slot"], cache_row: Int[Tensor, " slot"]
    ) -> tuple[Int[Tensor, " left"], Int[Tensor, " line"]]:
        """Drop ended slots and give those that have written the same one row of the cache, while there are many.

        Returns the tokens of the slots left, and a slot that reads each row of the cache.
        """
        stay = self.slots.live.nonzero()[:, 0]
        self.slots, token = self.slots[stay], token[stay]
        vocabulary = self.logits.shape[1]
        kinds, kind = torch.unique(cache_row[stay] * vocabulary + token, return_inverse=True)
        parent, self.cache_row = kinds // vocabulary, kind
        reader = torch.empty_like(kinds).scatter_(0, kind, torch.arange(len(kind), device=self.device))
        if len(kinds) > SHARED * len(stay):
            parent, self.cache_row = parent[kind], None
        self.cache.reorder_cache(parent)
        return token, reader

    def _compact(self, token: Int[Tensor, " slot"]) -> Int[Tensor, " left"]:
        """Drop ended slots where they are many, and columns that no slot reads any more; returns the tokens of the slots left."""
        stay = self.slots.live.nonzero()[:, 0]  # this waits for the device
        if len(stay) > (1 - SPARE) * len(self.slots):
            return token
        self.slots = self.slots[stay]
        self.cache.reorder_cache(stay)
        if isinstance(self.cache, GrowingCache) and len(stay):
            unused = int(self.slots.start.min())
            if unused >= self.columns // 2:
                self.cache.drop(unused)
                self.slots.start, self.columns = self.slots.start - unused, self.columns - unused
        return token[stay]

    def _read(self, token: Int[Tensor, " slot"], reader: Int[Tensor, " line"] | None) -> None:
        """Compute the logits after the tokens; with a shared cache by one slot of each of its rows."""
        self.columns += 1
        slots = self.slots
        mask = torch.arange(self.columns, device=self.device) >= slots.start[:, None]
        position = (slots.prompt + slots.step.clamp(max=self.max_new - 1) - 1)[:, None]
        inputs = (token[:, None], mask, position)
        if self.cache_row is not None:  # slots of a row of the cache agree in all of that
            inputs = tuple(x[reader] for x in inputs)
        logits, self.cache = self.forward(*inputs, self.cache)
        self.logits = logits if self.cache_row is None else logits[self.cache_row]

    def _refill(self) -> None:
        """Let waiting rows begin where enough slots are free."""
        free = self.at_once - len(self.slots)
        enough = free >= SPARE * self.at_once and isinstance(self.cache, GrowingCache)
        if not self.waiting or not (free == self.at_once or enough):
            return
        new = self._prefill(self.waiting[:free])
        self.waiting = self.waiting[free:]
        self.budget_ends.add(self.tokens + self.max_new)
        if free == self.at_once:
            self._begin(new)
            return
        self.cache.append(new.cache)
        self.slots.start = self.slots.start + max(0, new.columns - self.columns)
        new.slots.start = new.slots.start + max(0, self.columns - new.columns)
        self.slots, self.logits = self.slots + new.slots, torch.cat([self.logits, new.logits])
        self.columns = max(self.columns, new.columns)
