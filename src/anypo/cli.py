"""The command line. Every flag of `train` is a dotted path of the run's YAML file."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from anypo.config import Config, from_dict, load, merge, parse_flags
from anypo.errors import RunError, UsageError

app = typer.Typer(
    help="Policy optimization in which every published method is a difference from one you already know.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
FREE = {"ignore_unknown_options": True, "allow_extra_args": True}
Words = Annotated[list[str], typer.Argument(metavar="METHOD|config.yaml [FLAGS]", show_default=False)]
Folder = Annotated[Path, typer.Argument(metavar="RUN", help="a run's folder", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="machine-readable")]
out = Console(soft_wrap=True)


@app.command(context_settings=FREE, no_args_is_help=True)
def train(words: Words) -> None:
    """Train METHOD, or what a YAML file says with flags on top; the last line is the run's folder and its measure before and after.

    Every flag takes a value and is a dotted path of the YAML file:

    - `--task T`: sums (default), jsonl:FILE, pairs:FILE, gym:ENV_ID, tensor:NAME, ... (see `anypo tasks`); `--task.OPTION value`
    - `--policy P`: tiny, hf:NAME_OR_DIR, mlp, table (default: the task's own); `--policy.OPTION value`, such as `--policy.lora.r 8`
    - `--reward FILE.py:FUNCTION`: a reward of a jsonl or pairs task, or exact, numeric, math, regex, model:RUN; may be repeated
    - `--STAGE part` and `--STAGE.setting value`: collect, ...; see `anypo parts`
    - `--steps N`: length in batches, or environment steps for Gymnasium; `--target X`: stop once the held-out measure reaches X
    - `--seed S`, `--out DIR`, `--episodes N` (per evaluation), `--evaluate-every N`, `--checkpoint-every N` (batches)
    - `--device auto|cpu|cuda`, `--autocast auto|on|off`, `--micro N` (decisions per forward pass), `--threads N`
    - `--compile on`: machine code for control's updates and rollouts, made in about a minute by a C++ compiler
    - `--trackers tensorboard,wandb,trackio`
    - `--set PATH=VALUE`: any of these in another spelling; may be repeated

    Example: `anypo train grpo --ratio min-prefix --trust.high 0.28 --steps 100`
    """
    config = configuration(words)
    from anypo.loops.run import create
    from anypo.report.trackers import check

    check(config.trackers)
    existed = config.out is not None and Path(config.out).exists()
    run = create(config)
    try:
        go(run)
    except UsageError:
        if run.batch == 0 and run.folder is not None and not existed:
            shutil.rmtree(run.folder)
        raise


@app.command()
def resume(folder: Folder) -> None:
    """Go on with a run from its newest checkpoint."""
    from anypo.loops.run import reopen, rewind
    from anypo.report.console import result_of, summary

    if result := result_of(folder):
        out.print(f"{folder} is finished", highlight=False)
        typer.echo(summary(folder, result))
        return
    run = reopen(folder)
    for name in ("metrics.jsonl", "timing.jsonl"):
        rewind(run, name)
    go(run)


def go(run: Any) -> None:
    """Plan, learn with live progress, finish."""
    from anypo.loops.learn import learn
    from anypo.report.console import finish, plan, progress
    from anypo.report.trackers import tracked

    plan(run, out)
    try:
        with progress(run, out) as watch, tracked(run, run.config.trackers, watch) as watch_all:
            learn(run, watch_all)
        line = finish(run)
    except KeyboardInterrupt:
        typer.echo(f"anypo: interrupted; go on with `anypo resume {run.folder}`", err=True)
        raise typer.Exit(130) from None
    typer.echo(line)


@app.command()
def evaluate(
    folder: Folder,
    episodes: Annotated[int | None, typer.Option(min=1, help="held-out episodes or prompts")] = None,
    seed: Annotated[int | None, typer.Option(help="seed of the evaluation")] = None,
) -> None:
    """Measure a run's newest checkpoint on held-out starts; the last line is the number (accuracy, or mean return)."""
    from anypo.loops.learn import held_out
    from anypo.loops.run import reopen

    run = reopen(folder)
    run.config.episodes = episodes or run.config.episodes
    run.config.seed = run.config.seed if seed is None else seed
    found = {name.removeprefix("eval/"): value for name, value in held_out(run).items()}
    shown = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
    typer.echo(f"{folder} after {run.batch} batches: {shown}")
    typer.echo(f"{found[run.task.metric]:.6g}")


@app.command("collect", context_settings=FREE, no_args_is_help=True)
def collect_data(
    words: Words,
    out_: Annotated[str, typer.Option("--out", help="namespace of the data sets, OUT/QUALITY-v0")],
    quality: Annotated[
        str, typer.Option(help="random, medium, expert, mixed, medium-expert, noisy; several with commas")
    ] = "mixed",
    number: Annotated[int, typer.Option("--number", min=1, help="episodes per data set")] = 100,
) -> None:
    """Train METHOD on a Gymnasium task and write what its policies do as Minari data sets; further flags are those of `train`.

    The last line names the data sets. Example: `anypo collect sac --task gym:Pendulum-v1 --quality mixed,expert --out pendulum`
    """
    from anypo.errors import unknown
    from anypo.loops.gather import QUALITIES, gather
    from anypo.loops.run import build
    from anypo.report.console import progress

    wanted = [name.strip() for name in quality.split(",")]
    for name in wanted:
        if name not in QUALITIES:
            raise unknown("quality", name, QUALITIES)
    run = build(configuration(words))
    with progress(run, out) as watch:
        means = gather(run, wanted, number, out_, watch)
    typer.echo(", ".join(f"minari:{name} (mean return {mean:.4g})" for name, mean in means.items()))


@app.command()
def describe(
    source: Annotated[
        str, typer.Argument(metavar="DATASET", help="minari:ID, or an .npz or .parquet file", show_default=False)
    ],
    env: Annotated[str | None, typer.Option(help="its environment, where the data do not name it")] = None,
    reference: Annotated[
        str | None, typer.Option(help="replayed experience that coverage (SACo) is relative to")
    ] = None,
    low: Annotated[float | None, typer.Option(help="return of a random policy")] = None,
    high: Annotated[float | None, typer.Option(help="return of an expert")] = None,
    as_json: AsJson = False,
) -> None:
    """What a data set is like: returns, quality (TQ), coverage (SACo), entropy, and what reweighting trajectories could win."""
    from anypo.estimators.dataset import measures
    from anypo.tasks.data import Dataset, read

    def load_table(text: str) -> Dataset:
        data = read(text)
        name = env or data.get("env")
        if name is None:
            raise UsageError(f"{text} does not name its environment; give --env ENV_ID")
        return Dataset(text, data, name, envs=1)

    data = load_table(source)
    other = None if reference is None else load_table(reference).table
    found = measures(data.table, data.low if low is None else low, data.high if high is None else high, other)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    table = Table("measure", "value")
    for name, value in found.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else f"{value:.4g}")
    out.print(table)


