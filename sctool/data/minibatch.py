"""Sparse minibatches from a CSR matrix in memory, memory-mapped, or on the accelerator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Minibatch(NamedTuple):
    """Some cells as the non-zero entries of their counts (``e`` indexes entries), on the device of the model."""

    row_e: Tensor
    col_e: Tensor
    value_e: Tensor
    flat_e: Tensor
    """Position of each entry in the flattened (cells x genes) matrix."""
    n_cells: int
    n_genes: int
    depth_n1: Tensor
    codes: Mapping[str, Tensor]
    """Covariates as integer codes of shape (cells,) from the stored vocabulary."""

    def dense(self, value_e: Tensor | None = None) -> Tensor:
        """Matrix of shape (cells, genes) holding ``value_e`` (default: the counts) at the entries and 0 elsewhere."""
        value_e = self.value_e if value_e is None else value_e
        x_ng = value_e.new_zeros(self.n_cells, self.n_genes)
        x_ng.view(-1).scatter_(0, self.flat_e, value_e)
        return x_ng


class CellStore:
    """Counts and covariate codes of a set of cells, from which any rows can be fetched at once.

    Parameters
    ----------
    counts
        SciPy CSR of shape (cells, genes); its arrays may be memory maps.
    codes
        Integer codes of shape (cells,) by covariate.
    names
        Cell names by row (a sequence or a pandas index), for messages.
    genes
        Columns to keep, in this order, applied at every fetch; -1 gives a gene of zeros. None keeps all.
    totals
        Counts of each cell over all genes of the experiment, shape (cells,); what is not of the genes kept is then one more gene, the last.
    device
        Where minibatches are made. On an accelerator the whole matrix is moved there if it fits into half the free memory.
    """

    def __init__(
        self,
        counts: Any,
        codes: Mapping[str, NDArray[np.int64]],
        names: Any,
        genes: NDArray[np.int64] | None = None,
        device: torch.device | str = "cpu",
        totals: NDArray[np.floating] | None = None,
    ) -> None:
        self.device = torch.device(device)
        self._names = names
        arrays = (_tensor(counts.indptr).long(), _tensor(counts.indices), _tensor(counts.data))
        home = self.device if _fits(arrays, self.device) else torch.device("cpu")
        self._indptr, self._indices, self._data = (array.to(home) for array in arrays)
        self._codes = {key: torch.as_tensor(code_n, dtype=torch.long).to(home) for key, code_n in codes.items()}
        self._column = None
        self.n_genes = counts.shape[1]
        if genes is not None:
            self.n_genes = len(genes)
            found = np.flatnonzero(genes >= 0)
            column = np.full(counts.shape[1], -1)
            column[genes[found]] = found
            self._column = torch.as_tensor(column).to(home)
        self._totals = None if totals is None else torch.as_tensor(totals, dtype=torch.float32).to(home)
        self.n_genes += self._totals is not None

    def __len__(self) -> int:
        return len(self._indptr) - 1

    def names(self, rows: NDArray[np.int64]) -> list[str]:
        """Names of some cells."""
        return [str(self._names[row]) for row in rows]

    def codes(self, key: str) -> NDArray[np.int64]:
        """Codes of all cells."""
        return self._codes[key].cpu().numpy()

    def batch(self, rows: NDArray[np.int64]) -> Minibatch:
        """The cells at ``rows``, repeats allowed, as one minibatch on the device."""
        home = self._indptr.device
        index_n = torch.as_tensor(rows, dtype=torch.long).to(home)
        start_n = self._indptr[index_n]
        length_n = self._indptr[index_n + 1] - start_n
        offset_n = length_n.cumsum(0) - length_n
        row_e = torch.repeat_interleave(length_n)
        at_e = (start_n - offset_n).index_select(0, row_e).add_(torch.arange(len(row_e), device=home))
        col_e, value_e = self._indices.index_select(0, at_e).long(), self._data.index_select(0, at_e).float()
        if self._column is not None:
            col_e = self._column.index_select(0, col_e)
            keep = (col_e >= 0).nonzero().squeeze(1)
            row_e, col_e, value_e = (array.index_select(0, keep) for array in (row_e, col_e, value_e))
        n = len(index_n)
        if self._totals is not None:
            own_n = value_e.new_zeros(n).scatter_add_(0, row_e, value_e)
            row_e = torch.cat([row_e, torch.arange(n, device=home)])
            col_e = torch.cat([col_e, col_e.new_full((n,), self.n_genes - 1)])
            value_e = torch.cat([value_e, (self._totals[index_n] - own_n).clamp_min_(0)])
        depth_n1 = value_e.new_zeros(n).scatter_add_(0, row_e, value_e).unsqueeze(1)
        codes = {key: code_n[index_n] for key, code_n in self._codes.items()}
        batch = Minibatch(row_e, col_e, value_e, row_e * self.n_genes + col_e, n, self.n_genes, depth_n1, codes)
        return batch if home == self.device else _move(batch, self.device)


def _tensor(array: NDArray[Any]) -> Tensor:
    if not array.flags.writeable:  # a read-only memory map; nothing here writes to it, so torch's warning does not apply
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return torch.from_numpy(array)
    return torch.from_numpy(array)


def _fits(arrays: Sequence[Tensor], device: torch.device) -> bool:
    if device.type != "cuda":
        return device.type == "cpu"
    free, _ = torch.cuda.mem_get_info(device)
    return sum(array.numel() * array.element_size() for array in arrays) < free / 2


def _move(batch: Minibatch, device: torch.device) -> Minibatch:
    moved: dict[str, Any] = {name: value.to(device) for name, value in batch._asdict().items() if isinstance(value, Tensor)}
    return batch._replace(**moved, codes={key: code_n.to(device) for key, code_n in batch.codes.items()})
