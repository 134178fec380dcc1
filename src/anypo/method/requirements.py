"""What a filling needs of a loop: fields, forward passes, networks, frozen copies, rows that stay together."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from anypo.method.filling import LOSS, Filling, merge_declared
from anypo.networks import outputs_of
from anypo.stages import LEVELS, SLOTS, Level, declared
from anypo.views import ANCHORS, FUNCTIONALS, SIZES, Functional, Network, Refresh, View


class Requirements(Filling):
    """A filling and what follows from the declarations of its parts."""

    @property
    def heads(self) -> tuple[str, ...]:
        """The value functions it learns as outputs of the policy's critic, and those a part scores rows with."""
        critics = (declared(part, "heads") for part in self.parts("critic"))
        learned = [name for names in critics for name in (("value",) if names is None else names)]
        return tuple(dict.fromkeys([*learned, *(declared(self.stages["ratio"], "heads") or ())]))

    @cached_property
    def networks(self) -> dict[str, Network]:
        """The networks it learns beside the policy."""
        return merge_declared(self.parts(*SLOTS), "networks")

    @property
    def policy(self) -> str | None:
        """The kind of policy for control that some part presumes; None: the task's own."""
        kinds = (declared(part, "policy") for part in self.parts(*SLOTS))
        return next((kind for kind in kinds if kind is not None), None)

    @cached_property
    def policy_options(self) -> dict[str, Any]:
        """Options of that kind of policy, where a run leaves them open."""
        return merge_declared(self.parts(*SLOTS), "policy_options")

    @cached_property
    def anchors(self) -> dict[str, Refresh]:
        """The frozen copies of the policy that a view reads, with their refresh rules."""
        views = [*self.views.values(), *self.late_views.values(), *self.live.values()]
        read = {view.of for view in views} | {view.draw.of for view in views if view.draw is not None}
        return {name: rule for name, rule in self._rules.items() if name in read}

    @cached_property
    def _rules(self) -> dict[str, Refresh]:
        return ANCHORS | merge_declared(self.parts(*SLOTS), "anchors")

    @cached_property
    def viewed(self) -> set[str]:
        """What the parts read when the views were computed: a part whose coefficient is 0 may read less than later."""
        return self.reads(*SLOTS)

    @cached_property
    def views(self) -> dict[str, View]:
        """Batch fields filled by forward passes without gradient, once per batch. A head's value or the entropy is free
        where sampling kept it."""
        early = [part for _, part in self.batch_links()]
        parts = [*early, *self.parts(*LOSS)]
        plain = {name for part in early for name in declared(part, "reads") if name in ("entropy", *self.heads)}
        read = {name for part in parts for name in declared(part, "reads")} & self.viewed
        shown = merge_declared(self.parts("ratio"), "live").get("logp", View()).input
        anchored = {f"logp_{of}": View("logp", of=of, input=shown) for of in self._rules if f"logp_{of}" in read}
        return {name: View(name) for name in sorted(plain)} | anchored | merge_declared(parts, "views")

    @cached_property
    def late_views(self) -> dict[str, View]:
        """Batch fields that minibatch links need: filled without gradient before every update."""
        return merge_declared(self.minibatch_links(), "views")

    @property
    def live(self) -> dict[str, View]:
        """Batch fields that the loss is differentiated through, while the parts are on that are on now."""
        key = self.switched
        if key not in self._live:
            names = {*self.heads} | (self.reads(*LOSS) & {"logp", "entropy"})
            parts = [part for part in self.parts(*SLOTS) if not self.is_off(part)]
            self._live[key] = {name: View(name) for name in sorted(names)} | merge_declared(parts, "live")
        return self._live[key]

    @cached_property
    def _live(self) -> dict[tuple[bool, ...], dict[str, View]]:
        return {}

    @cached_property
    def level(self) -> Level:
        """What a minibatch must keep together for the objective to be exact."""
        return max(
            (declared(part, "level") for part in [*self.parts(*LOSS), *self.minibatch_links()]), key=LEVELS.index
        )

    @property
    def traits(self) -> dict[str, bool]:
        """critic: learns a value. grouped: compares rows of one request. whole: rows must end by themselves.
        reuse: a batch may be used for several epochs. replays: learns from transitions of any policy.
        offline: collects nothing. imitates: learns from demonstrations alone, samples nothing."""
        replays = declared(self.stages["store"], "replays")
        return {
            "critic": bool(self.stages["critic"]),
            "grouped": "group" in self.reads("score", "credit", "trust", "reduce"),
            "whole": not replays and not any(declared(part, "bootstraps") for part in self.stages["credit"]),
            "replays": replays,
            "offline": declared(self.stages["collect"], "offline"),
            "imitates": declared(self.stages["collect"], "rows") == "expert",
            "reuse": self.stages["step"].epochs != 1,
        }

    def functional(self, name: str) -> Functional:
        """Return what the field `name` of an example batch holds, with sizes: the functional of its view, of proposed actions
        (3 experts) where it has a draw; one number where no view fills it."""
        view = (self.live | self.views | self.late_views).get(name)
        return Functional(name) if view is None else example_of(name, view, self.networks)


def example_of(name: str, view: View, networks: Mapping[str, Network]) -> Functional:
    """Return what a view gives in an example batch, with sizes.

    Args:
        name: of the field.
        view: that fills it.
        networks: whose outputs it may read.
    """
    functional = (FUNCTIONALS | outputs_of(networks)).get(view.functional, Functional(view.functional))
    draw = view.draw
    proposed = () if draw is None else (SIZES["expert"],) if draw.how == "each" else (draw.count,) if draw.count else ()
    return Functional(name, (*proposed, *functional.sizes()), functional.positive)
