"""How near predicted changes are to the measured ones of many perturbations; rows are perturbations, columns genes.

A change is mean log expression minus that of control cells. Correlations that are not defined (nothing varies) are NaN here;
who averages counts them as 0 and says how many there were.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.special import logsumexp, stdtr
from scipy.stats import rankdata

from sctool.metrics.base import metric
from sctool.metrics.novelty import aupr
from sctool.metrics.response import pearson

Rows = NDArray[Any]
Floats = NDArray[np.float64]
Distance = Literal["l1", "l2", "cosine"]
FLOOR, CEILING, ORACLE = "no_change", "split half", "oracle"
"""Names of what bounds the scores of predictions."""
EFFECTS = ("weak", "medium", "strong")
"""Thirds of the perturbations by the size of their true change."""


def top(score_pg: Rows, k: int) -> NDArray[np.intp]:
    """Columns of the ``k`` largest values of each row, the largest first; shape (P, min(k, G))."""
    return np.argsort(-np.asarray(score_pg), axis=1, kind="stable")[:, :k]


def _ratio(over_p: Floats, under_p: Floats) -> Floats:
    return np.divide(over_p, under_p, out=np.full(len(over_p), np.nan), where=under_p > 1e-12)


def cosines(a_pg: Rows, b_pg: Rows) -> Floats:
    """Cosine of each row of one with the same row of the other; NaN where one is zero."""
    a_pg, b_pg = np.asarray(a_pg, np.float64), np.asarray(b_pg, np.float64)
    return _ratio((a_pg * b_pg).sum(1), np.linalg.norm(a_pg, axis=1) * np.linalg.norm(b_pg, axis=1))


def correlations(a_pg: Rows, b_pg: Rows) -> Floats:
    """Pearson correlation of each row with the same row of the other; NaN where one does not vary."""
    a_pg, b_pg = np.asarray(a_pg, np.float64), np.asarray(b_pg, np.float64)
    return cosines(a_pg - a_pg.mean(1, keepdims=True), b_pg - b_pg.mean(1, keepdims=True))


def rank_correlations(a_pg: Rows, b_pg: Rows) -> Floats:
    """Spearman correlation of each row with the same row of the other; NaN where one does not vary."""
    return correlations(rankdata(a_pg, axis=1), rankdata(b_pg, axis=1))


def determinations(true_pg: Rows, predicted_pg: Rows) -> Floats:
    """1 - squared error / squared deviation from the mean, of each row; negative where the row's mean would have been better."""
    error_p = np.square(np.asarray(true_pg, np.float64) - predicted_pg).sum(1)
    return 1 - _ratio(error_p, np.square(true_pg - np.mean(true_pg, 1, keepdims=True)).sum(1))


def error_shares(true_pg: Rows, predicted_pg: Rows) -> Floats:
    """Squared error of each row as a share of the squared change: 1 is as good as predicting no change."""
    error_p = np.square(np.asarray(true_pg, np.float64) - predicted_pg).sum(1)
    return _ratio(error_p, np.square(np.asarray(true_pg, np.float64)).sum(1))


def _chosen(true_pg: Rows, predicted_pg: Rows, k: int | None) -> tuple[Floats, Floats]:
    true_pg, predicted_pg = np.asarray(true_pg, np.float64), np.asarray(predicted_pg, np.float64)
    if k is None:
        return true_pg.ravel(), predicted_pg.ravel()
    columns = top(np.abs(true_pg), k)
    return np.take_along_axis(true_pg, columns, 1).ravel(), np.take_along_axis(predicted_pg, columns, 1).ravel()


@metric(best=1.0)
def ate_pearson(true_pg: Rows, predicted_pg: Rows, k: int | None = None) -> float:
    """Pearson correlation over perturbations and genes at once; with ``k``, over the ``k`` most changed genes of each perturbation."""
    return pearson(*_chosen(true_pg, predicted_pg, k))


@metric(best=1.0)
def ate_r2(true_pg: Rows, predicted_pg: Rows, k: int | None = None) -> float:
    """Share of the variance of all true changes that is explained (not the squared correlation); ``k`` as for :func:`ate_pearson`."""
    true, predicted = _chosen(true_pg, predicted_pg, k)
    spread = np.square(true - true.mean()).sum()
    return float(1 - np.square(true - predicted).sum() / spread) if spread > 0 else float("nan")


