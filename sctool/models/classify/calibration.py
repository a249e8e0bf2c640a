"""Probabilities that mean what they say: logits are rescaled by what happened on cells the classifier was not trained on.

Temperature scaling (Guo et al. 2017) divides all logits by one number, which changes how sure a call is but never which call it is.
Isotonic regression (Zadrozny & Elkan 2002) bends each class's probability by a monotone curve; it needs more cells, and may change calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize_scalar
from scipy.special import logsumexp

from sctool.errors import InputError, SctoolError

KINDS = ("temperature", "isotonic", "none")
BOUNDS = (0.05, 20.0)
"""Of the temperature: beyond them a probability says no more than 0, 1 or 1 / classes."""


class Knots(NamedTuple):
    """A monotone curve, linear between its knots; a class that held-out cells say nothing of has none and keeps its probability."""

    before: tuple[float, ...]
    after: tuple[float, ...]


@dataclass(frozen=True)
class Calibration:
    """From logits to calibrated probabilities."""

    kind: str = "none"
    temperature: float = 1.0
    knots: tuple[Knots, ...] = ()

    @classmethod
    def fit(cls, kind: str, logits_nk: NDArray[Any], truth_n: NDArray[Any]) -> Calibration:
        """Learn from held-out cells, best of groups that were not trained on.

        Parameters
        ----------
        kind
            One of ``KINDS``.
        logits_nk
            Logits, or logarithms of probabilities; infinite ones are allowed.
        truth_n
            Class of each cell, 0 to k - 1.

        Raises
        ------
        SctoolError
            If the kind is unknown, there are no cells, a logit is NaN or a class is out of range.
        """
        if kind not in KINDS:
            raise SctoolError(f"unknown calibration {kind!r}", f"give one of {', '.join(KINDS)}")
        if kind == "none":
            return cls()
        logits_nk, truth_n = np.asarray(logits_nk, np.float64), np.asarray(truth_n, np.int64)
        if not len(truth_n):
            raise SctoolError("there are no held-out cells to calibrate on", "hold out more cells, or calibrate with 'none'")
        if len(truth_n) != len(logits_nk) or truth_n.min() < 0 or truth_n.max() >= logits_nk.shape[1]:
            raise InputError(
                f"logits of shape {logits_nk.shape} do not fit {len(truth_n)} classes from {truth_n.min()} to {truth_n.max()}",
                "give a row for every cell and a column for every class",
            )
        if kind == "temperature":
            return cls(kind, _temperature(logits_nk, truth_n))
        return cls(kind, knots=_curves(softmax(logits_nk), truth_n))

    def proba(self, logits_nk: NDArray[Any]) -> NDArray[np.float64]:
        """Probabilities of shape (cells, classes) that sum to 1."""
        p_nk = softmax(logits_nk, self.temperature)
        if not self.knots:
            return p_nk
        if len(self.knots) != p_nk.shape[1]:
            raise InputError(
                f"{p_nk.shape[1]} classes, but {len(self.knots)} were calibrated", "use the calibration of the model the logits are of"
            )
        bent_nk = p_nk.copy()
        for k, (before, after) in enumerate(self.knots):
            if before:
                bent_nk[:, k] = np.interp(p_nk[:, k], before, after)
        total_n = bent_nk.sum(1, keepdims=True)
        # every curve may be 0 where a cell lies; it then keeps the probabilities it had
        return np.where(total_n > 0, bent_nk / np.where(total_n > 0, total_n, 1.0), p_nk)

    def to_json(self) -> dict[str, Any]:
        """As a dict of words, numbers and lists."""
        return {
            "kind": self.kind,
            "temperature": self.temperature,
            "knots": [{"before": list(curve.before), "after": list(curve.after)} for curve in self.knots],
        }

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Calibration:
        """What :meth:`to_json` gave."""
        knots = tuple(Knots(tuple(curve["before"]), tuple(curve["after"])) for curve in stored["knots"])
        return cls(stored["kind"], float(stored["temperature"]), knots)


def softmax(logits_nk: NDArray[Any], temperature: float = 1.0) -> NDArray[np.float64]:
    """Softmax of ``logits / temperature``; classes at +inf share all of it, and all do where every logit is -inf."""
    logits_nk = np.asarray(logits_nk, np.float64)
    if np.isnan(logits_nk).any():
        bad = int(np.isnan(logits_nk).any(1).sum())
        raise SctoolError(f"{bad} of {len(logits_nk)} cells have NaN logits", "look for NaN in the features or the model")
    largest_n = logits_nk.max(1, keepdims=True)
    infinite_n = np.isinf(largest_n)
    shifted_nk = np.where(infinite_n, 0.0, logits_nk) - np.where(infinite_n, 0.0, largest_n)
    share_nk = np.where(infinite_n, logits_nk == largest_n, np.exp(shifted_nk / temperature))
    return share_nk / share_nk.sum(1, keepdims=True)


def _temperature(logits_nk: NDArray[np.float64], truth_n: NDArray[np.int64]) -> float:
    """The temperature of least negative log-likelihood, which in 1/T is convex.

    Cells of which all calls are right have none: the likelihood grows as T falls to 0. There the mean confidence is set to Laplace's
    estimate of the accuracy, (right + 1) / (cells + 2), so that few cells do not make certain.
    """
    right = int((softmax(logits_nk).argmax(1) == truth_n).sum())
    own_n = logits_nk[np.arange(len(truth_n)), truth_n]
    # where infinite logits decide, no temperature changes the probability of the truth
    tells_n = np.isfinite(own_n) & ~np.isposinf(logits_nk).any(1)
    low, high = np.log(BOUNDS)
    told_nk, told_n = logits_nk[tells_n], own_n[tells_n]
    if not len(told_n):
        return 1.0
    if (told_nk.max(1) == told_n).all():
        wanted = (right + 1) / (len(truth_n) + 2)

        def excess(log_t: float) -> float:
            return float(softmax(logits_nk, float(np.exp(log_t))).max(1).mean() - wanted)

        if excess(low) <= 0:
            return BOUNDS[0]
        return BOUNDS[1] if excess(high) >= 0 else float(np.exp(brentq(excess, low, high, xtol=1e-10)))

    def loss(log_t: float) -> float:
        t = np.exp(log_t)
        return float((logsumexp(told_nk / t, axis=1) - told_n / t).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-10, "maxiter": 500}).x))


def _curves(p_nk: NDArray[np.float64], truth_n: NDArray[np.int64]) -> tuple[Knots, ...]:
    from sklearn.isotonic import IsotonicRegression

    curves = []
    for k in range(p_nk.shape[1]):
        own_n = truth_n == k
        if own_n.all() or not own_n.any():
            curves.append(Knots((), ()))
            continue
        curve = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(p_nk[:, k], own_n.astype(np.float64))
        curves.append(Knots(tuple(map(float, curve.X_thresholds_)), tuple(map(float, curve.y_thresholds_))))
    return tuple(curves)
