"""What a matrix holds, judged by its values and never by its type or its name."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import scipy.sparse as sp

from sctool.data.read import H5ad, near
from sctool.errors import SctoolError

SAMPLED_ROWS = 2000


@dataclass(frozen=True)
class MatrixKind:
    """The verdict on a matrix.

    ``kind`` is one of ``counts``, ``binary``, ``log1p`` (of totals scaled to ``target``), ``log1p counts``, ``normalised`` (to
    ``target``), ``log-like``, ``non-integer``, ``scaled`` (has negative values), ``invalid`` (has NaN or infinity) or ``empty``.
    """

    kind: str
    low: float
    high: float
    integers: float
    target: float = 0.0
    bad_values: int = 0

    @property
    def is_counts(self) -> bool:
        """Whether a count likelihood may be used."""
        return self.kind == "counts"

    @property
    def is_linear(self) -> bool:
        """Whether it is on the scale of counts, whole or not."""
        return self.kind in ("counts", "non-integer")

    def __str__(self) -> str:
        values = f"values {self.low:.4g} to {self.high:.4g}, {self.integers:.1%} of the non-zeros whole"
        words = {
            "counts": "raw counts",
            "binary": "binarised (nothing above 1)",
            "log1p": f"log1p data (cells scaled to {self.target:,.0f})",
            "log1p counts": "log1p of raw counts",
            "normalised": f"normalised data (every cell sums to {self.target:,.0f})",
            "log-like": "log-like data of unknown scaling",
            "non-integer": "linear but not whole numbers (TPM, or corrected counts)",
            "scaled": "scaled data (negative values)",
            "invalid": f"broken: {self.bad_values:,} NaN or infinite values",
            "empty": "all zeros",
        }
        return f"{words[self.kind]}, {values}" if self.kind not in ("invalid", "empty") else words[self.kind]


def matrix_kind(x_ng: sp.csr_matrix) -> MatrixKind:
    """Judge a sample of rows (all genes)."""
    values = x_ng.data
    bad = int((~np.isfinite(values)).sum())
    if bad:
        return MatrixKind("invalid", np.nan, np.nan, np.nan, bad_values=bad)
    if not len(values):
        return MatrixKind("empty", 0.0, 0.0, 1.0)
    low = float(min(values.min(), 0.0)) if x_ng.nnz < np.prod(x_ng.shape) else float(values.min())
    found = MatrixKind("", low, float(values.max()), _whole(values))
    if low < 0:
        return replace(found, kind="scaled")
    if found.integers >= 0.999:
        return replace(found, kind="binary" if found.high <= 1 else "counts")
    if found.high < 30:
        unlogged = x_ng.copy()
        unlogged.data = np.expm1(values.astype(np.float64))
        totals = np.asarray(unlogged.sum(1)).ravel()
        if _constant(totals):
            return replace(found, kind="log1p", target=float(np.median(totals)))
        if _whole(unlogged.data, 1e-3) >= 0.99:
            return replace(found, kind="log1p counts")
    totals = np.asarray(x_ng.sum(1)).ravel()
    if _constant(totals):
        return replace(found, kind="normalised", target=float(np.median(totals)))
    return replace(found, kind="log-like" if found.high < 20 else "non-integer")


def _whole(values: np.ndarray, tolerance: float = 1e-6) -> float:
    return float((np.abs(values - np.rint(values)) <= tolerance * np.maximum(1, np.abs(values))).mean())


def _constant(totals: np.ndarray) -> bool:
    totals = totals[totals > 0]
    return len(totals) > 1 and float(totals.std() / totals.mean()) < 0.01


def judge(file: H5ad, source: str) -> MatrixKind:
    """Judge a matrix of a file from at most 2,000 rows in 20 blocks spread over it."""
    n = file.n_cells
    if n <= SAMPLED_ROWS:
        starts, size = [0], n
    else:
        size = SAMPLED_ROWS // 20
        starts = [int(start) for start in np.linspace(0, n - size, 20)]
    return matrix_kind(sp.vstack(list(file.blocks(source, starts, size)), format="csr"))


@dataclass(frozen=True)
class Chosen:
    """The matrix of a file that a model reads, and what it holds."""

    source: str
    kind: MatrixKind
    var: pd.DataFrame
    note: str = ""


def find_counts(file: H5ad, layer: str | None = None) -> Chosen:
    """Choose the raw counts: the layer asked for, else ``layers["counts"]``, ``raw`` or ``X``, whichever holds them.

    Raises
    ------
    SctoolError
        Saying what each candidate holds instead.
    """
    if layer is not None:
        source = layer if layer in ("X", "raw/X") else f"layers/{layer}"
        if source not in file.shapes:
            raise SctoolError(
                f"{file.path.name} has no layer {layer!r}; it has: {', '.join(file.layers) or 'none'}", near(layer, [*file.layers, "X"])
            )
        kind = judge(file, source)
        if kind.is_counts or kind.kind == "non-integer":
            return Chosen(source, kind, file.genes(source), "" if kind.is_counts else "not whole numbers; used as counts as asked")
        raise SctoolError(f"{file.path.name}: {source} is {kind}; raw counts are needed", "give another --counts-layer")
    found = {}
    for source in ("layers/counts", "raw/X", "X"):
        if source in file.shapes:
            found[source] = judge(file, source)
            if found[source].is_counts:
                return Chosen(source, found[source], file.genes(source))
    said = "; ".join(f"{source} is {kind}" for source, kind in found.items())
    others = [name for name in file.layers if name != "counts" and judge(file, f"layers/{name}").is_counts]
    hint = f"give --counts-layer {others[0]}" if others else 'put raw counts into layers["counts"] or X'
    if any(kind.kind == "non-integer" for kind in found.values()) and not others:
        hint += ", or, if these are expected or corrected counts, name the matrix with --counts-layer X"
    raise SctoolError(f"{file.path.name} has no raw counts: {said or 'no matrix'}", hint)
