"""What the benchmarks share: hardware and versions beside every figure, and the files they are kept in."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import anypo

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Processor, cores, memory, load and versions."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(pages / 2**30, 1),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "anypo": anypo.__version__,
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def peak_gib() -> float:
    """The most memory this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def keep(name: str, figures: dict[str, Any]) -> None:
    """Write the figures with the machine to results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **figures}, indent=2) + "\n")


def clocks() -> tuple[float, float]:
    """Wall-clock time, and processor time of all threads."""
    return time.perf_counter(), time.process_time()


def beside(found: dict[str, list[list[float]]], peer: str, label: str) -> dict[str, Any]:
    """Rates (wall, processor) of several rounds by kind: their spread, and the ratio of the medians beside the peer's."""
    result: dict[str, Any] = {}
    for at, clock in enumerate(("wall", "processor")):
        rates = {kind: [pair[at] for pair in pairs] for kind, pairs in found.items()}
        figures = result[f"per_second_{clock}"] = {kind: spread(values) for kind, values in rates.items()}
        for kind, figure in figures.items():
            print(
                f"{label} {kind} median {figure['median']:.1f} / s {clock} ({figure['min']:.1f} to {figure['max']:.1f})"
            )
        for kind in rates.keys() - {peer} if peer in rates else ():
            pairs = [a / b for a, b in zip(rates[kind], rates[peer], strict=True)]
            ratio = figures[kind]["median"] / figures[peer]["median"]
            result[f"{kind}_over_{peer}_{clock}"] = {"of_medians": ratio, "min": min(pairs), "max": max(pairs)}
            print(f"{label} {kind} / {peer}, {clock}: {ratio:.2f} (single rounds {min(pairs):.2f} to {max(pairs):.2f})")
    return result


def peak_gflops(size: int = 1024, seconds: float = 1.0) -> dict[str, float]:
    """What this machine does in one large product, in 10^9 operations a second of wall-clock time."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(size, size).to(dtype)
        best, end = float("inf"), time.perf_counter() + seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            a @ a
            best = min(best, time.perf_counter() - start)
        found[str(dtype).removeprefix("torch.")] = round(2 * size**3 / best / 1e9, 1)
    return found