@metric(best=1.0)
def top_jaccard(true_pg: Rows, predicted_pg: Rows, k: int = 20) -> Floats:
    """Of each row: genes among the ``k`` most changed of both, as a share of those of either."""
    shared_p = _shared(np.abs(true_pg), np.abs(predicted_pg), k)
    return shared_p / (2 * min(k, np.shape(true_pg)[1]) - shared_p)


def _shared(a_pg: Rows, b_pg: Rows, k: int) -> Floats:
    """How many columns are among the ``k`` largest of both; where one does not vary, what chance gives."""
    inside = []
    for score_pg in map(np.asarray, (a_pg, b_pg)):
        mask_pg = np.zeros_like(score_pg, dtype=bool)
        columns = np.argpartition(-score_pg, min(k, score_pg.shape[1]) - 1, axis=1)[:, :k]
        np.put_along_axis(mask_pg, columns, True, 1)
        inside.append(mask_pg)
    genes = np.shape(a_pg)[1]
    flat_p = (np.ptp(a_pg, axis=1) == 0) | (np.ptp(b_pg, axis=1) == 0)
    return np.where(flat_p, min(k, genes) ** 2 / genes, (inside[0] & inside[1]).sum(1))


# a test of differential expression


def welch_test(mean_pg: Rows, variance_pg: Rows, cells_p: Rows, control_g: Rows, control_variance_g: Rows, control_cells: float) -> Rows:
    """Welch's t-test of each perturbation against control from moments (variances with ddof 1).

    Returns
    -------
    t and two-sided p, shape (2, P, G). Genes without variance in both groups: t 0, p 1.
    """
    cells_p1 = np.asarray(cells_p, np.float64)[:, None]
    a_pg, b_g = variance_pg / cells_p1, control_variance_g / control_cells
    square_pg = a_pg + b_g
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom_pg = square_pg**2 / (a_pg**2 / (cells_p1 - 1) + b_g**2 / (control_cells - 1))
        t_pg = (mean_pg - control_g) / np.sqrt(square_pg)
    known = (square_pg > 0) & np.isfinite(freedom_pg)
    t_pg = np.where(known, t_pg, 0.0)
    return np.stack([t_pg, np.where(known, 2 * stdtr(np.where(known, freedom_pg, 1.0), -np.abs(t_pg)), 1.0)])


def benjamini_hochberg(p_pg: Rows) -> Floats:
    """P-values of each row adjusted for the false discovery rate over its columns."""
    p_pg = np.asarray(p_pg, np.float64)
    order = np.argsort(p_pg, axis=1)
    m = p_pg.shape[1]
    raised = np.take_along_axis(p_pg, order, 1) * m / np.arange(1, m + 1)
    lowest = np.minimum.accumulate(raised[:, ::-1], axis=1)[:, ::-1].clip(max=1.0)
    out = np.empty_like(p_pg)
    np.put_along_axis(out, order, lowest, 1)
    return out


@metric(best=1.0)
def de_overlap(t_pg: Rows, predicted_pg: Rows, k: int = 20) -> Floats:
    """Share of the ``k`` genes of largest test statistic among the ``k`` of largest predicted change; no change: what chance gives."""
    return _shared(np.abs(t_pg), np.abs(predicted_pg), k) / min(k, np.shape(t_pg)[1])


@metric(best=1.0)
def de_direction(true_pg: Rows, predicted_pg: Rows, significant_pg: NDArray[np.bool_]) -> Floats:
    """Share of significant genes predicted to change in the right direction (no change counts half); NaN where none is significant."""
    agree_pg = (1 + np.sign(true_pg) * np.sign(predicted_pg)) / 2
    return _ratio((agree_pg * significant_pg).sum(1), significant_pg.sum(1).astype(np.float64))


@metric(best=1.0)
def de_precision(predicted_pg: Rows, significant_pg: NDArray[np.bool_]) -> Floats:
    """Average precision of |predicted change| for the significant genes (area under precision and recall); NaN where none is."""
    rows = zip(significant_pg, np.abs(predicted_pg), strict=True)
    return np.array([aupr(yes_g, score_g) if 0 < yes_g.sum() < len(yes_g) else 1.0 if yes_g.any() else np.nan for yes_g, score_g in rows])


