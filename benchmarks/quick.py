"""Speed and memory of the working tree beside a commit's, in a quarter of an hour on one core.

python benchmarks/quick.py --base COMMIT [--cases NAME ...] [--rounds 3] [--scale 1] [--json FILE]

Every case is a process of the commit's own benchmark script or command line, then one of the working tree's, round by round, each on one
thread: what changes the speed of the machine changes both. Printed per case: the medians of both sides, the ratio of the medians, and
the least and largest ratio of the two processes of a round; a ratio above 1 is faster, or takes less memory. `slower` (of memory:
`larger`) marks a ratio below 0.97 where none of three or more rounds reached 1. Chance does that too now and then: measure such a case
again with `--cases NAME --rounds 10`. Rates and seconds are of processor time, which other work on the machine disturbs less; dqn's,
which its run writes down, of wall-clock time.

Exits with 1 if a process fails, which is the case too for a script or flag that the commit does not have.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ENTRY = "from anypo.cli import main; main()"
SLOWER = 0.97


def read_rate(printed: str, folder: Path) -> float:
    """The second of the numbers in the last line: per second of processor time."""
    return float(printed.splitlines()[-1].split()[1])


def read_step(printed: str, folder: Path) -> float:
    """Median seconds of processor time per step."""
    return statistics.median(json.loads(printed.splitlines()[-1])["processor"])


def read_memory(printed: str, folder: Path) -> float:
    """MiB at the peak."""
    return json.loads(printed)["bytes"] / 2**20


def read_timing(printed: str, folder: Path) -> float:
    """Batches per second of wall-clock time in the fastest tenth of the run's second half: other work interrupts the rest."""
    batches = [json.loads(line) for line in (folder / "run" / "timing.jsonl").read_text().splitlines()]
    return (
        1
        / statistics.quantiles([batch["rollout"] + batch["update"] for batch in batches[len(batches) // 2 :]], n=10)[0]
    )


@dataclass(frozen=True)
class Case:
    """command: a script of benchmarks/ with its arguments, or those of `anypo`; {size} is the amount of work, a multiple of `step`,
    {shared} a folder of all processes. read: gives the figure from what is printed and the process's own folder. costs: less is better."""

    command: str
    size: float
    step: float
    unit: str
    read: Callable[[str, Path], float]
    costs: bool = False


TEXT = "text_grpo.py anypo --folder {{shared}} --precision {} --prompts 8 --new 32 --steps {{size}}"
CASES = {
    "ppo-gym": Case("ppo_cartpole.py --only gym --scale {size}", 0.3, 0.01, "steps/s", read_rate),
    "ppo-gym-compiled": Case("ppo_cartpole.py --only gym-compiled --scale {size}", 0.4, 0.01, "steps/s", read_rate),
    "ppo-tensor": Case("ppo_cartpole.py --only tensor --scale {size}", 0.2, 0.01, "steps/s", read_rate),
    "environments-2^12": Case("many_environments.py --only 12", 1, 1, "steps/s", read_rate),
    "sac": Case("sac.py --only auto --env Pendulum-v1 --steps {size}", 300, 50, "updates/s", read_rate),
    "dqn": Case("train dqn --task gym:CartPole-v1 --episodes 1 --evaluate-every 1000000000 --threads 1 --out run --steps {size}",
                2400, 50, "batches/s", read_timing),
    "iql": Case("offline.py --only auto --methods iql --updates {size}", 300, 100, "updates/s", read_rate),
    "td3-bc": Case("offline.py --only auto --methods td3-bc --updates {size}", 400, 100, "updates/s", read_rate),
    "text-fp32": Case(TEXT.format("fp32"), 3, 1, "s/step", read_step, costs=True),
    "text-bf16": Case(TEXT.format("bf16"), 3, 1, "s/step", read_step, costs=True),
    "head-memory": Case("head_memory.py chunked --tokens 1024 --vocabulary 65536 --width 512", 1, 1, "MiB", read_memory, costs=True),
}  # fmt: skip


def main() -> None:
    from measured import machine

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="commit the working tree is compared with")
    parser.add_argument("--cases", nargs="+", choices=CASES, help="default: all, text-bf16 where bfloat16 is fast")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the work of a process")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    about = machine()
    fast = about["avx512_bf16"] or about["amx_tile"]
    cases = options.cases or [name for name in CASES if name != "text-bf16" or fast]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "shared").mkdir()
        sides = {"base": extract(options.base, folder / "base"), "tree": ROOT}
        figures = measure_rounds(cases, sides, options.rounds, options.scale, folder)
    results = {name: {**both, **compare(CASES[name], **both)} for name, both in figures.items()}
    show(results)
    if options.json:
        settings = {"base": options.base, "rounds": options.rounds, "scale": options.scale}
        options.json.write_text(json.dumps({"machine": about, **settings, "cases": results}, indent=1) + "\n")
    sys.exit(len(figures) < len(cases))


def extract(commit: str, folder: Path) -> Path:
    """Write the commit's package and benchmarks into the folder."""
    folder.mkdir()
    archive = folder.with_suffix(".tar")
    command = ["git", "-C", str(ROOT), "archive", "--output", str(archive), commit, "src", "benchmarks"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"quick: {done.stderr.strip()}")
    subprocess.run(["tar", "-xf", str(archive), "-C", str(folder)], check=True)
    return folder


def measure(case: Case, tree: Path, scale: float, folder: Path) -> float:
    """The figure of one process of a side, in an empty folder."""
    size = case.step * max(1, round(scale * case.size / case.step))
    words = case.command.format(size=f"{size:g}", shared=folder / "shared").split()
    command = ["-c", ENTRY, *words] if words[0] == "train" else [str(tree / "benchmarks" / words[0]), *words[1:]]
    environment = os.environ | {
        "PYTHONPATH": str(tree / "src"),
        "OMP_NUM_THREADS": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled"),
    }
    with tempfile.TemporaryDirectory(dir=folder) as own:
        done = subprocess.run(
            [sys.executable, *command], check=True, capture_output=True, text=True, env=environment, cwd=own
        )
        return case.read(done.stdout, Path(own))


def measure_rounds(
    cases: list[str], sides: dict[str, Path], rounds: int, scale: float, folder: Path
) -> dict[str, dict[str, list[float]]]:
    """The figures of all rounds by case and side; a case that fails is named on standard error and left out.

    Args:
        cases: names of cases.
        sides: the trees they are measured in, in this order.
        rounds: processes of every case and side.
        scale: of the work of a process.
        folder: where all of them may write.
    """
    figures: dict[str, dict[str, list[float]]] = {name: {side: [] for side in sides} for name in cases}
    for number in range(rounds):
        for name, side in [(name, side) for name in figures for side in sides]:
            if name not in figures:
                continue
            try:
                figures[name][side].append(measure(CASES[name], sides[side], scale, folder))
            except subprocess.CalledProcessError as error:
                lines = error.stderr.strip().splitlines() or ["no message"]
                print(f"{name} fails ({side}): {lines[-1]}", file=sys.stderr)
                del figures[name]
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return figures


def compare(case: Case, base: list[float], tree: list[float]) -> dict[str, float | str]:
    """Ratio of the medians and range over the rounds, above 1 where the tree is better; mark: `slower`, `larger` or nothing."""
    better = -1 if case.costs else 1
    ratio = (statistics.median(tree) / statistics.median(base)) ** better
    rounds = [(new / old) ** better for old, new in zip(base, tree, strict=True)]
    worse = ratio < SLOWER and max(rounds) < 1 and len(rounds) >= 3
    mark = ("larger" if case.unit == "MiB" else "slower") if worse else ""
    return {"unit": case.unit, "ratio": ratio, "min": min(rounds), "max": max(rounds), "mark": mark}


def show(results: dict[str, dict[str, Any]]) -> None:
    """Print a line per case."""
    print(f"{'case':18} {'base':>9} {'tree':>9} {'':9}  ratio  rounds")
    for name, result in results.items():
        base, tree = (
            f"{statistics.median(result[side]):9,.{0 if result['unit'] == 'steps/s' else 2}f}"
            for side in ("base", "tree")
        )
        ratios = f"{result['ratio']:.3f}  {result['min']:.3f} to {result['max']:.3f}"
        print(f"{name:18} {base} {tree} {result['unit']:9}  {ratios}  {result['mark']}".rstrip())


if __name__ == "__main__":
    main()
