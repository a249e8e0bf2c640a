"""Matching a query's genes to a stored list, and choosing variable genes; never chosen again on a query."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from sctool.errors import SctoolError

_MISSING = ("", "nan", "None", "<NA>", "NaN")
_ENSEMBL = re.compile(r"^ENS[A-Z]*G\d{6,}(\.\d+)?$")


@dataclass(frozen=True)
class GeneMatch:
    """Where each gene of a model is in a query."""

    columns: NDArray[np.int64]
    """Column of the query for each gene of the model, -1 where it has none."""
    how: str
    """Which names matched."""

    @property
    def coverage(self) -> float:
        """Share of the model's genes found."""
        return float((self.columns >= 0).mean())

    def __str__(self) -> str:
        found = int((self.columns >= 0).sum())
        return f"{found:,} of {len(self.columns):,} genes of the model found ({self.coverage:.0%}) by {self.how}"


def gene_names(var: pd.DataFrame) -> dict[str, list[str]]:
    """The names a table of genes offers: its index, and each text column whose values are nearly unique."""
    names = {"name": [str(name) for name in var.index]}
    for key in var.columns:
        column = var[key]
        if isinstance(column.dtype, pd.CategoricalDtype) or column.dtype == object or pd.api.types.is_string_dtype(column):
            text = [str(value) for value in column]
            if len(set(text)) > 0.8 * len(text):
                names[str(key)] = text
    return names


def id_type(names: Sequence[str]) -> str:
    """``Ensembl ids`` or ``symbols``, by majority."""
    return "Ensembl ids" if np.mean([bool(_ENSEMBL.match(name)) for name in names]) > 0.5 else "symbols"


def match_genes(stored: dict[str, list[str]], var: pd.DataFrame, floor: float = 0.5) -> GeneMatch:
    """Match a model's genes to a query's, by whichever pair of names covers most.

    Exact names come first; then columns of symbols or ids on either side; Ensembl versions (``.12``) are left out, case is kept.

    Parameters
    ----------
    stored
        Names of the model's genes by kind, as :func:`gene_names` gave them when it was trained; ``name`` is the main one.
    var
        The query's table of genes.
    floor
        Least coverage accepted.

    Raises
    ------
    SctoolError
        If coverage is below ``floor``, with what each side's names look like.
    """
    best = GeneMatch(np.full(len(stored["name"]), -1), "name")
    for theirs, names in gene_names(var).items():
        at: dict[str, int] = {}
        for index, name in enumerate(names):
            if name not in _MISSING:
                at.setdefault(_bare(name), index)
        for ours, model in stored.items():
            columns = np.array([at.pop(_bare(name), -1) for name in model], dtype=np.int64)  # a column serves one gene
            at |= {_bare(names[column]): int(column) for column in columns if column >= 0}
            how = "name" if ours == theirs == "name" else f"the query's {theirs!r} and the model's {ours!r}"
            if (columns >= 0).sum() > (best.columns >= 0).sum():
                best = GeneMatch(columns, how)
        if best.coverage == 1.0:
            break
    if best.coverage < floor or not (best.columns >= 0).any():
        known, asked = stored["name"], [str(name) for name in var.index]
        raise SctoolError(
            f"only {int((best.columns >= 0).sum()):,} of {len(known):,} genes of the model are in the query ({best.coverage:.0%}; "
            f"at least {floor:.0%} needed): the model has {id_type(known)} like {known[0]}, the query {id_type(asked)} like {asked[0]}",
            "add a var column with the other kind of names, or accept it with --set data.min_gene_coverage=0.1",
        )
    return best


def _bare(name: str) -> str:
    return name.split(".")[0] if _ENSEMBL.match(name) else name


def variable_genes(
    counts: sp.csr_matrix, n_top: int, batches: NDArray[np.int64] | None = None, smallest_batch: int = 100, logged: bool = False
) -> NDArray[np.int64]:
    """Columns of the highly variable genes (Seurat v3, on counts), in the order of the file.

    Parameters
    ----------
    counts
        Training cells only, without stored zeros, shape (cells, genes).
    n_top
        How many; 0 keeps every gene that is not all zero.
    batches
        Codes of the batch of each cell; ranks are then combined over batches, if each has ``smallest_batch`` cells.
    logged
        The matrix is log expression, not counts: the ranking is then Seurat's first (dispersion in bins of the mean).
    """
    detected = np.flatnonzero(counts.getnnz(axis=0) > 0)
    if n_top == 0 or n_top >= len(detected):
        return detected
    import anndata as ad
    import scanpy as sc
    import torch

    threads = torch.get_num_threads()
    try:
        return _ranked(ad.AnnData(counts), sc, n_top, batches, smallest_batch, logged)
    finally:
        torch.set_num_threads(threads)  # numba, which scanpy calls, sets the number of all OpenMP threads


def _ranked(cells: Any, sc: Any, n_top: int, batches: NDArray[np.int64] | None, smallest_batch: int, logged: bool) -> NDArray[np.int64]:
    if logged:
        table = sc.pp.highly_variable_genes(cells, flavor="seurat", n_top_genes=n_top, inplace=False)
        return np.flatnonzero(table["highly_variable"].to_numpy())
    by_batch = batches is not None and np.bincount(batches).min() >= smallest_batch and len(np.unique(batches)) > 1
    if by_batch:
        cells.obs["batch"] = pd.Series(batches, index=cells.obs_names, dtype="category")
    for span in (0.3, 0.5, 1.0):  # the loess fit is singular on small or sparse sets
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                table = sc.pp.highly_variable_genes(
                    cells, flavor="seurat_v3", n_top_genes=n_top, span=span, batch_key="batch" if by_batch else None, inplace=False
                )
        except ValueError:
            continue
        return np.flatnonzero(table["highly_variable"].to_numpy())
    raise SctoolError(
        f"variable genes cannot be chosen from {cells.shape[0]} cells x {cells.shape[1]} genes (the variance fit is singular)",
        "give --n-top-genes 0 to keep all genes, or more cells",
    )
