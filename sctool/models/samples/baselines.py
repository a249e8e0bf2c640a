"""What simple summaries of a sample's cells say of it: the lines that any learned representation of samples is to be read beside.

Each is a function of a cohort, the samples to fit on, and the cells to summarise (all where None; halves of samples for retrieval).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sctool.data.clusters import cluster_centres, nearest_centre
from sctool.data.cohort import Cohort, sample_means
from sctool.errors import SctoolError
from sctool.models.samples.gloscope import divergences, place

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Baseline = Callable[[Cohort, Mask, Mask | None], Floats]

CLUSTERS = 15
RANDOM_DIMENSIONS = 10
DIRECTIONS = 10
SHRINKAGE = 0.1
FEWEST_TYPE_CELLS = 10
"""In the training samples together: types of fewer have no mean worth taking."""
_QC = (
    "n_counts",
    "total_counts",
    "n_genes",
    "n_genes_by_counts",
    "nCount_RNA",
    "nFeature_RNA",
    "pct_counts_mt",
    "percent_mito",
    "percent.mt",
)


def sums(x_nf: NDArray[Any], code_n: NDArray[np.int64], groups: int) -> Floats:
    """Sum of the rows of each code; rows of code -1 are in none. Shape (groups, features)."""
    import scipy.sparse as sp

    own = np.flatnonzero(code_n >= 0)
    chosen = sp.csr_matrix((np.ones(len(own)), (code_n[own], own)), shape=(groups, len(code_n)))
    return np.asarray(chosen @ np.asarray(x_nf, np.float64))


def _codes(cohort: Cohort, cells_n: Mask | None) -> NDArray[np.int64]:
    return cohort.sample_n if cells_n is None else np.where(cells_n, cohort.sample_n, -1)


def _counts(code_n: NDArray[np.int64], groups: int) -> Floats:
    return np.bincount(code_n[code_n >= 0], minlength=groups).astype(np.float64)


def _means(x_nf: NDArray[Any], code_n: NDArray[np.int64], groups: int) -> Floats:
    return np.where(_counts(code_n, groups)[:, None] > 0, sample_means(x_nf, code_n, groups), np.nan)


def mean(cohort: Cohort, train_s: Mask, cells_n: Mask | None = None) -> Floats:
    """Mean of the cells' features (pseudobulk of the representation); NaN for samples without cells."""
    return _means(cohort.features(train_s), _codes(cohort, cells_n), len(cohort.samples))


def mean_sd(cohort: Cohort, train_s: Mask, cells_n: Mask | None = None) -> Floats:
    """Mean and standard deviation of the cells' features."""
    x_nf, code_n = np.asarray(cohort.features(train_s), np.float64), _codes(cohort, cells_n)
    mean_sf = _means(x_nf, code_n, len(cohort.samples))
    centred_nf = x_nf - mean_sf[np.maximum(code_n, 0)]
    return np.hstack([mean_sf, np.sqrt(_means(np.square(centred_nf), code_n, len(cohort.samples)))])


def groups_of_cells(cohort: Cohort, train_s: Mask) -> tuple[NDArray[np.int64], int]:
    """Code of each cell's type, -1 where it is of none of the training samples' types, and how many types there are.

    Types are those of the cohort. Without them cells are clustered by k-means of training cells with as many as ``CLUSTERS`` centres.
    They are remembered for the last training samples.
    """
    groups: tuple[NDArray[np.int64], int] = cohort.remembered("groups", train_s, lambda: _grouped(cohort, train_s))
    return groups


def _grouped(cohort: Cohort, train_s: Mask) -> tuple[NDArray[np.int64], int]:
    train_n = cohort.cells(train_s)
    if cohort.types_n is not None:
        names = np.unique(cohort.types_n[train_n & (cohort.types_n != "")].astype(str))
        place = {name: number for number, name in enumerate(names)}
        return np.array([place.get(name, -1) for name in cohort.types_n], np.int64), len(names)
    x_nf = cohort.features(train_s)
    centre_kf = cluster_centres(x_nf[train_n], CLUSTERS)
    return nearest_centre(x_nf, centre_kf), len(centre_kf)


def _type_counts(cohort: Cohort, train_s: Mask, cells_n: Mask | None) -> Floats:
    group_n, groups = groups_of_cells(cohort, train_s)
    code_n = _codes(cohort, cells_n)
    both_n = np.where((code_n >= 0) & (group_n >= 0), code_n * groups + group_n, -1)
    return _counts(both_n, len(cohort.samples) * groups).reshape(len(cohort.samples), groups)


