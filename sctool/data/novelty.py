"""Cells for novelty detection: which types are known, which cells are novel, and which known ones are held out to be judged beside them."""

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
from sctool.data.check import check_names
from sctool.data.expression import find_expression, read_matrix
from sctool.data.genes import gene_names
from sctool.data.integration import labels_of
from sctool.data.read import H5ad, near
from sctool.errors import SctoolError

EACH = "each"
THIRDS = 3
FEWEST_TEST = 5
_TRUE, _FALSE = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class TypedCells:
    """A file with types of cells.

    Attributes
    ----------
    log_ng, counts_ng
        Log-normalised expression, and counts where there are any.
    type_n
        Type of each cell, empty where it has none.
    novel_n
        Cells marked as novel by a column; None where there is no such column.
    group_n, group_key
        Donor or batch of each cell, and the column they are from.
    """

    log_ng: sp.csr_matrix
    counts_ng: sp.csr_matrix | None
    obs: pd.DataFrame
    genes: dict[str, list[str]]
    source: str
    type_n: NDArray[Any]
    novel_n: NDArray[np.bool_] | None
    group_n: NDArray[Any] | None
    group_key: str | None

    @property
    def known(self) -> Rows:
        """Rows of cells with a type that are not marked as novel."""
        there = self.type_n != ""
        return np.flatnonzero(there if self.novel_n is None else there & ~self.novel_n)

    @property
    def notes(self) -> list[str]:
        """Lines for people."""
        n = int((self.type_n == "").sum()) if self.novel_n is None else int(((self.type_n == "") & ~self.novel_n).sum())
        sizes = f"{len(self.known):,} known cells of {len(set(self.type_n[self.known]))} types; {self.source}"
        return [sizes, *([f"note: {n:,} cells have no type; they are left out"] if n else [])]

    def depth(self, rows: Rows) -> NDArray[np.float64]:
        """Log of the total of each cell."""
        matrix = self.log_ng if self.counts_ng is None else self.counts_ng
        return np.log1p(np.asarray(matrix[rows].sum(1), np.float64).ravel())


@dataclass(frozen=True)
class Split:
    """One trial: what is learned, and what is scored.

    Attributes
    ----------
    held_out
        The type kept away, or the column that marks novel cells.
    part
        Which part of the known cells is held out.
    train, known, novel
        Rows learned; rows of held-out known cells, all of types learned; rows of novel cells.
    """

    held_out: str
    part: int
    train: Rows
    known: Rows
    novel: Rows


def no_empty_cells(file: H5ad, matrix: sp.csr_matrix, *, allowed: bool = False) -> None:
    """Refuse cells without counts, unless they are to pass: every score of such a cell is of its depth."""
    empty = np.flatnonzero(np.diff(matrix.indptr) == 0)
    if len(empty) and not allowed:
        raise SctoolError(
            f"{len(empty)} of {file.n_cells} cells have no counts, e.g. {file.obs.index[empty[0]]}",
            "filter them out, or keep them with --set data.skip_empty=true",
        )


def read_typed(path: Path, config: Config) -> TypedCells:
    """Read a file with its types, groups, and the mark of novel cells.

    Raises
    ------
    SctoolError
        For a column or value that is not there, with the nearest that is; for fewer than two types.
    """
    data, novelty = config.data, config.novelty
    if data.label_key is None:
        raise SctoolError("--label-key is missing", "give the obs column of cell types; detectors learn the known ones")
    if novelty.hold_out and novelty.novel_key:
        raise SctoolError("--hold-out and --novel-key exclude each other", "give the one that says which cells are novel")
    if novelty.novel_value is not None and novelty.novel_key is None:
        raise SctoolError(f"--novel-value {novelty.novel_value} without --novel-key", "say which column it is a value of")
    file = H5ad(path)
    for key, flag in (
        (data.label_key, "--label-key"),
        (data.group_key, "--group-key"),
        (data.batch_key, "--batch-key"),
        (novelty.novel_key, "--novel-key"),
    ):
        if key is not None:
            file.column(key, flag)
    novel_n = None if novelty.novel_key is None else truth(file.obs[novelty.novel_key], novelty.novel_key, novelty.novel_value)
    found = find_expression(file, data)
    for problem in check_names(file, found.var):
        raise problem
    log_ng, counts_ng = read_matrix(file, found, data.target_sum)
    no_empty_cells(file, log_ng, allowed=data.skip_empty)
    type_n = labels_of(file.obs[data.label_key], config.classify.missing_labels)
    group_key = data.group_key or data.batch_key
    group_n = None if group_key is None else file.obs[group_key].astype(str).to_numpy(object)
    made = TypedCells(log_ng, counts_ng, file.obs, gene_names(found.var), found.source, type_n, novel_n, group_n, group_key)
    names = sorted(set(type_n[made.known]))
    if novelty.hold_out and novelty.hold_out != EACH and novelty.hold_out not in names:
        raise SctoolError(
            f"obs[{data.label_key!r}] has no {novelty.hold_out!r} (--hold-out); it has: {', '.join(names)}", near(novelty.hold_out, names)
        )
    left = len(names) - bool(novelty.hold_out)
    if left < 2:
        raise SctoolError(
            f"{left} known type is left in obs[{data.label_key!r}]: {', '.join(names) or 'none'}",
            "detectors need two known types at least; hold out less, or give a finer column",
        )
    return made


