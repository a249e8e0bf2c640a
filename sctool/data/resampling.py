"""Resampling weights from latent codes: rare regions of the latent space are drawn more often.

The published rule of adaptive resampling (AR; Navidi et al. 2025, bioRxiv 10.1101/2025.11.04.686583) is label-free: per latent
dimension, one over the histogram density at the cell; over dimensions, the maximum. It borrows from the debiasing VAE of
Amini et al. 2019.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sctool.errors import InputError


def resampling_weights(z_nl: Any, bins: int | str = 100, smoothing: float = 1e-3) -> Any:
    """Draw probability of each cell by the published rule of adaptive resampling.

    Per dimension ``j``, ``p_ij = (1 / q_b(i)) / sum_i' (1 / q_b(i'))`` with ``q`` the histogram density of the dimension plus
    ``smoothing``, renormalised over bins; then ``w_i = max_j p_ij / sum_i' max_j p_i'j``.

    Parameters
    ----------
    z_nl
        Latent codes, NumPy array or torch tensor of shape (cells, latent dimensions).
    bins
        Equal-width bins per dimension, or a bin rule of ``numpy.histogram``.
    smoothing
        Added to the density (unit: one over the unit of ``z_nl``), so it depends on the scale of the latent space.

    Returns
    -------
    w_n
        float64, shape (cells,), sums to 1; a torch tensor on the same device if a tensor came in.

    Raises
    ------
    InputError
        If ``z_nl`` is not two-dimensional, or has NaN or infinite values, or ``bins`` or ``smoothing`` is out of range.
    """
    torch = sys.modules.get("torch")  # a tensor can only come from a program that has imported torch
    if torch is not None and isinstance(z_nl, torch.Tensor):
        w_n = resampling_weights(z_nl.detach().cpu().numpy(), bins, smoothing)
        return torch.from_numpy(w_n).to(z_nl.device)
    z = np.asarray(z_nl)
    _check(z, bins, smoothing)
    n = len(z)
    highest_n = np.zeros(n)
    if n == 0:
        return highest_n
    if z.shape[1] == 0:
        warnings.warn("latent codes with no dimension have no weights; returning NaN", RuntimeWarning, stacklevel=2)
        return np.full(n, np.nan)
    for z_n in z.T:
        density_b, edges = np.histogram(z_n, bins=bins, density=True)
        # Open outer bins: the largest value belongs to the last bin, which is closed on the right.
        bin_n = np.searchsorted(edges[1:-1], z_n, side="right")
        smooth_b = density_b + smoothing
        rarity_n = 1.0 / (smooth_b / smooth_b.sum())[bin_n]
        np.maximum(highest_n, rarity_n / rarity_n.sum(), out=highest_n)
    return highest_n / highest_n.sum()


def _check(z: NDArray[Any], bins: int | str, smoothing: float) -> None:
    if z.ndim != 2:
        raise InputError(f"latent codes have shape {z.shape}, not (cells, dimensions)", "pass a two-dimensional array")
    if not np.issubdtype(z.dtype, np.number) or np.issubdtype(z.dtype, np.complexfloating):
        raise InputError(f"latent codes are of type {z.dtype}, not real numbers", "pass a float array")
    bad = int((~np.isfinite(z)).any(1).sum())
    if bad:
        raise InputError(f"{bad} of {len(z)} cells have NaN or infinite latent codes", "drop those cells, or look for a diverged model")
    if not isinstance(bins, str) and (int(bins) != bins or bins < 1):
        raise InputError(f"bins={bins!r} is not a positive whole number", "100 is the published value")
    if not np.isfinite(smoothing) or smoothing < 0:
        raise InputError(f"smoothing={smoothing!r} is not zero or more", "1e-4 is the published value")


def knn_weights(z_nl: NDArray[Any], neighbors: int = 15) -> NDArray[np.float64]:
    """Draw probability proportional to the distance to the ``neighbors``-th nearest cell, on standardised dimensions.

    A joint density estimate, so unlike the per-dimension histogram it does not fade as dimensions are added. O(n k) memory.

    Parameters
    ----------
    z_nl
        Latent codes of shape (cells, latent dimensions).
    neighbors
        Which neighbour's distance is taken; types of fewer cells than this are the ones that stand out.
    """
    from sklearn.neighbors import NearestNeighbors

    _check(z_nl, 1, 0.0)
    k = min(neighbors, len(z_nl) - 1)
    if k < 1:
        return np.full(len(z_nl), 1.0 / max(len(z_nl), 1))
    spread_l = z_nl.std(0)
    x = z_nl / np.where(spread_l > 0, spread_l, 1.0)
    distance_nk, _ = NearestNeighbors(n_neighbors=k).fit(x).kneighbors()
    w_n = distance_nk[:, -1].astype(np.float64)
    return w_n / w_n.sum() if w_n.sum() > 0 else np.full(len(w_n), 1.0 / len(w_n))


def temper(w_n: NDArray[np.float64], power: float = 1.0, max_ratio: float | None = None) -> NDArray[np.float64]:
    """Soften weights: ``w ** power``, then no weight above ``max_ratio`` times the uniform one.

    Parameters
    ----------
    w_n
        Draw probabilities of shape (cells,).
    power
        1 leaves the weights, 0 makes them uniform.
    max_ratio
        Cap relative to ``1 / n``; the mass above it goes to the other cells in proportion.
    """
    w_n = w_n**power
    w_n = w_n / w_n.sum()
    if max_ratio is None:
        return w_n
    cap = max(max_ratio, 1.0) / len(w_n)
    for _ in range(100):
        over_n = w_n > cap * (1 + 1e-9)
        if not over_n.any():
            break
        free = w_n[~over_n & (w_n < cap)].sum()
        capped_mass = cap * (w_n >= cap).sum()
        w_n = np.where(w_n >= cap, cap, w_n * ((1 - capped_mass) / free if free > 0 else 1.0))
    return w_n / w_n.sum()


def weight_summary(w_n: NDArray[np.float64]) -> dict[str, float]:
    """How uneven weights are.

    Returns
    -------
    ``ess``: effective sample size over n (1 = uniform); ``entropy``: over ln n; ``top1``: mass on the heaviest 1 % of cells.
    """
    n = len(w_n)
    positive = w_n[w_n > 0]
    top = np.partition(w_n, -max(1, n // 100))[-max(1, n // 100) :]
    return {
        "ess": float(1.0 / (n * np.square(w_n).sum())),
        "entropy": float(-(positive * np.log(positive)).sum() / np.log(n)) if n > 1 else 1.0,
        "top1": float(top.sum()),
    }
