"""What the cells of samples are read as: a given embedding, principal components fitted on training cells, or a trained model's codes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from sctool.config import Config
from sctool.data.expression import find_expression, read_matrix
from sctool.data.genes import gene_names, variable_genes
from sctool.data.matrix_kind import Chosen
from sctool.data.read import H5ad
from sctool.errors import SctoolError

Mask = NDArray[np.bool_]
Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Projection:
    """Principal components of log expression.

    Attributes
    ----------
    columns
        Genes used, by their column in the file of training.
    mean_g, components_gf
        The projection is ``(x - mean) @ components``.
    """

    columns: NDArray[np.int64]
    mean_g: NDArray[np.float32]
    components_gf: NDArray[np.float32]

    def __call__(self, x_ng: sp.csr_matrix) -> Matrix:
        """Features of cells given the genes of ``columns`` only, shape (cells, features)."""
        return np.asarray(x_ng @ self.components_gf - self.mean_g @ self.components_gf, np.float32)


class Representation(Protocol):
    """Features of cells, fitted on those of some of them where anything is fitted."""

    @property
    def about(self) -> dict[str, Any]:
        """Where they came from, for the manifest."""

    @property
    def genes(self) -> dict[str, list[str]]:
        """Names of the genes by kind; none where features are given."""

    def features(self, train_n: Mask) -> Matrix:
        """Of all cells, shape (cells, features)."""

    def projection(self, train_n: Mask) -> Projection | None:
        """What makes features from genes; None where they are given."""


@dataclass(frozen=True)
class Given:
    """Features that something else has made, of shape (cells, features)."""

    x_nf: Matrix
    about: dict[str, Any]
    genes: dict[str, list[str]] = field(default_factory=lambda: {"name": []})

    def features(self, train_n: Mask) -> Matrix:
        """As they are."""
        return self.x_nf

    def projection(self, train_n: Mask) -> None:
        """Nothing is fitted."""


@dataclass
class Expression:
    """Principal components of the variable genes, both from the training cells.

    Attributes
    ----------
    x_ng
        Log expression of all genes, CSR of shape (cells, genes).
    logged
        Whether the file had logarithms, not counts.
    """

    x_ng: sp.csr_matrix
    counts: sp.csr_matrix | None
    genes: dict[str, list[str]]
    n_top: int
    n_components: int
    seed: int
    about: dict[str, Any]
    _last: tuple[bytes, Projection, Matrix] | None = None

    def features(self, train_n: Mask) -> Matrix:
        """Components of all cells."""
        return self._fitted(train_n)[2]

    def projection(self, train_n: Mask) -> Projection:
        """The components themselves."""
        return self._fitted(train_n)[1]

    def _fitted(self, train_n: Mask) -> tuple[bytes, Projection, Matrix]:
        key = np.packbits(train_n).tobytes()
        if self._last is None or self._last[0] != key:  # a fold asks for the same many times
            made = fit_projection(self.x_ng, self.counts, train_n, self.n_top, self.n_components, self.seed)
            self._last = key, made, made(self.x_ng[:, made.columns])
        return self._last


def fit_projection(
    x_ng: sp.csr_matrix, counts: sp.csr_matrix | None, train_n: Mask, n_top: int, n_components: int, seed: int
) -> Projection:
    """Variable genes and principal components of the training cells.

    Raises
    ------
    SctoolError
        If there are fewer cells or genes than components.
    """
    from sklearn.decomposition import PCA

    columns = variable_genes((x_ng if counts is None else counts)[train_n], n_top, logged=counts is None)
    train_ng = x_ng[train_n][:, columns]
    n = min(n_components, min(train_ng.shape) - 1)
    if n < 1:
        raise SctoolError(f"{train_ng.shape[0]} cells of {train_ng.shape[1]} variable genes have no principal components", "give more")
    pca = PCA(n, svd_solver="arpack", random_state=seed).fit(train_ng)
    return Projection(columns, pca.mean_.astype(np.float32), pca.components_.T.astype(np.float32))


def chosen(file: H5ad, config: Config) -> str:
    """``sampleclr.rep``; where it is not given, the principal components of the file, else those of its expression."""
    return config.sampleclr.rep or ("obsm:X_pca" if "X_pca" in file.obsm else "X")


def find_source(file: H5ad, config: Config) -> Chosen:
    """The matrix that ``X`` or ``layers:NAME`` stands for: where X holds logarithms and a layer counts, the counts, as for every model.

    Raises
    ------
    SctoolError
        If it is not there, or holds neither counts nor logarithms.
    """
    rep = chosen(file, config)
    name = rep.partition(":")[2]
    source = "X" if rep == "X" else f"layers/{name}"
    if source not in file.shapes:
        raise SctoolError(f"{file.path.name} has no {source}; it has: {', '.join(file.shapes)}", "give --rep one of those, or obsm:KEY")
    return find_expression(file, config.data if rep == "X" else config.data.model_copy(update={"counts_layer": name}))


def open_representation(file: H5ad, config: Config) -> Representation:
    """What ``sampleclr.rep`` names in a file: ``obsm:KEY``, ``layers:NAME`` or ``X``.

    Raises
    ------
    SctoolError
        With what the file has, if it is none of these.
    """
    rep = chosen(file, config)
    kind, _, name = rep.partition(":")
    if kind == "obsm" and name:
        note = f"{name} was made from all cells, those of test donors too, unless you made sure of the contrary: scores may flatter"
        return Given(file.embedding(name), {"rep": rep, "transductive": "unknown", "notes": [note]})
    if rep == "X" or (kind == "layers" and name):
        found = find_source(file, config)
        x_ng, counts = read_matrix(file, found, config.data.target_sum)
        about = {
            "rep": rep,
            "transductive": False,
            "expression": found.source,
            "target_sum": config.data.target_sum if counts is not None else found.kind.target,
        }
        n_top, n_components = config.data.n_top_genes, config.sampleclr.n_components
        return Expression(x_ng, counts, gene_names(found.var), n_top, n_components, config.seed, about)
    obsm = ", ".join(f"obsm:{key}" for key in file.obsm) or "no obsm"
    raise SctoolError(
        f"--rep {rep!r} is not known; {file.path.name} has {obsm}", "give obsm:KEY, layers:NAME, X, or a trained model's folder"
    )
