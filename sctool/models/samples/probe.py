"""A linear probe, and a probe of nearest neighbours: what a representation of samples says of a task, the same for every contestant.

Features are standardised on the training samples and divided by the square root of their number, so that a coefficient's prior is one
for the whole log-odds and 10 dimensions are shrunk no more and no less than 2,000. The strength is then a number with a meaning, and it is
fixed: on tens of samples, tuning it by inner folds costs more in noise than it gains. Features are rotated onto the training samples'
components, which changes nothing of a ridge penalty, and many labellings are fitted at once, which makes permutation tests affordable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.special import expit

from sctool.errors import SctoolError

Floats = NDArray[np.float64]
Kind = Literal["class", "regression", "ordinal"]

STRENGTH = 3.0
"""Prior variance of log-odds: near that of the logistic distribution, pi^2 / 3, with which every probability is as likely beforehand."""
SIGNALS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Ratios of signal to noise variance among which ridge regression takes the one of most evidence."""
NEIGHBOURS = 5
MOST_BYTES = 128 * 2**20
"""Of the curvatures of labellings that are fitted at once."""
_STEPS, _CLOSE, _TINY = 40, 1e-6, 1e-9


@dataclass(frozen=True)
class Scaler:
    """Standardisation to a total variance of 1, from training samples.

    Attributes
    ----------
    centre_f, scale_f
        Of the features; those that do not vary get a scale of infinity and count for nothing.
    """

    centre_f: Floats
    scale_f: Floats

    @classmethod
    def fit(cls, x_sf: NDArray[Any]) -> Scaler:
        """Of training samples, shape (samples, features)."""
        x_sf = np.asarray(x_sf, np.float64)
        centre_f, sd_f = x_sf.mean(0), x_sf.std(0)
        varies_f = sd_f > _TINY * (1 + np.abs(centre_f))
        return cls(centre_f, np.where(varies_f, sd_f, np.inf) * np.sqrt(max(1, int(varies_f.sum()))))

    def __call__(self, x_sf: NDArray[Any]) -> Floats:
        """Of any samples, shape (samples, features)."""
        return (np.asarray(x_sf, np.float64) - self.centre_f) / self.scale_f


