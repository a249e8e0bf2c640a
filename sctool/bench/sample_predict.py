"""A trained network on new samples: embeddings, predictions, importance, and which samples it should not be trusted on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from sctool.artifacts.atomic import write_json
from sctool.artifacts.model_folder import ModelFolder
from sctool.artifacts.result_folder import result_folder
from sctool.artifacts.tables import read_table
from sctool.bench.sample_files import answer_columns, distances_table, embeddings_table, write_importance
from sctool.config import Config
from sctool.data.cohort import Task
from sctool.engine.sample_answers import Blend, probed
from sctool.engine.sample_query import open_sample_query
from sctool.engine.samples import Seen, see

SAME = 1e-4
"""Distance to a training sample below which a sample is that one."""
FAR = 0.99
"""Quantile of the training samples' distances to their nearest neighbour, beyond which a new one is far from all."""


def reach(z_sd: NDArray[np.float32]) -> float:
    """Distance to the nearest other training sample that all but 1 % of them have."""
    return float(np.quantile(nearest(z_sd, z_sd, itself=True), FAR))


def nearest(z_sd: NDArray[np.float32], known_td: NDArray[np.float32], *, itself: bool = False) -> NDArray[np.float64]:
    """Euclidean distance of each vector to the nearest of others, shape (samples,)."""
    distance_st = cdist(z_sd, known_td)
    if itself:
        np.fill_diagonal(distance_st, np.inf)
    return distance_st.min(1)


def predict_samples(
    folder: ModelFolder,
    path: Path,
    config: Config,
    results: Path,
    *,
    rep: str | None,
    draws: int,
    importance: bool,
    force: bool,
    say: Callable[[str], None],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Embed the samples of a file, predict what the network has heads for, and write all of it.

    Parameters
    ----------
    rep
        Where the file has what the network reads; None: where the file of training had it.
    draws
        Bootstraps of the cells behind ``sd``; 0: none.
    importance
        Whether to write the weight of each cell.

    Returns
    -------
    The tables of embeddings and of predictions.
    """
    query = open_sample_query(folder, path, config, rep)
    for note in query.notes:
        say(f"note: {note}")
    cohort, n = query.cohort, len(query.cohort)
    seen = see(query.module, query.blocks, query.batch_s, query.tasks, query.scales)
    about = folder.manifest["data"]
    known = read_table(folder.path / "embeddings.csv", dtype={task.column: str for task in query.tasks})
    known_td = known[[key for key in map(str, known) if key[:1] == "e" and key[1:].isdigit()]].to_numpy(np.float32)
    own_s = known["enough_cells"].to_numpy(bool)
    distance_s = nearest(seen.embedded.embedding_sd, known_td[own_s])
    tables = embeddings_table(cohort, seen.embedded)
    tables.insert(4, "nearest_training", distance_s)
    tables.insert(5, "far", distance_s > about["reach"])
    tables.insert(6, "trained_on", distance_s < SAME)
    if tables["trained_on"].any():
        say(f"note: {int(tables['trained_on'].sum())} of {n} samples are samples of training: what is predicted of them is no test")
    blends = {task.column: Blend.from_json(about["blends"][task.column]) for task in query.tasks}
    truth = {task.column: task.encode(known[task.column])[own_s] for task in query.tasks}

    def said(seen: Seen, task: Task) -> NDArray[np.float64]:
        blend = blends[task.column]
        probe_sc = probed(task, known_td[own_s], truth[task.column], seen.embedded.embedding_sd, blend.share_c)
        return blend(task, [one[task.column] for one in seen.answers], probe_sc)

    rng = np.random.default_rng(config.seed)
    again = [see(query.module, query.blocks, query.batch_s, query.tasks, query.scales, rng) for _ in range(draws if query.tasks else 0)]
    parts = []
    for task in query.tasks:
        values_sc = said(seen, task)
        part = tables[["sample", "donor", "n_cells", "enough_cells", "far", "trained_on"]].copy()
        part["task"] = task.column
        part = pd.concat([part, answer_columns(task, values_sc, blends[task.column].share_c)], axis=1)
        if draws:
            part["sd"] = np.stack([_spread(task.kind, said(one, task)) for one in again]).std(0)
        parts.append(part)
    predictions = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    figures: dict[str, Any] = {"samples": n, "cells": int(seen.embedded.n_cells_s.sum()), "model": str(folder.path)}
    with result_folder(results, force=force) as partial:
        tables.to_csv(partial / "embeddings.csv", index=False)
        distances_table(cohort, seen.embedded.embedding_sd).to_csv(partial / "distances.csv", index=False)
        if parts:
            predictions.to_csv(partial / "predictions.csv", index=False)
        if importance:
            write_importance(partial, query.module, seen, query.blocks, cohort, rng)
        write_json(partial / "metrics.json", {"task": "samples", "kind": "prediction", **figures})
    return tables, predictions


def _spread(kind: str, values_sc: NDArray[np.float64]) -> NDArray[np.float64]:
    """The one figure of a prediction whose spread over bootstraps is told: the number, the mean level, or the last class's probability."""
    if kind == "regression":
        return values_sc[:, 0]
    return values_sc @ np.arange(values_sc.shape[1]) if kind == "ordinal" else values_sc[:, -1]
