"""Counts as if from another batch: the quantile of each count is kept (ComBat-seq; Zhang et al. 2020, NAR Genom Bioinform 2:lqaa078)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import nbinom


def quantile_map(
    x_ng: NDArray[np.float32],
    mean_ng: NDArray[np.float32],
    theta: NDArray[np.float32],
    new_mean_ng: NDArray[np.float32],
    new_theta: NDArray[np.float32],
) -> NDArray[np.float32]:
    """The smallest count whose NB distribution function under the new mean reaches ``F(x - 1) + p(x) / 2`` under the old one.

    Parameters
    ----------
    x_ng
        Observed counts, shape (cells, genes).
    mean_ng, theta
        NB mean and inverse dispersion where the cell is; theta of shape (genes,) or (cells, genes).
    new_mean_ng, new_theta
        The same in the batch it is to be seen in. Where both are equal the count stays.
    """
    old_theta, new_theta_ng = (np.broadcast_to(t, x_ng.shape).astype(np.float64) for t in (theta, new_theta))
    old, new = np.maximum(mean_ng.astype(np.float64), 1e-12), np.maximum(new_mean_ng.astype(np.float64), 1e-12)
    # Most counts are zero and stay zero: half of the mass at zero here is below all of it there.
    zero_new_ng = np.exp(-new_theta_ng * np.log1p(new / new_theta_ng))
    zero_old_ng = np.exp(-old_theta * np.log1p(old / old_theta))
    change = ~((x_ng == 0) & (zero_old_ng / 2 <= zero_new_ng))
    mapped_ng = np.zeros(x_ng.shape, np.float32)
    x, t, m = x_ng[change], old_theta[change], old[change]
    below = np.where(x > 0, nbinom.cdf(x - 1, t, t / (t + m)), 0.0)
    level = below + nbinom.pmf(x, t, t / (t + m)) / 2
    t, m = new_theta_ng[change], new[change]
    # A quantile of 1 in floating point would be infinite.
    mapped_ng[change] = nbinom.ppf(np.minimum(level, 1 - 1e-12), t, t / (t + m))
    return mapped_ng
