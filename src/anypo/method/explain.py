"""A method in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anypo.parts.registry import describe
from anypo.stages import SLOTS
from anypo.views import View

if TYPE_CHECKING:
    from anypo.method.method import Method
    from anypo.method.requirements import Requirements


def slot_texts(method: Method) -> dict[str, list[str]]:
    """Describe every slot, the changes of later phases included."""
    texts = {slot: [describe(part) for part in method.parts(slot)] for slot in SLOTS}
    for phase, filled in zip(method.later, method.phases[1:], strict=True):
        for slot in phase.stages:
            texts[slot] += [f"{phase.text()}: {' -> '.join(map(describe, filled.parts(slot))) or 'none'}"]
    return texts


def forward_passes(method: Requirements) -> list[str]:
    """List the forward passes a batch costs, each with what it computes."""
    return [
        *_passes(method.live, "with gradient, every update"),
        *_passes(method.late_views, "every update"),
        *_passes(method.views, "once per batch", kept=("entropy", *method.heads)),
    ]


def _passes(views: dict[str, View], how: str, kept: tuple[str, ...] = ()) -> list[str]:
    """One line per pass; those that only compute what sampling keeps are marked."""
    shared: dict[tuple[Any, ...], list[str]] = {}
    for name, view in views.items():
        key = (view.of, view.ablate, view.layer, view.at, view.draw, view.input, view.temperature)
        shared.setdefault(key, []).append(name)
    lines = []
    for (of, ablate, layer, at, draw, shown, temperature), names in shared.items():
        where = "policy" if of == "now" else "reference" if of == "ref" else str(of)
        where += " at the next state" if at == "next" else ""
        where += f" on {draw.count or ''} proposed actions".replace("  ", " ") if draw is not None else ""
        where += f", {100 * ablate:g}% of the input hidden" if ablate else ""
        where += f", read after block {layer}" if layer is not None else ""
        where += f", given the input {shown!r}" if shown else ""
        where += f", at temperature {temperature:g}" if temperature else ""
        free = where == "policy" and set(names) <= set(kept)
        lines.append(f"{where}: {', '.join(names)} ({how}{', free where sampling kept it' * free})")
    return lines


def explanation(method: Method) -> str:
    """Render title, stages with the changed ones marked, equation, source, forward passes and claim."""
    card, changed = method.card, method.changed
    title = f"{card.title} ({card.year}{f', arXiv {card.arxiv}' if card.arxiv else ''})"
    base = (
        f"{card.id} = {card.base} with {', '.join(changed)} changed" if card.base else f"{card.id}: a base of its own"
    )
    lines = [title, base, ""]
    for slot, texts in method.texts().items():
        lines.append(f"  {'*' if slot in changed and card.base else ' '} {slot:8} {' -> '.join(texts) or 'none'}")
    lines += ["", f"Equation   {card.equation}", f"Source     {card.source} [{card.confidence}]"]
    lines += [f"Passes     {text}" for text in method.forward_passes()]
    return "\n".join([*lines, f"Claim      {card.claim}"])
