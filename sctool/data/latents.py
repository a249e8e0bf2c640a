"""Minibatches of latent codes, for models which are trained on what another has encoded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class LatentBatch(NamedTuple):
    """Posteriors of some cells, on the device of the model."""

    mean_nl: Tensor
    sd_nl: Tensor
    codes: Mapping[str, Tensor]
    """Conditions as integer codes of shape (cells,)."""


class LatentStore:
    """Posterior means and standard deviations of a set of cells, shape (cells, latent), with conditions as codes of shape (cells,)."""

    def __init__(
        self,
        mean_nl: NDArray[np.float32],
        sd_nl: NDArray[np.float32],
        codes: Mapping[str, NDArray[np.int64]],
        names: Any,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self._names = names
        self._mean_nl, self._sd_nl = (torch.as_tensor(x_nl).float().to(self.device) for x_nl in (mean_nl, sd_nl))
        self._codes = {key: torch.as_tensor(code_n, dtype=torch.long).to(self.device) for key, code_n in codes.items()}

    def __len__(self) -> int:
        return len(self._mean_nl)

    def names(self, rows: NDArray[np.int64]) -> list[str]:
        """Names of some cells."""
        return [str(self._names[row]) for row in rows]

    def batch(self, rows: NDArray[np.int64]) -> LatentBatch:
        """The cells at ``rows``, repeats allowed."""
        index_n = torch.as_tensor(rows, dtype=torch.long).to(self.device)
        return LatentBatch(self._mean_nl[index_n], self._sd_nl[index_n], {key: code_n[index_n] for key, code_n in self._codes.items()})
