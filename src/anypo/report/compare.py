"""Comparison of methods on equal seeds: interquartile means, intervals, probability of improvement, learning curves.

Source: Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice", arXiv 2108.13264,
through rliable.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Column, Table

from anypo import tasks
from anypo.config import from_dict, merge
from anypo.errors import UsageError, unknown
from anypo.evidence.microscope import gain
from anypo.flags import parse_flags
from anypo.loops.learn import learn
from anypo.method.registry import method as find_method
from anypo.report.console import finish, records, result_of
from anypo.runs.claim import CONFIG, file_name
from anypo.runs.folder import continue_run, create
from anypo.runs.settings import recommend

RESAMPLES = 5000
"""Bootstrap resamples of every interval."""


def run_comparison(
    names: Sequence[str],
    flags: dict[str, Any],
    *,
    seeds: int,
    jobs: int,
    folder: Path | None,
    match_gain: bool = False,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Run every method with seeds 0..seeds-1, unless it has run here already; write table.json and learning-curve.png.

    Args:
        names: ids of methods, which may have settings of their own, `ppo:trust.high=0.3,compile=on`.
        flags: settings of all runs.
        seeds: runs per method.
        jobs: runs at once.
        folder: of the runs and of what is written (default runs/compare-TASK).
        match_gain: scale learning rates by gain(first method) / gain(method), the lengths of their on-policy gradients.
        say: takes one line of text per finished run.

    Returns:
        The content of table.json.
    """
    if not names or len(set(names)) < len(names):
        raise UsageError("name the methods to compare, each once")
    require_packages()
    settings = {name: settings_of(name, flags) for name in names}
    for values in settings.values():
        find_method(values["method"]).configure(from_dict(values).stages)
    if len({values.get("metric") for values in settings.values()}) > 1:
        raise UsageError("methods are compared by one measure; give --metric for all of them")
    task = from_dict(flags).task["name"]
    folder = folder or Path("runs") / f"compare-{file_name(task)}"
    folders = {name: [folder / f"{file_name(name)}-{seed}" for seed in range(seeds)] for name in names}
    work = [(name, seed, folders[name][seed]) for seed in range(seeds) for name in names]
    run = partial(train_one, settings=match_first_steps(settings) if match_gain else settings)
    if jobs == 1:
        results = map(run, work)
    else:
        results = ProcessPoolExecutor(jobs, mp_context=get_context("spawn")).map(run, work)
    metric, unit = flags.get("metric"), ""
    for (name, seed, where), result in zip(work, results, strict=True):
        metric, unit = metric or result["metric"], result["unit"]
        curve = measured_curve(where, metric)
        say(f"{name} seed {seed}: {metric} {curve[0][1]:.4g} -> {curve[-1][1]:.4g}")
    curves = {name: [measured_curve(where, str(metric)) for where in folders[name]] for name in names}
    rows = statistics({name: np.array([curve[-1][1] for curve in several]) for name, several in curves.items()})
    plot_curves(curves, str(metric), unit, folder / "learning-curve.png")
    table = {"folder": str(folder), "task": task, "metric": metric, "flags": flags, "methods": rows}
    (folder / "table.json").write_text(json.dumps(table, indent=1) + "\n")
    return table


def require_packages() -> None:
    """Refuse before anything is trained where what compares is not installed."""
    missing = [name for name in ("rliable", "matplotlib") if find_spec(name) is None]
    if missing:
        raise UsageError(f'compare needs {" and ".join(missing)}; run `pip install "anypo[report]"`')


def settings_of(name: str, flags: dict[str, Any]) -> dict[str, Any]:
    """Return the flags, overridden by the settings behind a method's id or FILE.py:NAME."""
    file, colon, rest = name.partition(".py:")
    method, _, text = rest.partition(":") if colon else name.partition(":")
    values = parse_flags([f"--{setting}" for setting in text.split(",")])[1] if text else {}
    method = file + colon + method if colon else method
    return merge(flags, values, {"method": method})


