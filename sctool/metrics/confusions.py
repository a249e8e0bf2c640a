"""Who is taken for whom, in tables and in words; and what is gained by leaving doubtful cells out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sctool.metrics.classify import UNASSIGNED


def confusion_table(truth_n: NDArray[Any], predicted_n: NDArray[Any], classes: Sequence[str]) -> pd.DataFrame:
    """Cells of each true (row) and predicted (column) class; a column ``Unassigned`` at the end if there are such cells."""
    truth_n, predicted_n = np.asarray(truth_n, np.int64), np.asarray(predicted_n, np.int64)
    k = len(classes)
    cells = np.bincount(truth_n * (k + 1) + np.where(predicted_n < 0, k, predicted_n), minlength=k * (k + 1)).reshape(k, k + 1)
    table = pd.DataFrame(cells, index=list(classes), columns=[*classes, UNASSIGNED])
    return table if cells[:, k].any() else table.iloc[:, :k]


def top_confusions(table: pd.DataFrame) -> pd.DataFrame:
    """``true, predicted, cells, row_share`` of the wrong pairs of a :func:`confusion_table`, most cells first."""
    cells = table.to_numpy()
    rows, columns = np.nonzero(cells)
    wrong = rows != columns
    rows, columns = rows[wrong], columns[wrong]
    pairs = pd.DataFrame(
        {
            "true": table.index.to_numpy()[rows],
            "predicted": table.columns.to_numpy()[columns],
            "cells": cells[rows, columns],
            "row_share": cells[rows, columns] / cells.sum(1)[rows],
        }
    )
    return pairs.sort_values(["cells", "row_share"], ascending=False, kind="stable", ignore_index=True)


def confusions_in_words(table: pd.DataFrame, n: int = 3) -> list[str]:
    """The ``n`` largest confusions as sentences: ``34 of 120 CD8 T (28 %) were called CD4 T``."""
    total, words = table.sum(axis=1), []
    for true, predicted, cells, share in top_confusions(table).head(n).itertuples(index=False):
        fate = "left unassigned" if predicted == UNASSIGNED else f"called {predicted}"
        words.append(f"{cells:,} of {total[true]:,} {true} ({100 * share:.0f} %) {'was' if cells == 1 else 'were'} {fate}")
    return words


def risk_coverage_table(correct_n: NDArray[Any], confidence_n: NDArray[Any]) -> pd.DataFrame:
    """``coverage, accuracy, threshold``: what is right of the cells at least so confident; at most 200 rows, the last of all cells."""
    order = np.argsort(-np.asarray(confidence_n, np.float64), kind="stable")
    confidence_n, right_n = np.asarray(confidence_n, np.float64)[order], np.cumsum(np.asarray(correct_n, bool)[order])
    ends = np.flatnonzero(np.append(np.diff(confidence_n) != 0, True))  # cells of one confidence are kept or left together
    if len(ends) > 200:
        ends = ends[np.linspace(0, len(ends) - 1, 200).astype(int)]
    kept = ends + 1
    return pd.DataFrame({"coverage": kept / len(order), "accuracy": right_n[ends] / kept, "threshold": confidence_n[ends]})
