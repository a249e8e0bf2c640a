"""``sctool train sampleclr``, ``sctool predict sampleclr`` and ``sctool eval samples``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sctool.cli import options as o
from sctool.cli.session import Session, evaluation_table, score_table
from sctool.errors import Interrupted, SctoolError

if TYPE_CHECKING:
    from rich.table import Table

    from sctool.artifacts.model_folder import RunPlace
    from sctool.bench.evaluation import Evaluation
    from sctool.bench.sampleclr import Plan, Trained

_DATA, _MODEL, _TEST = "Data", "Model", "Test"
SPARE = {"retention": "targets kept", "removal": "batch removed", "total": "total", "replicates": "donors together"}


def train(
    data: o.Data = None,
    ar: o.AR = None,
    sample_key: o.SampleKey = None,
    donor_key: o.DonorKey = None,
    rep: o.Rep = None,
    task: o.SampleTasks = None,
    batch_key: Annotated[str | None, typer.Option(help="obs column of batches to hide.", rich_help_panel=_DATA)] = None,
    label_key: Annotated[
        str | None, typer.Option(help="obs column of cell types: for baselines and importance; never trained on.", rich_help_panel=_DATA)
    ] = None,
    study_key: o.StudyKey = None,
    covariate: Annotated[
        list[str] | None, typer.Option(help="obs column that the baseline of covariates may use; may be repeated.", rich_help_panel=_DATA)
    ] = None,
    sample_cells: Annotated[
        int | None, typer.Option("--min-cells", help="Samples with fewer are not trained on.", rich_help_panel=_DATA)
    ] = None,
    counts_layer: o.CountsLayer = None,
    n_top_genes: o.TopGenes = None,
    preset: Annotated[str | None, typer.Option(help="Size: tiny, middle or large.", rich_help_panel=_MODEL)] = None,
    n_heads: Annotated[int | None, typer.Option(help="Heads of attention.", rich_help_panel=_MODEL)] = None,
    n_latent: Annotated[int | None, typer.Option(help="Dimensions of the embedding.", rich_help_panel=_MODEL)] = None,
    n_hidden: Annotated[int | None, typer.Option(help="Units of a hidden layer.", rich_help_panel=_MODEL)] = None,
    n_layers: Annotated[int | None, typer.Option(help="Layers of the projector.", rich_help_panel=_MODEL)] = None,
    cells_per_view: Annotated[str | None, typer.Option(metavar="N|N-M", help="Cells drawn for a view.", rich_help_panel=_MODEL)] = None,
    prior: Annotated[
        str | None, typer.Option(help="Similarity of samples to keep: none, gloscope, pseudobulk or a CSV.", rich_help_panel=_MODEL)
    ] = None,
    sample_cv: Annotated[
        str | None,
        typer.Option("--cv", help="auto, donors:K, leave-one-donor-out, leave-one-study-out, column:NAME or none.", rich_help_panel=_TEST),
    ] = None,
    sample_repeats: Annotated[int | None, typer.Option("--repeats", help="Of the folds.", rich_help_panel=_TEST)] = None,
    permutations: Annotated[int | None, typer.Option(help="Shuffles behind a p-value; 0: none.", rich_help_panel=_TEST)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.", rich_help_panel=_TEST)] = False,
    plots: Annotated[bool, typer.Option("--plots/--no-plots", help="Draw the result, as `sctool plot` does.")] = True,
    epochs: Annotated[int | None, typer.Option(help="Of the contrast alone.", rich_help_panel="Training")] = None,
    task_epochs: Annotated[int | None, typer.Option(help="Of the tasks.", rich_help_panel="Training")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Most samples in a minibatch.", rich_help_panel="Training")] = None,
    lr: o.LearningRate = None,
    patience: o.Patience = None,
    precision: o.Precision = None,
    sampler: o.SamplerName = None,
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
    """Learn one vector for each sample, test it on donors held out beside simple baselines, and say which cells matter.

    Writes checkpoints/sampleclr/RUN/ and results/sampleclr/RUN/. Without --task nothing is predicted: the embedding is judged by whether
    it finds the other half of a sample's cells.
    """
    flags = locals()
    if cells_per_view is not None:
        flags["set_"] = [*(set_ or []), f"sampleclr.cells_per_view={_numbers(cells_per_view)}"]
    session = Session(flags, "sampleclr")
    path = session.data_path(data)
    session.limit_threads()
    from sctool.bench.sampleclr import plan, train_cohort
    from sctool.engine.sample_prior import check_prior

    made_plan = plan(path, session.config, session.say)
    check_prior(made_plan.cohort, made_plan.config)
    for note in _idle(flags, made_plan):
        session.say(f"note: {note}")
    if dry_run:
        session.result(dict(made_plan.rows), [score_table("", ["what", "value"], made_plan.rows, "left")], [])
        return
    from sctool.artifacts.model_folder import RunPlace
    from sctool.artifacts.result_folder import check_free
    from sctool.engine.device import choose_device, describe_device
    from sctool.engine.progress import TerminalReporter, counted

    run = session.name or _run_name(session, path.stem)
    results, folder = (session.out / part / "sampleclr" / run for part in ("results", "checkpoints"))
    place = RunPlace(folder, resume=session.resume, force=session.force)
    if place.finished and results.exists():
        _require_same(folder, made_plan)
        session.result({"model": str(folder), "results": str(results)}, [], [f"{folder} is finished already"])
        return
    if not session.resume:
        check_free(results, force=session.force)
    session.say(f"device: {describe_device(choose_device(session.config.device))}")
    silent = session.quiet or session.json
    force = session.force or session.resume
    try:
        with counted(None if silent else session.console) as tick:
            reporter = None if silent else TerminalReporter(session.console)
            made = train_cohort(made_plan, place, results, force=force, reporter=reporter, tick=tick, say=session.say)
    except (KeyboardInterrupt, Interrupted) as error:
        raise _interrupted(error, place, made_plan) from None
    finally:
        place.close()
    if plots:
        from sctool.report.draw import draw_runs

        draw_runs([results], ["png"], session.say)
    _print(session, made, results)


def predict(
    model: o.Model,
    data: o.Data = None,
    sample_key: o.SampleKey = None,
    donor_key: o.DonorKey = None,
    rep: Annotated[
        str | None, typer.Option(help="Where DATA has what the model reads. Default: as in training.", rich_help_panel=_DATA)
    ] = None,
    label_key: Annotated[str | None, typer.Option(help="obs column of cell types, to sum importance by.", rich_help_panel=_DATA)] = None,
    draws: Annotated[int, typer.Option(min=0, help="Bootstraps of the cells behind sd; 0: none.")] = 0,
    importance: Annotated[bool, typer.Option("--importance/--no-importance", help="Write the weight of each cell.")] = True,
    counts_layer: o.CountsLayer = None,
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
    """Embed new samples and predict what the model has heads for; writes results/sampleclr/RUN/ with embeddings.csv and predictions.csv."""
    flags = {key: value for key, value in locals().items() if key != "rep"}
    session = Session(flags, "sampleclr")
    from sctool.artifacts.model_folder import open_model
    from sctool.artifacts.result_folder import check_free

    folder = open_model(model, "sampleclr")
    path = session.data_path(data)
    results = session.out / "results" / "sampleclr" / (session.name or f"{path.stem}-by-{folder.name}")
    check_free(results, force=session.force)
    session.limit_threads()
    from sctool.bench.sample_predict import predict_samples

    embeddings, predictions = predict_samples(
        folder, path, session.config, results, rep=rep, draws=draws, importance=importance, force=session.force, say=session.say
    )
    figures = {"samples": len(embeddings), "cells": int(embeddings["n_cells"].sum()), "far": int(embeddings["far"].sum())}
    figures["too_few_cells"] = int((~embeddings["enough_cells"]).sum())
    rows = [[key.replace("_", " "), f"{value:,}"] for key, value in figures.items()]
    lines = []
    if figures["far"]:
        listed = ", ".join(embeddings.loc[embeddings["far"], "sample"].astype(str)[:5])
        lines.append(f"note: {figures['far']} samples are farther from all training samples than these are from each other: {listed}")
    named = predictions[predictions["prediction"].map(lambda value: isinstance(value, str))] if len(predictions) else predictions
    for (column, value), part in named.groupby(["task", "prediction"]) if len(named) else ():
        rows.append([f"{column}: {value}", f"{len(part):,}"])
    session.result({"results": str(results), **figures}, [score_table(results.name, ["what", "samples"], rows)], [*lines, str(results)])


def evaluate(
    data: Annotated[Path | None, typer.Argument(help="The .h5ad of the cells, for baselines made of them. Default: none.")] = None,
    embeddings: Annotated[
        list[Path] | None, typer.Option(help="CSV with a row for each sample: its name and its dimensions; may be repeated.")
    ] = None,
    metadata: Annotated[
        Path | None, typer.Option(help="CSV with a row for each sample. Default: other columns of the first embedding, and of DATA.")
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN[:KIND]", help="What should be there: class, regression or ordinal; may be repeated.")
    ] = None,
    technical: Annotated[
        list[str] | None, typer.Option(help="Column that should not be there, such as the batch; may be repeated.")
    ] = None,
    covariate: Annotated[list[str] | None, typer.Option(help="Column that the baseline of covariates may use; may be repeated.")] = None,
    sample_key: Annotated[str | None, typer.Option(help="Column of samples. Default: sample, or the first.", rich_help_panel=_DATA)] = None,
    donor_key: o.DonorKey = None,
    study_key: o.StudyKey = None,
    rep: o.Rep = None,
    label_key: Annotated[str | None, typer.Option(help="obs column of cell types of DATA, for baselines.", rich_help_panel=_DATA)] = None,
    sample_cv: Annotated[
        str | None,
        typer.Option("--cv", help="auto, donors:K, leave-one-donor-out or leave-one-study-out.", rich_help_panel=_TEST),
    ] = None,
    sample_repeats: Annotated[int | None, typer.Option("--repeats", help="Of the folds.", rich_help_panel=_TEST)] = None,
    permutations: Annotated[int | None, typer.Option(help="Shuffles behind a p-value; 0: none.", rich_help_panel=_TEST)] = None,
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
    """Score anyone's embedding of samples by a linear probe on donors held out; writes results/samples/RUN/.

    The embedding is taken as it is: what made it may have seen the donors that are held out here, and if it saw their labels, the scores
    mean nothing.
    """
    flags = {key: value for key, value in locals().items() if key != "target"} | {"task": target}
    session = Session(flags, "sampleclr")
    if not embeddings:
        raise SctoolError("nothing to score", "give --embeddings embeddings.csv")
    if not target:
        raise SctoolError("there is no target", "give a column of the metadata with --target")
    from sctool.artifacts.result_folder import check_free

    stems = [path.resolve().parent.name if path.stem == "embeddings" else path.stem for path in embeddings]
    run = stems[0] if len(stems) == 1 else f"{stems[0]}-and-{stems[1] if len(stems) == 2 else f'{len(stems) - 1}-more'}"
    results = session.out / "results" / "samples" / (session.name or run)
    check_free(results, force=session.force)
    session.limit_threads()
    from sctool.bench.sample_eval import evaluate_embeddings

    made = evaluate_embeddings(embeddings, metadata, data, session.config, technical or [], session.say)
    made.write(results, force=session.force)
    tables = [_of_task(one) for one in made.evaluations]
    shown = {key: said for key, said in SPARE.items() if made.spare[key].notna().any()}
    rows = [[row["name"], *(f"{row[key]:.3f}" if row[key] == row[key] else "-" for key in shown)] for row in made.spare.to_dict("records")]
    tables.append(score_table("nearest samples (SPARE), 0 to 1", ["name", *shown.values()], rows))
    session.result({"results": str(results), **made.metrics}, tables, [*made.lines, str(results)])


def _idle(flags: dict[str, Any], made: Plan) -> list[str]:
    """What was asked for and does nothing."""
    notes = []
    if flags["patience"] is not None and not made.config.data.validation:
        notes.append("--patience does nothing: no donors are set aside to judge by; --set data.validation=0.2 would set a fifth aside")
    given = [f"--{key.replace('_', '-')}" for key in ("n_hidden", "n_layers") if flags[key] is not None]
    if given and not made.tasks:
        said = f"{' and '.join(given)} {'does' if len(given) == 1 else 'do'} nothing"
        notes.append(f"{said}: only the networks for the tasks have hidden layers, and there is no --task")
    return notes


def _require_same(folder: Path, made: Plan) -> None:
    """Refuse to take a finished run for one with other settings, or of other data."""
    from sctool.artifacts.model_folder import open_model

    model = open_model(folder, "sampleclr")
    model.require_settings(made.config.model_dump(include={"data", "train", "ar", "sampleclr"}), made.config.seed)
    if model.manifest["data"]["fingerprint"] != made.cohort.fingerprint:
        raise SctoolError(f"{folder} was trained on other cells or samples", "give another --name, or --force to train it again")


def _interrupted(error: BaseException, place: RunPlace, made: Plan) -> Interrupted:
    """What is kept of a run that was broken off."""
    if isinstance(error, Interrupted) and error.hint:
        return error  # of the last network, with its state
    done = sum(path.name.startswith(("fold", "alone")) for path in place.part.glob("*.safetensors"))
    total = len(made.folds) * (1 + bool(made.tasks))
    return Interrupted(f"interrupted; {done} of {total} fits are kept", "give --resume to go on" if place.begun else "")


def _numbers(text: str) -> str:
    found = re.fullmatch(r"(\d+)(?:[-:,](\d+))?", text.strip())
    if not found:
        raise SctoolError(f"--cells-per-view {text!r} is not a number or two", "write 500, or 100-500")
    return f"[{found[1]}, {found[2]}]" if found[2] else found[1]


def _of_task(made: Evaluation) -> Table:
    """Scores of a target, called by its name."""
    from sctool.bench.sample_tables import SHOWN

    table = evaluation_table(made, SHOWN[made.about["kind"]])
    table.title = f"{made.about['target']}: {made.about['samples']} samples of {made.about['donors']} donors, held out"
    return table


def _print(session: Session, made: Trained, results: Path) -> None:

    values = {"model": str(made.folder.path), "results": str(results), **made.metrics}
    tables = [_of_task(one) for one in made.evaluations]
    if len(made.retrieval):
        rows = [[row["name"], f"{row['top1']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}"] for row in made.retrieval.to_dict("records")]
        tables.append(score_table("halves of held-out samples found", ["name", "top 1", "95 % interval"], rows))
    session.result(values, tables, [*made.lines, str(results), str(made.folder.path)])


def _run_name(session: Session, stem: str) -> str:
    """Data, tasks, size, sampler and seed: what usually differs between the runs of a loop."""
    settings = session.config.sampleclr
    tasks = "+".join(said.rpartition(":")[0] or said for said in settings.tasks)
    parts = [stem, tasks, settings.preset if settings.preset != "tiny" else ""]
    parts += [{"uniform": "standard", "adaptive": "ar", "balanced": "balanced"}[session.config.train.sampler]]
    return re.sub(r"[^\w.+-]+", "_", "-".join([*filter(None, parts), f"seed{session.config.seed}"]))
