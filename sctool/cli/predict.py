"""``sctool predict``: a trained model on new cells."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sctool.cli import classify, samples
from sctool.cli import options as o
from sctool.cli.session import Session, score_table
from sctool.errors import SctoolError

if TYPE_CHECKING:
    from sctool.engine.perturb import Response

app = typer.Typer(no_args_is_help=True, help="Apply a trained model to new cells.")
app.command("classify")(classify.predict)
app.command("sampleclr")(samples.predict)


@app.command("scvi")
def scvi(
    model: o.Model,
    data: o.Data = None,
    batch_key: o.BatchKey = None,
    counts_layer: o.CountsLayer = None,
    backed: o.Backed = None,
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
    """Embed cells and decode their expression; writes results/scvi/RUN/ with latent.npy and predictions.h5ad."""
    session = Session(locals(), "scvi")
    from sctool.artifacts.model_folder import open_model
    from sctool.artifacts.result_folder import check_free

    folder = open_model(model, "scvi")
    results = session.out / "results" / "scvi" / (session.name or folder.name)
    check_free(results, force=session.force)
    path = session.data_path(data)
    session.limit_threads()
    from sctool.engine.predict import write_predictions
    from sctool.engine.query import open_query
    from sctool.models.registry import BUILDERS

    query = open_query(folder, BUILDERS["scvi"], path, session.config)
    session.say(str(query.match))
    if query.batches_known < 1:
        session.say(
            f"note: {1 - query.batches_known:.0%} of the cells are from batches the model has not seen; decoded as an average batch"
        )
    figures = write_predictions(query, folder, results, force=session.force)
    rows = [[key, f"{value:.4g}" if isinstance(value, float) else str(value)] for key, value in figures.items()]
    session.result({"results": str(results), **figures}, [score_table(results.name, ["figure", "value"], rows, "left")], [str(results)])


@app.command("scgen")
def scgen(
    model: o.Model,
    data: o.Data = None,
    group: Annotated[list[str] | None, typer.Option(help="Predict this group only; may be repeated. Default: those held out.")] = None,
    condition_key: o.ConditionKey = None,
    control: o.Control = None,
    group_key: o.ResponseGroup = None,
    counts_layer: o.CountsLayer = None,
    name: o.Name = None,
    out: o.Out = None,
    device: o.Device = None,
    threads: o.Threads = None,
    config: o.ConfigFile = None,
    set_: o.Set = None,
    resume: o.Keep = False,
    force: o.Force = False,
    json_: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Predict the treated cells of a group from its control cells; writes results/scgen/RUN/predictions.h5ad.

    Without DATA the file of training is read, and its held-out groups are predicted.
    """
    session = Session(locals(), "scgen")
    from sctool.artifacts.model_folder import open_model
    from sctool.artifacts.result_folder import check_free

    folder = open_model(model, "scgen")
    results = session.out / "results" / "scgen" / (session.name or folder.name)
    if session.resume and results.exists():
        session.result({"results": str(results)}, [], [str(results)])
        return
    check_free(results, force=session.force)
    about = folder.manifest["data"]
    path = data or Path(about["file"])
    if not path.exists() and data is None:
        raise SctoolError(f"the file of training, {path}, is not there any more", "give the .h5ad after the model")
    session.limit_threads()
    from sctool.config import Config
    from sctool.data.response import control_cells
    from sctool.engine.query import open_query
    from sctool.engine.respond import write_response
    from sctool.models.registry import BUILDERS

    query = open_query(folder, BUILDERS["scgen"], path, session.config)
    session.say(str(query.match))
    same = folder.trained_on(query.obs.index)
    if data is None:
        folder.require_cells(query.obs.index, path)
    trained = Config.model_validate(folder.manifest["config"])
    cells = control_cells(query.obs, trained, session.config, about["targets"], group, same_file=same)
    scale = f"log1p of counts per {about['target_sum']:,.0f}" if about["target_sum"] else "as in the file of training"
    note = {"file": str(path.resolve()), "control": about["control"], "perturbed": about["perturbed"], "scale": scale}
    key = session.config.scgen.condition_key or trained.scgen.condition_key
    if not same and key not in query.obs:
        session.say(f"note: {path.name} has no column {key!r}; all its cells are taken for control cells")
    weights = write_response(query, folder, cells, results, note, force=session.force)
    rows = [[row["group"], row["from"], f"{row['weight']:.2f}"] for _, row in weights.iterrows() if row["weight"] >= 0.005]
    table = score_table(f"{about['perturbed']}: who each group's response is taken from", ["group", "from", "weight"], rows)
    session.result({"results": str(results), "cells": {key: len(part) for key, part in cells.items()}}, [table], [str(results)])