@metric(best=1.0)
def de_spearman(true_pg: Rows, predicted_pg: Rows, significant_pg: NDArray[np.bool_]) -> Floats:
    """Spearman correlation of the changes over significant genes; NaN with fewer than three of them, or where one does not vary."""
    out = np.full(len(true_pg), np.nan)
    for at, yes_g in enumerate(significant_pg):
        if yes_g.sum() > 2:
            out[at] = rank_correlations(true_pg[at : at + 1, yes_g], predicted_pg[at : at + 1, yes_g])[0]
    return out


# telling perturbations apart


def _distances(predicted_pg: Rows, true_pg: Rows, distance: Distance) -> Floats:
    """Of each prediction (rows) to each truth (columns). A zero profile is at cosine distance 1 to all."""
    if distance != "cosine":
        return cdist(predicted_pg, true_pg, {"l1": "cityblock", "l2": "euclidean"}[distance])
    unit = []
    for x_pg in (np.asarray(predicted_pg, np.float64), np.asarray(true_pg, np.float64)):
        norm_p1 = np.linalg.norm(x_pg, axis=1, keepdims=True)
        unit.append(np.divide(x_pg, norm_p1, out=np.zeros_like(x_pg), where=norm_p1 > 1e-12))
    return 1 - unit[0] @ unit[1].T


def truth_ranks(predicted_pg: Rows, true_pg: Rows, distance: Distance = "l1") -> Floats:
    """How many other perturbations' truths are nearer to each prediction than its own; ties count half."""
    distance_pq = _distances(predicted_pg, true_pg, distance)
    own_p1 = np.diag(distance_pq)[:, None]
    tied_pq = np.isclose(distance_pq, own_p1, rtol=1e-12, atol=1e-12)
    return ((distance_pq < own_p1) & ~tied_pq).sum(1) + (tied_pq.sum(1) - 1) / 2


@metric(best=1.0)
def discrimination(predicted_pg: Rows, true_pg: Rows, distance: Distance = "l1", form: Literal["tied", "cell-eval"] = "tied") -> Floats:
    """``1 - rank / (T - 1)`` of each perturbation's own truth among all T: 1 for the nearest, .5 by chance; NaN for one perturbation.

    ``cell-eval`` divides by T and breaks ties by order, as that tool does, so its mean by chance is above .5.
    """
    n = len(true_pg)
    if form == "cell-eval":
        order_pq = np.argsort(_distances(predicted_pg, true_pg, distance), axis=1, kind="stable")
        return np.asarray(1 - (order_pq == np.arange(n)[:, None]).argmax(1) / n, np.float64)
    return 1 - truth_ranks(predicted_pg, true_pg, distance) / (n - 1) if n > 1 else np.full(n, np.nan)


@metric(best=1.0)
def retrieval(predicted_pg: Rows, true_pg: Rows, k: int = 1, distance: Distance = "cosine") -> Floats:
    """1 for each perturbation whose own truth is among the ``k`` nearest to its prediction, else 0."""
    return (truth_ranks(predicted_pg, true_pg, distance) < k).astype(np.float64)


@metric(best=1.0)
def specific_r(true_pg: Rows, predicted_pg: Rows, shared_g: Rows) -> Floats:
    """Correlation of the profiles after the mean perturbed profile was taken off both: what is specific to a perturbation."""
    return correlations(np.asarray(true_pg, np.float64) - shared_g, np.asarray(predicted_pg, np.float64) - shared_g)


@metric(best=1.0)
def interaction_r(true_g: Rows, predicted_g: Rows, true_singles: Sequence[Rows], predicted_singles: Sequence[Rows]) -> float:
    """Correlation of true and predicted ``d_AB - d_A - d_B``; NaN where one of them does not vary, as for an additive prediction."""
    true_g, predicted_g = (whole - np.sum(parts, axis=0) for whole, parts in ((true_g, true_singles), (predicted_g, predicted_singles)))
    return pearson(true_g, predicted_g)


# cells


@metric(best=0.0, higher_is_better=False)
def mmd(a_nd: Rows, b_md: Rows) -> float:
    """Squared maximum mean discrepancy, unbiased, with an RBF kernel as wide as the median distance of all pairs; may be negative.

    Gretton et al. 2012; the kernel is ``exp(-d^2 / (2 median^2))``.
    """
    both = np.vstack([a_nd, b_md])
    square = cdist(both, both, "sqeuclidean")
    width = float(np.median(square[np.triu_indices(len(both), 1)]))
    kernel = np.exp(-square / (2 * width)) if width > 0 else np.ones_like(square)
    n, m = len(a_nd), len(b_md)
    within = ((kernel[:n, :n].sum() - n) / (n * (n - 1))) + ((kernel[n:, n:].sum() - m) / (m * (m - 1)))
    return float(within - 2 * kernel[:n, n:].mean())


