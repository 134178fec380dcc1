"""Verification of a method: its properties, which must hold, and its claims, which may fail; and the ledger of both.

The rule, fixed before any run: for every seed the effect is how much better the method is than the one it is compared with, on the
claim's measure and in its direction, less the claim's margin. A claim is `supported` if the 95% interval of the mean effect (t
distribution over paired seeds) lies above 0, `not supported at this scale` if the mean is not above 0, and `mixed` between these.
A method is supported if all its claims are, not supported if no claim has a mean above 0, else mixed.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anypo import __version__
from anypo.evidence.digest import digest
from anypo.evidence.experiments.registry import CHEAP, run_experiment
from anypo.evidence.microscope import gain
from anypo.evidence.properties import check_properties
from anypo.method.card import Claim
from anypo.method.method import Method
from anypo.method.registry import method as find

SUPPORTED, MIXED, UNSUPPORTED = "supported", "mixed", "not supported at this scale"


LEDGER = Path(__file__).with_name("ledger.json")
"""Part of the package, so that an installed anypo has its verdicts."""


LOCAL_LEDGER = Path("evidence/ledger.json")
"""Where one's own methods may be recorded: `anypo verify NAME --record --ledger evidence/ledger.json`."""


CASES = 20
"""Random batches per property."""


def interval(effects: Sequence[float]) -> tuple[float, list[float]]:
    """Return mean and 95% interval over paired seeds, by the t distribution: mean -+ t_{0.975, n-1} s / sqrt(n)."""
    from scipy import stats

    x = np.asarray(effects, dtype=float)
    mean = float(x.mean())
    if len(x) < 2 or float(x.std()) == 0:
        return mean, [mean, mean]
    half = float(stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    return mean, [mean - half, mean + half]


def verdict(mean: float, bounds: Sequence[float]) -> str:
    """Return the verdict on one claim, by the rule of this module."""
    if bounds[0] > 0:
        return SUPPORTED
    return MIXED if mean > 0 else UNSUPPORTED


def run_claim(method: Method, claim: Claim, seeds: Iterable[int]) -> dict[str, Any]:
    """Run the experiment of one claim = both methods, every seed; return its entry of the ledger."""
    clock = time.perf_counter()
    seeds, settings = list(seeds), dict(claim.settings)
    other = find(claim.against)
    mine, theirs = dict(settings), dict(settings)
    if settings.pop("match_gain", False):
        lr = settings.get("lr", 0.1)
        mine, theirs = settings | {"lr": lr / gain(method)}, settings | {"lr": lr / gain(other)}
    values = [
        [
            run_cached(claim.experiment, m.card.id, seed, json.dumps(s))[claim.measure]
            for m, s in ((method, mine), (other, theirs))
        ]
        for seed in seeds
    ]
    sign = 1 if claim.better == "higher" else -1
    mean, bounds = interval([sign * (a - b) - claim.margin for a, b in values])
    return {
        "text": claim.text,
        "experiment": claim.experiment,
        "measure": claim.measure,
        "better": claim.better,
        "against": claim.against,
        "margin": claim.margin,
        "settings": claim.settings,
        "effect": mean,
        "interval": bounds,
        "verdict": verdict(mean, bounds),
        "seeds": seeds,
        "values": values,
        "seconds": round(time.perf_counter() - clock, 1),
    }


@cache
def run_cached(experiment: str, method: str, seed: int, settings: str) -> dict[str, float]:
    """Run an experiment once per process: several claims may compare with the same method under the same seeds.

    Args:
        experiment: its name.
        method: id of the method.
        seed: of the run.
        settings: of the experiment, as JSON.
    """
    return run_experiment(experiment, find(method), seed, json.loads(settings))


def examine(name: str, seeds: Sequence[int], quick: bool = False, cases: int = CASES) -> dict[str, Any]:
    """Verify one method; return its record for the ledger.

    Args:
        name: id of the method.
        seeds: of every claim.
        quick: test only the claims whose experiments take seconds.
        cases: random batches per property.
    """
    torch.set_num_threads(1)
    clock = time.perf_counter()
    method = find(name)
    chosen = [c for c in method.card.claims if not quick or c.experiment in CHEAP]
    claims = [run_claim(method, claim, seeds) for claim in chosen]
    record: dict[str, Any] = {"properties": check_properties(method, cases), "claims": claims}
    if claims:
        record |= {key: claims[0][key] for key in ("effect", "interval")}
        record["verdict"] = overall_verdict([c["verdict"] for c in claims])
        record["seeds"] = list(seeds)
    return record | {"digest": digest(method), "seconds": round(time.perf_counter() - clock, 1)}


def overall_verdict(verdicts: Sequence[str]) -> str:
    """Return `supported` if all are, `not supported` if all are, else `mixed`."""
    if all(v == SUPPORTED for v in verdicts):
        return SUPPORTED
    return UNSUPPORTED if all(v == UNSUPPORTED for v in verdicts) else MIXED


def examine_all(
    names: Sequence[str], seeds: Sequence[int], quick: bool, jobs: int
) -> Iterable[tuple[str, dict[str, Any]]]:
    """Verify several methods; yield (name, record) in order.

    Args:
        names: ids of the methods.
        seeds: of every claim.
        quick: test only the claims whose experiments take seconds.
        jobs: methods at once.
    """
    if jobs == 1:
        for name in names:
            yield name, examine(name, seeds, quick)
        return
    with ProcessPoolExecutor(jobs) as pool:
        futures = [(name, pool.submit(examine, name, seeds, quick)) for name in names]
        for name, future in futures:
            yield name, future.result()


def ledger() -> dict[str, Any]:
    """Read the package's ledger, and over it that of the working directory, if there is one."""
    rows: dict[str, Any] = {}
    for path in (LEDGER, LOCAL_LEDGER):
        if path.is_file():
            rows |= json.loads(path.read_text())["methods"]
    return rows


def record_verdicts(path: Path, records: dict[str, dict[str, Any]]) -> None:
    """Write the methods just verified into the ledger, beside those it already holds."""
    known = json.loads(path.read_text())["methods"] if path.is_file() else {}
    versions = {"anypo": __version__, "torch": torch.__version__}
    known |= {name: round_figures(record) | {"versions": versions} for name, record in records.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"methods": known}, indent=1, sort_keys=True) + "\n")


