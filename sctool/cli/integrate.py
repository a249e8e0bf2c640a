"""``sctool integrate``: batches of cells into one space."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sctool.cli import options as o
from sctool.cli.evaluate import INTEGRATION_SHOWN
from sctool.cli.session import Session, evaluation_table, score_table
from sctool.cli.train import run_name, train_model

if TYPE_CHECKING:
    from sctool.artifacts.model_folder import ModelFolder

_MODEL = "Model"


def integrate(
    data: o.Data = None,
    batch_key: o.BatchKey = None,
    label_key: Annotated[str | None, typer.Option(help="obs column of cell types, some or all known.", rich_help_panel="Data")] = None,
    mode: Annotated[str | None, typer.Option(help="auto, supervised, semi or unsupervised.", rich_help_panel=_MODEL)] = None,
    ddpm_refine: Annotated[
        bool | None, typer.Option("--ddpm-refine", help="Carry cells to one batch by the latent diffusion.", rich_help_panel=_MODEL)
    ] = None,
    refine_steps: Annotated[int | None, typer.Option(help="How far into the noise; of 400, default 200.", rich_help_panel=_MODEL)] = None,
    target_batch: Annotated[
        str | None, typer.Option(help="Batch that expression is decoded as; or average, source.", rich_help_panel=_MODEL)
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Apply this model, checkpoints/integrate/RUN, instead of training one.")] = None,
    score: Annotated[bool | None, typer.Option("--score/--no-score", help="Score the codes beside the cells as they were.")] = None,
    plots: Annotated[bool, typer.Option("--plots/--no-plots", help="Draw the result, as `sctool plot` does.")] = True,
    phases: Annotated[
        Path | None, typer.Option(help="A YAML list of data sets to learn one after the other.", rich_help_panel=_MODEL)
    ] = None,
    n_latent: Annotated[int | None, typer.Option(help="Latent dimensions.", rich_help_panel=_MODEL)] = None,
    n_hidden: Annotated[int | None, typer.Option(help="Units of a hidden layer.", rich_help_panel=_MODEL)] = None,
    n_layers: Annotated[int | None, typer.Option(help="Hidden layers.", rich_help_panel=_MODEL)] = None,
    group_key: o.GroupKey = None,
    hold_out: o.HoldOut = None,
    counts_layer: o.CountsLayer = None,
    n_top_genes: o.TopGenes = None,
    backed: o.Backed = None,
    epochs: o.Epochs = None,
    batch_size: o.BatchSize = None,
    lr: o.LearningRate = None,
    patience: o.Patience = None,
    precision: o.Precision = None,
    sampler: o.SamplerName = None,
    ar: o.AR = None,
    ar_bins: o.ARBins = None,
    ar_smoothing: o.ARSmoothing = None,
    ar_warmup: o.ARWarmup = None,
    ar_refresh: o.ARRefresh = None,
    ar_density: o.ARDensity = None,
    ar_embedding: o.AREmbedding = None,
    name: o.Name = None,
    out: o.Out = None,
    seed: o.Seed = None,
    device: o.Device = None,
    threads: o.Threads = None,
    config: o.ConfigFile = None,
    set_: o.Set = None,
    resume: o.Resume = False,
    force: o.Force = False,
    json_: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Bring batches of cells into one space: codes, corrected expression, cell types, scores.

    Writes checkpoints/integrate/RUN/ and results/integrate/RUN/.
    """
    session = Session(locals(), "integrate")
    from sctool.artifacts.model_folder import open_model
    from sctool.artifacts.result_folder import check_free

    if phases is not None:
        _in_phases(session, phases, data, model)
        return
    path = session.data_path(data)
    if model is None:
        run = session.name or run_name(session, "integrate", path.stem)
        results = session.out / "results" / "integrate" / run
        if not session.resume:
            check_free(results, force=session.force)
        folder = train_model(session, "integrate", path)
    else:
        session.limit_threads()
        folder = open_model(model, "integrate")
        results = session.out / "results" / "integrate" / (session.name or f"{path.stem}-by-{folder.name}")
        check_free(results, force=session.force)
    _apply(session, folder, path, results, plots)


def _apply(session: Session, folder: ModelFolder, path: Path, results: Path, plots: bool) -> None:
    """Encode, refine, decode, score, write and draw the cells of a file."""
    from sctool.bench.integrated import integrate_cells

    made = integrate_cells(folder, path, session.config, session.say)
    made.write(results, force=session.force or session.resume)
    if plots and made.evaluation:
        from sctool.report.draw import draw_runs

        draw_runs([results], ["png"], session.say)
    rows = [[key, f"{value:.4g}" if isinstance(value, float) else str(value)] for key, value in made.figures.items()]
    tables = [score_table(results.name, ["figure", "value"], rows, "left")]
    if made.evaluation:
        tables.append(evaluation_table(made.evaluation, INTEGRATION_SHOWN if "total" in made.evaluation.columns else ()))
    session.result({"results": str(results), "model": str(folder.path), **made.metrics}, tables, [*made.lines, str(results)])


def _in_phases(session: Session, file: Path, data: Path | None, model: Path | None) -> None:
    """Sequential transfer; writes a model for each phase, and how each phase's cells fare after the later ones."""
    from sctool.artifacts.model_folder import open_model
    from sctool.bench.phases import run_phases
    from sctool.data.phases import read_phases
    from sctool.engine.progress import TerminalReporter

    phases = read_phases(file)
    run = session.name or f"{file.stem}-seed{session.config.seed}"
    config = session.config.replaced({"data.path": str(data)}) if data else session.config
    session.limit_threads()
    made = run_phases(
        phases,
        config,
        session.out,
        run,
        first=open_model(model, "integrate") if model else None,
        resume=session.resume,
        force=session.force,
        say=session.say,
        reporter=None if session.quiet or session.json else lambda: TerminalReporter(session.console),
    )
    shown = [column for column in ("total", "batch", "bio", "accuracy") if column in made.table]
    rows = [[row["after"], row["cells_of"], *(f"{row[c]:.3f}" for c in shown)] for _, row in made.table.iterrows()]
    table = score_table("held-out cells of each phase, after each phase", ["after", "cells of", *shown], rows)
    session.result(made.metrics, [table], [*made.lines, str(made.results)])
