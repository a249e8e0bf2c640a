"""What detectors read of a cell: scaled features, principal components, counts, logits, latent codes; all learned on known cells only.

A :class:`Space` is fitted on known cells: the choice and scale of genes, the principal components, the classifiers. It turns expression
into :class:`Cells`, which make each piece when a detector first asks for it, so that detectors share the work. Nothing here looks at
one cell to place another: the pieces of a cell are the same whichever cells come along with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from sctool.models.classify.balance import class_weights
from sctool.models.classify.base import Classifier
from sctool.models.classify.features import Features, choose_columns
from sctool.models.classify.registry import make_classifier
from sctool.sections import ClassifyConfig

CLASSIFIERS = ("lr", "xgb")
ON_UNIT = ("lr",)
"""Trees read one gene at a time: its level in the cell, not its share of a length."""
PARAMETERS = ClassifyConfig(
    lr_c=0.1,
    xgb={"max_rounds": 100, "eta": 0.1, "max_depth": 4, "subsample": 0.8, "colsample_bytree": 0.3, "min_child_weight": 1.0, "max_bin": 64},
)
"""Of the classifiers, here: fewer rounds and coarser bins than for labels, as the energy of a cell settles earlier than its class."""


@dataclass(frozen=True)
class Expression:
    """Cells of a file.

    Attributes
    ----------
    log_ng
        Log-normalised expression, CSR of shape (cells, genes of the file).
    counts_ng
        Raw counts alike; None where the file has logarithms only.
    """

    log_ng: sp.csr_matrix
    counts_ng: sp.csr_matrix | None

    def __len__(self) -> int:
        return int(self.log_ng.shape[0])

    def variable(self, n: int) -> NDArray[np.int64]:
        """Columns of the ``n`` most variable genes; 0 takes all that are seen."""
        return choose_columns("hvg", self.log_ng, self.counts_ng, n, [])

    def take(self, rows: NDArray[np.int64]) -> Expression:
        """Some of the cells."""
        return Expression(self.log_ng[rows], None if self.counts_ng is None else self.counts_ng[rows])


class Cells:
    """Cells as detectors see them.

    Parameters
    ----------
    space
        Fitted on the known cells.
    expression
        Of these cells.
    columns_f
        Where the file has each feature, -1 where it lacks it.
    code_n
        Type of each cell, where known; shape (cells,).
    pcs_nl, latent_nl
        Given, where they are there already.
    """

    def __init__(
        self,
        space: Space,
        expression: Expression | None,
        columns_f: NDArray[np.int64] | None = None,
        code_n: NDArray[np.int64] | None = None,
        pcs_nl: NDArray[np.float64] | None = None,
        latent_nl: NDArray[np.float32] | None = None,
    ) -> None:
        self.space, self._expression = space, expression
        self.columns_f = space.features.columns if columns_f is None else columns_f
        self._code_n = code_n
        self._latent_nl = latent_nl
        if pcs_nl is not None:
            self.__dict__["pcs_nl"] = pcs_nl
        self._logits: dict[str, NDArray[np.float64]] = {}

    @property
    def code_n(self) -> NDArray[np.int64]:
        """Type of each known cell, shape (cells,)."""
        assert self._code_n is not None, "these cells have no types"
        return self._code_n

    @property
    def latent_nl(self) -> NDArray[np.float32]:
        """Codes of a trained model, shape (cells, latent)."""
        assert self._latent_nl is not None, "these cells have no latent codes"
        return self._latent_nl

    @property
    def expression(self) -> Expression:
        """All genes of the file."""
        assert self._expression is not None, "only a representation of these cells was kept"
        return self._expression

    @cached_property
    def scaled_nf(self) -> sp.csr_matrix:
        """Log expression of the chosen genes over its standard deviation, CSR float32 of shape (cells, features)."""
        return sp.csr_matrix(self.space.features.transform(self.expression.log_ng, self.columns_f))

    @cached_property
    def unit_nf(self) -> sp.csr_matrix:
        """The same, each cell scaled to one length, which takes the rest of its depth out; for what adds genes up."""
        return sp.csr_matrix(replace(self.space.features, unit=True).transform(self.expression.log_ng, self.columns_f))

    def features(self, classifier: str) -> sp.csr_matrix:
        """What a classifier reads, shape (cells, features)."""
        return self.unit_nf if classifier in ON_UNIT else self.scaled_nf

    @cached_property
    def pcs_nl(self) -> NDArray[np.float64]:
        """Principal components of cells of one length, shape (cells, components)."""
        space = self.space
        # A sparse product goes row by row: no cell's value depends on how many others there are, to the last bit.
        return np.asarray(self.unit_nf @ space.loading_fl, np.float64) - space.mean_f @ space.loading_fl

    @cached_property
    def counts_nf(self) -> sp.csr_matrix:
        """Counts of the features the file has (relative expression, where it has logarithms only), CSR of shape (cells, features)."""
        there = np.flatnonzero(self.columns_f >= 0)
        source = self.expression.counts_ng
        part = (self.expression.log_ng if source is None else source)[:, self.columns_f[there]].astype(np.float64)
        if source is None:
            part.data = np.expm1(part.data)
        spread = sp.csr_matrix((np.ones(len(there)), (np.arange(len(there)), there)), shape=(len(there), len(self.columns_f)))
        return sp.csr_matrix(part @ spread)

    def logits(self, name: str) -> NDArray[np.float64]:
        """Of a classifier of known types, shape (cells, classes), float64."""
        if name not in self._logits:
            self._logits[name] = self.space.classifiers[name].logits(self.features(name))
        return self._logits[name]


@dataclass
class Space:
    """What was learned of known cells, apart from the detectors.

    Attributes
    ----------
    features
        The choice and scale of genes.
    mean_f, loading_fl
        Mean of the features of cells of one length, and principal directions; empty where no detector needs them.
    classifiers
        Of the known types, by name.
    """

    features: Features
    mean_f: NDArray[np.float64]
    loading_fl: NDArray[np.float64]
    classifiers: dict[str, Classifier] = field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        known: Expression,
        code_n: NDArray[np.int64],
        needs: Iterable[str],
        *,
        columns: NDArray[np.int64],
        n_components: int = 50,
        seed: int = 0,
        threads: int | None = None,
    ) -> tuple[Space, Cells]:
        """Learn scales, components and classifiers.

        Parameters
        ----------
        known
            Cells of known types.
        code_n
            Their types, 0 to K-1 without gaps.
        needs
            Of all detectors; only that is made.
        columns
            Of the expression, to read.
        n_components
            Principal components.

        Returns
        -------
        The space, and the known cells in it.
        """
        needs = set(needs)
        space = cls(Features.fit(known.log_ng, columns, unit=False), np.zeros(0), np.zeros((len(columns), 0)))
        cells = Cells(space, known, code_n=code_n)
        if "pcs" in needs:
            space._find_components(cells.unit_nf, n_components, seed)
        for name in sorted(needs & set(CLASSIFIERS)):
            model = space.classifiers[name] = make_classifier(name, PARAMETERS, seed=seed, threads=threads)
            model.fit(cells.features(name), code_n, class_weights(code_n))
        return space, cells

    def cells(self, expression: Expression, columns_f: NDArray[np.int64] | None = None) -> Cells:
        """Any cells, in this space."""
        return Cells(self, expression, columns_f)

    def _find_components(self, unit_nf: sp.csr_matrix, n_components: int, seed: int) -> None:
        from sklearn.decomposition import PCA

        n = min(n_components, min(unit_nf.shape) - 1)
        pca = PCA(n, svd_solver="arpack", random_state=seed).fit(unit_nf.astype(np.float64))
        self.mean_f, self.loading_fl = np.asarray(pca.mean_, np.float64).ravel(), np.ascontiguousarray(pca.components_.T)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All that :meth:`from_arrays` needs. The columns are those of the stored list of genes, in its order."""
        features = self.features
        out: dict[str, NDArray[Any]] = {"scale_f": features.scale_f, "filled_f": features.mean_f}
        out |= {"mean_f": self.mean_f, "loading_fl": self.loading_fl}
        return out | {f"{name}/{key}": array for name, model in self.classifiers.items() for key, array in model.arrays().items()}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]], threads: int | None = None) -> Space:
        """Become the space that gave these arrays."""
        scale_f = arrays["scale_f"]
        features = Features(np.arange(len(scale_f)), scale_f, arrays["filled_f"], unit=False)
        space = cls(features, arrays["mean_f"], arrays["loading_fl"])
        for name in CLASSIFIERS:
            own = {key.removeprefix(f"{name}/"): array for key, array in arrays.items() if key.startswith(f"{name}/")}
            if own:
                space.classifiers[name] = make_classifier(name, PARAMETERS, threads=threads)
                space.classifiers[name].restore(own)
        return space
