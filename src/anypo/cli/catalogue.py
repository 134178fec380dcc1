"""Commands that list and explain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from anypo.cli.app import FREE, AsJson, app, out, read_config
from anypo.cli.completion import complete_task, complete_words


@app.command("methods")
def list_methods(
    family: Annotated[str | None, typer.Option(help="only this family")] = None, as_json: AsJson = False
) -> None:
    """List the methods, and what each changes in its base."""
    cards = [card_of(name) for name in method_ids()]
    families = sorted({card["family"] for card in cards})
    if family is not None and family not in families:
        from anypo.errors import unknown

        raise unknown("family", family, families)
    cards = [card for card in cards if family in (None, card["family"])]
    if as_json:
        typer.echo(json.dumps(cards, indent=2))
        return
    rows = [("METHOD", "YEAR", "BASE", "CLAIM", "CHANGES AND TITLE")]
    for card in sorted(cards, key=lambda c: (c["year"], c["id"])):
        claim = CLAIMS[(card["evidence"] or {}).get("verdict")]
        changed = f"{', '.join(card['changed'])}: " if card["base"] else ""
        source = f"({card['package']}) " if card["package"] else ""
        rows.append((card["id"], str(card["year"]), card["base"] or "", claim, f"{source}{changed}{card['title']}"))
    for line in one_line_each(rows, out.width):
        typer.echo(line)
    typer.echo(
        "CLAIM: whether what its paper claims was seen on small tasks; `anypo explain METHOD` says on which, by how much."
    )


CLAIMS = {"supported": "yes", "mixed": "mixed", "not supported at this scale": "no", None: ""}
"""Verdicts in a list."""


def one_line_each(rows: list[tuple[str, ...]], width: int) -> list[str]:
    """Return rows as lines of aligned columns, of which the last is cut where the terminal ends."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    lines = ["  ".join([*map(str.ljust, row[:-1], widths), row[-1]]) for row in rows]
    return [line if len(line) <= width else f"{line[: width - 1]}…" for line in lines]


def method_ids() -> list[str]:
    """Return the ids of all methods; anypo is imported only here, so that `--help` is fast."""
    import anypo

    return anypo.methods()


def card_of(name: str) -> dict[str, Any]:
    """Return a registered method as plain values."""
    import anypo
    from anypo.evidence.verify import ledger, summarize
    from anypo.method.registry import PACKAGES

    method = anypo.method(name)
    card = method.card
    return {
        "id": card.id,
        "title": card.title,
        "year": card.year,
        "arxiv": card.arxiv,
        "family": card.family,
        "base": card.base,
        "stages": method.texts(),
        "changed": method.changed,
        "evidence": summarize(ledger().get(name, {})),
        "package": PACKAGES.get(name),
    }


@app.command()
def parts(stage: Annotated[str | None, typer.Option(help="only this stage")] = None, as_json: AsJson = False) -> None:
    """List the parts of each stage, and their settings."""
    from dataclasses import MISSING, fields

    from anypo.errors import unknown
    from anypo.parts.registry import load_parts
    from anypo.ranges import describe_range, field_hints
    from anypo.stages import SLOTS

    if stage is not None and stage not in SLOTS:
        raise unknown("stage", stage, SLOTS)
    rows = [
        {
            "stage": slot,
            "part": name,
            "settings": {f.name: None if f.default is MISSING else f.default for f in fields(cls)},
            "takes": {f.name: describe_range(field_hints(cls)[f.name]) for f in fields(cls)},
            "does": (cls.__doc__ or "").strip().split("\n")[0],
        }
        for slot, known in load_parts().items()
        if stage in (None, slot)
        for name, cls in known.items()
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table("stage", "part", "settings", "does")
    for row in rows:
        settings = ", ".join(f"{name}={value} ({row['takes'][name]})" for name, value in row["settings"].items())
        table.add_row(row["stage"], row["part"], settings, row["does"])
    out.print(table)


@app.command("tasks")
def list_tasks(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="list its options", show_default=False, shell_complete=complete_task),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="write the options of all tasks as a Markdown page there")] = None,
) -> None:
    """List tasks, policies and rewards, by the names `train` takes; of a task NAME, all options with what they take and defaults."""
    from anypo.policies import load_policies
    from anypo.tasks import describe_options, find_entry, load_tasks, write_options_page
    from anypo.tasks.text.rewards import describe_rewards

    if report is not None:
        report.write_text(write_options_page())
        return
    if name is not None:
        entry, _ = find_entry(name)
        typer.echo(f"{entry.form}: {entry.about}")
        table = Table("--task.", "takes", "default", "meaning")
        for option in describe_options(entry):
            table.add_row(*map(escape, (option.name, option.takes, option.value, option.about)))
        out.print(table)
        return
    for kind, known in (("task", load_tasks()), ("policy", load_policies())):
        table = Table(kind, "what")
        for entry in known.values():
            table.add_row(entry.form, entry.about)
        out.print(table)
    table = Table("reward", "what")
    for form, about in describe_rewards().items():
        table.add_row(form, about)
    out.print(table)


@app.command(context_settings=FREE)
def explain(
    words: Annotated[
        list[str], typer.Argument(metavar="METHOD [--STAGE part]", show_default=False, shell_complete=complete_words)
    ],
    as_json: AsJson = False,
) -> None:
    """Print a method's stages, the changed ones marked, its equation, source and cost; `--STAGE part` shows what would change."""
    import anypo

    config = read_config(words)
    method = anypo.method(config.method).configure(config.stages)
    if not as_json:
        typer.echo("\n".join((method.explain(), *evidence_lines(config.method))))
        return
    card = method.card
    facts = {"equation": card.equation, "source": card.source, "claim": card.claim, "confidence": card.confidence}
    values = {**card_of(config.method), **facts, "stages": method.texts(), "changed": method.changed}
    typer.echo(json.dumps(values, indent=2))


def evidence_lines(name: str) -> list[str]:
    """Return the ledger's record of a method as lines of text."""
    from anypo.evidence.verify import ledger

    record = ledger().get(name)
    if record is None:
        return ["Evidence   none recorded: anypo verify " + name]
    p = record["properties"]
    lines = [
        f"Properties {p['passed']} of {p['of']} hold on {p['cases']} random batches",
        f"Verdict    {record.get('verdict', 'no claim tested')}",
    ]
    lines += [f"  failed   {sentence}" for sentence in p["failed"]]
    for claim in record["claims"]:
        low, high = claim["interval"]
        lines.append(f"  {claim['verdict']}: {claim['text']}")
        lines.append(
            f"    {claim['experiment']}, {claim['measure']} ({claim['better']} is better) against {claim['against']}: effect"
            f" {claim['effect']:.3g} [{low:.3g}, {high:.3g}], {len(claim['seeds'])} seeds, {claim['seconds']:.0f} s"
        )
    return lines
