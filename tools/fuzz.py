"""Train short runs with random flags: every one ends well, or in one sentence.

    python tools/fuzz.py --cases 5000

Each case is one to three random flags on one of the base runs, drawn from its number alone, so `--first 1234 --cases 1` repeats it.
It runs in a process forked from this one. What may not happen: a traceback, more than 10 seconds or 4 GiB unless the plan announced a
long or a large run, exit 0 with a number that is not finite.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import torch

import anypo
from anypo import policies, tasks
from anypo.cli import app as command_line
from anypo.config import Config, from_dict
from anypo.flags import parse_flags
from anypo.parts.knobs.base import KNOBS
from anypo.parts.registry import PARTS, link_name
from anypo.ranges import Range, alternatives, field_hints, parameter_hints
from anypo.stages import CHAINS, PIECES, SLOTS, declared

SECONDS, BYTES = 10.0, 4 * 2**30
ENOUGH = 2.0
"""CPU seconds after which a run that was announced as long is ended."""
LONG, MANY, LARGE = (50_000, 4_000), 500, 1024
"""Decisions and updates of a run, held-out starts, and MiB, from which on the plan's own figures announce it as long or large."""


BASES = (
    "grpo --task bandit --steps 2",
    "grpo --task bandit --steps 2 --step.epochs 2 --step.minibatch 16",
    "reinforce --task bandit --steps 2",
    "dapo --task bandit --steps 2",
    "ppo --task bandit --steps 2",
    "ppo --task gym:CartPole-v1 --task.envs 1 --task.eval_episodes 1 --steps 512 --step.epochs 1",
    "a2c --task gym:CartPole-v1 --task.envs 2 --task.eval_episodes 1 --steps 64",
    "grpo --task gym:CartPole-v1 --task.eval_episodes 1 --collect.requests 2 --collect.samples 2 --steps 2",
    "ppo --task tensor:CartPole-v1 --task.envs 2 --task.eval_episodes 1 --steps 2 --step.epochs 1",
    "dqn --task gym:CartPole-v1 --task.eval_episodes 1 --steps 100 --store.start 20 --store.ratio 0.1",
    "sac --task gym:Pendulum-v1 --task.eval_episodes 1 --steps 100 --store.start 20 --store.ratio 0.1 --store.batch 8",
    "td3 --task gym:Pendulum-v1 --task.eval_episodes 1 --steps 100 --store.start 20 --store.ratio 0.1 --store.batch 8",
    "iql --task data:d.npz --task.env Pendulum-v1 --task.eval_episodes 1 --steps 10 --store.idle 5 --store.batch 8",
    "cql --task data:d.npz --task.env Pendulum-v1 --task.eval_episodes 1 --steps 10 --store.idle 5 --store.batch 8",
    "flow-grpo --task multimodal --collect.requests 2 --collect.samples 2 --steps 2 --episodes 20",
    "ddpo --task multimodal --collect.requests 2 --collect.samples 2 --steps 2 --episodes 20",
    "grpo --task jsonl:p.jsonl --reward exact --policy hf:lm --collect.requests 2 --collect.samples 2 --task.max_new 3 --steps 2",
    "rloo --task jsonl:p.jsonl --reward regex:a --policy hf:lm --collect.requests 2 --collect.samples 2 --task.max_new 3 --steps 2",
    "dpo --task pairs:q.jsonl --policy hf:lm --collect.requests 2 --steps 2",
)
TYPED = (
    *(
        "-1",
        "0",
        "1",
        "2",
        "3",
        "7",
        "0.5",
        "1.0",
        "-0.1",
        "1e-12",
        "1e-3",
        "1e9",
        "1e30",
        "1e308",
        "-1e308",
        "nan",
        "inf",
        "-.inf",
    ),
    *(
        "",
        " ",
        "none",
        "null",
        "true",
        "false",
        "on",
        "x",
        "010",
        "1:30",
        "0x10",
        "1_000",
        "1,2",
        "[1, 2]",
        "[]",
        "{}",
        "[[1]]",
    ),
    *(
        "{a: 1}",
        "{knob: linear}",
        "{knob: linear, start: 0, end: 1}",
        "{knob: dual, start: 1, metric: nothing, bound: 0}",
    ),
    *("{knob: clock}", "- x", "a: b", "#", "99999999999999999999", "é", "../x", "x" * 300),
)


@dataclass(frozen=True)
class Outcome:
    """How a case ended: exit code, output, seconds, bytes, and the folder it wrote to."""

    code: int
    out: str
    seconds: float
    peak: int
    folder: Path