def truth(column: pd.Series, key: str, value: str | None = None) -> NDArray[np.bool_]:
    """A column read as yes or no.

    Parameters
    ----------
    column
        Booleans, 1 and 0, or true/false, yes/no, t/f, y/n in any case; with ``value``, anything.
    key
        Its name.
    value
        What means yes, compared without regard to case (and as truth, where the column is one of truths).

    Raises
    ------
    SctoolError
        If it is neither, with the values it has; if all cells are on one side.
    """
    text = column.map(_plain).astype(str).str.strip().str.lower()
    there = text.value_counts()
    said = ", ".join(f"{name} ({n})" for name, n in there.head(10).items())
    if column.isna().any():
        raise SctoolError(f"{int(column.isna().sum())} cells have no value in obs[{key!r}] (--novel-key)", "fill it in")
    is_truth = set(there.index) <= {*_TRUE, *_FALSE}
    asked = None if value is None else value.strip().lower()
    if asked is None or (is_truth and asked in {*_TRUE, *_FALSE}):
        if not is_truth:
            raise SctoolError(f"obs[{key!r}] (--novel-key) is not yes or no; it has: {said}", "say which value is novel with --novel-value")
        novel_n = text.isin(_TRUE if asked is None or asked in _TRUE else _FALSE).to_numpy(bool)
    else:
        if asked not in there.index:
            raise SctoolError(f"obs[{key!r}] has no {value!r} (--novel-value); it has: {said}", near(asked, list(map(str, there.index))))
        novel_n = (text == asked).to_numpy(bool)
    if novel_n.all() or not novel_n.any():
        which = "all" if novel_n.all() else "none"
        raise SctoolError(
            f"{which} of the {len(novel_n)} cells are novel by obs[{key!r}]; it has: {said}", "mark some, but not all, cells as novel"
        )
    return novel_n


def _plain(value: Any) -> str:
    """A number without a needless .0, anything else as it is."""
    return f"{value:g}" if isinstance(value, (float, np.floating)) else str(value)


def parts(rows: Rows, group_n: NDArray[Any] | None, rng: np.random.Generator, n: int = THIRDS) -> list[Rows]:
    """Split rows in three: by whole groups where there are two at least, in sizes as even as these allow; else at random."""
    if group_n is None or len(np.unique(group_n[rows])) < 2:
        return [np.sort(part) for part in np.array_split(rng.permutation(rows), min(n, len(rows)))]
    names, sizes = np.unique(group_n[rows], return_counts=True)
    bins: list[list[Any]] = [[] for _ in range(min(n, len(names)))]
    filled = np.zeros(len(bins))
    shuffled = rng.permutation(len(names))
    for at in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        least = int(filled.argmin())
        bins[least].append(names[at])
        filled[least] += sizes[at]
    return [rows[np.isin(group_n[rows], chosen)] for chosen in bins]


def splits(cells: TypedCells, hold_out: str | None, novel_key: str | None, seed: int) -> Iterator[Split]:
    """The trials: for each type kept away, each part of groups held out in turn (or one third of the cells, where there are no groups)."""
    types = sorted(set(cells.type_n[cells.known]))
    for held_out in types if hold_out == EACH else [hold_out or str(novel_key)]:
        rng = np.random.default_rng(seed)
        if novel_key is None:
            known, novel = (cells.known[(cells.type_n[cells.known] == held_out) == side] for side in (False, True))
        else:
            assert cells.novel_n is not None
            known, novel = cells.known, np.flatnonzero(cells.novel_n)
        tests = parts(known, cells.group_n, rng)
        grouped = cells.group_n is not None and len(np.unique(cells.group_n[known])) > 1
        for part, test in enumerate(tests if grouped else tests[:1]):
            train = np.setdiff1d(known, test)
            learned = np.unique(cells.type_n[train])
            test = test[np.isin(cells.type_n[test], learned)]
            if len(learned) >= 2 and len(test) >= FEWEST_TEST:
                yield Split(held_out, part, train, test, novel)
