"""What of a cell lies off the plane of the known cells' principal components."""

from __future__ import annotations

from typing import Self

import numpy as np

from sctool.models.novelty.base import Detector, Scores
from sctool.models.novelty.cells import Cells


class Reconstruction(Detector):
    """Squared error of a cell's features, at one length, when rebuilt from the principal components."""

    needs = frozenset({"pcs"})

    def fit(self, known: Cells) -> Self:
        """Nothing to learn beyond the components."""
        return self

    def score(self, cells: Cells) -> Scores:
        """By Pythagoras, without making the features dense: the squared length less the squared length inside the plane."""
        x_nf, mean_f = cells.unit_nf.astype(np.float64), cells.space.mean_f
        length_n = np.asarray(x_nf.multiply(x_nf).sum(1)).ravel() - 2 * (x_nf @ mean_f) + mean_f @ mean_f
        return np.maximum(length_n - np.square(cells.pcs_nl).sum(1), 0.0)
