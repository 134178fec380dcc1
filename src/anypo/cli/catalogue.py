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
    """List the methods and what each changes in its base, and the procedures: a method is trained, a procedure is run."""
    cards = [card_of(name) for name in entry_ids()]
    families = sorted({card["family"] for card in cards})
    if family is not None and family not in families:
        from anypo.errors import unknown

        raise unknown("family", family, families)
    cards = [card for card in cards if family in (None, card["family"])]
    if as_json:
        typer.echo(json.dumps(cards, indent=2))
        return
    rows = [("ENTRY", "YEAR", "BASE", "CLAIM", "CHANGES AND TITLE")]
    for card in sorted(cards, key=lambda c: (c["kind"] != "method", c["year"], c["id"])):
        claim = CLAIMS[(card["evidence"] or {}).get("verdict")]
        changed = f"{', '.join(card['changed'])}: " if card["base"] else ""
        marks = [card["kind"]] if card["kind"] != "method" else []
        marks += [card["package"]] if card["package"] else []
        source = f"({', '.join(marks)}) " if marks else ""
        rows.append((card["id"], str(card["year"]), card["base"] or "", claim, f"{source}{changed}{card['title']}"))
    for line in one_line_each(rows, out.width):
        typer.echo(line)
    typer.echo(
        "CLAIM: whether what its paper claims was seen on small tasks; `anypo explain ENTRY` says on which, by how much."
    )


CLAIMS = {"supported": "yes", "mixed": "mixed", "not supported at this scale": "no", None: ""}
"""Verdicts in a list."""


def one_line_each(rows: list[tuple[str, ...]], width: int) -> list[str]:
    """Return rows as lines of aligned columns, of which the last is cut where the terminal ends."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    lines = ["  ".join([*map(str.ljust, row[:-1], widths), row[-1]]) for row in rows]
    return [line if len(line) <= width else f"{line[: width - 1]}…" for line in lines]


def entry_ids() -> list[str]:
    """Return the ids of all methods and procedures; anypo is imported only here, so that `--help` is fast."""
    from anypo.method.registry import entries

    return entries()


def card_of(name: str) -> dict[str, Any]:
    """Return a registered method or procedure as plain values; `call` is the command that trains or runs it."""
    from anypo.evidence.verify import ledger, summarize
    from anypo.method.procedure import Procedure
    from anypo.method.registry import PACKAGES, entry

    registered = entry(name)
    card = registered.card
    if isinstance(registered, Procedure):
        kind, call, stages, changed = registered.kind, registered.usage(), {}, []
    else:
        kind, call, stages, changed = "method", f"anypo train {name}", registered.texts(), registered.changed
    return {
        "id": card.id,
        "kind": kind,
        "title": card.title,
        "year": card.year,
        "arxiv": card.arxiv,
        "family": card.family,
        "system": card.system,
        "base": card.base,
        "call": call,
        "stages": stages,
        "changed": changed,
        "evidence": summarize(ledger().get(card.id, {})),
        "package": PACKAGES.get(name),
    }


@app.command()
def parts(
    stage: Annotated[str | None, typer.Option(help="only this stage, or this kind of piece")] = None,
    as_json: AsJson = False,
) -> None:
    """List the parts of each stage and the pieces that parts are made of, and their settings."""
    from anypo.errors import unknown
    from anypo.parts.registry import load_parts

    known = load_parts()
    if stage is not None and stage not in known:
        raise unknown("stage", stage, known)
    rows = [
        {"stage": kind, "part": name, **describe_settings(cls), "does": (cls.__doc__ or "").strip().split("\n")[0]}
        for kind, classes in known.items()
        if stage in (None, kind)
        for name, cls in classes.items()
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table("stage", "part", "settings", "does")
    for row in rows:
        settings = ", ".join(f"{name}={value} ({row['takes'][name]})" for name, value in row["settings"].items())
        table.add_row(row["stage"], row["part"], settings, row["does"])
    out.print(table)


def describe_settings(cls: type) -> dict[str, dict[str, Any]]:
    """Return the defaults of a part's settings and what they take, pieces as short texts."""
    from dataclasses import MISSING, fields

    from anypo.parts.registry import describe
    from anypo.ranges import describe_range, field_hints
    from anypo.stages import declared

    defaults: dict[str, Any] = {}
    takes: dict[str, str] = {}
    for f in fields(cls):  # pyright: ignore[reportArgumentType]
        default = None if f.default is MISSING else f.default
        piece = f.name in declared(cls, "pieces")
        defaults[f.name] = describe(default) if piece and default not in (None, ()) else default
        takes[f.name] = f"parts of the kind {f.name}" if piece else describe_range(field_hints(cls)[f.name])
    return {"settings": defaults, "takes": takes}


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
        list[str],
        typer.Argument(
            metavar="METHOD [--STAGE part] | PROCEDURE | SYSTEM", show_default=False, shell_complete=complete_words
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Print a method's stages, the changed ones marked, its equation, source and cost; `--STAGE part` shows what would change.

    Of a procedure, its inputs, flags and known answers; of a SYSTEM, a paper with several entries, all of them.
    """
    from anypo.errors import UsageError
    from anypo.method.procedure import Procedure
    from anypo.method.registry import entry, system

    config = read_config(words)
    members = system(config.method)
    explained = [entry(name) for name in members or [config.method]]
    if config.stages:
        if members or isinstance(explained[0], Procedure):
            raise UsageError(f"{config.method} is no method, so it has no stages to replace")
        explained = [explained[0].configure(config.stages)]
    if as_json:
        values = [facts_of(name, one) for name, one in zip(members or [config.method], explained, strict=True)]
        typer.echo(json.dumps(values if members else values[0], indent=2))
        return
    texts = ["\n".join((one.explain(), *evidence_lines(one))) for one in explained]
    head = [f"{config.method}: {', '.join(members)}"] if members else []
    typer.echo("\n\n".join([*head, *texts]))


def facts_of(name: str, explained: Any) -> dict[str, Any]:
    """Return an entry as plain values, with its equation, source and claim, and its stages as they are configured."""
    from anypo.method.procedure import Procedure, describe_check

    card = explained.card
    facts = {"equation": card.equation, "source": card.source, "claim": card.claim, "confidence": card.confidence}
    if isinstance(explained, Procedure):
        return {**card_of(name), **facts, "known": [describe_check(check) for check in explained.known]}
    return {**card_of(name), **facts, "stages": explained.texts(), "changed": explained.changed}


def evidence_lines(explained: Any) -> list[str]:
    """Return the ledger's record of an entry as lines of text."""
    from anypo.evidence.verify import ledger, opponent
    from anypo.method.procedure import Procedure

    name = explained.card.id
    record = ledger().get(name)
    if record is None:
        return ["Evidence   none recorded: anypo verify " + name]
    p = record["properties"]
    hold = "known answers hold" if isinstance(explained, Procedure) else f"hold on {p['cases']} random batches"
    lines = [f"Properties {p['passed']} of {p['of']} {hold}", f"Verdict    {record.get('verdict', 'no claim tested')}"]
    lines += [f"  failed   {sentence}" for sentence in p["failed"]]
    for claim in record["claims"]:
        low, high = claim["interval"]
        lines.append(f"  {claim['verdict']}: {claim['text']}")
        lines.append(
            f"    {claim['experiment']}, {claim['measure']} ({claim['better']} is better) against {opponent(claim)}: effect"
            f" {claim['effect']:.3g} [{low:.3g}, {high:.3g}], {len(claim['seeds'])} seeds, {claim['seconds']:.0f} s"
        )
    return lines
