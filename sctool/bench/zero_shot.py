"""Zero-shot classification: how well the latent space of a trained model separates types it was never told of.

Half of the cells are the reference of a k-nearest-neighbour vote, the other half is predicted; repeated over split seeds
(spec of the AR study; there one split, here several, with the posterior mean).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier

from sctool.bench.entries import FEWEST_CELLS, load_embedding, open_entries, rows_to_score
from sctool.bench.evaluation import Evaluation, with_training_cells
from sctool.config import Config
from sctool.data.genes import variable_genes
from sctool.data.matrix_kind import find_counts
from sctool.data.read import H5ad
from sctool.errors import SctoolError
from sctool.metrics.classification import classification_scores, per_class_scores
from sctool.metrics.reconstruction import log1p_cp10k

Say = Callable[[str], None]
BASELINES = ("pca", "log expression", "majority")


@dataclass(frozen=True)
class Contestant:
    """An embedding of the evaluated cells; ``arm`` and ``seed`` say how its model was trained."""

    name: str
    arm: str
    seed: int
    z_nl: NDArray[np.float32]


@dataclass(frozen=True)
class ZeroShot:
    """Tables of an evaluation."""

    scores: pd.DataFrame
    """One row per contestant or baseline and split: ``name, arm, seed, split``, and the scores."""
    per_type: pd.DataFrame
    """One row per contestant or baseline and type, mean over splits: ``name, arm, seed, label, cells, precision, recall, f1``."""
    predictions: pd.DataFrame
    """``cell, split, label``, and a column of predictions per contestant."""


def zero_shot(
    contestants: list[Contestant],
    counts_ng: NDArray[np.float32],
    labels: NDArray[Any],
    cells: NDArray[Any],
    *,
    splits: int = 5,
    neighbors: int = 5,
    components: int = 10,
) -> ZeroShot:
    """Score embeddings and the baselines that need no model.

    Parameters
    ----------
    contestants
        Embeddings of the same cells.
    counts_ng
        Counts for the baselines (PCA of log1p CP10k, fitted on the reference half; and all genes of it), shape (cells, genes).
    labels, cells
        Type and name of each cell.
    splits, neighbors
        How many random halves; neighbours in the vote.
    components
        Of the PCA.
    """
    log_ng = log1p_cp10k(counts_ng).astype(np.float32)
    scores, per_type, predictions = [], [], []
    for split in range(splits):
        reference, query = train_test_split(np.arange(len(labels)), train_size=0.5, test_size=0.5, random_state=split)
        pca = PCA(min(components, len(reference) - 1, log_ng.shape[1]), random_state=0).fit(log_ng[reference])
        spaces = [(c.name, c.arm, c.seed, c.z_nl) for c in contestants]
        spaces += [("pca", "baseline", -1, pca.transform(log_ng)), ("log expression", "baseline", -1, log_ng)]
        predicted = {name: _vote(z_nl, labels, reference, query, neighbors) for name, _, _, z_nl in spaces}
        common, count = np.unique(labels[reference], return_counts=True)
        predicted["majority"] = np.full(len(query), common[count.argmax()])
        for name, arm, seed in [(n, a, s) for n, a, s, _ in spaces] + [("majority", "baseline", -1)]:
            truth = labels[query]
            scores.append({"name": name, "arm": arm, "seed": seed, "split": split, **classification_scores(truth, predicted[name])})
            per_type.append(per_class_scores(truth, predicted[name]).assign(name=name, arm=arm, seed=seed))
        part = pd.DataFrame({"cell": cells[query], "split": split, "label": labels[query]})
        predictions.append(part.assign(**{c.name: predicted[c.name] for c in contestants}))
    by_type = pd.concat(per_type).groupby(["name", "arm", "seed", "label"], sort=False, as_index=False).mean()
    by_type["cells"] = by_type["label"].map(pd.Series(labels).value_counts())
    return ZeroShot(pd.DataFrame(scores), by_type, pd.concat(predictions, ignore_index=True))


def _vote(
    z_nl: NDArray[np.float32], labels: NDArray[Any], reference: NDArray[np.int64], query: NDArray[np.int64], neighbors: int
) -> NDArray[Any]:
    knn = KNeighborsClassifier(min(neighbors, len(reference))).fit(z_nl[reference], labels[reference])
    return knn.predict(z_nl[query])


def evaluate_classification(
    path: Path, models: list[Path], embeddings: list[str], config: Config, *, include_trained: bool = False, say: Say = lambda text: None
) -> Evaluation:
    """Score models and embeddings of other tools on the labelled cells of a file that no model has seen.

    Parameters
    ----------
    path
        The file.
    models, embeddings
        Model folders; ``obsm:KEY``, .npy or .csv.
    config
        Of which ``data.label_key`` must be set.
    include_trained
        Score cells the models were trained on too.
    say
        Told which cells are scored.
    """
    file, key = H5ad(path), config.data.label_key
    if key is None:
        raise SctoolError(
            "--label-key is missing", f"give the obs column of cell types; there are: {', '.join(map(str, file.obs.columns))}"
        )
    labels = file.column(key, "--label-key").astype(object)
    entries = open_entries(models, path, config)
    rows = rows_to_score(file, entries, config, include_trained, say)
    rows = rows[labels.iloc[rows].notna().to_numpy()]
    if len(rows) < FEWEST_CELLS:
        raise SctoolError(f"only {len(rows)} cells to score have a label in obs[{key!r}]", "give another --label-key")
    contestants = [Contestant(entry.name, entry.arm, entry.seed, entry.query.embed(rows)) for entry in entries]
    for spec in embeddings:
        name, z_nl = load_embedding(spec, file)
        taken = {*BASELINES, *(other.name for other in contestants)}
        contestants.append(Contestant(spec if name in taken else name, "embedding", -1, z_nl[rows]))
    if entries:
        counts_ng = entries[0].query.observed(rows)
    else:
        counts = file.matrix(find_counts(file, config.data.counts_layer).source)[rows]
        counts_ng = counts[:, variable_genes(counts, config.data.n_top_genes)].toarray()
    truth = labels.iloc[rows].astype(str).to_numpy()
    scored = zero_shot(
        contestants,
        counts_ng,
        truth,
        file.obs.index[rows].to_numpy(),
        splits=config.eval.split_seeds,
        neighbors=config.eval.neighbors,
        components=contestants[0].z_nl.shape[1],
    )
    about = {"cells": len(rows), "types": len(set(truth)), "neighbors": config.eval.neighbors, "splits": config.eval.split_seeds}
    tables = {"per_type": with_training_cells(scored.per_type, entries, key), "predictions": scored.predictions}
    columns = ("macro_f1", "accuracy", "macro_precision", "macro_recall", "micro_f1")
    return Evaluation("classification", scored.scores, columns, about, tables)