def logistic(x_sr: Floats, positive_bs: NDArray[Any], strength: float = STRENGTH, *, balanced: bool = True) -> Floats:
    """Logistic regression with a Gaussian prior, for many labellings at once (Newton's method).

    Parameters
    ----------
    x_sr
        Standardised features of the training samples, shape (samples, features).
    positive_bs
        Whether each sample is of the positive class, shape (labellings, samples).
    strength
        Prior variance of a coefficient. The intercept has none.
    balanced
        Whether both classes weigh the same in total.

    Returns
    -------
    Coefficients with the intercept last, shape (labellings, features + 1). A labelling of one class only has coefficients of 0 and an
    intercept as of one more sample of each class (Laplace).
    """
    y_bs = np.asarray(positive_bs, np.float64)
    n, r = x_sr.shape
    found_b1 = y_bs.sum(1, keepdims=True)
    one_b = ((found_b1 == 0) | (found_b1 == n))[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        w_bs = np.where(y_bs > 0, n / (2 * found_b1), n / (2 * (n - found_b1))) if balanced else np.ones_like(y_bs)
    w_bs = np.where(one_b[:, None], 1.0, w_bs)
    a_sr = np.hstack([x_sr, np.ones((n, 1))])
    penalty_r = np.append(np.full(r, 1 / strength), 1e-6)
    b_br = np.zeros((len(y_bs), r + 1))
    # weighted features, their products and what the solver copies
    at_once = max(1, MOST_BYTES // (8 * (r + 1) * (n + 2 * (r + 1))))
    chunks = [np.flatnonzero(~one_b)[at : at + at_once] for at in range(0, int((~one_b).sum()), at_once)]
    for active in chunks:
        _newton(a_sr, y_bs, w_bs, penalty_r, b_br, active)
    b_br[one_b, -1] = np.log((found_b1[one_b, 0] + 1) / (n - found_b1[one_b, 0] + 1))
    return b_br


def _newton(a_sr: Floats, y_bs: Floats, w_bs: Floats, penalty_r: Floats, b_br: Floats, active: NDArray[np.int64]) -> None:
    """Fit the coefficients of some labellings in place."""
    own_r = np.arange(a_sr.shape[1])
    for _ in range(_STEPS):
        if not len(active):
            break
        p_bs = expit(b_br[active] @ a_sr.T)
        slope_br = (w_bs[active] * (p_bs - y_bs[active])) @ a_sr + penalty_r * b_br[active]
        curve_bs = w_bs[active] * p_bs * (1 - p_bs)
        hessian_brr = (a_sr.T[None] * curve_bs[:, None]) @ a_sr
        hessian_brr[:, own_r, own_r] += penalty_r
        step_br = np.linalg.solve(hessian_brr, slope_br[..., None])[..., 0]
        # a damped step: Newton's own may overshoot where labels can be told apart
        step_br *= np.minimum(1.0, 5.0 / np.maximum(np.abs(step_br).max(1, keepdims=True), _TINY))
        b_br[active] -= step_br
        active = active[np.abs(step_br).max(1) > _CLOSE]


def ridge(x_sr: Floats, y_bs: NDArray[Any]) -> Floats:
    """Ridge regression of many targets at once, each with the ratio of signal to noise of ``SIGNALS`` that has most evidence.

    Returns
    -------
    Coefficients with the intercept last, shape (targets, features + 1).
    """
    y_bs = np.asarray(y_bs, np.float64)
    n = len(x_sr)
    mean_b1 = y_bs.mean(1, keepdims=True)
    centre_r = x_sr.mean(0)
    u_sk, s_k, vt_kr = np.linalg.svd(x_sr - centre_r, full_matrices=False)
    along_bk = (y_bs - mean_b1) @ u_sk
    rest_b = np.maximum(np.square(y_bs - mean_b1).sum(1) - np.square(along_bk).sum(1), 0)
    best_b, signal_b = np.full(len(y_bs), -np.inf), np.full(len(y_bs), SIGNALS[0])
    for signal in SIGNALS:
        variance_k = 1 + signal * np.square(s_k)
        misfit_b = (np.square(along_bk) / variance_k).sum(1) + rest_b
        evidence_b = -0.5 * (n - 1) * np.log(np.maximum(misfit_b, _TINY)) - 0.5 * np.log(variance_k).sum()
        better_b = evidence_b > best_b
        best_b, signal_b = np.where(better_b, evidence_b, best_b), np.where(better_b, signal, signal_b)
    shrink_bk = s_k / (np.square(s_k) + 1 / signal_b[:, None])
    b_br = (along_bk * shrink_bk) @ vt_kr
    return np.hstack([b_br, mean_b1 - (b_br @ centre_r)[:, None]])


@dataclass(frozen=True)
class Answers:
    """What is said of samples under one or many labellings.

    Attributes
    ----------
    values_bsc
        Probabilities of classes or levels, shape (labellings, samples, classes), or numbers, shape (labellings, samples, 1).
    called_bs
        Codes of the classes or levels called; the numbers themselves of regression. A class is called where it is most probable beside
        its frequency, as every class counts the same in balanced accuracy.
    """

    values_bsc: Floats
    called_bs: Floats


@dataclass(frozen=True)
class Probe:
    """Learns from features of some samples what to say of others.

    Attributes
    ----------
    kind
        Of the task.
    n_classes
        Classes or levels; 1 for a number.
    neighbours
        Of each sample that vote; 0: linear.
    strength
        Prior variance of log-odds.
    """

    kind: Kind
    n_classes: int = 2
    neighbours: int = 0
    strength: float = STRENGTH

    def answers(self, train_sf: NDArray[Any], truth_bs: NDArray[Any], test_sf: NDArray[Any], prior_c: Floats | None = None) -> Answers:
        """Learn each labelling of the training samples, and answer for the test samples.

        Parameters
        ----------
        train_sf, test_sf
            Features.
        truth_bs
            Codes of classes or levels, or numbers, shape (labellings, training samples).
        prior_c
            How frequent classes are where answers are for, shape (classes,); None: as in training. Where answers of several folds are
            ranked together it must be one for all: a fold that holds out more of a class trains on fewer, and would rank it lower.

        Raises
        ------
        SctoolError
            If a feature is not finite.
        """
        for name, x_sf in (("training", train_sf), ("test", test_sf)):
            bad_f = ~np.isfinite(x_sf).all(0)
            if bad_f.any():
                raise SctoolError(
                    f"{int(bad_f.sum())} of {len(bad_f)} features of the {name} samples have missing values",
                    "leave samples without cells out, or give other features",
                )
        truth_bs = np.atleast_2d(np.asarray(truth_bs, np.float64))
        scaler = Scaler.fit(train_sf)
        train_sr, test_sr = scaler(train_sf), scaler(test_sf)
        if self.neighbours:
            return self._nearest(train_sr, truth_bs, test_sr, prior_c)
        # the penalty is the same in any rotation, and directions in which training samples do not vary have coefficients of 0
        _, s_r, vt_rf = np.linalg.svd(train_sr, full_matrices=False)
        vt_rf = vt_rf[s_r > 1e-8 * max(1.0, float(s_r.max(initial=0.0)))][: max(0, len(train_sr) - 1)]
        train_sr, test_sr = train_sr @ vt_rf.T, test_sr @ vt_rf.T
        one_sr = np.hstack([test_sr, np.ones((len(test_sr), 1))])
        if self.kind == "regression":
            value_bs = ridge(train_sr, truth_bs) @ one_sr.T
            return Answers(value_bs[..., None], value_bs)
        if self.kind == "ordinal":
            above = [logistic(train_sr, truth_bs > k, self.strength, balanced=False) @ one_sr.T for k in range(self.n_classes - 1)]
            return _levels(expit(np.stack(above, 2)))
        codes = range(1, 2) if self.n_classes == 2 else range(self.n_classes)
        logit_bsc = np.stack([logistic(train_sr, truth_bs == c, self.strength) @ one_sr.T for c in codes], 2)
        p_bsc = expit(logit_bsc)
        if self.n_classes == 2:
            p_bsc = np.concatenate([1 - p_bsc, p_bsc], 2)
        prior = self._shares(truth_bs) if prior_c is None else prior_c
        return _classes(p_bsc / np.maximum(p_bsc.sum(2, keepdims=True), _TINY), prior)

    def _shares(self, truth_bs: Floats) -> Floats:
        """Share of each class in training, shape (labellings, 1, classes)."""
        return (truth_bs[..., None] == np.arange(self.n_classes)).mean(1, keepdims=True)

    def _nearest(self, train_sr: Floats, truth_bs: Floats, test_sr: Floats, prior_c: Floats | None) -> Answers:
        """Votes of the nearest training samples, each class's weighed by how rare it is, with one vote shared by all."""
        k = min(self.neighbours, len(train_sr))
        near_sk = np.argsort(cdist(test_sr, train_sr), axis=1, kind="stable")[:, :k]
        vote_bsk = truth_bs[:, near_sk]
        if self.kind == "regression":
            value_bs = vote_bsk.mean(2)
            return Answers(value_bs[..., None], value_bs)
        share_bsc = self._shares(truth_bs)
        count_bsc = (vote_bsk[..., None] == np.arange(self.n_classes)).sum(2)
        if self.kind == "ordinal":
            p_bsc = (count_bsc + share_bsc) / (k + 1)
            return _levels(1 - np.cumsum(p_bsc, 2)[..., :-1])
        there_bsc = share_bsc > 0
        prior_bsc = there_bsc / np.maximum(there_bsc.sum(2, keepdims=True), 1)
        weighed_bsc = np.divide(count_bsc, share_bsc * self.n_classes, out=np.zeros(count_bsc.shape), where=there_bsc) + prior_bsc
        return _classes(weighed_bsc / weighed_bsc.sum(2, keepdims=True), share_bsc if prior_c is None else prior_c)


def _classes(even_bsc: Floats, prior: Floats) -> Answers:
    """From probabilities as if all classes were as frequent to those at given frequencies; calls are of the former."""
    p_bsc = even_bsc * prior
    return Answers(p_bsc / np.maximum(p_bsc.sum(2, keepdims=True), 1e-300), even_bsc.argmax(2).astype(np.float64))


def _levels(above_bsc: Floats) -> Answers:
    """From probabilities of being above each level but the last, made to fall, to those of levels; calls are the median."""
    above_bsc = np.minimum.accumulate(above_bsc, axis=2)
    edge_bs1 = np.ones((*above_bsc.shape[:2], 1))
    full = np.concatenate([edge_bs1, above_bsc, 0 * edge_bs1], 2)
    return Answers(full[..., :-1] - full[..., 1:], median_level(above_bsc))


def median_level(above: Floats) -> Floats:
    """The level called: as many as are passed with a probability above one half; levels but the last are the last axis."""
    return (above > 0.5).sum(-1).astype(np.float64)


def called_classes(p_sc: Floats, share_c: Floats) -> Floats:
    """Codes of the classes that are most probable beside their frequency, from probabilities at these frequencies."""
    return np.divide(p_sc, share_c, out=np.zeros(p_sc.shape), where=share_c > 0).argmax(-1).astype(np.float64)
