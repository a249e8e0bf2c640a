"""What every classifier can do: learn from scaled features and codes, give logits, and be stored as plain arrays."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
Watch = tuple[Any, NDArray[np.int64]]
"""Features and codes of held-out cells, on which a model that learns in rounds sees when to stop."""


class Classifier(ABC):
    """A classifier of cells into classes 0 to K-1, all of which occur in training.

    Attributes
    ----------
    n_classes
        K, set by :meth:`fit`.
    rounds
        Of boosting, epochs of a network: set by a fit that watched held-out cells, obeyed by one that does not. 0: not learned in rounds.
    """

    name: ClassVar[str]
    n_classes: int = 0
    rounds: int = 0

    @abstractmethod
    def fit(self, x_nf: Any, code_n: NDArray[np.int64], weight_n: NDArray[np.float64], watch: Watch | None = None) -> None:
        """Learn.

        Parameters
        ----------
        x_nf
            Features of shape (cells, features): CSR, or dense for an embedding.
        code_n
            Class of each cell.
        weight_n
            Weight of each cell in the loss; mean 1.
        watch
            Cells to stop by.
        """

    @abstractmethod
    def logits(self, x_nf: Any) -> NDArray[np.float64]:
        """Scores whose softmax are the uncalibrated probabilities, shape (cells, classes)."""

    @abstractmethod
    def arrays(self) -> Arrays:
        """All that :meth:`restore` needs."""

    @abstractmethod
    def restore(self, arrays: Arrays) -> None:
        """Become the model that gave these arrays."""

    def files(self) -> dict[str, bytes]:
        """Further files for people with other tools, by name."""
        return {}

    def importance(self) -> NDArray[np.float64] | None:
        """How much each feature speaks for (above 0) or against each class, shape (classes, features), where that can be said."""
        return None


def dense(x_nf: Any) -> NDArray[np.float32]:
    """Features as a dense array."""
    return x_nf.toarray() if sp.issparse(x_nf) else np.asarray(x_nf, np.float32)
