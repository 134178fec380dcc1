"""One PPO iteration with 2^12, 2^16 and 2^20 CartPole environments x 16 steps: steps per second of wall-clock and of processor
time, and peak memory.

python benchmarks/many_environments.py [--powers 12 16 20] [--threads 1] [--compile on] [--save]

4 epochs, minibatches of 4,096 decisions, networks of 64-64. Every size has a process of its own; iterations of 2^12 environments, in
which everything is compiled, come first.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from measured import keep, peak_gib

from anypo.config import from_dict
from anypo.loops.collect import collect
from anypo.loops.update import update
from anypo.loops.views import with_views
from anypo.runs.build import build
from anypo.runs.phases import begin_phase
from anypo.runs.run import Run

ROOT = Path(__file__).parents[1]
HORIZON, MINIBATCH, EPOCHS = 16, 2**12, 4


def prepared(envs: int, choice: str) -> Run:
    task = {"name": "tensor:CartPole-v1", "envs": envs}
    settings = {"epochs": EPOCHS, "minibatch": MINIBATCH, "lr": 3e-4}
    run = build(from_dict({"method": "ppo", "task": task, "steps": 10**12, "step": settings, "compile": choice}))
    run.want = replace(run.want, horizon=HORIZON)
    return run


def clocks() -> torch.Tensor:
    return torch.tensor([time.perf_counter(), time.process_time()], dtype=torch.float64)


def iterate(run: Run) -> tuple[torch.Tensor, torch.Tensor]:
    """Seconds, by either clock, of collection and of the update."""
    method, start = begin_phase(run), clocks()
    batch = collect(run).rows
    assert batch is not None
    collected = clocks()
    update(run, method, method.prepare(with_views(run, method, batch)))
    run.policy.observe(batch)
    run.batch += 1
    return collected - start, clocks() - collected


def measure(power: int, choice: str) -> list[float]:
    """[steps per second, steps per second of processor time, share of that time that is collection, peak GiB]"""
    warm = prepared(2**12, choice)
    for _ in range(3):  # what is compiled here is found again on the disk
        iterate(warm)
    run = prepared(2**power, choice)
    for _ in range(3 if power < 14 else 1):
        collecting, updating = iterate(run)
    both = collecting + updating
    return [*(2**power * HORIZON / both).tolist(), float(collecting[1] / both[1]), peak_gib()]


def main(powers: list[int], threads: int, choice: str, save: bool) -> None:
    figures = {}
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": str(threads)}
    for power in powers:
        command = [sys.executable, __file__, "--only", str(power), "--threads", str(threads), "--compile", choice]
        out = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
        names = ("steps_per_second_wall", "steps_per_second_processor", "collecting", "peak_gib")
        speed, processor, share, memory = values = [float(word) for word in out.split()[-4:]]
        figures[f"2^{power}"] = dict(zip(names, values, strict=True))
        rates = f"{speed:9.0f} steps/s wall {processor:9.0f} steps/s processor"
        print(f"2^{power} environments {rates}  {100 * share:.0f}% collecting  {memory:.2f} GiB", flush=True)
        if save:
            about = {"threads": threads, "horizon": HORIZON, "compile": choice}
            keep(f"many_environments{'_compiled' * (choice == 'on')}", about | {"environments": figures})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--powers", type=int, nargs="+", default=[12, 16, 20])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", choices=("on", "off"), default="off")
    parser.add_argument("--save", action="store_true", help="keep the figures in results/")
    parser.add_argument("--only", type=int, help="measure one size in this process")
    chosen = parser.parse_args()
    if chosen.only is not None:
        torch.set_num_threads(chosen.threads)
        print(*measure(chosen.only, chosen.compile))
    else:
        main(chosen.powers, chosen.threads, chosen.compile, chosen.save)