def round_figures(value: Any) -> Any:
    """Round floats to six significant digits, so that the ledger is readable and its changes are few."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: round_figures(v) for k, v in value.items()}
    return [round_figures(v) for v in value] if isinstance(value, list) else value


def summarize(record: dict[str, Any]) -> dict[str, Any] | None:
    """Shorten a record of the ledger to {properties, verdict, effect, interval, seeds}; None if it is empty."""
    if not record:
        return None
    p = record["properties"]
    short = {"properties": {"passed": p["passed"], "of": p["of"], "cases": p["cases"]}}
    return short | {key: record.get(key) for key in ("verdict", "effect", "interval", "seeds")}


def markdown() -> str:
    """Write the ledger as a Markdown table: every claim with its figures, one line each."""
    records = ledger()
    verdicts = [entry["verdict"] for entry in records.values()]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in (SUPPORTED, MIXED, UNSUPPORTED))
    lines = [
        "# Verdicts",
        "",
        f"Written by `anypo verify --report docs/verdicts.md` from `src/anypo/evidence/ledger.json`. {len(records)} methods: {counts}.",
        "[evidence.md](evidence.md) describes the rule of a verdict and the experiments.",
        "",
        "| method | claim | experiment / measure, against | effect [95% interval], seeds | verdict |",
        "|---|---|---|---|---|",
    ]
    for name, entry in sorted(records.items()):
        for claim in entry["claims"]:
            low, high = claim["interval"]
            settings = ", ".join(f"{k}={v}" for k, v in claim["settings"].items())
            experiment = f"{claim['experiment']}{f' ({settings})' if settings else ''} / {claim['measure']}"
            effect = f"{claim['effect']:.3g} [{low:.3g}, {high:.3g}], {len(claim['seeds'])}"
            margin = f" (margin {claim['margin']:g})" if claim["margin"] else ""
            lines.append(
                f"| {name} | {claim['text']} | {experiment}, {claim['against']}{margin} | {effect} | {claim['verdict']} |"
            )
    return "\n".join(lines) + "\n"
