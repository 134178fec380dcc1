"""Method: a named filling of the nine stages, written as a difference from another one."""

from __future__ import annotations

import copy
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from anypo.errors import MissingField, UsageError, unknown
from anypo.parts._register import as_list, build, describe
from anypo.parts.statistics import masked_mean, ratio
from anypo.stages import CHAINS, LEVELS, SLOTS, Knob, Level
from anypo.types import Trajectories


@dataclass(frozen=True)
class Card:
    """Where a method comes from and what it says.

    base: the method it is written as a difference from. equation: its objective in one line. source: where that stands.
    claim: the central claim. confidence: how the definition was obtained (exact | reconstructed).
    weight: W(r, A) = -dF/dlogp per decision before reduction, where it is a function of ratio and advantage alone.
    ordered: the rows' order matters by definition.
    """

    id: str
    title: str
    year: int
    arxiv: str | None
    equation: str
    source: str
    claim: str
    family: str = "policy_gradient"
    base: str | None = None
    confidence: str = "exact"
    weight: Callable[[Tensor, Tensor], Tensor] | None = None
    ordered: bool = False


class Method:
    """Nine stages and further terms. `prepare` runs score and credit; `loss` is a pure function of the batch.

    Parts may carry knobs; nothing in `prepare` or `loss` moves them, `update` does, once after each batch.
    """

    def __init__(self, card: Card, **stages: Any) -> None:
        self.card = card
        self.stages: dict[str, Any] = {}
        for slot, content in stages.items():
            if slot not in SLOTS:
                raise unknown("stage", slot, SLOTS)
            self.stages[slot] = _filling(slot, content)
        for slot in SLOTS:
            if slot not in self.stages:
                raise UsageError(f"the method {card.id!r} leaves the stage {slot!r} empty")
        trust = self.stages["trust"]
        if self.stages["ratio"] is None and getattr(trust, "uses_ratio", True):
            raise UsageError(
                f"{card.id}: the trust stage ({describe(trust)}) needs a ratio, and the ratio stage is empty"
            )

    def __repr__(self) -> str:
        return f"Method({self.card.id!r}, {', '.join(f'{k}={v}' for k, v in self.texts().items())})"

    def but(self, card: Card | None = None, **stages: Any) -> Method:
        """This method with some stages replaced; a new card makes it a method of its own, with this one as its base."""
        for slot in stages:
            if slot not in SLOTS:
                raise unknown("stage", slot, SLOTS)
        named = self.card if card is None else replace(card, base=card.base or self.card.id)
        return Method(named, **{**self.stages, **stages})

    def configure(self, settings: dict[str, Any]) -> Method:
        """This method with stages changed by configuration values, as they stand in a run's config.yaml."""
        for slot in settings:
            if slot not in SLOTS:
                raise unknown("stage", slot, SLOTS)
        return self.but(**{slot: build(slot, spec, self.stages.get(slot)) for slot, spec in settings.items()})

    # ---------------------------------------------------------------- the tensor contract

    def prepare(self, b: Trajectories) -> Trajectories:
        """Run score and credit: fills advantage [N, T], and mask, weight, return targets where the links write them."""
        clean = done = b.check().clean()
        for slot in ("score", "credit"):
            for part in self.stages[slot]:
                done = self._run(slot, part, done, lambda p, d: p(d))
        if done.advantage is not None:
            done = done.but(advantage=torch.where(done.valid, done.advantage, 0.0).detach())
        kept = {f.name: getattr(b, f.name) for f in fields(b) if getattr(done, f.name) is getattr(clean, f.name)}
        return done.but(**kept)

    def loss(self, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise and its metrics; differentiable through logp, entropy and value; moves no state."""
        b = b.check().clean()
        reduce = self.stages["reduce"]
        x = None if self.stages["ratio"] is None else self._run("ratio", self.stages["ratio"], b, lambda p, d: p(d))
        s, metrics = self._run("trust", self.stages["trust"], b, lambda p, d: p(x, d))
        total = -reduce(s, b)
        metrics = {"surrogate": -total.detach(), "denominator": b.valid.sum().to(total.dtype), **metrics}
        if x is not None:
            metrics |= ratio_metrics(x.detach(), b)
        for part in self.stages["terms"]:
            value, more = self._run("terms", part, b, lambda p, d: p(d, reduce))
            total, metrics = total + value, {**metrics, **more}
        for part in self.stages["critic"]:
            value, more = self._run("critic", part, b, lambda p, d: p(d))
            total, metrics = total + value, {**metrics, **more}
        return total, {"loss": total.detach(), **metrics}

    def _run(self, slot: str, part: Any, b: Trajectories, call: Callable[[Any, Trajectories], Any]) -> Any:
        try:
            for name in getattr(part, "reads", ()):
                if b.get(name) is None:
                    raise MissingField(name)
            return call(part, b)
        except MissingField as missing:
            text = describe(part)
            raise UsageError(
                f"{self.card.id}: the {slot} stage ({text}) needs the field {missing.field!r}, which the batch does not have"
            ) from None

    # ---------------------------------------------------------------- what a loop has to know

    def reads(self, *slots: str) -> set[str]:
        """Batch fields that the parts of these stages need."""
        return {name for slot in slots for part in self.parts(slot) for name in getattr(part, "reads", ())}

    def parts(self, slot: str) -> list[Any]:
        """The content of a slot as a list."""
        return as_list(slot, self.stages[slot])

    @property
    def level(self) -> Level:
        """What a minibatch must keep together for the objective to be exact."""
        slots = ("ratio", "trust", "reduce", "terms", "critic")
        return max((p.level for slot in slots for p in self.parts(slot)), key=LEVELS.index)

    @property
    def traits(self) -> dict[str, bool]:
        """critic: learns a value. grouped: compares rows of one request. whole: rows must end by themselves.
        reuse: a batch may be used for several epochs."""
        return {
            "critic": bool(self.stages["critic"]),
            "grouped": "group" in self.reads("score", "credit", "trust", "reduce"),
            "whole": not any(getattr(p, "bootstraps", False) for p in self.stages["credit"]),
            "reuse": self.stages["step"].epochs != 1,
        }

    def passes(self) -> list[str]:
        """The forward passes a batch costs, each with what it computes."""
        loss = {"logp"} | self.reads("ratio", "trust", "reduce", "terms", "critic")
        early = self.reads("score", "credit")
        found = [
            f"policy: {', '.join(v for v in ('logp', 'entropy', 'value') if v in loss)} (with gradient, every update)"
        ]
        once = [v for v in ("entropy", "value") if v in early]
        if once:
            found.append(f"policy: {', '.join(once)} (once per batch, free where sampling kept it)")
        if "logp_ref" in loss | early:
            found.append("reference: logp (once per batch)")
        return found

    # ---------------------------------------------------------------- knobs

    def knobs(self) -> Iterator[tuple[str, Knob]]:
        """Every knob with its dotted path, `trust.low`."""
        for slot in SLOTS:
            for i, part in enumerate(self.parts(slot)):
                for f in fields(part):
                    if isinstance(value := getattr(part, f.name), Knob):
                        yield f"{slot}.{i}.{f.name}" if slot in CHAINS else f"{slot}.{f.name}", value

    def update(self, metrics: dict[str, float], progress: float) -> None:
        """Move every knob, from the metrics of the batch just used and the progress of the run in [0, 1]."""
        for _, knob in self.knobs():
            knob.update(metrics, progress)

    def state_dict(self) -> dict[str, Any]:
        return {path: knob.state_dict() for path, knob in self.knobs()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        mine = dict(self.knobs())
        if set(mine) != set(state):
            raise UsageError(
                f"{self.card.id}: the saved state is of another method (knobs {sorted(state)} against {sorted(mine)})"
            )
        for path, knob in mine.items():
            knob.load_state_dict(state[path])

    # ---------------------------------------------------------------- differences

    def texts(self) -> dict[str, list[str]]:
        """Every slot as short texts."""
        return {slot: [describe(p) for p in self.parts(slot)] for slot in SLOTS}

    def diff(self, other: str | Method) -> dict[str, tuple[list[str], list[str]]]:
        """slot -> (the other's parts, this one's), for the slots in which they differ."""
        theirs = (method(other) if isinstance(other, str) else other).texts()
        mine = self.texts()
        return {slot: (theirs[slot], mine[slot]) for slot in SLOTS if theirs[slot] != mine[slot]}

    @property
    def changed(self) -> list[str]:
        """The slots in which this method differs from its base; all of them where it has none."""
        return list(SLOTS) if self.card.base is None else list(self.diff(self.card.base))

    def explain(self) -> str:
        """The method in words: stages with the changed ones marked, equation, source, forward passes, claim."""
        card, changed = self.card, self.changed
        known_as = f"{card.title} ({card.year}{f', arXiv {card.arxiv}' if card.arxiv else ''})"
        base = (
            f"{card.id} = {card.base} with {', '.join(changed)} changed"
            if card.base
            else f"{card.id}: a base of its own"
        )
        lines = [known_as, base, ""]
        for slot, texts in self.texts().items():
            lines.append(f"  {'*' if slot in changed and card.base else ' '} {slot:8} {' -> '.join(texts) or 'none'}")
        lines += ["", f"Equation   {card.equation}", f"Source     {card.source} [{card.confidence}]"]
        lines += [f"Passes     {text}" for text in self.passes()]
        return "\n".join([*lines, f"Claim      {card.claim}"])


def ratio_metrics(x: Tensor, b: Trajectories) -> dict[str, Tensor]:
    """Mean and largest importance ratio, and the divergence from the sampling policy estimated by k3."""
    valid = b.valid if x.ndim == 2 else torch.ones_like(x, dtype=torch.bool)
    r = ratio(x)
    kl = ratio(-x) + x - 1
    return {
        "ratio": masked_mean(r, valid),
        "ratio_max": torch.where(valid, r, 0.0).max(),
        "kl_old": masked_mean(kl, valid),
    }


def _filling(slot: str, content: Any) -> Any:
    """What a slot holds: parts, given as such or by name; a chain is always a tuple."""
    if isinstance(content, str):
        return build(slot, content)
    if slot not in CHAINS:
        if content is None and slot != "ratio":
            raise UsageError(f"the stage {slot!r} needs a part")
        return content
    chain = content if isinstance(content, (list, tuple)) else () if content is None else (content,)
    return tuple(p for item in chain for p in (build(slot, item) if isinstance(item, str) else (item,)))


# -------------------------------------------------------------------- the registry

METHODS: dict[str, Method] = {}


def register(new: Method) -> Method:
    """Make a method known by the id on its card; returns it."""
    if new.card.id in METHODS:
        raise UsageError(f"the method id {new.card.id!r} is taken")
    METHODS[new.card.id] = new
    return new


def load() -> dict[str, Method]:
    """Import every file below anypo/methods, once; returns the registry."""
    package = importlib.import_module("anypo.methods")
    for module in pkgutil.walk_packages(package.__path__, "anypo.methods."):
        importlib.import_module(module.name)
    return METHODS


def methods() -> list[str]:
    """The registered ids."""
    return sorted(load())


def method(name: str, **stages: Any) -> Method:
    """A fresh copy of a registered method, with any stages replaced: `method("grpo", ratio=MinPrefix())`."""
    known = load()
    if name not in known:
        raise unknown("method", name, known)
    found = copy.deepcopy(known[name])
    return found.but(**stages) if stages else found
