"""Verification of a method or procedure: its properties or known answers, which must hold, and its claims, which may fail; and the
ledger of both.

The rule, fixed before any run: for every seed the effect is how much better the entry is than the one it is compared with, on the
claim's measure and in its direction, less the claim's margin. A claim is `supported` if the 95% interval of the mean effect (t
distribution over paired seeds) lies above 0, `not supported at this scale` if the mean is not above 0, and `mixed` between these.
An entry is supported if all its claims are, not supported if no claim has a mean above 0, else mixed.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anypo import __version__
from anypo.evidence.digest import digest
from anypo.evidence.experiments.registry import CHEAP, run_experiment
from anypo.evidence.microscope import gain
from anypo.evidence.properties import check_known, check_properties
from anypo.flags import assign
from anypo.method.card import Claim
from anypo.method.method import Method
from anypo.method.procedure import Procedure
from anypo.method.registry import entry as find
from anypo.method.registry import procedures

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


def run_claim(mine: Method | Procedure, claim: Claim, seeds: Iterable[int]) -> dict[str, Any]:
    """Run the experiment of one claim = both entries, every seed; return its entry of the ledger."""
    clock = time.perf_counter()
    seeds = list(seeds)
    pair = (mine, find(claim.against)) if claim.against != "self" else (mine, ablated(mine, claim.ablate))
    changed = ({}, claim.ablate)
    values = [
        [
            run_cached(claim.experiment, x, seed, contest_settings(claim, x), ablate)[claim.measure]
            for x, ablate in zip(pair, changed, strict=True)
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
        **({"ablate": claim.ablate} if claim.ablate else {}),
        "margin": claim.margin,
        "settings": claim.settings,
        "effect": mean,
        "interval": bounds,
        "verdict": verdict(mean, bounds),
        "seeds": seeds,
        "values": values,
        "seconds": round(time.perf_counter() - clock, 1),
    }


def ablated(entry: Method | Procedure, settings: dict[str, Any]) -> Method | Procedure:
    """Return an entry with settings changed: stages of a method by dotted path, parameters of a procedure by name."""
    if isinstance(entry, Procedure):
        return entry.but(settings)
    stages: dict[str, Any] = {}
    for path, value in settings.items():
        assign(stages, path, value)
    return entry.configure(stages)


def contest_settings(claim: Claim, entry: Method | Procedure) -> dict[str, Any]:
    """Return the experiment's settings for one of the two entries; with `match_gain`, a method's rate is divided by its gain."""
    settings = dict(claim.settings)
    if settings.pop("match_gain", False) and isinstance(entry, Method):
        settings["lr"] = settings.get("lr", 0.1) / gain(entry)
    return settings


def run_cached(
    experiment: str, entry: Method | Procedure, seed: int, settings: dict[str, Any], ablate: dict[str, Any]
) -> dict[str, float]:
    """Run an experiment once per process: several claims may compare with the same entry under the same seeds.

    Args:
        experiment: its name.
        entry: the method or procedure, changed as `ablate` says.
        seed: of the run.
        settings: of the experiment.
        ablate: what is changed in the entry.
    """
    key = experiment, entry.card.id, seed, json.dumps([settings, ablate])
    if key not in RESULTS:
        RESULTS[key] = run_experiment(experiment, copy.deepcopy(entry), seed, settings)
    return RESULTS[key]


RESULTS: dict[tuple[str, str, int, str], dict[str, float]] = {}
"""Measures by experiment, entry, seed, and settings with what is changed in the entry."""


def examine(name: str, seeds: Sequence[int], quick: bool = False, cases: int = CASES) -> dict[str, Any]:
    """Verify one method or procedure; return its record for the ledger.

    Args:
        name: its id, or FILE.py:NAME.
        seeds: of every claim.
        quick: test only the claims whose experiments take seconds.
        cases: random batches per property.
    """
    torch.set_num_threads(1)
    clock = time.perf_counter()
    entry = find(name)
    chosen = [c for c in entry.card.claims if not quick or c.experiment in CHEAP]
    claims = [run_claim(entry, claim, seeds) for claim in chosen]
    properties = check_known(entry) if isinstance(entry, Procedure) else check_properties(entry, cases)
    record: dict[str, Any] = {"properties": properties, "claims": claims}
    if claims:
        record |= {key: claims[0][key] for key in ("effect", "interval")}
        record["verdict"] = overall_verdict([c["verdict"] for c in claims])
        record["seeds"] = list(seeds)
    return record | {"digest": digest(entry), "seconds": round(time.perf_counter() - clock, 1)}


def overall_verdict(verdicts: Sequence[str]) -> str:
    """Return `supported` if all are, `not supported` if all are, else `mixed`."""
    if all(v == SUPPORTED for v in verdicts):
        return SUPPORTED
    return UNSUPPORTED if all(v == UNSUPPORTED for v in verdicts) else MIXED


def examine_all(
    names: Sequence[str], seeds: Sequence[int], quick: bool, jobs: int
) -> Iterable[tuple[str, dict[str, Any]]]:
    """Verify several entries; yield (id, record) in order.

    Args:
        names: ids of methods and procedures, or FILE.py:NAME.
        seeds: of every claim.
        quick: test only the claims whose experiments take seconds.
        jobs: entries at once.
    """
    ids = [find(name).card.id for name in names]
    if jobs == 1:
        for name, known_as in zip(names, ids, strict=True):
            yield known_as, examine(name, seeds, quick)
        return
    with ProcessPoolExecutor(jobs) as pool:
        futures = [pool.submit(examine, name, seeds, quick) for name in names]
        for known_as, future in zip(ids, futures, strict=True):
            yield known_as, future.result()


def ledger() -> dict[str, Any]:
    """Read the package's ledger, and over it that of the working directory, if there is one."""
    rows: dict[str, Any] = {}
    for path in (LEDGER, LOCAL_LEDGER):
        if path.is_file():
            rows |= json.loads(path.read_text())["methods"]
    return rows


