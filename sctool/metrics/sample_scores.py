"""Scores of answers for samples, for many weightings of the samples at once, so that donors can be drawn a thousand times at once.

Weights are of shape (draws, samples), 1 for all gives the score itself. A draw that leaves a score undefined
(no sample of a class) has NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sctool.metrics.base import metric

Floats = NDArray[np.float64]

SCORES = {
    "class": ("auc", "balanced_accuracy", "accuracy", "f1_macro", "log_loss", "brier", "ece"),
    "regression": ("r2", "spearman", "mae"),
    "ordinal": ("quadratic_kappa", "spearman", "mae", "balanced_accuracy"),
}
"""By kind of task; the first says who is ahead."""
LOWER = frozenset(("mae", "log_loss", "brier", "ece"))
"""Scores of which the lower is the better."""
CHANCE = {"auc": 0.5, "r2": 0.0, "spearman": 0.0, "quadratic_kappa": 0.0}
_BINS = 10


def weighted_ranks(value_n: NDArray[Any], weight_bn: Floats) -> Floats:
    """Weight below each value plus half of that at it, shape (draws, samples): mid-ranks less 0.5 where weights count copies."""
    _, code_n, n_u = np.unique(value_n, return_inverse=True, return_counts=True)
    order = np.argsort(code_n, kind="stable")
    at_bu = np.add.reduceat(weight_bn[:, order], np.append(0, np.cumsum(n_u)[:-1]), axis=1)
    return (np.cumsum(at_bu, 1) - at_bu / 2)[:, code_n]


def _over(a: Floats, b: Floats) -> Floats:
    return np.divide(a, b, out=np.full(np.shape(a), np.nan), where=b > 1e-12)


def _auc(positive_n: NDArray[np.bool_], rank_bn: Floats, weight_bn: Floats) -> Floats:
    yes_b, no_b = weight_bn[:, positive_n].sum(1), weight_bn[:, ~positive_n].sum(1)
    above_b = (weight_bn * rank_bn)[:, positive_n].sum(1) - np.square(yes_b) / 2
    return _over(above_b, yes_b * no_b)


def _pearson(a_bn: Floats, b_bn: Floats, weight_bn: Floats) -> Floats:
    total_b1 = weight_bn.sum(1, keepdims=True)
    a_bn = a_bn - (weight_bn * a_bn).sum(1, keepdims=True) / total_b1
    b_bn = b_bn - (weight_bn * b_bn).sum(1, keepdims=True) / total_b1
    spread_b = (weight_bn * a_bn**2).sum(1) * (weight_bn * b_bn**2).sum(1)
    return _over((weight_bn * a_bn * b_bn).sum(1), np.sqrt(np.maximum(spread_b, 0)))


def _by_class(truth_n: NDArray[np.int64], called_n: NDArray[np.int64], classes: int, weight_bn: Floats) -> dict[str, Floats]:
    own_nc, said_nc = (codes[:, None] == np.arange(classes) for codes in (truth_n, called_n))
    right_bc = weight_bn @ (own_nc & said_nc).astype(np.float64)
    true_bc, said_bc = weight_bn @ own_nc.astype(np.float64), weight_bn @ said_nc.astype(np.float64)
    there_bc = true_bc > 0
    n_b = there_bc.sum(1)
    recall_bc = np.where(there_bc, right_bc / np.where(there_bc, true_bc, 1), 0)
    f1_bc = np.where(there_bc, 2 * right_bc / np.where(there_bc, true_bc + said_bc, 1), 0)
    return {
        "balanced_accuracy": np.where(n_b > 1, recall_bc.sum(1) / n_b, np.nan),
        "accuracy": right_bc.sum(1) / weight_bn.sum(1),
        "f1_macro": f1_bc.sum(1) / n_b,
    }


def class_scores(
    truth_n: NDArray[Any], p_nc: Floats, called_n: NDArray[Any], weight_bn: Floats, rank_nc: Floats | None = None
) -> dict[str, Floats]:
    """Scores of ``SCORES["class"]``, each of shape (draws,).

    Parameters
    ----------
    truth_n, called_n
        Codes of classes.
    p_nc
        Probabilities. Of two classes ``auc`` is of the second's; of more, the mean over the classes of each against the rest.
    weight_bn
        Of the samples.
    rank_nc
        What samples are ranked by for ``auc``, where it is not the probabilities.
    """
    truth_n, called_n = np.asarray(truth_n, np.int64), np.asarray(called_n, np.int64)
    classes, total_b = p_nc.shape[1], weight_bn.sum(1)
    rank_nc = p_nc if rank_nc is None else rank_nc
    columns = [1] if classes == 2 else range(classes)
    auc_cb = np.stack([_auc(truth_n == c, weighted_ranks(rank_nc[:, c], weight_bn), weight_bn) for c in columns])
    own_n = p_nc[np.arange(len(truth_n)), truth_n]
    sure_n, right_n = p_nc.max(1), p_nc.argmax(1) == truth_n
    bin_n = np.clip(np.searchsorted(np.linspace(0, 1, _BINS + 1), sure_n) - 1, 0, _BINS - 1)
    gap_bk = np.abs((weight_bn * (right_n - sure_n)) @ (bin_n[:, None] == np.arange(_BINS)).astype(np.float64))
    known_cb = np.isfinite(auc_cb)
    return {
        "auc": _over(np.where(known_cb, auc_cb, 0).sum(0), known_cb.sum(0).astype(np.float64)),
        **_by_class(truth_n, called_n, classes, weight_bn),
        "log_loss": weight_bn @ -np.log(np.clip(own_n, 1e-15, None)) / total_b,
        "brier": weight_bn @ (np.square(p_nc).sum(1) - 2 * own_n + 1) / total_b,
        "ece": gap_bk.sum(1) / total_b,
    }


def regression_scores(truth_n: NDArray[Any], value_n: Floats, weight_bn: Floats) -> dict[str, Floats]:
    """Scores of ``SCORES["regression"]``, each of shape (draws,). ``r2`` is negative where the samples' own mean would have been better."""
    truth_n, total_b = np.asarray(truth_n, np.float64), weight_bn.sum(1)
    mean_b1 = (weight_bn @ truth_n / total_b)[:, None]
    spread_b = (weight_bn * np.square(truth_n - mean_b1)).sum(1)
    return {
        "r2": 1 - _over(weight_bn @ np.square(truth_n - value_n), spread_b),
        "spearman": _pearson(weighted_ranks(truth_n, weight_bn), weighted_ranks(value_n, weight_bn), weight_bn),
        "mae": weight_bn @ np.abs(truth_n - value_n) / total_b,
    }


