"""Scores of a cell-type classifier on cells it was not trained on, each with its definition, and the tables behind them.

Labels are codes into ``classes``, the sorted union of the labels of training and test cells; ``predicted_n`` may hold -1, unassigned,
which is never right. ``trained_c`` marks the classes that had training cells; ``p_nc`` are probabilities, 0 in the others' columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn import metrics as sk

from sctool.errors import InputError, SctoolError
from sctool.metrics.base import metric

Codes = NDArray[np.int64]
Floats = NDArray[np.float64]

UNASSIGNED = "Unassigned"
PROBABILITY_SCORES = (
    *("roc_auc_macro_seen", "roc_auc_macro_ref", "roc_auc_macro_ovr", "auprc_macro"),
    *("log_loss", "brier", "ece", "top2_accuracy"),
)
LOWER_IS_BETTER = ("log_loss", "brier", "ece", "frac_test_cells_of_unseen_class")
BOOTSTRAPPED = ("accuracy", "balanced_accuracy", "f1_macro_present")

DEFINITIONS: dict[str, str] = {
    "accuracy": "share of cells with the right label; an unassigned cell is wrong",
    "balanced_accuracy": "mean over the classes of the test cells of the share found (recall)",
    "f1_macro_present": "mean F1 over the classes of the test cells; the headline, comparable between models",
    "f1_macro_all": "mean F1 over all classes of training and test cells; 0 for a class neither there nor predicted",
    "f1_macro_ref": "mean F1 over the classes there or predicted; depends on the model, so not comparable between models",
    "f1_macro": "f1_macro_ref under the name it was published with",
    "f1_weighted": "mean F1 over the classes of the test cells, weighted by their cells",
    "f1_median": "median F1 over the classes of the test cells (Abdelaal et al. 2019)",
    "mcc": "Matthews correlation of truth and prediction over all classes; 0 where either is constant",
    "kappa": "Cohen's kappa: agreement beyond that of independent labels with the same frequencies",
    "coverage": "share of cells that were assigned a label",
    "accuracy_assigned": "share of the assigned cells with the right label",
    "roc_auc_macro_seen": "mean one-vs-rest AUC over the classes of the test cells that were trained; ties count half",
    "roc_auc_macro_ref": "mean one-vs-rest AUC over the classes of the test cells; one never trained adds exactly 0.5",
    "roc_auc_macro_ovr": "roc_auc_macro_ref under the name it was published with",
    "auprc_macro": "mean average precision over the classes of the test cells; chance is a class's share of the cells",
    "log_loss": "mean -log probability of the true class, not below 1e-15, over cells whose class was trained",
    "brier": "mean over cells of the squared error of the probabilities, summed over classes; 0 to 2",
    "ece": "expected calibration error: mean over cells of |accuracy - confidence| of their bin, 10 equal right-closed bins",
    "top2_accuracy": "share of cells whose class is one of the two most probable; 1 by construction with two trained classes",
    "frac_test_cells_of_unseen_class": "share of test cells whose class was never trained: no model can get them right",
    "majority_baseline_accuracy": "accuracy of calling every cell the most frequent class of the test cells",
    "majority_baseline_f1": "f1_macro_present of calling every cell the most frequent class of the test cells",
}


@dataclass(frozen=True)
class _Tally:
    """By class: cells called it rightly, cells of it, cells called it; shape (units, classes) each."""

    right_uc: Floats
    cells_uc: Floats
    called_uc: Floats

    @classmethod
    def of(cls, truth_n: Codes, predicted_n: Codes, k: int, unit_n: Codes | None = None, units: int = 1) -> _Tally:
        at_n = np.zeros(len(truth_n), np.int64) if unit_n is None else unit_n * k

        def count(code_n: Codes, keep_n: NDArray[np.bool_]) -> Floats:
            return np.bincount((at_n + code_n)[keep_n], minlength=units * k).reshape(units, k).astype(np.float64)

        return cls(count(truth_n, truth_n == predicted_n), count(truth_n, truth_n >= 0), count(predicted_n, predicted_n >= 0))

    def drawn(self, weight_du: Floats) -> _Tally:
        return _Tally(weight_du @ self.right_uc, weight_du @ self.cells_uc, weight_du @ self.called_uc)

    @property
    def f1_uc(self) -> Floats:
        return _divided(2 * self.right_uc, self.cells_uc + self.called_uc)

    @property
    def recall_uc(self) -> Floats:
        return _divided(self.right_uc, self.cells_uc)

    def score(self, name: str) -> Floats:
        """One of ``BOOTSTRAPPED`` for each unit, over the classes the unit has cells of."""
        if name == "accuracy":
            return self.right_uc.sum(1) / self.cells_uc.sum(1)
        by_class_uc = self.recall_uc if name == "balanced_accuracy" else self.f1_uc
        there_uc = self.cells_uc > 0
        return np.where(there_uc, by_class_uc, 0.0).sum(1) / there_uc.sum(1)


def _divided(a: NDArray[Any], b: NDArray[Any]) -> Floats:
    return np.divide(a, b, out=np.full(np.shape(a), np.nan), where=b > 0)


def _coded(truth_n: NDArray[Any], predicted_n: NDArray[Any]) -> _Tally:
    labels, codes = np.unique(np.concatenate([truth_n, predicted_n]), return_inverse=True)
    return _Tally.of(codes[: len(truth_n)], codes[len(truth_n) :], len(labels))


@metric(best=1.0)
def balanced_accuracy(truth_n: NDArray[Any], predicted_n: NDArray[Any]) -> float:
    """Mean recall over the classes of truth; labels or codes."""
    return float(_coded(truth_n, predicted_n).score("balanced_accuracy")[0])


@metric(best=1.0)
def f1_macro_present(truth_n: NDArray[Any], predicted_n: NDArray[Any]) -> float:
    """Mean F1 over the classes of truth; labels or codes."""
    return float(_coded(truth_n, predicted_n).score("f1_macro_present")[0])


@metric(best=1.0)
def mcc(truth_n: NDArray[Any], predicted_n: NDArray[Any]) -> float:
    """Matthews correlation over all classes; 0 where truth or prediction is constant."""
    return 0.0 if _one_label(truth_n, predicted_n) else float(sk.matthews_corrcoef(truth_n, predicted_n))


@metric(best=1.0)
def kappa(truth_n: NDArray[Any], predicted_n: NDArray[Any]) -> float:
    """Cohen's kappa; NaN where both hold one and the same class."""
    return float("nan") if _one_label(truth_n, predicted_n) else float(sk.cohen_kappa_score(truth_n, predicted_n))


