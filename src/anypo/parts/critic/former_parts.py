"""The critic parts of former versions, one per algorithm, as heads: their names and settings still work and say how they are written
now."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from anypo.errors import UsageError
from anypo.parts.ops.names import kebab
from anypo.parts.registry import REWRITES

IMPLICIT = {"norm": "norm"}
FORMER: dict[str, tuple[str, dict[str, str], dict[str, Any]]] = {
    "td": (
        "action-value",
        {
            "next": "next.part",
            "noise": "next.noise",
            "clip": "next.clip",
            "gamma": "backup.gamma",
            "alpha": "backup.alpha",
            "subset": "aggregate.size",
            "clock": "aggregate.clock",
            "huber": "regress.delta",
        }
        | {name: name for name in ("ensemble", "norm", "tau", "every")},
        {},
    ),
    "gaussian-td": (
        "action-value",
        {"gamma": "backup.gamma", "alpha": "backup.alpha", "tau": "tau", "every": "every"}
        | {name: f"regress.{name}" for name in ("mean1", "mean2", "rate", "eps", "substitute")},
        {
            "next": {"part": "policy-sample", "of": "target"},
            "backup": {"part": "soft-backup"},
            "regress": {"part": "gaussian-return"},
        },
    ),
    "expectile": ("state-value", IMPLICIT | {"t": "regress.t"}, {"regress": {"part": "expectile"}}),
    "gumbel": (
        "state-value",
        IMPLICIT | {name: f"regress.{name}" for name in ("beta", "clip", "scaled")},
        {"regress": {"part": "gumbel"}},
    ),
    "dual-value": (
        "state-value",
        IMPLICIT | {name: f"regress.{name}" for name in ("lam", "f_divergence")},
        {"regress": {"part": "dual-value"}},
    ),
    "policy-value": (
        "state-value",
        {"gamma": "backup.gamma", "noise": "next.noise", "clip": "next.clip"},
        {
            "next": {"part": "target-action", "by": "both", "head": "q", "noise": 0.2, "clip": 0.5},
            "backup": {"part": "one-step"},
            "regress": {"part": "squared", "coef": 1.0},
        },
    ),
    "conservative": (
        "action-value",
        {name: f"penalties.conservative.{name}" for name in ("alpha", "draws", "temperature")},
        {},
    ),
}
"""By former name: the head, where each setting is now, and the pieces of a new one."""

NEXT = {
    "policy": "policy-sample",
    "target": "target-action",
    "value": "next-state",
    "max": "greedy-action",
    "double": "double-greedy-action",
}


class FormerParts:
    """Writes former parts as heads, with a warning for each."""

    def links(self, specs: list[Any]) -> list[Any]:
        """Return the chain with its former parts as heads."""
        chain: list[Any] = []
        for spec in specs:
            spec = {"part": spec} if isinstance(spec, str) else spec
            name = str(spec.get("part")) if isinstance(spec, dict) else ""
            if name not in FORMER:
                chain.append(spec)
                continue
            part, _, pieces = FORMER[name]
            settings = {key: value for key, value in spec.items() if key != "part"}
            if name != "conservative":
                chain.append({"part": part, **merge_pieces(pieces, rewrite(name, settings))})
                _warn(f"the critic part {name!r} is the head {part!r} now")
                continue
            heads = [link for link in chain if isinstance(link, dict) and link.get("part") == part]
            if not heads:
                raise UsageError("the critic part 'conservative' is a penalty of a head: `critic.q.penalties`")
            heads[-1].setdefault("penalties", []).append({"part": name, **settings})
            _warn("the critic part 'conservative' is a penalty of the head before it now, critic.q.penalties")
        return chain

    def changes(self, settings: dict[Any, Any], chain: Sequence[Any]) -> dict[Any, Any]:
        """Return changes to links with the settings of former parts in their present places."""
        changed: dict[str, Any] = {}
        kinds = [kebab(type(link).__name__) for link in chain]
        for key, value in settings.items():
            name, at = str(key), 0
            if isinstance(value, dict) and name in FORMER and FORMER[name][0] in kinds:
                at = kinds.index(FORMER[name][0])
            elif isinstance(value, dict) and name == "0" and kinds[:1] == ["action-value"]:
                name = "td"
            elif kinds == ["action-value"] and name in FORMER["td"][1]:
                name, value = "td", {name: value}
            else:
                changed[key] = value
                continue
            spec = rewrite(name, value, chain[at])
            changed[str(at)] = merge_pieces(changed.get(str(at), {}), spec)
        return changed


REWRITES["critic"] = FormerParts()


def rewrite(name: str, settings: dict[str, Any], head: Any = None) -> dict[str, Any]:
    """Return settings of a head in the places of those of a former part; those it did not have stay.

    Args:
        name: of the former part.
        settings: of the former part.
        head: the head they change.
    """
    part, places, _ = FORMER[name]
    former: dict[str, Any] = {}
    spec: dict[str, Any] = {}
    for key, value in settings.items():
        if places.get(key, key) == key or (key == "next" and str(value) not in NEXT):
            spec[key] = value
            continue
        former[key] = value
        *pieces, last = places[key].split(".")
        inner = spec
        for piece in pieces:
            inner = inner.setdefault(piece, {})
        inner[last] = value
        now = f"critic.{'q' if part == 'action-value' else 'v'}.{places[key].removesuffix('.part')}"
        _warn(f"the setting critic.{name}.{key} is {now} now")
    return _choose_pieces(spec, former, head) if name == "td" else spec


def _choose_pieces(spec: dict[str, Any], former: dict[str, Any], head: Any) -> dict[str, Any]:
    """Name the pieces that settings of `td` implied."""
    if (ahead := former.get("next")) is not None:
        spec["next"] = {**(spec["next"] if ahead == "target" else {}), "part": NEXT[ahead]}
    if ahead not in (None, "policy") or former.get("alpha") == 0:
        spec.setdefault("backup", {}).pop("alpha", None)
        spec["backup"]["part"] = "one-step"
    elif "alpha" in former:
        spec["backup"]["part"] = "soft-backup"
    if "part" in spec.get("backup", {}) and head is not None:
        spec["backup"].setdefault("gamma", head.backup.gamma)
    if "huber" in former:
        spec["regress"] = "squared" if former["huber"] is None else {**spec["regress"], "part": "huber"}
    if "subset" in former or "clock" in former:
        whole = "subset" in former and former["subset"] is None
        spec["aggregate"] = "ensemble-min" if whole else {**spec["aggregate"], "part": "random-subset"}
    return spec


def merge_pieces(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Lay the settings of a head over others, piece by piece."""
    both = {
        key: {**one[key], **other[key]}
        for key in one
        if isinstance(one[key], dict) and isinstance(other.get(key), dict)
    }
    return {**one, **other, **both}


def _warn(sentence: str) -> None:
    warnings.warn(sentence, stacklevel=3)
