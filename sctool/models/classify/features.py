"""What a classifier reads of a cell: the log expression of genes that tell types apart, scaled; or an embedding.

Genes and scales are chosen on the cells given to :meth:`Features.fit` and nowhere else, so inside a fold they know nothing of its test
cells. Three things make a classifier carry over to other batches: genes are chosen that tell types apart *within* each batch
(:func:`markers`), each is divided by its standard deviation, and each cell is scaled to unit length, which takes its depth out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.stats import rankdata

from sctool.data.genes import variable_genes
from sctool.errors import SctoolError

CLIP = 10.0
FEWEST_CELLS = 3
"""Cells a gene must be found in to be read at all."""


@dataclass(frozen=True)
class Features:
    """The fitted choice and scale of features.

    Attributes
    ----------
    columns
        Columns of the matrix it was fitted on, shape (features,).
    scale_f
        Standard deviation of each over the training cells; cells are divided by it, without centring, so zeros stay zeros.
    mean_f
        Training mean of the scaled features, which stands for a feature a query lacks.
    unit
        Whether cells are then scaled to one length, that of a cell with a third of the features at one standard deviation.
    """

    columns: NDArray[np.int64]
    scale_f: NDArray[np.float32]
    mean_f: NDArray[np.float32]
    unit: bool = True

    @classmethod
    def fit(cls, x_ng: Any, columns: NDArray[np.int64], *, unit: bool = True) -> Features:
        """Scale the given columns of the training cells.

        Parameters
        ----------
        x_ng
            Training cells: CSR of log expression, or a dense embedding; shape (cells, columns of the file).
        columns
            Which of them, in the order of the file.
        """
        part = x_ng[:, columns]
        if not sp.issparse(part):
            part, unit = np.asarray(part), False  # an embedding's directions have zero at their centre: its length means something
        if sp.issparse(part):
            whole = part.astype(np.float64)  # sums of float32 would give a gene that does not vary a spread
            mean_f: Any = np.asarray(whole.mean(0)).ravel()
            square_f = np.asarray(whole.multiply(whole).mean(0)).ravel()
        else:
            mean_f, square_f = part.mean(0, dtype=np.float64), np.square(part, dtype=np.float64).mean(0)
        n = x_ng.shape[0]
        variance_f = np.maximum(square_f - mean_f**2, 0.0) * n / max(n - 1, 1)
        scale_f = np.sqrt(variance_f)
        scale_f[scale_f < 1e-6] = 1.0
        fitted = cls(np.asarray(columns, np.int64), scale_f.astype(np.float32), np.zeros(len(columns), np.float32), unit)
        return cls(fitted.columns, fitted.scale_f, np.asarray(fitted._scaled(part).mean(0), np.float32).ravel(), unit)

    def take(self, part: Any) -> Any:
        """Scaled and clipped features from these columns alone, in their order."""
        part = self._scaled(part)
        return self._to_one_length(part) if self.unit else part

    def transform(self, x_ng: Any, columns: NDArray[np.int64] | None = None) -> Any:
        """Scaled and clipped features of cells, CSR float32 (dense for an embedding), shape (cells, features).

        Parameters
        ----------
        x_ng
            Cells as in :meth:`fit`, or those of a query.
        columns
            Where the query has each feature; -1 where it lacks it, which then gets the training mean.
        """
        columns = self.columns if columns is None else columns
        absent = columns < 0
        part = self._scaled(x_ng[:, np.where(absent, 0, columns)])
        if absent.any():
            filled_f = np.where(absent, self.mean_f, 0).astype(np.float32)
            part = sp.csr_matrix(part @ sp.diags_array((~absent).astype(np.float32), format="csr"))
            part = sp.csr_matrix(part + sp.csr_matrix(np.broadcast_to(filled_f, part.shape)))
        return self._to_one_length(part) if self.unit else part

    def _to_one_length(self, part: sp.csr_matrix) -> sp.csr_matrix:
        length_n = np.sqrt(np.asarray(part.multiply(part).sum(1), np.float64).ravel())
        factor_n = np.divide(np.sqrt(len(self.columns) / 3), length_n, out=np.zeros_like(length_n), where=length_n > 0)
        values_e = part.data * np.repeat(factor_n, np.diff(part.indptr)).astype(np.float32)
        return sp.csr_matrix((values_e, part.indices, part.indptr), shape=part.shape)

    def _scaled(self, part: Any) -> Any:
        """Divided by the scale and clipped to +-10: a cell with one huge value is not decided by it."""
        if not sp.issparse(part):
            return np.clip(part / self.scale_f, -CLIP, CLIP).astype(np.float32)
        csr = sp.csr_matrix(part)
        csr.sort_indices()  # else a query with its genes in another order adds up in another order
        values_e = np.minimum(csr.data / self.scale_f[csr.indices], CLIP)
        return sp.csr_matrix((values_e, csr.indices, csr.indptr), shape=csr.shape)


def choose_columns(
    kind: str, x_ng: Any, counts: sp.csr_matrix | None, n_top: int, names: list[str], wanted: list[str] | None = None
) -> NDArray[np.int64]:
    """Columns to read: ``hvg`` (Seurat v3 on counts, or Seurat on logarithms), ``all`` that are seen in 3 cells, or a list of names.

    Parameters
    ----------
    kind
        ``hvg``, ``all``, ``list`` or ``embedding``.
    x_ng, counts
        Training cells as logarithms and, where the file has them, as counts.
    n_top
        How many variable genes.
    names, wanted
        Names of the columns; for ``list`` those to read.
    """
    if kind == "embedding":
        return np.arange(x_ng.shape[1])
    if kind == "list":
        assert wanted is not None
        at = {name: column for column, name in enumerate(names)}
        return np.array(sorted(at[name] for name in set(wanted) if name in at), np.int64)
    matrix = sp.csr_matrix(x_ng) if counts is None else counts
    seen = np.flatnonzero(matrix.getnnz(axis=0) >= FEWEST_CELLS)
    if len(seen) < 2:
        raise SctoolError(f"{len(seen)} genes are found in {FEWEST_CELLS} or more of the training cells", "give more cells or genes")
    if kind == "all" or not 0 < n_top < len(seen):
        return seen
    return seen[variable_genes(matrix[:, seen], n_top, logged=counts is None)]


def markers(
    x_ng: sp.csr_matrix, columns: NDArray[np.int64], code_n: NDArray[np.int64], groups_n: NDArray[Any] | None, n: int
) -> NDArray[np.int64]:
    """Of some columns the ``n`` that tell types apart best, in the order of the file.

    For each type genes are ranked by the size of the t statistic of its cells against all others, in each group by itself, and ranks
    are averaged over the groups that have two cells of it: a gene that differs between batches, or marks a type in one batch only,
    falls behind. Types then name their best genes in turn, so a rare one has as many as a common one.

    Parameters
    ----------
    x_ng
        Log expression of the training cells.
    columns
        To choose from.
    code_n, groups_n
        Type and group of each cell; without groups all cells are one.
    n
        How many; 0, or as many as there are, keeps all.
    """
    if not 0 < n < len(columns):
        return columns
    part = sp.csr_matrix(x_ng[:, columns], dtype=np.float64)
    k = int(code_n.max()) + 1
    rank_kf, groups_k = np.zeros((k, len(columns))), np.zeros(k)
    for group in np.unique(groups_n) if groups_n is not None else [None]:
        own = np.flatnonzero(groups_n == group) if groups_n is not None else np.arange(len(code_n))
        t_kf, told_k = _t_statistic(part[own], code_n[own], k)
        rank_kf[told_k] += rankdata(t_kf[told_k], axis=1)
        groups_k += told_k
    order_kf = np.argsort(-rank_kf[groups_k > 0], axis=1, kind="stable")
    # The lists in turn, each gene where it is first named.
    _, first = np.unique(order_kf.T.ravel(), return_index=True)
    named = order_kf.T.ravel()[np.sort(first)]
    return columns[np.sort(named[:n])] if len(named) else columns


def _t_statistic(x_nf: sp.csr_matrix, code_n: NDArray[np.int64], k: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Size of the t statistic (pooled variance) of each type's cells against the others; and which types have two cells on either side."""
    n = len(code_n)
    member_kn = sp.csr_matrix((np.ones(n), (code_n, np.arange(n))), shape=(k, n))
    sum_kf = np.asarray((member_kn @ x_nf).todense())
    square_kf = np.asarray((member_kn @ x_nf.multiply(x_nf)).todense())
    size_k1 = np.bincount(code_n, minlength=k)[:, None].astype(np.float64)
    rest_k1 = n - size_k1
    told_k = (size_k1[:, 0] >= 2) & (rest_k1[:, 0] >= 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_kf, other_kf = sum_kf / size_k1, (sum_kf.sum(0) - sum_kf) / rest_k1
        within_kf = np.maximum(square_kf - size_k1 * mean_kf**2, 0) + np.maximum(square_kf.sum(0) - square_kf - rest_k1 * other_kf**2, 0)
        t_kf = np.abs(mean_kf - other_kf) / np.sqrt(within_kf / n * (1 / size_k1 + 1 / rest_k1) + 1e-9)
    return np.nan_to_num(t_kf), told_k
