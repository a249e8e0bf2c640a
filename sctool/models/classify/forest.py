"""Random forests, grown by scikit-learn and kept as arrays: no pickle, and no version of scikit-learn is needed to read them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sctool.models.classify.base import Arrays, Classifier, Watch, dense

_ROWS = 2048
_LEAST = 1e-3
"""Probability that no tree's vote can take away, so that logarithms stay finite."""


class Forest(Classifier):
    """A random forest (Breiman 2001) whose trees give class shares of their leaves.

    Parameters
    ----------
    settings
        Of scikit-learn's RandomForestClassifier: ``n_estimators``, ``max_features``, ``min_samples_leaf``.
    """

    name = "rf"
    trees: Arrays
    """``feature, threshold, left, right`` of all nodes of all trees in one row (a leaf's feature is -1), ``share`` of the classes in
    each, shape (nodes, classes), and ``start``, the root of each tree."""

    def __init__(self, settings: dict[str, Any], seed: int = 0, threads: int | None = None) -> None:
        self.settings, self.seed, self.threads = settings, seed, threads

    def fit(self, x_nf: Any, code_n: NDArray[np.int64], weight_n: NDArray[np.float64], watch: Watch | None = None) -> None:
        """Grow the trees."""
        from sklearn.ensemble import RandomForestClassifier

        forest = RandomForestClassifier(**self.settings, random_state=self.seed, n_jobs=self.threads or -1)
        forest.fit(x_nf, code_n, sample_weight=weight_n)
        self.n_classes = len(forest.classes_)
        trees = [estimator.tree_ for estimator in forest.estimators_]
        sizes = np.array([tree.node_count for tree in trees])
        start = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        shares = [tree.value[:, 0] / tree.value[:, 0].sum(1, keepdims=True) for tree in trees]
        self.trees = {
            "feature": np.concatenate([np.where(tree.children_left < 0, -1, tree.feature) for tree in trees]).astype(np.int32),
            "threshold": np.concatenate([tree.threshold for tree in trees]),
            "left": np.concatenate([tree.children_left + first for tree, first in zip(trees, start, strict=True)]).astype(np.int32),
            "right": np.concatenate([tree.children_right + first for tree, first in zip(trees, start, strict=True)]).astype(np.int32),
            "share": np.concatenate(shares).astype(np.float32),
            "start": start.astype(np.int64),
            "gain": forest.feature_importances_,
        }

    def logits(self, x_nf: Any) -> NDArray[np.float64]:
        """Logarithms of the mean class shares of the leaves a cell falls into."""
        parts = [self._shares(dense(x_nf[start : start + _ROWS])) for start in range(0, x_nf.shape[0], _ROWS)]
        p_nc = np.concatenate(parts) if parts else np.empty((0, self.n_classes))
        return np.log((p_nc + _LEAST) / (1 + _LEAST * self.n_classes))

    def _shares(self, x_nf: NDArray[np.float32]) -> NDArray[np.float64]:
        trees, total_nc = self.trees, np.zeros((len(x_nf), self.n_classes))
        feature, threshold, left, right = (trees[name] for name in ("feature", "threshold", "left", "right"))
        for root in trees["start"]:
            node_n = np.full(len(x_nf), root)
            going = np.arange(len(x_nf))
            while len(going := going[feature[node_n[going]] >= 0]):
                node = node_n[going]
                node_n[going] = np.where(x_nf[going, feature[node]] <= threshold[node], left[node], right[node])
            total_nc += trees["share"][node_n]
        return total_nc / len(trees["start"])

    def arrays(self) -> Arrays:
        """The trees."""
        return dict(self.trees)

    def restore(self, arrays: Arrays) -> None:
        """The trees."""
        self.trees = dict(arrays)
        self.n_classes = arrays["share"].shape[1]

    def importance(self) -> NDArray[np.float64]:
        """Mean decrease of impurity, the same for all classes."""
        return np.tile(self.trees["gain"], (self.n_classes, 1))
