"""Environment steps per second of PPO on CartPole-v1 beside Stable-Baselines3 and PureJaxRL: processes of their own, in turns, several
rounds.

Per second of wall-clock time, and per second of processor time (of all threads), which other work on the machine disturbs less.

python benchmarks/ppo_cartpole.py [--peer .venv-peers/bin/python] [--jax PYTHON --purejaxrl FOLDER] [--rounds 5] [--threads 1]
    [--scale 1] [--save]

gym: 8 Gymnasium environments x 128 steps, 4 epochs, minibatches of 256, networks of 64-64. sb3: the same in Stable-Baselines3.
tensor: 64 tensor environments x 128 steps, 4 epochs of 4 minibatches. purejaxrl: the same by purejaxrl/ppo.py in a checkout of
luchris429/purejaxrl, under an interpreter with jax, gymnax, flax, optax and distrax. gym-compiled, tensor-compiled: `--compile on`.
Collection and updates are timed once everything is compiled; evaluation and checkpoints are not.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import types
from pathlib import Path

HORIZON, WARM = 128, 6
"""Steps of a window, and batches before the clock starts: what comes often is compiled in the fifth."""
SIZES = {"gym": (8, 256, 160), "tensor": (64, 2048, 120)}
"""Environments, minibatch, batches that are timed."""
OWN = ("gym", "gym-compiled", "tensor", "tensor-compiled")


def ours(kind: str, scale: float) -> tuple[float, float]:
    """The learning loop."""
    from dataclasses import replace

    import torch
    from measured import clocks, rates

    from anypo.config import from_dict
    from anypo.loops.learn import learn
    from anypo.runs.build import build

    task, _, compiled = kind.partition("-")
    envs, minibatch, batches = SIZES[task]
    size, batches = envs * HORIZON, max(1, round(scale * batches))
    values = {"method": "ppo", "evaluate_every": 10**9, "compile": "on" if compiled else "off"}
    values |= {"threads": torch.get_num_threads(), "step": {"epochs": 4, "minibatch": minibatch, "lr": 3e-4}}
    # one batch more: the last one is followed by the closing evaluation
    steps = size * (WARM + batches + 1)
    run = build(from_dict(values | {"task": {"name": f"{task}:CartPole-v1", "envs": envs}, "steps": steps}))
    run.want = replace(run.want, horizon=HORIZON)
    ticks: list[tuple[float, float]] = []
    learn(run, lambda record: ticks.append(clocks()))
    return rates(size * batches, ticks[WARM], ticks[WARM + batches])


def stable_baselines(scale: float) -> tuple[float, float]:
    from measured import clocks, rates
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    envs, minibatch, batches = SIZES["gym"]
    env = make_vec_env("CartPole-v1", n_envs=envs)
    model = PPO("MlpPolicy", env, n_steps=HORIZON, batch_size=minibatch, n_epochs=4, seed=0, device="cpu")
    model.learn(WARM * envs * HORIZON)
    start, steps = clocks(), max(1, round(scale * batches)) * envs * HORIZON
    model.learn(steps, reset_num_timesteps=False)
    return rates(steps, start, clocks())


def pure_jax(folder: Path, scale: float) -> tuple[float, float]:
    """The whole training is one compiled function: its second call is timed."""
    for name in (
        "brax.envs.wrappers.training",
        "navix",
    ):  # simulators that its wrappers import and CartPole does not need
        for end in range(len(parts := name.split("."))):
            sys.modules[".".join(parts[: end + 1])] = types.ModuleType(name)
    sys.modules["brax"].envs = sys.modules["brax.envs"]  # pyright: ignore[reportAttributeAccessIssue]
    training = sys.modules["brax.envs.wrappers.training"]
    training.EpisodeWrapper = training.AutoResetWrapper = object  # pyright: ignore[reportAttributeAccessIssue]
    sys.path.insert(0, str(folder / "purejaxrl"))
    import jax
    from ppo import make_train

    envs, _, batches = SIZES["tensor"]
    steps = max(1, round(scale * batches)) * envs * HORIZON
    train = make_train(
        {
            "LR": 3e-4, "NUM_ENVS": envs, "NUM_STEPS": HORIZON, "TOTAL_TIMESTEPS": steps, "UPDATE_EPOCHS": 4,
            "NUM_MINIBATCHES": 4, "GAMMA": 0.99, "GAE_LAMBDA": 0.95, "CLIP_EPS": 0.2, "ENT_COEF": 0.0, "VF_COEF": 0.5,
            "MAX_GRAD_NORM": 0.5, "ACTIVATION": "tanh", "ENV_NAME": "CartPole-v1", "ANNEAL_LR": True, "DEBUG": False,
        }
    )  # fmt: skip
    train = jax.jit(train)
    jax.block_until_ready(train(jax.random.PRNGKey(0)))
    start = time.perf_counter(), time.process_time()
    jax.block_until_ready(train(jax.random.PRNGKey(1)))
    return steps / (time.perf_counter() - start[0]), steps / (time.process_time() - start[1])


def measure(kind: str, threads: int, scale: float, folder: Path | None) -> tuple[float, float]:
    if kind == "purejaxrl":
        assert folder is not None
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])  # jax takes every core that it sees
        return pure_jax(folder, scale)
    import torch

    torch.set_num_threads(threads)
    return stable_baselines(scale) if kind == "sb3" else ours(kind, scale)


def main(chosen: argparse.Namespace) -> None:
    from measured import beside, in_turns, keep, peak_gflops

    pythons = dict.fromkeys(chosen.kinds, sys.executable)
    pythons |= {"sb3": chosen.peer} if chosen.peer else {}
    pythons |= {"purejaxrl": chosen.jax} if chosen.jax else {}
    arguments = ["--scale", str(chosen.scale), *(["--purejaxrl", str(chosen.purejaxrl)] if chosen.purejaxrl else [])]
    found = in_turns(__file__, pythons, chosen.rounds, chosen.threads, "CartPole-v1", *arguments)
    result: dict[str, object] = {
        "threads": chosen.threads,
        "rounds": chosen.rounds,
        "matmul_gflops": peak_gflops(),
    }
    for task, peer in (("gym", "sb3"), ("tensor", "purejaxrl")):
        kinds = {kind: pairs for kind, pairs in found.items() if kind == peer or kind.partition("-")[0] == task}
        if kinds:
            result[task] = beside(kinds, peer, "CartPole-v1")
    for python, packages in ((chosen.peer, ("stable_baselines3", "gymnasium")), (chosen.jax, ("jax", "gymnax"))):
        if python:
            ask = f"from importlib.metadata import version; print(*map(version, {packages}))"
            told = subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.split()
            result["versions"] = result.get("versions", {}) | dict(zip(packages, told, strict=True))  # pyright: ignore[reportOperatorIssue]
    if chosen.save:
        keep("ppo_cartpole", result)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="python that has stable-baselines3")
    parser.add_argument("--jax", help="python that has jax and gymnax")
    parser.add_argument("--purejaxrl", type=Path, help="checkout of luchris429/purejaxrl")
    parser.add_argument("--kinds", nargs="+", choices=OWN, default=list(OWN))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save", action="store_true", help="keep the figures in results/")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of batches that are timed")
    parser.add_argument("--only", choices=(*OWN, "sb3", "purejaxrl"), help="measure one of them in this process")
    chosen = parser.parse_args()
    if chosen.only:
        print(*measure(chosen.only, chosen.threads, chosen.scale, chosen.purejaxrl))
    else:
        main(chosen)
