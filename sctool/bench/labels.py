"""Labels that any tool has called, against the truth: files of predictions, some with probabilities."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sctool.bench.evaluation import Evaluation
from sctool.config import Config
from sctool.data.check import check_names
from sctool.data.integration import labels_of
from sctool.data.labelled import group_key
from sctool.data.read import H5ad, near, read_lines
from sctool.errors import SctoolError
from sctool.metrics import classify as m
from sctool.metrics import confusions as calls
from sctool.models.classify.hierarchy import Hierarchy

LABEL_COLUMNS = ("label", "y_pred", "predicted_labels", "majority_voting", "prediction", "predicted", "cell_type")
NO_LABEL = ("Unassigned", "unassigned", "Unknown", "Heterogeneous", "Rejected", "nan", "NaN", "NA", "N/A", "None", "")
COLUMNS = ("f1_macro_present", "accuracy", "balanced_accuracy", "coverage", "accuracy_assigned")


def evaluate_labels(
    predictions: list[Path],
    truth: Path,
    config: Config,
    *,
    column: str | None = None,
    label_map: Path | None = None,
    hierarchy: Path | None = None,
    say: Callable[[str], None],
) -> Evaluation:
    """Score files of predicted labels against a column of a file, beside the commonest label.

    Parameters
    ----------
    predictions
        CSV files whose first column (or ``cell``) names cells; or result folders with a ``predictions.csv``. A ``proba.csv`` beside
        is read too.
    truth
        The .h5ad with ``data.label_key``.
    column
        The column of labels; default: the first of ``label, y_pred, predicted_labels, ...`` that is there.
    label_map
        TSV of a predicted label and what the truth calls it.
    hierarchy
        TSV of child and parent: adds the hierarchical F1, by which a broader right name counts in part.
    """
    if config.data.label_key is None:
        raise SctoolError("the column of true labels is not known", "give --label-key")
    file = H5ad(truth)
    for problem in check_names(file, file.var.iloc[:0]):
        raise problem
    labels = pd.Series(labels_of(file.column(config.data.label_key, "--label-key"), config.classify.missing_labels), file.obs.index)
    if not (labels != "").any():
        raise SctoolError(f"no cell of {truth.name} has a label in obs[{config.data.label_key!r}]", "give another --label-key")
    key = group_key(config)
    groups = file.column(key, "--group-key").astype(str) if key else None
    renamed = _read_map(label_map) if label_map else {}
    tree = Hierarchy.read(hierarchy) if hierarchy else None
    rng = np.random.default_rng(config.seed)
    rows: list[dict[str, Any]] = []
    tables: dict[str, pd.DataFrame] = {}
    documents: dict[str, Any] = {}
    notes: list[str] = []
    names = _names(predictions)
    for name, path in zip(names, predictions, strict=True):
        called, p = _read(path, column)
        called = called.replace(renamed)
        shared = labels.index.intersection(called.index)
        shared = shared[(labels[shared] != "").to_numpy()]
        if not len(shared):
            example = f"{called.index[0] if len(called) else 'none'}, the file like {labels.index[0]}"
            raise SctoolError(f"{path} has none of the labelled cells of {truth.name}: it names cells like {example}", "give its own file")
        left = int((labels != "").sum()) - len(shared)
        say(f"{name}: {len(shared):,} cells scored" + (f"; {left:,} labelled cells of {truth.name} are not in it" if left else ""))
        true, made = labels[shared].to_numpy(object), called[shared].to_numpy(object)
        told = [] if p is None else [renamed.get(c, c) for c in p.columns]
        classes = np.unique(np.concatenate([true, made[~np.isin(made, NO_LABEL)], told]).astype(str))
        truth_n = np.searchsorted(classes, true.astype(str))
        predicted_n = np.where(np.isin(made, NO_LABEL), -1, np.searchsorted(classes, made.astype(str)))
        p_nc = None if p is None else _aligned(p.rename(columns=renamed), shared, classes)
        known = np.isin(classes, np.unique(made.astype(str))) if p is None else np.isin(classes, told)
        scores = m.classify_scores(truth_n, predicted_n, p_nc, list(classes), known)
        if tree:
            scores["hierarchical_f1"] = tree.hierarchical_f1(true, made)
        rows.append({"name": name, "arm": "prediction", "seed": config.seed, "cells": len(shared), **scores})
        groups_n = groups[shared].to_numpy() if groups is not None else None
        table = calls.confusion_table(truth_n, predicted_n, list(classes))
        tables |= {
            f"{name}/confusion_matrix": table.rename_axis("").reset_index(),
            f"{name}/top_confusions": calls.top_confusions(table),
            f"{name}/metrics_by_class": m.per_class_table(truth_n, predicted_n, p_nc, list(classes), known),
        }
        if groups_n is not None:
            tables[f"{name}/metrics_by_group"] = m.per_group_table(groups_n, truth_n, predicted_n)
        documents[f"{name}/metrics.json"] = {
            **scores,
            "intervals_95": m.bootstrap_intervals(truth_n, predicted_n, groups_n, rng),
            "undefined": m.undefined_reasons(scores, truth_n, p_nc, known),
            "definitions": m.DEFINITIONS,
        }
        if name == names[0]:
            notes = calls.confusions_in_words(table)
            commonest = np.full(len(truth_n), np.bincount(truth_n).argmax())
            base = m.classify_scores(truth_n, commonest, None, list(classes), known)
            rows.append({"name": "commonest label", "arm": "baseline", "seed": config.seed, "cells": len(shared), **base})
    shown = COLUMNS if any(row.get("coverage", 1) < 1 for row in rows) else COLUMNS[:3]
    shown = (*shown, "hierarchical_f1") if tree else shown
    about = {"truth": str(truth), "label_key": config.data.label_key}
    return Evaluation("classify", pd.DataFrame(rows), shown, about, tables, notes=tuple(notes), files=documents)


def _names(predictions: list[Path]) -> list[str]:
    """The folder of each file, or its own name where that says more."""
    names = [path.parent.name if path.name == "predictions.csv" and path.parent.name else path.stem for path in predictions]
    return names if len(set(names)) == len(names) else [str(path).strip("/").replace("/", "-") for path in predictions]


def _read(path: Path, column: str | None) -> tuple[pd.Series, pd.DataFrame | None]:
    """Labels by cell, and probabilities where a ``proba.csv`` lies beside."""
    path = path / "predictions.csv" if path.is_dir() else path
    if not path.exists():
        raise SctoolError(f"{path}: no such file", "give a predictions.csv, or the folder of one")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, sep="\t" if path.suffix in (".tsv", ".txt") else ",")
    except (pd.errors.ParserError, UnicodeDecodeError, pd.errors.EmptyDataError) as error:
        raise SctoolError(f"{path} cannot be read as a table: {error}", "give a CSV with a column of cells and one of labels") from None
    cells = "cell" if "cell" in table else table.columns[0]
    column = column or next((name for name in LABEL_COLUMNS if name in table), None)
    if column is None or column not in table or column == cells:
        listed = ", ".join(map(str, table.columns[:10]))
        said = f"has no column {column!r}" if column else "has no column of labels that is known"
        raise SctoolError(f"{path} {said}; it has: {listed}", near(column, list(table.columns)) if column else "name it with --pred-column")
    if table[cells].duplicated().any():
        raise SctoolError(f"{path}: cell {table[cells][table[cells].duplicated()].iloc[0]} occurs more than once", "one row for each cell")
    proba = path.with_name("proba.csv")
    p = pd.read_csv(proba, dtype={0: str}).set_index("cell") if proba.exists() and path.name == "predictions.csv" else None
    if p is not None:
        p.index = p.index.astype(str)
    return table.set_index(cells)[column], p


def _aligned(p: pd.DataFrame, cells: pd.Index, classes: NDArray[Any]) -> NDArray[np.float64] | None:
    absent = cells.difference(p.index)
    if len(absent):
        raise SctoolError(
            f"proba.csv lacks {len(absent)} of the cells, e.g. {absent[0]}", "give the proba.csv that belongs to it, or remove it"
        )
    summed = p.T.groupby(level=0).sum().T  # two labels may be mapped to one
    return summed.reindex(columns=list(classes), fill_value=0.0).loc[cells].to_numpy(np.float64)


def _read_map(path: Path) -> dict[str, str]:
    if not path.exists():
        raise SctoolError(f"{path}: no such file", "give a TSV of a predicted label and the true one")
    pairs = [line.split("\t") for line in read_lines(path)]
    wrong = [pair for pair in pairs if len(pair) != 2]
    if wrong:
        raise SctoolError(f"{path}: {'<tab>'.join(wrong[0])!r} is not a pair", "write predicted<tab>true on each line")
    return {a.strip(): b.strip() for a, b in pairs}
