"""A memory-mapped CSR copy of a matrix, for files larger than memory (``--backed``).

Made once, in one pass, with little memory; after that any cells can be drawn at nearly the speed of a matrix in memory, which weighted
sampling needs and chunked files don't give.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from sctool.artifacts.atomic import atomic_folder
from sctool.data.read import H5ad

_BLOCK = 4096


def cached_csr(file: H5ad, source: str, cache_dir: Path | None = None) -> sp.csr_matrix:
    """The matrix as a CSR whose arrays are read-only memory maps; the cache is built if it is not there.

    Parameters
    ----------
    file, source
        The matrix.
    cache_dir
        Where caches are kept; default ``$XDG_CACHE_HOME/sctool``. One cache takes 8 bytes per non-zero.
    """
    home = cache_dir or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sctool"
    stat = file.path.stat()
    key = json.dumps([1, str(file.path.resolve()), stat.st_size, stat.st_mtime_ns, source])
    folder = home / hashlib.sha256(key.encode()).hexdigest()[:20]
    if not folder.exists():
        with atomic_folder(folder) as partial:
            _build(file, source, partial)
    nnz = json.loads((folder / "about.json").read_text())["nnz"]
    shape = file.shapes[source]
    indptr = np.fromfile(folder / "indptr", np.int64)
    # A file of no bytes cannot be mapped.
    indices, data = (
        np.memmap(folder / name, dtype, "r", shape=(nnz,)) if nnz else np.empty(0, dtype)
        for name, dtype in (("indices", np.int32), ("data", np.float32))
    )
    matrix = sp.csr_matrix(shape, dtype=np.float32)
    matrix.indptr, matrix.indices, matrix.data = indptr, np.asarray(indices), np.asarray(data)
    return matrix


def take_rows(matrix: sp.csr_matrix, rows: NDArray[np.int64]) -> sp.csr_matrix:
    """Some rows as a CSR in memory.

    ``matrix[rows]`` would first copy all indices to the type of ``indptr``: gigabytes, for a memory map.
    """
    length_n = matrix.indptr[rows + 1] - matrix.indptr[rows]
    indptr = np.concatenate([[0], np.cumsum(length_n)])
    at_e = np.arange(indptr[-1]) + np.repeat(matrix.indptr[rows] - indptr[:-1], length_n)
    return sp.csr_matrix((matrix.data[at_e], matrix.indices[at_e], indptr), shape=(len(rows), matrix.shape[1]))


def _build(file: H5ad, source: str, folder: Path) -> None:
    starts = list(range(0, file.n_cells, _BLOCK))
    ends = [np.zeros(1, np.int64)]
    with (folder / "indices").open("wb") as indices, (folder / "data").open("wb") as data:
        for block in file.blocks(source, starts, _BLOCK):
            block.indices.astype(np.int32).tofile(indices)
            block.data.astype(np.float32).tofile(data)
            ends.append(ends[-1][-1] + block.indptr[1:].astype(np.int64))
    indptr = np.concatenate(ends)
    indptr.tofile(folder / "indptr")
    (folder / "about.json").write_text(json.dumps({"nnz": int(indptr[-1]), "file": str(file.path), "source": source}))
