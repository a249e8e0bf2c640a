"""The stages of an integration run: the autoencoder, its tuning with classes, the diffusion of its codes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from sctool.data.latents import LatentStore
from sctool.data.prepare import Prepared
from sctool.data.samplers import Sampler, UniformSampler, WithReplay
from sctool.engine.device import in_chunks
from sctool.engine.run import Setting, Stage
from sctool.models.integrate import Integrator
from sctool.models.transfer import grow, keep_old

NOBODY = np.empty(0, np.int64)
STEPS_OF_AN_EPOCH = 100
"""Of the diffusion; each takes all cells so many times."""
REPLAY_CHUNK = 1024


def integration_stages(setting: Setting, older: Integrator | None = None) -> Iterator[Stage]:
    """Autoencoder with the standard normal prior; tuning with classes put where their cells are; diffusion of the codes.

    With an ``older`` model, that one is grown and trained on instead, its classes where they were.
    """
    config, module, store, prepared = setting.config, setting.module, setting.store, setting.prepared
    validation_rows = prepared.rows("validation")
    if "panel" in prepared.codes:
        assert older is not None
        module.measured(panels(prepared, len(older.network.rate.bias)))
    if older is None:
        yield Stage("autoencoder", module, store, setting.sampler(), config.train, validation_rows)
        if config.integrate.prior == "mixture" or module.n_labels:
            _place(setting)
            if config.integrate.finetune_epochs:
                tuning = config.train.model_copy(update={"epochs": config.integrate.finetune_epochs, "warmup": 0.0})
                yield Stage("tuning", module, store, setting.sampler(), tuning, validation_rows)
    else:
        stage = _transfer(setting, older, validation_rows)
        if any(parameter.requires_grad for parameter in first_stage(module).values()):  # surgery of nothing new changes nothing
            yield stage
    if config.diffusion.train_steps:
        yield _diffusion(setting)


def _place(setting: Setting, first: int = 0, seen_c: torch.Tensor | None = None) -> None:
    """Put the classes where the codes of their training cells are; free components by k-means.

    Parameters
    ----------
    first
        Classes before it stay where they are.
    seen_c
        How many cells of each class there were in earlier phases.
    """
    module, rows, device = setting.module, setting.prepared.rows("train"), setting.store.device
    mean_nl, _ = posteriors(module, setting.store, rows, setting.config.train.inference_chunk)
    given = setting.prepared.codes["label"][rows] if module.n_labels else None
    class_n = clusters(mean_nl, module.n_classes, setting.config.seed) if given is None else given
    count_c = torch.from_numpy(np.bincount(class_n, minlength=module.n_classes + 1)[: module.n_classes]).to(device)
    moved_n = np.where((class_n >= first) & (class_n < module.n_classes), class_n, -1)
    module.prior.place(torch.from_numpy(mean_nl).to(device), torch.from_numpy(moved_n).to(device))
    module.prior.weigh(count_c if seen_c is None else count_c + seen_c)
    module.placed.fill_(True)


def _transfer(setting: Setting, older: Integrator, validation_rows: NDArray[np.int64]) -> Stage:
    """Grow the older model, place its new labels, and train on; what may change depends on ``integrate.transfer``."""
    config, module, prepared = setting.config, setting.module, setting.prepared
    old = grow(module, older.state_dict(), older.n_labels, config.seed)
    if module.n_labels or not bool(module.placed):
        _place(setting, older.n_labels, module.cells_cb.sum(1))
    sampler: Sampler = setting.sampler()
    train = config.train
    if config.integrate.transfer == "surgery":
        keep_old(module, old)
        train = train.model_copy(update={"weight_decay": 0.0})
    else:
        train = train.model_copy(update={"lr": train.lr * config.integrate.lr_scale})
        module.anchor = (config.integrate.anchor_weight, {name: p.detach().clone() for name, p in first_stage(module).items()})
    replayed = prepared.rows("replayed")
    if len(replayed):
        sampler = WithReplay(sampler, replayed, config.integrate.replay_share)
    return Stage("transfer", module, setting.store, sampler, train.model_copy(update={"warmup": 0.0}), validation_rows)


def _diffusion(setting: Setting) -> Stage:
    """The denoiser on fresh draws of the codes, under their predicted types where these are sure."""
    config, module, store, prepared = setting.config, setting.module, setting.store, setting.prepared
    chunk, settings = config.train.inference_chunk, config.diffusion
    cells = np.concatenate([prepared.rows("train"), prepared.rows("replayed")])
    mean_nl, sd_nl = posteriors(module, store, cells, chunk)
    module.diffusion.set_scale(torch.from_numpy(mean_nl).to(store.device), torch.from_numpy(sd_nl).to(store.device))
    p_nc = probabilities(module, store, cells, chunk)[:, : module.n_classes]
    type_n = np.where(p_nc.max(1) >= config.integrate.refine_min_confidence, p_nc.argmax(1), module.n_classes)
    latents = LatentStore(
        mean_nl, sd_nl, {"type": type_n, "batch": prepared.codes["batch"][cells]}, prepared.obs.index[cells], store.device
    )
    passes = max(1, round(min(STEPS_OF_AN_EPOCH, settings.train_steps) * settings.batch_size / len(cells)))
    rows = np.tile(np.arange(len(cells)), passes)
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
    return Stage("diffusion", module.diffusion, latents, UniformSampler(rows), train, NOBODY)


def panels(prepared: Prepared, old_genes: int) -> torch.Tensor:
    """Genes that are measured in the real cells of a phase, and in the replayed ones, shape (2, genes)."""
    replayed_g = np.arange(len(prepared.columns)) < old_genes
    assert prepared.measured_g is not None
    return torch.from_numpy(np.stack([prepared.measured_g, replayed_g]))


def first_stage(module: Any) -> dict[str, torch.Tensor]:
    """The parameters of all but the diffusion."""
    return {name: parameter for name, parameter in module.named_parameters() if not name.startswith("diffusion.")}


@torch.inference_mode()
def replay(module: Any, n: int, seed: int) -> tuple[sp.csr_matrix, dict[str, NDArray[np.int64]]]:
    """Cells as a trained model remembers them (generative replay; Shin et al. 2017), types and batches as often as it has seen them.

    Returns
    -------
    counts, codes
        CSR of shape (n, genes), and the codes ``batch`` and ``label``; -1 where the model knows no labels.
    """
    if n == 0:
        nothing = np.empty(0, np.int64)
        return sp.csr_matrix((0, len(module.network.rate.bias)), dtype=np.float32), {"batch": nothing, "label": nothing}
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    counts_cb = module.cells_cb.cpu().numpy()
    pair_n = rng.choice(counts_cb.size, n, p=counts_cb.ravel() / counts_cb.sum())
    type_n, batch_n = np.divmod(pair_n, counts_cb.shape[1])
    depth_b2 = module.depth_b2.cpu().numpy()
    depth_n = np.exp(rng.normal(depth_b2[batch_n, 0], depth_b2[batch_n, 1]))
    blocks = []
    for start in range(0, n, REPLAY_CHUNK):
        rows = slice(start, start + REPLAY_CHUNK)
        kind, batch = (torch.as_tensor(x[rows], device=module.depth_b2.device) for x in (type_n, batch_n))
        z_nl = module.diffusion.generate(kind, batch, generator)
        share_ng = module.proportions(z_nl, {"batch": batch}).cpu().numpy().astype(np.float64)
        theta = module.network.log_dispersion(batch).exp().cpu().numpy().astype(np.float64)
        mean_ng = share_ng * depth_n[rows, None]
        blocks.append(sp.csr_matrix(rng.poisson(rng.gamma(np.broadcast_to(theta, mean_ng.shape), mean_ng / theta)).astype(np.float32)))
    label_n = type_n if module.n_labels else np.full(n, -1)
    return sp.vstack(blocks, format="csr"), {"batch": batch_n, "label": label_n}


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


def clusters(z_nl: NDArray[np.float32], n: int, seed: int) -> NDArray[np.int64]:
    """k-means clusters of codes, shape (cells,)."""
    return KMeans(min(n, len(z_nl)), n_init=5, random_state=seed).fit_predict(z_nl).astype(np.int64)
