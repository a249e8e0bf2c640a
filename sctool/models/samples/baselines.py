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

from sctool.data.cohort import Cohort
from sctool.errors import SctoolError
from sctool.models.samples.gloscope import gloscope_features

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Baseline = Callable[[Cohort, Mask, Mask | None], Floats]

CLUSTERS = 15
RANDOM_DIMENSIONS = 10
FEWEST_TYPE_CELLS = 10
"""In the training samples together: types of fewer have no mean worth taking."""
_MOST_FITTED = 20_000
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
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums(x_nf, code_n, groups) / _counts(code_n, groups)[:, None]


def mean(cohort: Cohort, train_s: Mask, cells_n: Mask | None = None) -> Floats:
    """Mean of the cells' features (pseudobulk of the representation); NaN for samples without cells."""
    return _means(cohort.features(train_s), _codes(cohort, cells_n), len(cohort.samples))


def mean_sd(cohort: Cohort, train_s: Mask, cells_n: Mask | None = None) -> Floats:
    """Mean and standard deviation of the cells' features."""
    x_nf, code_n = np.asarray(cohort.features(train_s), np.float64), _codes(cohort, cells_n)
    mean_sf = _means(x_nf, code_n, len(cohort.samples))
    centred_nf = x_nf - mean_sf[np.maximum(code_n, 0)]
    return np.hstack([mean_sf, np.sqrt(_means(np.square(centred_nf), code_n, len(cohort.samples)))])


_last: tuple[weakref.ref[Cohort], bytes, tuple[NDArray[np.int64], int]] | None = None


def groups_of_cells(cohort: Cohort, train_s: Mask) -> tuple[NDArray[np.int64], int]:
    """:func:`_grouped`, kept until the next fold, as several baselines ask for it."""
    global _last
    key = train_s.tobytes()
    if _last is None or _last[0]() is not cohort or _last[1] != key:
        _last = weakref.ref(cohort), key, _grouped(cohort, train_s)
    return _last[2]


def _grouped(cohort: Cohort, train_s: Mask) -> tuple[NDArray[np.int64], int]:
    """Code of each cell's type, -1 where it is of none of the training samples' types, and how many types there are.

    Types are those of the cohort. Without them cells are clustered by k-means with as many as ``CLUSTERS`` centres, from at most
    ``_MOST_FITTED`` training cells.
    """
    train_n = np.append(train_s, False)[cohort.sample_n]
    if cohort.types_n is not None:
        names = np.unique(cohort.types_n[train_n & (cohort.types_n != "")].astype(str))
        place = {name: number for number, name in enumerate(names)}
        return np.array([place.get(name, -1) for name in cohort.types_n], np.int64), len(names)
    from sklearn.cluster import KMeans

    x_nf = np.asarray(cohort.features(train_s), np.float32)
    rows = np.flatnonzero(train_n)
    if len(rows) > _MOST_FITTED:
        rows = np.sort(np.random.default_rng(0).choice(rows, _MOST_FITTED, replace=False))
    k = min(CLUSTERS, len(rows))
    centres = KMeans(k, n_init=3, random_state=0).fit(x_nf[rows])
    return centres.predict(x_nf).astype(np.int64), k


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
    trained_t = count_st[train_s].sum(0)
    typical_tf = sum_stf[train_s].sum(0) / np.maximum(trained_t, 1)[:, None]
    mean_stf = (sum_stf + typical_tf) / (count_st[..., None] + 1)
    kept = mean_stf[:, trained_t >= FEWEST_TYPE_CELLS]
    return kept.reshape(n, -1) if kept.shape[1] else np.zeros((n, 1))


def covariates(cohort: Cohort, train_s: Mask, cells_n: Mask | None = None, columns: Sequence[str] = ()) -> Floats:
    """Log number of cells, median of each quality column of obs there is, and covariates of samples.

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
    made = [np.log1p(_counts(code_n, n))]
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
    return np.stack(made, 1)


def _filled(value_s: Floats, train_s: Mask) -> Floats:
    known_s = np.isfinite(value_s)
    middle = float(np.median(value_s[train_s & known_s])) if (train_s & known_s).any() else 0.0
    return np.where(known_s, value_s, middle)


def random(cohort: Cohort, train_s: Mask, cells_n: Mask | None = None) -> Floats:
    """Noise, the same in every fold: what chance scores."""
    return np.random.default_rng(0).normal(size=(len(cohort.samples), RANDOM_DIMENSIONS))


def gloscope(cohort: Cohort, train_s: Mask, cells_n: Mask | None = None) -> Floats:
    """Coordinates that keep GloScope distances: see :mod:`sctool.models.samples.gloscope`."""
    return gloscope_features(np.asarray(cohort.features(train_s), np.float64), _codes(cohort, cells_n), train_s)


BASELINES: dict[str, tuple[Baseline, str]] = {
    "mean": (mean, "mean of the cells' features (pseudobulk)"),
    "mean_sd": (mean_sd, "mean and standard deviation of the cells' features"),
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
