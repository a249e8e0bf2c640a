"""Classification from a file of labelled cells to scores: models and baselines, folds, and what was answered to held-out cells."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from sctool.artifacts.model_folder import RunPlace
from sctool.artifacts.tensors import load_tensors, save_tensors
from sctool.bench.answers import RECOMMENDED, Answers, evaluate
from sctool.bench.evaluation import Evaluation
from sctool.bench.explain import explained, quick_importance
from sctool.config import Config
from sctool.data.folds import Fold, outer_folds, parse_cv
from sctool.data.labelled import Labelled, group_key, prepare_labelled
from sctool.engine.classify import Fitted, fit_classifiers, recommended
from sctool.engine.device import choose_device
from sctool.errors import SctoolError
from sctool.models.classify.registry import BASELINES, MODELS
from sctool.models.classify.reject import Rejector


@dataclass(frozen=True)
class Classified:
    """Trained models, and their evaluation where cells were held out."""

    models: dict[str, Fitted]
    recommended: str
    cells: Labelled
    classes: tuple[str, ...]
    evaluation: Evaluation | None
    splits: pd.DataFrame
    importance: dict[str, pd.DataFrame]
    """Genes that decide, by model."""
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
    path: Path,
    config: Config,
    *,
    place: RunPlace | None = None,
    say: Callable[[str], None],
    tick: Callable[[str, int, int], None],
) -> Classified:
    """Train classifiers on a file and test them on what was held out.

    Parameters
    ----------
    path
        The .h5ad file.
    config
        Its ``data``, ``classify`` and ``train`` sections.
    place
        Where the answers to each fold are kept until all are done, and taken up again with ``--resume``.
    say, tick
        Told of what was found, and of each fit with its number and how many there will be.

    Returns
    -------
    With a split the models of its training cells, tested on its test cells. Without one the models of all labelled cells, and the
    scores of cross-validation; none with ``--cv none``.
    """
    names = check_models(config.classify.models)
    kind, _ = parse_cv(config.classify.cv)
    Rejector.parse(config.classify.reject)
    choose_device(config.device)
    cells = prepare_labelled(path, config)
    for note in cells.about["notes"]:
        say(f"note: {note}")
    if config.train.sampler != "uniform" and "mlp" not in names:
        say(f"note: --sampler {config.train.sampler} (--ar) concerns mlp, which is not among the models")
    if len(cells.dropped):
        counts = cells.dropped["reason"].value_counts()
        say("left out: " + ", ".join(f"{n:,} cells ({reason})" for reason, n in counts.items()))
    split = len(cells.test) > 0
    if (config.classify.split_test or config.classify.split_train) and not split:
        raise SctoolError("no test cell has a label", "give another --split-test")
    folds = [Fold("test", cells.train, cells.test)] if split else []
    if not split and kind != "none":
        folds = outer_folds(cells.train, cells.labels_n, cells.groups_n, config.classify.cv, config.seed)
    planned, folds = len(folds), [fold for fold in folds if _learnable(fold, cells, say)]
    if planned and not folds:
        raise SctoolError("no group can be held out: the others then have one type only", "give another --group-key, or --cv none")
    by = group_key(config)
    say(f"{len(cells.train):,} training cells of {len(np.unique(cells.labels_n[cells.train]))} types; " + _said(folds, split, by))
    if not split and kind in ("auto", "cells") and by is None:
        say("note: cells of one donor are in training and test alike, so the scores are of new cells, not of new donors; give --group-key")
    total = (len(folds) + (not split)) * _fits(names, config)
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
    importance: dict[str, pd.DataFrame] = {}
    made: dict[str, Fitted] = {}
    if place is not None:
        place.open({"model": "classify", **config.model_dump(exclude={"out", "device", "threads"}), "data": cells.about["fingerprint"]})
    for number, fold in enumerate(folds):
        # The models of the last fold are wanted for explanations, or are those of a split.
        if place is not None and place.resume and place.stage(number).exists() and number < len(folds) - 1:
            chosen.append(_taken_up(place.stage(number), answers))
            done += _fits(names, config)
            continue
        made = fit_classifiers(names, cells, fold.train, config, count(fold.name))
        best = recommended(made)
        chosen.append(best)
        for name, fitted in made.items():
            answers.setdefault(name, Answers()).add(fold, fitted, cells, classes)
        if len(names) > 1:
            answers.setdefault(RECOMMENDED, Answers()).add(fold, made[best], cells, classes)
        if place is not None:
            _keep(place.stage(number), answers, best)
    rng = np.random.default_rng(config.seed)
    if config.classify.explain and not folds:
        say("note: --explain needs test cells; with --cv none the weights and gains of the models stand for it")
    if config.classify.explain and folds:  # of the last fold, whose test cells its models have not seen
        say("explaining")
        importance = {name: explained(fitted, cells, folds[-1].test, rng) for name, fitted in made.items() if name != "majority"}
    if not split:
        made = fit_classifiers(names, cells, cells.train, config, count("final"))
    importance = importance or {name: quick_importance(fitted, cells.genes["name"]) for name, fitted in made.items() if name != "majority"}
    best = recommended(made)
    evaluation = evaluate(answers, chosen, cells, classes, config) if answers else None
    lines = [f"recommended: {best}"] if len(names) > 1 else []
    return Classified(made, best, cells, tuple(map(str, classes)), evaluation, _splits(folds, cells), importance, lines)


def _keep(file: Path, answers: dict[str, Answers], best: str) -> None:
    states = {name: answer.state() for name, answer in answers.items()}
    arrays = {f"{name}/{key}": torch.from_numpy(array.copy()) for name, (own, _) in states.items() for key, array in own.items()}
    save_tensors(file, arrays, {"chosen": best, "answers": {name: note for name, (_, note) in states.items()}})


def _taken_up(file: Path, answers: dict[str, Answers]) -> str:
    """Add the answers to a fold that was done; returns what was recommended in it."""
    tensors, note = load_tensors(file)
    for name, own in note["answers"].items():
        arrays = {key.partition("/")[2]: tensor.numpy() for key, tensor in tensors.items() if key.partition("/")[0] == name}
        answers.setdefault(name, Answers()).restore(arrays, own)
    return str(note["chosen"])


def _fits(names: list[str], config: Config) -> int:
    from sctool.engine.classify import settings

    variants = sum(len(settings(name, config)) for name in [*names, *BASELINES])
    return variants * config.classify.inner_folds + len(names) + len(BASELINES)


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
