"""Integration: are batches mixed, and is biology kept? The scores of scIB (Luecken et al. 2022), as scib-metrics computes them.

All are scaled so that 1 is best, but those named ``raw``. Neighbours are exact, where the package takes approximate ones.
``scib_metrics`` is imported when first used: it brings JAX along, which takes seconds.
"""

from __future__ import annotations

import os
import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sk
from sklearn.cluster import KMeans

from sctool.metrics.base import metric
from sctool.metrics.kbet import kbet_by_label
from sctool.metrics.neighbours import Neighbours, exact_neighbours, fuzzy_graph

Labels = NDArray[Any]
Embedding = NDArray[np.float32]

BATCH_SCORES = ("ilisi", "kbet", "graph_connectivity", "bras")
BIO_SCORES = ("nmi", "ari", "label_asw", "clisi", "isolated_labels")
BESIDE = ("pcr_comparison", "batch_asw", "total_with_pcr")
"""Reported, but outside the means."""
RAW_SCORES = {
    "raw_label_silhouette": "-1 to 1, 1 is ideal",
    "raw_batch_silhouette": "-1 to 1, within types; 0 is ideal",
    "raw_clisi": "1 to the number of types, 1 is ideal",
    "raw_blisi": "1 to the number of batches, the number of batches is ideal",
}
"""Figures of older tools, and their scales."""
LISI_NEIGHBOURS, KBET_NEIGHBOURS, GRAPH_NEIGHBOURS = 90, 50, 15


class IntegrationScores(NamedTuple):
    """Of one embedding."""

    values: dict[str, float]
    """By name, the means ``batch``, ``bio`` and ``total`` first."""
    kbet: dict[str, float]
    """kBET of each label; NaN where it has one batch."""


def integration_scores(z_nl: Embedding, batches: Labels, labels: Labels | None, before_np: Embedding) -> IntegrationScores:
    """Every score of an embedding.

    Parameters
    ----------
    z_nl
        The embedding, of at least 20 cells.
    batches, labels
        Of each cell, two or more of both; each label with ten cells or more, and one of them with several batches. Without labels there
        are ``ilisi``, ``pcr_comparison`` and ``raw_blisi`` only.
    before_np
        The same cells before integration, for the PCR comparison.
    """
    z_nl = np.ascontiguousarray(z_nl, np.float32)
    near, n_batches = exact_neighbours(z_nl, LISI_NEIGHBOURS), len(np.unique(batches))
    scores = {"ilisi": ilisi(near, batches), "pcr_comparison": pcr_comparison(before_np, z_nl, batches)}
    scores["raw_blisi"] = 1 + scores["ilisi"] * (n_batches - 1)
    if labels is None:
        return IntegrationScores(scores, {})
    by_label = kbet_by_label(fuzzy_graph(near.nearest(KBET_NEIGHBOURS)), batches, labels)
    silhouette_n, n_labels = silhouettes(z_nl, labels), len(np.unique(labels))
    within = batch_silhouettes(z_nl, batches, labels).values()
    clusters = kmeans_clusters(z_nl, n_labels)
    scores |= {
        "kbet": float(np.nanmean(list(by_label.values()))),
        "graph_connectivity": graph_connectivity(near.nearest(GRAPH_NEIGHBOURS), labels),
        "bras": bras(z_nl, batches, labels),
        "nmi": nmi(labels, clusters),
        "ari": ari(labels, clusters),
        "label_asw": float((silhouette_n.mean() + 1) / 2),
        "clisi": clisi(near, labels),
        "isolated_labels": isolated_labels(silhouette_n, batches, labels),
        "batch_asw": float(np.mean([1 - np.abs(s).mean() for s in within])),
        "raw_label_silhouette": float(silhouette_n.mean()),
        "raw_batch_silhouette": float(np.mean([s.mean() for s in within])),
    }
    scores["raw_clisi"] = n_labels - scores["clisi"] * (n_labels - 1)
    batch, bio = (float(np.mean([scores[name] for name in names])) for names in (BATCH_SCORES, BIO_SCORES))
    with_pcr = float(np.mean([scores[name] for name in (*BATCH_SCORES, "pcr_comparison")]))
    values = {"batch": batch, "bio": bio, "total": 0.4 * batch + 0.6 * bio, "total_with_pcr": 0.4 * with_pcr + 0.6 * bio}
    return IntegrationScores(values | scores, by_label)


