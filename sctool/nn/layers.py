"""Layers shared by two or more models."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CodedLinear(nn.Module):
    """``x W + b + C[code]``: a linear layer with one learned offset per category of each covariate.

    The same as feeding one-hot covariates, without making them. The last code of a covariate, ``n_categories``, stands for "unknown"
    and gets the mean offset of the known ones, so that a query from a new batch is decoded as an average batch.

    Parameters
    ----------
    n_in, n_out
        Features in and out.
    n_categories
        Categories of each covariate, in the order of the codes passed to ``forward``.
    """

    def __init__(self, n_in: int, n_out: int, n_categories: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.linear = nn.Linear(n_in, n_out)
        self.offsets = nn.ParameterList(nn.Parameter(torch.zeros(n, n_out)) for n in n_categories if n > 1)
        self._used = [i for i, n in enumerate(n_categories) if n > 1]

    def forward(self, x_ni: Tensor, *codes: Tensor) -> Tensor:
        """Shape (cells, n_in) to (cells, n_out)."""
        h_no = self.linear(x_ni)
        return h_no + self.offset(*codes) if self._used else h_no

    def offset(self, *codes: Tensor) -> Tensor:
        """What the covariates add, shape (cells, n_out); zeros of shape (n_out,) without covariates."""
        total = self.linear.bias.new_zeros(len(self.linear.bias))
        for offset_co, i in zip(self.offsets, self._used, strict=True):
            total = total + torch.cat([offset_co, offset_co.mean(0, keepdim=True)])[codes[i]]
        return total


class MLP(nn.Module):
    """Blocks of linear, norm, ReLU, dropout: the fully connected layers of scVI and scGen.

    Covariates enter every block; a ``slope`` above 0 makes the ReLU leaky. The norm is ``batch`` (eps 1e-3, momentum 0.01), or
    ``layer``, which keeps no statistics of the cells it was trained on.
    """

    def __init__(
        self,
        n_in: int,
        n_hidden: int,
        n_layers: int,
        dropout: float,
        n_categories: tuple[int, ...] = (),
        slope: float = 0.0,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        sizes = [n_in] + [n_hidden] * (n_layers - 1)
        self.linears = nn.ModuleList(CodedLinear(size, n_hidden, n_categories) for size in sizes)
        self.norms = nn.ModuleList(
            nn.LayerNorm(n_hidden) if norm == "layer" else nn.BatchNorm1d(n_hidden, eps=1e-3, momentum=0.01) for _ in sizes
        )
        self.activation = nn.LeakyReLU(slope) if slope else nn.ReLU()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_ni: Tensor, *codes: Tensor) -> Tensor:
        """Shape (cells, n_in) to (cells, n_hidden)."""
        for linear, norm in zip(self.linears, self.norms, strict=True):
            x_ni = self.dropout(self.activation(norm(linear(x_ni, *codes))))
        return x_ni


class NormalEncoder(nn.Module):
    """An MLP with two heads: posterior mean, and variance ``exp(.) + 1e-4``, both of shape (cells, latent)."""

    def __init__(
        self,
        n_in: int,
        n_hidden: int,
        n_latent: int,
        n_layers: int,
        dropout: float,
        n_categories: tuple[int, ...] = (),
        slope: float = 0.0,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        self.body = MLP(n_in, n_hidden, n_layers, dropout, n_categories, slope, norm)
        self.mean = nn.Linear(n_hidden, n_latent)
        self.log_variance = nn.Linear(n_hidden, n_latent)

    def forward(self, x_ni: Tensor, *codes: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance."""
        h_nh = self.body(x_ni, *codes)
        return self.mean(h_nh), self.log_variance(h_nh).float().exp() + 1e-4
