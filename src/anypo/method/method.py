"""Method: a named filling of the nine stages, written as a difference from another one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from anypo.errors import MissingField, UsageError, unknown
from anypo.method.card import Card
from anypo.method.filling import fill_slot
from anypo.numbers import Knob
from anypo.parts.ops.log_ratio import importance_ratio
from anypo.parts.ops.masked import masked_mean
from anypo.parts.registry import as_list, build_stage, describe
from anypo.stages import CHAINS, LEVELS, SLOTS, Level
from anypo.types import Comparisons, Trajectories
from anypo.views import ANCHORS, Network, Refresh, View

LOSS = ("critic", "ratio", "trust", "reduce", "terms")
"""The slots that make up the loss."""


class Method:
    """Nine stages and further terms. `prepare` runs score and credit; `loss` is a pure function of the batch.

    Parts may carry knobs; nothing in `prepare` or `loss` moves them, `update` does, after each batch or parameter update.
    later: phases that follow, as (batches after which it begins, the stages that change then).
    """

    def __init__(self, card: Card, later: tuple[tuple[int, dict[str, Any]], ...] = (), **stages: Any) -> None:
        self.card, self.later = card, later
        self.stages: dict[str, Any] = {}
        for slot, content in stages.items():
            if slot not in SLOTS:
                raise unknown("stage", slot, SLOTS)
            self.stages[slot] = fill_slot(slot, content)
        for slot in SLOTS:
            if slot not in self.stages:
                raise UsageError(f"the method {card.id!r} leaves the stage {slot!r} empty")
        trust = self.stages["trust"]
        if self.stages["ratio"] is None and getattr(trust, "uses_ratio", True):
            raise UsageError(
                f"{card.id}: the trust stage ({describe(trust)}) needs a ratio, and the ratio stage is empty"
            )
        reduce = self.stages["reduce"]
        if getattr(trust, "per_group", False) and not getattr(reduce, "per_group", False):
            raise UsageError(
                f"{card.id}: the trust stage ({describe(trust)}) gives one number per group, which the reduce stage"
                f" ({describe(reduce)}) cannot average; use `each`"
            )

    def __repr__(self) -> str:
        return f"Method({self.card.id!r}, {', '.join(f'{k}={v}' for k, v in self.texts().items())})"

    def but(self, card: Card | None = None, **stages: Any) -> Method:
        """This method with some stages replaced; a new card makes it a method of its own, with this one as its base."""
        for slot in stages:
            if slot not in SLOTS:
                raise unknown("stage", slot, SLOTS)
        named = self.card if card is None else replace(card, base=card.base or self.card.id)
        return Method(named, self.later, **{**self.stages, **stages})

    def then(self, after: int, **stages: Any) -> Method:
        """This method for `after` batches, and from then on with some stages replaced."""
        for slot in stages:
            if slot in ("collect", "critic", "step"):
                raise UsageError(
                    f"{self.card.id}: a phase cannot change the stage {slot!r}, whose state lasts the whole run"
                )
        return Method(self.card, (*self.later, (after, stages)), **self.stages)

    def at(self, batch: int) -> Method:
        """The phase that batch number `batch` (from 0) is in."""
        changes = {slot: part for after, stages in self.later if batch >= after for slot, part in stages.items()}
        return Method(self.card, **{**self.stages, **changes}) if changes else self

    def configure(self, settings: dict[str, Any]) -> Method:
        """This method with stages changed by configuration values, as they stand in a run's config.yaml."""
        for slot in settings:
            if slot not in SLOTS:
                raise unknown("stage", slot, SLOTS)
        return self.but(**{slot: build_stage(slot, spec, self.stages.get(slot)) for slot, spec in settings.items()})

    # ---------------------------------------------------------------- the tensor contract

    def prepare(self, b: Trajectories) -> Trajectories:
        """Run score and credit: fills advantage [N, T], and mask, weight, return targets where the links write them."""
        clean = done = mask_expert_scores(b.check().clean())
        for slot, part in self._early():
            done = self._run(slot, part, done, lambda p, d: p(d))
        if done.advantage is not None:
            done = done.but(advantage=torch.where(done.valid, done.advantage, 0.0).detach())
        kept = {f.name: getattr(b, f.name) for f in fields(b) if getattr(done, f.name) is getattr(clean, f.name)}
        return done.but(**kept)

    def loss(self, b: Trajectories | Comparisons) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise and its metrics; differentiable through logp, entropy and value; moves no state."""
        b = b.rows() if isinstance(b, Comparisons) else b
        b = b.check().clean()
        for part in self._late():
            with torch.no_grad():
                after = self._run("credit", part, b, lambda p, d: p(d))
            written = {f.name: new for f in fields(b) if (new := getattr(after, f.name)) is not getattr(b, f.name)}
            b = b.but(**written).clean()
        everything, expert = b, b.get("expert_mask")
        if expert is not None:
            b = b.rows(expert == 0)
        whole = b
        if b.fresh is not None:
            b = b.but(mask=b.valid & (b.fresh != 0)).clean()
        reduce = self.stages["reduce"]
        x, trust = None, self.stages["trust"]
        if self.stages["ratio"] is not None:
            x = self._run("ratio", self.stages["ratio"], b, lambda p, d: p(d))
        if resting(trust):
            total, metrics = torch.zeros(()), {}
        else:
            s, metrics = self._run("trust", trust, b, lambda p, d: p(x, d))
            total = -self._run("reduce", reduce, b, lambda p, d: p(s, d))
            count = total.new_full((), math.prod(b.shape)) if b.mask is None else b.mask.sum().to(total.dtype)
            metrics = {"surrogate": -total.detach(), "denominator": count, **metrics}
        if x is not None and "logp_old" in self.reads("ratio"):
            metrics |= ratio_metrics(x.detach(), b)
        for part in self.stages["terms"]:
            if resting(part):
                continue
            rows = (
                everything.rows(expert != 0) if getattr(part, "rows", "own") == "expert" and expert is not None else b
            )
            value, more = self._run("terms", part, rows, lambda p, d: p(d, reduce))
            total, metrics = total + value, {**metrics, **more}
        for part in self.stages["critic"]:
            value, more = self._run("critic", part, whole, lambda p, d: p(d))
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

    def _early(self) -> Iterator[tuple[str, Any]]:
        """The parts that run once per batch."""
        for slot in ("score", "credit"):
            yield from ((slot, p) for p in self.stages[slot] if getattr(p, "when", "batch") == "batch")

    def _late(self) -> list[Any]:
        """The credit links that run inside every loss."""
        return [p for p in self.stages["credit"] if getattr(p, "when", "batch") == "minibatch"]

    # ---------------------------------------------------------------- what a loop has to know

    def reads(self, *slots: str) -> set[str]:
        """Batch fields that the parts of these stages need."""
        return {name for slot in slots for part in self.parts(slot) for name in getattr(part, "reads", ())}

    def parts(self, slot: str) -> list[Any]:
        """The content of a slot as a list."""
        return as_list(slot, self.stages[slot])

    def declared(self, name: str, parts: list[Any] | None = None) -> dict[str, Any]:
        """What the parts declare under `views`, `live` or `anchors`, together."""
        found = [p for slot in SLOTS for p in self.parts(slot)] if parts is None else parts
        return {key: value for part in found for key, value in getattr(part, name, {}).items()}

    @property
    def heads(self) -> tuple[str, ...]:
        """The value functions it learns as outputs of the policy's critic, and those a part scores rows with."""
        critics = [h for part in self.stages["critic"] for h in getattr(part, "heads", ("value",))]
        return tuple(dict.fromkeys([*critics, *getattr(self.stages["ratio"], "heads", ())]))

    @cached_property
    def networks(self) -> dict[str, Network]:
        """The value functions it learns with networks of their own."""
        return self.declared("networks")

    @property
    def policy(self) -> str | None:
        """The kind of policy for control that some part presumes; None: the task's own."""
        found = (getattr(part, "policy", None) for slot in SLOTS for part in self.parts(slot))
        return next((kind for kind in found if kind is not None), None)

    @cached_property
    def anchors(self) -> dict[str, Refresh]:
        """The frozen copies of the policy that somebody reads, with their refresh rules."""
        rules = ANCHORS | self.declared("anchors")
        views = [*self.views.values(), *self.late_views.values(), *self.live.values()]
        wanted = {view.of for view in views} | {view.draw.of for view in views if view.draw is not None}
        return {name: rule for name, rule in rules.items() if name in wanted}

    @cached_property
    def views(self) -> dict[str, View]:
        """Batch fields filled by forward passes without gradient, once per batch. A head's value or the entropy is free
        where sampling kept it."""
        early = [p for _, p in self._early()]
        plain = {name for p in early for name in getattr(p, "reads", ()) if name in ("entropy", *self.heads)}
        rules = ANCHORS | self.declared("anchors")
        ours = (*early, *(p for slot in LOSS for p in self.parts(slot)))
        read = {name for p in ours for name in getattr(p, "reads", ())}
        anchored = {f"logp_{of}": View("logp", of=of) for of in rules if f"logp_{of}" in read}
        return {name: View(name) for name in sorted(plain)} | anchored | self.declared("views", list(ours))

    @property
    def live(self) -> dict[str, View]:
        """Batch fields that the loss is differentiated through."""
        key = self.switched
        if key not in self._live:
            names = {*self.heads} | (self.reads(*LOSS) & {"logp", "entropy"})
            self._live[key] = {name: View(name) for name in sorted(names)} | self._declared_live()
        return self._live[key]

    @property
    def switched(self) -> tuple[bool, ...]:
        """Which of the parts that may rest are at work."""
        return tuple(float(knob) != 0 for knob in self._switches)

    def _declared_live(self) -> dict[str, View]:
        return self.declared("live", [p for slot in SLOTS for p in self.parts(slot) if not resting(p)])

    @cached_property
    def _switches(self) -> list[Knob]:
        """Coefficients that let their parts rest."""
        found: list[Any] = [getattr(part, "coef", None) for slot in LOSS for part in self.parts(slot)]
        return [knob for knob in found if getattr(knob, "rests", False)]

    @cached_property
    def _live(self) -> dict[tuple[bool, ...], dict[str, View]]:
        return {}

    @cached_property
    def late_views(self) -> dict[str, View]:
        """Batch fields that minibatch links need: filled without gradient before every update."""
        return self.declared("views", self._late())

    @cached_property
    def level(self) -> Level:
        """What a minibatch must keep together for the objective to be exact."""
        found: list[Level] = [p.level for slot in LOSS for p in self.parts(slot)]
        return max([*found, *(p.level for p in self._late())], key=LEVELS.index)

    @property
    def traits(self) -> dict[str, bool]:
        """critic: learns a value. grouped: compares rows of one request. whole: rows must end by themselves.
        reuse: a batch may be used for several epochs. replays: learns from transitions, whoever made them."""
        replays = getattr(self.stages["store"], "replays", False)
        return {
            "critic": bool(self.stages["critic"]),
            "grouped": "group" in self.reads("score", "credit", "trust", "reduce"),
            "whole": not replays and not any(getattr(p, "bootstraps", False) for p in self.stages["credit"]),
            "replays": replays,
            "offline": getattr(self.stages["collect"], "offline", False),
            "reuse": self.stages["step"].epochs != 1,
        }

    def extra_shape(self, name: str) -> tuple[int, ...]:
        """Sizes of a field beyond [row, step] in a made-up batch: members of an ensemble, proposed actions (3 experts), action
        dimensions (2), discrete choices (3)."""
        view = (self.live | self.views).get(name)
        if view is None:
            return ()
        draw, functional = view.draw, view.functional
        proposed = () if draw is None else (3,) if draw.how == "each" else () if draw.count is None else (draw.count,)
        if functional in ("action", "taken", "nearest", "vae"):
            return (*proposed, 2)
        if functional == "routing":
            return (3,)
        spec = self.networks.get(functional.split("_")[0])
        if spec is None or spec.of != "action" or functional.endswith("_kl"):
            return proposed
        return (*proposed, *((3,) if functional.endswith("_all") else ()), spec.ensemble)

    def forward_passes(self) -> list[str]:
        """The forward passes a batch costs, each with what it computes."""

        def told(views: dict[str, View], how: str) -> list[str]:
            together: dict[tuple[Any, ...], list[str]] = {}
            for name, view in views.items():
                key = view.of, view.ablate, view.layer, view.at, view.draw
                together.setdefault(key, []).append(name)
            found = []
            for (of, ablate, layer, at, draw), names in together.items():
                where = "policy" if of == "now" else "reference" if of == "ref" else str(of)
                where += " at the next state" if at == "next" else ""
                where += f" on {draw.count or ''} proposed actions".replace("  ", " ") if draw is not None else ""
                where += f", {100 * ablate:g}% of the input hidden" if ablate else ""
                where += f", read after block {layer}" if layer is not None else ""
                plain = how == "once per batch" and (of, layer, at) == ("now", None, "here")
                free = plain and not (ablate or draw) and set(names) <= {"entropy", *self.heads}
                found.append(f"{where}: {', '.join(names)} ({how}{', free where sampling kept it' * free})")
            return found

        return [
            *told(self.live, "with gradient, every update"),
            *told(self.late_views, "every update"),
            *told(self.views, "once per batch"),
        ]

    # ---------------------------------------------------------------- knobs

    def knobs(self) -> list[tuple[str, Knob]]:
        """Every knob with its dotted path, `trust.low`."""
        return self._knobs

    @cached_property
    def _knobs(self) -> list[tuple[str, Knob]]:
        return list(self._find_knobs())

    def _find_knobs(self) -> Iterator[tuple[str, Knob]]:
        for slot in SLOTS:
            for i, part in enumerate(self.parts(slot)):
                for f in fields(part):
                    if isinstance(value := getattr(part, f.name), Knob):
                        yield f"{slot}.{i}.{f.name}" if slot in CHAINS else f"{slot}.{f.name}", value
        for number, (after, _) in enumerate(self.later, 1):
            mine = set(map(id, (k for _, k in Method(self.card, **self.stages).knobs())))
            yield from ((f"phase{number}.{p}", k) for p, k in self.at(after).knobs() if id(k) not in mine)

    def update(self, every: str, metrics: dict[str, float], progress: float, b: Trajectories) -> None:
        """Move the knobs that move after every batch (or update), from the metrics and rows just used and the progress of
        the run in [0, 1]."""
        for knob in {id(knob): knob for _, knob in self.knobs()}.values():  # one knob may serve several parts
            if knob.every == every:
                knob.update(metrics, progress, b)

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
        found = {slot: [describe(p) for p in self.parts(slot)] for slot in SLOTS}
        for after, stages in self.later:
            phase = self.at(after)
            for slot in stages:
                found[slot] += [f"after {after} batches: {' -> '.join(map(describe, phase.parts(slot))) or 'none'}"]
        return found

    def diff(self, other: str | Method) -> dict[str, tuple[list[str], list[str]]]:
        """slot -> (the other's parts, this one's), for the slots in which they differ."""
        from anypo.method.registry import method  # the registry imports this module

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
        lines += [f"Passes     {text}" for text in self.forward_passes()]
        return "\n".join([*lines, f"Claim      {card.claim}"])


def resting(part: Any) -> bool:
    """Its coefficient is a knob that lets it rest, and stands at 0: the part is skipped, and so is all it would need."""
    coef: Any = getattr(part, "coef", None)
    return getattr(coef, "rests", False) and float(coef) == 0


def mask_expert_scores(b: Trajectories) -> Trajectories:
    """b without outcomes on demonstrations: they are imitated, not compared."""
    expert = b.get("expert_mask")
    if expert is None:
        return b
    expert = expert != 0
    return b.but(
        score=None if b.score is None else torch.where(expert, torch.nan, b.score),
        scores=None if b.scores is None else torch.where(expert.unsqueeze(1), torch.nan, b.scores),
    )


def ratio_metrics(x: Tensor, b: Trajectories) -> dict[str, Tensor]:
    """Mean and largest importance ratio, and the divergence from the sampling policy estimated by k3."""
    mask = b.mask if x.ndim == 2 else None
    r = importance_ratio(x)
    kept = r if mask is None else torch.where(mask, r, 0.0)
    return {
        "ratio": masked_mean(r, mask),
        "ratio_max": kept.max() if kept.numel() else r.new_zeros(()),
        "kl_old": masked_mean(r.reciprocal() + x - 1, mask),
    }
