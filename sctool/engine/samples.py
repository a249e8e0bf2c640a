"""Training a network of samples stage by stage, and what it makes of any number of cells, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sctool.artifacts.model_folder import open_model
from sctool.config import Config
from sctool.data.cohort import Task
from sctool.data.read import H5ad
from sctool.data.representation import Given, Representation, open_representation
from sctool.data.sample_store import even_batches
from sctool.engine.query import open_query
from sctool.engine.run import Setting, Stage
from sctool.models.registry import BUILDERS
from sctool.nn.heads import ordinal_probabilities
from sctool.nn.pooling import Streamed

CELLS = 65_536
"""In a block of inference."""
Blocks = Callable[[], Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]]
"""Features (cells, features) and the samples' codes of cells (-1: none), block by block; called again for a second pass."""


def represent(file: H5ad, config: Config) -> Representation:
    """What cells are read as: an embedding or expression of the file, or the codes that a trained model gives them."""
    folder = Path(config.sampleclr.rep or "")
    if not config.sampleclr.rep or not (folder / "manifest.json").exists():
        return open_representation(file, config)
    model = open_model(folder)
    query = open_query(model, BUILDERS[model.manifest["model"]], file.path, config)
    notes = [str(query.match)]
    if set(model.table("cells")["cell"]) & set(map(str, file.obs.index)):
        notes.append(f"{folder} was trained on cells of this file, of donors that are tested on too: scores may flatter")
    return Given(query.embed(), {"rep": str(folder), "notes": notes})


def sample_stages(setting: Setting) -> Iterator[Stage]:
    """First the contrast alone, then with it the heads and the adversary, where there are any."""
    config, module, prepared = setting.config, setting.module, setting.prepared
    train, size = config.train, even_batches(len(prepared.rows("train")), config.train.batch_size)
    train = train.model_copy(update={"batch_size": max(2, size)})
    validation = prepared.rows("validation")
    module.joint = False
    if config.sampleclr.contrast:
        yield Stage("contrastive", module, setting.store, setting.sampler(), train, validation)
    if config.sampleclr.joint_epochs and (len(module.heads) or module.adversary is not None):
        module.joint = True
        train = train.model_copy(update={"epochs": config.sampleclr.joint_epochs})
        yield Stage("joint", module, setting.store, setting.sampler(), train, validation)


@dataclass(frozen=True)
class Embedded:
    """What a network makes of samples.

    Attributes
    ----------
    z_sd
        Learned vectors of unit length, which the heads see; NaN for samples without cells.
    embedding_sd
        What the user gets: the mean of the features beside them.
    pooled_shf, log_mean_sh
        Weighted means of standardised features, and log of the mean of exp(score), of each head; the first weighs all cells alike.
    n_cells_s, ess_sh
        Cells of each sample, and how many of them count.
    """

    z_sd: NDArray[np.float32]
    embedding_sd: NDArray[np.float32]
    pooled_shf: torch.Tensor
    log_mean_sh: torch.Tensor
    n_cells_s: NDArray[np.int64]
    ess_sh: NDArray[np.float64]
    streamed: Streamed


@torch.no_grad()
def embed_samples(module: Any, blocks: Blocks, n_samples: int, rng: np.random.Generator | None = None) -> Embedded:
    """Embed samples from all of their cells; the same cells in any order and any blocks give the same within rounding.

    Parameters
    ----------
    rng
        Draws a bootstrap of the cells instead: each counts a Poisson number of times, so that no sample need be in memory at once.
    """
    module.eval()
    device = module.centre_f.device
    streamed = Streamed(n_samples, module.n_heads + 1, module.n_features)
    n_cells_s = np.zeros(n_samples, np.int64)
    for x_nf, sample_n in blocks():
        x = module.standard(torch.as_tensor(x_nf).to(device))
        scores_nh, code_n = module.scores(x).cpu(), torch.as_tensor(sample_n)
        if rng is not None:
            times_n = torch.as_tensor(rng.poisson(1.0, len(x_nf)))
            scores_nh, code_n = scores_nh + times_n.clamp_min(1).log().unsqueeze(1), torch.where(times_n > 0, code_n, -1)
        streamed.add(scores_nh, x.cpu(), code_n)
        n_cells_s += np.bincount(sample_n[sample_n >= 0], minlength=n_samples)
    pooled_shf = streamed.pooled_shf.float().to(device)
    log_sum_sh = streamed.log_normaliser_sh
    log_mean_sh = (log_sum_sh - log_sum_sh[:, :1]).float().to(device)  # the first head's is the log of the number of cells
    summary_sk = module.summary(pooled_shf, log_mean_sh)
    z_sd, embedding_sd = module.project(summary_sk).cpu().numpy(), module.embedding(summary_sk).cpu().numpy()
    return Embedded(z_sd, embedding_sd, pooled_shf, log_mean_sh, n_cells_s, streamed.ess_sh.numpy()[:, 1:], streamed)


