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
    x, t, p = x_ng[change], old_theta[change], (old_theta / (old_theta + old))[change]
    half = nbinom.pmf(x, t, p) / 2
    below, above = np.where(x > 0, nbinom.cdf(x - 1, t, p), 0.0) + half, nbinom.sf(x, t, p) + half
    t, p = new_theta_ng[change], (new_theta_ng / (new_theta_ng + new))[change]
    # In the upper half the mass above says more than that below, which is close to 1.
    mapped = np.where(above < 0.5, nbinom.isf(np.maximum(above, 1e-300), t, p), nbinom.ppf(below, t, p))
    same = (old_theta == new_theta_ng)[change] & (old == new)[change]
    mapped_ng[change] = np.where(same, x, mapped)
    return mapped_ng
