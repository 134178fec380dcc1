"""The Typer application: options shared by commands, errors as one sentence. Every flag of `train` is a dotted path of the run's
YAML file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from anypo import __version__
from anypo.cli.completion import complete_words
from anypo.errors import RunError, UsageError, describe_failure

if TYPE_CHECKING:
    from anypo.config import Config

ABOUT = "Policy optimization in which every published method is a difference from one you already know."


app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


FREE = {"ignore_unknown_options": True, "allow_extra_args": True}


Words = Annotated[
    list[str],
    typer.Argument(metavar="METHOD|config.yaml [FLAGS]", show_default=False, shell_complete=complete_words),
]


Folder = Annotated[Path, typer.Argument(metavar="RUN", help="a run's folder", show_default=False)]


Checkpoint = Annotated[str, typer.Option("--checkpoint", help="best, last, or the number of a batch")]


AllowCode = Annotated[
    bool,
    typer.Option("--allow-code", help="execute the run's Python files although they are not those it started with"),
]


AsJson = Annotated[bool, typer.Option("--json", help="machine-readable")]


out = Console(soft_wrap=True)


def show_version(asked: bool | None) -> bool:
    """Print the version and leave, where it was asked for."""
    if asked:
        typer.echo(__version__)
        raise typer.Exit
    return False


@app.callback(help=ABOUT)
def take_options(
    version: Annotated[bool, typer.Option("--version", callback=show_version, is_eager=True, help="print it")] = False,
) -> None:
    """Take the options that stand before a command."""


def read_config(words: list[str]) -> Config:
    """Read `METHOD [FLAGS]` or `config.yaml [FLAGS]` as a Config; flags override the file."""
    from anypo.config import from_dict, merge
    from anypo.flags import parse_flags
    from anypo.plain_yaml import load_yaml

    names, flags = parse_flags(words)
    if len(names) != 1:
        raise UsageError(f"name one METHOD or config.yaml, got {', '.join(names) or 'none'}; see `anypo methods`")
    name = names[0]
    if not name.endswith((".yaml", ".yml")):
        return from_dict({**flags, "method": name})
    path = Path(name)
    values = load_yaml(path)
    # the file of a finished run starts a new one beside it
    if values.get("out") and Path(values["out"]).resolve() == path.resolve().parent:
        values["out"] = None
    return from_dict(merge(values, flags))


def main() -> None:
    """Run the command line; a UsageError ends in one line and exit code 2, a RunError in exit code 1."""
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
    except BrokenPipeError:  # as of `anypo methods | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        sentence = describe_failure(error)
        if sentence is None:
            raise
        sys.stderr.write(f"anypo: {sentence}\n")
        sys.exit(1)
