"""Attention pooling: cells to one vector per sample and head, a weighted mean of the cells' features.

The weights are a softmax over the valid cells of a sample of scores that look at one cell at a time. So padding changes nothing, the
number of cells does not scale the result, and any number of cells can be pooled block by block (``Streamed``) with the same result.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sctool.errors import SctoolError
from sctool.nn.heads import Norm, ResidualMLP

Activation = Literal["softmax", "sigmoid", "relu"]


def gumbel_noise(scores_soh: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard Gumbel draws of the shape of ``scores_soh``, made on the CPU so that a seed means the same on every device."""
    tiny = torch.finfo(scores_soh.dtype).tiny
    draws_soh = torch.rand(scores_soh.shape, dtype=scores_soh.dtype, generator=generator)
    return -(-draws_soh.clamp_min(tiny).log()).clamp_min(tiny).log().to(scores_soh.device)


def attention_weights(
    scores_soh: Tensor,
    mask_so: Tensor | None = None,
    activation: Activation = "softmax",
    noise_soh: Tensor | None = None,
    tau: float = 1.0,
    prune: float | None = None,
) -> Tensor:
    """Weight of each cell in its sample for each head.

    Parameters
    ----------
    scores_soh
        Scores, shape (samples, cells, heads).
    mask_so
        False for padding, which gets weight 0; None where all cells are real.
    activation
        ``softmax`` over the cells of a sample (weights sum to 1), or ``sigmoid`` or ``relu`` of each score.
    noise_soh
        Added to the scores of a softmax.
    tau
        Temperature of the softmax: lower sharpens.
    prune
        Weights of at most this become 0, without a new normalisation.

    Returns
    -------
    w_soh
        Non-negative weights; 0 for all cells of a sample without valid cells.
    """
    if activation not in get_args(Activation):
        raise SctoolError(f"no activation is called {activation!r}", hint=f"one of: {', '.join(get_args(Activation))}")
    if activation == "softmax":
        scores_soh = (scores_soh if noise_soh is None else scores_soh + noise_soh) / tau
        if mask_so is not None:
            scores_soh = scores_soh.masked_fill(~mask_so.unsqueeze(2), -torch.inf)
        w_soh = scores_soh.softmax(1)  # NaN where no cell is valid
    else:
        w_soh = scores_soh.sigmoid() if activation == "sigmoid" else scores_soh.relu()
    if mask_so is not None:
        w_soh = w_soh.masked_fill(~mask_so.unsqueeze(2), 0)
    return w_soh if prune is None else w_soh * (w_soh > prune)


def pool(x_sof: Tensor, w_soh: Tensor) -> Tensor:
    """Weighted sum of cells for each head, shape (samples, heads, features): with the weights of a softmax, the weighted mean."""
    return w_soh.transpose(1, 2) @ x_sof


def diversity(w_soh: Tensor) -> Tensor:
    """Mean absolute cosine of the weights of different heads, averaged over samples: 0 where heads look at different cells, 1 at the same.

    The mean is over the H (H - 1) pairs of different heads; published code divides by H^2, which is this times (H - 1) / H. One head
    gives 0.
    """
    n_heads = w_soh.shape[2]
    if n_heads == 1:
        return w_soh.new_zeros(())
    unit_soh = F.normalize(w_soh, dim=1)
    cosine_shh = unit_soh.transpose(1, 2) @ unit_soh
    own_hh = torch.eye(n_heads, dtype=torch.bool, device=w_soh.device)
    return cosine_shh.abs().masked_fill(own_hh, 0).sum((1, 2)).mean() / (n_heads * (n_heads - 1))


def ess(w_soh: Tensor) -> Tensor:
    """Effective number of cells, ``(sum w)^2 / sum w^2``, shape (samples, heads): 1 where one cell decides, all where weights are even."""
    squared_sh = w_soh.square().sum(1)
    return w_soh.sum(1).square() / squared_sh.clamp_min(torch.finfo(w_soh.dtype).tiny)


