"""Classification from a file of labelled cells to scores: models and baselines, folds, what was answered and how far it is to be trusted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sctool.bench.answers import RECOMMENDED, Answers, evaluate
from sctool.bench.evaluation import Evaluation
from sctool.config import Config
from sctool.data.demo import Demo
from sctool.data.folds import Fold, outer_folds, parse_cv
from sctool.data.labelled import Labelled, group_key, prepare_labelled
from sctool.engine.classify import Fitted, fit_classifiers, recommended
from sctool.errors import SctoolError
from sctool.models.classify.registry import BASELINES, MODELS


@dataclass(frozen=True)
class Classified:
    """Trained models, and their evaluation where cells were held out."""

    models: dict[str, Fitted]
    recommended: str
    cells: Labelled
    classes: tuple[str, ...]
    evaluation: Evaluation | None
    splits: pd.DataFrame
    lines: list[str]


def check_models(names: Iterable[str]) -> list[str]:
    """The models asked for, without repeats and without the baselines, which always run."""
    from sctool.data.read import near

    wanted = list(dict.fromkeys(names))
    unknown = [name for name in wanted if name not in (*MODELS, *BASELINES)]
    if unknown:
        raise SctoolError(f"unknown model {unknown[0]!r}; there are: {', '.join(MODELS)}", near(unknown[0], list(MODELS)))
    wanted = [name for name in wanted if name not in BASELINES]
    if not wanted:
        raise SctoolError("no model to train", f"give --models with one or more of {', '.join(MODELS)}")
    return wanted


def classify_file(
    path: Path, config: Config, demo: Demo | None = None, *, say: Callable[[str], None], tick: Callable[[str, int, int], None]
) -> Classified:
    """Train classifiers on a file and test them on what was held out.

    Parameters
    ----------
    path, demo
        The file, and the bundled data set where it is one.
    config
        Its ``data``, ``classify`` and ``train`` sections.
    say, tick
        Told of what was found, and of each fit with its number and how many there will be.

    Returns
    -------
    With a split the models of its training cells, tested on its test cells. Without one the models of all labelled cells, and the
    scores of cross-validation; none with ``--cv none``.
    """
    names = check_models(config.classify.models)
    kind, _ = parse_cv(config.classify.cv)
    cells = prepare_labelled(path, config, demo)
    for note in cells.about["notes"]:
        say(f"note: {note}")
    if len(cells.dropped):
        counts = cells.dropped["reason"].value_counts()
        say("left out: " + ", ".join(f"{n:,} cells ({reason})" for reason, n in counts.items()))
    split = len(cells.test) > 0
    if config.classify.split_test and not split:
        raise SctoolError("no test cell has a label", "give another --split-test")
    folds = [Fold("test", cells.train, cells.test)] if split else []
    if not split and kind != "none":
        folds = outer_folds(cells.train, cells.labels_n, cells.groups_n, config.classify.cv, config.seed)
    folds = [fold for fold in folds if _learnable(fold, cells, say)]
    by = group_key(config)
    say(f"{len(cells.train):,} training cells of {len(np.unique(cells.labels_n[cells.train]))} types; " + _said(folds, split, by))
    if not split and kind in ("auto", "cells") and by is None:
        say("note: cells of one donor are in training and test alike, so the scores are of new cells, not of new donors; give --group-key")
    total = (len(folds) + (not split)) * len(_fits(names, config))
    done = 0

    def count(where: str) -> Callable[[str], None]:
        def told(what: str) -> None:
            nonlocal done
            done += 1
            tick(f"{where}: {what}", done, total)

        return told

    classes = np.unique(np.concatenate([cells.labels_n[cells.train], cells.labels_n[cells.test]]))
    answers: dict[str, Answers] = {}
    chosen: list[str] = []
    made: dict[str, Fitted] = {}
    for fold in folds:
        made = fit_classifiers(names, cells, fold.train, config, count(fold.name))
        best = recommended(made)
        chosen.append(best)
        for name, fitted in made.items():
            answers.setdefault(name, Answers()).add(fold, fitted, cells, classes)
        if len(names) > 1:
            answers.setdefault(RECOMMENDED, Answers()).add(fold, made[best], cells, classes)
    if not split:
        made = fit_classifiers(names, cells, cells.train, config, count("final"))
    best = recommended(made)
    evaluation = evaluate(answers, chosen, cells, classes, config) if answers else None
    lines = [f"recommended: {best}"] if len(names) > 1 else []
    return Classified(made, best, cells, tuple(map(str, classes)), evaluation, _splits(folds, cells), lines)


def _fits(names: list[str], config: Config) -> list[str]:
    from sctool.engine.classify import settings

    variants = sum(len(settings(name, config)) for name in [*names, *BASELINES])
    return ["fit"] * (variants * config.classify.inner_folds + len(names) + len(BASELINES))


def _learnable(fold: Fold, cells: Labelled, say: Callable[[str], None]) -> bool:
    types = np.unique(cells.labels_n[fold.train])
    if len(types) > 1:
        return True
    say(f"note: fold {fold.name!r} is left out: its training cells are of one type only ({', '.join(types)})")
    return False


def _said(folds: list[Fold], split: bool, by: str | None) -> str:
    if split:
        return f"{len(folds[0].test):,} test cells"
    if not folds:
        return "not tested"
    whole = f"whole groups of {by}" if by and not folds[0].name.startswith("fold") else "parts"
    return f"tested on {len(folds)} {whole} held out in turn"


def _splits(folds: list[Fold], cells: Labelled) -> pd.DataFrame:
    """``cell, fold, role``: where each cell was tested; and those trained on, where there is one split."""
    parts = [pd.DataFrame({"cell": cells.obs.index[fold.test], "fold": fold.name, "role": "test"}) for fold in folds]
    if len(folds) == 1:
        parts.append(pd.DataFrame({"cell": cells.obs.index[folds[0].train], "fold": folds[0].name, "role": "train"}))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["cell", "fold", "role"])
