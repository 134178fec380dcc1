"""The command that compares methods."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anypo.cli.app import FREE, app, out
from anypo.cli.completion import complete_words


@app.command("compare", context_settings=FREE)
def compare_methods(
    words: Annotated[
        list[str], typer.Argument(metavar="METHOD... [FLAGS]", show_default=False, shell_complete=complete_words)
    ],
    seeds: Annotated[int, typer.Option(min=1, help="seeds 0 to K-1, the same for every method")] = 3,
    jobs: Annotated[int, typer.Option(min=1, help="runs at once")] = 1,
    folder: Annotated[Path | None, typer.Option("--out", help="folder (default runs/compare-TASK)")] = None,
    match_gain: Annotated[
        bool, typer.Option("--match-gain", help="scale learning rates so that no method wins by larger steps")
    ] = False,
) -> None:
    """Train several methods with the same seeds and say which is better, with intervals; finished runs are not repeated.

    They are ranked by the task's own measure, or by `--metric NAME`.

    Takes the flags of `anypo train`. A method may have some of its own: `anypo compare ppo ppo:trust.high=0.3,compile=on`.
    Writes table.json and learning-curve.png.
    """
    from anypo.flags import parse_flags
    from anypo.report.compare import comparison_note, comparison_table, run_comparison

    names, flags = parse_flags(words)
    try:
        table = run_comparison(
            names, flags, seeds=seeds, jobs=jobs, folder=folder, match_gain=match_gain, say=typer.echo
        )
    except KeyboardInterrupt:
        typer.echo("anypo: interrupted; the same command continues where this one stopped", err=True)
        raise typer.Exit(130) from None
    out.print(comparison_table(table), soft_wrap=False)
    typer.echo(comparison_note(table))
    typer.echo(table["folder"])
