"""Opening .h5ad files piece by piece, with one line for each way a file can be broken.

Only what a command needs is read: ``obs``, ``var`` and the one matrix it works on.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import read_elem, sparse_dataset

from sctool.config import Config
from sctool.errors import SctoolError

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_OTHER_KINDS = {
    b"\x1f\x8b": "a gzip file (an .rds, or a compressed .h5ad that must be unpacked)",
    b"PK": "a zip archive",
    b"BZh": "a bzip2 file",
    b"<!": "a web page, so the download failed",
    b"<h": "a web page, so the download failed",
    b"\xfd7zXZ": "an xz file",
    b"%%Mat": "a Matrix Market text file",
}
_EXPORT = (
    "write it from AnnData with adata.write_h5ad; from Seurat as docs/from-seurat.md says (JoinLayers, then the counts, cells as rows)"
)


class H5ad:
    """A checked .h5ad file: its tables, and its matrices on request.

    Attributes
    ----------
    obs, var
        Tables of cells and genes, indexed by their names as strings.
    layers, obsm
        Names of what the file holds.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        _check_signature(self.path)
        with self._open() as file:
            missing = [key for key in ("obs", "var") if key not in file]
            if missing:
                raise SctoolError(f"{path} ({self.path.stat().st_size:,} bytes) has no {' and no '.join(missing)}: {_guess(file)}", _EXPORT)
            try:
                self.obs = _table(file["obs"])
                self.var = _table(file["var"])
                self.raw_var = _table(file["raw/var"]) if "raw/var" in file else None
            except (KeyError, ValueError, TypeError, OSError) as error:
                raise SctoolError(f"{path}: its tables cannot be read ({error})", _EXPORT) from None
            self.layers = list(file.get("layers", {}))
            self.obsm = list(file.get("obsm", {}))
            sources = [*(["X"] if "X" in file else []), *(f"layers/{name}" for name in self.layers)]
            sources += ["raw/X"] if "raw/X" in file else []
            self.shapes = {source: _shape(file[source]) for source in sources}
            self.stored = {source: _stored(file[source]) for source in sources}
            self.nnz = {source: _nnz(file[source]) for source in sources}
        self._check_shapes()

    @property
    def n_cells(self) -> int:
        """Rows of obs."""
        return len(self.obs)

    def genes(self, source: str = "X") -> pd.DataFrame:
        """The table of genes that belongs to a matrix."""
        return self.raw_var if source == "raw/X" and self.raw_var is not None else self.var

    def matrix(self, source: str = "X") -> sp.csr_matrix:
        """A whole matrix as CSR float32 without stored zeros; ``source`` is ``X``, ``raw/X`` or ``layers/NAME``."""
        with self._open() as file:
            return as_csr(read_elem(file[source]))

    def blocks(self, source: str, starts: list[int], size: int) -> Iterator[sp.csr_matrix]:
        """Blocks of ``size`` rows as CSR float32, without reading the rest (but for column-compressed matrices)."""
        with self._open() as file:
            element = file[source]
            if self.stored[source] == "csr":
                rows: Any = sparse_dataset(element)
            else:
                rows = as_csr(read_elem(element)) if self.stored[source] == "csc" else element
            for start in starts:
                yield as_csr(rows[start : start + size])

    def embedding(self, key: str) -> np.ndarray[Any, Any]:
        """``obsm[key]`` as a float array of shape (cells, dimensions)."""
        if key not in self.obsm:
            raise SctoolError(f"{self.path} has no obsm {key!r}; it has: {', '.join(self.obsm) or 'none'}", near(key, self.obsm))
        with self._open() as file:
            z_nl = read_elem(file[f"obsm/{key}"])
        z_nl = np.asarray(z_nl.toarray() if sp.issparse(z_nl) else z_nl, dtype=np.float32)
        self._require_finite(key, z_nl)
        return z_nl

    def embedding_blocks(self, key: str, size: int) -> Iterator[np.ndarray[Any, Any]]:
        """:meth:`embedding` in blocks of ``size`` cells, without reading the rest where it is stored dense."""
        if key not in self.obsm or self._is_table(key):
            whole = self.embedding(key)
            yield from (whole[at : at + size] for at in range(0, len(whole), size))
            return
        with self._open() as file:
            stored = file[f"obsm/{key}"]
            for at in range(0, self.n_cells, size):
                z_nl = np.asarray(stored[at : at + size], dtype=np.float32)
                self._require_finite(key, z_nl)
                yield z_nl

    def _is_table(self, key: str) -> bool:
        with self._open() as file:
            return not isinstance(file[f"obsm/{key}"], h5py.Dataset)

    @staticmethod
    def _require_finite(key: str, z_nl: np.ndarray[Any, Any]) -> None:
        bad = int((~np.isfinite(z_nl)).any(1).sum())
        if bad:
            raise SctoolError(f"obsm[{key!r}] has NaN or infinite values in {bad} cells", "drop those cells, or compute it again")

    def given_embedding(self, config: Config) -> np.ndarray[Any, Any] | None:
        """What ``ar.embedding`` names, where cells are drawn by it."""
        return self.embedding(config.ar.embedding) if config.ar.embedding and config.train.sampler == "adaptive" else None

    def column(self, key: str, flag: str = "") -> pd.Series:
        """A column of obs.

        Raises
        ------
        SctoolError
            With the nearest name there is.
        """
        if key not in self.obs:
            columns = list(map(str, self.obs.columns))
            listed = ", ".join(columns[:20]) or "none"
            raise SctoolError(
                f"{self.path.name}: obs has no column {key!r}" + (f" ({flag})" if flag else "") + f"; it has: {listed}", near(key, columns)
            )
        return self.obs[key]

    @contextmanager
    def _open(self) -> Iterator[h5py.File]:
        try:
            with h5py.File(self.path, "r") as file:
                yield file
        except PermissionError:
            raise SctoolError(f"{self.path}: no permission to read it", "ask its owner, or copy it") from None
        except OSError as error:
            text = " ".join(str(error).split())
            what = "is cut short or damaged" if "truncated" in text or "address" in text or "read" in text else "cannot be opened"
            raise SctoolError(f"{self.path} {what}: {text[:200]}", "copy or download it again and compare the size") from None

    def _check_shapes(self) -> None:
        if not self.shapes:
            raise SctoolError(f"{self.path} has no X and no layers", _EXPORT)
        for source, (rows, columns) in self.shapes.items():
            genes = len(self.genes(source))
            if (rows, columns) == (self.n_cells, genes):
                continue
            if (rows, columns) == (genes, self.n_cells):
                raise SctoolError(
                    f"{source} is {rows} x {columns} but obs has {self.n_cells} rows and var {genes}: cells and genes are swapped",
                    "transpose it: AnnData wants cells as rows (Seurat keeps genes as rows)",
                )
            raise SctoolError(f"{source} is {rows} x {columns} but obs has {self.n_cells} rows and var {genes}", _EXPORT)
        if self.n_cells == 0 or len(self.var) == 0:
            raise SctoolError(f"{self.path} is empty: {self.n_cells} cells x {len(self.var)} genes", _EXPORT)


