"""The stages of an integration run: the autoencoder, its tuning with classes, the diffusion of its codes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from sctool.data.latents import LatentStore
from sctool.data.samplers import UniformSampler
from sctool.engine.device import in_chunks
from sctool.engine.run import Setting, Stage

NOBODY = np.empty(0, np.int64)


def integration_stages(setting: Setting) -> Iterator[Stage]:
    """Autoencoder with the standard normal prior; tuning with classes put where their cells are; diffusion."""
    config, module, store = setting.config, setting.module, setting.store
    train_rows, validation_rows = setting.prepared.rows("train"), setting.prepared.rows("validation")
    chunk = config.train.inference_chunk
    yield Stage("autoencoder", module, store, setting.sampler(), config.train, validation_rows)
    if config.integrate.prior == "mixture" or module.n_labels:
        if not module.placed:
            mean_nl, _ = posteriors(module, store, train_rows, chunk)
            class_n = setting.prepared.codes["label"][train_rows] if module.n_labels else clusters(mean_nl, module.n_classes, config.seed)
            class_n = np.where(class_n == module.n_classes, -1, class_n)
            module.prior.place(torch.from_numpy(mean_nl).to(store.device), torch.from_numpy(class_n).to(store.device))
            module.placed.fill_(True)
        tuning = config.train.model_copy(update={"epochs": config.integrate.finetune_epochs, "warmup": 0.0})
        if tuning.epochs:
            yield Stage("tuning", module, store, setting.sampler(), tuning, validation_rows)
    if config.diffusion.train_steps:
        mean_nl, sd_nl = posteriors(module, store, train_rows, chunk)
        module.diffusion.set_scale(torch.from_numpy(mean_nl).to(store.device), torch.from_numpy(sd_nl).to(store.device))
        type_n, _ = confident_types(module, store, train_rows, chunk)
        codes = {"type": type_n, "batch": setting.prepared.codes["batch"][train_rows]}
        latents = LatentStore(mean_nl, sd_nl, codes, setting.prepared.obs.index[train_rows], store.device)
        settings = config.diffusion
        rows = np.arange(len(train_rows))
        train = config.train.model_copy(
            update={
                "epochs": math.ceil(settings.train_steps * settings.batch_size / len(rows)),
                "batch_size": settings.batch_size,
                "lr": settings.lr,
                "lr_decay": "cosine",
                "ema": settings.ema,
                "adam_eps": 1e-8,
                "weight_decay": 0.0,
                "grad_clip": 1.0,
                "warmup": 0.0,
                "patience": 0,
            }
        )
        yield Stage("diffusion", module.diffusion, latents, UniformSampler(rows), train, NOBODY)


@torch.inference_mode()
def posteriors(module: Any, store: Any, rows: NDArray[np.int64], chunk: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Posterior means and standard deviations of some cells, shape (cells, latent)."""
    module.eval()
    got = [
        (mean_nl.float().cpu().numpy(), variance_nl.sqrt().cpu().numpy())
        for _, (mean_nl, variance_nl) in in_chunks(lambda part: module.posterior(store.batch(part)), rows, chunk)
    ]
    return np.concatenate([mean_nl for mean_nl, _ in got]), np.concatenate([sd_nl for _, sd_nl in got])


@torch.inference_mode()
def probabilities(module: Any, store: Any, rows: NDArray[np.int64], chunk: int) -> NDArray[np.float32]:
    """Class probabilities of some cells, from their counts alone."""
    module.eval()
    return np.concatenate([p_nc.cpu().numpy() for _, p_nc in in_chunks(lambda part: module.classify(store.batch(part)), rows, chunk)])


def confident_types(module: Any, store: Any, rows: NDArray[np.int64], chunk: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Most likely class of each cell, the null token where it is less likely than ``refine_min_confidence``; and its probability."""
    p_nc = probabilities(module, store, rows, chunk)[:, : module.n_classes]
    type_n, best_n = p_nc.argmax(1), p_nc.max(1)
    return np.where(best_n >= module.config.refine_min_confidence, type_n, module.n_classes), best_n


def clusters(z_nl: NDArray[np.float32], n: int, seed: int) -> NDArray[np.int64]:
    """k-means clusters of codes, shape (cells,)."""
    return KMeans(min(n, len(z_nl)), n_init=5, random_state=seed).fit_predict(z_nl).astype(np.int64)
