"""Random numbers of rollouts, keyed by (seed, request, sample): they depend on nothing else, neither the batch nor the process."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from anypo.types import Request

INCREMENT = np.uint64(0x9E3779B97F4A7C15)
HELD_OUT = -1
"""The request that held-out episodes answer."""
ENVS_PER_BLOCK = 4096
"""Environments that share a block of random numbers."""
SPAN = 64
"""Decisions of a row whose numbers are drawn together."""
Law = Callable[[np.ndarray], np.ndarray]
"""64 random bits -> a random number (float32)."""


def hashed(stream: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Return number `index` of each stream, 64 bits; a number can be a stream in turn.

    Source: splitmix64 (Steele, Lea & Flood 2014).
    """
    z = stream + (index + np.uint64(1)) * INCREMENT
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def keyed(*key: int | Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the stream of a key of integers, or the streams of keys whose integers are given as columns."""
    stream = np.zeros(1, np.uint64)
    for part in key:
        stream = hashed(stream, np.atleast_1d(np.asarray(part, np.int64)).view(np.uint64))
    return stream


def row_seeds(seed: int, requests: Sequence[int], samples: Sequence[int]) -> Int[Tensor, " row"]:
    """Return the seed of every row, request by request: keyed(seed, requests[i], k) for k < samples[i].

    Args:
        seed: of the run.
        requests: their numbers.
        samples: rows of each.
    """
    request = np.repeat(np.asarray(requests, np.int64), samples)
    sample = np.concatenate([np.arange(n) for n in samples])
    return torch.from_numpy(keyed(seed, request, sample).view(np.int64))


def request_seeds(seed: int, requests: Sequence[Request]) -> Int[Tensor, " row"]:
    """Return the seeds of the rows that requests ask for; requests without a number count from 0."""
    return row_seeds(seed, request_keys(requests), [r.samples for r in requests])


def held_out_seeds(seed: int, episodes: int) -> Int[Tensor, " row"]:
    """Return the seeds of held-out episodes."""
    return row_seeds(seed, [HELD_OUT], [episodes])


def request_keys(requests: Sequence[Request]) -> list[int]:
    """Return the numbers of the requests, their places where they have none."""
    return [place if r.key is None else r.key for place, r in enumerate(requests)]


@runtime_checkable
class Rng(Protocol):
    """What decisions of several rows draw from: [row, *shape]. A decision makes the same calls in the same order every time."""

    def rand(self, *shape: int) -> Float[Tensor, "row ..."]: ...
    def randn(self, *shape: int) -> Float[Tensor, "row ..."]: ...
    def exponential(self, *shape: int) -> Float[Tensor, "row ..."]: ...


class RowRng:
    """A stream per row: what a row draws does not depend on the others.

    The k-th call of a decision reads the k-th stream of the row's own, at the number of the decision; the numbers of `span`
    decisions are drawn as one block.
    """

    def __init__(self, seeds: Int[Tensor, " row"], span: int = 1):
        self.seeds, self.span = seeds.numpy().view(np.uint64), span
        self.blocks: list[tuple[int, tuple[Tensor, ...]]] = []
        """Of every call: the first decision of the block, and its numbers, [row, *shape] of every decision."""
        self.at(0)

    def at(self, step: int, rows: Int[Tensor, " some"] | None = None) -> RowRng:
        """Begin decision `step` of all rows, or of some."""
        self.step, self.rows, self.call = step, rows, 0
        return self

    def rand(self, *shape: int) -> Float[Tensor, "row ..."]:
        return self._draw(_uniform, shape)

    def randn(self, *shape: int) -> Float[Tensor, "row ..."]:
        return self._draw(_normal, shape)

    def exponential(self, *shape: int) -> Float[Tensor, "row ..."]:
        return self._draw(_exponential, shape)

    def _draw(self, law: Law, shape: tuple[int, ...]) -> Tensor:
        call, self.call = self.call, self.call + 1
        if call == len(self.blocks):
            self.blocks.append((-1, ()))
        first, block = self.blocks[call]
        inside = self.step % self.span
        if first != self.step - inside:
            first = self.step - inside
            block = torch.from_numpy(self._block(law, call, self.seeds, np.array([first]), shape)).unbind()
            self.blocks[call] = first, block
        return block[inside] if self.rows is None else block[inside][self.rows]

    def _block(self, law: Law, call: int, seeds: np.ndarray, first: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Return the numbers of a call [decision, row, *shape], for `span` decisions of every row from its `first` on."""
        width = math.prod(shape)
        streams = hashed(seeds, np.array([call], np.uint64))
        index = (first + np.arange(self.span)[:, None])[:, :, None] * width + np.arange(width)
        return law(hashed(streams[:, None], index.view(np.uint64))).reshape(self.span, len(seeds), *shape)


class EpisodeRng(RowRng):
    """A stream per row, for rows that are at different decisions."""

    def __init__(self, seeds: Int[Tensor, " row"], span: int = SPAN):
        super().__init__(seeds, span)
        self.numbers: list[tuple[np.ndarray, np.ndarray]] = []
        """Of every call: numbers [decision, row, *shape], and the first decision that they are for [row]."""

    def at_each(self, steps: np.ndarray, rows: np.ndarray) -> None:
        """Begin a decision of some rows, each at a step of its own."""
        self.steps, self.some, self.call = steps, rows, 0

    def _draw(self, law: Law, shape: tuple[int, ...]) -> Tensor:
        call, self.call = self.call, self.call + 1
        if call == len(self.numbers):
            block = np.empty((self.span, len(self.seeds), *shape), np.float32)
            self.numbers.append((block, np.full(len(self.seeds), -1)))
        block, first = self.numbers[call]
        inside = self.steps % self.span
        begin = self.steps - inside
        stale = first[self.some] != begin
        if stale.any():
            rows = self.some[stale]
            block[:, rows] = self._block(law, call, self.seeds[rows], begin[stale], shape)
            first[rows] = begin[stale]
        return torch.from_numpy(block[inside, self.some])


def _uniform(bits: np.ndarray) -> np.ndarray:
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def _open(bits: np.ndarray) -> np.ndarray:
    """Uniform between 0 and 1, neither of them included."""
    return ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def _normal(bits: np.ndarray) -> np.ndarray:
    return torch.special.ndtri(torch.from_numpy(_open(bits))).float().numpy()


def _exponential(bits: np.ndarray) -> np.ndarray:
    return (-torch.from_numpy(_open(bits)).log()).float().numpy()


class BatchRng:
    """One generator for a batch of rows: row i gets the i-th numbers of every call."""

    def __init__(self, generator: torch.Generator, rows: int):
        self.generator, self.rows = generator, rows

    def rand(self, *shape: int) -> Float[Tensor, "row ..."]:
        return torch.rand(self.rows, *shape, generator=self.generator)

    def randn(self, *shape: int) -> Float[Tensor, "row ..."]:
        return torch.randn(self.rows, *shape, generator=self.generator)

    def exponential(self, *shape: int) -> Float[Tensor, "row ..."]:
        return torch.empty(self.rows, *shape).exponential_(generator=self.generator)


class ChunkRng:
    """The random numbers of environments that lie together, out of blocks in the order of the environments.

    Of every `ENVS_PER_BLOCK` environments a generator seeded by the key draws block after block, one for every call, for them all; a
    chunk takes its slice. So it does not matter how environments are divided into chunks.
    """

    def __init__(self, key: tuple[int, ...], chunk: slice, envs: int):
        self.parts: list[tuple[BatchRng, slice]] = []
        """Generators, and the environments of their blocks that are in the chunk."""
        for first in range(chunk.start // ENVS_PER_BLOCK * ENVS_PER_BLOCK, chunk.stop, ENVS_PER_BLOCK):
            generator = torch.Generator().manual_seed(int(keyed(*key, first // ENVS_PER_BLOCK)[0]))
            rng = BatchRng(generator, min(ENVS_PER_BLOCK, envs - first))
            self.parts.append((rng, slice(max(chunk.start - first, 0), min(chunk.stop - first, rng.rows))))

    def rand(self, *shape: int) -> Float[Tensor, "row ..."]:
        return self.gather(lambda rng: rng.rand(*shape))

    def randn(self, *shape: int) -> Float[Tensor, "row ..."]:
        return self.gather(lambda rng: rng.randn(*shape))

    def exponential(self, *shape: int) -> Float[Tensor, "row ..."]:
        return self.gather(lambda rng: rng.exponential(*shape))

    def gather(self, draw: Callable[[BatchRng], Tensor], dim: int = 0) -> Tensor:
        """Return the chunk's slice of what is drawn for every block, environments along `dim`."""
        first, part = self.parts[0]
        if part == slice(0, first.rows) and len(self.parts) == 1:
            return draw(first)
        pieces = [draw(rng).narrow(dim, part.start, part.stop - part.start) for rng, part in self.parts]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)
