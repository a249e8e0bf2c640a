"""Folds of samples: whole donors, or whole studies, are left out, and classes are spread evenly over the folds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sctool.config import Config
from sctool.data.cohort import Cohort, Task, text
from sctool.data.folds import outer_folds
from sctool.data.read import near
from sctool.errors import SctoolError

Mask = NDArray[np.bool_]
FORMS = "auto, donors:K, leave-one-donor-out, leave-one-study-out, column:NAME or none"
FEWEST_DONORS = 2
"""Of each class in training."""
_TRIES = 50


@dataclass(frozen=True)
class SampleFold:
    """Samples to train on and samples to test on; no donor is in both.

    Attributes
    ----------
    repeat, name
        Which repeat, and which fold of it.
    train_s, test_s
        Masks of samples. Those without a truth may be trained on, for what needs none, and are never tested.
    shared
        Whether folds share out one population, whose class frequencies are then known of every fold. Those of a study held out, or of what
        a column calls ``test``, are not known beforehand.
    """

    repeat: int
    name: str
    train_s: Mask
    test_s: Mask
    shared: bool = True


def parse_sample_cv(said: str) -> tuple[str, int]:
    """``donors``, ``donor``, ``study``, ``column`` or ``none``, and the number of folds (0: as many as fit, up to 5).

    Raises
    ------
    SctoolError
        With the forms there are.
    """
    kind, _, number = said.partition(":")
    if kind in ("donors", "groups", "sgkf") and (not number or (number.isdigit() and int(number) >= 2)):
        return "donors", int(number or 5)
    plain = {"auto": "donors", "none": "none", "leave-one-study-out": "study"}
    plain |= dict.fromkeys(("leave-one-donor-out", "leave-one-group-out", "logo"), "donor")
    if kind in plain and not number:
        return plain[kind], 0
    if kind == "column" and number:
        return kind, 0
    raise SctoolError(f"--cv {said!r} is not known", f"give {FORMS}")


def codes(cohort: Cohort, task: Task) -> NDArray[np.float64]:
    """Codes of classes (by ``task.order``) or levels, or numbers; NaN where missing. Shape (samples,)."""
    truth_s = cohort.truth(task)
    if task.kind != "class":
        return np.asarray(truth_s, np.float64)
    place = {name: float(number) for number, name in enumerate(task.order)}
    return np.array([place.get(str(name), np.nan) for name in truth_s])


def sample_folds(cohort: Cohort, task: Task, config: Config) -> list[SampleFold]:
    """Folds of a task by ``sampleclr.cv`` and ``sampleclr.repeats``.

    Parameters
    ----------
    cohort, task
        Classes are spread evenly over the folds; donors of numbers and levels are shared out at random.
    config
        ``donors:K`` shares out whole donors K ways, ``sampleclr.repeats`` times; ``auto`` is 5 ways, or as many as the rarest class has
        donors; leaving out a donor or a study at a time, or what a column calls ``test``, is done once.

    Raises
    ------
    SctoolError
        If a class would have fewer than ``FEWEST_DONORS`` donors to train on in some fold, or there are too few donors or studies.
    """
    settings = config.sampleclr
    kind, k = parse_sample_cv(settings.cv)
    truth_s = codes(cohort, task)
    known_s = cohort.usable_s & np.isfinite(truth_s)
    rows = np.flatnonzero(known_s)
    if kind == "none":
        return []
    donors = len(set(cohort.donor_s[rows].tolist()))
    if donors < 3:
        raise SctoolError(f"{task.column} is known for {donors} donors: too few to hold any out", "give more donors, or --cv none")
    strata_s = np.zeros(len(truth_s), np.int64)
    if task.kind == "class":
        # only classes: folds spread evenly by a number would make the mean of training an answer that shuffled numbers do not allow
        strata_s[rows] = truth_s[rows].astype(np.int64)
        rarest = _rarest(cohort, task, truth_s, rows, kind)
        k = k or max(2, min(5, rarest))
    k = min(k or 5, donors)
    if kind in ("study", "donor", "column"):
        return _checked(_one_at_a_time(cohort, kind, config, known_s), cohort, task, truth_s)
    return [fold for repeat in range(settings.repeats) for fold in _spread(cohort, task, truth_s, strata_s, rows, k, repeat, config.seed)]


def plain_folds(cohort: Cohort, config: Config) -> list[SampleFold]:
    """Whole donors shared out once, 5 ways or by ``sampleclr.cv``, where there is no task to balance; none with ``none``.

    Raises
    ------
    SctoolError
        If studies are to be left out and there are not two.
    """
    kind, k = parse_sample_cv(config.sampleclr.cv)
    if kind in ("study", "donor", "column"):
        return _one_at_a_time(cohort, kind, config, cohort.usable_s)
    rows = np.flatnonzero(cohort.usable_s)
    k = min(k or 5, len(set(cohort.donor_s[rows].tolist())))
    if kind == "none" or k < 2:
        return []
    parts = outer_folds(rows, np.zeros(len(cohort), np.int64), cohort.donor_s.astype(str), f"groups:{k}", config.seed)
    return [_fold(cohort, 0, f"fold {number + 1}", np.isin(np.arange(len(cohort)), part.test)) for number, part in enumerate(parts)]


def _one_at_a_time(cohort: Cohort, kind: str, config: Config, tested_s: Mask) -> list[SampleFold]:
    """A fold for each study or donor, or the one that a column makes."""
    if kind == "column":
        return [_by_column(cohort, config.sampleclr.cv.partition(":")[2], tested_s)]
    of_s = _studies(cohort, config.sampleclr.study_key) if kind == "study" else cohort.donor_s
    names = sorted(set(of_s[tested_s].tolist()))
    if len(names) < 2:
        raise SctoolError(f"--cv {config.sampleclr.cv}: there is one {kind}", "give --cv auto, which holds out donors")
    return [_fold(cohort, 0, f"{kind} {name}", tested_s & (of_s == name), shared=kind == "donor") for name in names]


def _by_column(cohort: Cohort, key: str, tested_s: Mask) -> SampleFold:
    """Samples of the value ``train``, and those of the value ``test``."""
    if key not in cohort.table:
        columns = list(map(str, cohort.table))
        raise SctoolError(f"--cv column:{key}: there is no such column of samples; there are: {', '.join(columns)}", near(key, columns))
    part = text(cohort.table[key])
    train_s, test_s = part == "train", part == "test"
    if not train_s.any() or not test_s.any():
        found = ", ".join(sorted(set(part.tolist()))[:5])
        raise SctoolError(f"--cv column:{key}: it has the values {found}", "give a column with the values train and test")
    both = set(cohort.donor_s[test_s].tolist()) & set(cohort.donor_s[train_s].tolist())
    if both:
        raise SctoolError(
            f"--cv column:{key}: {len(both)} donors are on both sides, e.g. {min(both)}", "put all samples of a donor on one side"
        )
    return SampleFold(0, f"column {key}", cohort.usable_s & train_s, tested_s & test_s, shared=False)


def _spread(
    cohort: Cohort, task: Task, truth_s: NDArray[Any], strata_s: NDArray[Any], rows: NDArray[Any], k: int, repeat: int, seed: int
) -> list[SampleFold]:
    """K folds of a repeat; where chance leaves a class short of donors in one of them, donors are shared out anew."""
    for attempt in range(_TRIES):
        shuffle = seed + 1000 * attempt + repeat
        parts = outer_folds(rows, strata_s, cohort.donor_s.astype(str), f"groups:{k}", shuffle)
        folds = []
        for number, part in enumerate(parts):
            test_s = np.zeros(len(truth_s), bool)
            test_s[part.test] = True
            folds.append(_fold(cohort, repeat, f"fold {number + 1}", test_s))
        try:
            return _checked(folds, cohort, task, truth_s)
        except SctoolError:
            if attempt == _TRIES - 1:
                raise
    raise AssertionError  # the last attempt returned or raised


def _fold(cohort: Cohort, repeat: int, name: str, test_s: Mask, *, shared: bool = True) -> SampleFold:
    held = np.isin(cohort.donor_s.astype(str), cohort.donor_s[test_s].astype(str))
    return SampleFold(repeat, name, cohort.usable_s & ~held, test_s, shared)


def _rarest(cohort: Cohort, task: Task, truth_s: NDArray[Any], rows: NDArray[Any], kind: str) -> int:
    """How many donors the rarest class has."""
    by_class = [len(set(cohort.donor_s[rows][truth_s[rows] == c].tolist())) for c in range(len(task.order))]
    for name, donors in zip(task.order, by_class, strict=True):
        if kind not in ("study", "column") and donors <= FEWEST_DONORS:
            raise SctoolError(
                f"{task.column}: class {name!r} has {donors} donor{'s' * (donors != 1)} with enough cells; "
                f"testing on a donor held out takes {FEWEST_DONORS + 1}",
                "merge or leave out rare classes; to train without a test of it, give --cv none",
            )
    return min(n for n in by_class if n)


def _checked(folds: list[SampleFold], cohort: Cohort, task: Task, truth_s: NDArray[Any]) -> list[SampleFold]:
    for fold in folds:
        train_donors = cohort.donor_s[fold.train_s]
        if set(train_donors.tolist()) & set(cohort.donor_s[fold.test_s].tolist()):
            raise AssertionError("a donor is both trained on and tested")
        if task.kind != "class":
            continue
        for code in np.unique(truth_s[fold.test_s]):
            donors = len(set(cohort.donor_s[fold.train_s & (truth_s == code)].tolist()))
            if donors < FEWEST_DONORS:
                raise SctoolError(
                    f"{task.column}: with {fold.name} held out, class {task.order[int(code)]!r} has {donors} donors to train on",
                    f"give fewer folds, or merge classes; each takes {FEWEST_DONORS} donors",
                )
    return folds


def _studies(cohort: Cohort, key: str | None) -> NDArray[Any]:
    if key is None:
        raise SctoolError("--cv leave-one-study-out needs --study-key", "give a column with one study for each sample")
    if key not in cohort.table:
        columns = list(map(str, cohort.table))
        raise SctoolError(f"--study-key {key!r} is not a column of samples; there are: {', '.join(columns)}", near(key, columns))
    return text(cohort.table[key])


def folds_table(cohort: Cohort, folds: list[SampleFold]) -> pd.DataFrame:
    """``sample, donor, repeat, fold``: in which fold of each repeat a sample is tested."""
    return pd.DataFrame(list(_rows(cohort, folds)), columns=["sample", "donor", "repeat", "fold"])


def _rows(cohort: Cohort, folds: list[SampleFold]) -> Iterator[tuple[Any, Any, int, str]]:
    for fold in folds:
        for at in np.flatnonzero(fold.test_s):
            yield cohort.samples[at], cohort.donor_s[at], fold.repeat, fold.name