def _one_label(truth_n: NDArray[Any], predicted_n: NDArray[Any]) -> bool:
    return len(np.unique(np.concatenate([truth_n, predicted_n]))) == 1


def binary_auc(positive_n: NDArray[np.bool_], score_n: NDArray[Any]) -> float:
    """Chance that a positive scores above a negative, ties half, from ranks (Mann-Whitney); NaN if there is only one kind."""
    positives = int(positive_n.sum())
    negatives = len(positive_n) - positives
    if not positives or not negatives:
        return float("nan")
    above = rankdata(score_n)[positive_n].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def classify_scores(
    truth_n: NDArray[Any], predicted_n: NDArray[Any], p_nc: NDArray[Any] | None, classes: Sequence[str], trained_c: NDArray[np.bool_]
) -> dict[str, float]:
    """Every score of ``DEFINITIONS``, in its order; NaN where undefined (:func:`undefined_reasons` says why).

    Parameters
    ----------
    truth_n, predicted_n
        Codes into ``classes``; -1 in ``predicted_n`` is unassigned.
    p_nc
        Probabilities; None where a tool gave none. Scores of probabilities take the most probable class, whatever ``predicted_n`` says.
    classes
        Labels of training and test cells, shape (c,).
    trained_c
        Whether the class had training cells.

    Raises
    ------
    SctoolError
        If there are no cells, lengths differ, a code is out of range or a probability is not finite.
    """
    truth_n, predicted_n, p_nc = _checked(truth_n, predicted_n, p_nc, len(classes))
    tally = _Tally.of(truth_n, predicted_n, len(classes))
    cells_c, f1_c, there_c = tally.cells_uc[0], tally.f1_uc[0], tally.cells_uc[0] > 0
    assigned_n = predicted_n >= 0
    largest = float(cells_c.max() / len(truth_n))
    macro_ref = float(np.nanmean(f1_c))
    scores = dict.fromkeys(DEFINITIONS, float("nan"))
    scores |= {name: float(tally.score(name)[0]) for name in BOOTSTRAPPED} | {
        "f1_macro_all": float(np.nan_to_num(f1_c).mean()),
        "f1_macro_ref": macro_ref,
        "f1_macro": macro_ref,
        "f1_weighted": float(np.average(f1_c[there_c], weights=cells_c[there_c])),
        "f1_median": float(np.median(f1_c[there_c])),
        "mcc": mcc(truth_n, predicted_n),
        "kappa": kappa(truth_n, predicted_n),
        "coverage": float(assigned_n.mean()),
        "frac_test_cells_of_unseen_class": float(1 - np.asarray(trained_c)[truth_n].mean()),
        "majority_baseline_accuracy": largest,
        "majority_baseline_f1": float(2 * largest / ((1 + largest) * there_c.sum())),
    }
    if assigned_n.any():
        scores["accuracy_assigned"] = float((truth_n == predicted_n)[assigned_n].mean())
    return scores if p_nc is None else scores | _probability_scores(truth_n, p_nc, np.asarray(trained_c, bool))


