"""What can be said of a score when donors are few: intervals from drawing donors, and labels shuffled as the design allows."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sctool.errors import SctoolError

Floats = NDArray[np.float64]
FEWEST_DONORS = 3
"""For an interval."""


class Interval(NamedTuple):
    """A value with its 95 % interval; NaN where there are too few donors."""

    value: float
    low: float
    high: float


def donor_draws(donor_n: NDArray[Any], rng: np.random.Generator, n_draws: int = 1000) -> Floats:
    """How often each sample is drawn when whole donors are drawn with replacement, shape (draws, samples)."""
    _, code_n = np.unique(np.asarray(donor_n).astype(str), return_inverse=True)
    donors = int(code_n.max()) + 1
    return rng.multinomial(donors, np.full(donors, 1 / donors), size=n_draws).astype(np.float64)[:, code_n]


def interval(value: float, draw_b: Floats, donors: int) -> Interval:
    """The 2.5 % to 97.5 % quantiles of the draws, widened to the value itself where they would leave it out.

    Draws without a value (a class was not drawn) are left out. The answers are those of the folds as they were: how they would have
    changed with other training donors is not part of the interval, which is therefore rather too narrow.
    """
    known_b = draw_b[np.isfinite(draw_b)]
    if donors < FEWEST_DONORS or not np.isfinite(value) or len(known_b) < len(draw_b) / 2:
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(known_b, [0.025, 0.975])
    return Interval(value, min(float(low), value), max(float(high), value))


def shuffled(truth_s: NDArray[Any], donor_s: NDArray[Any], rng: np.random.Generator, n: int) -> NDArray[Any]:
    """Labels shuffled across donors, shape (n, samples).

    Where all samples of a donor share their label, donors' labels are exchanged, so that samples of one donor keep one label. Where labels
    differ within donors (samples before and after, stimulated and not), whole donors of as many samples are exchanged first, and then
    labels are shuffled within each donor; a design with both conditions in every donor is thus shuffled within donors.

    Raises
    ------
    SctoolError
        If there are fewer than two donors.
    """
    truth_s = np.asarray(truth_s)
    names, code_s = np.unique(np.asarray(donor_s).astype(str), return_inverse=True)
    if len(names) < 2:
        raise SctoolError("labels cannot be shuffled among donors: there is one donor", "give a --donor-key that tells donors apart")
    rows_d = [np.flatnonzero(code_s == d) for d in range(len(names))]
    if all(len(set(truth_s[rows].tolist())) == 1 for rows in rows_d):
        label_d = truth_s[[rows[0] for rows in rows_d]]
        return np.stack([rng.permutation(label_d)[code_s] for _ in range(n)])
    by_size: dict[int, list[int]] = {}
    for d, rows in enumerate(rows_d):
        by_size.setdefault(len(rows), []).append(d)
    out = np.empty((n, len(truth_s)), truth_s.dtype)
    for at in range(n):
        for alike in by_size.values():
            for to, origin in zip(alike, rng.permutation(alike), strict=True):
                out[at, rows_d[to]] = rng.permutation(truth_s[rows_d[origin]])
    return out


def permutation_p(value: float, null_b: Floats, *, higher_is_better: bool = True) -> float:
    """Share of shuffles as good as the value, itself counted among them; NaN where there is no shuffle or no value."""
    null_b = null_b[np.isfinite(null_b)]
    if not len(null_b) or not np.isfinite(value):
        return float("nan")
    as_good = null_b >= value - 1e-12 if higher_is_better else null_b <= value + 1e-12
    return float((1 + as_good.sum()) / (1 + len(null_b)))
