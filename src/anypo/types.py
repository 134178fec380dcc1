"""The containers every stage reads and writes: slotted dataclasses of tensors, no behaviour of their own beyond slicing.

Shapes: `row` counts trajectories (N), `step` counts decisions (T: tokens, environment actions, draws), `channel` counts
reward components (K). The first dimension of every tensor is `row`; where there is a second dimension it may be padded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import InitVar, dataclass, field, fields, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from anypo.errors import MissingField, UsageError

MASK = "action_mask"
"""The key of an observation dict, of `info` and of the trace that says which discrete actions are allowed."""


NEXT_MASK = f"next_{MASK}"
"""The key of the trace that says which actions are allowed after the decision."""


LAST_MASK = f"last_{MASK}"
"""The key of `extra` that says which actions are allowed after a row's last decision."""


MASKS = (MASK, NEXT_MASK)
"""Columns of transitions whose choices are constrained."""


SOURCES = ("policy", "expert", "pairs", "replay")
"""Where rows come from: just sampled; demonstrations; preference data; sampled for an earlier batch."""


SAMPLED = ("policy", "replay")
"""Sources whose rows the policy sampled: the main objective and the critics learn from them."""


@dataclass(slots=True)
class Request:
    """What to sample: one start, how many rows, and under which conditions. The rows of one request form a *group*.

    start: index of the start in the task (a prompt, an environment seed); None goes on where the environments stand.
    samples: rows to sample from this start. horizon: decisions per row at most (None: the task's own limit).
    hint: given to the policy before its own decisions, never trained: a text, or the share of the start's reference
    solution that is shown, in [0, 1]. prefix: an unfinished row to go on with instead of beginning again.
    expert: to be answered by the task's demonstrations instead of the policy. random: probability that a decision is drawn
    uniformly instead; noise: deviation of what is added to continuous actions, which are in [-1, 1].
    key: number of the request in the run, which its random numbers follow from (None: its place among those asked together).
    """

    start: int | None
    samples: int = 1
    horizon: int | None = None
    hint: str | float | None = None
    prefix: Trajectories | None = None
    expert: bool = False
    random: float = 0.0
    noise: float = 0.0
    key: int | None = None


