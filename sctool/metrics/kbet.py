"""kBET within each type: are the batches around a cell those of its type? Buettner et al. 2019, as scIB takes it.

The steps of ``scib_metrics.kbet_per_label``, with exact neighbours and a fixed start of the eigensolver: the package's approximate
neighbours take longer to compile than all other scores to compute.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import ArpackNoConvergence, eigsh
from scipy.stats import chi2

from sctool.metrics.neighbours import exact_neighbours

FEWEST_CELLS = 10
"""Of a label, to be scored."""
_FEWEST_NEIGHBOURS, _MOST_NEIGHBOURS, _USABLE = 10, 70, 0.75


def kbet_by_label(
    graph: sp.csr_matrix,
    batches: NDArray[Any],
    labels: NDArray[Any],
    *,
    alpha: float = 0.05,
    components: int = 100,
    as_package: bool = False,
) -> dict[str, float]:
    """Share of a label's cells around which its batches are mixed as they are in the label: 1 is best; NaN where it has one batch.

    Parameters
    ----------
    graph
        Connectivities between cells, shape (cells, cells).
    batches, labels
        Of each cell.
    alpha
        Level of the chi-squared test.
    components
        Most diffusion components in which neighbours are found.
    as_package
        Let a small label lower ``components`` for all labels after it, as scib-metrics 0.5.10 does; the score then depends on the
        alphabet.

    Returns
    -------
    By label; NaN also for one of fewer than 10 cells.
    """
    out: dict[str, float] = {}
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        codes_m = np.unique(batches[own], return_inverse=True)[1]
        if len(own) < FEWEST_CELLS or codes_m.max() == 0:
            out[str(label)] = float("nan")
            continue
        k = int(np.clip(np.bincount(codes_m).mean() // 4, _FEWEST_NEIGHBOURS, _MOST_NEIGHBOURS))
        part = graph[own][:, own]
        pieces_m = connected_components(part, connection="strong")[1]
        if pieces_m.max() > 0:  # small pieces have no k neighbours of their own, and a label of many is torn apart
            usable_m = np.bincount(pieces_m)[pieces_m] >= 3 * k
            if usable_m.mean() < _USABLE:
                out[str(label)] = 0.0
                continue
            part, codes_m = part[usable_m][:, usable_m], np.unique(codes_m[usable_m], return_inverse=True)[1]
        found = min(components, len(codes_m) - 1)
        components = found if as_package else components
        near = exact_neighbours(diffusion_space(part, found), k + 1)
        out[str(label)] = float((_p_values(codes_m[near.indices_nk], codes_m) >= alpha).mean())
    return out


def diffusion_space(graph: sp.csr_matrix, components: int) -> NDArray[np.float32]:
    """Diffusion map of a graph over all times (Coifman & Lafon 2006; Haghverdi et al. 2016), shape (cells, components)."""
    graph = graph.astype(np.float64)  # in single precision the first eigenvalue may miss 1, and its weight be anything
    inverse = sp.diags(1 / np.asarray(graph.sum(0)).ravel())
    kernel = inverse @ graph @ inverse
    root = sp.diags(1 / np.sqrt(np.asarray(kernel.sum(0)).ravel()))
    moves = root @ kernel @ root
    start_n = np.random.default_rng(0).random(moves.shape[0])
    try:
        values_d, vectors_nd = eigsh(moves, k=components, which="LM", v0=start_n)
    except ArpackNoConvergence as error:
        values_d, vectors_nd = error.eigenvalues, error.eigenvectors
    values_d = values_d.astype(np.float32)
    return vectors_nd.astype(np.float32) * np.array([1.0 if value >= 1 else value / (1 - value) for value in values_d], np.float32)


def _p_values(around_nk: NDArray[np.int64], codes_n: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of a chi-squared test of each neighbourhood's batches against all cells'."""
    counts_b = np.bincount(codes_n)
    seen_nb = np.stack([(around_nk == code).sum(1) for code in range(len(counts_b))], 1)
    expected_b = counts_b / counts_b.sum() * around_nk.shape[1]
    return chi2.sf((np.square(seen_nb - expected_b) / expected_b).sum(1), len(counts_b) - 1)
