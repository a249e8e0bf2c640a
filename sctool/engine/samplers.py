"""From the settings of a run to its sampler; the same for every model, so ``--ar`` works with each."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sctool.data.resampling import knn_weights, resampling_weights, temper
from sctool.data.samplers import AdaptiveResampler, Sampler, UniformSampler, WeightedSampler, balanced_weights
from sctool.errors import SctoolError
from sctool.sections import ARConfig, TrainConfig


def make_sampler(
    train_rows: NDArray[np.int64],
    train: TrainConfig,
    ar: ARConfig,
    *,
    labels: NDArray[Any] | None = None,
    embedding: NDArray[np.float32] | None = None,
) -> Sampler:
    """The sampler of ``train.sampler``.

    Parameters
    ----------
    train_rows
        Rows of the store to train on.
    labels
        Labels of all rows, for ``balanced``; "" where there is none.
    embedding
        Given latent codes of all rows, for ``ar.embedding``.
    """
    if train.sampler == "uniform":
        return UniformSampler(train_rows)
    if train.sampler == "balanced":
        if labels is None:
            raise SctoolError("--sampler balanced needs labels", "give --label-key, or use --ar, which needs none")
        return WeightedSampler(train_rows, balanced_weights(labels[train_rows], train.balance_cap), ar.draw)

    def weigh(z_nl: NDArray[np.float32]) -> NDArray[np.float64]:
        w_n = resampling_weights(z_nl, ar.bins, ar.smoothing) if ar.density == "histogram" else knn_weights(z_nl)
        return temper(w_n, ar.temper, ar.max_ratio) if ar.temper != 1.0 or ar.max_ratio else w_n

    if embedding is not None:
        return WeightedSampler(train_rows, weigh(embedding[train_rows]), ar.draw)
    return AdaptiveResampler(train_rows, weigh, ar.warmup, ar.refresh, ar.draw)
