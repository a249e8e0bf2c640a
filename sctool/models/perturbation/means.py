"""Means and variances of log expression per perturbation: all that the predictors of means learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from sctool.data.perturbation_names import CONTROL, targets_of
from sctool.errors import SctoolError


@dataclass(frozen=True, eq=False)
class Means:
    """What is known of a perturbation screen when single cells are forgotten.

    Attributes
    ----------
    genes
        G measured genes.
    perturbations
        P perturbations with training cells, without control.
    mean_pg, variance_pg
        Mean and unbiased variance of log expression over the cells of a perturbation; where there is one cell, the variance within
        perturbations.
    cells_p
        Cells of a perturbation.
    control_g, control_variance_g, control_cells
        The same of the control cells.
    """

    genes: tuple[str, ...]
    perturbations: tuple[str, ...]
    mean_pg: NDArray[np.float64]
    variance_pg: NDArray[np.float64]
    cells_p: NDArray[np.float64]
    control_g: NDArray[np.float64]
    control_variance_g: NDArray[np.float64]
    control_cells: float

    @classmethod
    def of(cls, x_ng: Any, name_n: NDArray[Any], rows: NDArray[Any], genes: Sequence[str]) -> Means:
        """Means of some cells.

        Parameters
        ----------
        x_ng
            Log expression, CSR or dense, of the cells ``rows`` stands for, or of all cells.
        name_n
            Canonical perturbation of every cell, ``"control"`` for control cells.
        rows
            Cells to learn from: places or a mask. ``x_ng`` has as many rows as ``name_n``, or as many as are chosen.
        genes
            Names of the columns.

        Raises
        ------
        SctoolError
            Without a control cell or a perturbed one.
        """
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        name_n = np.asarray(name_n, dtype=str)
        x_rg = sp.csr_matrix(x_ng if x_ng.shape[0] == len(rows) != len(name_n) else x_ng[rows], dtype=np.float64)
        names, code_r = np.unique(name_n[rows], return_inverse=True)
        perturbed = names != CONTROL
        if perturbed.all() or not perturbed.any():
            raise SctoolError(
                f"no {'control' if perturbed.all() else 'perturbed'} cell among the {len(rows)} training cells",
                hint="check perturbation_key, the name of the control and the split",
            )
        member = sp.csr_matrix((np.ones(len(rows)), (code_r, np.arange(len(rows)))), (len(names), len(rows)))
        cells_k = np.bincount(code_r, minlength=len(names)).astype(np.float64)
        mean_kg = np.asarray((member @ x_rg).todense()) / cells_k[:, None]
        square_kg = np.asarray((member @ x_rg.multiply(x_rg).tocsr()).todense())
        spread_kg = np.maximum(square_kg - cells_k[:, None] * mean_kg**2, 0.0)
        within_g = spread_kg.sum(0) / max(len(rows) - len(names), 1)
        several = cells_k[:, None] > 1
        variance_kg = np.where(several, spread_kg / np.maximum(cells_k - 1, 1)[:, None], within_g)
        at = int(np.flatnonzero(~perturbed)[0])
        return cls(
            tuple(map(str, genes)),
            tuple(map(str, names[perturbed])),
            mean_kg[perturbed],
            variance_kg[perturbed],
            cells_k[perturbed],
            mean_kg[at],
            variance_kg[at],
            float(cells_k[at]),
        )

    @property
    def change_pg(self) -> NDArray[np.float64]:
        """Measured change against control, shape (P, G)."""
        return self.mean_pg - self.control_g

    @property
    def targets(self) -> tuple[str, ...]:
        """Genes perturbed in training, sorted."""
        return tuple(sorted({target for name in self.perturbations for target in targets_of(name)}))
