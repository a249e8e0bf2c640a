"""GloScope (Wang et al. 2024): a sample is the density of its cells, and two are as far apart as those densities diverge.

The symmetrised Kullback-Leibler divergence is estimated from distances to k-th nearest neighbours (Wang, Kulkarni & Verdu 2009).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

NEIGHBOURS = 25
MOST_CELLS, FEWEST_CELLS = 300, 50
"""Of a sample whose distances are taken: the most, and the fewest where there are many samples."""
MOST_REFERENCE = 500
"""Cells of a sample that its density is of."""
MOST_DISTANCES = 2_000_000_000
"""Of all cells to all, from which on fewer cells of a sample are asked."""
MOST_SAMPLES = 300
"""Beyond which it takes too long."""
DIMENSIONS = 10
_BLOCK = 512


def log_radii(x_nf: Floats, code_n: NDArray[np.int64], samples: int, k: int = NEIGHBOURS, most: int = MOST_CELLS) -> Floats:
    """Mean log distance of each sample's cells (rows) to their k-th nearest cell of each sample (columns), a cell not counting itself.

    Shape (samples, samples). ``k`` falls to the number of cells there are; NaN for samples of fewer than 2 cells. Of larger samples
    ``MOST_REFERENCE`` cells are drawn to be neighbours, and of these at most ``most`` whose distances are taken.
    """
    rng = np.random.default_rng(0)
    order = np.argsort(code_n, kind="stable")
    rows = [order[a:b] for a, b in pairwise(np.searchsorted(code_n[order], np.arange(samples + 1)))]
    rows = [_drawn(own, MOST_REFERENCE, rng) for own in rows]
    total = max(1, sum(map(len, rows)))
    most = min(most, max(FEWEST_CELLS, MOST_DISTANCES // (samples * total)))
    asked = [_drawn(own, most, rng) for own in rows]
    ask_n = np.concatenate(asked)
    from_n = np.repeat(np.arange(samples), [len(own) for own in asked])
    sizes = np.bincount(from_n, minlength=samples)
    x_nf = np.asarray(x_nf - x_nf[order[code_n[order] >= 0]].mean(0), np.float32)  # about 0, where single precision will do
    square_n = np.square(x_nf).sum(1)
    out = np.full((samples, samples), np.nan)
    for to, own in enumerate(rows):
        if len(own) < 2:
            continue
        # of its own sample a cell finds itself first, so that its k-th neighbour is the next one
        here, other = min(k, len(own) - 1), min(k, len(own)) - 1
        log_n, twice_fk = np.empty(len(ask_n)), -2 * x_nf[own].T
        for at in range(0, len(ask_n), _BLOCK):
            part = slice(at, at + _BLOCK)
            apart_nk = x_nf[ask_n[part]] @ twice_fk
            apart_nk += square_n[own]
            own_n = from_n[part] == to
            itself_n = np.partition(apart_nk[own_n], here, axis=1)[:, here]
            apart_nk.partition(other, axis=1)
            near_n = apart_nk[:, other].copy()
            near_n[own_n] = itself_n
            log_n[part] = 0.5 * np.log(np.maximum(near_n + square_n[ask_n[part]], 1e-12))
        total_s = np.bincount(from_n, weights=log_n, minlength=samples)
        out[:, to] = np.divide(total_s, sizes, out=np.full(samples, np.nan), where=sizes > 1)
    return out


def _drawn(own: NDArray[np.int64], most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    return np.sort(rng.choice(own, most, replace=False)) if len(own) > most else own


def divergences(x_nf: NDArray[Any], code_n: NDArray[np.int64], samples: int, k: int = NEIGHBOURS) -> Floats:
    """Symmetrised divergence of each pair of samples, shape (samples, samples), 0 on the diagonal and nowhere below.

    ``KL(i|j) = F mean log(r_j(x) / r_i(x)) + log(n_j / (n_i - 1))`` over the cells x of i, with F features and r_s the distance to the k-th
    nearest cell of s; n counts the cells that are drawn of a sample.
    """
    x_nf = np.asarray(x_nf, np.float64)
    log_ss = log_radii(x_nf, code_n, samples, k)
    n_s = np.minimum(np.bincount(code_n[code_n >= 0], minlength=samples), MOST_REFERENCE).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        one_way = x_nf.shape[1] * (log_ss - np.diag(log_ss)[:, None]) + np.log(n_s)[None] - np.log(n_s - 1)[:, None]
    both = np.maximum(one_way + one_way.T, 0)
    np.fill_diagonal(both, 0)
    return both


def place(d_ss: Floats, train_s: NDArray[np.bool_], dimensions: int = DIMENSIONS) -> Floats:
    """Coordinates of samples from distances: classical scaling of the training samples, the others placed by Gower's formula.

    The distances are taken as squared Euclidean ones, which is what a divergence is like for small differences. Samples without distances
    lie at the origin. Shape (samples, dimensions or fewer).
    """
    known_s = np.isfinite(d_ss).sum(1) > 1
    train = np.flatnonzero(train_s & known_s)
    if len(train) < 2:
        return np.zeros((len(d_ss), 1))
    own_tt = d_ss[np.ix_(train, train)]
    column_t, whole = own_tt.mean(0), own_tt.mean()
    values, vectors = np.linalg.eigh(-0.5 * (own_tt - column_t[:, None] - column_t[None] + whole))
    kept = np.argsort(-values)[:dimensions]
    kept = kept[values[kept] > 1e-9 * max(values.max(), 1e-300)]
    if not len(kept):
        return np.zeros((len(d_ss), 1))
    to_st = np.where(known_s[:, None], d_ss[:, train], column_t[None])
    return -0.5 * (to_st - column_t[None]) @ vectors[:, kept] / np.sqrt(values[kept])