@app.command()
def sample(
    folder: Folder,
    prompt: Annotated[str, typer.Argument(help="what to complete", show_default=False)],
    n: Annotated[int, typer.Option("-n", min=1, help="completions")] = 1,
    greedy: Annotated[bool, typer.Option("--greedy", help="the likeliest token every time")] = False,
    max_new: Annotated[int | None, typer.Option("--max-new", min=1, help="tokens at most")] = None,
    seed: Annotated[int, typer.Option(help="seed of the draws")] = 0,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="show every token: given ones dim, those trained on green")
    ] = False,
) -> None:
    """Complete a prompt with a run's language model."""
    import torch

    from anypo.loops.run import reopen

    run = reopen(folder)
    if not hasattr(run.task, "records"):
        raise UsageError(f"{folder} is a run of {run.task.name}; `sample` needs a language model")
    chat = not isinstance(run.task.records[0]["prompt"], str)
    ids = run.policy.encode([{"role": "user", "content": prompt}] if chat else prompt)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        done = run.policy.sample([ids], generator, samples=n, max_new=max_new or run.task.max_new, greedy=greedy)
    for row, length in zip(done.ids.tolist(), done.lengths.tolist(), strict=True):
        if tokens:
            pieces = run.policy.tokenizer.convert_ids_to_tokens([*ids, *row[:length]])
            colours = ["dim"] * len(ids) + ["green"] * length
            out.print(Text("|").join(Text(p, c) for p, c in zip(pieces, colours, strict=True)))
        else:
            typer.echo(run.policy.decode(row[:length]))


