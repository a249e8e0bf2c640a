"""Exact nearest neighbours, and the fuzzy graph that UMAP makes of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

_TRIES, _CLOSE, _SMALLEST = 64, 1e-5, 1e-3


class Neighbours(NamedTuple):
    """The nearest cells of each cell, the cell itself first, then by distance."""

    indices_nk: NDArray[np.int64]
    distances_nk: NDArray[np.float64]

    def nearest(self, k: int) -> Neighbours:
        """The first ``k``, or all where there are fewer."""
        return Neighbours(self.indices_nk[:, :k], self.distances_nk[:, :k])


def exact_neighbours(z_nl: NDArray[Any], k: int) -> Neighbours:
    """The ``k`` nearest cells of each (itself counted), Euclidean, by comparing all pairs in blocks; memory is ``n * k``."""
    n = len(z_nl)
    k = min(k, n)
    # Without a query the search leaves the cell itself out, even where others are at the same place.
    distances, indices = NearestNeighbors(n_neighbors=k - 1, algorithm="brute").fit(z_nl).kneighbors()
    own_n1 = np.arange(n)[:, None]
    return Neighbours(np.hstack([own_n1, indices]), np.hstack([np.zeros((n, 1)), distances]))


def fuzzy_graph(near: Neighbours) -> sp.csr_matrix:
    """Symmetric connectivities of cells in 0..1, shape (cells, cells), as UMAP and scanpy compute them (McInnes et al. 2018).

    Each cell's weights fall off exponentially beyond its nearest neighbour, with a width that makes them sum to log2 k.
    """
    indices_nk, d_nk = near
    n, k = d_nk.shape
    first_n1 = np.where(d_nk > 0, d_nk, np.inf).min(1, keepdims=True)
    first_n1[~np.isfinite(first_n1)] = 0.0
    beyond_nk = np.maximum(d_nk - first_n1, 0.0)
    low_n1, high_n1, width_n1 = np.zeros((n, 1)), np.full((n, 1), np.inf), np.ones((n, 1))
    for _ in range(_TRIES):
        excess_n1 = np.exp(-beyond_nk[:, 1:] / width_n1).sum(1, keepdims=True) - np.log2(k)
        wide, narrow = excess_n1 >= _CLOSE, excess_n1 <= -_CLOSE
        high_n1, low_n1 = np.where(wide, width_n1, high_n1), np.where(narrow, width_n1, low_n1)
        with np.errstate(invalid="ignore"):
            halved_n1 = np.where(np.isinf(high_n1), width_n1 * 2, (low_n1 + high_n1) / 2)
        width_n1 = np.where(wide | narrow, halved_n1, width_n1)
    mean_n1 = np.where(first_n1 > 0, d_nk.mean(1, keepdims=True), d_nk.mean())
    width_n1 = np.maximum(width_n1, _SMALLEST * mean_n1)
    weights_nk = np.exp(-beyond_nk / width_n1)
    weights_nk[:, 0] = 0.0
    one_way = sp.csr_matrix((weights_nk.ravel(), indices_nk.ravel(), np.arange(0, n * k + 1, k)), shape=(n, n))
    one_way.eliminate_zeros()
    return sp.csr_matrix(one_way + one_way.T - one_way.multiply(one_way.T))
