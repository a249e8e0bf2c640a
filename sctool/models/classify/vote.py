"""A label for a whole cluster: what most of its cells were called."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sctool.errors import InputError

MIXED = "Heterogeneous"
FEWEST = 10
"""Median cells of a cluster; fewer would have too few votes."""
NEIGHBOURS = 15
_RESOLUTION = ((5_000, 5.0), (20_000, 10.0), (40_000, 15.0), (100_000, 20.0), (200_000, 25.0), (np.inf, 30.0))


def majority_vote(clusters_n: NDArray[Any], labels_n: NDArray[Any], min_share: float = 0.0) -> pd.DataFrame:
    """The commonest label of each cell's cluster, the first in the alphabet of equals, as CellTypist votes.

    Parameters
    ----------
    clusters_n, labels_n
        Cluster and label of each cell.
    min_share
        A cluster whose commonest label has a smaller share of its cells is called "Heterogeneous".

    Returns
    -------
    ``winner, share, label`` of each cell, in the order given; ``label`` is the winner, or "Heterogeneous".
    """
    if len(clusters_n) != len(labels_n):
        raise InputError(f"{len(clusters_n)} clusters, but {len(labels_n)} labels", "give one of each for every cell")
    if not len(labels_n):
        return pd.DataFrame({"winner": [], "share": [], "label": []})
    label_n, names = pd.factorize(np.asarray(labels_n), sort=True, use_na_sentinel=False)
    cluster_n, clusters = pd.factorize(np.asarray(clusters_n), use_na_sentinel=False)
    # pairs that occur, and not a table of all: there may be thousands of clusters
    pairs, votes = np.unique(cluster_n * len(names) + label_n, return_counts=True)
    order = np.lexsort((pairs % len(names), -votes, pairs // len(names)))
    _, first = np.unique(pairs[order] // len(names), return_index=True)
    best = order[first]
    share_c = votes[best] / np.bincount(cluster_n, minlength=len(clusters))
    winner_n, share_n = names[pairs[best] % len(names)][cluster_n], share_c[cluster_n]
    return pd.DataFrame({"winner": winner_n, "share": share_n, "label": np.where(share_n < min_share, MIXED, winner_n.astype(object))})


def overcluster(pcs_nl: NDArray[Any], seed: int) -> NDArray[np.int64]:
    """Many small clusters, by Leiden on the graph of nearest cells, numbered from the largest.

    CellTypist's resolutions, 5 to 30 by the number of cells, lowered until half of the clusters have at least ``FEWEST`` cells. The graph
    is exact and weighted by a Gaussian kernel; scanpy's usual weights take half a minute to compile, for the same clusters to vote in.

    Parameters
    ----------
    pcs_nl
        Principal components or another embedding.
    seed
        Of Leiden.
    """
    n = len(pcs_nl)
    if n < 2 * FEWEST:
        return np.zeros(n, np.int64)
    import anndata as ad
    import scanpy as sc
    import scipy.sparse as sp
    import torch

    threads = torch.get_num_threads()
    try:
        cells = ad.AnnData(sp.csr_matrix((n, 1), dtype=np.float32), obsm={"pcs": np.asarray(pcs_nl, np.float32)})
        sc.pp.neighbors(cells, n_neighbors=min(NEIGHBOURS, n - 1), use_rep="pcs", transformer="sklearn", method="gauss")
        resolution = next(value for below, value in _RESOLUTION if n < below)
        while True:
            sc.tl.leiden(cells, resolution, flavor="igraph", directed=False, n_iterations=2, random_state=seed)
            code_n = cells.obs["leiden"].astype(int).to_numpy(np.int64)
            if np.median(np.bincount(code_n)) >= FEWEST or resolution < 0.1:
                return code_n
            resolution *= 0.7
    finally:
        torch.set_num_threads(threads)  # numba, which scanpy calls, sets the number of all OpenMP threads
