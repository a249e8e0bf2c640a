"""What the engine asks of a model: a loss, and the capabilities it has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from sctool.data.minibatch import Minibatch


class Terms(NamedTuple):
    """The loss of a minibatch."""

    loss: Tensor
    """Mean over cells, a scalar to minimise."""
    parts: Mapping[str, Tensor]
    """Its terms, scalars for the history."""
    embedding_nl: Tensor
    """Posterior means of the cells, detached; for ``--ar-refresh online``."""


class Embeds(Protocol):
    """A model that gives each cell a point in a latent space, which is all that adaptive resampling needs."""

    def embed(self, batch: Minibatch) -> Tensor:
        """Posterior means of shape (cells, latent)."""


class Trainable(Embeds, Protocol):
    """A torch module the trainer can train."""

    def loss(self, batch: Minibatch, anneal: float = 1.0) -> Terms:
        """Terms of one minibatch; annealed terms (the KL) are multiplied by ``anneal``."""

    def __getattr__(self, name: str) -> Any:
        """The rest of ``torch.nn.Module``."""