class AttentionPooling(nn.Module):
    """Scores each cell with a network, and pools the cells of a sample with the softmax of the scores.

    Parameters
    ----------
    n_features
        F, features of a cell.
    n_heads
        H, pooled vectors of a sample.
    n_hidden, n_layers, norm
        Of the score network, a ``ResidualMLP``; with one layer it is linear. Statistics of a ``batch`` norm are of valid cells only;
        ``layer`` looks at one cell at a time, also in training.
    gumbel
        Add Gumbel noise to the scores, in training mode only.
    """

    def __init__(
        self, n_features: int, n_heads: int, n_hidden: int = 32, n_layers: int = 2, norm: Norm = "layer", gumbel: bool = False
    ) -> None:
        super().__init__()
        self.n_features, self.n_heads, self.norm, self.gumbel = n_features, n_heads, norm, gumbel
        self.score: nn.Module = (
            nn.Linear(n_features, n_heads) if n_layers == 1 else ResidualMLP(n_features, n_hidden, n_heads, n_layers, norm)
        )

    def forward(
        self, x_sof: Tensor, mask_so: Tensor | None = None, tau: float | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Pool the cells of each sample.

        Parameters
        ----------
        x_sof
            Cells, shape (samples, cells, features).
        mask_so
            False for padding; None where all cells are real.
        tau
            Temperature of the softmax, 1 if None.
        generator
            Of the noise; None takes torch's own.

        Returns
        -------
        pooled_shf, w_soh
            The pooled vectors and the weight of each cell.
        """
        if mask_so is not None and not bool(mask_so.any(1).all()):
            empty = int((~mask_so.any(1)).sum())
            raise SctoolError(f"{empty} of {len(mask_so)} samples have no cell to pool", hint="leave out samples without cells")
        scores_soh = self.scores(x_sof, mask_so)
        noise_soh = gumbel_noise(scores_soh, generator) if self.gumbel and self.training else None
        w_soh = attention_weights(scores_soh, mask_so, noise_soh=noise_soh, tau=1.0 if tau is None else tau)
        return pool(x_sof, w_soh), w_soh

    def scores(self, x_sof: Tensor, mask_so: Tensor | None = None) -> Tensor:
        """Score of each cell, shape (..., H) for cells of shape (..., F); 0 for padding under a ``batch`` norm."""
        if mask_so is None or self.norm != "batch":
            return self.score(x_sof)
        scores_soh = x_sof.new_zeros((*x_sof.shape[:-1], self.n_heads))
        return scores_soh.masked_scatter(mask_so.unsqueeze(-1), self.score(x_sof[mask_so]))


class Streamed:
    """Attention pooling of any number of cells, block by block in any order, in float64.

    Parameters
    ----------
    n_samples, n_heads, n_features
        S, H and F of the result.
    device
        Where the sums are kept.
    """

    def __init__(self, n_samples: int, n_heads: int, n_features: int, device: torch.device | str = "cpu") -> None:
        self._most_sh = torch.full((n_samples, n_heads), -torch.inf, dtype=torch.float64, device=device)
        self._sum_sh = torch.zeros_like(self._most_sh)
        self._squares_sh = torch.zeros_like(self._most_sh)
        self._weighted_shf = torch.zeros((n_samples, n_heads, n_features), dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, scores_nh: Tensor, x_nf: Tensor, sample_n: Tensor) -> None:
        """Take in a block of cells: their scores (already divided by tau), features, and samples as codes; those of -1 are left out."""
        device = self._most_sh.device
        sample_n = torch.as_tensor(sample_n, device=device).long()
        known_n = sample_n >= 0
        scores_nh, x_nf = torch.as_tensor(scores_nh, device=device).double(), torch.as_tensor(x_nf, device=device).double()
        if not bool(known_n.all()):
            scores_nh, x_nf, sample_n = scores_nh[known_n], x_nf[known_n], sample_n[known_n]
        if not len(sample_n):
            return
        index_nh = sample_n[:, None].expand_as(scores_nh)
        most_sh = self._most_sh.scatter_reduce(0, index_nh, scores_nh, "amax")
        rescale_sh = (self._most_sh - most_sh.nan_to_num(neginf=0)).exp()  # 0 for samples met for the first time
        e_nh = (scores_nh - most_sh[sample_n]).exp()
        self._most_sh = most_sh
        self._sum_sh.mul_(rescale_sh).scatter_add_(0, index_nh, e_nh)
        self._squares_sh.mul_(rescale_sh.square()).scatter_add_(0, index_nh, e_nh.square())
        self._weighted_shf.mul_(rescale_sh.unsqueeze(2))
        index_nf = sample_n[:, None].expand_as(x_nf)
        for h in range(e_nh.shape[1]):  # over heads, so that memory does not grow with them
            self._weighted_shf[:, h].scatter_add_(0, index_nf, e_nh[:, h, None] * x_nf)

    @property
    def pooled_shf(self) -> Tensor:
        """Weighted means, float64; NaN for samples without cells."""
        return self._weighted_shf / self._sum_sh.unsqueeze(2)

    @property
    def log_normaliser_sh(self) -> Tensor:
        """Log of the sum of exp(score); -inf for samples without cells."""
        return self._most_sh + self._sum_sh.log()

    @property
    def ess_sh(self) -> Tensor:
        """Effective number of cells of each sample and head; NaN for samples without cells."""
        return self._sum_sh.square() / self._squares_sh

    @torch.no_grad()
    def weights(self, scores_nh: Tensor, sample_n: Tensor) -> Tensor:
        """Weights of cells in a second pass, float64 of shape (n, H); they sum to 1 over a sample; 0 for cells of sample -1."""
        device = self._most_sh.device
        sample_n = torch.as_tensor(sample_n, device=device).long()
        scores_nh = torch.as_tensor(scores_nh, device=device).double()
        w_nh = (scores_nh - self.log_normaliser_sh[sample_n.clamp_min(0)]).exp()
        return w_nh.masked_fill((sample_n < 0).unsqueeze(1), 0)
