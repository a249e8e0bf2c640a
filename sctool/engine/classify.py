"""Training classifiers: the same features for all, cross-fitted inside the training cells so that what is said of them can be trusted.

Inside the training cells whole groups are held out in turn. On them it is seen how many rounds a model may learn, how its logits become
probabilities, from which confidence on a call is kept, and which answer is recommended; then each model is fitted once more on all
training cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sctool.config import Config
from sctool.data.cache import take_rows
from sctool.data.folds import inner_folds
from sctool.data.labelled import Labelled
from sctool.engine.classifiers import new_classifier
from sctool.models.classify.balance import balanced
from sctool.models.classify.base import Classifier
from sctool.models.classify.calibration import Calibration, softmax
from sctool.models.classify.features import Features, choose_columns, markers
from sctool.models.classify.registry import BASELINES, MODELS
from sctool.models.classify.reject import Rejector

Rows = NDArray[np.int64]
ENSEMBLE = "ensemble"
LEARN_IN_ROUNDS = ("xgb", "mlp")
GENES_FROM = 20_000
"""Training cells, drawn at random, that genes are chosen on."""
MANY_CELLS = 50_000
NEVER = -50.0
"""Logit of a type that a fold has not seen, in nats below its lowest."""


@dataclass
class Fitted:
    """A trained classifier with all it needs to answer.

    Attributes
    ----------
    classes
        Types it was trained on, in the order of its logits.
    held_out
        What was seen of it on the groups left out inside the training cells: ``macro_f1``, ``log_loss``, ``rounds``, ``setting``.
    importance_f
        How much each feature matters over all classes, summing to 1; uniform where the model has no such thing.
    """

    name: str
    features: Features
    classifier: Classifier | None
    classes: tuple[str, ...]
    calibration: Calibration
    rejector: Rejector
    held_out: dict[str, Any] = field(default_factory=dict)
    members: tuple[Fitted, ...] = ()
    """Of an ensemble."""

    def logits(self, x_ng: Any, columns: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """Uncalibrated logits of cells, shape (cells, classes).

        Parameters
        ----------
        x_ng
            As the training file's matrix, or a query's with ``columns`` saying where each feature is (-1: nowhere).
        """
        if self.members:
            return mean_logits([member.proba(x_ng, columns) for member in self.members])
        assert self.classifier is not None
        return self.classifier.logits(self.features.transform(x_ng, columns))

    def proba(self, x_ng: Any, columns: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """Calibrated probabilities, shape (cells, classes)."""
        return self.calibration.proba(self.logits(x_ng, columns))

    @property
    def importance_f(self) -> NDArray[np.float64]:
        """Share of each feature in what decides."""
        parts = [member.importance_f for member in self.members] if self.members else []
        if parts:
            return np.asarray(np.mean(parts, axis=0))
        assert self.classifier is not None
        found = self.classifier.importance()
        n = len(self.features.columns)
        total = np.full(n, 1.0) if found is None else np.abs(found).sum(0)
        return total / total.sum() if total.sum() > 0 else np.full(n, 1.0 / n)


def mean_logits(parts: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Logits of the mean of some models' probabilities, each of shape (cells, classes)."""
    return np.log(np.maximum(np.mean(parts, axis=0), 1e-12))


@dataclass(frozen=True)
class Material:
    """Cells of one fit: features fitted on them, scaled, and their classes."""

    features: Features
    x_nf: Any
    code_n: NDArray[np.int64]


