"""How well a decoded profile matches the observed one, cell by cell."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sctool.metrics.base import metric

_FLAT = 1e-6


def log1p_cp10k(counts_ng: NDArray[Any]) -> NDArray[np.float64]:
    """``log(1 + 1e4 x / sum x)`` of each row; a row without counts stays 0."""
    totals_n1 = counts_ng.sum(1, keepdims=True, dtype=np.float64)
    return np.log1p(counts_ng * (1e4 / np.where(totals_n1 > 0, totals_n1, 1.0)))


@metric(best=1.0)
def cell_correlation(observed_ng: NDArray[Any], predicted_ng: NDArray[Any]) -> NDArray[np.float64]:
    """Pearson correlation over genes of each cell, shape (cells,).

    NaN where either profile does not vary over genes: a correlation with a constant is undefined, and what rounding makes of it is noise.
    """
    out_n = np.full(len(observed_ng), np.nan)
    a_ng = observed_ng - observed_ng.mean(1, keepdims=True, dtype=np.float64)
    b_ng = predicted_ng - predicted_ng.mean(1, keepdims=True, dtype=np.float64)
    scale_a, scale_b = np.linalg.norm(a_ng, axis=1), np.linalg.norm(b_ng, axis=1)
    varies = (scale_a > _FLAT * np.linalg.norm(observed_ng, axis=1)) & (scale_b > _FLAT * np.linalg.norm(predicted_ng, axis=1))
    out_n[varies] = (a_ng * b_ng).sum(1)[varies] / (scale_a * scale_b)[varies]
    return out_n


@metric(best=1.0)
def cell_r2(observed_ng: NDArray[Any], predicted_ng: NDArray[Any]) -> NDArray[np.float64]:
    """Squared :func:`cell_correlation`; blind to bias, as published."""
    return np.square(cell_correlation(observed_ng, predicted_ng))