def ordinal_scores(truth_n: NDArray[Any], p_nc: Floats, called_n: NDArray[Any], weight_bn: Floats) -> dict[str, Floats]:
    """Scores of ``SCORES["ordinal"]``, each of shape (draws,).

    ``quadratic_kappa`` and ``mae`` (in levels) are of the level called, ``spearman`` of the mean level.
    """
    truth_n, called_n = np.asarray(truth_n, np.int64), np.asarray(called_n, np.int64)
    k, total_b = p_nc.shape[1], weight_bn.sum(1)
    apart_bn = np.square(truth_n - called_n).astype(np.float64)
    true_bk = weight_bn @ (truth_n[:, None] == np.arange(k)).astype(np.float64)
    said_bk = weight_bn @ (called_n[:, None] == np.arange(k)).astype(np.float64)
    by_chance_b = np.einsum("bi,ij,bj->b", true_bk, np.square(np.subtract.outer(np.arange(k), np.arange(k))).astype(float), said_bk)
    expected_n = p_nc @ np.arange(k)
    return {
        "quadratic_kappa": 1 - _over(weight_bn @ apart_bn, by_chance_b / total_b),
        "spearman": _pearson(weighted_ranks(truth_n, weight_bn), weighted_ranks(expected_n, weight_bn), weight_bn),
        "mae": weight_bn @ np.abs(truth_n - called_n) / total_b,
        "balanced_accuracy": _by_class(truth_n, called_n, k, weight_bn)["balanced_accuracy"],
    }


def scores_of(
    kind: str,
    truth_n: NDArray[Any],
    values_nc: Floats,
    called_n: NDArray[Any],
    weight_bn: Floats | None = None,
    rank_nc: Floats | None = None,
) -> dict[str, Floats]:
    """Scores of a task's kind; one draw with all samples once where no weights are given, classes ranked by ``rank_nc`` if it is."""
    weight_bn = np.ones((1, len(truth_n))) if weight_bn is None else weight_bn
    if kind == "regression":
        return regression_scores(truth_n, values_nc[:, 0], weight_bn)
    if kind == "ordinal":
        return ordinal_scores(truth_n, values_nc, called_n, weight_bn)
    return class_scores(truth_n, values_nc, called_n, weight_bn, rank_nc)


@metric(best=1.0)
def auc(truth_n: NDArray[Any], p_nc: Floats) -> float:
    """Area under the receiver operating characteristic; of more than two classes the mean of each against the rest."""
    return float(class_scores(truth_n, p_nc, p_nc.argmax(1), np.ones((1, len(truth_n))))["auc"][0])


@metric(best=1.0)
def r2(truth_n: NDArray[Any], value_n: Floats) -> float:
    """1 - squared error / squared deviation from the mean of the truth."""
    return float(regression_scores(truth_n, value_n, np.ones((1, len(truth_n))))["r2"][0])


@metric(best=1.0)
def spearman(truth_n: NDArray[Any], value_n: Floats) -> float:
    """Rank correlation; NaN where one does not vary."""
    return float(regression_scores(truth_n, value_n, np.ones((1, len(truth_n))))["spearman"][0])


@metric(best=0.0, higher_is_better=False)
def mae(truth_n: NDArray[Any], value_n: Floats) -> float:
    """Mean absolute error, in the unit of the truth, or in levels."""
    return float(np.mean(np.abs(np.asarray(truth_n, np.float64) - value_n)))


@metric(best=1.0)
def quadratic_kappa(truth_n: NDArray[Any], called_n: NDArray[Any]) -> float:
    """Cohen's kappa of levels with squared distances as weights; NaN where truth and calls are one and the same level."""
    k = int(max(np.max(truth_n), np.max(called_n))) + 1
    p_nk = np.eye(k)[np.asarray(called_n, np.int64)]
    return float(ordinal_scores(truth_n, p_nk, called_n, np.ones((1, len(truth_n))))["quadratic_kappa"][0])
