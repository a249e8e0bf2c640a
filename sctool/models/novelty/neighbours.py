"""Distance to the nearest known cells, in principal components or in the latent space of a trained model."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sctool.models.novelty.base import Detector, Scores
from sctool.models.novelty.cells import Cells

NEIGHBOURS = 15


class Neighbours(Detector):
    """Mean Euclidean distance to the 15 nearest known cells, in principal components."""

    needs = frozenset({"pcs"})
    keeps_cells = True

    def fit(self, known: Cells) -> Self:
        """Keep them."""
        from sklearn.neighbors import NearestNeighbors

        z_nl = self._place(known)
        self.index = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(z_nl))).fit(z_nl)
        return self

    def score(self, cells: Cells) -> Scores:
        """The mean distance."""
        return np.asarray(self.index.kneighbors(self._place(cells))[0].mean(1), np.float64)

    def _place(self, cells: Cells) -> NDArray[Any]:
        return cells.pcs_nl


class LatentNeighbours(Neighbours):
    """Mean Euclidean distance to the 15 nearest training cells of a trained model, in its latent space."""

    needs = frozenset({"latent"})

    def _place(self, cells: Cells) -> NDArray[Any]:
        return cells.latent_nl


class LocalOutlier(Detector):
    """Local outlier factor (Breunig 2000): density at the nearest known cells over density here, in principal components."""

    needs = frozenset({"pcs"})
    keeps_cells = True

    def fit(self, known: Cells) -> Self:
        """Keep them, with their densities."""
        from sklearn.neighbors import LocalOutlierFactor

        self.model = LocalOutlierFactor(n_neighbors=min(20, len(known.pcs_nl) - 1), novelty=True).fit(known.pcs_nl)
        return self

    def score(self, cells: Cells) -> Scores:
        """The factor; about 1 inside."""
        return -np.asarray(self.model.score_samples(cells.pcs_nl), np.float64)
