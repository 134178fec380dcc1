"""Method: a named filling of the nine stages, written as a difference from another one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cached_property
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from anypo.comparisons import Comparisons
from anypo.errors import MissingField, UsageError
from anypo.method.card import Card
from anypo.method.explain import explanation, forward_passes, slot_texts
from anypo.method.filling import check_slots, fill_slot
from anypo.method.knob_state import find_knobs, load_knobs, move_knobs
from anypo.method.phase import Phase, with_changes
from anypo.method.registry import is_registered
from anypo.method.registry import method as registered
from anypo.method.requirements import Requirements
from anypo.numbers import Knob
from anypo.parts.ops.log_ratio import importance_ratio, k3
from anypo.parts.ops.masked import masked_mean
from anypo.parts.registry import build_stage, describe
from anypo.stages import SLOTS, declared
from anypo.types import SAMPLED, Trajectories

_T = TypeVar("_T")


class Method(Requirements):
    """Nine stages and further terms. `prepare` runs score and credit; `loss` is a pure function of the batch.

    Parts may carry knobs; nothing in `prepare` or `loss` moves them, `update` does, after each batch or parameter update.
    later: phases that follow the first. length: batches after which they begin again; None: never. moves: how the names of the
    parameters begin that are trained; None: all.
    """

    def __init__(
        self,
        card: Card,
        later: tuple[Phase, ...] = (),
        length: int | None = None,
        moves: tuple[str, ...] | None = None,
        **stages: Any,
    ) -> None:
        super().__init__(card.id, stages)
        self.card, self.later, self.length, self.moves = card, later, length, moves

    def __repr__(self) -> str:
        return f"Method({self.card.id!r}, {', '.join(f'{k}={v}' for k, v in self.texts().items())})"

    # ---------------------------------------------------------------- variants

    def but(self, card: Card | None = None, **stages: Any) -> Method:
        """Return this method with some stages replaced; a new card makes it a method of its own, with this one as its base."""
        check_slots(stages)
        named = self.card if card is None else replace(card, base=card.base or self.card.id)
        return Method(named, self.later, self.length, self.moves, **{**self.stages, **stages})

    def then(
        self,
        after: int | None = None,
        *,
        metric: str | None = None,
        least: float = 0.0,
        moves: tuple[str, ...] | None = None,
        carry: tuple[Literal["store", "step"], ...] = (),
        renew: tuple[str, ...] = (),
        **stages: Any,
    ) -> Method:
        """Return this method with a further phase, in which some stages are replaced; see `Phase`."""
        filled = {slot: fill_slot(slot, part) for slot, part in stages.items()}
        phase = Phase(filled, after, metric, least, moves, carry, renew)
        return Method(self.card, (*self.later, phase), self.length, self.moves, **self.stages)

    def cycle(self, length: int) -> Method:
        """Return this method with its phases begun again every `length` batches."""
        return Method(self.card, self.later, length, self.moves, **self.stages)

    @cached_property
    def phases(self) -> tuple[Method, ...]:
        """The phases as methods without later ones, in order; this method itself where it is the only one."""
        if not self.later:
            return (self,)
        phases = [Method(self.card, moves=self.moves, **self.stages)]
        for phase in self.later:
            phases.append(Method(self.card, moves=phase.moves, **with_changes(phases[-1].stages, phase.stages)))
        return tuple(phases)

    def current(self) -> Method:
        """Return the method as its knobs are now: itself, unless its parts read other fields than when its views were computed."""
        if not self.knobs() or self.reads(*SLOTS) == self.viewed:
            return self
        return Method(self.card, self.later, self.length, self.moves, **self.stages)

    def configure(self, settings: dict[str, Any]) -> Method:
        """Return this method with stages changed by the settings of a run's config.yaml."""
        check_slots(settings)
        return self.but(**{slot: build_stage(slot, spec, self.stages.get(slot)) for slot, spec in settings.items()})

    def beta_path(self) -> str | None:
        """Return the path of the setting called beta: the one its card or that of a base names, else the only one of that name."""
        called = self.setting_paths("beta")
        card: Card | None = self.card
        while card is not None and len(called) != 1:
            if card.beta in self.setting_paths((card.beta or "").rpartition(".")[2]):
                return card.beta
            card = None if card.base is None else registered(card.base).card
        return called[0] if len(called) == 1 else None

    # ---------------------------------------------------------------- the tensor contract

    def prepare(self, b: Trajectories) -> Trajectories:
        """Run score and credit: fills advantage [N, T], and mask, weight, return targets where the links write them.

        What it returns is checked and clean.
        """
        b = mask_expert_scores(b.check().clean())
        for slot, part in self.batch_links():
            b = self._run(slot, part, b, part)
        return b.but(advantage=None if b.advantage is None else b.advantage.detach()).clean()

    def loss(self, b: Trajectories | Comparisons) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scalar to minimise and its metrics; differentiable through logp, entropy and value; moves no state."""
        b = b.rows() if isinstance(b, Comparisons) else b
        return self.loss_of_clean(b.check().clean())

    def loss_of_clean(self, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        """`loss` of rows that `prepare` returned, with their views added by `put_clean`."""
        b = self._run_minibatch_links(b)
        sampled = fresh = b.from_sources(*SAMPLED)
        if sampled.fresh is not None:
            fresh = sampled.but(mask=sampled.valid & (sampled.fresh != 0)).clean()
        total, metrics = self._surrogate_loss(fresh)
        reduce = self.stages["reduce"]
        for part in self.stages["terms"]:
            rows = rows_of(part, b, fresh)
            if not self.is_off(part) and rows.shape[0]:
                value, more = self._run("terms", part, rows, lambda d, term=part: term(d, reduce))
                total, metrics = total + value, {**metrics, **more}
        for part in self.stages["critic"]:
            value, more = self._run("critic", part, rows_of(part, b, sampled), part)
            total, metrics = total + value, {**metrics, **more}
        return total, {"loss": total.detach(), **metrics}

    def _run_minibatch_links(self, b: Trajectories) -> Trajectories:
        for part in self.minibatch_links():
            with torch.no_grad():
                after = self._run("credit", part, b, part)
            written = {f.name: new for f in fields(b) if (new := getattr(after, f.name)) is not getattr(b, f.name)}
            b = b.but(**written).clean()
        return b

    def _surrogate_loss(self, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        """Minus the reduced surrogate, and metrics of the ratio."""
        ratio, trust, reduce = (self.stages[slot] for slot in ("ratio", "trust", "reduce"))
        x = None if ratio is None else self._run("ratio", ratio, b, ratio)
        total, metrics = torch.zeros(()), {}
        if not self.is_off(trust):
            s, of_trust = self._run("trust", trust, b, lambda d: trust(x, d))
            total = -self._run("reduce", reduce, b, lambda d: reduce(s, d))
            count = total.new_full((), math.prod(b.shape)) if b.mask is None else b.mask.sum().to(total.dtype)
            metrics = {"surrogate": -total.detach(), "denominator": count, **of_trust}
        if x is not None and "logp_old" in declared(ratio, "reads"):
            metrics |= ratio_metrics(x.detach(), b)
        return total, metrics

    def _run(self, slot: str, part: Any, b: Trajectories, call: Callable[[Trajectories], _T]) -> _T:
        """Call a part on the batch; a missing field is an error that names method, stage and part."""
        try:
            for name in declared(part, "reads"):
                b.need(name)
            return call(b)
        except MissingField as missing:
            raise UsageError(
                f"{self.card.id}: the {slot} stage ({describe(part)}) needs the field {missing.field!r}, which the batch"
                " does not have"
            ) from None

    @cached_property
    def replaced(self) -> frozenset[str]:
        """The slots of the objective that are filled otherwise than in the registered method of that id."""
        return frozenset(self.diff(self.card.id)) - {"step", "collect"} if is_registered(self.card.id) else frozenset()

    # ---------------------------------------------------------------- knobs

    def knobs(self) -> list[tuple[str, Knob]]:
        """Every knob with its dotted path, `trust.low`."""
        return self._knobs

    @cached_property
    def _knobs(self) -> list[tuple[str, Knob]]:
        return find_knobs(self)

    def update(self, every: str, metrics: dict[str, float], progress: float, b: Trajectories) -> None:
        """Move the knobs that move after every batch (or update).

        Args:
            every: "batch" or "update".
            metrics, b: of the batch or minibatch just used.
            progress: of the run, in [0, 1].
        """
        move_knobs(self.knobs(), every, metrics, progress, b)

    def state_dict(self) -> dict[str, Any]:
        return {path: knob.state_dict() for path, knob in self.knobs()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_knobs(self.card.id, dict(self.knobs()), state)

    # ---------------------------------------------------------------- in words

    def texts(self) -> dict[str, list[str]]:
        """Every slot as short texts."""
        return slot_texts(self)

    def diff(self, other: str | Method) -> dict[str, tuple[list[str], list[str]]]:
        """slot -> (the other's parts, this one's), for the slots in which they differ."""
        theirs = (registered(other) if isinstance(other, str) else other).texts()
        mine = self.texts()
        return {slot: (theirs[slot], mine[slot]) for slot in SLOTS if theirs[slot] != mine[slot]}

    @property
    def changed(self) -> list[str]:
        """The slots in which this method differs from its base; all of them where it has none."""
        return list(SLOTS) if self.card.base is None else list(self.diff(self.card.base))

    def forward_passes(self) -> list[str]:
        """Return the forward passes a batch costs, each with what it computes."""
        return forward_passes(self)

    def explain(self) -> str:
        """Return the method in words: stages with the changed ones marked, equation, source, forward passes, claim."""
        return explanation(self)


def rows_of(part: Any, b: Trajectories, own: Trajectories) -> Trajectories:
    """Return the rows a term or critic learns from.

    Args:
        part: declares `rows`: a source, several, or `all`; `own` where it does not.
        b: all rows.
        own: what parts of its stage learn from.
    """
    names = declared(part, "rows")
    if names in ("own", "all"):
        return own if names == "own" else b
    return b.from_sources(*([names] if isinstance(names, str) else names))


def mask_expert_scores(b: Trajectories) -> Trajectories:
    """Return b without outcomes on demonstrations: they are imitated, not compared."""
    expert = b.get("expert_mask")
    if expert is None:
        return b
    expert = expert != 0
    return b.but(
        score=None if b.score is None else torch.where(expert, torch.nan, b.score),
        scores=None if b.scores is None else torch.where(expert.unsqueeze(1), torch.nan, b.scores),
    )


def ratio_metrics(x: Tensor, b: Trajectories) -> dict[str, Tensor]:
    """Return mean and largest importance ratio, and the divergence from the sampling policy estimated by k3."""
    mask = b.mask if x.ndim == 2 else None
    r = importance_ratio(x)
    kept = r if mask is None else torch.where(mask, r, 0.0)
    return {
        "ratio": masked_mean(r, mask),
        "ratio_max": kept.max() if kept.numel() else r.new_zeros(()),
        "kl_old": masked_mean(k3(-x), mask),
    }
