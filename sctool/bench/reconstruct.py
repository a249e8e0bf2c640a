"""Reconstruction: how close the decoded profile of a cell is to the observed one, beside profiles that need no model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from sctool.bench.entries import open_entries, rows_to_score
from sctool.bench.evaluation import Evaluation, with_training_cells
from sctool.config import Config
from sctool.data.read import H5ad
from sctool.metrics.reconstruction import cell_correlation, cell_r2, log1p_cp10k


def reconstruction_table(counts: Any, decoded: Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]]) -> pd.DataFrame:
    """Correlation and r2 of each cell between log1p of its CP10k and log1p of the decoded CP10k.

    Parameters
    ----------
    counts
        A function of rows giving counts of shape (rows, genes).
    decoded
        Chunks of (rows, expected proportions of the same genes).

    Returns
    -------
    Columns ``row, correlation, r2``; NaN where a profile is constant.
    """
    parts = []
    for rows, proportions_ng in decoded:
        observed_ng, predicted_ng = log1p_cp10k(counts(rows)), np.log1p(1e4 * proportions_ng.astype(np.float64))
        parts.append(
            pd.DataFrame(
                {"row": rows, "correlation": cell_correlation(observed_ng, predicted_ng), "r2": cell_r2(observed_ng, predicted_ng)}
            )
        )
    return pd.concat(parts, ignore_index=True)


def reconstruction_baselines(counts_ng: NDArray[np.float32], rows: NDArray[np.int64], components: int, seed: int = 0) -> pd.DataFrame:
    """The same for the mean profile and for PCA, each fitted on the other half of the evaluated cells.

    They see cells of the evaluated kind, which the model may not have: a demanding comparison.

    Returns
    -------
    Columns ``row, name, correlation, r2``.
    """
    log_ng = log1p_cp10k(counts_ng)
    half = np.random.default_rng(seed).permutation(len(rows)) % 2
    parts = []
    for side in (0, 1):
        fit_ng, test = log_ng[half != side], np.flatnonzero(half == side)
        pca = PCA(min(components, len(fit_ng) - 1, log_ng.shape[1]), random_state=0).fit(fit_ng)
        made = {
            "mean profile": np.broadcast_to(fit_ng.mean(0), (len(test), log_ng.shape[1])),
            "pca": pca.inverse_transform(pca.transform(log_ng[test])),
        }
        for name, predicted_ng in made.items():
            r_n = cell_correlation(log_ng[test], predicted_ng)
            parts.append(pd.DataFrame({"row": rows[test], "name": name, "correlation": r_n, "r2": np.square(r_n)}))
    return pd.concat(parts, ignore_index=True)


def evaluate_reconstruction(
    path: Path, models: list[Path], config: Config, *, include_trained: bool = False, say: Callable[[str], None] = lambda text: None
) -> Evaluation:
    """Score how models decode the cells of a file that none of them has seen.

    Parameters
    ----------
    path
        The file.
    models
        Model folders.
    config
        ``eval.samples`` draws from the posterior are averaged; with ``data.label_key`` there are scores per type.
    include_trained
        Score cells the models were trained on too.
    say
        Told which cells are scored.
    """
    file, key = H5ad(path), config.data.label_key
    labels = file.column(key, "--label-key").astype(object).fillna("unlabelled").astype(str) if key else None
    entries = open_entries(models, path, config)
    rows = rows_to_score(file, entries, config, include_trained, say)
    parts = []
    for entry in entries:
        made = reconstruction_table(entry.query.observed, entry.query.proportions(rows, config.eval.samples, config.seed))
        parts.append(made.assign(name=entry.name, arm=entry.arm, seed=entry.seed))
    components = entries[0].query.embed(rows[:1]).shape[1]
    baselines = reconstruction_baselines(entries[0].query.observed(rows), rows, components)
    parts.append(baselines.assign(arm="baseline", seed=-1))
    cells = pd.concat(parts, ignore_index=True)
    undefined = int(cells.loc[cells["name"] == entries[0].name, "correlation"].isna().sum())
    row_n = cells.pop("row").to_numpy()
    cells.insert(0, "cell", file.obs.index[row_n])
    tables = {"predictions": cells}
    if key and labels is not None:
        cells.insert(1, "label", labels.to_numpy()[row_n])
        by_type = cells.groupby(["name", "arm", "seed", "label"], sort=False)
        per_type = by_type.agg(cells=("cell", "size"), correlation=("correlation", "mean"), r2=("r2", "mean")).reset_index()
        tables["per_type"] = with_training_cells(per_type, entries, key)
    scores = cells.groupby(["name", "arm", "seed"], sort=False)[["correlation", "r2"]].mean().reset_index()
    about = {
        "cells": len(rows),
        "samples": config.eval.samples,
        "undefined": undefined,
        "undefined_because": "a profile that does not vary over genes has no correlation",
    }
    return Evaluation("reconstruction", scores, ("correlation", "r2"), about, tables)
