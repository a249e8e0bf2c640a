"""What every detector of novel cells can do: learn known cells, score any, and be stored as plain arrays.

One convention holds for all: a higher score is a stranger cell.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from sctool.models.novelty.cells import Cells

Arrays = dict[str, NDArray[Any]]
Scores = NDArray[np.float64]


class Detector(ABC):
    """A detector of cells that are like none of those it learned.

    Attributes
    ----------
    needs
        What it reads of a cell beside scaled features: ``pcs``, ``latent``, or a classifier by name.
    keeps_cells
        It has no arrays of its own; it is fitted anew, to the same result, on the training cells' representation, which the model keeps.
    """

    needs: frozenset[str] = frozenset()
    keeps_cells: ClassVar[bool] = False

    @abstractmethod
    def fit(self, known: Cells) -> Self:
        """Learn cells of known types; ``known.code_n`` says which is of which."""

    @abstractmethod
    def score(self, cells: Cells) -> Scores:
        """How strange each cell is, whatever the others are; higher is stranger; shape (cells,)."""

    def arrays(self) -> Arrays:
        """All that :meth:`restore` needs."""
        return {}

    def restore(self, arrays: Arrays) -> Self:
        """Become the detector that gave these arrays."""
        for name, array in arrays.items():
            setattr(self, name, array)
        return self
