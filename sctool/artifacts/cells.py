"""Writing an .h5ad of cells chunk by chunk, so that memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

CHUNK_CELLS = 1024

Block = Mapping[str, NDArray[Any]]
"""Matrices of some cells, shape (cells, genes), by where they go: ``X`` or the name of a layer."""


def write_cells(path: Path, frame: ad.AnnData, blocks: Iterable[Block]) -> None:
    """Write ``frame`` (obs, var, obsm, uns; its own X is not used) and then its dense float32 matrices, block after block.

    Parameters
    ----------
    path
        The file; not atomic, so give a path inside a temporary folder.
    frame
        Everything but the matrices.
    blocks
        Of all cells, in their order.
    """
    frame.write_h5ad(path)
    shape, at = frame.shape, 0
    with h5py.File(path, "a") as file:
        if "X" in file:
            del file["X"]
        layers = file.require_group("layers")
        for block in blocks:
            for name, x_ng in block.items():
                home: Any = file if name == "X" else layers
                if name not in home:
                    made = home.create_dataset(name, shape, np.float32, chunks=(min(shape[0], CHUNK_CELLS), shape[1]), compression="lzf")
                    made.attrs["encoding-type"], made.attrs["encoding-version"] = "array", "0.2.0"
                home[name][at : at + len(x_ng)] = x_ng
            at += len(x_ng)
    assert at == shape[0]


def frame_of(obs: pd.DataFrame, genes: list[str], **parts: Any) -> ad.AnnData:
    """An AnnData without a matrix."""
    return ad.AnnData(obs=obs.copy(), var=pd.DataFrame(index=pd.Index(genes)), **parts)