def settings_of(base: str) -> dict[str, Any]:
    """Return the annotations of every flag a base run has, by path."""
    words, values = parse_flags(base.split())
    config = from_dict({**values, "method": words[0]})
    hints = {f.name: field_hints(Config)[f.name] for f in fields(Config) if f.name not in ("stages", "method", "out")}
    kind = config.task["name"].partition(":")[0]
    entry = tasks.TASKS[kind]
    hints |= {f"task.{name}": hint for name, hint in entry.options().items()}
    method = anypo.method(words[0])
    factory = policy_factory(config, method)
    hints |= {f"policy.{name}": parameter_hints(factory)[name] for name in policies.keywords(factory)}
    for slot in SLOTS:
        hints[slot] = str
        for part in method.parts(slot):
            hints |= hints_of(part, f"{slot}.{link_name(part)}" if slot in CHAINS else slot)
    aliases = ("lr", "learning-rate", "batch-size", "beta", "total-timesteps", "group-size", "num-generations")
    return hints | dict.fromkeys(aliases, float)


def hints_of(part: Any, path: str) -> dict[str, Any]:
    """Return the annotations of a part's settings by path, those of its pieces included."""
    pieces = declared(part, "pieces")
    hints = {f"{path}.{f.name}": str if f.name in pieces else field_hints(type(part))[f.name] for f in fields(part)}
    for name in pieces:
        held = getattr(part, name)
        for i, piece in enumerate(held if isinstance(held, tuple) else [held] if held is not None else []):
            hints |= hints_of(piece, f"{path}.{name}.{i}" if isinstance(held, tuple) else f"{path}.{name}")
    return hints


def policy_factory(config: Config, method: Any) -> Any:
    """Return what makes the policy of a base run."""
    from anypo.policies.control import mlp, off_policy
    from anypo.policies.generative import diffusion, flow
    from anypo.policies.language.model import LanguageModel
    from anypo.policies.tabular import SoftmaxTable

    name = str(config.policy.get("name") or ("table" if config.task["name"] == "bandit" else method.policy or "mlp"))
    factories = {
        "mlp": mlp.MLPPolicy,
        "flow": flow.FlowPolicy,
        "diffusion": diffusion.DiffusionPolicy,
        "table": SoftmaxTable,
    }
    return LanguageModel.load if name.startswith("hf:") else factories.get(name, off_policy.Actor)


def draw_value(rng: random.Random, path: str, hint: Any) -> str:
    """Draw a value of a flag: within its range, at its edge, or any text."""
    kind = path.rpartition(".")[2]
    if (path in SLOTS or kind in PIECES) and rng.random() < 0.8:
        names = sorted(PARTS[kind])
        return rng.choice([*PARTS[kind], "none", ",".join(rng.sample(names, min(2, len(names))))])
    option, limits = rng.choice(list(alternatives(hint)))
    if get_origin(option) is Literal and rng.random() < 0.8:
        return str(rng.choice(get_args(option)))
    if option in (int, float) and isinstance(limits, Range) and rng.random() < 0.85:
        low, high = max(limits.least, limits.above, -10), min(limits.most, limits.below, 100)
        edges = [x for x in (limits.least, limits.above, limits.most, limits.below) if math.isfinite(x)]
        x = rng.choice([*edges, rng.uniform(low, high), low + 10 ** rng.uniform(-6, 0) * (high - low)])
        return f"{round(x) if option is int else x}"
    if rng.random() < 0.1:
        return f"{{knob: {rng.choice(sorted(KNOBS))}, start: {rng.choice([0, 0.1, 1])}, end: {rng.choice([-1, 0, 0.2, 5])}}}"
    return rng.choice(TYPED)


def draw_case(number: int, settings: dict[str, dict[str, Any]]) -> list[str]:
    """Return the command line of a case."""
    rng = random.Random(number)
    base = rng.choice(BASES)
    flags = []
    for path in rng.sample(sorted(settings[base]), rng.randint(1, 3)):
        flags += [f"--{path}={draw_value(rng, path, settings[base][path])}"]
    return ["train", *base.split(), *flags]


