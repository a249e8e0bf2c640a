"""How badly a cell's counts fit the profile of any known type.

Given its total, a cell of type k draws its counts from a multinomial over genes with the type's proportions (Townes 2019, Genome Biol
20:295). The deviance under the best fitting type is what no known type explains. It grows with the depth of the cell, so what is scored
is its logarithm less what known cells of that depth have.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from sctool.models.novelty.base import Detector, Scores
from sctool.models.novelty.cells import Cells

PRIOR = 20.0
"""Counts of the average profile added to each type's, so that a gene no cell of a type has is rare there, not impossible."""
EPS = 1e-12


class Misfit(Detector):
    """Log deviance of the counts under the best type's profile, less its expectation at the cell's depth."""

    def fit(self, known: Cells) -> Self:
        """Profiles of the types, and the curve of depth."""
        counts_nf, code_n = known.counts_nf, known.code_n
        n_types = int(code_n.max()) + 1
        self.profile_kf = _profiles(counts_nf, code_n, n_types)
        # Cells fit profiles that they are part of too well, the more so the deeper they are: each half is measured by the other's.
        half_n = np.arange(len(code_n)) % 2 == 1
        deviance_n = np.zeros(len(code_n))
        for own in (half_n, ~half_n):
            deviance_n[own] = _deviance(counts_nf[own], _profiles(counts_nf[~own], code_n[~own], n_types))
        depth_n = _log_depth(counts_nf)
        degree = min(2, len(np.unique(depth_n.round(6))) - 1)
        self.curve_d = np.polyfit(depth_n, np.log(deviance_n + 1.0), degree)
        self.range_2 = np.array([depth_n.min(), depth_n.max()])
        return self

    def score(self, cells: Cells) -> Scores:
        """Log deviance over that of known cells of the same depth; about 0 for them."""
        measured_f = cells.columns_f >= 0
        profile_kf = self.profile_kf / np.maximum(self.profile_kf[:, measured_f].sum(1, keepdims=True), EPS)
        depth_n = _log_depth(cells.counts_nf)
        inside_n = depth_n.clip(*self.range_2)
        # Beyond the depths seen, straight on: a parabola would fall again.
        expected_n = np.polyval(self.curve_d, inside_n) + np.polyval(np.polyder(self.curve_d), inside_n) * (depth_n - inside_n)
        return np.asarray(np.log(_deviance(cells.counts_nf, profile_kf) + 1.0) - expected_n, np.float64)

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """Profiles, curve, and the range of depths it was fitted on."""
        return {"profile_kf": self.profile_kf, "curve_d": self.curve_d, "range_2": self.range_2}


def _profiles(counts_nf: sp.csr_matrix, code_n: NDArray[np.int64], n_types: int) -> NDArray[np.float64]:
    """Proportions of the features in each type, shape (types, features)."""
    member_kn = sp.csr_matrix((np.ones(len(code_n)), (code_n, np.arange(len(code_n)))), shape=(n_types, len(code_n)))
    sum_kf = np.asarray((member_kn @ counts_nf).todense(), np.float64)
    average_f = sum_kf.sum(0) + 0.5
    sum_kf += PRIOR * average_f / average_f.sum()
    return sum_kf / sum_kf.sum(1, keepdims=True)


def _deviance(counts_nf: sp.csr_matrix, profile_kf: NDArray[np.float64]) -> NDArray[np.float64]:
    """Twice the log-likelihood a cell loses against a profile of its own, under the best of these; shape (cells,)."""
    total_n = np.asarray(counts_nf.sum(1)).ravel()
    own = counts_nf.copy()
    own.data = own.data * np.log(own.data / np.repeat(total_n, np.diff(own.indptr)))
    under_nk = np.asarray(counts_nf @ np.log(np.maximum(profile_kf, EPS)).T)
    return np.maximum(2 * (np.asarray(own.sum(1)).ravel() - under_nk.max(1)), 0.0)


def _log_depth(counts_nf: sp.csr_matrix) -> NDArray[np.float64]:
    return np.log(np.asarray(counts_nf.sum(1)).ravel() + 1.0)
