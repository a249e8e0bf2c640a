"""Mahalanobis distances in principal components: to the centre of all known cells, or to the nearest centre of a type.

The covariance is shrunk towards a multiple of the identity (Ledoit & Wolf 2004). By type it is shared, so that a type of few cells has
one as well (Lee 2018, NeurIPS).
"""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import NDArray

from sctool.models.novelty.base import Detector, Scores
from sctool.models.novelty.cells import Cells


class Mahalanobis(Detector):
    """Squared distance to the centre of all known cells."""

    needs = frozenset({"pcs"})

    def fit(self, known: Cells) -> Self:
        """Centres, and the covariance about them."""
        z_nl, code_n = known.pcs_nl, self._groups(known)
        self.centre_kl = np.stack([z_nl[code_n == k].mean(0) for k in range(code_n.max() + 1)])
        self.whiten_ll = _whitening(z_nl - self.centre_kl[code_n])
        return self

    def score(self, cells: Cells) -> Scores:
        """Squared distance to the nearest centre."""
        z_nl = cells.pcs_nl @ self.whiten_ll
        return np.asarray(np.min([np.square(z_nl - centre_l).sum(1) for centre_l in self.centre_kl @ self.whiten_ll], axis=0), np.float64)

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """Centres and the square root of the inverse covariance."""
        return {"centre_kl": self.centre_kl, "whiten_ll": self.whiten_ll}

    def _groups(self, known: Cells) -> NDArray[np.int64]:
        return np.zeros(len(known.pcs_nl), np.int64)


class TypeMahalanobis(Mahalanobis):
    """Squared distance to the nearest centre of a type, by the covariance within types."""

    def _groups(self, known: Cells) -> NDArray[np.int64]:
        return known.code_n


def _whitening(residual_nl: NDArray[np.float64]) -> NDArray[np.float64]:
    from sklearn.covariance import ledoit_wolf

    covariance_ll = ledoit_wolf(residual_nl, assume_centered=True)[0]
    variance_l, axes_ll = np.linalg.eigh(covariance_ll)
    return np.ascontiguousarray(axes_ll / np.sqrt(np.maximum(variance_l, 1e-12)))
