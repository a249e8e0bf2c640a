"""``sctool predict``: a trained model on new cells."""

from __future__ import annotations

import typer

from sctool.cli import options as o
from sctool.cli.session import Session, score_table

app = typer.Typer(no_args_is_help=True, help="Apply a trained model to new cells.")


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