def composition(cohort: Cohort, train_s: Mask, cells_n: Mask | None = None) -> Floats:
    """Share of each cell type, or of each k-means cluster where there are no types."""
    count_st = _type_counts(cohort, train_s, cells_n)
    return count_st / np.maximum(count_st.sum(1, keepdims=True), 1)


def composition_clr(cohort: Cohort, train_s: Mask, cells_n: Mask | None = None) -> Floats:
    """Log share of each type less the mean log share (centred log-ratio; pseudocount 1)."""
    log_st = np.log(_type_counts(cohort, train_s, cells_n) + 1)
    return log_st - log_st.mean(1, keepdims=True)


def mean_and_composition(cohort: Cohort, train_s: Mask, cells_n: Mask | None = None) -> Floats:
    """:func:`mean` beside :func:`composition_clr`."""
    return np.hstack([mean(cohort, train_s, cells_n), composition_clr(cohort, train_s, cells_n)])


def types(cohort: Cohort, train_s: Mask, cells_n: Mask | None = None) -> Floats:
    """Mean features of each cell type (or cluster) of a sample, shape (samples, types * features).

    A sample's mean is drawn towards the training samples' as if they had lent it one cell, so that a type it lacks is as in the others.
    Types of fewer than ``FEWEST_TYPE_CELLS`` training cells are left out.
    """
    x_nf, code_n = np.asarray(cohort.features(train_s), np.float64), _codes(cohort, cells_n)
    group_n, groups = groups_of_cells(cohort, train_s)
    n, both_n = len(cohort.samples), np.where((code_n >= 0) & (group_n >= 0), code_n * groups + group_n, -1)
    sum_stf = sums(x_nf, both_n, n * groups).reshape(n, groups, -1)
    count_st = _counts(both_n, n * groups).reshape(n, groups)
    train_n = np.where(np.append(train_s, False)[cohort.sample_n], group_n, -1)
    trained_t = _counts(train_n, groups)
    typical_tf = sums(x_nf, train_n, groups) / np.maximum(trained_t, 1)[:, None]
    mean_stf = (sum_stf + typical_tf) / (count_st[..., None] + 1)
    kept = mean_stf[:, trained_t >= FEWEST_TYPE_CELLS]
    return kept.reshape(n, -1) if kept.shape[1] else np.zeros((n, 1))


def lda(cohort: Cohort, train_s: Mask, cells_n: Mask | None = None) -> Floats:
    """Means of the cells' features in the directions in which training samples differ most beside their own cells.

    What a contrast of two views of a sample against other samples' learns in the linear limit, in closed form (Fisher's discriminants of
    samples): no label of a sample is used. To the covariance of cells within samples ``SHRINKAGE`` times its mean variance is added, so
    that directions in which hardly any cell varies are not blown up. At most ``DIRECTIONS`` dimensions.
    """
    axis_fd = cohort.remembered("lda", train_s, lambda: _discriminants(cohort, train_s))
    found: Floats = mean(cohort, train_s, cells_n) @ axis_fd
    return found


def _discriminants(cohort: Cohort, train_s: Mask) -> Floats:
    """Directions of :func:`lda` with a variance of 1 within samples, those in which samples differ most first, shape (features, d)."""
    x_nf, train_n = cohort.features(train_s), cohort.cells(train_s)
    mean_sf = _means(x_nf, cohort.sample_n, len(cohort.samples))
    apart_nf = x_nf[train_n] - mean_sf[cohort.sample_n[train_n]]
    within_ff = apart_nf.T @ apart_nf / max(1, len(apart_nf))
    within_ff += SHRINKAGE * within_ff.trace() / len(within_ff) * np.eye(len(within_ff))
    variance_f, along_ff = np.linalg.eigh(within_ff)
    kept_f = variance_f > 1e-9 * max(float(variance_f.max(initial=0.0)), 1e-300)
    white_fw = along_ff[:, kept_f] / np.sqrt(variance_f[kept_f])
    own_sf = mean_sf[train_s & np.isfinite(mean_sf).all(1)]
    _, _, direction_dw = np.linalg.svd((own_sf - own_sf.mean(0)) @ white_fw, full_matrices=False)
    found: Floats = white_fw @ direction_dw[: min(DIRECTIONS, len(own_sf) - 1)].T
    return found


