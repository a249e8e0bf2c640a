"""What a cell would have looked like with the other result of quality control: the mean of real cells that have it.

The pool of a cell are the cells of its own part of the split with its perturbation and the opposite result; of its batch where there are
such, else of any batch, else control cells with the opposite result (of its batch, then of any). The profile is the mean of the
proportions of up to ``n`` of them, drawn anew for each epoch, times the counts of the cell itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from sctool.data.cache import take_rows

Rows = NDArray[np.int64]
_ANY = -1
_BLOCK = 4096
"""Cells read at a time."""


class CounterfactualPool:
    """Counterfactual profiles of the cells of one part of a split.

    Parameters
    ----------
    counts
        CSR of shape (cells, genes) of the whole file; its arrays may be memory maps.
    name_n, batch_n
        Codes of the perturbation and the batch of each cell of the file (batches all 0 where there are none).
    fail_n
        Which cells failed quality control.
    rows
        Cells of one part of the split; no other cell is ever in a pool.
    control
        Code of the control cells in ``name_n``.
    genes
        Columns that are modelled, in their order; None for all. Depth is the sum of their counts.
    n
        How many cells are averaged at most.
    seed
        Of the draws; those of an epoch depend on nothing else.

    Notes
    -----
    The means of the pools are kept, at most one sparse row for each (perturbation, batch, result); :meth:`refresh` reads at most ``n``
    cells for each.
    """

    def __init__(
        self,
        counts: sp.csr_matrix,
        name_n: Rows,
        batch_n: Rows,
        fail_n: NDArray[np.bool_],
        rows: Rows,
        *,
        control: int,
        genes: Rows | None = None,
        n: int = 50,
        seed: int = 0,
    ) -> None:
        self._counts, self._genes, self._n, self._seed = counts, genes, n, seed
        self.n_genes = counts.shape[1] if genes is None else len(genes)
        rows = np.asarray(rows)
        self._depth_n = np.zeros(counts.shape[0], np.float32)
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            self._depth_n[block] = np.asarray(self._take(block).sum(1)).ravel()
        pools = _pools(name_n, batch_n, fail_n, rows)
        self._members: list[Rows] = []
        self._group_n = np.full(counts.shape[0], -1)
        at: dict[tuple[int, int, int], int] = {}
        for (name, batch, fail), own in _groups(name_n, batch_n, fail_n, rows).items():
            tried = ((name, batch), (name, _ANY), (control, batch), (control, _ANY))
            found = next((key for key in ((*pair, 1 - fail) for pair in tried) if key in pools), None)
            if found is not None:
                if found not in at:
                    at[found] = len(self._members)
                    self._members.append(pools[found])
                self._group_n[own] = at[found]
        self.valid_share = float((self._group_n[rows] >= 0).mean()) if len(rows) else 0.0
        """Share of the cells that have a pool."""
        self._drawn: list[Rows] = []
        self.refresh(0)

    def refresh(self, epoch: int) -> None:
        """Draw the cells of every pool for an epoch."""
        rng = np.random.default_rng([self._seed, epoch])
        self._drawn = [rows if len(rows) <= self._n else np.sort(rng.choice(rows, self._n, replace=False)) for rows in self._members]
        pieces = [sp.csr_matrix((0, self.n_genes), dtype=np.float32)]
        waiting: list[Rows] = []
        for i, rows in enumerate(self._drawn):
            waiting.append(rows)
            if i == len(self._drawn) - 1 or sum(map(len, waiting)) >= _BLOCK:
                pieces.append(self._means(waiting))
                waiting = []
        self._proportion_pg = sp.vstack(pieces, format="csr")

    def pool(self, row: int) -> Rows:
        """All cells that may stand for a cell's other result; none if there are no such."""
        group = self._group_n[row]
        return self._members[group] if group >= 0 else np.empty(0, np.int64)

    def drawn(self, row: int) -> Rows:
        """Those which are averaged in this epoch."""
        group = self._group_n[row]
        return self._drawn[group] if group >= 0 else np.empty(0, np.int64)

    def profiles(self, rows: Rows) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Expected counts with the other result.

        Returns
        -------
        x_bg
            Shape (rows, genes), each row with the depth of the cell itself; zeros where there is no pool.
        valid_b
            Which cells have a pool.
        """
        group_b = self._group_n[rows]
        valid_b = group_b >= 0
        if valid_b.all():
            return self._proportion_pg[group_b].toarray() * self._depth_n[rows][:, None], valid_b
        x_bg = np.zeros((len(rows), self.n_genes), np.float32)
        x_bg[valid_b] = self._proportion_pg[group_b[valid_b]].toarray() * self._depth_n[rows][valid_b, None]
        return x_bg, valid_b

    def _take(self, rows: Rows) -> sp.csr_matrix:
        x_ng = take_rows(self._counts, rows)
        return x_ng if self._genes is None else x_ng[:, self._genes]

    def _means(self, pools: list[Rows]) -> sp.csr_matrix:
        """Mean over each pool's cells of counts / depth, shape (pools, genes); cells without counts do not count."""
        rows = np.concatenate(pools)
        depth_n = self._depth_n[rows].astype(np.float64)
        group_n = np.repeat(np.arange(len(pools)), [len(own) for own in pools])
        full_n = depth_n > 0
        weight_n = np.where(full_n, 1 / np.maximum(depth_n, 1), 0) / np.maximum(np.bincount(group_n, full_n, len(pools)), 1)[group_n]
        average = sp.csr_matrix((weight_n, (group_n, np.arange(len(rows)))), shape=(len(pools), len(rows)))
        return (average @ self._take(rows)).astype(np.float32)


def _groups(name_n: Rows, batch_n: Rows, fail_n: Any, rows: Rows) -> dict[tuple[int, int, int], Rows]:
    """Cells by (perturbation, batch, result)."""
    keys_n3 = np.stack([name_n[rows], batch_n[rows], fail_n[rows]], 1).astype(np.int64)
    order = np.lexsort(keys_n3.T[::-1])
    sorted_n3 = keys_n3[order]
    starts = np.flatnonzero(np.r_[True, (sorted_n3[1:] != sorted_n3[:-1]).any(1)]) if len(rows) else np.empty(0, np.int64)
    own = np.split(np.asarray(rows)[order], starts[1:])
    return {(int(a), int(b), int(c)): np.sort(some) for (a, b, c), some in zip(sorted_n3[starts], own, strict=False)}


def _pools(name_n: Rows, batch_n: Rows, fail_n: Any, rows: Rows) -> dict[tuple[int, int, int], Rows]:
    """The same, and those of any batch."""
    return _groups(name_n, batch_n, fail_n, rows) | _groups(name_n, np.full(len(name_n), _ANY), fail_n, rows)
