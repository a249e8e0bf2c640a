"""Log-normalised expression: made from raw counts where a file has them, else taken as it is."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from sctool.data.matrix_kind import Chosen, find_counts, judge
from sctool.data.read import H5ad
from sctool.errors import SctoolError
from sctool.sections import DataConfig

LOGGED = ("log1p", "log-like")


def find_expression(file: H5ad, data: DataConfig) -> Chosen:
    """Raw counts where there are any (or the layer asked for), else ``X`` if it holds logarithms.

    Raises
    ------
    SctoolError
        Saying what ``X`` holds instead.
    """
    try:
        return find_counts(file, data.counts_layer)
    except SctoolError:
        if data.counts_layer or "X" not in file.shapes:
            raise
    kind = judge(file, "X")
    if kind.kind not in LOGGED:
        raise SctoolError(
            f"{file.path.name}: X is {kind}; raw counts or log-normalised expression are needed",
            'put raw counts into layers["counts"] or X, or log1p of counts per 10,000 into X',
        )
    return Chosen("X", kind, file.var, f"logarithms ({kind}), used as they are")


def log_normalise(counts: sp.csr_matrix, target_sum: float) -> sp.csr_matrix:
    """``log(1 + counts * target_sum / total)`` of each cell, float32; a cell without counts stays zero.

    The zeros stay zeros, so nothing is made dense.
    """
    totals_n = np.asarray(counts.sum(1), np.float64).ravel()
    scale_n = np.divide(target_sum, totals_n, out=np.zeros_like(totals_n), where=totals_n > 0)
    values_e = np.log1p(counts.data * np.repeat(scale_n, np.diff(counts.indptr))).astype(np.float32)
    return sp.csr_matrix((values_e, counts.indices, counts.indptr), shape=counts.shape)


def read_matrix(file: H5ad, found: Chosen, target_sum: float | None = None) -> tuple[sp.csr_matrix, sp.csr_matrix | None]:
    """Log expression of all cells and genes of a file and, where it holds them, its raw counts; both CSR float32.

    Parameters
    ----------
    found
        What the file holds, from :func:`find_expression`.
    target_sum
        Counts are scaled to so many per cell; of no effect on logarithms.

    Raises
    ------
    SctoolError
        If there are NaN, infinite or negative values.
    """
    matrix = file.matrix(found.source)
    bad = int((~np.isfinite(matrix.data)).sum() + (matrix.data < 0).sum())
    if bad:
        raise SctoolError(f"{file.path}: {found.source} has {bad} NaN, infinite or negative values", "put raw counts into it")
    return (log_normalise(matrix, target_sum or 1e4), matrix) if found.kind.is_linear else (matrix, None)


def read_expression(file: H5ad, data: DataConfig, target_sum: float | None) -> tuple[sp.csr_matrix, Chosen]:
    """Log expression of all cells and genes of a file, CSR float32, and where it came from.

    Parameters
    ----------
    target_sum
        Counts are scaled to so many per cell, as they were for the model; None where the model was trained on logarithms.

    Raises
    ------
    SctoolError
        If there are NaN, infinite or negative values, or the file is on another scale than the model.
    """
    found = same_scale(file, find_expression(file, data), target_sum)
    return read_matrix(file, found, target_sum)[0], found


def same_scale(file: H5ad, found: Chosen, target_sum: float | None) -> Chosen:
    """What a file holds, if a model of cells scaled to ``target_sum`` (None: of logarithms of unknown scale) can read it.

    Raises
    ------
    SctoolError
        If not.
    """
    if found.kind.is_linear and not target_sum:
        raise SctoolError(
            f"{file.path.name} has raw counts, but the model was trained on logarithms of unknown scale", "put those into X instead"
        )
    if not found.kind.is_linear and target_sum and found.kind.target and abs(found.kind.target / target_sum - 1) > 0.01:
        raise SctoolError(
            f"{file.path.name}: X is {found.kind}; the model was trained on cells scaled to {target_sum:,.0f}",
            "scale it likewise, or give counts",
        )
    return found