def _probability_scores(truth_n: Codes, p_nc: Floats, trained_c: NDArray[np.bool_]) -> dict[str, float]:
    there = np.unique(truth_n)
    auc_c = {int(c): binary_auc(truth_n == c, p_nc[:, c]) for c in there}
    seen = [auc for c, auc in auc_c.items() if trained_c[c]]
    own_n = p_nc[np.arange(len(truth_n)), truth_n]
    before_n = (p_nc > own_n[:, None]).sum(1) + ((p_nc == own_n[:, None]) & (np.arange(p_nc.shape[1]) < truth_n[:, None])).sum(1)
    known_n = trained_c[truth_n]
    bins = reliability_table(p_nc, truth_n)
    gap = (bins["cells"] * (bins["accuracy"] - bins["confidence"]).abs()).sum() / len(truth_n)
    return {
        "roc_auc_macro_seen": float(np.mean(seen)) if seen else float("nan"),
        "roc_auc_macro_ref": float(np.mean(list(auc_c.values()))),
        "roc_auc_macro_ovr": float(np.mean(list(auc_c.values()))),
        "auprc_macro": float(np.mean([sk.average_precision_score(truth_n == c, p_nc[:, c]) for c in there])),
        "log_loss": float(-np.log(np.clip(own_n[known_n], 1e-15, None)).mean()) if known_n.any() else float("nan"),
        "brier": float((np.square(p_nc).sum(1) - 2 * own_n + 1).mean()),
        "ece": float(gap),
        "top2_accuracy": float((known_n & (before_n < 2)).mean()),
    }


def undefined_reasons(
    scores: dict[str, float], truth_n: NDArray[Any], p_nc: NDArray[Any] | None, trained_c: NDArray[np.bool_]
) -> dict[str, str]:
    """Why each NaN of :func:`classify_scores` is one, by score."""
    one_class = len(np.unique(truth_n)) < 2
    reasons = {}
    for name in (name for name, value in scores.items() if np.isnan(value)):
        if name in PROBABILITY_SCORES and p_nc is None:
            reasons[name] = "there are no probabilities, only labels"
        elif name == "accuracy_assigned":
            reasons[name] = "no cell was assigned a label"
        elif name == "kappa":
            reasons[name] = "truth and prediction hold one and the same class"
        elif name.startswith("roc_auc") and one_class:
            reasons[name] = "all test cells are of one class"
        elif not np.asarray(trained_c)[truth_n].any():
            reasons[name] = "no test cell is of a trained class"
        else:
            reasons[name] = "not defined for these cells"
    return reasons


