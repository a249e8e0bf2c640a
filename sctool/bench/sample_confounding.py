"""What a target goes with that is not biology: batches, studies and numbers of cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sctool.data.cohort import Cohort, Task, text
from sctool.metrics.samples import association

_MANY = 10
"""Numbers of more values than these are numbers, of fewer they are groups."""


def _variable(cohort: Cohort, key: str) -> tuple[NDArray[Any], bool, NDArray[np.bool_]]:
    """Values of a column of samples, whether they are numbers, and where they are known."""
    values = cohort.table[key]
    numbers = pd.to_numeric(values.astype(object), errors="coerce").to_numpy(np.float64)
    if np.isfinite(numbers).sum() == values.notna().sum() and values.nunique() > _MANY:
        return numbers, True, np.isfinite(numbers)
    said = text(values)
    return said, False, said != ""


def confounding(cohort: Cohort, task: Task, batch_keys: Sequence[str] = (), strong: float = 0.5) -> pd.DataFrame:
    """What the target goes with: ``task, covariate, measure, value, levels_of_one, samples, strong``.

    Parameters
    ----------
    batch_keys
        Columns of samples beside ``n_cells``, such as batch, study or sex; those that are not there are left out.
    strong
        A value from which the target cannot be told from the covariate by these samples alone.

    Returns
    -------
    Cramer's V of two groupings, eta squared of a number and a grouping, |Spearman's rho| of two numbers. ``levels_of_one``: levels of the
    covariate with samples of one class only.
    """
    truth_s = cohort.truth(task)
    is_number = task.kind != "class"
    own_s = cohort.known(task)
    rows = []
    for key in dict.fromkeys([*(key for key in batch_keys if key in cohort.table and key != task.column), "n_cells"]):
        other_s, numeric, known_s = _variable(cohort, key)
        if key == "n_cells":
            other_s, numeric = np.log1p(cohort.table["n_cells"].to_numpy(np.float64)), True
        both_s = own_s & known_s
        if both_s.sum() < 3:
            continue
        measure, value = association(truth_s[both_s], other_s[both_s], (is_number, numeric))
        one = np.nan
        if not numeric and not is_number:
            one = float(pd.Series(truth_s[both_s]).groupby(other_s[both_s]).nunique().eq(1).sum())
        rows.append([task.column, key, measure, value, one, int(both_s.sum()), bool(value >= strong)])
    return pd.DataFrame(rows, columns=["task", "covariate", "measure", "value", "levels_of_one", "samples", "strong"])
