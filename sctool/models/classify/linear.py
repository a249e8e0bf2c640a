"""Linear classifiers: multinomial logistic regression, and one-against-rest linear support vectors.

The linear SVM is the strongest simple classifier of Abdelaal 2019 (Genome Biol 20:194). Both are strongly regularised: there are more
genes than cells of a rare type, and a gene that tells types apart in one batch only should not decide.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from sctool.models.classify.base import Arrays, Classifier, Watch

DENSE = 0.1
MOST_BYTES = 2**31


class Linear(Classifier):
    """Weights and one intercept for each class."""

    weight_cf: NDArray[np.float64]
    intercept_c: NDArray[np.float64]

    def __init__(self, c: float, seed: int = 0) -> None:
        self.c, self.seed = c, seed

    def logits(self, x_nf: Any) -> NDArray[np.float64]:
        """One product."""
        return np.asarray(x_nf @ self.weight_cf.T, np.float64) + self.intercept_c

    def arrays(self) -> Arrays:
        """Weights and intercepts."""
        return {"weight_cf": self.weight_cf, "intercept_c": self.intercept_c}

    def restore(self, arrays: Arrays) -> None:
        """Weights and intercepts."""
        self.weight_cf, self.intercept_c = arrays["weight_cf"], arrays["intercept_c"]
        self.n_classes = len(self.intercept_c)

    def importance(self) -> NDArray[np.float64]:
        """The weights: features are scaled to unit standard deviation, so they compare."""
        return self.weight_cf - self.weight_cf.mean(0)

    def _take(self, fitted: Any, code_n: NDArray[np.int64]) -> None:
        self.n_classes = int(code_n.max()) + 1
        weight_cf, intercept_c = fitted.coef_, fitted.intercept_
        if self.n_classes == 2:  # scikit-learn keeps the second class only
            weight_cf, intercept_c = np.vstack([-weight_cf, weight_cf]), np.concatenate([-intercept_c, intercept_c])
        self.weight_cf, self.intercept_c = np.asarray(weight_cf, np.float64), np.asarray(intercept_c, np.float64)


class LogisticClassifier(Linear):
    """Multinomial logistic regression with an L2 penalty."""

    name = "lr"

    def fit(self, x_nf: Any, code_n: NDArray[np.int64], weight_n: NDArray[np.float64], watch: Watch | None = None) -> None:
        """By L-BFGS; on dense float32 where few features are zero, which is faster then."""
        model = LogisticRegression(C=self.c, max_iter=500)
        if sp.issparse(x_nf) and x_nf.nnz > DENSE * x_nf.shape[0] * x_nf.shape[1] and 4 * x_nf.shape[0] * x_nf.shape[1] < MOST_BYTES:
            x_nf = x_nf.toarray()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the last steps move no label
            model.fit(x_nf, code_n, sample_weight=weight_n)
        self._take(model, code_n)
        if self.n_classes == 2:  # one logit for two classes: half for each side
            self.weight_cf, self.intercept_c = self.weight_cf / 2, self.intercept_c / 2


class SupportVectors(Linear):
    """Linear support vectors, one class against the rest, squared hinge."""

    name = "svm"

    def fit(self, x_nf: Any, code_n: NDArray[np.int64], weight_n: NDArray[np.float64], watch: Watch | None = None) -> None:
        """By coordinate descent."""
        model = LinearSVC(C=self.c, random_state=self.seed, max_iter=2000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x_nf, code_n, sample_weight=weight_n)
        self._take(model, code_n)
