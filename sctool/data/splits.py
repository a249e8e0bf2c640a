"""Splits of cells. Where a column of donors is given, whole donors go to one side."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sctool.errors import SctoolError

Rows = NDArray[np.int64]


def split_cells(rows: Rows, fraction: float, rng: np.random.Generator) -> tuple[Rows, Rows]:
    """Random cells: the rest, and ``floor(fraction * n)`` of them; both in ascending order."""
    order = rng.permutation(rows)
    n = int(fraction * len(rows))
    return np.sort(order[n:]), np.sort(order[:n])


def split_groups(rows: Rows, groups: NDArray[Any], fraction: float, rng: np.random.Generator) -> tuple[Rows, Rows]:
    """Whole groups: in random order, those that bring the second part nearer to ``fraction`` go there; one at least.

    Parameters
    ----------
    rows
        Rows to split.
    groups
        Group of every row of the file (donor, sample, ...), shape (cells,).
    """
    names, sizes = np.unique(groups[rows], return_counts=True)
    if len(names) < 2:
        raise SctoolError(f"only one group ({names[0]!r}) to split by", "give a column with several donors, or leave --group-key out")
    wanted = fraction * len(rows)
    chosen: list[str] = []
    count = 0
    for at in rng.permutation(len(names)):
        # A group that overshoots by more than it leaves short is passed over.
        if abs(count + sizes[at] - wanted) < abs(count - wanted):
            chosen.append(names[at])
            count += int(sizes[at])
    if not chosen and fraction > 0:
        chosen = [names[sizes.argmin()]]
    second = np.isin(groups[rows], chosen)
    return rows[~second], rows[second]


def select(obs: pd.DataFrame, condition: str) -> NDArray[np.bool_]:
    """Cells that meet ``COLUMN=VALUE`` (several values: ``COLUMN=A,B``), as a mask of shape (cells,).

    Raises
    ------
    SctoolError
        If the column or a value is not there, with what is.
    """
    from sctool.data.read import near

    column, equals, text = condition.partition("=")
    if not equals:
        raise SctoolError(f"{condition!r} is not COLUMN=VALUE", "write it like part=test")
    if column not in obs:
        columns = list(map(str, obs.columns))
        raise SctoolError(f"obs has no column {column!r}; it has: {', '.join(columns[:20])}", near(column, columns))
    values = obs[column].astype(str).to_numpy()
    wanted = [text] if (values == text).any() else text.split(",")
    mask = np.isin(values, wanted)
    absent = [value for value in wanted if not (values == value).any()]
    if absent:
        counts = obs[column].astype(str).value_counts()
        there = ", ".join(f"{value} ({n})" for value, n in counts.head(10).items())
        raise SctoolError(f"obs[{column!r}] has no {absent[0]!r}; it has: {there}", near(absent[0], list(counts.index)))
    return mask
