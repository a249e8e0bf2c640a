"""Rare types in training: weights, more of the same, or new cells between them (SMOTE)."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

NEIGHBOURS = 5
POWERS = {"none": 0.0, "sqrt": 0.5, "balanced": 1.0}


def class_weights(code_n: NDArray[np.int64], power: float = 1.0) -> NDArray[np.float64]:
    """Weights of cells that go with the size of their class to the power ``-power``, of mean 1; 1 gives each class the same say."""
    weight_n = np.bincount(code_n)[code_n].astype(np.float64) ** -power
    return weight_n / weight_n.mean()


def balanced(
    x_nf: Any, code_n: NDArray[np.int64], how: str, rng: np.random.Generator
) -> tuple[Any, NDArray[np.int64], NDArray[np.float64]]:
    """Cells, classes and weights (of mean 1) to train with.

    Parameters
    ----------
    x_nf
        Scaled features of the training cells of one fold.
    how
        ``none``; ``balanced``: every class the same total weight; ``sqrt``: total weights go with the square root of its cells;
        ``oversample``: cells of smaller classes repeated until all are as large as the largest; ``smote``: made up to that size by
        points between a cell and one of its five nearest of the same class (Chawla 2002; fewer than six cells are repeated).
    """
    if how in POWERS:
        return x_nf, code_n, class_weights(code_n, POWERS[how])
    size_c = np.bincount(code_n)
    parts, codes = [x_nf], [code_n]
    for code in np.flatnonzero(size_c):
        wanted = int(size_c.max() - size_c[code])
        if not wanted:
            continue
        own = x_nf[np.flatnonzero(code_n == code)]
        parts.append(
            _between(own, wanted, rng) if how == "smote" and size_c[code] > NEIGHBOURS else own[rng.integers(0, size_c[code], wanted)]
        )
        codes.append(np.full(wanted, code))
    stacked = sp.vstack(parts, format="csr") if sp.issparse(x_nf) else np.concatenate(parts)
    return stacked, np.concatenate(codes), np.ones(sum(map(len, codes)))


def _between(own_nf: Any, wanted: int, rng: np.random.Generator) -> Any:
    """New cells at random places between cells of a class and their neighbours in it."""
    from sklearn.neighbors import NearestNeighbors

    near = NearestNeighbors(n_neighbors=NEIGHBOURS + 1).fit(own_nf).kneighbors(own_nf, return_distance=False)
    first = rng.integers(0, own_nf.shape[0], wanted)
    second = near[first, rng.integers(1, NEIGHBOURS + 1, wanted)]
    share_n1 = rng.random((wanted, 1)).astype(np.float32)
    if not sp.issparse(own_nf):
        return own_nf[first] + share_n1 * (own_nf[second] - own_nf[first])
    return sp.csr_matrix(own_nf[first] + sp.csr_matrix((own_nf[second] - own_nf[first]).multiply(share_n1)), dtype=np.float32)