def record_verdicts(path: Path, records: dict[str, dict[str, Any]]) -> None:
    """Write the entries just verified into the ledger, beside those it already holds."""
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


def opponent(claim: dict[str, Any]) -> str:
    """Say what a recorded claim compares with: another entry, or itself with what was changed."""
    if claim["against"] != "self":
        return claim["against"]
    return f"itself with {', '.join(f'{path}={value}' for path, value in claim['ablate'].items())}"


def markdown() -> str:
    """Write the ledger as a Markdown table: every claim with its figures, one line each, and one for an entry without claims."""
    records = ledger()
    verdicts = [entry.get("verdict") for entry in records.values()]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in (SUPPORTED, MIXED, UNSUPPORTED))
    run = len(records.keys() & set(procedures()))
    lines = [
        "# Verdicts",
        "",
        "Written by `anypo verify --report docs/verdicts.md` from `src/anypo/evidence/ledger.json`."
        f" {len(records) - run} methods and {run} procedures: {counts}.",
        "[evidence.md](evidence.md) describes the rule of a verdict and the experiments.",
        "",
        "| entry | claim | experiment / measure, against | effect [95% interval], seeds | verdict |",
        "|---|---|---|---|---|",
    ]
    for name, entry in sorted(records.items()):
        lines += [f"| {name} | {' | '.join(verdict_cells(claim))} |" for claim in entry["claims"]]
        if not entry["claims"]:
            p = entry["properties"]
            lines.append(f"| {name} | | | | {p['passed']} of {p['of']} known answers hold, no claim |")
    return "\n".join(lines) + "\n"


def verdict_cells(claim: dict[str, Any]) -> list[str]:
    """Return a recorded claim as cells of the table: text, experiment and opponent, effect, verdict."""
    low, high = claim["interval"]
    settings = ", ".join(f"{k}={v}" for k, v in claim["settings"].items())
    experiment = f"{claim['experiment']}{f' ({settings})' if settings else ''} / {claim['measure']}"
    effect = f"{claim['effect']:.3g} [{low:.3g}, {high:.3g}], {len(claim['seeds'])}"
    margin = f" (margin {claim['margin']:g})" if claim["margin"] else ""
    return [claim["text"], f"{experiment}, {opponent(claim)}{margin}", effect, claim["verdict"]]
