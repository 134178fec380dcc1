"""What the benchmarks share: hardware and versions beside every figure, and the files they are kept in."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import anypo

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def machine() -> dict[str, Any]:
    """Processor and what it is fast at, cores, memory, load and versions."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": names[0] if names else platform.processor(),
        **{name: bool(known.get(name)) for name in ("avx512_bf16", "amx_tile")},
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cores": os.cpu_count(),
        "memory_gib": round(pages / 2**30, 1),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
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


def rates(steps: int, start: tuple[float, float], end: tuple[float, float]) -> tuple[float, float]:
    """Steps per second of either clock."""
    return steps / (end[0] - start[0]), steps / (end[1] - start[1])


def only(script: str, python: str, kind: str, threads: int, *arguments: str) -> list[float]:
    """The two numbers that one kind prints last, in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": str(threads)}
    command = [python, script, "--only", kind, "--threads", str(threads), *arguments]
    out = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return [float(word) for word in out.split()[-2:]]


def in_turns(
    script: str, pythons: dict[str, str], rounds: int, threads: int, label: str, *arguments: str
) -> dict[str, list[list[float]]]:
    """Rates (wall, processor) of every kind by its interpreter, one process after the other, round by round."""
    found: dict[str, list[list[float]]] = {kind: [] for kind in pythons}
    for number in range(rounds):
        for kind, python in pythons.items():
            wall, processor = one = only(script, python, kind, threads, *arguments)
            found[kind].append(one)
            print(
                f"{label} round {number + 1} {kind:15} {wall:9.1f} / s wall {processor:9.1f} / s processor", flush=True
            )
    return found


def beside(found: dict[str, list[list[float]]], peer: str, label: str) -> dict[str, Any]:
    """Rates (wall, processor) of several rounds by kind: their spread, and the ratio of the medians beside the peer's."""
    result: dict[str, Any] = {}
    for at, clock in enumerate(("wall", "processor")):
        by_kind = {kind: [pair[at] for pair in pairs] for kind, pairs in found.items()}
        figures = result[f"per_second_{clock}"] = {kind: spread(values) for kind, values in by_kind.items()}
        for kind, figure in figures.items():
            print(
                f"{label} {kind} median {figure['median']:.1f} / s {clock} ({figure['min']:.1f} to {figure['max']:.1f})"
            )
        for kind in [k for k in by_kind if k != peer] if peer in by_kind else ():
            pairs = [a / b for a, b in zip(by_kind[kind], by_kind[peer], strict=True)]
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