def covariates(cohort: Cohort, train_s: Mask, cells_n: Mask | None = None, columns: Sequence[str] = ()) -> Floats:
    """Log number of cells where it is known, median of each quality column of obs there is, and covariates of samples.

    Parameters
    ----------
    columns
        Of ``cohort.table``. Numbers as they are, other values as one column of 0 and 1 for each of the training samples; a missing number
        is the training samples' median.

    Raises
    ------
    SctoolError
        If a column is not one of samples.
    """
    code_n, n = _codes(cohort, cells_n), len(cohort.samples)
    # metadata without cells may say how many there were, or not (NaN)
    cells_s = cohort.table["n_cells"].to_numpy(np.float64) if cells_n is None else _counts(code_n, n)
    made = [np.log1p(cells_s)] if np.isfinite(cells_s).all() else []
    for key in _QC:
        if key in cohort.obs and pd.api.types.is_numeric_dtype(cohort.obs[key]):
            by_sample = pd.Series(cohort.obs[key].to_numpy(np.float64)).groupby(code_n).median()
            made.append(_filled(by_sample.reindex(range(n)).to_numpy(np.float64), train_s))
    for key in columns:
        if key not in cohort.table:
            raise SctoolError(
                f"--covariate {key!r} is not a column of samples; there are: {', '.join(map(str, cohort.table))}",
                "give a column of one value a sample",
            )
        values = cohort.table[key]
        numbers = pd.to_numeric(values.astype(object), errors="coerce").to_numpy(np.float64)
        if np.isfinite(numbers).sum() == values.notna().sum():
            made.append(_filled(numbers, train_s))
            continue
        said = values.astype(object).where(values.notna(), "").astype(str).to_numpy(object)
        made += [(said == name).astype(np.float64) for name in sorted(set(said[train_s]) - {""})]
    return np.stack(made, 1) if made else np.zeros((n, 1))


def _filled(value_s: Floats, train_s: Mask) -> Floats:
    known_s = np.isfinite(value_s)
    middle = float(np.median(value_s[train_s & known_s])) if (train_s & known_s).any() else 0.0
    return np.where(known_s, value_s, middle)


def random(cohort: Cohort, train_s: Mask, cells_n: Mask | None = None) -> Floats:
    """Noise, the same in every fold: what chance scores."""
    return np.random.default_rng(0).normal(size=(len(cohort.samples), RANDOM_DIMENSIONS))


def gloscope(cohort: Cohort, train_s: Mask, cells_n: Mask | None = None) -> Floats:
    """Coordinates that keep GloScope distances: see :mod:`sctool.models.samples.gloscope`.

    Distances of all cells do not depend on the fold where the features do not, and are then remembered.
    """
    x_nf = cohort.features(train_s)
    if cells_n is not None:
        return place(divergences(x_nf, _codes(cohort, cells_n), len(cohort.samples)), train_s)
    # held weakly, so that features of one fold are not kept beside those of the next
    of, apart_ss = cohort.memo.get("gloscope", (b"", (lambda: None, None)))[1]
    if of() is not x_nf:
        of, apart_ss = weakref.ref(x_nf), divergences(x_nf, cohort.sample_n, len(cohort.samples))
        cohort.memo["gloscope"] = b"", (of, apart_ss)
    return place(apart_ss, train_s)


BASELINES: dict[str, tuple[Baseline, str]] = {
    "mean": (mean, "mean of the cells' features (pseudobulk)"),
    "mean_sd": (mean_sd, "mean and standard deviation of the cells' features"),
    "lda": (lda, "means in the directions in which samples differ most beside their cells (the contrast in the linear limit)"),
    "composition": (composition, "share of each cell type, or k-means cluster"),
    "composition_clr": (composition_clr, "centred log-ratio of the shares of types or clusters"),
    "mean_and_composition": (mean_and_composition, "mean of the cells' features beside log-ratios of types or clusters"),
    "types": (types, "mean features of each cell type, or k-means cluster"),
    "gloscope": (gloscope, "samples as distributions of cells: coordinates of nearest-neighbour divergences"),
    "covariates": (covariates, "number of cells, quality, and given covariates; nothing of what cells express"),
    "random": (random, "noise"),
}


def baseline(name: str) -> Baseline:
    """The baseline of this name.

    Raises
    ------
    SctoolError
        If there is none.
    """
    if name not in BASELINES:
        close = get_close_matches(name, BASELINES, 1)
        raise SctoolError(
            f"no baseline of samples is called {name!r}",
            hint=(f"did you mean {close[0]}? " if close else "") + f"there are {', '.join(BASELINES)}",
        )
    return BASELINES[name][0]
