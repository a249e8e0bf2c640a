"""``sctool novelty``: cells that are of no known type."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sctool.cli import options as o
from sctool.cli.session import Session, score_table
from sctool.errors import SctoolError

if TYPE_CHECKING:
    from sctool.bench.novelty import Novelty

_NOVEL = "Novel cells"
_SHOWN = {
    "auroc": "AUROC",
    "aupr": "AUPR",
    "prevalence": "chance",
    "fpr_at_95tpr": "FPR95",
    "detected": "novel\nflagged",
    "false_alarms": "known\nflagged",
}


def novelty(
    data: o.Data = None,
    label_key: Annotated[
        str | None, typer.Option(help="obs column of cell types; the known ones are learned.", rich_help_panel="Data")
    ] = None,
    novel_type: Annotated[
        str | None,
        typer.Option(
            "--hold-out", metavar="TYPE", help="Keep this type away and see if it is found; `each`: all in turn.", rich_help_panel=_NOVEL
        ),
    ] = None,
    novel_key: Annotated[
        str | None, typer.Option(help="Instead: obs column that says which cells are novel.", rich_help_panel=_NOVEL)
    ] = None,
    novel_value: Annotated[
        str | None, typer.Option(help="Its value that means novel. Default: true, yes, 1.", rich_help_panel=_NOVEL)
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(help="Detectors, several after one flag; the first one flags cells. Default: the combination and its members."),
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Share of known cells that may be flagged; default 0.05.")] = None,
    model: Annotated[Path | None, typer.Option(help="Score DATA by this model, checkpoints/novelty/RUN or checkpoints/scvi/RUN.")] = None,
    group_key: Annotated[
        str | None, typer.Option(help="obs column of donors: known cells are held out by whole donors.", rich_help_panel="Data")
    ] = None,
    batch_key: Annotated[str | None, typer.Option(help="The same, where there are no donors.", rich_help_panel="Data")] = None,
    plots: Annotated[bool, typer.Option("--plots/--no-plots", help="Draw the result, as `sctool plot` does.")] = True,
    counts_layer: o.CountsLayer = None,
    n_top_genes: o.TopGenes = None,
    name: o.Name = None,
    out: o.Out = None,
    seed: o.Seed = None,
    device: o.Device = None,
    threads: o.Threads = None,
    config: o.ConfigFile = None,
    set_: o.Set = None,
    force: o.Force = False,
    json_: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Find cells that are of no known type, and say how far that can be trusted; a higher score is a stranger cell.

    With --hold-out or --novel-key the detectors are judged on cells they have not seen; with neither they learn all cells.
    Writes results/novelty/RUN/ and checkpoints/novelty/RUN/, which --model applies to new cells.
    """
    session = Session(locals(), "novelty")
    if novel_key is not None and novel_type is None and model is None:
        session.config = session.config.replaced({"novelty.hold_out": None})
    from sctool.artifacts.result_folder import check_free

    if model is not None and novel_type is not None:
        raise SctoolError(f"--hold-out {novel_type} with --model: what the model has learned is settled", "leave one of them out")
    path = session.data_path(data)
    if model is not None:
        results = session.out / "results" / "novelty" / (session.name or f"{path.stem}-by-{model.name}")
        check_free(results, force=session.force)
        session.limit_threads()
        from sctool.bench.novelty_query import score_query

        made = score_query(model, path, session.config, session.say)
        _finish(session, made, results, plots)
        return
    settings = session.config.novelty
    what = settings.hold_out or settings.novel_key
    run = session.name or "-".join([path.stem, *([what.replace("/", "_").replace(" ", "_")] if what else []), f"seed{session.config.seed}"])
    results, checkpoint = (session.out / top / "novelty" / run for top in ("results", "checkpoints"))
    for folder in (results, checkpoint):
        check_free(folder, force=session.force)
    session.limit_threads()
    from sctool.bench.novelty import run_novelty, save_novelty, settings_of
    from sctool.data.novelty import read_typed

    settings_of(session.config)  # a wrong name of a method is said before the file is read
    cells = read_typed(path, session.config)
    for note in cells.notes:
        session.say(note)
    made, rows, types = run_novelty(cells, session.config, session.say)
    assert made.model is not None
    save_novelty(checkpoint, made.model, cells, rows, types, session.config, path, made.metrics)
    _finish(session, made, results, plots, checkpoint)


def _finish(session: Session, made: Novelty, results: Path, plots: bool, checkpoint: Path | None = None) -> None:
    """Write, draw, print."""
    tables, values = [], made.metrics
    if len(made.scores):
        made.write(results, force=session.force)
        if plots:
            from sctool.report.novelty import novelty_figures

            novelty_figures(results / "plots", ["png"], results, made.metrics)
        values = {"results": str(results), **values}
    if made.by_type is not None:
        shown = {key: title for key, title in _SHOWN.items() if key in made.summary}
        rows = [[str(name), *("" if row[key] != row[key] else f"{row[key]:.3f}" for key in shown)] for name, row in made.summary.iterrows()]
        tables.append(score_table(f"{results.name}: novel cells against held-out known ones", ["method", *shown.values()], rows))
    places = [str(results)] if len(made.scores) else []
    if checkpoint is not None:
        values, places = {"model": str(checkpoint), **values}, [*places, str(checkpoint)]
    session.result(values, tables, [*made.lines, *places])
