"""The usual detectors of outliers, on principal components; both are near chance for cell types, and here to be compared with."""

from __future__ import annotations

from typing import Self

import numpy as np

from sctool.models.novelty.base import Detector, Scores
from sctool.models.novelty.cells import Cells

MOST_CELLS = 5000


class IsolationForest(Detector):
    """How few random cuts isolate a cell (Liu 2008), over 200 trees."""

    needs = frozenset({"pcs"})
    keeps_cells = True

    def fit(self, known: Cells) -> Self:
        """Grow the trees; always the same for the same cells."""
        from sklearn import ensemble

        self.model = ensemble.IsolationForest(n_estimators=200, random_state=0).fit(known.pcs_nl)
        return self

    def score(self, cells: Cells) -> Scores:
        """Between 0 and 1; 0.5 where a cell is isolated as late as by chance."""
        return -np.asarray(self.model.score_samples(cells.pcs_nl), np.float64)


class OneClassSVM(Detector):
    """Distance outside of a boundary that leaves out 5 % of the known cells (Schoelkopf 2001), radial kernel."""

    needs = frozenset({"pcs"})
    keeps_cells = True

    def fit(self, known: Cells) -> Self:
        """Find the boundary, from every second, third, ... known cell where there are many: the cost grows with the square."""
        from sklearn import svm

        every = -(-len(known.pcs_nl) // MOST_CELLS)
        self.model = svm.OneClassSVM(nu=0.05, gamma="scale").fit(known.pcs_nl[::every])
        return self

    def score(self, cells: Cells) -> Scores:
        """Below 0 inside."""
        return -np.asarray(self.model.decision_function(cells.pcs_nl), np.float64)