@app.command(context_settings=FREE)
def compare(
    words: Annotated[list[str], typer.Argument(metavar="METHOD... [FLAGS]", show_default=False)],
    seeds: Annotated[int, typer.Option(min=1, help="seeds 0 to K-1, the same for every method")] = 3,
    jobs: Annotated[int, typer.Option(min=1, help="runs at once")] = 1,
    folder: Annotated[Path | None, typer.Option("--out", help="folder (default runs/compare-TASK)")] = None,
    match_gain: Annotated[
        bool, typer.Option("--match-gain", help="scale learning rates so that no method wins by larger steps")
    ] = False,
) -> None:
    """Train several methods with the same seeds and say which is better, with intervals; finished runs are not repeated.

    Takes the flags of `anypo train`. A method may have some of its own: `anypo compare ppo ppo:trust.high=0.3,compile=on`.
    Writes table.json and learning-curve.png.
    """
    from anypo.report.compare import compare as run_all
    from anypo.report.compare import show

    names, flags = parse_flags(words)
    try:
        table = run_all(names, flags, seeds=seeds, jobs=jobs, folder=folder, match_gain=match_gain, say=typer.echo)
    except KeyboardInterrupt:
        typer.echo("anypo: interrupted; the same command goes on where this one stopped", err=True)
        raise typer.Exit(130) from None
    out.print(show(table))
    typer.echo(table["folder"])


@app.command("methods")
def list_methods(
    family: Annotated[str | None, typer.Option(help="only this family")] = None, as_json: AsJson = False
) -> None:
    """The methods, and what each changes in its base."""
    cards = [card_of(name) for name in method_ids()]
    families = sorted({card["family"] for card in cards})
    if family is not None and family not in families:
        from anypo.errors import unknown

        raise unknown("family", family, families)
    cards = [card for card in cards if family in (None, card["family"])]
    if as_json:
        typer.echo(json.dumps(cards, indent=2))
        return
    table = Table("method", "year", "base", "changed", "verdict", "title")
    for card in sorted(cards, key=lambda c: (c["year"], c["id"])):
        seen = (card["evidence"] or {}).get("verdict") or ""
        table.add_row(
            card["id"], str(card["year"]), card["base"] or "", ", ".join(card["changed"]), seen, card["title"]
        )
    out.print(table)


def method_ids() -> list[str]:
    import anypo

    return anypo.methods()


def card_of(name: str) -> dict[str, Any]:
    """A registered method as plain values."""
    import anypo
    from anypo.evidence.verify import ledger, summary

    found = anypo.method(name)
    facts = {key: getattr(found.card, key) for key in ("id", "title", "year", "arxiv", "family", "base")}
    evidence = summary(ledger().get(name, {}))
    return {**facts, "stages": found.texts(), "changed": found.changed, "evidence": evidence}


@app.command()
def parts(stage: Annotated[str | None, typer.Option(help="only this stage")] = None, as_json: AsJson = False) -> None:
    """The parts each stage can be filled with, and their settings."""
    from dataclasses import MISSING, fields

    from anypo.errors import unknown
    from anypo.parts import PARTS
    from anypo.stages import SLOTS

    if stage is not None and stage not in SLOTS:
        raise unknown("stage", stage, SLOTS)
    found = [
        {
            "stage": slot,
            "part": name,
            "settings": {f.name: None if f.default is MISSING else f.default for f in fields(cls)},
            "does": (cls.__doc__ or "").strip().split("\n")[0],
        }
        for slot, known in PARTS.items()
        if stage in (None, slot)
        for name, cls in known.items()
    ]
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    table = Table("stage", "part", "settings", "does")
    for row in found:
        settings = ", ".join(f"{name}={value}" for name, value in row["settings"].items())
        table.add_row(row["stage"], row["part"], settings, row["does"])
    out.print(table)


@app.command("tasks")
def list_tasks() -> None:
    """The tasks and the policies, by the names `train` takes."""
    from anypo.policies import POLICIES
    from anypo.tasks import TASKS

    for kind, known in (("task", TASKS), ("policy", POLICIES)):
        table = Table(kind, "what")
        for name, text in known.items():
            table.add_row(name, text)
        out.print(table)


