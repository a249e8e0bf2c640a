"""A network of two hidden layers that sorts cells into types; what the engine trains for ``mlp``."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from sctool.data.minibatch import Minibatch
from sctool.models.base import Terms


class CellNetwork(nn.Module):
    """Features, dropout, two blocks of linear, batch norm, ReLU and dropout, then a logit for each type.

    Parameters
    ----------
    n_features, n_classes
        Sizes in and out.
    hidden
        Units of each hidden layer.
    dropout
        In the hidden layers. Much of it: a few thousand cells are few, and what holds in one batch only must not be learned.
    weight_c
        Weight of each type in the cross-entropy.
    """

    weight_c: Tensor

    def __init__(
        self, n_features: int, n_classes: int, hidden: tuple[int, ...] = (256, 128), dropout: float = 0.5, weight_c: Tensor | None = None
    ):
        super().__init__()
        sizes = [n_features, *hidden]
        blocks = [nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU(), nn.Dropout(dropout)) for a, b in pairwise(sizes)]
        self.body = nn.Sequential(*blocks)
        self.head = nn.Linear(sizes[-1], n_classes)
        self.register_buffer("weight_c", torch.ones(n_classes) if weight_c is None else weight_c)

    def embed(self, batch: Minibatch) -> Tensor:
        """The last hidden layer, shape (cells, units)."""
        return self.body(batch.dense())

    def logits(self, batch: Minibatch) -> Tensor:
        """Shape (cells, types)."""
        return self.head(self.embed(batch))

    def loss(self, batch: Minibatch, anneal: float = 1.0) -> Terms:
        """Weighted cross-entropy; nothing in it is annealed."""
        hidden_nh = self.embed(batch)
        logits_nc, code_n = self.head(hidden_nh), batch.codes["label"]
        loss = nn.functional.cross_entropy(logits_nc, code_n, weight=self.weight_c)
        right = (logits_nc.argmax(1) == code_n).float().mean()
        return Terms(loss, {"accuracy": right.detach()}, hidden_nh.detach())
