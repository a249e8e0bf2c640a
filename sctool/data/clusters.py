"""Clusters of cells where there are no types: k-means of a limited number of training cells."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_CELLS = 20_000
"""From which centres are fitted."""


def cluster_centres(x_nf: NDArray[Any], k: int, seed: int = 0) -> NDArray[np.float32]:
    """Centres of at most ``k`` clusters of some cells, shape (clusters, features)."""
    from sklearn.cluster import KMeans

    if len(x_nf) > MOST_CELLS:
        x_nf = x_nf[np.sort(np.random.default_rng(seed).choice(len(x_nf), MOST_CELLS, replace=False))]
    made = KMeans(min(k, len(x_nf)), n_init=3, random_state=seed).fit(np.asarray(x_nf, np.float32))
    return made.cluster_centers_.astype(np.float32)


def nearest_centre(x_nf: NDArray[Any], centre_kf: NDArray[np.float32]) -> NDArray[np.int64]:
    """Code of the cluster of each cell, shape (cells,)."""
    from sklearn.metrics import pairwise_distances_argmin

    return np.asarray(pairwise_distances_argmin(np.asarray(x_nf, np.float32), centre_kf), np.int64)
