"""Zero-shot classification: does the latent space of a trained model separate types it was never told of?

Half of the cells are the reference of a k-nearest-neighbour vote, the other half is predicted; repeated over split seeds
(spec of the AR study; there one split, here several, with the posterior mean).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier

from sctool.bench.paired import Paired, paired_difference
from sctool.metrics.classification import SCORES, classification_scores, per_class_scores
from sctool.metrics.reconstruction import log1p_cp10k

BASELINES = ("majority", "pca", "log expression")


@dataclass(frozen=True)
class Contestant:
    """An embedding of the evaluated cells; ``arm`` and ``seed`` say how its model was trained."""

    name: str
    arm: str
    seed: int
    z_nl: NDArray[np.float32]


@dataclass(frozen=True)
class ZeroShot:
    """Tables of an evaluation."""

    scores: pd.DataFrame
    """One row per contestant or baseline and split: ``name, arm, seed, split``, and the scores."""
    per_type: pd.DataFrame
    """One row per contestant or baseline and type, mean over splits: ``name, arm, seed, label, cells, precision, recall, f1``."""
    predictions: pd.DataFrame
    """``cell, split, label``, and a column of predictions per contestant."""


def zero_shot(
    contestants: list[Contestant],
    counts_ng: NDArray[np.float32],
    labels: NDArray[np.str_],
    cells: NDArray[np.str_],
    *,
    splits: int = 5,
    neighbors: int = 5,
    components: int = 10,
) -> ZeroShot:
    """Score embeddings and the baselines that need no model.

    Parameters
    ----------
    contestants
        Embeddings of the same cells.
    counts_ng
        Counts for the baselines (PCA of log1p CP10k, fitted on the reference half; and all genes of it), shape (cells, genes).
    labels, cells
        Type and name of each cell.
    splits, neighbors
        How many random halves; neighbours in the vote.
    components
        Of the PCA.
    """
    log_ng = log1p_cp10k(counts_ng).astype(np.float32)
    scores, per_type, predictions = [], [], []
    for split in range(splits):
        reference, query = train_test_split(np.arange(len(labels)), train_size=0.5, test_size=0.5, random_state=split)
        pca = PCA(min(components, len(reference) - 1, log_ng.shape[1]), random_state=0).fit(log_ng[reference])
        spaces = [(c.name, c.arm, c.seed, c.z_nl) for c in contestants]
        spaces += [("pca", "baseline", -1, pca.transform(log_ng)), ("log expression", "baseline", -1, log_ng)]
        predicted = {name: _vote(z_nl, labels, reference, query, neighbors) for name, _, _, z_nl in spaces}
        common, count = np.unique(labels[reference], return_counts=True)
        predicted["majority"] = np.full(len(query), common[count.argmax()])
        for name, arm, seed in [(n, a, s) for n, a, s, _ in spaces] + [("majority", "baseline", -1)]:
            truth = labels[query]
            scores.append({"name": name, "arm": arm, "seed": seed, "split": split, **classification_scores(truth, predicted[name])})
            per_type.append(per_class_scores(truth, predicted[name]).assign(name=name, arm=arm, seed=seed))
        part = pd.DataFrame({"cell": cells[query], "split": split, "label": labels[query]})
        predictions.append(part.assign(**{c.name: predicted[c.name] for c in contestants}))
    by_type = pd.concat(per_type).groupby(["name", "arm", "seed", "label"], sort=False, as_index=False).mean()
    by_type["cells"] = by_type["label"].map(pd.Series(labels).value_counts())
    return ZeroShot(pd.DataFrame(scores), by_type, pd.concat(predictions, ignore_index=True))


def _vote(
    z_nl: NDArray[np.float32], labels: NDArray[np.str_], reference: NDArray[np.int64], query: NDArray[np.int64], neighbors: int
) -> NDArray[np.str_]:
    knn = KNeighborsClassifier(min(neighbors, len(reference))).fit(z_nl[reference], labels[reference])
    return knn.predict(z_nl[query])


def paired_arms(scores: pd.DataFrame, values: tuple[str, ...] = SCORES) -> dict[str, dict[str, Paired]]:
    """Each other arm against ``standard``, paired over training seeds, by score; empty where no seed has both.

    Parameters
    ----------
    scores
        With columns ``arm, seed`` and the values; rows of one arm and seed are averaged first.
    """
    table = scores[scores["arm"] != "baseline"].groupby(["arm", "seed"])[list(values)].mean()
    arms = [arm for arm in table.index.unique("arm") if arm != "standard"]
    if "standard" not in table.index.unique("arm"):
        return {}
    out = {}
    for arm in arms:
        shared = table.loc[arm].index.intersection(table.loc["standard"].index)
        if len(shared):
            pair = table.loc[arm].loc[shared], table.loc["standard"].loc[shared]
            out[arm] = {value: paired_difference(pair[0][value], pair[1][value]) for value in values}
    return out