def _checked(truth_n: NDArray[Any], predicted_n: NDArray[Any], p_nc: Any, k: int) -> tuple[Codes, Codes, Floats | None]:
    truth_n, predicted_n = np.asarray(truth_n, np.int64), np.asarray(predicted_n, np.int64)
    if not len(truth_n):
        raise SctoolError("there are no cells to score", "check which cells are the test cells, and that they have labels")
    if len(truth_n) != len(predicted_n) or (p_nc is not None and np.shape(p_nc) != (len(truth_n), k)):
        raise InputError(
            f"{len(truth_n)} true labels, {len(predicted_n)} predicted, probabilities of shape {np.shape(p_nc)} do not fit {k} classes",
            "give one of each for every cell, and a column of probabilities for every class",
        )
    if truth_n.min() < 0 or max(truth_n.max(), predicted_n.max()) >= k or predicted_n.min() < -1:
        raise InputError(f"codes of labels must be 0 to {k - 1}", "code labels by their position in classes; -1 is unassigned")
    if p_nc is None:
        return truth_n, predicted_n, None
    p_nc = np.asarray(p_nc, np.float64)
    if not np.isfinite(p_nc).all():
        bad = int((~np.isfinite(p_nc)).any(1).sum())
        raise SctoolError(f"{bad} of {len(p_nc)} cells have probabilities that are not finite", "look for NaN in the features or the model")
    return truth_n, predicted_n, p_nc


def per_class_table(
    truth_n: NDArray[Any], predicted_n: NDArray[Any], p_nc: NDArray[Any] | None, classes: Sequence[str], trained_c: NDArray[np.bool_]
) -> pd.DataFrame:
    """``label, cells, predicted, precision, recall, f1, roc_auc, auprc, trained`` of every class, most frequent first; NaN if undefined."""
    truth_n, predicted_n, p_nc = _checked(truth_n, predicted_n, p_nc, len(classes))
    tally = _Tally.of(truth_n, predicted_n, len(classes))
    curves = np.full((2, len(classes)), np.nan)
    if p_nc is not None:
        for c in np.unique(truth_n):
            curves[:, c] = binary_auc(truth_n == c, p_nc[:, c]), sk.average_precision_score(truth_n == c, p_nc[:, c])
    table = pd.DataFrame(
        {
            "label": list(classes),
            "cells": tally.cells_uc[0].astype(int),
            "predicted": tally.called_uc[0].astype(int),
            "precision": _divided(tally.right_uc, tally.called_uc)[0],
            "recall": tally.recall_uc[0],
            "f1": tally.f1_uc[0],
            "roc_auc": curves[0],
            "auprc": curves[1],
            "trained": np.asarray(trained_c, bool),
        }
    )
    return table.sort_values("cells", ascending=False, kind="stable", ignore_index=True)


def per_group_table(groups_n: NDArray[Any], truth_n: NDArray[Any], predicted_n: NDArray[Any]) -> pd.DataFrame:
    """``group, cells, accuracy, balanced_accuracy, f1_macro_present`` of each donor, culture or batch, over the classes it has."""
    truth_n, predicted_n = np.asarray(truth_n, np.int64), np.asarray(predicted_n, np.int64)
    unit_n, names = pd.factorize(np.asarray(groups_n), sort=True, use_na_sentinel=False)
    tally = _Tally.of(truth_n, predicted_n, int(max(truth_n.max(), predicted_n.max())) + 1, unit_n, len(names))
    scores = {name: tally.score(name) for name in BOOTSTRAPPED}
    return pd.DataFrame({"group": names, "cells": np.bincount(unit_n), **scores})


def _resampled(groups_n: Any, codes: list[Codes], rng: np.random.Generator, n_draws: int) -> tuple[Codes, int, Floats, str]:
    """The unit of each cell, how many units, how often each is drawn, and what a unit is.

    Cells that agree in all ``codes`` are exchangeable, so that drawing cells is drawing how many of each kind: its cost is one of kinds.
    """
    if groups_n is not None:
        unit_n, names = pd.factorize(np.asarray(groups_n), sort=True, use_na_sentinel=False)
        if len(names) >= 3:
            drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=n_draws)
            return unit_n, len(names), drawn.astype(np.float64), "groups"
    _, unit_n, cells_u = np.unique(np.stack(codes), axis=1, return_inverse=True, return_counts=True)
    drawn = rng.multinomial(cells_u.sum(), cells_u / cells_u.sum(), size=n_draws)
    return unit_n.ravel(), len(cells_u), drawn / cells_u, "cells"


