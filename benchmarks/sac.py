"""Environment steps per second of SAC beside Stable-Baselines3: networks of 256-256, minibatches of 256, one update per step;
processes of their own, in turns, several rounds.

Per second of wall-clock time, and per second of processor time (of all threads), which other work on the machine disturbs less.

python benchmarks/sac.py [--peer .venv-peers/bin/python] [--env Pendulum-v1 Hopper-v5] [--rounds 5] [--steps 1500] [--threads 1] [--save]
python benchmarks/sac.py --returns 5000 --env Pendulum-v1 [--peer ...] [--save]   greedy returns after equally many steps, 5 seeds

plain: float32. auto: a run's default settings. compiled: `--compile on` beside it, compiled before the
clock starts. sb3: Stable-Baselines3. Collection and updates are timed after a warm-up; evaluation and checkpoints are not.
"""

from __future__ import annotations

import argparse
import statistics
import sys

FIRST = 1000
"""Steps before the first update, of all kinds."""
KINDS = {
    "plain": {"autocast": "off"},
    "auto": {},
    "compiled": {"compile": "on"},
    "sb3": {},
}
EPISODES, SEEDS = 20, 5
"""Of the returns that are compared."""


def run_of(kind: str, env: str, steps: int, seed: int):
    from anypo.config import from_dict
    from anypo.runs.build import build

    never = {"evaluate_every": 10**9, "checkpoint_every": 10**9, "episodes": EPISODES}
    return build(
        from_dict({"method": "sac", "task": f"gym:{env}", "steps": steps, "seed": seed, **never, **KINDS[kind]})
    )


def ours(kind: str, env: str, steps: int) -> tuple[float, float]:
    """The learning loop, between two batches: the first updates, which record and compile, come before."""
    from measured import clocks, rates

    from anypo.loops.learn import learn

    warm = FIRST + 200
    ticks: dict[int, tuple[float, float]] = {}
    learn(run_of(kind, env, warm + steps + 100, 0), lambda record: ticks.update({int(record["done"]): clocks()}))
    return rates(steps, ticks[warm], ticks[warm + steps])


def peer_of(env: str, seed: int):
    from stable_baselines3 import SAC

    return SAC("MlpPolicy", env, seed=seed, device="cpu", learning_starts=FIRST)


def theirs(env: str, steps: int) -> tuple[float, float]:
    from measured import clocks, rates

    model = peer_of(env, 0)
    model.learn(FIRST + 200)
    start = clocks()
    model.learn(steps, reset_num_timesteps=False)
    return rates(steps, start, clocks())


def greedy_return(kind: str, env: str, steps: int, seed: int) -> float:
    """Mean of greedy episodes after training."""
    if kind != "sb3":
        from anypo.loops.learn import learn

        return float(learn(run_of(kind, env, steps, seed))["eval/return"])
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    model = peer_of(env, seed)
    model.learn(steps)
    return float(evaluate_policy(model, make_vec_env(env, seed=10_000 + seed), EPISODES)[0])  # pyright: ignore[reportArgumentType]


def pythons(peer: str | None, kinds: list[str]) -> dict[str, str]:
    """The interpreter of every kind."""
    return dict.fromkeys(kinds, sys.executable) | ({"sb3": peer} if peer else {})


def speed(peer: str | None, env: str, kinds: list[str], rounds: int, steps: int, threads: int) -> dict[str, object]:
    from measured import beside, in_turns

    found = in_turns(__file__, pythons(peer, kinds), rounds, threads, env, "--env", env, "--steps", str(steps))
    return beside(found, "sb3", env)


def returns(peer: str | None, env: str, kinds: list[str], steps: int, threads: int) -> dict[str, object]:
    from measured import only

    found = {}
    for kind, python in pythons(peer, kinds).items():
        arguments = ["--env", env, "--returns", str(steps), "--seed"]
        found[kind] = [only(__file__, python, kind, threads, *arguments, str(seed))[-1] for seed in range(SEEDS)]
        print(
            f"{env} {steps} steps {kind:8} median return {statistics.median(found[kind]):8.1f} {found[kind]}",
            flush=True,
        )
    return {"steps": steps, "returns": found}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="python that has stable-baselines3")
    parser.add_argument("--env", nargs="+", default=["Pendulum-v1", "Hopper-v5"])
    parser.add_argument(
        "--kinds", nargs="+", choices=[k for k in KINDS if k != "sb3"], default=["plain", "auto", "compiled"]
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1500, help="environment steps that are timed, in fifties")
    parser.add_argument("--returns", type=int, help="compare returns after so many steps instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save", action="store_true", help="keep the figures in results/")
    parser.add_argument("--only", choices=KINDS, help="measure one of them in this process")
    chosen = parser.parse_args()
    import torch

    torch.set_num_threads(chosen.threads)
    if chosen.only and chosen.returns:
        print(greedy_return(chosen.only, chosen.env[0], chosen.returns, chosen.seed))
    elif chosen.only:
        print(
            *(
                theirs(chosen.env[0], chosen.steps)
                if chosen.only == "sb3"
                else ours(chosen.only, chosen.env[0], chosen.steps)
            )
        )
    else:
        made = {
            env: returns(chosen.peer, env, chosen.kinds, chosen.returns, chosen.threads)
            if chosen.returns
            else speed(chosen.peer, env, chosen.kinds, chosen.rounds, chosen.steps, chosen.threads)
            for env in chosen.env
        }
        if chosen.save:
            from measured import keep, peak_gflops

            figures = {"threads": chosen.threads, "rounds": chosen.rounds, "matmul_gflops": peak_gflops(), **made}
            keep("sac_returns" if chosen.returns else "sac", figures)
