"""Learning curves: the same held-out groups at every size, so that the size of training is all that changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sctool.artifacts.atomic import write_json
from sctool.artifacts.result_folder import result_folder
from sctool.bench.classify import check_models
from sctool.config import Config
from sctool.data.folds import Fold, outer_folds, parse_cv
from sctool.data.labelled import Labelled, group_key, prepare_labelled
from sctool.engine.classify import fit_classifiers
from sctool.errors import SctoolError
from sctool.metrics.classify import classify_scores
from sctool.models.classify.registry import BASELINES

SCORES = ("f1_macro_present", "accuracy", "balanced_accuracy", "roc_auc_macro_seen")
FEWEST_GROUPS = 3
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Curve:
    """Scores at every size, and what they say."""

    axis: str
    table: pd.DataFrame
    """``model, axis, repeat, outer_fold, n_groups, n_cells, frac_cells, n_classes_seen, ..., fit_seconds``."""
    summary: pd.DataFrame
    """Mean and standard deviation by model and size."""
    metrics: dict[str, Any]
    lines: list[str]


def learning_curve(path: Path, config: Config, *, say: Callable[[str], None], tick: Callable[[str, int, int], None]) -> Curve:
    """Train on more and more groups (or cells) and test on groups that stay the same.

    Each held-out group, or set of groups, is tested in turn. By groups: in each repeat the other groups are put in a random order and
    the first 1, 2, 3, ... of them are trained on. By cells: shares of the cells of the other groups, each type alike.

    Raises
    ------
    SctoolError
        With fewer than three groups.
    """
    names = check_models(config.classify.models)
    by = config.curve.by
    if parse_cv(config.classify.cv)[0] == "none":
        raise SctoolError("--cv none: a learning curve needs test cells", "leave it out, or give groups:K or cells:K")
    config = config.replaced({"classify.calibrate": "none", "classify.reject": "none"})  # neither changes who is called what
    cells = prepare_labelled(path, config)
    key = group_key(config)
    n_groups = 0 if cells.groups_n is None else len(np.unique(cells.groups_n[cells.train]))
    if n_groups < FEWEST_GROUPS and (by == "groups" or n_groups == 1):
        found = f"obs[{key!r}] has {n_groups}" if key else "there is no column of groups"
        raise SctoolError(
            f"a learning curve over groups needs {FEWEST_GROUPS} groups or more; {found}", "give another --group-key, or --by cells"
        )
    folds = outer_folds(cells.train, cells.labels_n, cells.groups_n, config.classify.cv, config.seed)
    jobs = [(fold, *job) for fold in folds for job in _jobs(fold, cells, config)]
    say(f"{len(cells.train):,} cells, {n_groups} groups; {len(jobs)} fits of {', '.join(names)} tested on {len(folds)} held-out parts")
    rows: list[dict[str, Any]] = []
    for number, (fold, repeat, size, train) in enumerate(jobs, 1):
        tick(f"{fold.name}, {by} {size:g}", number, len(jobs))
        rows += _scored(names, cells, fold, train, config) if len(np.unique(cells.labels_n[train])) > 1 else []
        for row in rows[::-1]:
            if "repeat" in row:
                break
            row |= {"axis": by, "repeat": repeat, "size": size, "outer_fold": fold.name}
    if not rows:
        raise SctoolError("no training set has two types", "give more groups, or larger --fractions")
    table = pd.DataFrame(rows)
    frame = table.groupby(["model", "size"], sort=False)[[*SCORES, "n_cells"]].agg(["mean", "std"])
    frame.columns = pd.Index([f"{column[0]}_{'sd' if column[1] == 'std' else column[1]}" for column in frame.columns])
    summary = frame.reset_index().sort_values(["model", "size"], ignore_index=True)
    lines = [
        line
        for name, part in summary[~summary["model"].isin(BASELINES)].groupby("model", sort=False)
        for line in _said(str(name), part, by)
    ]
    metrics = {
        "task": "curve",
        "axis": by,
        "groups": n_groups,
        "models": {str(n): p.to_dict("records") for n, p in summary.groupby("model")},
    }
    return Curve(by, table, summary, metrics, lines)


def _jobs(fold: Fold, cells: Labelled, config: Config) -> Iterator[tuple[int, float, Rows]]:
    """Repeat, size and training cells; in one repeat each is part of the next."""
    for repeat in range(config.curve.repeats):
        rng = np.random.default_rng([config.seed, repeat])
        if config.curve.by == "groups":
            assert cells.groups_n is not None
            own = cells.groups_n[fold.train]
            order = rng.permutation(np.unique(own))
            for n in range(1, len(order) + 1):
                if n < len(order) or repeat == 0:  # all groups are the same in every repeat
                    yield repeat, n, fold.train[np.isin(own, order[:n])]
        else:
            share_n = _place_in_type(cells.labels_n[fold.train], rng)
            for fraction in sorted(config.curve.fractions):
                if fraction < 1 or repeat == 0:
                    yield repeat, fraction, fold.train[share_n < fraction]


def _place_in_type(labels_n: NDArray[Any], rng: np.random.Generator) -> NDArray[np.float64]:
    """Of each cell, its place in a random order of its type, from 0 up to 1: below f lie a share f of each type, one cell at least."""
    place_n = np.zeros(len(labels_n))
    for label in np.unique(labels_n):
        own = np.flatnonzero(labels_n == label)
        place_n[own] = rng.permutation(len(own)) / len(own)
    return place_n


def _scored(names: list[str], cells: Labelled, fold: Fold, train: Rows, config: Config) -> Iterator[dict[str, Any]]:
    began = time.perf_counter()
    made = fit_classifiers(names, cells, train, config)
    seconds = (time.perf_counter() - began) / len(made)
    labels = np.unique(np.concatenate([cells.labels_n[train], cells.labels_n[fold.test]]))
    truth_n = np.searchsorted(labels, cells.labels_n[fold.test])
    for name, fitted in made.items():
        p_nc = np.zeros((len(truth_n), len(labels)))
        at = np.searchsorted(labels, np.array(fitted.classes))
        p_nc[:, at] = fitted.proba(cells.x_ng[fold.test])
        trained = np.isin(np.arange(len(labels)), at)
        scores = classify_scores(truth_n, p_nc.argmax(1), p_nc, list(map(str, labels)), trained)
        yield {
            "model": name,
            "n_groups": 0 if cells.groups_n is None else len(np.unique(cells.groups_n[train])),
            "n_cells": len(train),
            "frac_cells": len(train) / len(fold.train),
            "n_classes_seen": len(fitted.classes),
            **{score: scores[score] for score in SCORES},
            "fit_seconds": round(seconds, 3),
        }


def _said(name: str, part: pd.DataFrame, by: str) -> Iterator[str]:
    """What the last step of a curve says."""
    if len(part) < 2:
        return
    last, before = part.iloc[-1], part.iloc[-2]
    gain = last["f1_macro_present_mean"] - before["f1_macro_present_mean"]
    spread = np.nan_to_num(before["f1_macro_present_sd"])
    sense = "more would help still" if gain > max(0.01, spread / 4) else "the curve is about flat"
    scores = f"macro F1 {before['f1_macro_present_mean']:.3f} with {before['size']:g} {by}"
    yield f"{name}: {scores}, {last['f1_macro_present_mean']:.3f} with {last['size']:g}; {sense}"


def write_curve(made: Curve, folder: Path, *, force: bool) -> None:
    """Write ``learning_curve.csv``, ``learning_curve_summary.csv`` and ``metrics.json``."""
    with result_folder(folder, force=force) as partial:
        made.table.to_csv(partial / "learning_curve.csv", index=False)
        made.summary.to_csv(partial / "learning_curve_summary.csv", index=False)
        write_json(partial / "metrics.json", made.metrics)
