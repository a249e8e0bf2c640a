"""Training a network of samples stage by stage, and what it makes of any number of cells, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
from sctool.data.samplers import UniformSampler
from sctool.data.samples import PreparedSamples
from sctool.engine.query import open_query
from sctool.engine.run import Setting, Stage
from sctool.errors import SctoolError
from sctool.models.registry import BUILDERS
from sctool.nn.heads import ordinal_probabilities
from sctool.nn.pooling import Streamed

CODES = ("scvi", "scgen", "integrate")
"""Models that give cells codes."""
CELLS = 65_536
"""In a block of inference."""
Answers = dict[str, NDArray[np.float64]]
Blocks = Callable[[], Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]]
"""Features (cells, features) and the samples' codes of cells (-1: none), block by block; called again for a second pass."""


def represent(file: H5ad, config: Config) -> Representation:
    """What cells are read as: an embedding or expression of the file, or the codes that a trained model gives them."""
    folder = Path(config.sampleclr.rep or "")
    if not config.sampleclr.rep or not (folder / "manifest.json").exists():
        return open_representation(file, config)
    model = open_model(folder)
    kind = model.manifest["model"]
    if kind not in CODES:
        raise SctoolError(f"--rep {folder} is a {kind} model, which gives cells no codes", f"give the folder of {', '.join(CODES)}")
    query = open_query(model, BUILDERS[kind], file.path, config)
    notes = [str(query.match)]
    seen = bool(set(model.table("cells")["cell"]) & set(map(str, file.obs.index)))
    if seen:
        notes.append(f"{folder} was trained on cells of this file, of donors that are tested on too: scores may flatter")
    return Given(query.embed(), {"rep": str(folder.resolve()), "transductive": seen, "notes": notes})


def sample_stages(setting: Setting) -> Iterator[Stage]:
    """First the contrast, then each network for the tasks, where there are any."""
    module, prepared = setting.module, setting.prepared
    assert isinstance(prepared, PreparedSamples)
    module.on = None
    yield _stage(setting, "contrastive", prepared.rows("train"))
    for number, (rows, _) in enumerate(prepared.inner):
        module.on = number
        yield _stage(setting, f"tasks {number + 1}", rows)


def attention_stage(setting: Setting) -> Iterator[Stage]:
    """One network for the tasks, and nothing else."""
    setting.module.on = 0
    yield _stage(setting, "tasks 1", setting.prepared.rows("train"))


def _stage(setting: Setting, name: str, rows: NDArray[np.int64]) -> Stage:
    train = setting.config.train
    assert train.epochs is not None
    size = max(2, even_batches(len(rows), train.batch_size))
    epochs = train.epochs if name == "contrastive" else setting.config.sampleclr.task_epochs or train.epochs
    train = train.model_copy(update={"batch_size": size, "epochs": epochs})
    # the contrast sees no label, not even by how often a sample is drawn
    unlabelled = name == "contrastive" and train.sampler == "balanced"
    sampler = UniformSampler(rows) if unlabelled else setting.sampler(rows)
    return Stage(name, setting.module, setting.store, sampler, train, setting.prepared.rows("validation"))


@dataclass(frozen=True)
class Embedded:
    """What a network makes of samples.

    Attributes
    ----------
    encoder
        What they were made by.
    embedding_sd
        What the user gets; NaN for samples without cells.
    z_sd
        The learned part of it, of unit length; of the encoder for the tasks it is all.
    pooled_shv, log_sum_sh
        Weighted means of each head, and log of the sum of exp(score); the first head weighs all cells alike.
    n_cells_s, ess_sh
        Cells of each sample, and how many of them count.
    """

    encoder: Any
    embedding_sd: NDArray[np.float32]
    z_sd: NDArray[np.float32]
    pooled_shv: torch.Tensor
    log_sum_sh: torch.Tensor
    n_cells_s: NDArray[np.int64]
    ess_sh: NDArray[np.float64]
    streamed: Streamed


