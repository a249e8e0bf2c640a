"""Minibatches of samples: two random views of the cells of each, drawn where the features are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LOG_RATIO_CELLS = 100.0
"""As of so many cells log-ratios of clusters are, whatever the number there is."""


class View(NamedTuple):
    """Some cells of each sample, padded to the same number."""

    x_sof: Tensor
    mask_so: Tensor
    """False where there is only padding."""


class SampleBatch(NamedTuple):
    """Two views of some samples, and what is known of these, on the device of the model."""

    views: View
    """The first views of all samples, then the second, so that one call of a network takes both."""
    targets: Mapping[str, Tensor]
    """By task: code, level or standardised number of each sample, NaN where unknown; shape (samples,)."""
    batch_s: Tensor
    """Code of the batch of each sample, -1 where unknown."""
    same_ss: Tensor
    """Pairs of one donor (or the same sample, drawn twice), which are no negatives of each other."""
    graph_ss: Tensor | None
    """Given similarities of the samples."""


class SampleStore:
    """Features of cells by sample, from which views of any samples are drawn.

    A view takes its cells without replacement where a sample has enough, and with replacement where it has not, so that the number of
    cells of a view says nothing of the sample. Draws come from torch's global generator, which the trainer seeds and saves.

    Parameters
    ----------
    x_nf
        Features of shape (cells, features).
    sample_n
        Code of each cell's sample, -1 for cells of none.
    names
        Of the samples.
    cells_per_view
        A number, or the least and the most, between which each view of each sample draws its own.
    targets, batch_s, donor_s
        Of all samples; donors as codes.
    graph_ss
        Similarities of all samples.
    weight_n
        In proportion to which cells are drawn; None draws uniformly.
    """

    def __init__(
        self,
        x_nf: NDArray[np.float32],
        sample_n: NDArray[np.int64],
        names: Sequence[str],
        cells_per_view: int | Sequence[int],
        targets: Mapping[str, NDArray[np.float64]] | None = None,
        batch_s: NDArray[np.int64] | None = None,
        donor_s: NDArray[np.int64] | None = None,
        graph_ss: NDArray[np.float32] | None = None,
        weight_n: NDArray[np.float64] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self._names = names
        order = np.argsort(sample_n, kind="stable")
        order = order[np.count_nonzero(sample_n < 0) :]
        self._x_nf = torch.as_tensor(x_nf[order]).to(self.device)
        self._n_cells_s = torch.as_tensor(np.bincount(sample_n[order], minlength=len(names))).to(self.device)
        self._start_s = self._n_cells_s.cumsum(0) - self._n_cells_s
        self._weight_n = None if weight_n is None else torch.as_tensor(weight_n[order], dtype=torch.float32).to(self.device)
        self._sizes = (cells_per_view, cells_per_view) if isinstance(cells_per_view, int) else tuple(cells_per_view)
        self._targets = {key: torch.as_tensor(y_s, dtype=torch.float32).to(self.device) for key, y_s in (targets or {}).items()}
        unknown = np.full(len(names), -1)
        self._batch_s = torch.as_tensor(unknown if batch_s is None else batch_s, dtype=torch.long).to(self.device)
        self._donor_s = torch.as_tensor(np.arange(len(names)) if donor_s is None else donor_s, dtype=torch.long).to(self.device)
        self._graph_ss = None if graph_ss is None else torch.as_tensor(graph_ss, dtype=torch.float32).to(self.device)

    def __len__(self) -> int:
        return len(self._names)

    def names(self, rows: NDArray[np.int64]) -> list[str]:
        """Names of some samples."""
        return [str(self._names[row]) for row in rows]

    def batch(self, rows: NDArray[np.int64]) -> SampleBatch:
        """Two views of the samples at ``rows``, repeats allowed."""
        row_s = torch.as_tensor(rows, dtype=torch.long).to(self.device)
        own_s = self._donor_s[row_s]
        same_ss = own_s.unsqueeze(0) == own_s.unsqueeze(1)
        graph_ss = None if self._graph_ss is None else self._graph_ss[row_s][:, row_s]
        targets = {key: y_s[row_s] for key, y_s in self._targets.items()}
        return SampleBatch(self._view(row_s.repeat(2)), targets, self._batch_s[row_s], same_ss, graph_ss)

    def _view(self, row_s: Tensor) -> View:
        low, most = self._sizes
        size_s = torch.randint(low, most + 1, (len(row_s),), device=self.device)
        mask_so = torch.arange(int(size_s.max()), device=self.device) < size_s.unsqueeze(1)
        at_so = self._drawn(row_s, size_s, mask_so.shape[1])
        x_sof = self._x_nf[self._start_s[row_s].unsqueeze(1) + at_so] * mask_so.unsqueeze(2)
        return View(x_sof, mask_so)

    def _drawn(self, row_s: Tensor, size_s: Tensor, width: int) -> Tensor:
        """Positions of drawn cells within each sample, shape (samples, width); beyond a view's size they are of no meaning."""
        n_s = self._n_cells_s[row_s]
        enough_s = n_s >= size_s
        at_so = (torch.rand(len(row_s), width, device=self.device, dtype=torch.float64) * n_s.unsqueeze(1)).long()
        if self._weight_n is not None:
            at_so = self._weighted(row_s, width)
        if enough_s.any():  # the first of a random order, by the smallest of random keys
            n = n_s[enough_s]
            key_sn = torch.rand(len(n), int(n.max()), device=self.device)
            beyond_sn = torch.arange(key_sn.shape[1], device=self.device) >= n.unsqueeze(1)
            if self._weight_n is not None:  # Efraimidis and Spirakis 2006: exponential keys divided by the weights
                index_sn = self._start_s[row_s[enough_s]].unsqueeze(1) + torch.where(
                    beyond_sn, 0, torch.arange(key_sn.shape[1], device=self.device)
                )
                key_sn = -torch.log1p(-key_sn) / self._weight_n[index_sn]
            key_sn = key_sn.masked_fill(beyond_sn, torch.inf)
            k = min(width, key_sn.shape[1])
            at_so[enough_s, :k] = key_sn.topk(k, largest=False, sorted=True).indices
        return at_so.minimum((n_s - 1).unsqueeze(1))

    def _weighted(self, row_s: Tensor, width: int) -> Tensor:
        """With replacement, in proportion to the weights; samples of cells enough are drawn anew by :meth:`_drawn`."""
        assert self._weight_n is not None
        n_s = self._n_cells_s[row_s]
        position_sn = torch.arange(int(n_s.max()), device=self.device)
        inside_sn = position_sn < n_s.unsqueeze(1)
        w_sn = self._weight_n[self._start_s[row_s].unsqueeze(1) + torch.where(inside_sn, position_sn, 0)] * inside_sn
        return torch.multinomial(w_sn, width, replacement=True)


def even_batches(n_samples: int, most: int) -> int:
    """The batch size, at most ``most``, by which an epoch has no small last batch, which would have few negatives."""
    return -(-n_samples // -(-n_samples // most))
