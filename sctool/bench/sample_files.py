"""Tables of what a network makes of samples: embeddings, distances, predictions, importance of cells."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from sctool.artifacts.atomic import atomic_file
from sctool.bench.sample_importance import ByType, importance_blocks, importance_tests
from sctool.data.cohort import OWN, Cohort, Task, text
from sctool.engine.samples import Blocks, Embedded, Seen
from sctool.nn.heads import decode_ordinal


def embeddings_table(cohort: Cohort, embedded: Embedded, shown: Sequence[str] = ()) -> pd.DataFrame:
    """``sample, donor, n_cells, enough_cells``, columns of obs worth colouring by, and ``e1 ... eD``."""
    table = cohort.table
    columns = [key for key in table if key not in OWN and (key in shown or 1 < table[key].nunique() <= 30)]
    out = table[[*OWN, *columns]].copy()
    for key in shown:  # as their tasks call them, or 1.0 would be another class than 1
        out[key] = text(table[key])
    out.insert(3, "enough_cells", cohort.usable_s)
    dims = pd.DataFrame(embedded.embedding_sd, columns=[f"e{i + 1}" for i in range(embedded.embedding_sd.shape[1])])
    return pd.concat([out.reset_index(drop=True), dims], axis=1)


def distances_table(cohort: Cohort, z_sd: NDArray[np.float32]) -> pd.DataFrame:
    """Euclidean distance of each pair of samples, with a column for each."""
    table = pd.DataFrame(cdist(z_sd, z_sd), columns=cohort.samples.astype(str))
    table.insert(0, "sample", cohort.samples)
    return table


def answer_columns(task: Task, values_sc: NDArray[np.float64], share_c: NDArray[np.float64] | None = None) -> pd.DataFrame:
    """``prediction`` and, of classes and levels, ``p_NAME`` of each; of levels also ``expected``, the mean level.

    A class is called where it is most probable beside its frequency ``share_c``, so that a rare one is called at all.
    """
    if task.kind == "regression":
        return pd.DataFrame({"prediction": values_sc[:, 0]})
    known = np.asarray(np.isfinite(values_sc).all(1))
    order = np.array(task.order, object)
    if task.kind == "ordinal":
        best = decode_ordinal(torch.as_tensor(1 - np.cumsum(values_sc, 1)[:, :-1]))[0].numpy()
    else:
        best = (np.where(known.reshape(-1, 1), values_sc, 0) / (1 if share_c is None else share_c)).argmax(1)
    table = pd.DataFrame({"prediction": np.where(known, order[best], "")})
    if task.kind == "ordinal":
        table["expected"] = values_sc @ np.arange(len(order))
    for number, name in enumerate(task.order):
        table[f"p_{name}"] = values_sc[:, number]
    return table


def write_importance(
    folder: Path,
    module: Any,
    seen: Seen,
    blocks: Blocks,
    cohort: Cohort,
    rng: np.random.Generator,
    tasks: Sequence[Task] = (),
    evidence: pd.DataFrame | None = None,
) -> float | None:
    """Write ``cell_importance.csv.gz`` and, with cell types, ``importance_by_celltype.csv`` and ``importance_tests.csv``.

    Parameters
    ----------
    tasks, evidence
        What types of cells add to the answers for held-out donors, where there are any: :func:`evidence_by_type`.

    Returns
    -------
    How well the networks for the tasks agree: mean rank correlation of their importances of cells; None without tasks.
    """
    by_type = ByType(cohort) if cohort.types_n is not None else None
    agreement: list[float] = []
    with (
        atomic_file(folder / "cell_importance.csv.gz") as partial,
        partial.open("wb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=4, mtime=0) as file,  # the same bytes at every call
    ):
        for number, block in enumerate(importance_blocks(module, seen, blocks, cohort)):
            own = [key for key in block if str(key).startswith("network_")]
            if own and len(block) > 1:
                agreement.append(float(block[own].corr("spearman").to_numpy()[np.triu_indices(len(own), 1)].mean()))
            block.drop(columns=own).to_csv(file, index=False, header=number == 0, float_format="%.6g")
            if by_type is not None:
                by_type.add(block)
    if by_type is not None:
        table = by_type.table()
        if evidence is not None:
            table = table.merge(evidence, on=["sample", "cell_type"], how="left")
        table.to_csv(folder / "importance_by_celltype.csv", index=False)
        importance_tests(table, tasks, rng).to_csv(folder / "importance_tests.csv", index=False)
    return float(np.mean(agreement)) if agreement else None