@torch.no_grad()
def embed_samples(
    module: Any, blocks: Blocks, batch_s: NDArray[np.int64], *, network: int | None = None, rng: np.random.Generator | None = None
) -> Embedded:
    """Embed samples from all of their cells; the same cells in any order and any blocks give the same within rounding.

    Parameters
    ----------
    batch_s
        Code of each sample's batch, -1 where it is unknown or nothing is to be hidden.
    network
        By this network for the tasks instead of the encoder of the contrast.
    rng
        Draws a bootstrap of the cells instead: each counts a Poisson number of times, so that no sample need be in memory at once.
    """
    module.eval()
    n_samples = len(batch_s)
    encoder, device = module.encoder if network is None else module.told[network], module.centre_f.device
    streamed = Streamed(n_samples, encoder.n_heads + 1, encoder.n_values)
    n_cells_s = np.zeros(n_samples, np.int64)
    for x_nf, sample_n in blocks():
        x = module.standard(torch.as_tensor(x_nf).to(device))
        scores_nh, code_n = encoder.scores(x).cpu(), torch.as_tensor(sample_n)
        if rng is not None:
            times_n = torch.as_tensor(rng.poisson(1.0, len(x_nf)))
            scores_nh, code_n = scores_nh + times_n.clamp_min(1).log().unsqueeze(1), torch.where(times_n > 0, code_n, -1)
        streamed.add(scores_nh, encoder.value(x).cpu(), code_n)
        n_cells_s += np.bincount(sample_n[sample_n >= 0], minlength=n_samples)
    pooled_shv, log_sum_sh = streamed.pooled_shf.float().to(device), streamed.log_normaliser_sh.float().to(device)
    known = pooled_shv, log_sum_sh, torch.as_tensor(batch_s).to(device)
    z_sd = encoder.project(*known)
    embedding_sd = encoder.embedding(*known) if network is None else z_sd
    ess_sh = streamed.ess_sh.numpy()[:, 1:]
    return Embedded(encoder, embedding_sd.cpu().numpy(), z_sd.cpu().numpy(), pooled_shv, log_sum_sh, n_cells_s, ess_sh, streamed)


def in_blocks(x_nf: NDArray[np.float32], sample_n: NDArray[np.int64]) -> Blocks:
    """Blocks of cells that are in memory."""
    return lambda: ((x_nf[at : at + CELLS], sample_n[at : at + CELLS]) for at in range(0, len(x_nf), CELLS))


@torch.no_grad()
def answers(module: Any, embedded: Embedded, network: int, tasks: Sequence[Task], scales: Mapping[str, Sequence[float]]) -> Answers:
    """What a network says for each task: probabilities of classes or levels, shape (samples, classes), or numbers, shape (samples, 1)."""
    made = {}
    for task, out_sc in zip(tasks, module.answers(torch.as_tensor(embedded.z_sd).to(module.centre_f.device), network), strict=True):
        out = out_sc.double().cpu()
        if task.kind == "class":
            made[task.column] = out.softmax(1).numpy()
        elif task.kind == "ordinal":
            made[task.column] = ordinal_probabilities(out.sigmoid()).numpy()
        else:
            centre, scale = scales[task.column]
            made[task.column] = (centre + scale * out).numpy()
    return made


@dataclass(frozen=True)
class Seen:
    """All that a module makes of samples.

    Attributes
    ----------
    told
        By each network for the tasks.
    answers
        Of each of them, by task.
    """

    embedded: Embedded
    told: list[Embedded]
    answers: list[Answers]


def see(
    module: Any,
    blocks: Blocks,
    batch_s: NDArray[np.int64],
    tasks: Sequence[Task],
    scales: Mapping[str, Sequence[float]],
    rng: np.random.Generator | None = None,
) -> Seen:
    """Embed samples and answer for the tasks; with ``rng`` from one bootstrap of the cells, the same for all."""
    seed = None if rng is None else int(rng.integers(2**32))

    def of(network: int | None) -> Embedded:
        return embed_samples(module, blocks, batch_s, network=network, rng=None if seed is None else np.random.default_rng(seed))

    told = [of(number) for number in range(len(module.told))]
    return Seen(of(None), told, [answers(module, one, number, tasks, scales) for number, one in enumerate(told)])
