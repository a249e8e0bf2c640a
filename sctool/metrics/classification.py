"""Scores of predicted labels. Macro scores weigh every class of truth or prediction equally; an undefined one counts as 0."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn import metrics as sk

from sctool.metrics.base import METRICS, metric

Labels = NDArray[Any]


@metric(best=1.0)
def accuracy(truth_n: Labels, predicted_n: Labels) -> float:
    """Share of cells with the right label."""
    return float(sk.accuracy_score(truth_n, predicted_n))


@metric(best=1.0)
def macro_precision(truth_n: Labels, predicted_n: Labels) -> float:
    """Mean over classes of the share of predictions that are right."""
    return float(sk.precision_score(truth_n, predicted_n, average="macro", zero_division=0))


@metric(best=1.0)
def macro_recall(truth_n: Labels, predicted_n: Labels) -> float:
    """Mean over classes of the share of cells found."""
    return float(sk.recall_score(truth_n, predicted_n, average="macro", zero_division=0))


@metric(best=1.0)
def micro_f1(truth_n: Labels, predicted_n: Labels) -> float:
    """F1 over all cells; equals accuracy for one label per cell."""
    return float(sk.f1_score(truth_n, predicted_n, average="micro", zero_division=0))


@metric(best=1.0)
def macro_f1(truth_n: Labels, predicted_n: Labels) -> float:
    """Mean over classes of F1."""
    return float(sk.f1_score(truth_n, predicted_n, average="macro", zero_division=0))


SCORES = ("accuracy", "macro_precision", "macro_recall", "micro_f1", "macro_f1")


def classification_scores(truth_n: Labels, predicted_n: Labels) -> dict[str, float]:
    """All of the above by name."""
    return {name: METRICS[name].function(truth_n, predicted_n) for name in SCORES}


def per_class_scores(truth_n: Labels, predicted_n: Labels) -> pd.DataFrame:
    """Cells, precision, recall and F1 of each class of truth, most frequent first; columns ``label, cells, precision, recall, f1``."""
    labels, cells = np.unique(truth_n, return_counts=True)
    precision, recall, f1, _ = sk.precision_recall_fscore_support(truth_n, predicted_n, labels=labels, zero_division=0)
    table = pd.DataFrame({"label": labels, "cells": cells, "precision": precision, "recall": recall, "f1": f1})
    return table.sort_values("cells", ascending=False, kind="stable", ignore_index=True)