def fit_classifiers(
    names: Iterable[str], cells: Labelled, rows: Rows, config: Config, tick: Callable[[str], None] = lambda what: None
) -> dict[str, Fitted]:
    """Train classifiers on some cells of a file, and the mean of those that are no baselines.

    Parameters
    ----------
    names
        Of the registry.
    cells, rows
        The file, and which of its cells to train on.
    tick
        Told of each fit as it begins.

    Returns
    -------
    By name, with ``ensemble`` where two or more models were asked for.
    """
    names = list(dict.fromkeys([*names, *BASELINES]))
    rows = fewer(rows, cells.labels_n[rows], config.classify.max_cells, np.random.default_rng(config.seed))
    classes, code_n = np.unique(cells.labels_n[rows], return_inverse=True)
    groups_n = None if cells.groups_n is None else cells.groups_n[rows]
    variants = {name: settings(name, config) for name in names}
    held: dict[tuple[str, int], NDArray[np.float64]] = {
        (name, v): np.full((len(rows), len(classes)), np.nan) for name in names for v in range(len(variants[name]))
    }
    held = {key: array for key, array in held.items() if _wants_held_out(key[0], config)}
    folds = inner_folds(code_n, groups_n, config.classify.inner_folds, config.seed) if held else []
    folds = folds[:1] if len(rows) > MANY_CELLS else folds  # one part is enough then, and takes half the time
    rounds: dict[tuple[str, int], list[int]] = {key: [] for key in held}
    for number, (learn, trial) in enumerate(folds):
        material = prepare(cells, rows[learn], config, _generator(config, number))
        seen, local_n = np.unique(code_n[learn], return_inverse=True)
        x_trial = material.features.take(cells.read(rows[trial], material.features.columns))
        known = np.isin(code_n[trial], seen)
        watch = x_trial[np.flatnonzero(known)], np.searchsorted(seen, code_n[trial][known])
        for (name, v), logits_nc in held.items():
            tick(f"{name}, held-out part {number + 1} of {len(folds)}")
            model = new_classifier(name, variants[name][v])
            _learn(model, material, local_n, variants[name][v], _generator(config, number, name), watch if len(watch[1]) else None)
            rounds[name, v] += [model.rounds] if model.rounds else []
            got = model.logits(x_trial)
            logits_nc[trial] = got.min(1, keepdims=True) + NEVER
            logits_nc[np.ix_(trial, seen)] = got
    material = prepare(cells, rows, config, _generator(config, len(folds)))
    made: dict[str, Fitted] = {}
    out_of_fold: dict[str, NDArray[np.float64]] = {}
    for name in names:
        tick(f"{name}, all training cells")
        tried = [held[name, v] for v in range(len(variants[name])) if (name, v) in held]
        best, seen_of_it = _best(variants[name], tried, code_n) if tried else (0, {})
        model = new_classifier(name, variants[name][best])
        model.rounds = round(float(np.median(rounds[name, best]))) if rounds.get((name, best)) else 0
        _learn(model, material, code_n, variants[name][best], _generator(config, len(folds), name), None)
        seen_of_it |= {"rounds": model.rounds} if model.rounds else {}
        fitted = Fitted(name, material.features, model, tuple(map(str, classes)), Calibration("none"), Rejector.parse("none"), seen_of_it)
        made[name] = fitted
        if tried:
            made[name], out_of_fold[name] = _trusted(fitted, tried[best], code_n, groups_n, config)
    members = [name for name in names if name not in BASELINES]
    if len(members) > 1 and all(name in out_of_fold for name in members):
        mean_nc = mean_logits([out_of_fold[name] for name in members])
        fitted = replace(made[members[0]], name=ENSEMBLE, classifier=None, members=tuple(made[name] for name in members), held_out={})
        fitted.held_out |= _figures(mean_nc, code_n)
        made[ENSEMBLE], _ = _trusted(fitted, mean_nc, code_n, groups_n, config)
    return made


def _generator(config: Config, fold: int, name: str = "") -> np.random.Generator:
    """Of one fit, so that what a model learns does not depend on which others were asked for."""
    return np.random.default_rng([config.seed, fold, *name.encode()])


def _wants_held_out(name: str, config: Config) -> bool:
    """Whether anything of a model is set on held-out groups."""
    c = config.classify
    return c.calibrate != "none" or c.reject != "none" or c.tune or name in LEARN_IN_ROUNDS


def recommended(made: dict[str, Fitted], margin: float = 0.02) -> str:
    """Which answer to take, by macro F1 on the groups held out inside the training cells.

    The simplest (lr before svm, rf, xgb, mlp and their mean) that comes within ``margin`` of the best: differences below that, between a
    few groups, are noise, and across batches the simpler model has been the better one.
    """
    models = [name for name in (*MODELS, ENSEMBLE) if name in made]
    scores = {name: made[name].held_out["macro_f1"] for name in models if "macro_f1" in made[name].held_out}
    if len(scores) < len(models):  # nothing was held out for some: there is nothing to choose by
        return models[0]
    return next(name for name in scores if scores[name] >= max(scores.values()) - margin)


def fewer(rows: Rows, labels_n: NDArray[Any], most: int | None, rng: np.random.Generator) -> Rows:
    """At most so many cells of each type, drawn at random."""
    if most is None:
        return rows
    order = rng.permutation(len(rows))
    kept = [order[labels_n[order] == label][:most] for label in np.unique(labels_n)]
    return rows[np.sort(np.concatenate(kept))]