def lisi(near: Neighbours, labels: Labels) -> NDArray[np.float32]:
    """Effective number of labels around each cell (Korsunsky et al. 2019), 1 to their number; the cell itself does not count."""
    return np.maximum(_scib().lisi_knn(_as_package(near), labels), 1)  # -1 where all neighbours are equally far


@metric(best=1.0)
def ilisi(near: Neighbours, batches: Labels) -> float:
    """Median LISI of batches, 0 (each by itself) to 1 (mixed evenly)."""
    return float((np.median(lisi(near, batches)) - 1) / (len(np.unique(batches)) - 1))


@metric(best=1.0)
def clisi(near: Neighbours, labels: Labels) -> float:
    """Median LISI of labels, 0 (mixed evenly) to 1 (each by itself)."""
    n_labels = len(np.unique(labels))
    return float((n_labels - np.median(lisi(near, labels))) / (n_labels - 1))


@metric(best=1.0)
def graph_connectivity(near: Neighbours, labels: Labels) -> float:
    """Mean over labels of the share of its cells in the largest piece of its neighbour graph."""
    return float(_scib().graph_connectivity(_as_package(near), labels))


@metric(best=1.0)
def bras(z_nl: Embedding, batches: Labels, labels: Labels) -> float:
    """Silhouette of batches within labels, cosine, against all other batches (Rautenstrauch & Ohler 2025)."""
    return float(_scib().bras(z_nl, labels, batches))


@metric(best=1.0)
def isolated_labels(silhouette_n: NDArray[np.float32], batches: Labels, labels: Labels) -> float:
    """Mean scaled silhouette of the labels that occur in the fewest batches."""
    spread = {label: len(np.unique(batches[labels == label])) for label in np.unique(labels)}
    fewest = [label for label, found in spread.items() if found == min(spread.values())]
    return float(np.mean([(silhouette_n[labels == label].mean() + 1) / 2 for label in fewest]))


@metric(best=1.0)
def nmi(labels: Labels, clusters: Labels) -> float:
    """Normalised mutual information of clusters and labels (arithmetic)."""
    return float(sk.normalized_mutual_info_score(labels, clusters))


@metric(best=1.0)
def ari(labels: Labels, clusters: Labels) -> float:
    """Adjusted Rand index of clusters and labels."""
    return float(sk.adjusted_rand_score(labels, clusters))


@metric(best=1.0)
def pcr_comparison(before_np: Embedding, after_nl: Embedding, batches: Labels) -> float:
    """By which share integration lowered the variance that batches explain; 0 where it raised it, 1 where there was none."""
    regression = _scib().utils.principal_component_regression
    before, after = (float(np.nan_to_num(regression(x, batches, categorical=True))) for x in (before_np, after_nl))
    return max(0.0, (before - after) / before) if before > 0 else float(after <= before)


def silhouettes(z_nl: Embedding, labels: Labels) -> NDArray[np.float32]:
    """Silhouette of each cell, -1 to 1, Euclidean."""
    return _scib().utils.silhouette_samples(z_nl, labels)


def batch_silhouettes(z_nl: Embedding, batches: Labels, labels: Labels) -> dict[str, NDArray[np.float32]]:
    """Silhouette of the batches within each label that has several; about 0 where they are mixed."""
    out = {}
    for label in np.unique(labels):
        own = labels == label
        if 1 < len(np.unique(batches[own])) < own.sum():
            out[str(label)] = silhouettes(z_nl[own], batches[own])
    return out


def kmeans_clusters(z_nl: Embedding, n: int) -> NDArray[np.int32]:
    """As many clusters as there are labels, of scikit-learn's k-means (the package's own differs from run to run)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer distinct cells than clusters
        return KMeans(n, n_init=10, random_state=0).fit_predict(z_nl)


def _scib() -> Any:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the same figures on every machine
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import scib_metrics
        import scib_metrics.utils
    return scib_metrics


def _as_package(near: Neighbours) -> Any:
    from scib_metrics.nearest_neighbors import NeighborsResults

    return NeighborsResults(indices=near.indices_nk, distances=near.distances_nk)