def run_case(command: list[str], folder: Path) -> Outcome:
    """Run a command line in a process forked from this one, in a folder of its own beside the data."""
    place = folder / "case"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for item in folder.iterdir():
        if item.name not in ("case", "output"):
            (place / item.name).symlink_to(item)
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        behave(command, place, folder / "output")
    while time.monotonic() - start < 60 * SECONDS:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            break
        spent = usage_seconds(pid)
        if spent > 1.5 * SECONDS or (spent > ENOUGH and is_announced((folder / "output").read_text(errors="replace"))):
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    else:
        os.kill(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
    spent = usage.ru_utime + usage.ru_stime
    out = (folder / "output").read_text(errors="replace")
    return Outcome(os.waitstatus_to_exitcode(status), out, spent, usage.ru_maxrss * 1024, place)


def usage_seconds(pid: int) -> float:
    """Return the CPU seconds a process has used."""
    try:
        numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")


def behave(command: list[str], place: Path, output: Path) -> None:
    """Be the command line: its output goes to a file, its memory is limited; never returns."""
    code = 70
    try:
        os.chdir(place)
        handle = os.open(output, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        resource.setrlimit(resource.RLIMIT_AS, (3 * BYTES, 3 * BYTES))
        sys.argv = ["anypo", *command]
        command_line.main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def judge(outcome: Outcome) -> str | None:
    """Say what is wrong with an outcome; None where nothing is."""
    announced = is_announced(outcome.out)
    if "Traceback" in outcome.out:
        return "traceback"
    if (outcome.seconds > SECONDS or outcome.code == -signal.SIGKILL) and not announced:
        return f"took {outcome.seconds:.0f} s, and the plan did not announce it"
    if outcome.peak > BYTES and not announced:
        return f"took {outcome.peak / 2**30:.1f} GiB, and the plan did not announce it"
    if outcome.code < 0:
        return None if announced else f"died of signal {-outcome.code}"
    sentences = [text for text in outcome.out.splitlines() if text.startswith("anypo: ")]
    if outcome.code in (1, 2):
        return None if len(sentences) == 1 else f"exit {outcome.code} with {len(sentences)} sentences"
    if outcome.code:
        return f"exit {outcome.code}"
    return bad_number(outcome)


def is_announced(out: str) -> bool:
    """Whether the figures of the plan say that the run is long or large."""
    length = next((text for text in out.splitlines() if text.startswith("length")), "")
    figures = [int(n.replace(",", "")) for n in re.findall(r"([\d,]+) (?:decisions|updates)", length)]
    starts = re.search(r"on ([\d,]+) held-out starts", out)
    if starts is not None and int(starts[1].replace(",", "")) > MANY:
        return True
    memory = re.search(r"memory +about ([\d,]+) MiB", out)
    decisions, updates = figures if len(figures) == 2 else [0, *figures, 0][:2]
    return decisions > LONG[0] or updates > LONG[1] or (memory is not None and int(memory[1].replace(",", "")) > LARGE)


def bad_number(outcome: Outcome) -> str | None:
    """Name a number of a finished run's result, last record or closing line that is not finite."""
    runs = list(outcome.folder.rglob("result.json"))
    if not runs:
        return "exit 0 without a result"
    result = json.loads(runs[0].read_text(), parse_constant=lambda c: f"constant {c}")
    for name, value in result.items():
        if (isinstance(value, str) and value.startswith("constant ")) or value is None:
            return f"{name} of the result is {value}"
    last = json.loads((runs[0].parent / "metrics.jsonl").read_text().splitlines()[-1])
    missing = [name for name, value in last.items() if value is None]
    return f"{missing[0]} of the last record is not finite" if missing else None


def make_data(folder: Path) -> None:
    """Write the data and the language model of the base runs."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    import tiny

    tiny.language_model(folder / "lm", "llama", kind="char")
    rows = [{"prompt": f"the {c} cat", "answer": c} for c in "abcdefgh"]
    pairs = [{"prompt": f"the {c} cat", "chosen": "sat", "rejected": c} for c in "abcdefgh"]
    for name, records in (("p.jsonl", rows), ("q.jsonl", pairs)):
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    g = np.random.default_rng(0)
    columns = {
        "observations": g.normal(size=(60, 3)),
        "actions": g.uniform(-2, 2, (60, 1)),
        "rewards": g.normal(size=60),
    }
    np.savez(folder / "d.npz", **columns, terminals=np.zeros(60, bool), timeouts=np.arange(60) % 20 == 19)


def warm_up(folder: Path) -> None:
    """Make some of the base runs in this process, so that forked ones find everything imported."""
    before = Path.cwd()
    os.chdir(folder)
    for base in (BASES[0], *(base for base in BASES if base.startswith(("dqn", "iql", "flow-grpo", "dpo")))):
        sys.argv = ["anypo", "train", *base.split(), "--out", "warm"]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
            command_line.main()
        shutil.rmtree("warm")
    os.chdir(before)
    gc.collect()
    gc.freeze()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--verbose", action="store_true", help="print every case and how it ended")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    failures, codes = 0, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder)
        warm_up(folder)
        settings = {base: settings_of(base) for base in BASES}
        for number in range(arguments.first, arguments.first + arguments.cases):
            command = draw_case(number, settings)
            outcome = run_case(command, folder)
            codes[outcome.code] = codes.get(outcome.code, 0) + 1
            fault = judge(outcome)
            if arguments.verbose:
                print(
                    number,
                    " ".join(command),
                    f"\n   {outcome.code} {outcome.seconds:.1f} s",
                    outcome.out.splitlines()[-1:],
                )
            if fault is not None:
                failures += 1
                print(
                    f"case {number}: {fault}\n  anypo {' '.join(map(repr, command))}\n  {outcome.out[-600:]!r}",
                    flush=True,
                )
    print(f"{arguments.cases} cases, {failures} failures, exit codes {dict(sorted(codes.items()))}")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
