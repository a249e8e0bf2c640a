"""Two dimensions for the eye."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray


def umap_xy(z_nl: NDArray[Any]) -> NDArray[np.float32]:
    """UMAP with its defaults and a fixed seed, shape (cells, 2)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from umap import UMAP

        return UMAP(n_neighbors=min(15, len(z_nl) - 1), random_state=0, n_jobs=1).fit_transform(z_nl)
