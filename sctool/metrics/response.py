"""How near predicted cells are to real perturbed ones: in the mean, in the change against control, and as a distribution.

p, q and u are mean profiles over genes: of the real perturbed cells, of the predicted ones, and of the control cells.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from sctool.metrics.base import metric

Profile = NDArray[Any]


def pearson(a_g: Profile, b_g: Profile) -> float:
    """Pearson correlation of two profiles; NaN where one does not vary."""
    a_g, b_g = np.asarray(a_g, np.float64) - np.mean(a_g), np.asarray(b_g, np.float64) - np.mean(b_g)
    scale = float(np.linalg.norm(a_g) * np.linalg.norm(b_g))
    return float(a_g @ b_g) / scale if scale > 1e-12 else float("nan")


@metric(best=1.0)
def mean_r2(p_g: Profile, q_g: Profile) -> float:
    """Squared Pearson correlation of the mean profiles, as published; blind to bias, and high even without any change."""
    return pearson(p_g, q_g) ** 2


@metric(best=0.0, higher_is_better=False)
def mean_squared_error(p_g: Profile, q_g: Profile) -> float:
    """Mean over genes of the squared difference of the mean profiles."""
    return float(np.mean(np.square(np.asarray(p_g, np.float64) - q_g)))


@metric(best=1.0)
def cosine_similarity(p_g: Profile, q_g: Profile) -> float:
    """Cosine of the angle between the mean profiles."""
    p_g, q_g = np.asarray(p_g, np.float64), np.asarray(q_g, np.float64)
    return float(p_g @ q_g / (np.linalg.norm(p_g) * np.linalg.norm(q_g)))


@metric(best=1.0)
def change_r(p_g: Profile, q_g: Profile, u_g: Profile) -> float:
    """Pearson correlation of the changes against control, ``p - u`` and ``q - u``; NaN where nothing is predicted to change."""
    return pearson(np.asarray(p_g, np.float64) - u_g, np.asarray(q_g, np.float64) - u_g)


@metric(best=0.0, higher_is_better=False)
def change_error(p_g: Profile, q_g: Profile, u_g: Profile) -> float:
    """Squared error of the change as a share of the real change: 1 is as good as predicting no change."""
    return mean_squared_error(p_g, q_g) / mean_squared_error(p_g, u_g)


@metric(best=0.0, higher_is_better=False)
def energy_distance(a_nd: NDArray[Any], b_md: NDArray[Any], block: int = 1024) -> float:
    """``2 E|a - b| - E|a - a'| - E|b - b'|`` over pairs of different cells; 0 for two samples of one distribution, on average.

    Szekely & Rizzo 2013; without self-pairs, so that the number of cells does not bias it.

    Parameters
    ----------
    a_nd, b_md
        Cells in the same space, at least two of each.
    block
        Rows at once; memory is ``block * cells``.
    """

    def total(x_nd: NDArray[Any], y_md: NDArray[Any]) -> float:
        return float(sum(cdist(x_nd[at : at + block], y_md).sum() for at in range(0, len(x_nd), block)))

    n, m = len(a_nd), len(b_md)
    return 2 * total(a_nd, b_md) / (n * m) - total(a_nd, a_nd) / (n * (n - 1)) - total(b_md, b_md) / (m * (m - 1))


@metric(best=1.0)
def variance_r2(a_ng: NDArray[Any], b_mg: NDArray[Any]) -> float:
    """Squared Pearson correlation of the variances of the genes."""
    return pearson(np.var(a_ng, 0, dtype=np.float64), np.var(b_mg, 0, dtype=np.float64)) ** 2


@metric(best=1.0)
def variance_ratio(a_ng: NDArray[Any], b_mg: NDArray[Any]) -> float:
    """Total variance of predicted cells (the second) as a share of the real ones'."""
    return float(np.var(b_mg, 0, dtype=np.float64).sum() / np.var(a_ng, 0, dtype=np.float64).sum())