def read_lines(path: Path) -> list[str]:
    """Lines of a text file that are not empty.

    Raises
    ------
    SctoolError
        If it is not text.
    """
    try:
        return [line for line in path.read_text().splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise SctoolError(f"{path} is not a text file", "give one name (or pair) to a line") from None


def near(name: str, names: list[str]) -> str:
    """A remedy that points to the nearest name, by letters or by content."""
    low = {other.lower(): other for other in reversed(names)}
    found = difflib.get_close_matches(name.lower(), low, n=1, cutoff=0.5)
    inside = [other for other in names if name.lower() in other.lower() or other.lower() in name.lower()]
    best = low[found[0]] if found else (inside[0] if inside else "")
    return f"did you mean {best!r}?" if best else "give one of those names"


def as_csr(matrix: Any) -> sp.csr_matrix:
    """A matrix just read, as CSR float32, sorted, without stored zeros; its arrays may be reused."""
    csr = sp.csr_matrix(matrix)
    # Files may hold int64 ends beside int32 indices, which SciPy's routines refuse; the constructor makes them agree.
    csr = sp.csr_matrix((csr.data.astype(np.float32, copy=False), csr.indices, csr.indptr), shape=csr.shape)
    csr.sum_duplicates()
    csr.eliminate_zeros()
    return csr


def _check_signature(path: Path) -> None:
    if not path.exists():
        others = sorted(other.name for other in path.parent.glob("*.h5ad")) if path.parent.is_dir() else []
        hint = near(path.name, others) if others else "check the path"
        raise SctoolError(f"{path}: no such file", hint if not others else f"{hint} ({path.parent} has {', '.join(others[:5])})")
    if path.is_dir():
        raise SctoolError(f"{path} is a folder, not an .h5ad file", "give the file itself (.zarr stores are not read)")
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except PermissionError:
        raise SctoolError(f"{path}: no permission to read it", "ask its owner, or copy it") from None
    if not head:
        raise SctoolError(f"{path} is empty (0 bytes)", "copy or download it again")
    if head != _SIGNATURE:
        kind = next((kind for start, kind in _OTHER_KINDS.items() if head.startswith(start)), f"unknown, it starts with {head.hex(' ')}")
        raise SctoolError(f"{path} is not an .h5ad (HDF5) file but {kind}", _EXPORT)


def _guess(file: h5py.File) -> str:
    keys = set(file)
    if {"cell_names", "active.ident"} & keys or "assays" in keys:
        return "this is an h5Seurat file"
    if {"row_attrs", "col_attrs"} <= keys:
        return "this is a loom file"
    if "matrix" in keys:
        return "this is a 10x .h5 file; read it with scanpy.read_10x_h5"
    return "the export failed" if not keys else f"it holds {', '.join(sorted(keys)[:6])}"


def _table(element: Any) -> pd.DataFrame:
    table = read_elem(element)
    if not isinstance(table, pd.DataFrame):  # written by anndata before 0.7
        raise ValueError("written by a version of anndata before 0.7; open and save it with a newer one")
    table.index = pd.Index(table.index.astype(str).to_numpy(object))
    for key in table.columns:
        if isinstance(table[key].dtype, pd.StringDtype):  # written by anndata 0.13; older ones refuse to write it again
            table[key] = table[key].astype(object).where(table[key].notna(), np.nan)
    return table


def _stored(element: Any) -> str:
    if isinstance(element, h5py.Dataset):
        return "dense"
    kind = element.attrs.get("encoding-type", element.attrs.get("h5sparse_format", ""))
    return {"csr_matrix": "csr", "csc_matrix": "csc", "csr": "csr", "csc": "csc"}.get(str(kind), str(kind))


def _shape(element: Any) -> tuple[int, int]:
    shape = element.shape if isinstance(element, h5py.Dataset) else element.attrs.get("shape", element.attrs.get("h5sparse_shape"))
    if shape is None or len(shape) != 2:
        raise SctoolError(f"{element.name} is not a matrix (shape {shape})", _EXPORT)
    return int(shape[0]), int(shape[1])


def _nnz(element: Any) -> int:
    return int(np.prod(element.shape)) if isinstance(element, h5py.Dataset) else int(element["data"].shape[0])
