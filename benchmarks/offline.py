"""Updates per second of offline methods beside d3rlpy: IQL, TD3+BC and CQL on 100,000 synthetic transitions of 17 observed numbers
and 6 actions, minibatches of 256, each library's own networks; processes of their own, in turns, several rounds.

Per second of wall-clock time, and per second of processor time (of all threads), which other work on the machine disturbs less.

python benchmarks/offline.py [--peer .venv-d3rlpy/bin/python] [--methods iql td3-bc cql] [--rounds 5] [--updates 300] [--threads 1]
    [--save]

plain: float32. auto: a run's default settings. compiled: `--compile on` beside it, compiled before the
clock starts. d3rlpy: its `fit`, without progress bar and log files. Evaluation and checkpoints are not timed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

N, OBS, ACT = 100_000, 17, 6
WARM = 100
KINDS = {"plain": {"autocast": "off"}, "auto": {}, "compiled": {"compile": "on"}, "d3rlpy": {}}
METHODS = {"iql": "IQLConfig", "td3-bc": "TD3PlusBCConfig", "cql": "CQLConfig"}


def data() -> dict[str, np.ndarray]:
    """Random transitions in episodes of 1000."""
    draw = np.random.default_rng(0)
    return {
        "observations": draw.normal(size=(N, OBS)).astype(np.float32),
        "actions": np.tanh(draw.normal(size=(N, ACT))).astype(np.float32),
        "rewards": draw.normal(size=N).astype(np.float32),
        "terminals": (np.arange(N) % 1000 == 999).astype(np.float32),
    }


def ours(kind: str, method: str, updates: int) -> tuple[float, float]:
    """The learning loop, between two batches of 100 updates; the first ones, which record and compile, come before."""
    from measured import clocks, rates

    from anypo.config import from_dict
    from anypo.loops.learn import learn
    from anypo.runs.build import build

    never = {"evaluate_every": 10**9, "checkpoint_every": 10**9, "episodes": 1}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.npz"
        np.savez(file, **data())  # pyright: ignore[reportArgumentType]
        task = {"name": f"data:{file}", "env": "HalfCheetah-v5"}
        run = build(from_dict({"method": method, "task": task, "steps": WARM + updates + 100, **never, **KINDS[kind]}))
    ticks: dict[int, tuple[float, float]] = {}
    learn(run, lambda record: ticks.update({int(record["done"]): clocks()}))
    return rates(updates, ticks[WARM], ticks[WARM + updates])


def theirs(method: str, updates: int) -> tuple[float, float]:
    import d3rlpy
    from d3rlpy.logging import NoopAdapterFactory
    from measured import clocks, rates

    table = data()
    columns = (table[name] for name in ("observations", "actions", "rewards", "terminals"))
    known = d3rlpy.dataset.MDPDataset(*columns)
    learner: Any = getattr(d3rlpy.algos, METHODS[method])().create(device="cpu")
    learner.build_with_dataset(known)
    quiet = {"show_progress": False, "logger_adapter": NoopAdapterFactory()}
    learner.fit(known, n_steps=WARM, n_steps_per_epoch=WARM, **quiet)
    start = clocks()
    learner.fit(known, n_steps=updates, n_steps_per_epoch=updates, **quiet)
    return rates(updates, start, clocks())


def main(
    peer: str | None, methods: list[str], kinds: list[str], rounds: int, updates: int, threads: int, save: bool
) -> None:
    from measured import beside, in_turns, keep, peak_gflops

    pythons = dict.fromkeys(kinds, sys.executable) | ({"d3rlpy": peer} if peer else {})
    result: dict[str, Any] = {"threads": threads, "rounds": rounds, "matmul_gflops": peak_gflops()}
    for method in methods:
        arguments = ("--methods", method, "--updates", str(updates))
        found = in_turns(__file__, pythons, rounds, threads, method, *arguments)
        result[method] = beside(found, "d3rlpy", method)
    if save:
        keep("offline", result)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="python that has d3rlpy")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument(
        "--kinds", nargs="+", choices=[k for k in KINDS if k != "d3rlpy"], default=["plain", "auto", "compiled"]
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=300, help="that are timed, in hundreds")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save", action="store_true", help="keep the figures in results/")
    parser.add_argument("--only", choices=KINDS, help="measure one of them in this process")
    chosen = parser.parse_args()
    import torch

    torch.set_num_threads(chosen.threads)
    if chosen.only:
        method = chosen.methods[0]
        print(
            *(theirs(method, chosen.updates) if chosen.only == "d3rlpy" else ours(chosen.only, method, chosen.updates))
        )
    else:
        main(chosen.peer, chosen.methods, chosen.kinds, chosen.rounds, chosen.updates, chosen.threads, chosen.save)
