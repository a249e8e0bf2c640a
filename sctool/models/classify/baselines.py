"""What every classifier stands beside: the commonest class, and a vote of the nearest cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from sctool.models.classify.base import Arrays, Classifier, Watch

NEIGHBOURS = 15
COMPONENTS = 30


class Majority(Classifier):
    """The shares of the classes in training, for every cell."""

    name = "majority"
    share_c: NDArray[np.float64]

    def fit(self, x_nf: Any, code_n: NDArray[np.int64], weight_n: NDArray[np.float64], watch: Watch | None = None) -> None:
        """Count; weights are left out, for the commonest class is the point."""
        count_c = np.bincount(code_n)
        self.share_c, self.n_classes = count_c / count_c.sum(), len(count_c)

    def logits(self, x_nf: Any) -> NDArray[np.float64]:
        """The same row for all cells."""
        return np.tile(np.log(self.share_c), (x_nf.shape[0], 1))

    def arrays(self) -> Arrays:
        """The shares."""
        return {"share_c": self.share_c}

    def restore(self, arrays: Arrays) -> None:
        """The shares."""
        self.share_c, self.n_classes = arrays["share_c"], len(arrays["share_c"])


class Neighbours(Classifier):
    """The vote of the 15 nearest training cells on 30 principal components."""

    name = "knn"
    kept: Arrays

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def fit(self, x_nf: Any, code_n: NDArray[np.int64], weight_n: NDArray[np.float64], watch: Watch | None = None) -> None:
        """Find the components of the training cells and keep where each is on them."""
        from sklearn.decomposition import PCA

        n = min(COMPONENTS, x_nf.shape[1] - 1, x_nf.shape[0] - 1)
        if n < 2:  # a feature or two are their own components
            mean_f, components_lf = np.zeros(x_nf.shape[1]), np.eye(x_nf.shape[1])
        else:
            solver = "arpack" if sp.issparse(x_nf) else "full"
            pca = PCA(n, svd_solver=solver, random_state=self.seed).fit(x_nf.astype(np.float64))
            mean_f, components_lf = pca.mean_, pca.components_
        self.n_classes = int(code_n.max()) + 1
        self.kept = {"mean_f": mean_f, "components_lf": components_lf, "code_n": code_n.astype(np.int32)}
        self.kept["z_nl"] = self._place(x_nf)
        self._index()

    def logits(self, x_nf: Any) -> NDArray[np.float64]:
        """Logarithms of the shares of the votes, with half a vote spread over all classes."""
        near = self._nearest.kneighbors(self._place(x_nf), return_distance=False)
        votes_nc = np.zeros((x_nf.shape[0], self.n_classes))
        rows = np.repeat(np.arange(len(near)), near.shape[1])
        np.add.at(votes_nc, (rows, self.kept["code_n"][near].ravel()), 1.0)
        return np.log((votes_nc + 0.5 / self.n_classes) / (near.shape[1] + 0.5))

    def _place(self, x_nf: Any) -> NDArray[np.float32]:
        centre_l = self.kept["mean_f"] @ self.kept["components_lf"].T
        return np.asarray(np.asarray(x_nf @ self.kept["components_lf"].T) - centre_l, np.float32)

    def _index(self) -> None:
        from sklearn.neighbors import NearestNeighbors

        self._nearest = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(self.kept["z_nl"]))).fit(self.kept["z_nl"])

    def arrays(self) -> Arrays:
        """The components and the training cells on them."""
        return {**self.kept, "n_classes": np.array([self.n_classes])}

    def restore(self, arrays: Arrays) -> None:
        """The components and the training cells on them."""
        self.kept = {name: array for name, array in arrays.items() if name != "n_classes"}
        self.n_classes = int(arrays["n_classes"][0])
        self._index()
