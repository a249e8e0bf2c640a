"""A trained model on new cells: genes and batches matched to what it knows, in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from sctool.artifacts.model_folder import ModelFolder
from sctool.config import Config
from sctool.data.genes import GeneMatch
from sctool.data.minibatch import CellStore
from sctool.data.prepare import query_counts
from sctool.data.response import query_expression
from sctool.data.vocabulary import Vocabulary
from sctool.engine.device import choose_device, in_chunks
from sctool.engine.trainer import embed
from sctool.errors import SctoolError


@dataclass(frozen=True)
class Query:
    """Cells as a trained model sees them."""

    module: Any
    store: CellStore
    obs: pd.DataFrame
    match: GeneMatch
    batches_known: float
    """Share of cells from a batch the model was trained on."""
    genes: list[str]
    chunk: int

    def embed(self, rows: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Posterior means, shape (cells, latent)."""
        return embed(self.module, self.store, np.arange(len(self.store)) if rows is None else rows, self.chunk)

    def observed(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Counts of the model's genes, dense, shape (cells, genes)."""
        return self.store.batch(rows).dense().cpu().numpy()

    @torch.inference_mode()
    def proportions(self, rows: NDArray[np.int64], samples: int = 0, seed: int = 0) -> Iterator[tuple[NDArray[np.int64], Any]]:
        """Chunks of rows with their expected proportions of the model's genes, shape (cells, genes).

        Parameters
        ----------
        rows
            Cells.
        samples
            How many draws from the posterior to average over; 0 decodes the posterior mean.
        seed
            Of those draws.
        """
        generator = torch.Generator().manual_seed(seed)

        def decode(part: NDArray[np.int64]) -> NDArray[np.float32]:
            batch = self.store.batch(part)
            mean_nl, variance_nl = self.module.posterior(batch)
            if samples == 0:
                return self.module.proportions(mean_nl, batch.codes).cpu().numpy()
            total = torch.zeros(())
            for _ in range(samples):
                noise = torch.randn(mean_nl.shape, generator=generator).to(mean_nl.device)
                total = total.to(mean_nl.device) + self.module.proportions(mean_nl + variance_nl.sqrt() * noise, batch.codes)
            return (total / samples).cpu().numpy()

        yield from in_chunks(decode, rows, self.chunk)


def load_module(folder: ModelFolder, build: Callable[[Config, dict[str, int]], Any]) -> Any:
    """The trained network of a model folder, in evaluation mode on the CPU."""
    module = build(Config.model_validate(folder.manifest["config"]), folder.manifest["sizes"])
    try:
        module.load_state_dict(folder.weights())
    except RuntimeError as error:
        raise SctoolError(f"{folder.path}: the weights do not fit the manifest ({str(error).splitlines()[0]})", "train again") from None
    return module.eval()


def open_query(folder: ModelFolder, build: Callable[[Config, dict[str, int]], Any], path: Path, config: Config) -> Query:
    """Match a file to a trained model.

    Parameters
    ----------
    folder, build
        The model, and how its network is made.
    path
        The .h5ad file.
    config
        Where to compute, and keys of the file; the batch key defaults to the one of training.
    """
    trained = Config.model_validate(folder.manifest["config"])
    data = config.data
    if data.batch_key is None:
        data = data.model_copy(update={"batch_key": trained.data.batch_key})
    vocabularies = {key: Vocabulary(tuple(values)) for key, values in folder.manifest["vocabularies"].items()}
    about, known, codes = folder.manifest["data"], 1.0, {}
    if "expression" in about:
        if data.counts_layer is None and about["expression"].startswith("layers/"):
            data = data.model_copy(update={"counts_layer": trained.data.counts_layer})
        counts, obs, match = query_expression(path, data, folder.manifest["genes"], about["target_sum"])
    else:
        counts, obs, match, codes = query_counts(path, config.model_copy(update={"data": data}), folder.manifest["genes"], vocabularies)
        known = float((codes["batch"] < len(vocabularies["batch"])).mean())
    device = choose_device(config.device)
    module = load_module(folder, build).to(device)
    if match.coverage < 1 and hasattr(module, "measured"):
        module.measured(torch.from_numpy(match.columns >= 0).unsqueeze(0))
        codes = {**codes, "panel": np.zeros(len(obs), np.int64)}
    store = CellStore(counts, codes, obs.index, match.columns, device)
    genes = folder.manifest["genes"]["name"]
    return Query(module, store, obs, match, known, genes, config.train.inference_chunk)
