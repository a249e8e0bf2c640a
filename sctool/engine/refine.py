"""What the encoder makes of cells, and the refinement of it: each cell carried from its batch to another, under its type."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sctool.engine.device import in_chunks
from sctool.engine.integrate import posteriors, probabilities
from sctool.engine.query import Query
from sctool.sections import IntegrateConfig

SDEDIT_DRAWS, SDEDIT_LAST = 8, 40


@dataclass(frozen=True)
class Encoded:
    """Cells of a query in the latent space; made from counts and batches alone."""

    mean_nl: NDArray[np.float32]
    probability_nc: NDArray[np.float32]
    """Of each label, or of each free component; rows of the latter leave room for "none of them"."""
    batch_n: NDArray[np.int64]
    """Codes; the number of batches stands for one the model has not seen."""

    @property
    def type_n(self) -> NDArray[np.int64]:
        """Most likely class."""
        return self.probability_nc.argmax(1)

    @property
    def confidence_n(self) -> NDArray[np.float32]:
        """Its probability."""
        return self.probability_nc.max(1)


def encode(query: Query) -> Encoded:
    """Encode all cells of a query."""
    module, rows = query.module, np.arange(len(query.store))
    mean_nl, _ = posteriors(module, query.store, rows, query.chunk)
    p_nc = probabilities(module, query.store, rows, query.chunk)[:, : module.n_classes]
    return Encoded(mean_nl, p_nc, query.store.codes("batch"))


def refine(query: Query, encoded: Encoded, config: IntegrateConfig, batches: list[str]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Carry cells to the reference batch of their predicted type.

    Left where they are: cells whose type is not sure, or of a type that has few training cells in their batch, or that are there already.

    Parameters
    ----------
    query, encoded
        The model and its cells.
    config
        The keys ``refine_*``.
    batches
        Names of the model's batches.

    Returns
    -------
    z_nl, moved_n
        New codes, and which cells were moved.
    """
    module = query.module
    counts_cb = module.cells_cb.cpu().numpy()
    target_c = targets(counts_cb, config, batches)
    type_n, batch_n = encoded.type_n, encoded.batch_n
    known_n = batch_n < module.n_batches
    seen_n = known_n & (counts_cb[type_n, np.where(known_n, batch_n, 0)] >= config.refine_min_cells)
    moved_n = seen_n & (encoded.confidence_n >= config.refine_min_confidence)
    last = min(config.refine_steps, len(module.diffusion.process)) - 1
    if config.refine_method == "bridge":
        moved_n &= target_c[type_n] != batch_n
    rows, z_nl = np.flatnonzero(moved_n), encoded.mean_nl.copy()

    def carry(part: NDArray[np.int64]) -> NDArray[np.float32]:
        device = query.store.device
        z, kind, source, target = (torch.as_tensor(x[part], device=device) for x in (z_nl, type_n, batch_n, target_c[type_n]))
        if config.refine_method == "bridge":
            return module.diffusion.bridge(z, kind, source, target, last, config.refine_grid).cpu().numpy()
        return module.diffusion.sdedit(z, kind, min(last, SDEDIT_LAST), SDEDIT_DRAWS, seed=int(part[0])).cpu().numpy()

    for part, new_nl in in_chunks(carry, rows, query.chunk):
        z_nl[part] = (1 - config.refine_blend) * z_nl[part] + config.refine_blend * new_nl
    return z_nl, moved_n


def targets(counts_cb: NDArray[np.int64], config: IntegrateConfig, batches: list[str]) -> NDArray[np.int64]:
    """The batch to which cells of each type are carried, shape (classes,).

    ``auto`` is the batch in which most types have enough training cells; a type that has too few there goes to the batch where it has
    most, or, if it has enough nowhere, to the null token.
    """
    enough_cb = counts_cb >= config.refine_min_cells
    if config.refine_target == "auto":
        star = int(np.lexsort((counts_cb.sum(0), enough_cb.sum(0)))[-1])
    else:
        star = batches.index(config.refine_target)
    fallback_c = np.where(enough_cb.any(1), counts_cb.argmax(1), len(batches))
    return np.where(enough_cb[:, star], star, fallback_c)
