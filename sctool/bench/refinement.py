"""Whether a refinement of codes is worth having: judged on predicted types and batches alone, never on given labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from sctool.metrics.integration import integration_scores
from sctool.metrics.kbet import FEWEST_CELLS

LEAST_CORRELATION, LEAST_OVERLAP, MOST_LOSS = 0.9, 0.5, 0.01
MOST_CELLS = 3000


@dataclass(frozen=True)
class Gate:
    """The verdict and the figures behind it."""

    accepted: bool
    reason: str
    figures: dict[str, float]


def refinement_gate(
    before_nl: NDArray[np.float32],
    after_nl: NDArray[np.float32],
    moved_n: NDArray[np.bool_],
    type_n: NDArray[Any],
    batch_n: NDArray[Any],
    seed: int = 0,
) -> Gate:
    """Accept a refinement if it keeps the order within types, doesn't mix types, and mixes batches better.

    Parameters
    ----------
    before_nl, after_nl
        Codes; at most 3,000 random cells of them are looked at.
    moved_n
        Which cells were moved.
    type_n, batch_n
        Predicted type and batch.
    """
    if not moved_n.any():
        return Gate(False, "no cell is of a type that is sure and has enough cells in its batch and in another", {"moved": 0.0})
    rows = np.sort(np.random.default_rng(seed).permutation(len(moved_n))[:MOST_CELLS])
    before_nl, after_nl, moved_n = before_nl[rows], after_nl[rows], moved_n[rows]
    type_n, batch_n = type_n[rows], batch_n[rows]
    correlation, overlap = _kept_within(before_nl, after_nl, moved_n, type_n, batch_n)
    figures = {"moved": float(moved_n.mean()), "correlation_within": correlation, "neighbours_kept_within": overlap}
    names, counts = np.unique(type_n, return_counts=True)
    scored = np.isin(type_n, names[counts >= FEWEST_CELLS])
    kinds = np.char.add("type ", type_n[scored].astype(str))
    if len(set(kinds)) < 2:
        return Gate(False, "all cells are of one predicted type", figures)
    batches, start_nl = batch_n[scored].astype(str), before_nl[scored]
    was, now = (integration_scores(z_nl[scored], batches, kinds, start_nl).values for z_nl in (before_nl, after_nl))
    for score in ("ilisi", "kbet", "clisi", "label_asw"):
        figures |= {f"{score}_before": was[score], f"{score}_after": now[score]}
    problems = []
    if correlation < LEAST_CORRELATION:
        problems.append(f"cells of a type and batch keep their places with r = {correlation:.2f} only (at least {LEAST_CORRELATION})")
    if overlap < LEAST_OVERLAP:
        problems.append(f"they keep {overlap:.0%} of their neighbours (at least {LEAST_OVERLAP:.0%})")
    problems += [
        f"{score} of the predicted types falls by {was[score] - now[score]:.3f}"
        for score in ("clisi", "label_asw")
        if was[score] - now[score] > MOST_LOSS
    ]
    if now["ilisi"] <= was["ilisi"] and now["kbet"] <= was["kbet"]:
        problems.append("batches are not mixed better")
    return Gate(not problems, "; ".join(problems) or "batches are mixed better and types are kept", figures)


def _kept_within(
    before_nl: NDArray[np.float32], after_nl: NDArray[np.float32], moved_n: NDArray[np.bool_], type_n: NDArray[Any], batch_n: NDArray[Any]
) -> tuple[float, float]:
    """Means over cells of one type and batch: correlation of their deviations, and share of the 15 nearest neighbours kept."""
    correlations, overlaps, weights = [], [], []
    for kind in np.unique(type_n[moved_n]):
        for batch in np.unique(batch_n[moved_n & (type_n == kind)]):
            own = moved_n & (type_n == kind) & (batch_n == batch)
            if own.sum() < FEWEST_CELLS:
                continue
            a_nl, b_nl = (z_nl[own] - z_nl[own].mean(0) for z_nl in (before_nl, after_nl))
            k = min(15, len(a_nl) // 3)
            near = [NearestNeighbors(n_neighbors=k).fit(z_nl).kneighbors(return_distance=False) for z_nl in (a_nl, b_nl)]
            overlaps.append(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(*near, strict=True)]))
            correlations.append(np.corrcoef(a_nl.ravel(), b_nl.ravel())[0, 1])
            weights.append(len(a_nl))
    if not weights:
        return 1.0, 1.0
    return float(np.average(correlations, weights=weights)), float(np.average(overlaps, weights=weights))