def _interval(draw_d: Floats, point: float) -> tuple[float, float]:
    low, high = np.quantile(draw_d, [0.025, 0.975])
    return min(float(low), point), max(float(high), point)


def bootstrap_intervals(
    truth_n: NDArray[Any], predicted_n: NDArray[Any], groups_n: NDArray[Any] | None, rng: np.random.Generator, n_draws: int = 1000
) -> dict[str, Any]:
    """95 % percentile intervals of ``BOOTSTRAPPED`` as ``(low, high)``, and under ``unit`` what was drawn: ``groups`` or ``cells``.

    Whole groups are drawn with replacement, since cells of one donor are alike; with fewer than 3 groups, or none, cells are, which
    says nothing of other donors. A class found in few groups is missing from many draws and its score biased; an interval is therefore
    widened to the score itself where it would leave it out.
    """
    truth_n, predicted_n = np.asarray(truth_n, np.int64), np.asarray(predicted_n, np.int64)
    k = int(max(truth_n.max(), predicted_n.max())) + 1
    unit_n, units, weight_du, unit = _resampled(groups_n, [truth_n, predicted_n], rng, n_draws)
    tally = _Tally.of(truth_n, predicted_n, k, unit_n, units)
    whole, draws = _Tally.of(truth_n, predicted_n, k), tally.drawn(weight_du)
    return {name: _interval(draws.score(name), float(whole.score(name)[0])) for name in BOOTSTRAPPED} | {"unit": unit}


def paired_group_bootstrap(
    truth_n: NDArray[Any], a_n: NDArray[Any], b_n: NDArray[Any], groups_n: Any, rng: np.random.Generator, n_draws: int = 1000
) -> dict[str, Any]:
    """Difference ``a - b`` of two models' f1_macro_present on the same cells, both scored on the same draws of groups.

    ``difference``, ``low`` and ``high`` of its 95 % interval, ``share_better`` (draws in which a beats b, ties half), ``unit`` (drawn).
    """
    truth_n, a_n, b_n = (np.asarray(codes, np.int64) for codes in (truth_n, a_n, b_n))
    k = int(max(truth_n.max(), a_n.max(), b_n.max())) + 1
    unit_n, units, weight_du, unit = _resampled(groups_n, [truth_n, a_n, b_n], rng, n_draws)

    def score(predicted_n: Codes) -> tuple[float, Floats]:
        by_unit = _Tally.of(truth_n, predicted_n, k, unit_n, units)
        return f1_macro_present(truth_n, predicted_n), by_unit.drawn(weight_du).score("f1_macro_present")

    (a, a_d), (b, b_d) = score(a_n), score(b_n)
    low, high = _interval(a_d - b_d, a - b)
    better = float((a_d > b_d).mean() + 0.5 * (a_d == b_d).mean())
    return {"difference": a - b, "low": low, "high": high, "share_better": better, "unit": unit}


def reliability_table(p_nc: NDArray[Any], truth_n: NDArray[Any], bins: int = 10) -> pd.DataFrame:
    """``low, high, cells, confidence, accuracy`` of equal, right-closed bins of the largest probability; NaN in an empty bin."""
    p_nc, edges = np.asarray(p_nc, np.float64), np.linspace(0, 1, bins + 1)
    confidence_n = p_nc.max(1)
    bin_n = np.clip(np.searchsorted(edges, confidence_n) - 1, 0, bins - 1)  # rounding may leave a probability a little above 1
    cells = np.bincount(bin_n, minlength=bins)

    def mean(value_n: NDArray[Any]) -> Floats:
        return _divided(np.bincount(bin_n, weights=value_n, minlength=bins), cells)

    right_n = p_nc.argmax(1) == np.asarray(truth_n)
    return pd.DataFrame({"low": edges[:-1], "high": edges[1:], "cells": cells, "confidence": mean(confidence_n), "accuracy": mean(right_n)})
