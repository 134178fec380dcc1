"""Commands about data sets."""

from __future__ import annotations

from typing import Annotated

import typer

from anypo.cli.app import FREE, AsJson, Words, app, out, read_config


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
    from anypo.cli.inputs import read_transitions
    from anypo.cli.procedures import print_result
    from anypo.estimators.dataset import measures

    data, stated = read_transitions(source, env)
    other = None if reference is None else read_transitions(reference, env)[0]
    flags = {name: value for name, value in (("low", low), ("high", high)) if value is not None}
    if len(stated) == 2 and not flags and not stated["high"] > stated["low"]:
        typer.echo(
            f"anypo: no quality: the expert recorded with {source} ({stated['high']:.4g}) is no better than the random policy"
            f" ({stated['low']:.4g}); --low and --high set other returns",
            err=True,
        )
        stated = {}
    print_result(measures(data, reference=other, **{**stated, **flags}), as_json)