def match_first_steps(settings: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Replace learning rates by lr * gain(first method) / gain(method), so that all first steps are equally long."""
    rates: dict[str, tuple[float, float]] = {}
    for name, values in settings.items():
        config = from_dict(values)
        method = find_method(config.method).configure(config.stages)
        lr = method.stages["step"].lr
        lr = recommend(config, tasks.make_task(config.task, seed=0), method)["lr"] if lr is None else lr
        rates[name] = float(lr), gain(method)
    first = next(iter(rates.values()))[1]
    return {name: merge(settings[name], {"step": {"lr": lr * first / size}}) for name, (lr, size) in rates.items()}


def train_one(work: tuple[str, int, Path], settings: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Train one run of a comparison from its newest checkpoint, unless it is finished; return its result."""
    name, seed, folder = work
    done = result_of(folder)
    if done is not None:
        return done
    if (folder / CONFIG).exists():
        run = continue_run(folder)
    else:
        run = create(from_dict({**settings[name], "seed": seed, "out": str(folder)}))
    learn(run)
    finish(run)
    return result_of(folder) or {}


def measured_curve(folder: Path, metric: str) -> list[tuple[int, float]]:
    """Return a held-out measure of a run over its length, as (done, value).

    Raises:
        UsageError: the run has no such measure.
    """
    lines, key = records(folder), f"eval/{metric}"
    curve = [(line["done"], line[key]) for line in lines if line.get(key) is not None]
    if not curve:
        measures = {name.removeprefix("eval/") for line in lines for name in line if name.startswith("eval/")}
        raise unknown("metric", metric, measures)
    return curve


def statistics(scores: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return one row per method: interquartile mean over seeds and the probability of beating the first one, with 95% intervals;
    of one seed its value alone, for nothing tells how far another seed would be from it."""
    if len(next(iter(scores.values()))) == 1:
        return [{"method": n, "iqm": float(x[0]), "interval": None, "seeds": x.tolist()} for n, x in scores.items()]
    from rliable import library, metrics

    def iqm(x: np.ndarray) -> np.ndarray:
        return np.array([metrics.aggregate_iqm(x)])

    def beats(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.array([metrics.probability_of_improvement(x, y)])

    def estimate(data: Any, fn: Any) -> tuple[float, list[float]]:
        warnings.filterwarnings("ignore", category=FutureWarning, module="arch|rliable")
        point, interval = library.get_interval_estimates(
            {"it": data}, fn, reps=RESAMPLES, random_state=np.random.RandomState(0)
        )
        return float(np.ravel(point["it"])[0]), [float(v) for v in np.ravel(interval["it"])]

    rows: list[dict[str, Any]] = []
    first = next(iter(scores.values()))[:, None]
    for name, values in scores.items():
        middle, interval = estimate(values[:, None], iqm)
        row = {"method": name, "iqm": middle, "interval": interval, "seeds": values.tolist()}
        if rows:
            row["improves"], row["improves_interval"] = estimate((values[:, None], first), beats)
        rows.append(row)
    return rows


def comparison_table(table: dict[str, Any]) -> Table:
    """Return the comparison as a table of the terminal, which folds long names instead of cutting them."""
    several = table["methods"][0]["interval"] is not None
    heads = [f"{table['metric']}\n(IQM)", "95% interval", "P", "95% interval"] if several else [table["metric"]]
    rows = Table(Column("method", overflow="fold"), *(Column(head, no_wrap=True) for head in heads))
    for row in table["methods"]:
        cells = [f"{row['iqm']:.4g}"]
        if several:
            cells += [format_interval(row["interval"])]
            cells += [f"{row['improves']:.2f}", format_interval(row["improves_interval"])] if "improves" in row else []
        rows.add_row(row["method"], *cells)
    return rows


def comparison_note(table: dict[str, Any]) -> str:
    """Return one sentence on what the table's numbers say."""
    if table["methods"][0]["interval"] is None:
        return "no interval: one seed does not tell how far another would be from it; --seeds 5 does"
    return f"P: probability that a run is better than one of {table['methods'][0]['method']}"


def format_interval(interval: Sequence[float]) -> str:
    """Return `low to high`."""
    return f"{interval[0]:.4g} to {interval[1]:.4g}"


def plot_curves(curves: dict[str, list[list[tuple[int, float]]]], metric: str, unit: str, target: Path) -> None:
    """Plot the held-out measure over the run: mean over seeds, band from the worst to the best seed.

    Args:
        curves: of every run of every method, as (done, value).
        metric: what was measured.
        unit: what the length of a run counts.
        target: the picture's file.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for name, several in curves.items():
        grid = np.unique([x for curve in several for x, _ in curve])
        grid = grid[grid <= min(curve[-1][0] for curve in several)]
        values = np.array([np.interp(grid, [x for x, _ in curve], [y for _, y in curve]) for curve in several])
        (mean,) = axes.plot(grid, values.mean(0), marker=".", label=name)
        axes.fill_between(grid, values.min(0), values.max(0), alpha=0.2, color=mean.get_color())
    axes.set(xlabel=unit, ylabel=f"{metric} (held out)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(target, dpi=130)
    pyplot.close(figure)