@dataclass(slots=True)
class Trajectories:
    """N rows of T decisions. Every field may be missing (None); a part that needs a missing one is a clear error.

    logp, logp_old, logp_ref: log-probability (nats) of the taken decision now, when sampled, under the reference.
    entropy: entropy (nats) of the decision's distribution now. value: V(s_t) now; value_old: V when collected.
    mask: True where the policy decided (None: everywhere); everything else counts nowhere. weight: scales a decision, does not count it.
    reward: per decision. score: outcome per row; scores: outcome channels; NaN marks a missing outcome.
    start: index of the task's start a row began in. group: id of the request it answers. segment: id of the turn,
    reasoning step, ... of a decision. source: index in `sources` of where a row comes from (None: the policy sampled all of them);
    expert_mask, True for demonstrations, is accepted in its place and can be read. task: index of a row's task in a mixture.
    fresh: True where a decision was made since the last update (None: all were); the policy learns from these alone.
    advantage: credit per decision. returns: regression target of the value.
    bootstrap: value of the state after a row's last decision; done: the row ended in a terminal state (then that value is 0).
    truncated: the row was cut by its generation budget. budget: that budget, in decisions.
    trace: what the policy needs to evaluate these decisions again (row first); KEY@NAME is a row's input KEY under another name
    than that of sampling (`prompt@plain`: without hint). extra: further named inputs (row first).
    """

    logp: Float[Tensor, "row step"] | None = None
    logp_old: Float[Tensor, "row step"] | None = None
    logp_ref: Float[Tensor, "row step"] | None = None
    entropy: Float[Tensor, "row step"] | None = None
    value: Float[Tensor, "row step"] | None = None
    mask: Shaped[Tensor, "row step"] | None = None
    reward: Float[Tensor, "row step"] | None = None
    score: Float[Tensor, " row"] | None = None
    scores: Float[Tensor, "row channel"] | None = None
    start: Int[Tensor, " row"] | None = None
    group: Int[Tensor, " row"] | None = None
    source: Int[Tensor, " row"] | None = None
    task: Int[Tensor, " row"] | None = None
    fresh: Shaped[Tensor, "row step"] | None = None
    segment: Int[Tensor, "row step"] | None = None
    advantage: Float[Tensor, "row step"] | None = None
    weight: Float[Tensor, "row step"] | None = None
    value_old: Float[Tensor, "row step"] | None = None
    returns: Float[Tensor, "row step"] | None = None
    bootstrap: Float[Tensor, " row"] | None = None
    done: Shaped[Tensor, " row"] | None = None
    truncated: Shaped[Tensor, " row"] | None = None
    budget: int | None = None
    trace: dict[str, Tensor] = field(default_factory=dict)
    extra: dict[str, Tensor] = field(default_factory=dict)
    sources: tuple[str, ...] = SOURCES
    expert_mask: InitVar[Shaped[Tensor, " row"] | None] = None

    def __post_init__(self, expert_mask: Tensor | None) -> None:
        if expert_mask is not None:
            self.source = (expert_mask != 0).long() * self.sources.index("expert")

    def get(self, name: str) -> Any:
        """Return the field or extra input called `name`, or None."""
        field_value = getattr(self, name) if name in FIELDS or name == "expert_mask" else None
        return self.extra.get(name) if field_value is None else field_value

    def need(self, name: str) -> Tensor:
        """Return the field or extra input called `name`; MissingField where the batch has none."""
        tensor = self.get(name)
        if tensor is None:
            raise MissingField(name)
        return tensor

    def but(self, **changes: Any) -> Trajectories:
        """Return a copy with some fields replaced."""
        if "expert_mask" in changes:
            changes["source"] = None
        return replace(self, **{"expert_mask": None, **changes})

    def put(self, found: dict[str, Tensor]) -> Trajectories:
        """Return a copy with some fields or extra inputs replaced, by name."""
        named = {name: tensor for name, tensor in found.items() if name in FIELDS}
        more = {name: tensor for name, tensor in found.items() if name not in FIELDS}
        return self.but(**named, extra=self.extra | more) if more else self.but(**named)

    def put_clean(self, found: dict[str, Tensor]) -> Trajectories:
        """`put` on a clean batch, which stays clean."""
        return self.put({name: zero_masked(tensor, self.mask) for name, tensor in found.items()})

    @property
    def shape(self) -> tuple[int, int]:
        """(N, T), read off the first [row, step] field present."""
        for name in STEP_FIELDS:
            tensor = getattr(self, name)
            if tensor is not None:
                return tensor.shape[0], tensor.shape[1]
        raise UsageError("the batch has no [row, step] field, so its shape is unknown; give at least `logp` or `mask`")

    @property
    def valid(self) -> Bool[Tensor, "row step"]:
        """The mask as booleans; every decision counts where no mask is given."""
        if self.mask is not None:
            return self.mask if self.mask.dtype == torch.bool else self.mask != 0
        like = next(t for t in (getattr(self, n) for n in STEP_FIELDS) if t is not None)
        return torch.ones(self.shape, dtype=torch.bool, device=like.device)

    @property
    def lengths(self) -> Int[Tensor, " row"]:
        """|o_i|: valid decisions per row."""
        return self.valid.sum(1)

    def row_mean(self, x: Float[Tensor, "row step"]) -> Float[Tensor, " row"]:
        """Mean of x over each row's valid decisions; 0 for a row without any."""
        return torch.where(self.valid, x, 0.0).sum(1) / self.lengths.clamp(min=1)

    def map(self, fn: Callable[[Tensor], Tensor]) -> Trajectories:
        """Apply fn to every tensor."""
        changes: dict[str, Any] = {n: fn(t) for n in FIELDS if isinstance(t := getattr(self, n), Tensor)}
        for name in ("trace", "extra"):
            changes[name] = {k: fn(t) for k, t in getattr(self, name).items()}
        return self.but(**changes)

    def rows(self, index: Shaped[Tensor, " index"]) -> Trajectories:
        """Return the rows at `index` (integers or booleans), in that order."""
        if index.dtype == torch.bool:
            index = index.nonzero()[:, 0]
        return self.map(partial(index_rows, index=index))

    def from_sources(self, *names: str) -> Trajectories:
        """Return the rows that come from one of these sources."""
        if self.source is None and "policy" in names:
            return self
        known = [self.sources.index(name) for name in names if name in self.sources]
        source = torch.full_like(self.lengths, self.sources.index("policy")) if self.source is None else self.source
        keep = torch.isin(source, torch.tensor(known, device=source.device))
        return self if bool(keep.all()) else self.rows(keep)

    def slices(self, count: int) -> list[Trajectories]:
        """Return the rows in `count` consecutive pieces, equal within one: views of these."""
        pieces: list[dict[str, Any]] = [{"budget": self.budget, "sources": self.sources} for _ in range(count)]
        for name in FIELDS:
            if isinstance(tensor := getattr(self, name), Tensor):
                for piece, part in zip(pieces, tensor.tensor_split(count), strict=True):
                    piece[name] = part
        for name in ("trace", "extra"):
            split = {key: tensor.tensor_split(count) for key, tensor in getattr(self, name).items()}
            for i, piece in enumerate(pieces):
                piece[name] = {key: parts[i] for key, parts in split.items()}
        return [Trajectories(**piece) for piece in pieces]

    def decisions(self) -> Trajectories:
        """Every valid decision as a row of its own, [M, 1]; for policies whose decisions can be evaluated alone."""
        shape = self.shape
        if self.mask is None and shape[1] == 1:
            return self
        valid = self.valid
        flat = valid.flatten().nonzero()[:, 0]
        complete, row = len(flat) == valid.numel(), flat // max(shape[1], 1)
        if complete and shape[1] == 1:
            return self.but(mask=self._full_mask())

        def gather(t: Tensor) -> Tensor:
            t = t.flatten(0, 1)
            return (t if complete else t.index_select(0, flat)).unsqueeze(1)

        changes: dict[str, Any] = {}
        for name in FIELDS:
            tensor = getattr(self, name)
            if isinstance(tensor, Tensor):
                changes[name] = gather(tensor) if name in STEP_FIELDS else tensor.index_select(0, row)
        changes["trace"] = {k: gather(t) for k, t in self.trace.items()}
        changes["extra"] = {
            k: gather(t) if t.shape[:2] == shape else t.index_select(0, row) for k, t in self.extra.items()
        }
        if self._full_mask() is None:
            changes["mask"] = None
        return self.but(**changes)

    def regroup(self, index: Int[Tensor, "new slot"], row: Int[Tensor, " new"]) -> Trajectories:
        """Return new rows, whose decisions are those at `index` in the flattened batch, with the row fields of the rows `row`."""
        shape = self.shape
        changes: dict[str, Any] = {}
        for name in FIELDS:
            tensor = getattr(self, name)
            if isinstance(tensor, Tensor):
                changes[name] = tensor.flatten(0, 1)[index] if name in STEP_FIELDS else tensor.index_select(0, row)
        changes["trace"] = {k: t.flatten(0, 1)[index] for k, t in self.trace.items()}
        changes["extra"] = {
            k: t.flatten(0, 1)[index] if t.shape[:2] == shape else t.index_select(0, row) for k, t in self.extra.items()
        }
        return self.but(**changes)

    def _full_mask(self) -> Tensor | None:
        """Return what a mask without a gap is replaced with: None, or itself where no other field has the batch's shape."""
        alone = all(getattr(self, name) is None for name in STEP_FIELDS if name != "mask")
        return self.mask if alone else None

    def clean(self) -> Trajectories:
        """Zeros under the mask and at least float32: what parts read, so that masked slots cannot matter. The mask becomes
        boolean, or None where it has no gap; that of a GPU is not read, which would mean to wait for it."""
        keep = None if self.mask is None else self.valid
        if keep is not None and keep.device.type == "cpu" and bool(keep.all()):
            keep = None
        changes: dict[str, Any] = {"mask": self._full_mask() if keep is None else keep}
        for name in FIELDS:
            tensor = getattr(self, name)
            if isinstance(tensor, Tensor) and name not in ("mask", "scores", "fresh"):
                changes[name] = zero_masked(tensor, keep)
        if self.scores is not None and self.scores.dtype in (torch.float16, torch.bfloat16):
            changes["scores"] = self.scores.float()
        changes["extra"] = {k: zero_masked(t, keep) for k, t in self.extra.items()}
        return self.but(**changes)

    def check(self) -> Trajectories:
        """Refuse fields whose shapes disagree, in one sentence; returns self."""
        n, t = self.shape
        for name in FIELDS:
            tensor = getattr(self, name)
            if isinstance(tensor, Tensor):
                want = (n, t) if name in STEP_FIELDS else (n,)
                if tuple(tensor.shape[: len(want)]) != want or (name != "scores" and tensor.ndim != len(want)):
                    raise UsageError(f"the field {name!r} has shape {tuple(tensor.shape)}, the batch needs {want}")
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain tensors by dotted name, for checkpoints; `from_dict` is its inverse."""
        columns: dict[str, Any] = {n: t for n in FIELDS if (t := getattr(self, n)) is not None}
        if self.sources != SOURCES:
            columns["sources"] = self.sources
        for name in ("trace", "extra"):
            columns |= {f"{name}.{key}": tensor for key, tensor in getattr(self, name).items()}
        return columns

    @staticmethod
    def from_dict(saved: dict[str, Any]) -> Trajectories:
        b = Trajectories(**{name: value for name, value in saved.items() if "." not in name})
        for key, value in saved.items():
            if "." in key:
                name, _, inner = key.partition(".")
                getattr(b, name)[inner] = value
        return b

    @staticmethod
    def cat(parts: Sequence[Trajectories]) -> Trajectories:
        """Rows of several batches below each other; shorter ones are padded on the right with masked slots."""
        return _join(parts)


def index_rows(t: Shaped[Tensor, "row ..."], index: Int[Tensor, " index"]) -> Shaped[Tensor, "index ..."]:
    """Return the rows of a tensor at `index`, which may be on another device."""
    return t.index_select(0, index) if t.device == index.device else t[index]


def zero_masked(t: Shaped[Tensor, "row ..."], keep: Bool[Tensor, "row step"] | None) -> Shaped[Tensor, "row ..."]:
    """At least float32, and zeros where `keep` is False."""
    t = t.float() if t.dtype in (torch.float16, torch.bfloat16) else t
    if keep is None or t.shape[:2] != keep.shape or not t.is_floating_point():
        return t
    keep = keep if t.ndim == 2 else keep.reshape(*keep.shape, *[1] * (t.ndim - 2))
    return torch.where(keep, t, torch.zeros((), dtype=t.dtype, device=t.device))


def _join(parts: Sequence[Trajectories]) -> Trajectories:
    """See `Trajectories.cat`."""
    if len(parts) == 1:
        return parts[0]
    parts = [p if p.mask is not None else p.but(mask=p.valid) for p in parts]
    if any(p.source is not None for p in parts):
        parts = _with_common_sources(parts)

    def stack(tensors: list[Tensor]) -> Tensor:
        if tensors[0].ndim == 1:
            return torch.cat(tensors)
        width = max(t.shape[1] for t in tensors)
        return torch.cat([_widen(t, width) for t in tensors])

    changes: dict[str, Any] = {}
    for name in FIELDS:
        tensors = [getattr(p, name) for p in parts]
        if all(isinstance(t, Tensor) for t in tensors):
            changes[name] = stack(tensors)
    inputs = {key for p in parts for key in p.trace if "@" in key}
    parts = [p.but(trace=p.trace | _own_inputs(p.trace, inputs)) for p in parts] if inputs else parts
    for name in ("trace", "extra"):
        keys = set.intersection(*(set(getattr(p, name)) for p in parts))
        changes[name] = {k: stack([getattr(p, name)[k] for p in parts]) for k in sorted(keys)}
    return Trajectories(budget=parts[0].budget, sources=parts[0].sources, **changes)


def _own_inputs(trace: dict[str, Tensor], inputs: Collection[str]) -> dict[str, Tensor]:
    """Return the named inputs `KEY@NAME` that a trace lacks: its own KEY."""
    keys = {key: key.partition("@")[0] for key in inputs if key not in trace}
    return {key: trace[plain] for key, plain in keys.items() if plain in trace}


def _with_common_sources(parts: Sequence[Trajectories]) -> list[Trajectories]:
    """Return the batches with a source for every row, counted in the same names; rows without one were sampled by the policy."""
    names = tuple(dict.fromkeys(name for p in parts for name in p.sources))
    named = []
    for p in parts:
        places = torch.tensor([names.index(name) for name in p.sources], device=p.valid.device)
        source = torch.full_like(p.lengths, p.sources.index("policy")) if p.source is None else p.source
        named.append(p.but(source=places[source], sources=names))
    return named


def _widen(t: Tensor, width: int) -> Tensor:
    if t.shape[1] == width:
        return t
    pad = t.new_zeros((t.shape[0], width - t.shape[1], *t.shape[2:]))
    return torch.cat([t, pad], 1)


def _expert_mask(b: Trajectories) -> Bool[Tensor, " row"] | None:
    """Return True for demonstrations; None where all rows are the policy's."""
    return None if b.source is None else b.source == b.sources.index("expert")


Trajectories.expert_mask = property(_expert_mask)  # pyright: ignore[reportAttributeAccessIssue]


FIELDS = tuple(f.name for f in fields(Trajectories) if f.name not in ("trace", "extra", "sources"))
STEP_FIELDS = tuple(
    f.name for f in fields(Trajectories) if f.name not in ("trace", "extra") and "row step" in str(f.type)
)