@app.command(context_settings=FREE)
def explain(
    words: Annotated[list[str], typer.Argument(metavar="METHOD [--STAGE part]", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """A method's stages with the changed ones marked, its equation, source and cost; `--STAGE part` shows what would change."""
    import anypo

    config = configuration(words)
    found = anypo.method(config.method).configure(config.stages)
    if not as_json:
        typer.echo(found.explain())
        for line in evidence_lines(config.method):
            typer.echo(line)
        return
    facts = {key: getattr(found.card, key) for key in ("equation", "source", "claim", "confidence")}
    typer.echo(
        json.dumps({**card_of(config.method), **facts, "stages": found.texts(), "changed": found.changed}, indent=2)
    )


def evidence_lines(name: str) -> list[str]:
    """What the ledger holds about a method, a line each."""
    from anypo.evidence.verify import ledger

    found = ledger().get(name)
    if found is None:
        return ["Evidence   none recorded: anypo verify " + name]
    p = found["properties"]
    lines = [
        f"Properties {p['passed']} of {p['of']} hold on {p['cases']} random batches",
        f"Verdict    {found.get('verdict', 'no claim tested')}",
    ]
    lines += [f"  failed   {sentence}" for sentence in p["failed"]]
    for claim in found["claims"]:
        low, high = claim["interval"]
        lines.append(f"  {claim['verdict']}: {claim['text']}")
        lines.append(
            f"    {claim['experiment']}, {claim['measure']} ({claim['better']} is better) against {claim['against']}: effect"
            f" {claim['effect']:.3g} [{low:.3g}, {high:.3g}], {len(claim['seeds'])} seeds, {claim['seconds']:.0f} s"
        )
    return lines


@app.command()
def verify(
    names: Annotated[list[str] | None, typer.Argument(metavar="METHOD...", show_default=False)] = None,
    family: Annotated[str | None, typer.Option(help="every method of a family")] = None,
    everything: Annotated[bool, typer.Option("--all", help="every method")] = False,
    quick: Annotated[bool, typer.Option(help="properties, and experiments under about five seconds only")] = False,
    seeds: Annotated[str, typer.Option(help="a number of seeds, or a range such as 10-19")] = "10",
    jobs: Annotated[int, typer.Option(min=1, help="methods at once")] = 1,
    keep: Annotated[bool, typer.Option("--record", help="write what was found into the ledger")] = False,
    path: Annotated[Path, typer.Option("--ledger", help="where the ledger is written")] = Path("evidence/ledger.json"),
    report: Annotated[Path | None, typer.Option(help="run nothing; write the ledger as a Markdown table there")] = None,
) -> None:
    """Check a method's properties, and put its claims to the test: effect, 95% interval over paired seeds, verdict.

    A claim is supported if the interval lies above 0, not supported at this scale if the mean is not above 0, else mixed.
    Ends with exit code 1 if a property fails; a verdict is never an error.
    """
    from anypo.evidence.verify import examine_all, markdown, record

    if report is not None:
        report.write_text(markdown())
        return
    chosen = methods_to_verify(names or [], family, everything)
    if keep and quick:
        raise UsageError("--record writes whole records; leave --quick out")
    failed, verdicts, records = 0, {}, {}
    for name, found in examine_all(chosen, seed_range(seeds), quick, jobs):
        p = found["properties"]
        failed += len(p["failed"])
        typer.echo(f"{name}: {p['passed']} of {p['of']} properties on {p['cases']} batches, {found['seconds']:.0f} s")
        for sentence in p["failed"]:
            typer.echo(f"  FAILED {sentence}")
        for claim in found["claims"]:
            low, high = claim["interval"]
            typer.echo(
                f"  {claim['verdict']}: {claim['text']} ({claim['experiment']}/{claim['measure']} against {claim['against']}:"
                f" {claim['effect']:.3g} [{low:.3g}, {high:.3g}], {len(claim['seeds'])} seeds, {claim['seconds']:.0f} s)"
            )
        if "verdict" in found:
            verdicts[found["verdict"]] = verdicts.get(found["verdict"], 0) + 1
        records[name] = found
        if keep:
            record(path, {name: found})
    told = ", ".join(f"{count} {name}" for name, count in sorted(verdicts.items())) or "no claim tested"
    typer.echo(f"{len(records)} methods: {failed} properties failed; {told}")
    if failed:
        raise typer.Exit(1)


def methods_to_verify(names: list[str], family: str | None, everything: bool) -> list[str]:
    """The ids meant by exactly one of names, a family, or everything."""
    import anypo
    from anypo.errors import unknown

    if sum((bool(names), family is not None, everything)) != 1:
        raise UsageError("name methods, or give --family F, or --all")
    if names:
        return [anypo.method(name).card.id for name in names]
    cards = {name: anypo.method(name).card for name in method_ids()}
    families = sorted({card.family for card in cards.values()})
    if family is not None and family not in families:
        raise unknown("family", family, families)
    return [name for name, card in cards.items() if everything or card.family == family]


def seed_range(text: str) -> list[int]:
    """`5` is seeds 0 to 4, `10-19` these ten."""
    low, dash, high = text.partition("-")
    if not low.isdigit() or (dash and not high.isdigit()):
        raise UsageError(f"--seeds takes a number or a range such as 10-19, not {text!r}")
    found = list(range(int(low), int(high) + 1)) if dash else list(range(int(low)))
    if not found:
        raise UsageError(f"--seeds {text} names no seed")
    return found


@app.command(context_settings=FREE)
def microscope(
    words: Annotated[list[str], typer.Argument(metavar="METHOD [--STAGE part]", show_default=False)],
    png: Annotated[Path | None, typer.Option("--png", help="picture of the weight curve")] = None,
    as_json: AsJson = False,
) -> None:
    """What a method's gradient is made of: weight over ratio, on-policy gain, bias on an enumerable problem, dead terms."""
    from dataclasses import asdict

    import anypo
    from anypo.evidence.microscope import look, picture

    config = configuration(words)
    found = anypo.method(config.method).configure(config.stages)
    reading = look(found)
    if png is not None and reading.curve:
        picture(reading, config.method, png)
    if as_json:
        typer.echo(json.dumps(asdict(reading), indent=2))
        return
    if reading.gain is None:
        typer.echo("weight and gain: none, the policy does not learn from the advantage of its log-probabilities")
    else:
        table = Table("log ratio", "W (A = +1)", "W (A = -1)")
        for x, up, down in reading.curve:
            table.add_row(f"{x:+.2f}", f"{up:.3f}", f"{down:.3f}")
        out.print(table)
        typer.echo(f"on-policy gain {reading.gain:.3f} (plain REINFORCE with the same advantages and mean is 1)")
    if reading.quality is None:
        typer.echo(
            "gradient on enumerable sequences: not measured, the method looks at what a table of logits does not have"
        )
    else:
        q = reading.quality
        typer.echo(
            f"gradient on enumerable sequences: cosine {q['cosine']:.3f} per batch, bias {q['bias']:.3f} (sine of the angle of the"
            f" mean), variance {q['variance']:.2f}"
        )
    for name in reading.idle:
        typer.echo(f"switched off (coefficient 0): {name}")
    for name in reading.dead:
        typer.echo(f"DEAD: {name} contributes no gradient at all")
    if not reading.dead:
        typer.echo("no dead term")


def configuration(words: list[str]) -> Config:
    """The Config of `METHOD [FLAGS]` or `config.yaml [FLAGS]`: the file, then the flags on top."""
    names, flags = parse_flags(words)
    if len(names) != 1:
        given = f"got {', '.join(names)}" if names else "got none"
        raise UsageError(f"name one METHOD or config.yaml, {given}; see `anypo methods`")
    name = names[0]
    if not name.endswith((".yaml", ".yml")):
        return from_dict({**flags, "method": name})
    path = Path(name)
    values = load(path)
    # A run's own file makes a new run beside it.
    if values.get("out") and Path(values["out"]).resolve() == path.resolve().parent:
        values["out"] = None
    return from_dict(merge(values, flags))


def main() -> None:
    """Entry point: errors of use end in one line and exit code 2, failures during a run in exit code 1."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app()
    except (UsageError, RunError) as error:
        sys.stderr.write(f"anypo: {error}\n")
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except KeyboardInterrupt:
        sys.stderr.write("anypo: interrupted before the run began\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
