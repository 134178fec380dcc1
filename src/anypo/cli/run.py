"""Commands that train and use runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from anypo.cli.app import FREE, AllowCode, Checkpoint, Folder, Words, app, out, read_config
from anypo.errors import RunError, UsageError, describe_failure


@app.command("train", context_settings=FREE, no_args_is_help=True)
def train_method(words: Words) -> None:
    """Train METHOD, or the run of a YAML file changed by flags; the last line is the run's folder and its measure before and after.

    Every flag takes a value and is a dotted path of the YAML file:

    - `--task T`: sums (default), jsonl:FILE, pairs:FILE, gym:ENV_ID, tensor:NAME, ... (see `anypo tasks`); `--task.OPTION value`
    - `--policy P`: tiny, hf:NAME_OR_DIR, mlp, table (default: the task's own); `--policy.OPTION value`, such as `--policy.lora.r 8`
    - `--reward FILE.py:FUNCTION`: a reward of a jsonl or pairs task, or exact, numeric, math, regex, model:RUN; may be repeated
    - `--STAGE part` and `--STAGE.setting value`: collect, ...; see `anypo parts`
    - `--steps N`: length in batches, or environment steps for Gymnasium; `--target X`: stop once the held-out measure reaches X
    - `--metric NAME`: the held-out measure that heads the run and ranks its checkpoints (default: the task's own)
    - `--seed S`, `--out DIR`, `--episodes N` (per evaluation), `--evaluate-every N`, `--checkpoint-every N` (batches)
    - `--device auto|cpu|cuda`, `--autocast auto|on|off`, `--micro N` (decisions per forward pass), `--threads N`
    - `--kernels plain`: each kernel replaced by the plain PyTorch code it is tested against; slower, equal up to rounding
    - `--compile on`: compiled updates and rollouts of control policies, after about a minute of a C++ compiler
    - `--trackers tensorboard,wandb,trackio`
    - `--lr`, `--learning-rate`, `--total-timesteps`, `--group-size`, `--num-generations`, `--batch-size`, `--beta`: usual words for
      the settings `step.lr`, `steps`, `collect.samples`, `store.batch` or `step.minibatch`, and the method's own beta
    - values: numbers in plain decimal, `true`, `false`, `none`; several numbers `1,0.5`; lists and dictionaries in brackets, as in
      YAML; everything else, and every name, path or stop string, is taken as it was typed
    - `--set PATH=VALUE`: any of these in another spelling; may be repeated

    Example: `anypo train grpo --ratio min-prefix --trust.high 0.28 --steps 100`
    """
    config = read_config(words)
    from anypo.report.trackers import check_trackers
    from anypo.runs.folder import create

    check_trackers(config.trackers)
    run = create(config)
    try:
        run_to_end(run)
    except (UsageError, RunError):
        if run.claim and not run.begun:
            run.claim.withdraw()
        raise


@app.command("resume")
def resume_run(
    folder: Folder,
    steps: Annotated[
        int | None, typer.Option(min=1, help="a new total length, in batches, or environment steps for Gymnasium")
    ] = None,
    allow_code: AllowCode = False,
) -> None:
    """Continue a run from its newest checkpoint, or from config.yaml where there is none yet; --steps lengthens a finished one."""
    from anypo.report.console import closing_line, result_of
    from anypo.runs.folder import continue_run

    result = result_of(folder)
    if result and (steps or 0) <= result["done"]:
        out.print(f"{folder} is finished", highlight=False)
        typer.echo(closing_line(folder, result))
        return
    run_to_end(continue_run(folder, steps, allow_code=allow_code))


def run_to_end(run: Any) -> None:
    """Print the plan, train with live progress, print the closing line."""
    from anypo.loops.learn import learn
    from anypo.report.console import finish, plan, progress
    from anypo.report.trackers import open_trackers
    from anypo.runs.files import keep_traceback

    try:
        plan(run, out)
        with progress(run, out) as watch, open_trackers(run, run.config.trackers, watch) as watch_all:
            learn(run, watch_all)
        closing = finish(run)
    except KeyboardInterrupt:
        typer.echo(f"anypo: interrupted; go on with `anypo resume {run.folder}`", err=True)
        raise typer.Exit(130) from None
    except RunError as error:
        keep_traceback(run, error)
        raise
    except (RuntimeError, ValueError, LookupError, AssertionError) as error:
        if (refusal := misfit(run, error)) is None:
            raise
        raise refusal from error
    typer.echo(closing)


def misfit(run: Any, error: Exception) -> UsageError | None:
    """Return one sentence for an error before the first update of stages that the user put together; None for any other error."""
    ours = isinstance(error, (UsageError, RunError)) or describe_failure(error) is not None
    if ours or run.stepper.updates or not run.method.replaced:
        return None
    return UsageError(
        f"{run.method.card.id} with another {', '.join(sorted(run.method.replaced))} does not fit the task {run.task.name} and the"
        f" policy {run.config.policy['name']}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    )


@app.command("evaluate")
def evaluate_run(
    folder: Folder,
    checkpoint: Checkpoint = "last",
    episodes: Annotated[int | None, typer.Option(min=1, help="held-out episodes or prompts")] = None,
    seed: Annotated[int | None, typer.Option(help="seed of the evaluation")] = None,
    video: Annotated[Path | None, typer.Option(help="film the first episode (.gif, .mp4)")] = None,
    allow_code: AllowCode = False,
) -> None:
    """Measure a run on held-out starts; the last line is the number (accuracy, or mean return)."""
    from anypo.loops.evaluate import held_out
    from anypo.loops.finite import require_measure
    from anypo.runs.folder import reopen

    run = reopen(folder, checkpoint, allow_code=allow_code)
    for remark in run.remarks:
        typer.echo(f"anypo: {remark}", err=True)
    run.config.episodes = episodes or run.config.episodes
    run.config.seed = run.config.seed if seed is None else seed
    measured = held_out(run)
    require_measure(run, measured)
    measures = {name.removeprefix("eval/"): value for name, value in measured.items()}
    text = ", ".join(f"{name} {value:.4g}" for name, value in measures.items())
    if video is not None:
        from anypo.tasks.control.video import film_episode

        film_episode(run.task, run.policy, run.config.seed, video)
    typer.echo(f"{folder} after {run.batch} batches: {text}")
    typer.echo(f"{measures[run.metric]:.6g}")


@app.command()
def sample(
    folder: Folder,
    prompt: Annotated[str, typer.Argument(help="what to complete", show_default=False)],
    checkpoint: Checkpoint = "last",
    n: Annotated[int, typer.Option("-n", min=1, help="completions")] = 1,
    greedy: Annotated[bool, typer.Option("--greedy", help="the likeliest token every time")] = False,
    max_new: Annotated[int | None, typer.Option("--max-new", min=1, help="tokens at most")] = None,
    seed: Annotated[int, typer.Option(help="seed of the draws")] = 0,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="show every token: the prompt's dim, those trained on green")
    ] = False,
) -> None:
    """Complete a prompt with a run's language model; its rewards are not loaded, so no file of theirs is executed.

    Several completions have a line `--- NUMBER` before each.
    """
    from anypo.loops.complete import complete_prompt
    from anypo.runs.folder import reopen
    from anypo.tasks.text.rewards import unscored

    with unscored():
        run = reopen(folder, checkpoint)
    ids, completions = complete_prompt(run, prompt, n, greedy=greedy, max_new=max_new, seed=seed)
    for number, completion in enumerate(completions, 1):
        if n > 1:
            typer.echo(f"--- {number}")
        if tokens:
            pieces = run.policy.tokenizer.convert_ids_to_tokens([*ids, *completion])
            colours = ["dim"] * len(ids) + ["green"] * len(completion)
            out.print(Text("|").join(Text(p, c) for p, c in zip(pieces, colours, strict=True)))
        else:
            typer.echo(run.policy.decode(completion))


@app.command("export")
def export_run(
    folder: Folder,
    to: Annotated[str, typer.Option("--to", help="torch or onnx")] = "torch",
    out_: Annotated[
        Path | None, typer.Option("--out", help="file (default: RUN/policy.pt2 or RUN/policy.onnx)")
    ] = None,
    checkpoint: Checkpoint = "last",
    allow_code: AllowCode = False,
) -> None:
    """Write a run's control policy as a program of raw observations that loads without anypo; the last line is the file.

    It gives the greedy actions of a batch of observations: `torch.export.load(FILE).module()(obs)`.
    """
    from anypo.api import load

    typer.echo(load(folder, checkpoint, allow_code=allow_code).export(to, out_))
