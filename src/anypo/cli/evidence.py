"""Commands about evidence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from anypo.cli.app import FREE, AsJson, app, out, read_config
from anypo.cli.catalogue import entry_ids
from anypo.cli.completion import complete_method, complete_words
from anypo.errors import UsageError


@app.command()
def verify(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="METHOD|PROCEDURE...", show_default=False, shell_complete=complete_method),
    ] = None,
    family: Annotated[str | None, typer.Option(help="every entry of a family")] = None,
    everything: Annotated[bool, typer.Option("--all", help="every method and procedure")] = False,
    quick: Annotated[bool, typer.Option(help="properties, and experiments under about five seconds only")] = False,
    seeds: Annotated[str, typer.Option(help="a number of seeds, or a range such as 10-19")] = "10",
    jobs: Annotated[int, typer.Option(min=1, help="entries at once")] = 1,
    keep: Annotated[bool, typer.Option("--record", help="write the records into the ledger")] = False,
    path: Annotated[
        Path | None, typer.Option("--ledger", help="where the ledger is written (default: the package's)")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="run nothing; write the ledger as a Markdown table there")] = None,
) -> None:
    """Check a method's properties, or a procedure's known answers, and test the claims: effect, 95% interval over paired seeds, verdict.

    A claim is supported if the interval lies above 0, not supported at this scale if the mean is not above 0, else mixed.
    Ends with exit code 1 if a property fails; a verdict is never an error.
    """
    from anypo.evidence.verify import LEDGER, examine_all, markdown, opponent, record_verdicts

    if report is not None:
        report.write_text(markdown())
        return
    chosen = names_to_verify(names or [], family, everything)
    if keep and quick:
        raise UsageError("--record writes whole records; leave --quick out")
    failed, verdicts, records = 0, {}, {}
    for name, record in examine_all(chosen, seed_range(seeds), quick, jobs):
        p = record["properties"]
        failed += len(p["failed"])
        typer.echo(f"{name}: {p['passed']} of {p['of']} properties in {p['cases']} cases, {record['seconds']:.0f} s")
        for sentence in p["failed"]:
            typer.echo(f"  FAILED {sentence}")
        for claim in record["claims"]:
            low, high = claim["interval"]
            typer.echo(
                f"  {claim['verdict']}: {claim['text']} ({claim['experiment']}/{claim['measure']} against {opponent(claim)}:"
                f" {claim['effect']:.3g} [{low:.3g}, {high:.3g}], {len(claim['seeds'])} seeds, {claim['seconds']:.0f} s)"
            )
        if "verdict" in record:
            verdicts[record["verdict"]] = verdicts.get(record["verdict"], 0) + 1
        records[name] = record
        if keep:
            record_verdicts(path or LEDGER, {name: record})
    counts = ", ".join(f"{count} {name}" for name, count in sorted(verdicts.items())) or "no claim tested"
    typer.echo(f"{len(records)} entries: {failed} properties failed; {counts}")
    if failed:
        raise typer.Exit(1)


def names_to_verify(names: list[str], family: str | None, everything: bool) -> list[str]:
    """Return the names of the entries to verify.

    Args:
        names: ids of methods and procedures, or FILE.py:NAME.
        family: every entry of that family.
        everything: every entry.

    Raises:
        UsageError: unless exactly one of the three selects, by a known name.
    """
    from anypo.errors import unknown
    from anypo.method.registry import entry

    if sum((bool(names), family is not None, everything)) != 1:
        raise UsageError("name methods or procedures, or give --family F, or --all")
    if names:
        return names
    cards = {name: entry(name).card for name in entry_ids()}
    families = sorted({card.family for card in cards.values()})
    if family is not None and family not in families:
        raise unknown("family", family, families)
    return [name for name, card in cards.items() if everything or card.family == family]


def seed_range(text: str) -> list[int]:
    """Parse `5` as seeds 0 to 4, `10-19` as these ten."""
    low, dash, high = text.partition("-")
    if not low.isdigit() or (dash and not high.isdigit()):
        raise UsageError(f"--seeds takes a number or a range such as 10-19, not {text!r}")
    seeds = list(range(int(low), int(high) + 1)) if dash else list(range(int(low)))
    if not seeds:
        raise UsageError(f"--seeds {text} names no seed")
    if len(seeds) == 1:
        raise UsageError(f"--seeds {text} names one seed, which gives no interval; name two or more")
    return seeds


@app.command("check")
def check_name(
    name: Annotated[str, typer.Argument(metavar="FILE.py:NAME", help="what is checked", show_default=False)],
) -> None:
    """Try a method, procedure, part, reward, environment, task or policy of a file, and say what is missing; then the exit code is 1.

    Example: `anypo check mine.py:Coins`
    """
    from anypo.evidence.check import check_object

    findings = check_object(name)
    typer.echo(f"{name}: a {findings.kind}" if findings.kind != "environment" else f"{name}: an environment")
    for sentence in findings.holds:
        typer.echo(f"  {sentence}")
    for sentence in findings.missing:
        typer.echo(f"  MISSING {sentence}")
    if findings.missing:
        raise typer.Exit(1)


@app.command(context_settings=FREE)
def microscope(
    words: Annotated[
        list[str], typer.Argument(metavar="METHOD [--STAGE part]", show_default=False, shell_complete=complete_words)
    ],
    png: Annotated[Path | None, typer.Option("--png", help="picture of the weight curve")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a method's gradient: weight over ratio, on-policy gain, bias on an enumerable problem, dead terms."""
    from dataclasses import asdict

    import anypo
    from anypo.evidence.microscope import measure_gradient, plot_weights

    config = read_config(words)
    reading = measure_gradient(anypo.method(config.method).configure(config.stages))
    if png is not None and reading.curve:
        plot_weights(reading, config.method, png)
    if as_json:
        typer.echo(json.dumps(asdict(reading), indent=2))
        return
    if reading.gain is None:
        typer.echo("weight and gain: none, the policy does not learn from the advantage of its log-probabilities")
    else:
        table = Table("log ratio", "W (A = +1)", "W (A = -1)")
        for x, up, down in reading.curve:
            table.add_row(f"{x:+.2f}", f"{up:.3f}", f"{down:.3f}")
        out.print(table)
        typer.echo(f"on-policy gain {reading.gain:.3f} (plain REINFORCE with the same advantages and mean is 1)")
    if reading.quality is None:
        typer.echo(
            "gradient on enumerable sequences: not measured, the method reads fields that a table of logits does not have"
        )
    else:
        q = reading.quality
        typer.echo(
            f"gradient on enumerable sequences: cosine {q['cosine']:.3f} per batch, bias {q['bias']:.3f} (sine of the angle of the"
            f" mean), variance {q['variance']:.2f}"
        )
    for name in reading.idle:
        typer.echo(f"switched off (coefficient 0): {name}")
    for name in reading.dead:
        typer.echo(f"DEAD: {name} contributes no gradient")
    if not reading.dead:
        typer.echo("no dead term")
