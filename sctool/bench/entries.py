"""What an evaluation compares: trained models and embeddings of other tools, on the same cells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sctool.artifacts.model_folder import ModelFolder, open_model
from sctool.config import Config
from sctool.data.read import H5ad
from sctool.data.splits import select
from sctool.engine.query import Query, open_query
from sctool.errors import SctoolError
from sctool.models.registry import BUILDERS

ARMS = {"uniform": "standard", "adaptive": "ar", "balanced": "balanced"}
FEWEST_CELLS = 20
EMBEDS_COUNTS = ("scvi", "integrate")


@dataclass(frozen=True)
class ModelEntry:
    """A trained model to be scored."""

    name: str
    """Name of the run; its path where several have the same name."""
    folder: ModelFolder
    query: Query

    @property
    def arm(self) -> str:
        """How its cells were sampled: ``standard``, ``ar`` or ``balanced``."""
        return ARMS[self.folder.manifest["sampler"]]

    @property
    def seed(self) -> int:
        """Seed of its training."""
        return int(self.folder.manifest["seed"])


def open_entries(paths: list[Path], data: Path, config: Config) -> list[ModelEntry]:
    """Open models on the cells of a file."""
    folders = [open_model(path) for path in paths]
    names = [folder.name for folder in folders]
    entries = []
    for folder in folders:
        kind = folder.manifest["model"]
        if kind not in EMBEDS_COUNTS:
            raise SctoolError(
                f"{folder.path} holds a {kind} model, which is not scored here", f"give a model of {', '.join(EMBEDS_COUNTS)}"
            )
        name = folder.name if names.count(folder.name) == 1 else str(folder.path)
        entries.append(ModelEntry(name, folder, open_query(folder, BUILDERS[kind], data, config)))
    return entries


def rows_to_score(
    file: H5ad, entries: list[ModelEntry], config: Config, include_trained: bool, say: Callable[[str], None]
) -> NDArray[np.int64]:
    """Rows of cells that no model was trained or stopped on; of these, the held-out ones where ``data.hold_out`` names them.

    Raises
    ------
    SctoolError
        If fewer than 20 are left.
    """
    wanted = select(file.obs, config.data.hold_out) if config.data.hold_out else np.ones(file.n_cells, bool)
    if include_trained:
        return np.flatnonzero(wanted)
    seen: set[str] = set()
    for entry in entries:
        cells = entry.folder.table("cells")
        seen |= set(cells["cell"][cells["split"].isin(["train", "validation"])])
    trained = np.array([name in seen for name in file.obs.index])
    rows = np.flatnonzero(wanted & ~trained)
    if len(rows) < FEWEST_CELLS:
        raise SctoolError(
            f"{int(trained.sum())} of {file.n_cells} cells of {file.path.name} were used in training; {len(rows)} are left to score",
            "give a file of other cells, or train with --hold-out COLUMN=VALUE, or accept it with --include-trained",
        )
    left_out = int((wanted & trained).sum())
    why = f" that meet {config.data.hold_out}" if config.data.hold_out else ""
    say(f"{len(rows):,} cells to score{why}" + (f"; {left_out:,} left out because a model was trained on them" if left_out else ""))
    return rows


def load_embedding(spec: str, file: H5ad) -> tuple[str, NDArray[np.float32]]:
    """An embedding of the cells of a file, made by any tool: ``obsm:KEY``, an .npy, or a .csv whose first column names the cells.

    Returns
    -------
    name, z_nl
        With one row per cell of the file.
    """
    if spec.startswith("obsm:"):
        return spec.removeprefix("obsm:"), file.embedding(spec.removeprefix("obsm:"))
    path = Path(spec)
    if not path.exists():
        raise SctoolError(f"{spec}: no such file", "give obsm:KEY, or the path of an .npy or .csv file")
    if path.suffix == ".csv":
        table = pd.read_csv(path, index_col=0)
        table.index = table.index.astype(str)
        absent = file.obs.index.difference(table.index)
        if len(absent):
            raise SctoolError(
                f"{spec} lacks {len(absent)} of {file.n_cells} cells, e.g. {absent[0]}", "its first column must name the cells"
            )
        z_nl: Any = table.loc[file.obs.index].select_dtypes("number").to_numpy(np.float32)
    else:
        try:
            z_nl = np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise SctoolError(f"{spec} is not an .npy array ({error})", "save it with numpy.save, as numbers") from None
    if not isinstance(z_nl, np.ndarray):
        raise SctoolError(f"{spec} holds several arrays, not one", "save the embedding alone with numpy.save")
    if z_nl.ndim != 2 or len(z_nl) != file.n_cells:
        raise SctoolError(
            f"{spec} has shape {z_nl.shape}; {file.path.name} has {file.n_cells} cells", "give one row per cell, in the order of the file"
        )
    if not np.isfinite(z_nl).all():
        raise SctoolError(f"{spec} has NaN or infinite values", "compute it again")
    return path.stem, z_nl.astype(np.float32)