def in_blocks(x_nf: NDArray[np.float32], sample_n: NDArray[np.int64]) -> Blocks:
    """Blocks of cells that are in memory."""
    return lambda: ((x_nf[at : at + CELLS], sample_n[at : at + CELLS]) for at in range(0, len(x_nf), CELLS))


@torch.no_grad()
def answers(module: Any, z_sd: NDArray[np.float32], tasks: list[Task], scales: dict[str, list[float]]) -> dict[str, NDArray[np.float64]]:
    """Of each task: probabilities of classes or levels, shape (samples, classes), or numbers, shape (samples, 1)."""
    made = {}
    for task, out_sc in zip(tasks, module.answers(torch.as_tensor(z_sd).to(module.centre_f.device)), strict=True):
        out = out_sc.double().cpu()
        if task.kind == "class":
            made[task.column] = out.softmax(1).numpy()
        elif task.kind == "ordinal":
            made[task.column] = ordinal_probabilities(out.sigmoid()).numpy()
        else:
            centre, scale = scales[task.column]
            made[task.column] = (centre + scale * out).numpy()
    return made


def cell_weights(module: Any, embedded: Embedded, blocks: Blocks) -> Iterator[NDArray[np.float64]]:
    """Second pass: weight of each cell in its sample in each learned head, shape (block, heads); they sum to 1 over a sample."""
    for x_nf, sample_n in blocks():
        yield _weights(module, embedded, x_nf, sample_n)[0].numpy()[:, 1:]


def cell_effects(module: Any, embedded: Embedded, blocks: Blocks, number: int, output: int) -> Iterator[NDArray[np.float64]]:
    """Signed: by how much an output of a head rises with the log of a cell's weight, shape (block,); 0 for cells of no sample.

    A cell's weight in a head is its share w_i of the sum of exp(score). With p the weighted mean and m the log mean of exp(score),
    ``d output / d log w_i = w_i ((x_i - p) . d output / d p + d output / d m)``, summed over heads, the even one too.
    """
    pooled_shf, log_mean_sh = (tensor.clone().requires_grad_(True) for tensor in (embedded.pooled_shf, embedded.log_mean_sh))
    out_s = module.answers(module.project(module.summary(pooled_shf, log_mean_sh)))[number][:, output]
    slope_shf, rise_sh = (slope.cpu() for slope in torch.autograd.grad(out_s.nansum(), (pooled_shf, log_mean_sh)))
    mean_sh = ((slope_shf * embedded.pooled_shf.cpu()).sum(2) - rise_sh).double()
    for x_nf, sample_n in blocks():
        w_nh, x = _weights(module, embedded, x_nf, sample_n)
        along_nh = torch.einsum("nf,nhf->nh", x, slope_shf[sample_n]).double()
        yield (w_nh * (along_nh - mean_sh[sample_n])).sum(1).numpy()


@torch.no_grad()  # of a block only: a generator would leave it set for whoever reads from it
def _weights(module: Any, embedded: Embedded, x_nf: NDArray[np.float32], sample_n: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of cells, the even ones first, and their standardised features, on the CPU."""
    x = module.standard(torch.as_tensor(x_nf).to(module.centre_f.device))
    return embedded.streamed.weights(module.scores(x).cpu(), torch.as_tensor(sample_n)), x.cpu()