def settings(name: str, config: Config) -> list[Config]:
    """The settings to try: those of the configuration, or with ``--tune`` a few around them."""
    if not config.classify.tune:
        return [config]
    grids: dict[str, list[dict[str, Any]]] = {
        "lr": [{"classify.lr_c": c} for c in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)],
        "svm": [{"classify.svm_c": c} for c in (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)],
        "rf": [{"classify.rf": {**config.classify.rf, "max_features": share}} for share in ("sqrt", 0.1, 0.3)],
        "xgb": [{"classify.xgb": {**config.classify.xgb, "max_depth": d, "colsample_bytree": s}} for d in (2, 4, 6) for s in (0.1, 0.4)],
        "mlp": [{"train.lr": lr, "train.weight_decay": decay} for lr in (3e-4, 1e-3) for decay in (1e-6, 1e-3)],
    }
    return [config.replaced(change) for change in grids.get(name, [{}])]


def prepare(cells: Labelled, rows: Rows, config: Config, rng: np.random.Generator) -> Material:
    """Choose and scale the features of some training cells, with thinned copies of them where ``classify.thin`` asks for these."""
    classify = config.classify
    code_n = np.unique(cells.labels_n[rows], return_inverse=True)[1]
    columns = _columns(cells, rows, config, rng)
    copies = classify.thin if cells.counts is not None else 0
    stacked = cells.augmented(rows, columns, copies, rng)
    scale = Features.fit(stacked, np.arange(len(columns)), unit=classify.unit_length)
    return Material(replace(scale, columns=columns), scale.transform(stacked), np.tile(code_n, copies + 1))


def _columns(cells: Labelled, rows: Rows, config: Config, rng: np.random.Generator) -> NDArray[np.int64]:
    """Which features to read, as some training cells say."""
    chosen = rows if len(rows) <= GENES_FROM else np.sort(rng.permutation(rows)[:GENES_FROM])
    x_ng = cells.x_ng[chosen]
    counts = None if cells.counts is None else take_rows(cells.counts, chosen)
    columns = choose_columns(cells.kind, x_ng, counts, config.data.n_top_genes, cells.genes["name"], cells.wanted)
    if cells.kind not in ("hvg", "all"):
        return columns
    groups_n = None if cells.groups_n is None else cells.groups_n[chosen]
    code_n = np.unique(cells.labels_n[chosen], return_inverse=True)[1]
    return markers(x_ng, columns, code_n, groups_n, config.classify.markers)


def _learn(model: Classifier, material: Material, code_n: NDArray[np.int64], config: Config, rng: np.random.Generator, watch: Any) -> None:
    copies = material.x_nf.shape[0] // len(code_n)
    x_nf, balanced_n, weight_n = balanced(material.x_nf, np.tile(code_n, copies), config.classify.imbalance, rng)
    model.fit(x_nf, balanced_n, weight_n / copies, watch)


def _best(variants: list[Config], held: list[NDArray[np.float64]], code_n: NDArray[np.int64]) -> tuple[int, dict[str, Any]]:
    """The settings whose held-out macro F1 is best, and what was seen of them."""
    figures = [_figures(logits_nc, code_n) for logits_nc in held]
    best = int(np.argmax([figure.get("macro_f1", 0.0) for figure in figures]))
    if len(variants) > 1:
        figures[best]["tried"] = [round(figure.get("macro_f1", 0.0), 4) for figure in figures]
        figures[best]["chosen"] = best
    return best, figures[best]


def _figures(logits_nc: NDArray[np.float64], code_n: NDArray[np.int64]) -> dict[str, Any]:
    from sctool.metrics.classify import f1_macro_present

    known = np.isfinite(logits_nc).all(1)
    if not known.any():
        return {"cells": 0}
    return {"macro_f1": f1_macro_present(code_n[known], logits_nc[known].argmax(1)), "cells": int(known.sum())}


def _trusted(
    fitted: Fitted, held_nc: NDArray[np.float64], code_n: NDArray[np.int64], groups_n: NDArray[Any] | None, config: Config
) -> tuple[Fitted, NDArray[np.float64]]:
    """With the calibration and the rule of rejection that its held-out logits call for; and its held-out probabilities."""
    # A type its fold had not seen says nothing about the logits of the final model, which has.
    known = np.isfinite(held_nc).all(1)
    own_n = np.nan_to_num(held_nc)[np.arange(len(code_n)), code_n]
    usable = known & (own_n > np.nan_to_num(held_nc).max(1) + NEVER)
    if not usable.any():
        return fitted, softmax(np.nan_to_num(held_nc))
    calibration = Calibration.fit(config.classify.calibrate, held_nc[usable], code_n[usable])
    p_nc = calibration.proba(np.nan_to_num(held_nc))
    rule = "none" if fitted.name == "majority" else config.classify.reject  # one row for all cells: no cell is surer than another
    rejector = Rejector.fit(rule, p_nc[usable], code_n[usable], None if groups_n is None else groups_n[usable])
    return replace(fitted, calibration=calibration, rejector=rejector), p_nc
