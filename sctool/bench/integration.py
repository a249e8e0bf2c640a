"""Integration: how well batches are mixed and biology is kept in an embedding, beside the same cells without integration.

The scores of scIB (Luecken et al. 2022): total = 0.4 batch + 0.6 bio. A table says what became of each type, which no mean shows.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sctool.bench.entries import FEWEST_CELLS, load_embedding, open_entries
from sctool.bench.evaluation import Evaluation
from sctool.bench.unintegrated import run_peers, unintegrated_pca
from sctool.bench.zero_shot import Contestant
from sctool.config import Config
from sctool.data.expression import read_expression
from sctool.data.read import H5ad
from sctool.data.splits import select
from sctool.errors import SctoolError
from sctool.metrics.integration import BATCH_SCORES, BESIDE, BIO_SCORES, RAW_SCORES, integration_scores
from sctool.metrics.kbet import FEWEST_CELLS as FEWEST_OF_TYPE
from sctool.metrics.type_audit import type_audit

Say = Callable[[str], None]
PCA_NAME = "unintegrated PCA"
COLUMNS = ("total", "batch", "bio", *BATCH_SCORES, *BIO_SCORES, *BESIDE, *RAW_SCORES)
WITHOUT_LABELS = ("ilisi", "pcr_comparison", "raw_blisi")
FALLEN = 0.1
"""A type whose purity falls by more is said to be merged."""
PICTURED = 10_000


def scored_cells(batches: NDArray[Any], labels: NDArray[Any], keys: tuple[str, str], say: Say = lambda text: None) -> NDArray[np.bool_]:
    """Which cells take part: those with a label that ten cells or more have.

    Raises
    ------
    SctoolError
        Where nothing can be scored: one batch, one label, too few cells, or each label in a batch of its own.
    """
    batch_key, label_key = keys
    _check_batches(batches, batch_key)
    known = pd.notna(labels)
    counts = pd.Series(labels[known]).astype(str).value_counts()
    frequent = set(counts.index[counts >= FEWEST_OF_TYPE])
    kept = known & np.isin(labels.astype(str), list(frequent))
    if not known.all():
        say(f"{int((~known).sum()):,} of {len(labels):,} cells have no {label_key} and are left out of the scores")
    rare = counts[counts < FEWEST_OF_TYPE]
    if len(rare):
        listed = ", ".join(f"{name} ({n})" for name, n in rare.head(5).items()) + (", ..." if len(rare) > 5 else "")
        say(f"types of fewer than {FEWEST_OF_TYPE} cells are left out of the scores, not of per_type.csv: {listed}")
    if kept.sum() < FEWEST_CELLS:
        raise SctoolError(
            f"only {int(kept.sum())} cells have a label in obs[{label_key!r}] that {FEWEST_OF_TYPE} cells or more share",
            "give another --label-key, or more cells",
        )
    if len(frequent) < 2:
        raise SctoolError(
            f"obs[{label_key!r}] has one type only ({next(iter(frequent))!r}): biology kept cannot be scored", "give another --label-key"
        )
    table = pd.DataFrame({"label": labels[kept].astype(str), "batch": batches[kept]})
    _check_batches(table["batch"].to_numpy(), batch_key)
    spread = table.groupby("label")["batch"].agg(["nunique", "size"])
    if not ((spread["nunique"] > 1) & (spread["nunique"] < spread["size"])).any():
        raise SctoolError(
            f"no type of obs[{label_key!r}] is in two batches of obs[{batch_key!r}]: batches and types cannot be told apart",
            "give another --batch-key or --label-key",
        )
    return kept


def _check_batches(batches: NDArray[Any], key: str) -> None:
    if len(set(batches)) < 2:
        raise SctoolError(f"obs[{key!r}] has one batch only ({batches[0]!r}) among the cells to score", "give another --batch-key")


def score_embeddings(
    contestants: list[Contestant],
    pca_np: NDArray[np.float32],
    batches: NDArray[Any],
    labels: NDArray[Any] | None,
    cells: NDArray[Any],
    *,
    keys: tuple[str, str] = ("batch", "cell_type"),
    say: Say = lambda text: None,
) -> Evaluation:
    """Score embeddings of the same cells beside their PCA without integration.

    Parameters
    ----------
    contestants
        Embeddings with one row for each cell; those of arm ``baseline`` count as such.
    pca_np
        See :func:`sctool.bench.unintegrated.unintegrated_pca`.
    batches, labels
        Of each cell; a missing label (None, NaN) is no label. Without any (None), only mixing is scored.
    cells
        Names.
    keys
        Columns that batches and labels come from.
    say
        Told what is left out.

    Raises
    ------
    SctoolError
        See :func:`scored_cells`.
    """
    batches = np.asarray(batches).astype(str)
    if labels is None:
        _check_batches(batches, keys[0])
        kept = known = np.ones(len(batches), bool)
        names = None
    else:
        labels = np.asarray(labels, object)
        kept, known = scored_cells(batches, labels, keys, say), pd.notna(labels)
        names = labels.astype(str)
    scores, audits = [], []
    for one in [*contestants, Contestant(PCA_NAME, "baseline", -1, pca_np)]:
        say(f"scoring {one.name}")
        mine: dict[str, Any] = {"name": one.name, "arm": one.arm, "seed": one.seed}
        made = integration_scores(one.z_nl[kept], batches[kept], None if names is None else names[kept], pca_np[kept])
        scores.append({**mine, **made.values})
        if names is not None:
            audit = type_audit(one.z_nl[known], batches[known], names[known])
            audits.append(audit.assign(kbet=audit["label"].map(made.kbet), **mine))
    columns = COLUMNS if names is not None else WITHOUT_LABELS
    table = pd.DataFrame(scores)[["name", "arm", "seed", *columns]]
    about: dict[str, Any] = {"cells": int(kept.sum()), "batches": len(set(batches[kept])), "batch_key": keys[0]}
    cells_table = pd.DataFrame({"cell": cells[kept], "batch": batches[kept]})
    tables = {"cells": cells_table}
    notes: list[str] = []
    if names is not None:
        per_type = _compared(pd.concat(audits, ignore_index=True))
        tables["per_type"], tables["cells"] = per_type, cells_table.assign(label=names[kept])
        risks = per_type[per_type["finding"] != ""]
        notes = [_sentence(row) for _, row in risks.iterrows()]
        about |= {"types": len(set(names[kept])), "label_key": keys[1], "left_out": int((~kept).sum()), "raw_scales": RAW_SCORES}
        about["total"] = f"0.4 batch + 0.6 bio; batch: mean of {', '.join(BATCH_SCORES)}; bio: mean of {', '.join(BIO_SCORES)}"
        shown = ["name", "label", "finding", "cells", "knn_purity", "purity_change", "nearest_other", "nearest_other_share"]
        about["types_at_risk"] = risks[shown].to_dict("records")
    seen = np.sort(np.random.default_rng(0).permutation(int(kept.sum()))[:PICTURED])
    tables["cells"] = tables["cells"].iloc[seen]
    files = _file_names([one.name for one in contestants] + [PCA_NAME])
    arrays = {files[one.name]: one.z_nl[kept][seen].astype(np.float32) for one in contestants} | {files[PCA_NAME]: pca_np[kept][seen]}
    about["embeddings"] = {name: f"{file}.npy" for name, file in files.items()}
    decide = ("total", "batch", "bio") if names is not None else ("ilisi",)
    return Evaluation("integration", table, columns, about, tables, arrays, decide=decide, notes=tuple(notes))


def _compared(per_type: pd.DataFrame) -> pd.DataFrame:
    """Add how the purity of a type changed against the PCA, and what that means."""
    before = per_type[per_type["name"] == PCA_NAME].set_index("label")
    change = per_type["knn_purity"] - per_type["label"].map(before["knn_purity"])
    lost, lost_before = per_type["vote"] != per_type["label"], per_type["label"].map(before["vote"]) != per_type["label"]
    finding = np.select([lost & ~lost_before, change < -FALLEN, lost], ["lost", "merged", "never apart"], "")
    finding = np.where((per_type["cells"] < FEWEST_OF_TYPE) | (per_type["name"] == PCA_NAME), "", finding)
    per_type = per_type.assign(purity_change=change, finding=finding)
    order = ["label", "cells", "share", "batches", "knn_purity", "purity_change", "nearest_other", "nearest_other_share", "kbet"]
    return per_type[["name", "arm", "seed", *order, "recall", "vote", "finding"]]


def _sentence(row: pd.Series) -> str:
    start = f"{row['name']}: {row['label']} ({row['cells']} cells)"
    mixed = f"kNN purity {row['knn_purity']:.2f}, {row['knn_purity'] - row['purity_change']:.2f} without integration"
    other = f"nearest other {row['nearest_other']} ({row['nearest_other_share']:.0%} of neighbours)"
    words = {
        "lost": f"is lost: its neighbours vote {row['vote']}",
        "merged": "is mixed with others",
        "never apart": f"is not told from {row['vote']}, nor is it without integration",
    }
    return f"{start} {words[row['finding']]}; {mixed}; {other}"


def _file_names(names: list[str]) -> dict[str, str]:
    files: dict[str, str] = {}
    for at, name in enumerate(names):
        file = "embedding-" + re.sub(r"[^\w.-]+", "-", name).strip("-")
        files[name] = f"{file}-{at}" if file in files.values() else file
    return files


def evaluate_integration(
    path: Path, models: list[Path], embeddings: list[str], config: Config, say: Say = lambda text: None, peers: bool = False
) -> Evaluation:
    """Score models and embeddings of other tools on the cells of a file, those of training too, or those of ``data.hold_out``.

    Parameters
    ----------
    path
        The file.
    models, embeddings
        Model folders; ``obsm:KEY``, .npy or .csv.
    config
        Of which ``data.batch_key`` and ``data.label_key`` must be set.
    say
        Told which cells are scored.
    peers
        Run Harmony and scvi-tools' scVI on the same cells, where they are installed.
    """
    file = H5ad(path)
    batch, label = (
        _column(file, key, flag) for key, flag in ((config.data.batch_key, "--batch-key"), (config.data.label_key, "--label-key"))
    )
    if batch.name == label.name:
        raise SctoolError(f"--batch-key and --label-key are both {batch.name!r}", "give two different columns")
    rows = np.flatnonzero(select(file.obs, config.data.hold_out)) if config.data.hold_out else np.arange(file.n_cells)
    missing = int(batch.iloc[rows].isna().sum())
    if missing:
        raise SctoolError(f"{missing} of {len(rows)} cells have no value in obs[{batch.name!r}]", "fill it in, or leave those cells out")
    batches, labels = batch.iloc[rows].astype(str).to_numpy(), label.iloc[rows].astype(object).to_numpy()
    keys = (str(batch.name), str(label.name))
    scored_cells(batches, labels, keys)  # before any work is done
    loaded = [(spec, *load_embedding(spec, file)) for spec in embeddings]
    entries = open_entries(models, path, config)
    which = f" that meet {config.data.hold_out}" if config.data.hold_out else ""
    say(f"scored on {len(rows):,} cells{which}, also those a model was trained on: they are what it integrates")
    contestants = [Contestant(entry.name, entry.arm, entry.seed, entry.query.embed(rows)) for entry in entries]
    for spec, name, z_nl in loaded:
        taken = {PCA_NAME, *(other.name for other in contestants)}
        contestants.append(Contestant(spec if name in taken else name, "embedding", -1, z_nl[rows]))
    log_ng, found = read_expression(file, config.data, 1e4)
    say(f"{PCA_NAME}: of {found.source}, {found.kind}")
    pca_np = unintegrated_pca(log_ng[rows])
    del log_ng
    if peers:
        made_by = run_peers(file, config.data.counts_layer, rows, pca_np, batches, config.seed, say)
        contestants += [Contestant(name, "baseline", config.seed, z_nl) for name, z_nl in made_by.items()]
    made = score_embeddings(contestants, pca_np, batches, labels, file.obs.index[rows].to_numpy(), keys=keys, say=say)
    told = [entry.name for entry in entries if entry.folder.manifest["data"].get("mode", "unsupervised") != "unsupervised"]
    if not told:
        return made
    note = f"trained with labels, which flatters bio where these cells or labels were seen (--hold-out scores others): {', '.join(told)}"
    return replace(made, notes=(*made.notes, note), about={**made.about, "trained_with_labels": told})


def _column(file: H5ad, key: str | None, flag: str) -> pd.Series:
    if key is None:
        raise SctoolError(f"{flag} is missing", f"give a column of obs; there are: {', '.join(map(str, file.obs.columns[:20]))}")
    return file.column(key, flag)
