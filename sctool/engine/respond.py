"""Predicting perturbed cells from control cells with a model that can ``respond``, group by group, streamed to disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from sctool.artifacts.atomic import write_json
from sctool.artifacts.cells import CHUNK_CELLS, Block, frame_of, write_cells
from sctool.artifacts.model_folder import ModelFolder
from sctool.artifacts.result_folder import result_folder
from sctool.engine.device import in_chunks
from sctool.engine.query import Query

NOTE = "prediction.json"
Rows = NDArray[np.int64]


def write_response(
    query: Query, folder: ModelFolder, cells: dict[str, Rows], results: Path, about: dict[str, Any], *, force: bool
) -> pd.DataFrame:
    """Write ``predictions.h5ad``, ``weights.csv`` and ``prediction.json``; returns the weights.

    Parameters
    ----------
    cells
        Control cells to predict from, by group, as :func:`sctool.data.response.control_cells` gives them.
    about
        What ``prediction.json`` says beyond model, groups and counts of cells; its ``scale`` and ``perturbed`` are also said in the
        predicted cells.

    Returns
    -------
    Columns ``group, from, weight``: how much each known group counts for the response of each predicted one.
    """
    module, known = query.module, folder.manifest["vocabularies"]["group"]
    means, weights = {}, {}
    for group, rows in cells.items():
        totals = [batch.dense().sum(0, dtype=torch.float64) for _, batch in in_chunks(query.store.batch, rows, CHUNK_CELLS)]
        means[group] = (torch.stack(totals).sum(0) / len(rows)).float()
        weights[group] = module.weights(means[group], known.index(group) if group in known else -1)
    table = pd.DataFrame(
        [(group, other, float(w)) for group, w_k in weights.items() for other, w in zip(known, w_k, strict=True) if w > 0],
        columns=["group", "from", "weight"],
    ).sort_values(["group", "weight"], ascending=[True, False])

    @torch.inference_mode()
    def blocks() -> Iterator[Block]:
        for group, rows in cells.items():

            def respond(part: Rows, group: str = group) -> NDArray[np.float32]:
                return module.respond(query.store.batch(part), means[group], weights[group]).cpu().numpy()

            for _, x_ng in in_chunks(respond, rows, CHUNK_CELLS):
                yield {"X": x_ng}

    rows = np.concatenate(list(cells.values()))
    obs = query.obs.iloc[rows].copy()
    key, condition_key = folder.manifest["data"]["group_key"], folder.manifest["data"]["condition_key"]
    obs[key] = np.repeat(list(cells), [len(part) for part in cells.values()])
    obs[condition_key] = f"predicted {about['perturbed']}"
    note = {
        "task": "scgen",
        "model": str(folder.path.resolve()),
        "run": folder.name,
        "seed": folder.manifest["seed"],
        "sampler": folder.manifest["sampler"],
        "groups": {group: len(part) for group, part in cells.items()},
        "group_key": key,
        "condition_key": condition_key,
        **about,
    }
    with result_folder(results, force=force) as partial:
        said = {"model": str(folder.path), "X": about["scale"], "cells": "each is the response of the control cell of that name"}
        write_cells(partial / "predictions.h5ad", frame_of(obs, query.genes, uns={"sctool": said}), blocks())
        table.to_csv(partial / "weights.csv", index=False)
        write_json(partial / NOTE, note)
    return table
