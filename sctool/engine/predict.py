"""Writing what a model of counts makes of a query, chunk by chunk, so that memory does not grow with the number of cells."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sctool.artifacts.atomic import write_json
from sctool.artifacts.cells import CHUNK_CELLS, Block, frame_of, write_cells
from sctool.artifacts.model_folder import ModelFolder
from sctool.artifacts.result_folder import result_folder
from sctool.engine.query import Query


def write_predictions(query: Query, folder: ModelFolder, results: Path, *, force: bool) -> dict[str, Any]:
    """Write ``latent.npy``, ``predictions.h5ad``, ``cells.csv`` and ``metrics.json``; returns the figures of the last.

    ``predictions.h5ad`` has the model's genes only. ``X`` is log1p of the decoded counts per 10,000, layer ``normalized`` the same
    without the log, ``obsm["X_scvi"]`` the posterior means.
    """
    n, genes = len(query.store), query.genes
    z_nl = query.embed()
    figures = {
        "cells": n,
        "genes": len(genes),
        "gene_coverage": query.match.coverage,
        "genes_matched_by": query.match.how,
        "batches_known": query.batches_known,
        "model": str(folder.path),
    }
    with result_folder(results, force=force) as partial:
        np.save(partial / "latent.npy", z_nl)
        about = {"model": str(folder.path), "X": "log1p of decoded counts per 10,000"}
        frame = frame_of(query.obs, genes, obsm={"X_scvi": z_nl}, uns={"sctool": about})

        def blocks() -> Iterator[Block]:
            for start in range(0, n, CHUNK_CELLS):
                for _, proportions_ng in query.proportions(np.arange(start, min(n, start + CHUNK_CELLS))):
                    yield {"X": np.log1p(1e4 * proportions_ng), "normalized": 1e4 * proportions_ng}

        write_cells(partial / "predictions.h5ad", frame, blocks())
        _cells_table(query, folder).to_csv(partial / "cells.csv", index=False)
        write_json(partial / "metrics.json", {"task": "predict", **figures})
    return figures


def _cells_table(query: Query, folder: ModelFolder) -> pd.DataFrame:
    """Cell names, the columns worth colouring by, and the resampling weight of cells the model was trained on."""
    obs = query.obs
    own = ("cell", "weight", "umap_1", "umap_2")
    shown = [key for key in obs.columns if key not in own and 1 < obs[key].nunique() <= 100 and not pd.api.types.is_float_dtype(obs[key])]
    table = obs[shown].astype(object).reset_index(names="cell")
    trained = folder.table("cells").set_index("cell")
    if "weight" in trained:
        table["weight"] = table["cell"].map(trained["weight"])
    return table
