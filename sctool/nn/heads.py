"""Networks on top of a sample's vector: a residual body and small heads for what is predicted, and their losses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sctool.errors import SctoolError

Norm = Literal["layer", "batch", "none"]


class ResidualMLP(nn.Module):
    """``h_0 = relu(A x)``, ``h_i = h_(i-1) + relu(norm(B_i h_(i-1)))``, output ``C h_(L-1)``.

    Parameters
    ----------
    n_in, n_hidden, n_out
        Features in, of each h, and out.
    n_layers
        L, at least 1: one layer has no residual block.
    norm
        ``layer``; ``batch``, which keeps statistics and is fragile with the 20 or so samples of a batch; or ``none``.
    """

    def __init__(self, n_in: int, n_hidden: int, n_out: int, n_layers: int, norm: Norm = "layer") -> None:
        super().__init__()
        _check_layers(n_layers)
        if norm not in get_args(Norm):
            raise SctoolError(f"no norm is called {norm!r}", hint=f"one of: {', '.join(get_args(Norm))}")
        kinds: dict[str, Callable[[int], nn.Module]] = {"layer": nn.LayerNorm, "batch": nn.BatchNorm1d, "none": nn.Identity}
        self.first = nn.Linear(n_in, n_hidden)
        self.linears = nn.ModuleList(nn.Linear(n_hidden, n_hidden) for _ in range(n_layers - 1))
        self.norms = nn.ModuleList(kinds[norm](n_hidden) for _ in range(n_layers - 1))
        self.last = nn.Linear(n_hidden, n_out)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (..., n_in) to (..., n_out)."""
        return self.last(self.hidden(x))

    def hidden(self, x: Tensor) -> Tensor:
        """``h_(L-1)``, shape (..., n_hidden). Leading axes are merged, so that statistics of a batch norm are over all rows."""
        h_nk = self.first(x.reshape(-1, x.shape[-1])).relu()
        for linear, norm in zip(self.linears, self.norms, strict=True):
            h_nk = h_nk + norm(linear(h_nk)).relu()
        return h_nk.reshape(*x.shape[:-1], -1)


def head(n_in: int, n_hidden: int, n_out: int, n_layers: int, norm: bool = False) -> nn.Sequential:
    """``n_layers`` linear layers with ReLU between them, after a layer norm if ``norm``: logits of classes or batches, or numbers.

    An ordinal head has one output less than there are levels, the logits of P(level > k); see ``ordinal_loss``.
    """
    _check_layers(n_layers)
    sizes = [n_in] + [n_hidden] * (n_layers - 1)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), *([nn.LayerNorm(after)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], n_out))


def _check_layers(n_layers: int) -> None:
    if n_layers < 1:
        raise SctoolError(f"a network of {n_layers} layers", hint="1 or more")


def dann(progress: float, most: float) -> float:
    """Weight of an adversary at ``progress`` (0 to 1) of training: rises from 0, ``most * (2 / (1 + exp(-10 progress)) - 1)``."""
    return most * (2 / (1 + math.exp(-10 * progress)) - 1)


def class_loss(logits_sc: Tensor, code_s: Tensor, weight_c: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy in nats over samples with a label; 0 without any. Codes that are NaN or negative are missing."""
    known_s = code_s >= 0  # False for NaN
    if not bool(known_s.any()):
        return logits_sc.sum() * 0
    return F.cross_entropy(logits_sc[known_s], code_s[known_s].long(), weight_c, label_smoothing=smoothing)


def squared_loss(value_s: Tensor, truth_s: Tensor) -> Tensor:
    """Mean squared error over samples with a truth; 0 without any. NaN is missing."""
    value_s, known_s = value_s.reshape(-1), ~truth_s.isnan()
    if not bool(known_s.any()):
        return value_s.sum() * 0
    return F.mse_loss(value_s[known_s], truth_s[known_s].to(value_s))


def ordinal_loss(logits_sk: Tensor, level_s: Tensor) -> Tensor:
    """Mean binary cross-entropy of "above level k" over samples and thresholds; 0 without labels.

    Parameters
    ----------
    logits_sk
        Logits of P(level > k), shape (samples, levels - 1).
    level_s
        Level of each sample, 0 to levels - 1; NaN or negative is missing.

    Returns
    -------
    loss
        In nats, a scalar.
    """
    known_s = level_s >= 0
    if not bool(known_s.any()):
        return logits_sk.sum() * 0
    above_sk = level_s[known_s].unsqueeze(1) > torch.arange(logits_sk.shape[1], device=logits_sk.device)
    return F.binary_cross_entropy_with_logits(logits_sk[known_s], above_sk.to(logits_sk))


def decode_ordinal(probability_sk: Tensor) -> tuple[Tensor, Tensor]:
    """Level and expected rank of each sample from P(level > k), shape (samples, levels - 1).

    The level counts the thresholds passed with more than 0.5, once no threshold is likelier than the one below it. The expected rank is
    the sum of the probabilities as given, a number from 0 to levels - 1.
    """
    return (_falling(probability_sk) > 0.5).sum(1), probability_sk.sum(1)


def ordinal_probabilities(probability_sk: Tensor) -> Tensor:
    """Probability of each level, shape (samples, levels), from P(level > k); made to fall with k first, so that none is negative."""
    above_sk = _falling(probability_sk)
    return torch.cat([above_sk.new_ones((len(above_sk), 1)), above_sk], 1) - F.pad(above_sk, (0, 1))


def _falling(probability_sk: Tensor) -> Tensor:
    return probability_sk.cummin(1).values
