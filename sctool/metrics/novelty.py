"""How well a score tells novel cells from known ones. Every score here is oriented so that higher means stranger."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sctool.errors import InputError
from sctool.metrics.base import metric

Flags = NDArray[np.bool_]
Scores = NDArray[Any]


@metric(best=1.0)
def auroc(novel_n: Flags, score_n: Scores) -> float:
    """Chance that a novel cell scores above a known one, a tie counting half (Mann-Whitney U over the number of pairs).

    Parameters
    ----------
    novel_n
        Whether each cell is novel, shape (cells,).
    score_n
        Higher is stranger, shape (cells,).
    """
    novel_n, score_n = _checked(novel_n, score_n)
    known = np.sort(score_n[~novel_n])
    below = np.searchsorted(known, score_n[novel_n], "left") + np.searchsorted(known, score_n[novel_n], "right")
    return float(below.mean() / (2 * len(known)))


@metric(best=1.0)
def aupr(novel_n: Flags, score_n: Scores) -> float:
    """Average precision: the mean, over novel cells, of the precision at the threshold that just takes each one in.

    A score without information gives :func:`prevalence`, not 0.5. Shapes as in :func:`auroc`.
    """
    _, found, false = _steps(*_checked(novel_n, score_n))
    gained = np.diff(found, prepend=0)
    return float((gained * found / (found + false)).sum() / found[-1])


def prevalence(novel_n: Flags) -> float:
    """Share of novel cells, which is the :func:`aupr` of a random score."""
    return float(np.asarray(novel_n, bool).mean())


@metric(best=0.0, higher_is_better=False)
def fpr_at_95tpr(novel_n: Flags, score_n: Scores) -> float:
    """Share of known cells flagged at the highest threshold that flags 95 % of the novel ones. Shapes as in :func:`auroc`."""
    _, found, false = _steps(*_checked(novel_n, score_n))
    return float(false[np.searchsorted(found, 0.95 * found[-1] - 1e-9)] / false[-1])


@metric(best=1.0)
def tpr_at_5fpr(novel_n: Flags, score_n: Scores) -> float:
    """Share of novel cells flagged at the lowest threshold that flags at most 5 % of the known ones. Shapes as in :func:`auroc`."""
    _, found, false = _steps(*_checked(novel_n, score_n))
    allowed = int(np.searchsorted(false, 0.05 * false[-1] + 1e-9, "right"))
    return float(found[allowed - 1] / found[-1]) if allowed else 0.0


def roc_curve(novel_n: Flags, score_n: Scores) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False and true positive rates over all thresholds, both from 0 to 1; shapes as in :func:`auroc`."""
    _, found, false = _steps(*_checked(novel_n, score_n))
    return np.append(0.0, false / false[-1]), np.append(0.0, found / found[-1])


def precision_recall_curve(novel_n: Flags, score_n: Scores) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Recall and precision over all thresholds, by rising recall; shapes as in :func:`auroc`."""
    _, found, false = _steps(*_checked(novel_n, score_n))
    return found / found[-1], found / (found + false)


def threshold(known_n: Scores, alpha: float) -> float:
    """The score above which a new known cell falls with a probability of at most ``alpha``.

    The ``ceil((n + 1)(1 - alpha))``-th smallest score of n known cells the detector was not fitted on (split conformal prediction, Vovk
    2005): the promise holds for cells exchangeable with those, whatever the detector. Infinite where n is too small to promise it.

    Parameters
    ----------
    known_n
        Scores of held-out known cells, shape (cells,).
    alpha
        The false-alarm rate.
    """
    known = np.sort(np.asarray(known_n, np.float64))
    rank = int(np.ceil((len(known) + 1) * (1 - alpha) - 1e-9))
    return float(known[rank - 1]) if rank <= len(known) else float("inf")


def _checked(novel_n: Flags, score_n: Scores) -> tuple[Flags, NDArray[np.float64]]:
    novel, score = np.asarray(novel_n, bool), np.asarray(score_n, np.float64)
    if novel.shape != score.shape or novel.ndim != 1:
        raise InputError(f"flags of shape {novel.shape} and scores of shape {score.shape}", "give one of each per cell")
    if novel.all() or not novel.any():
        raise InputError(f"{int(novel.sum())} novel cells of {len(novel)}", "give both novel and known cells")
    if np.isnan(score).any():
        raise InputError(f"{int(np.isnan(score).sum())} scores are NaN", "give a score for each cell")
    return novel, score


def _steps(novel_n: Flags, score_n: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Distinct thresholds from the highest down, with how many novel and known cells reach each."""
    order = np.argsort(-score_n, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(score_n[order])), len(order) - 1)
    found = np.cumsum(novel_n[order])[ends]
    return score_n[order][ends], found, ends + 1 - found