@metric(best=0.0, higher_is_better=False)
def zero_difference(a_ng: Any, b_mg: Any) -> float:
    """Mean over genes of the absolute difference of the shares of zeros; sparse or dense."""
    shares = [1 - np.asarray((x != 0).sum(0)).ravel() / x.shape[0] for x in (a_ng, b_mg)]
    return float(np.abs(shares[0] - shares[1]).mean())


# of the generative model


@metric(best=float("inf"))
def iwelbo(logw_sn: Rows) -> tuple[float, float]:
    """Importance-weighted bound on the log-likelihood, mean over cells, and its Monte-Carlo error.

    Burda et al. 2016. One particle gives the ELBO. The error is that of the drawn particles, not of the choice of cells; NaN for one
    particle.

    Parameters
    ----------
    logw_sn
        Log importance weights, particles x cells.
    """
    logw_sn = np.asarray(logw_sn, np.float64)
    s, n = logw_sn.shape
    log_mean_n = logsumexp(logw_sn, axis=0) - np.log(s)
    spread_n = np.exp(logw_sn - log_mean_n).var(0, ddof=1) / s if s > 1 else np.full(n, np.nan)
    return float(log_mean_n.mean()), float(np.sqrt(spread_n.sum()) / n)


def data_ate(x_ng: Any, name_n: Rows, control: str = "control", method: Literal["perturbseq", "mean"] = "perturbseq") -> dict[str, Floats]:
    """Average treatment effect of each perturbation in cells.

    Parameters
    ----------
    x_ng
        Counts, sparse or dense.
    name_n
        Perturbation of each cell.
    method
        ``perturbseq``: of ``log2(1 + 10,000 x / sum(x))``, cells without counts left out; ``mean``: of the counts.
    """
    x_ng, name_n = sp.csr_matrix(x_ng, dtype=np.float64), np.asarray(name_n).astype(str)
    if method == "perturbseq":
        total_n = np.asarray(x_ng.sum(1)).ravel()
        x_ng, name_n = x_ng[total_n > 0], name_n[total_n > 0]
        x_ng = sp.diags(1e4 / total_n[total_n > 0]) @ x_ng
        x_ng.data = np.log2(1 + x_ng.data)
    means = {name: np.asarray(x_ng[name_n == name].mean(0)).ravel() for name in dict.fromkeys(name_n)}
    control_g = means.pop(control)
    return {name: mean_g - control_g for name, mean_g in means.items()}


def mask_recovery(true_tl: NDArray[np.bool_], found_tl: NDArray[np.bool_]) -> dict[str, Any]:
    """Precision, recall and F1 of a sparse mask under the permutation of its columns that shares most with the true one.

    Returns
    -------
    ``precision, recall, f1`` and ``columns``: the column found for each true one.
    """
    from scipy.optimize import linear_sum_assignment

    true_tl, found_tl = np.asarray(true_tl, bool), np.asarray(found_tl, bool)
    shared_kl = true_tl.T.astype(np.float64) @ found_tl
    columns = linear_sum_assignment(shared_kl, maximize=True)[1]
    hits = float(shared_kl[np.arange(len(columns)), columns].sum())
    precision, recall = hits / max(int(found_tl.sum()), 1), hits / max(int(true_tl.sum()), 1)
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    return {"precision": precision, "recall": recall, "f1": f1, "columns": columns}


@metric(best=1.0)
def mean_correlation_coefficient(true_nl: Rows, found_nl: Rows) -> tuple[float, Floats]:
    """Mean absolute correlation of latent dimensions with their true ones under the best pairing, and that of each true one."""
    from scipy.optimize import linear_sum_assignment

    n_true = np.shape(true_nl)[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        shared_kl = np.nan_to_num(np.abs(np.corrcoef(np.asarray(true_nl).T, np.asarray(found_nl).T)[:n_true, n_true:]))
    rows, columns = linear_sum_assignment(shared_kl, maximize=True)
    each = shared_kl[rows, columns]
    return float(each.mean()), each
