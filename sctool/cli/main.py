"""The entry point: the groups, and what becomes of an error."""

from __future__ import annotations

import sys

import typer

from sctool.cli import check, download, evaluate, integrate, novelty, plot, predict, train
from sctool.cli.many import ManyValues
from sctool.errors import SctoolError

app = typer.Typer(
    name="sctool",
    help="Single-cell machine learning from one command line.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.command("check", cls=ManyValues)(check.check)
app.add_typer(download.app, name="download")
app.add_typer(train.app, name="train")
app.add_typer(predict.app, name="predict")
app.add_typer(evaluate.app, name="eval")
app.command("integrate")(integrate.integrate)
app.command("novelty", cls=ManyValues)(novelty.novelty)
app.command("plot")(plot.plot)


def version(value: bool) -> None:
    """Print the version and leave."""
    if value:
        from sctool import __version__

        typer.echo(f"sctool {__version__}")
        raise typer.Exit


@app.callback()
def root(
    show: bool = typer.Option(False, "--version", callback=version, is_eager=True, help="Print the version."),
) -> None:
    """Single-cell machine learning from one command line."""


def main() -> None:
    """Run, and turn a user's mistake into one line of what is wrong and one of what to do."""
    try:
        app()
    except SctoolError as error:
        for problem in getattr(error, "problems", [error]):
            typer.echo(f"error: {problem.message}", err=True)
            if problem.hint:
                typer.echo(f"  fix: {problem.hint}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
