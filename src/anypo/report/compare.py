"""Comparison of methods on equal seeds: interquartile means, intervals, probability of improvement, learning curves.

Source: Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (arXiv 2108.13264), through rliable.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

SAMPLES = 5000
"""Bootstrap resamples."""


def read(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def finals(folders: dict[str, list[Path]], metric: str) -> dict[str, np.ndarray]:
    """method -> last held-out measure of every seed, [seed]."""
    return {
        name: np.array([next(r[metric] for r in reversed(read(f)) if metric in r) for f in paths])
        for name, paths in folders.items()
    }


def table(scores: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """One row per method: iqm with its 95% interval, and the probability of improving on the first method with its own."""
    from rliable import library, metrics

    matrix = {name: values[:, None] for name, values in scores.items()}
    rng = np.random.RandomState(0)
    iqm, interval = library.get_interval_estimates(
        matrix, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=SAMPLES, random_state=rng
    )
    first = next(iter(matrix))
    rows = []
    for name, values in scores.items():
        row = {"method": name, "iqm": float(iqm[name][0]), "interval": [float(v) for v in interval[name][:, 0]]}
        if name != first:
            pair = {"pair": (matrix[name], matrix[first])}
            chance, bounds = library.get_interval_estimates(
                pair, metrics.probability_of_improvement, reps=SAMPLES, random_state=np.random.RandomState(0)
            )
            row |= {
                "improves": float(chance["pair"]),
                "improves_interval": [float(v) for v in np.ravel(bounds["pair"])],
            }
        rows.append({**row, "seeds": [float(v) for v in values]})
    return rows


def curves(folders: dict[str, list[Path]], metric: str, label: str, target: Path) -> None:
    """Held-out measure over the run: mean over seeds, band from the worst to the best seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for name, paths in folders.items():
        lines = [[(r["done"], r[metric]) for r in read(f) if metric in r] for f in paths]
        grid = np.unique([x for line in lines for x, _ in line])
        grid = grid[grid <= min(line[-1][0] for line in lines)]
        values = np.array([np.interp(grid, *zip(*line, strict=True)) for line in lines])
        (drawn,) = axes.plot(grid, values.mean(0), marker=".", label=name)
        axes.fill_between(grid, values.min(0), values.max(0), alpha=0.2, color=drawn.get_color())
    axes.set(xlabel=label, ylabel=f"{metric.removeprefix('eval/')} (held out)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(target, dpi=130)
    pyplot.close(figure)
