"""Folds: which cells are trained on and which are tested, whole groups together where there are groups."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from sctool.errors import SctoolError

Rows = NDArray[np.int64]
MOST_GROUPS = 12
"""Up to so many groups ``auto`` leaves out one at a time."""
FORMS = "auto, leave-one-group-out, groups:K, cells:K, pairs or none"


@dataclass(frozen=True)
class Fold:
    """Cells to train on and cells to test on."""

    name: str
    train: Rows
    test: Rows


def parse_cv(text: str) -> tuple[str, int]:
    """The kind of cross-validation and its number of folds; ``logo`` and ``sgkf:K`` are other words for two of them.

    Raises
    ------
    SctoolError
        With the forms there are.
    """
    kind, _, number = text.partition(":")
    kind = {"logo": "leave-one-group-out", "sgkf": "groups", "leave-one-out": "leave-one-group-out"}.get(kind, kind)
    if kind in ("auto", "leave-one-group-out", "pairs", "none") and not number:
        return kind, 5
    if kind in ("groups", "cells") and (not number or (number.isdigit() and int(number) >= 2)):
        return kind, int(number or 5)
    raise SctoolError(f"--cv {text!r} is not known", f"give {FORMS}")


def outer_folds(rows: Rows, labels_n: NDArray[Any], groups_n: NDArray[Any] | None, cv: str, seed: int) -> list[Fold]:
    """Folds of the cells at ``rows``.

    Parameters
    ----------
    rows
        Cells to share out.
    labels_n, groups_n
        Of all cells of the file.
    cv
        ``leave-one-group-out``; ``groups:K``: K sets of whole groups with types spread evenly; ``cells:K``: cells at random, types
        spread evenly; ``pairs``: train on each group, test on each other; ``auto``: one group at a time where there are up to 12,
        else ``groups:5``, or ``cells:5`` where there are no groups.
    """
    kind, k = parse_cv(cv)
    names = [] if groups_n is None else [str(name) for name in np.unique(groups_n[rows])]
    if kind == "auto":
        kind = "cells" if len(names) < 2 else "leave-one-group-out" if len(names) <= MOST_GROUPS else "groups"
    if kind in ("leave-one-group-out", "groups", "pairs") and len(names) < 2:
        found = f"there is only the group {names[0]!r}" if names else "there is no column of groups"
        raise SctoolError(f"--cv {cv}: {found}", "give a --group-key with two groups or more, or --cv cells:5")
    if kind == "cells":
        return [Fold(f"fold{i + 1}", rows[a], rows[b]) for i, (a, b) in enumerate(_stratified(labels_n[rows], None, k, seed))]
    assert groups_n is not None
    own = groups_n[rows].astype(str)
    if kind == "leave-one-group-out":
        return [Fold(name, rows[own != name], rows[own == name]) for name in names]
    if kind == "pairs":
        return [Fold(f"{a} to {b}", rows[own == a], rows[own == b]) for a in names for b in names if a != b]
    k = min(k, len(names))
    return [Fold(f"fold{i + 1}", rows[a], rows[b]) for i, (a, b) in enumerate(_stratified(labels_n[rows], own, k, seed))]


def inner_folds(labels_n: NDArray[Any], groups_n: NDArray[Any] | None, k: int, seed: int) -> list[tuple[Rows, Rows]]:
    """Folds inside the training cells, by which rounds, temperatures and thresholds are set.

    Parameters
    ----------
    labels_n, groups_n
        Of the training cells only. With two groups or more whole groups are left out, for that is what a new batch will be.

    Returns
    -------
    Positions among the training cells to learn from, and to try on. A fold whose first part has one type only is left out; where that
    leaves none, folds are of cells.
    """
    n_groups = 0 if groups_n is None else len(np.unique(groups_n))
    folds = [] if groups_n is None or n_groups < 2 else _stratified(labels_n, groups_n.astype(str), min(k, n_groups), seed)
    folds = [(a, b) for a, b in folds if len(np.unique(labels_n[a])) > 1]
    if folds or len(labels_n) < 2:
        return folds
    # One group, or types that are each in one group: cells are all there is.
    return [(a, b) for a, b in _stratified(labels_n, None, min(k, len(labels_n)), seed) if len(np.unique(labels_n[a])) > 1]


def _stratified(labels_n: NDArray[Any], groups_n: NDArray[Any] | None, k: int, seed: int) -> list[tuple[Rows, Rows]]:
    if k > len(labels_n):
        raise SctoolError(f"{k} folds of {len(labels_n)} cells", "give fewer folds, or more cells")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # types of fewer cells than folds are told of elsewhere
        splitter = (StratifiedKFold if groups_n is None else StratifiedGroupKFold)(k, shuffle=True, random_state=seed)
        try:
            return [(a, b) for a, b in splitter.split(np.zeros(len(labels_n)), labels_n, groups_n) if len(b)]
        except ValueError:  # every type has fewer cells than folds: share out whole groups, or cells, at random
            units = np.arange(len(labels_n)) if groups_n is None else np.unique(groups_n, return_inverse=True)[1]
            part_u = np.random.default_rng(seed).permutation(units.max() + 1) % k
            return [(np.flatnonzero(part_u[units] != i), np.flatnonzero(part_u[units] == i)) for i in range(k)]
