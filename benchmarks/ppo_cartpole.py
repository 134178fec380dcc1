"""Environment steps per second of PPO on CartPole-v1 beside Stable-Baselines3: processes of their own, in turns, several rounds.

Per second of wall-clock time, and per second of processor time (of all threads), which other work on the machine disturbs less.

python benchmarks/ppo_cartpole.py [--peer .venv-peers/bin/python] [--rounds 5] [--threads 1] [--scale 1] [--save]

gym: 8 Gymnasium environments x 128 steps, 4 epochs, minibatches of 256, networks of 64-64. sb3: the same in Stable-Baselines3.
tensor: 64 tensor environments x 128 steps, 4 epochs of 4 minibatches. Collection and updates are timed after a warm-up; evaluation
and checkpoints are not.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
HORIZON, WARM = 128, 3
CLOCKS = ("wall", "processor")
SIZES = {"gym": (8, 256, 40), "sb3": (8, 256, 40), "tensor": (64, 2048, 30)}
"""Environments, minibatch, batches that are timed."""


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def rates(steps: int, start: tuple[float, float], end: tuple[float, float]) -> tuple[float, float]:
    """Steps per second of either clock."""
    return steps / (end[0] - start[0]), steps / (end[1] - start[1])


def ours(task: str, envs: int, minibatch: int, batches: int) -> tuple[float, float]:
    """The learning loop."""
    from dataclasses import replace

    from anypo.config import from_dict
    from anypo.loops.learn import learn
    from anypo.loops.run import build

    size = envs * HORIZON
    settings = {"epochs": 4, "minibatch": minibatch, "lr": 3e-4}
    # one batch more: the last one is followed by the closing evaluation
    values = {"task": {"name": task, "envs": envs}, "steps": size * (WARM + batches + 1), "step": settings}
    run = build(from_dict({"method": "ppo", "evaluate_every": 10**9, "compile": os.environ.get("COMPILE", "off"), **values}))
    run.want = replace(run.want, horizon=HORIZON)
    ticks: list[tuple[float, float]] = []
    learn(run, lambda record: ticks.append(clocks()))
    return rates(size * batches, ticks[WARM], ticks[WARM + batches])


def theirs(envs: int, minibatch: int, batches: int) -> tuple[float, float]:
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    env = make_vec_env("CartPole-v1", n_envs=envs)
    model = PPO("MlpPolicy", env, n_steps=HORIZON, batch_size=minibatch, n_epochs=4, seed=0, device="cpu")
    model.learn(WARM * envs * HORIZON)
    start = clocks()
    model.learn(batches * envs * HORIZON, reset_num_timesteps=False)
    return rates(batches * envs * HORIZON, start, clocks())


def measure(kind: str, threads: int, scale: float) -> tuple[float, float]:
    import torch

    torch.set_num_threads(threads)
    envs, minibatch, batches = SIZES[kind]
    batches = max(1, round(scale * batches))
    return theirs(envs, minibatch, batches) if kind == "sb3" else ours(f"{kind}:CartPole-v1", envs, minibatch, batches)


def main(peer: str | None, rounds: int, threads: int, scale: float, save: bool) -> None:
    from measured import keep, spread

    kinds = ["gym", "tensor", *(["sb3"] if peer else [])]
    found: dict[str, dict[str, list[float]]] = {clock: {kind: [] for kind in kinds} for clock in CLOCKS}
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": str(threads)}
    for number in range(rounds):
        for kind in kinds:
            python = peer if kind == "sb3" and peer else sys.executable
            command = [python, __file__, "--only", kind, "--threads", str(threads), "--scale", str(scale)]
            out = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
            for clock, rate in zip(CLOCKS, out.split()[-2:], strict=True):
                found[clock][kind].append(float(rate))
            print(
                f"round {number + 1} {kind:6} " + "  ".join(f"{found[c][kind][-1]:9.0f} / s {c}" for c in CLOCKS),
                flush=True,
            )
    result: dict[str, object] = {"threads": threads, "rounds": rounds}
    for clock, by_kind in found.items():
        figures = {kind: spread(values) for kind, values in by_kind.items()}
        result[f"steps_per_second_{clock}"] = figures
        for kind, figure in figures.items():
            print(
                f"{kind:6} median {figure['median']:9.0f} steps/s {clock} ({figure['min']:.0f} to {figure['max']:.0f})"
            )
        for kind in ("gym", "tensor") if peer else ():
            pairs = [a / b for a, b in zip(by_kind[kind], by_kind["sb3"], strict=True)]
            ratio = figures[kind]["median"] / figures["sb3"]["median"]
            result[f"{kind}_over_sb3_{clock}"] = {"of_medians": ratio, "min": min(pairs), "max": max(pairs)}
            print(f"{kind} / sb3, {clock}: {ratio:.2f} (single rounds {min(pairs):.2f} to {max(pairs):.2f})")
    if peer:
        versions = "import stable_baselines3, gymnasium; print(stable_baselines3.__version__, gymnasium.__version__)"
        peers = subprocess.run([peer, "-c", versions], check=True, capture_output=True, text=True).stdout.split()
        result["peers"] = dict(zip(("stable-baselines3", "gymnasium"), peers, strict=True))
    if save:
        keep("ppo_cartpole", result)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="python that has stable-baselines3")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save", action="store_true", help="keep the figures in results/")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of batches that are timed")
    parser.add_argument("--only", choices=SIZES, help="measure one of them in this process")
    chosen = parser.parse_args()
    if chosen.only:
        print(*measure(chosen.only, chosen.threads, chosen.scale))
    else:
        main(chosen.peer, chosen.rounds, chosen.threads, chosen.scale, chosen.save)
