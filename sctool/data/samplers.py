"""Samplers decide which cells make up the next epoch; the store only fetches them.

All draw from one NumPy generator handed down by the trainer, and keep what they need to resume exactly in ``state``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sctool.data.resampling import weight_summary

Rows = NDArray[np.int64]
Embed = Callable[[Rows], NDArray[np.float32]]
"""Posterior means of shape (rows, latent) in evaluation mode."""


class Sampler(Protocol):
    """What the trainer asks of a sampler."""

    state: dict[str, NDArray[np.floating]]
    """Arrays which, with the generator, determine every later draw; saved and restored by the trainer."""
    watches: bool
    """Whether ``seen`` wants to be told; on an accelerator that costs a transfer at each step."""

    def rows(self, epoch: int, rng: np.random.Generator, embed: Embed) -> Rows:
        """Cells of the next epoch, in order; as many as there are training cells."""

    def seen(self, rows: Rows, z_nl: NDArray[np.float32]) -> None:
        """Told after each step what the model made of the cells it was just trained on."""

    def log(self) -> dict[str, float]:
        """Figures for the history of this epoch."""


class UniformSampler:
    """Every training cell once, in a new order each epoch."""

    watches = False

    def __init__(self, train_rows: Rows) -> None:
        self.train_rows = train_rows
        self.state: dict[str, NDArray[np.floating]] = {}

    def rows(self, epoch: int, rng: np.random.Generator, embed: Embed) -> Rows:
        """A permutation of the training cells."""
        return rng.permutation(self.train_rows)

    def seen(self, rows: Rows, z_nl: NDArray[np.float32]) -> None:
        """Nothing to learn."""

    def log(self) -> dict[str, float]:
        """Nothing to report."""
        return {}


class WeightedSampler(UniformSampler):
    """Training cells with replacement, by weights that stay as they are.

    Parameters
    ----------
    train_rows
        Rows of the store.
    w_n
        Draw probability of each of them.
    draw
        ``multinomial``: independent draws, as published. ``systematic``: each cell floor or ceil of its expected number of times,
        so that uniform weights give every cell exactly once (Kitagawa 1996).
    """

    def __init__(self, train_rows: Rows, w_n: NDArray[np.float64], draw: str = "multinomial") -> None:
        super().__init__(train_rows)
        self.state["weights"] = w_n
        self.draw = draw

    def rows(self, epoch: int, rng: np.random.Generator, embed: Embed) -> Rows:
        """As many draws as there are training cells."""
        w_n = self.state["weights"]
        if self.draw == "multinomial":
            return rng.choice(self.train_rows, size=len(w_n), p=w_n)
        cumulative = np.cumsum(w_n)
        at = (np.arange(len(w_n)) + rng.random()) * (cumulative[-1] / len(w_n))
        return rng.permutation(self.train_rows[np.minimum(np.searchsorted(cumulative, at, side="right"), len(w_n) - 1)])

    def log(self) -> dict[str, float]:
        """Effective sample size, entropy and the mass on the top 1 %."""
        return {f"weights_{key}": value for key, value in weight_summary(self.state["weights"].astype(np.float64)).items()}


class AdaptiveResampler(WeightedSampler):
    """Weights made anew each epoch from the model's own latent codes (adaptive resampling).

    Weights always refer to the original training cells, so a cell that is not drawn can come back.

    Parameters
    ----------
    train_rows
        Rows of the store.
    weigh
        Latent codes of shape (cells, latent) to draw probabilities of shape (cells,).
    warmup
        First epochs that are drawn uniformly.
    refresh
        ``epoch``: encode all training cells before each epoch, as published. ``online``: use the latent codes met while training
        (dropout and batch statistics as they were then), at no cost.
    draw
        See :class:`WeightedSampler`.
    """

    def __init__(
        self,
        train_rows: Rows,
        weigh: Callable[[NDArray[np.float32]], NDArray[np.float64]],
        warmup: int = 1,
        refresh: str = "epoch",
        draw: str = "multinomial",
    ) -> None:
        super().__init__(train_rows, np.full(len(train_rows), 1.0 / len(train_rows)), draw)
        self.weigh = weigh
        self.warmup = warmup
        self.refresh = refresh
        self.watches = refresh == "online"
        self._position = np.full(int(train_rows.max()) + 1, -1)
        self._position[train_rows] = np.arange(len(train_rows))

    def rows(self, epoch: int, rng: np.random.Generator, embed: Embed) -> Rows:
        """A permutation while warming up, then draws by fresh weights."""
        if epoch < self.warmup:
            return rng.permutation(self.train_rows)
        if self.refresh == "epoch" or "latent" not in self.state:
            z_nl = embed(self.train_rows)
            if self.refresh == "online":
                self.state["latent"] = z_nl
        else:
            z_nl = self.state["latent"]
        self.state["weights"] = self.weigh(z_nl)
        return super().rows(epoch, rng, embed)

    def seen(self, rows: Rows, z_nl: NDArray[np.float32]) -> None:
        """Keep the newest latent code of each cell visited."""
        if "latent" not in self.state:
            self.state["latent"] = np.zeros((len(self.train_rows), z_nl.shape[1]), np.float32)
        self.state["latent"][self._position[rows]] = z_nl


class WithReplay:
    """The cells of another sampler, and so many replayed ones that they are ``share`` of the epoch.

    Parameters
    ----------
    inner
        Draws the real cells.
    replayed
        Rows of the replayed ones, of which each epoch takes some at random.
    share
        Below 1.
    """

    def __init__(self, inner: Sampler, replayed: Rows, share: float) -> None:
        self.inner, self.replayed, self.share = inner, replayed, share
        self.state, self.watches = inner.state, inner.watches

    def rows(self, epoch: int, rng: np.random.Generator, embed: Embed) -> Rows:
        """Real and replayed cells in random order."""
        real = self.inner.rows(epoch, rng, embed)
        n = min(len(self.replayed), round(len(real) * self.share / (1 - self.share)))
        return rng.permutation(np.concatenate([real, rng.permutation(self.replayed)[:n]]))

    def seen(self, rows: Rows, z_nl: NDArray[np.float32]) -> None:
        """Passes on what was made of the real cells."""
        real = ~np.isin(rows, self.replayed)
        self.inner.seen(rows[real], z_nl[real])

    def log(self) -> dict[str, float]:
        """Of the inner sampler."""
        return self.inner.log()


def balanced_weights(labels: NDArray[Any], cap: float = 3.0) -> NDArray[np.float64]:
    """Equal mass for each label, but no cell above ``cap`` times uniform; unlabelled cells ("") keep weight 1 / n.

    Parameters
    ----------
    labels
        Label of each cell, shape (cells,).
    cap
        A type of a few cells drawn without limit is memorised, not learned.
    """
    _, code_n, count_c = np.unique(labels, return_inverse=True, return_counts=True)
    w_n = len(labels) / (len(count_c) * count_c[code_n])
    w_n[labels == ""] = 1.0
    w_n = np.minimum(w_n, cap)
    return w_n / w_n.sum()
