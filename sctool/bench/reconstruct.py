"""Reconstruction: how close is the decoded profile of a cell to the observed one, beside profiles that need no model?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.decomposition import PCA

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
