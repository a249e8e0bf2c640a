"""``sctool plot``: pictures from the tables of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sctool.cli import options as o
from sctool.cli.session import Session


def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Folders under results/ or checkpoints/.")],
    format_: Annotated[list[str] | None, typer.Option("--format", help="png, svg or pdf; several may be given.")] = None,
    json_: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Draw everything the tables of a run allow into its plots/ folder; several runs are also drawn side by side."""
    session = Session(locals())
    from sctool.report.draw import draw_runs

    formats = format_ or ["png"]
    made = draw_runs(runs, formats, session.say)
    session.result({"plots": [str(path) for path in made]}, [], [str(path) for path in made])
