"""Paired differences over seeds, with what can honestly be said of a handful of runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Paired:
    """Mean difference of two arms that share their seeds."""

    difference: float
    low: float
    high: float
    standard_error: float
    p_value: float
    pairs: int
    wins: int

    def __str__(self) -> str:
        if self.pairs < 2:
            return f"{self.difference:+.3f} (one pair: no interval)"
        return f"{self.difference:+.3f} (95 % interval {self.low:+.3f} to {self.high:+.3f}; {self.wins} of {self.pairs} pairs better)"


def paired_difference(arm: ArrayLike, reference: ArrayLike, confidence: float = 0.95) -> Paired:
    """Mean of ``arm - reference`` with its t interval and two-sided paired t-test.

    Parameters
    ----------
    arm, reference
        Scores of the same seeds in the same order, shape (pairs,). Pairs with NaN are left out.
    confidence
        Of the interval. With one pair the interval and the p-value are NaN.
    """
    from scipy import stats

    difference = np.asarray(arm, float) - np.asarray(reference, float)
    difference = difference[np.isfinite(difference)]
    n = len(difference)
    mean = float(difference.mean()) if n else np.nan
    if n < 2:
        return Paired(mean, np.nan, np.nan, np.nan, np.nan, n, int((difference > 0).sum()))
    error = float(difference.std(ddof=1) / np.sqrt(n))
    half = float(stats.t.ppf(0.5 + confidence / 2, n - 1)) * error
    p_value = float(2 * stats.t.sf(abs(mean) / error, n - 1)) if error > 0 else float(mean == 0)
    return Paired(mean, mean - half, mean + half, error, p_value, n, int((difference > 0).sum()))
