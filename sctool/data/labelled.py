"""Cells with labels, as classifiers read them: log-normalised genes or an embedding, who is trained on and who is not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from sctool.config import Config
from sctool.data.cache import take_rows
from sctool.data.check_classify import check_classify_file, features_of, split_masks
from sctool.data.expression import find_expression, log_normalise, read_matrix
from sctool.data.genes import gene_names
from sctool.data.integration import labels_of
from sctool.data.prepare import fingerprint
from sctool.data.read import H5ad
from sctool.data.splits import select
from sctool.errors import SctoolError

Rows = NDArray[np.int64]
THINNEST = 0.15
"""Least share of its counts that a thinned copy of a cell keeps."""


@dataclass(frozen=True)
class Labelled:
    """Cells, their labels and groups.

    Attributes
    ----------
    x_ng
        Log expression of all genes (CSR) or an embedding (dense), shape (cells, columns).
    counts
        Raw counts of the same genes, where the file has them.
    genes
        Names of the columns by kind; ``name`` is the main one.
    labels_n, groups_n
        Label ("" where it is missing) and group of each cell; groups are whole donors or batches that folds keep together.
    kind
        ``hvg``, ``all``, ``list`` or ``embedding``.
    """

    x_ng: Any
    counts: sp.csr_matrix | None
    obs: pd.DataFrame
    genes: dict[str, list[str]]
    labels_n: NDArray[Any]
    groups_n: NDArray[Any] | None
    kind: str
    wanted: list[str] | None
    target_sum: float | None
    about: dict[str, Any]
    train: Rows
    test: Rows
    dropped: pd.DataFrame
    """Cells left out: ``cell, label, reason``."""

    def read(self, rows: Rows, columns: NDArray[np.int64]) -> Any:
        """Some columns of some cells, shape (rows, columns), with the smaller copy made first."""
        if len(rows) > self.x_ng.shape[0] / 2:
            return self.x_ng[:, columns][rows]
        return self.x_ng[rows][:, columns]

    def augmented(self, rows: Rows, columns: NDArray[np.int64], copies: int, rng: np.random.Generator) -> Any:
        """Training cells, and so many thinned copies of each below them; shape (cells * (copies + 1), columns).

        A copy keeps each count with a probability drawn for the cell, from 0.15 to 1, so a classifier learns types at any depth and
        not the depth of a batch.
        """
        parts = [self.read(rows, columns)]
        if self.counts is None or not copies:
            return parts[0]
        counts = take_rows(self.counts, rows)
        whole = np.rint(counts.data).astype(np.int64)
        for _ in range(copies):
            share_n = rng.uniform(THINNEST, 1.0, len(rows))
            kept_e = rng.binomial(whole, np.repeat(share_n, np.diff(counts.indptr))).astype(np.float32)
            thin = sp.csr_matrix((kept_e, counts.indices, counts.indptr), shape=counts.shape)
            parts.append(log_normalise(thin, self.target_sum or 1e4)[:, columns])
        stacked = sp.vstack(parts, format="csr")
        stacked.eliminate_zeros()
        return stacked


def prepare_labelled(path: Path, config: Config) -> Labelled:
    """Read and check a file for classification.

    Raises
    ------
    SctoolError
        With every problem of the file at once.
    """
    data, classify = config.data, config.classify
    file = H5ad(path)
    checked = check_classify_file(file, config)
    checked.require_fit()
    obs = file.obs
    labels_n = labels_of(obs[data.label_key], classify.missing_labels)
    train, test = split_masks(file, config)
    reason = np.full(len(obs), "", dtype=object)
    if data.cells:
        reason[~select(obs, data.cells)] = f"not {data.cells}"
    reason[(reason == "") & ~(train | test)] = "in neither side of the split"
    reason[(reason == "") & (labels_n == "")] = "no label"
    used = reason == ""
    names, sizes = np.unique(labels_n[used & train], return_counts=True)
    rare = set(names[sizes < classify.min_cells])
    reason[used & train & np.isin(labels_n, list(rare))] = f"fewer than {classify.min_cells} training cells of its type"
    kind, wanted = features_of(classify.features)
    counts, target, read = None, None, classify.features
    if kind == "embedding":
        x_ng: Any = file.embedding(classify.features.removeprefix("obsm:"))
        genes = {"name": [f"{classify.features.removeprefix('obsm:')}_{i}" for i in range(x_ng.shape[1])]}
        var = pd.DataFrame(index=genes["name"])
    else:
        found = find_expression(file, data)
        x_ng, counts = read_matrix(file, found, data.target_sum)
        var, read, genes = found.var, found.source, gene_names(found.var)
        target = data.target_sum if counts is not None else found.kind.target or None
        reason[(reason == "") & (np.diff(x_ng.indptr) == 0)] = "no counts"
    if wanted is not None:
        absent = sorted(set(wanted) - set(genes["name"]))
        if len(absent) == len(set(wanted)):
            raise SctoolError(
                f"none of the {len(absent)} genes of {classify.features} is in {path.name}, e.g. {absent[0]}", "use its names"
            )
        checked.notes += [f"{len(absent)} genes of {classify.features} are not in the file, e.g. {absent[0]}"] if absent else []
    ok = reason == ""
    groups = group_key(config)
    out = pd.DataFrame({"cell": obs.index[~ok], "label": labels_n[~ok], "reason": reason[~ok]})
    about: dict[str, Any] = {"file": str(path), "read": read, "cells": len(obs), "genes": len(var), "notes": checked.notes}
    about["fingerprint"] = fingerprint(obs, var, sp.csr_matrix(x_ng) if counts is None else counts)
    made = Labelled(
        x_ng,
        counts,
        obs,
        genes,
        labels_n,
        obs[groups].astype(str).to_numpy() if groups else None,
        kind,
        wanted,
        target,
        about,
        np.flatnonzero(train & ok),
        np.flatnonzero(test & ok),
        out,
    )
    if len(np.unique(labels_n[made.train])) < 2:
        only = ", ".join(np.unique(labels_n[made.train])) or "none"
        raise SctoolError(f"the training cells are of one type only: {only}", "two types at least are needed; lower classify.min_cells")
    return made


def group_key(config: Config) -> str | None:
    """The column whose groups folds keep together: donors, else batches, else the values that were split by."""
    classify = config.classify
    by_split = classify.split_key if len(classify.split_train) != 1 else None
    return config.data.group_key or config.data.batch_key or by_split
