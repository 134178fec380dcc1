"""Commands about data sets."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from anypo.cli.app import FREE, AsJson, Words, app, out, read_config
from anypo.errors import UsageError


@app.command("collect", context_settings=FREE, no_args_is_help=True)
def collect_data(
    words: Words,
    out_: Annotated[str, typer.Option("--out", help="namespace of the data sets, OUT/QUALITY-v0")],
    quality: Annotated[
        str, typer.Option(help="random, medium, expert, mixed, medium-expert, noisy; several with commas")
    ] = "mixed",
    number: Annotated[int, typer.Option("--number", min=1, help="episodes per data set")] = 100,
) -> None:
    """Train METHOD on a Gymnasium task and record its policies as Minari data sets; further flags are those of `train`.

    The last line names the data sets. Example: `anypo collect sac --task gym:Pendulum-v1 --quality mixed,expert --out pendulum`
    """
    from anypo.errors import unknown
    from anypo.loops.record_datasets import QUALITIES, record_datasets
    from anypo.report.console import progress
    from anypo.runs.build import build

    qualities = [name.strip() for name in quality.split(",")]
    for name in qualities:
        if name not in QUALITIES:
            raise unknown("quality", name, QUALITIES)
    run = build(read_config(words))
    with progress(run, out) as watch:
        means = record_datasets(run, qualities, number, out_, watch)
    typer.echo(", ".join(f"minari:{name} (mean return {mean:.4g})" for name, mean in means.items()))


@app.command("describe")
def describe_data(
    source: Annotated[
        str, typer.Argument(metavar="DATASET", help="minari:ID, or an .npz or .parquet file", show_default=False)
    ],
    env: Annotated[str | None, typer.Option(help="its environment, where the data do not name it")] = None,
    reference: Annotated[
        str | None, typer.Option(help="replayed experience that coverage (SACo) is relative to")
    ] = None,
    low: Annotated[float | None, typer.Option(help="return of a random policy")] = None,
    high: Annotated[float | None, typer.Option(help="return of an expert")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a data set: returns, quality (TQ), coverage (SACo), entropy, and the gain possible by reweighting trajectories.

    The quality is relative to the returns of a random and of an expert policy, which are printed with it.
    """
    from anypo.estimators.dataset import measures
    from anypo.tasks.control.offline import Dataset, read_table

    def load_table(text: str) -> Dataset:
        data = read_table(text)
        name = env or data.get("env")
        if name is None:
            raise UsageError(f"{text} does not name its environment; give --env ENV_ID")
        return Dataset(text, data, name, envs=1)

    data = load_table(source)
    other = None if reference is None else load_table(reference).numbers()
    recorded = low is None and high is None
    low, high = data.low if low is None else low, data.high if high is None else high
    if recorded and low is not None and high is not None and not high > low:
        typer.echo(
            f"anypo: no quality: the expert recorded with {source} ({high:.4g}) is no better than the random policy ({low:.4g});"
            " --low and --high set other returns",
            err=True,
        )
        low = high = None
    figures = measures(data.numbers(), low, high, other)
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
        return
    table = Table("measure", "value")
    for name, value in figures.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else f"{value:.4g}")
    out.print(table)
