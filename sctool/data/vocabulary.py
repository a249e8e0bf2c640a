"""Categories as integer codes from a stored list, never made anew from a query."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray


@dataclass(frozen=True)
class Vocabulary:
    """The known categories of a covariate, in the order of their codes. The code after the last means "unknown"."""

    categories: tuple[str, ...]

    @classmethod
    def of(cls, values: pd.Series) -> Vocabulary:
        """The categories of a column, sorted."""
        return cls(tuple(sorted(values.astype(str).unique())))

    def __len__(self) -> int:
        return len(self.categories)

    def codes(self, values: pd.Series) -> NDArray[np.int64]:
        """Codes of shape (cells,); categories not in the list become ``len(self)``."""
        codes_n = pd.Categorical(values.astype(str), categories=list(self.categories)).codes.astype(np.int64)
        return np.where(codes_n < 0, len(self), codes_n)