@app.command("cradle")
def cradle(
    model: o.Model,
    data: Annotated[Path | None, typer.Argument(help="Control cells to perturb, an .h5ad. Default: those of training.")] = None,
    perturbations: Annotated[str | None, typer.Option(help="A,A+B,...; or a file with one in each line. Default: those held out.")] = None,
    quality: Annotated[Literal["pass", "fail"], typer.Option(help="Predict cells that pass quality control, or fail it.")] = "pass",
    cells: Annotated[int, typer.Option(min=0, help="Control cells to perturb, for predictions.h5ad; 0 writes no cells.")] = 100,
    counterfactual: Annotated[bool, typer.Option("--counterfactual", help="Instead: the cells of DATA, had they passed.")] = False,
    unseen: Annotated[bool, typer.Option("--unseen", help="Take targets that were never perturbed in training, too.")] = False,
    perturbation_key: o.PerturbationKey = None,
    control: o.Control = None,
    batch_key: o.BatchKey = None,
    counts_layer: o.CountsLayer = None,
    name: o.Name = None,
    out: o.Out = None,
    threads: o.Threads = None,
    config: o.ConfigFile = None,
    set_: o.Set = None,
    resume: o.Keep = False,
    force: o.Force = False,
    json_: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Predict what perturbations do to the control cells of training, or of DATA; writes results/cradle/RUN/."""
    session = Session(locals(), "cradle")
    from sctool.artifacts.model_folder import open_model
    from sctool.artifacts.result_folder import check_free

    folder = open_model(model, "cradle")
    results = session.out / "results" / "cradle" / (session.name or folder.name + ("-counterfactual" if counterfactual else ""))
    if session.resume and results.exists():
        session.result({"results": str(results)}, [], [str(results)])
        return
    check_free(results, force=session.force)
    session.limit_threads()
    from sctool.engine.perturb import Response

    response = Response(folder)
    if counterfactual or quality == "fail":
        response.require_artifact()
    if counterfactual:
        _counterfactual(session, response, data, results)
        return
    from sctool.engine.perturbed import control_cells, wanted_perturbations, write_perturbed

    wanted = wanted_perturbations(response, perturbations)
    if perturbations and not unseen:
        response.require_known(wanted)
    start = control_cells(response, data, session.config, cells, session.say)
    about = {"file": folder.manifest["data"]["file"], "quality": quality, "control_cells": 0 if start is None else len(start.names)}
    table = write_perturbed(response, wanted, start, results, about, quality=quality, force=session.force)
    lost = table[table["unseen_targets"] != ""]
    if len(lost):
        what = ", ".join(f"{row['perturbation']} ({row['unseen_targets']})" for _, row in lost.head(5).iterrows())
        session.say(f"note: {len(lost)} of {len(table)} have targets never perturbed in training, predicted from the others': {what}")
    rows = [[row["perturbation"], f"{row['size']:.3f}", row["largest"]] for _, row in table.head(30).iterrows()]
    shown = score_table("predicted changes", ["perturbation", "size", "largest in"], rows)
    session.result({"results": str(results), "perturbations": len(table)}, [shown], [str(results)])


def _counterfactual(session: Session, response: Response, data: Path | None, results: Path) -> None:
    from sctool.engine.screen_query import ScreenQuery, write_counterfactual

    path = data or Path(response.folder.manifest["data"]["file"])
    query = ScreenQuery(response, path, session.config)
    for line in (str(query.match), *(f"note: {note}" for note in query.notes)):
        session.say(line)
    about = {"model": str(response.folder.path), "file": str(path.resolve()), "meaning": "each cell as if it had passed quality control"}
    figures = write_counterfactual(query, results, about, force=session.force)
    session.result({"results": str(results), **figures}, [], [f"{figures['failed']:,} of {figures['cells']:,} cells failed", str(results)])
