"""What became of each cell type in an embedding: whether its cells are each other's neighbours, and whose they are otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sctool.metrics.neighbours import exact_neighbours

NEIGHBOURS = 15


def type_audit(z_nl: NDArray[np.float32], batches: NDArray[Any], labels: NDArray[Any], k: int = NEIGHBOURS) -> pd.DataFrame:
    """The neighbourhood of each label, the most frequent first.

    Parameters
    ----------
    z_nl
        The embedding, shape (cells, dimensions).
    batches, labels
        Of each cell.
    k
        Neighbours, the cell itself not counted.

    Returns
    -------
    Columns ``label, cells, share, batches``; ``knn_purity``, the share of the nearest neighbours with the same label (of as many as there
    can be, for a label of ``k`` cells or fewer); ``nearest_other``, the other label most often met, and its share of all neighbours;
    ``recall`` of a vote of the neighbours, and ``vote``, what they vote most often.
    """
    names, codes_n, counts_c = np.unique(labels, return_inverse=True, return_counts=True)
    around_nk = codes_n[exact_neighbours(z_nl, k + 1).indices_nk[:, 1:]]
    found = np.minimum(counts_c[codes_n] - 1, around_nk.shape[1])
    same_nk = (around_nk == codes_n[:, None]) & (np.arange(around_nk.shape[1]) < found[:, None])
    purity_n = same_nk.sum(1) / np.maximum(found, 1)
    size = len(names)
    met_nc = np.bincount((np.arange(len(codes_n))[:, None] * size + around_nk).ravel(), minlength=len(codes_n) * size).reshape(-1, size)
    vote_n = met_nc.argmax(1)
    rows = []
    for code in np.argsort(-counts_c, kind="stable"):
        own = codes_n == code
        others_c = np.where(np.arange(size) == code, -1, met_nc[own].sum(0))
        nearest = int(others_c.argmax())
        rows.append(
            {
                "label": names[code],
                "cells": int(counts_c[code]),
                "share": counts_c[code] / len(codes_n),
                "batches": len(np.unique(batches[own])),
                "knn_purity": purity_n[own].mean(),
                "nearest_other": names[nearest] if others_c[nearest] > 0 else "",
                "nearest_other_share": max(int(others_c[nearest]), 0) / (own.sum() * around_nk.shape[1]),
                "recall": (vote_n[own] == code).mean(),
                "vote": names[np.bincount(vote_n[own], minlength=size).argmax()],
            }
        )
    return pd.DataFrame(rows)
