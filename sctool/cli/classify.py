"""``sctool train classify`` and ``sctool predict classify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sctool.cli import options as o
from sctool.cli.session import Session, evaluation_table, score_table
from sctool.errors import Interrupted, SctoolError

if TYPE_CHECKING:
    from sctool.bench.classify import Classified

_MODEL, _TRUST = "Model", "Trust"
SHOWN = ("f1_macro_present", "accuracy", "balanced_accuracy", "ece", "coverage", "accuracy_assigned")

Models = Annotated[
    list[str] | None, typer.Option("--models", help="Of lr, svm, rf, xgb, mlp; several after one flag.", rich_help_panel=_MODEL)
]
Features = Annotated[str | None, typer.Option(help="hvg, all, a FILE of genes, or obsm:KEY.", rich_help_panel=_MODEL)]
Imbalance = Annotated[
    str | None, typer.Option(help="none, balanced, sqrt, oversample or smote; inside each training fold.", rich_help_panel=_MODEL)
]
RejectRule = Annotated[
    str | None, typer.Option(metavar="RULE", help="none, max_prob:0.7, quantile:0.95 or conformal:0.95.", rich_help_panel=_TRUST)
]


def train(
    data: o.Data = None,
    label_key: o.ScoreLabelKey = None,
    split_key: Annotated[str | None, typer.Option(help="obs column to split by.", rich_help_panel="Data")] = None,
    split_train: Annotated[
        list[str] | None, typer.Option(help="Its values to train on. Default: the rest.", rich_help_panel="Data")
    ] = None,
    split_test: Annotated[list[str] | None, typer.Option(help="Its values to test on. Default: the rest.", rich_help_panel="Data")] = None,
    group_key: Annotated[str | None, typer.Option(help="obs column of donors or cultures, kept whole.", rich_help_panel="Data")] = None,
    batch_key: Annotated[str | None, typer.Option(help="The same, where there are no donors.", rich_help_panel="Data")] = None,
    models: Models = None,
    features: Features = None,
    cv: Annotated[
        str | None,
        typer.Option(help="Without a split: auto, leave-one-group-out, groups:K, cells:K, pairs or none.", rich_help_panel=_MODEL),
    ] = None,
    imbalance: Imbalance = None,
    tune: Annotated[
        bool | None, typer.Option("--tune", help="Try settings on held-out groups of the training cells.", rich_help_panel=_MODEL)
    ] = None,
    calibrate: Annotated[str | None, typer.Option(help="temperature, isotonic or none.", rich_help_panel=_TRUST)] = None,
    reject: RejectRule = None,
    explain: Annotated[bool | None, typer.Option("--explain", help="Which genes decide, for each type.", rich_help_panel=_TRUST)] = None,
    min_cells: Annotated[int | None, typer.Option("--min-cells-per-class", help="Leave out rarer types.", rich_help_panel="Data")] = None,
    max_cells: Annotated[
        int | None, typer.Option("--max-cells-per-class", help="Train on so many at most.", rich_help_panel="Data")
    ] = None,
    plots: Annotated[bool, typer.Option("--plots/--no-plots", help="Draw the result, as `sctool plot` does.")] = True,
    counts_layer: o.CountsLayer = None,
    n_top_genes: o.TopGenes = None,
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
    """Train classifiers of cell types and test them on batches or donors held out.

    Writes checkpoints/classify/RUN/MODEL/ and results/classify/RUN/. With --split-key one side is trained on and the other tested;
    without, groups are held out in turn and the models kept are those of all cells. Options of training concern mlp.
    """
    session = Session(locals(), "classify")
    from sctool.artifacts.result_folder import check_free
    from sctool.bench.classify import check_models

    path = session.data_path(data)
    check_models(session.config.classify.models)
    run = session.name or _run_name(session, path.stem)
    results, checkpoints = (session.out / part / "classify" / run for part in ("results", "checkpoints"))
    if not session.resume:
        check_free(results, force=session.force)
    session.limit_threads()
    from sctool.artifacts.model_folder import RunPlace
    from sctool.bench.classified import write_classified
    from sctool.bench.classify import classify_file
    from sctool.engine.bundle import RECOMMENDED
    from sctool.engine.progress import counted

    place = RunPlace(checkpoints, resume=session.resume, force=session.force, marker=RECOMMENDED)
    if place.finished:
        session.result({"results": str(results), "model": str(checkpoints)}, [], [f"{checkpoints} is finished already"])
        return
    try:
        with counted(None if session.quiet or session.json else session.console) as tick:
            made = classify_file(path, session.config, place=place, say=session.say, tick=tick)
        write_classified(made, results, checkpoints, session.config, force=session.force or session.resume)
        place.saved = True
    except (KeyboardInterrupt, Interrupted):
        kept = f"; the folds done are in {place.part}" if place.begun else ""
        raise Interrupted(f"interrupted{kept}", "give --resume to go on" if kept else "") from None
    finally:
        place.close()
    _print(session, made, results, checkpoints, plots=plots)


def _print(session: Session, made: Classified, results: Path, checkpoints: Path, *, plots: bool) -> None:
    values = {"model": str(checkpoints), "recommended": made.recommended}
    if made.evaluation is None:
        rows = [[name, str(fitted.held_out.get("macro_f1"))] for name, fitted in made.models.items()]
        session.result(values, [score_table(results.name, ["model", "macro F1 inside training"], rows)], [*made.lines, str(checkpoints)])
        return
    if plots:
        from sctool.report.draw import draw_runs

        draw_runs([results], ["png"], session.say)
    lines = [*made.evaluation.verdict(), *made.evaluation.notes, *made.lines, str(results), str(checkpoints)]
    session.result({"results": str(results), **values, **made.evaluation.metrics}, [evaluation_table(made.evaluation, SHOWN)], lines)


def _run_name(session: Session, stem: str) -> str:
    """Data, split and seed, and the features where they are not the usual ones: what usually differs between the runs of a loop."""
    import re

    c = session.config.classify
    if not stem:
        raise SctoolError("the file has no name", "give --name")
    side = "+".join(c.split_train), "+".join(c.split_test)
    parts = [
        stem,
        f"{side[0] or 'rest'}-to-{side[1] or 'rest'}" if any(side) else "",
        c.features.rpartition("/")[2] if c.features != "hvg" else "",
    ]
    parts += [c.imbalance if c.imbalance != "balanced" else "", "ar" if session.config.train.sampler == "adaptive" else ""]
    return re.sub(r"[^\w.+-]+", "_", "-".join([*filter(None, parts), f"seed{session.config.seed}"]))


def predict(
    model: Annotated[Path, typer.Argument(help="checkpoints/classify/RUN, or one model of it: .../RUN/xgb.")],
    data: o.Data = None,
    vote: Annotated[str | None, typer.Option(help="Cells of a cluster agree: an obs column, or auto.", rich_help_panel=_TRUST)] = None,
    min_share: Annotated[
        float | None, typer.Option("--min-prop", help="Share its label needs, else Heterogeneous.", rich_help_panel=_TRUST)
    ] = None,
    reject: Annotated[
        str | None, typer.Option(metavar="RULE", help="none, or max_prob:0.7. Default: the rule of training.", rich_help_panel=_TRUST)
    ] = None,
    hierarchy: Annotated[
        str | None, typer.Option(metavar="TSV", help="child, parent: unsure cells get the name of a group.", rich_help_panel=_TRUST)
    ] = None,
    back_off: Annotated[float | None, typer.Option(help="Probability such a name needs.", rich_help_panel=_TRUST)] = None,
    write_h5ad: Annotated[Path | None, typer.Option(help="Also a copy of DATA with the labels in obs.")] = None,
    counts_layer: o.CountsLayer = None,
    name: o.Name = None,
    out: o.Out = None,
    device: o.Device = None,
    threads: o.Threads = None,
    config: o.ConfigFile = None,
    set_: o.Set = None,
    force: o.Force = False,
    json_: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Call the types of new cells; writes predictions.csv, proba.csv and gene_report.tsv to results/classify/RUN/."""
    session = Session(locals(), "classify")
    from sctool.artifacts.result_folder import check_free

    path = session.data_path(data)
    run = model.name if (model / "recommended.json").exists() else f"{model.parent.name}-{model.name}"
    results = session.out / "results" / "classify" / (session.name or f"{path.stem}-by-{run}")
    check_free(results, force=session.force)
    if write_h5ad is not None:
        if write_h5ad.is_dir() or write_h5ad.resolve() == path.resolve():
            what = "is a folder" if write_h5ad.is_dir() else "is the file that is read, which is never changed"
            raise SctoolError(f"--write-h5ad {write_h5ad} {what}", "give another name")
        check_free(write_h5ad, force=session.force)
    session.limit_threads()
    from sctool.bench.called import call_file

    made = call_file(model, path, session.config, given_rule=reject, say=session.say)
    made.write(results, force=session.force, copy=write_h5ad)
    counts = made.called.table["label"].value_counts()
    rows = [[str(label), f"{n:,}", f"{n / len(made.called.table):.1%}"] for label, n in counts.items()]
    session.result(
        {"results": str(results), **made.figures},
        [score_table(results.name, ["label", "cells", "share"], rows)],
        [*made.lines, str(results)],
    )
