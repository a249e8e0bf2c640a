"""A perturbation screen: what was done to each cell, its quality, and what is held out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from sctool.config import Config
from sctool.data.cache import cached_csr, take_rows
from sctool.data.check_perturbation import check_perturbation_file, perturbation_names
from sctool.data.perturbation_names import CONTROL
from sctool.data.perturbation_splits import split_screen
from sctool.data.quality import fit_thresholds, flags, gene_symbols, given_flags, measure, quality_notes, quality_table, share_notes
from sctool.data.read import H5ad
from sctool.data.splits import select
from sctool.errors import SctoolError

Rows = NDArray[np.int64]
SIZE_COLUMN = "n_counts_all_genes"
BLOCK = 4096


@dataclass(frozen=True)
class Screen:
    """A screen as it is read; nothing is normalised yet."""

    path: Path
    obs: pd.DataFrame
    var: pd.DataFrame
    counts: sp.csr_matrix
    """Cells x all genes of the file; in memory or memory-mapped."""
    source: str
    """Where in the file the counts are."""
    name_n: NDArray[Any]
    """Canonical perturbation of each cell."""
    size_n: NDArray[np.float64]
    """Counts of each cell over all genes of the experiment."""
    failed: pd.DataFrame
    """Which criterion of quality each cell failed; no columns where quality is not looked at."""
    split_n: NDArray[Any]
    """``train``, ``validation``, ``test`` or ``unused``."""
    target_sum: float
    """Counts per cell of log expression."""
    quality: dict[str, Any]
    """Thresholds, for the manifest, and the table to show."""
    notes: list[str]
    embedding: NDArray[np.float32] | None = None
    """Given latent codes of the cells, where ``ar.embedding`` names them."""

    @property
    def fail_n(self) -> NDArray[np.bool_]:
        """Cells that failed any criterion."""
        return np.asarray(self.failed.to_numpy(bool).any(1))

    @property
    def genes(self) -> tuple[str, ...]:
        """Names of the genes of the file."""
        return tuple(map(str, self.var.index))

    def known(self) -> Rows:
        """Rows a model may learn from: training and validation."""
        return np.flatnonzero(np.isin(self.split_n, ("train", "validation")))

    def log_expression(self, rows: Rows, columns: NDArray[np.int64] | None = None) -> sp.csr_matrix:
        """``log1p(counts / size * target_sum)`` of some cells and genes, CSR float32."""
        x_ng = take_rows(self.counts, rows)
        x_ng.data = np.log1p(x_ng.data * np.repeat(self.target_sum / self.size_n[rows], np.diff(x_ng.indptr))).astype(np.float32)
        return x_ng if columns is None else x_ng[:, columns]

    def blocks(self, rows: Rows, columns: NDArray[np.int64] | None = None) -> Iterator[tuple[Rows, sp.csr_matrix]]:
        """Log expression of some cells, block by block."""
        for at in range(0, len(rows), BLOCK):
            part = rows[at : at + BLOCK]
            yield part, self.log_expression(part, columns)


def read_screen(path: Path, config: Config) -> Screen:
    """Read and check a screen, split it, and flag cells of low quality by limits fitted on its training cells.

    Parameters
    ----------
    path
        The .h5ad file.
    config
        Its sections ``data`` and ``cradle``, and ``seed``.
    """
    data, settings = config.data, config.cradle
    file = H5ad(path)
    checked = check_perturbation_file(file, config)
    source = checked.require().source
    obs, var = file.obs, file.genes(source)
    counts = cached_csr(file, source, Path(data.cache_dir) if data.cache_dir else None) if data.backed else file.matrix(source)
    name_n = perturbation_names(obs, settings)
    size_n = cell_sizes(counts, obs, settings.size_key)
    split_n, named = np.full(len(obs), "unused", dtype="<U10"), name_n != ""
    split_n[named] = split_screen(name_n[named], obs[named], config)
    if data.cells:
        split_n[~select(obs, data.cells)] = "unused"
    split_n[size_n == 0] = "unused"
    train = np.flatnonzero(split_n == "train")
    if len(train) < 2 or not (name_n[train] == CONTROL).any():
        what = f"{len(train)} cells" if len(train) < 2 else "no control cells"
        raise SctoolError(f"{what} are left to train on", "hold out fewer cells (--split, --hold-out)")
    failed, quality, said = _quality(counts, var, obs, name_n, train, config)
    target_sum = data.target_sum or float(np.median(size_n[train]))
    notes = list(dict.fromkeys([*checked.notes, *said]))
    column = size_column(obs, settings.size_key)
    if column:
        notes.append(f"size of a cell: obs[{column!r}], counts over all genes of the experiment")
    return Screen(path, obs, var, counts, source, name_n, size_n, failed, split_n, target_sum, quality, notes, file.given_embedding(config))


def size_column(obs: pd.DataFrame, key: str) -> str | None:
    """The column of counts over all genes of the experiment, if one is used."""
    if key == "none" or (key == "auto" and SIZE_COLUMN not in obs):
        return None
    return SIZE_COLUMN if key == "auto" else key


def cell_sizes(counts: sp.csr_matrix, obs: pd.DataFrame, key: str) -> NDArray[np.float64]:
    """Counts of each cell over all genes of the experiment: a column of obs where there is one, else over the genes of the file.

    Parameters
    ----------
    counts
        CSR of shape (cells, genes); may be memory-mapped.
    key
        The column; ``auto`` for ``n_counts_all_genes`` if there is one, ``none`` for none.
    """
    starts = range(0, len(obs), BLOCK)
    blocks = [take_rows(counts, np.arange(at, min(at + BLOCK, len(obs)))).sum(1) for at in starts]
    total_n = np.concatenate([np.asarray(block, np.float64).ravel() for block in blocks])
    column = size_column(obs, key)
    if column is None:
        return total_n
    if column not in obs:
        raise SctoolError(f"obs has no column {column!r} (cradle.size_key)", "give one of counts over all genes, or none")
    size_n = pd.to_numeric(obs[column].astype(object), errors="coerce").to_numpy(float)
    if not np.isfinite(size_n).all() or (size_n < 0.99 * total_n).any():
        raise SctoolError(
            f"obs[{column!r}] is not the total of each cell: it is missing, or below the counts of the file, in "
            f"{int((~(size_n >= 0.99 * total_n)).sum())} cells",
            "mend it, or give --set cradle.size_key=none",
        )
    return np.maximum(size_n, total_n)


def _quality(
    counts: sp.csr_matrix, var: pd.DataFrame, obs: pd.DataFrame, name_n: NDArray[Any], train: Rows, config: Config
) -> tuple[pd.DataFrame, dict[str, Any], list[str]]:
    """Flags, what the manifest says of them, and notes."""
    settings = config.cradle
    none = pd.DataFrame(index=obs.index)
    if settings.qc_key == "none" or settings.model not in ("cradle", "auto"):
        return none, {"key": "none"}, []
    if settings.qc_key != "auto":
        failed = pd.DataFrame({settings.qc_key: given_flags(obs, settings.qc_key)}, index=obs.index)
        return failed, {"key": settings.qc_key}, share_notes(np.asarray(failed.to_numpy(bool).any(1)), None, name_n)
    symbols = gene_symbols(var)
    values = measure(counts, symbols, obs)
    batch_n = obs[config.data.batch_key].astype(str).to_numpy() if settings.qc_by_batch and config.data.batch_key else None
    thresholds = fit_thresholds(values, settings.qc_mad, train, batch_n, settings.qc_criteria, settings.qc_limits)
    failed = flags(values, thresholds, batch_n)
    about = {"key": "auto", "thresholds": thresholds.to_json(), "table": quality_table(values, thresholds, failed)}
    said = quality_notes(values, thresholds, failed, name_n)
    failed = failed.loc[:, failed.any()]
    return failed, about, said
