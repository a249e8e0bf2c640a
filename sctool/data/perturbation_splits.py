"""Splits of a perturbation screen: which perturbations, and which cells, a model never sees.

Perturbations are canonical names: ``A``, ``A+B`` (parts sorted) and ``control``; a cell without one (``""``) is unused. Whatever is held
out, cells of the other perturbations are trained on or are validation, and a share of the control cells is test: a change is scored
against control cells that were held out too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sctool.config import Config
from sctool.data.perturbation_names import CONTROL, targets_of
from sctool.data.splits import select
from sctool.errors import SctoolError
from sctool.sections import CradleConfig

Names = NDArray[Any]
"""Canonical perturbation of each cell, shape (cells,)."""
Split = NDArray[np.str_]
"""``train``, ``validation``, ``test`` or ``unused`` of each cell, shape (cells,)."""
_WORDS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_WORDS |= dict.fromkeys(("val", "valid", "validation"), "validation")


def split_screen(name_n: Names, obs: pd.DataFrame, config: Config) -> Split:
    """What each cell is for, by ``cradle.split``, or by ``data.hold_out``; shape (cells,)."""
    settings, seed, validation = config.cradle, config.seed, config.data.validation
    rest: dict[str, Any] = {"validation": validation, "control_share": settings.control_share, "seed": seed}
    fold = parse_fold(settings.fold) if settings.fold else None
    if config.data.hold_out:
        held = select(obs, config.data.hold_out)
        split_n = split_cells(name_n, 0.0, validation, seed)
        split_n[held] = "test"
        if not (held & (name_n == CONTROL)).any():
            rows = np.random.default_rng([seed, 3]).permutation(np.flatnonzero(name_n == CONTROL))
            split_n[rows[: round(settings.control_share * len(rows))]] = "test"
        return split_n
    kind = split_kind(name_n, settings)
    if fold and kind not in ("ood", "singles"):
        raise SctoolError(
            f"--fold {settings.fold} with --split {kind}", "folds are of combinations or targets: give --split ood or singles"
        )
    match kind:
        case "none":
            return split_cells(name_n, 0.0, validation, seed)
        case "cells":
            return split_cells(name_n, settings.test_share, validation, seed)
        case "ood" if fold:
            return split_perturbations(name_n, fold, **rest)
        case "ood":
            return split_ood(name_n, settings.train_share, settings.test_share, **rest)
        case "singles":
            return split_singles(name_n, settings.test_share, fold, **rest)
        case key:
            return split_column(obs, key)


def split_kind(name_n: Names, settings: CradleConfig) -> str:
    """The split that is meant; ``auto`` is ``ood`` where there are more than three combinations."""
    if settings.split != "auto":
        return settings.split
    combinations = {name for name in set(name_n) if len(targets_of(name)) > 1}
    return "ood" if len(combinations) > 3 else "cells"


def split_ood(
    name_n: Names,
    train_share: float = 0.75,
    test_share: float = 0.25,
    validation: float = 0.2,
    control_share: float = 0.2,
    seed: int = 0,
    *,
    published: bool = False,
) -> Split:
    """Unseen combinations of seen targets.

    The combinations, sorted and shuffled: the first ``int(train_share * n)`` are trained on, all cells of the last
    ``ceil(test_share * n)`` are test, those between are unused. More of the first only adds cells to train on.

    Parameters
    ----------
    name_n
        Canonical names.
    train_share, test_share
        Of the combinations; together at most 1.
    validation
        Share of the cells of each training perturbation, and of control.
    control_share
        Share of the control cells that is test.
    seed
        Of all choices.
    published
        As CRADLE-VAE splits: 20 % of cells, drawn before combinations are held out, would be test, so that most cells of a held-out
        combination are unused; no control cell is test; ``validation`` and ``control_share`` have no effect.
    """
    if train_share + test_share > 1 + 1e-9:
        raise SctoolError(f"{train_share} of the combinations to train on and {test_share} to test on is more than all", "lower one share")
    combinations = _shuffled(_combinations(name_n), seed)
    n = len(combinations)
    first, last = int(round(train_share * n, 9)), math.ceil(round(test_share * n, 9))
    trained, held_out = set(combinations[:first]), set(combinations[n - last :])
    if published:
        return _published_ood(name_n, trained, held_out, seed)
    return _hold_out(name_n, held_out, set(combinations) - trained - held_out, validation, control_share, seed)


def split_perturbations(name_n: Names, fold: tuple[int, int], validation: float = 0.2, control_share: float = 0.2, seed: int = 0) -> Split:
    """Fold ``i`` of ``k`` (``i`` from 0) over the combinations: its combinations are test, all others are trained on."""
    held_out = _fold(_combinations(name_n), fold, seed, "combinations")
    return _hold_out(name_n, held_out, set(), validation, control_share, seed)


def split_singles(
    name_n: Names,
    share: float = 0.2,
    fold: tuple[int, int] | None = None,
    validation: float = 0.2,
    control_share: float = 0.2,
    seed: int = 0,
) -> Split:
    """Unseen targets: every perturbation that contains a held-out one is test.

    Parameters
    ----------
    name_n
        Canonical names.
    share
        Of the targets that are perturbed alone; at least one is held out.
    fold
        Fold ``i`` of ``k`` (``i`` from 0) over these targets instead of a share.
    validation, control_share, seed
        See :func:`split_ood`.
    """
    there = sorted(set(map(str, name_n)))
    singles = [name for name in there if len(targets_of(name)) == 1]
    if len(singles) < 2:
        found = f"only one target, {singles[0]!r}," if singles else "no target"
        raise SctoolError(f"{found} is perturbed alone, so none can be held out", "give --split cells, or --split ood for combinations")
    if fold is not None:
        chosen = _fold(singles, fold, seed, "targets perturbed alone")
    else:
        if not 0 < share < 1:
            raise SctoolError(f"a share of {share} of the targets cannot be held out", "give one between 0 and 1")
        chosen = set(_shuffled(singles, seed)[: min(math.ceil(round(share * len(singles), 9)), len(singles) - 1)])
    held_out = {name for name in there if chosen & set(targets_of(name))}
    return _hold_out(name_n, held_out, set(), validation, control_share, seed)


def split_cells(name_n: Names, test: float = 0.2, validation: float = 0.2, seed: int = 0, *, published: bool = False) -> Split:
    """Cells of every perturbation, and of control, in all parts: by default 64 % train, 16 % validation, 20 % test.

    Parameters
    ----------
    name_n
        Canonical names.
    test
        Share of the cells of each perturbation; one cell at least stays to train on.
    validation
        Share of the others.
    seed
        Of the draw.
    published
        Cells at random, whatever their perturbation, as CRADLE-VAE splits; its seed is always 0.
    """
    if published:
        return _published_cells(np.arange(len(name_n)), test, validation, seed, len(name_n))
    rank_n, size_n = _ranks(name_n, seed)
    test_n = np.minimum(_rounded(test * size_n), size_n - 1)
    validation_n = np.minimum(_rounded(validation * (size_n - test_n)), size_n - test_n - 1)
    split = np.where(rank_n < test_n, "test", np.where(rank_n < test_n + validation_n, "validation", "train"))
    return _as_split(np.where(name_n == "", "unused", split))


def split_column(obs: pd.DataFrame, key: str) -> Split:
    """The user's own split: values train, validation (or val) and test in any case; anything else is unused.

    Raises
    ------
    SctoolError
        If the column is not there, or has no cell to train on or to test on.
    """
    if key not in obs:
        from sctool.data.read import near

        columns = list(map(str, obs.columns))
        raise SctoolError(f"obs has no column {key!r} (--split); it has: {', '.join(columns[:20])}", near(key, [*columns, "ood", "cells"]))
    split = _as_split([_WORDS.get(str(value).strip().lower(), "unused") for value in obs[key]])
    for wanted in ("train", "test"):
        if not (split == wanted).any():
            counts = obs[key].astype(str).value_counts()
            there = ", ".join(f"{value} ({n})" for value, n in counts.head(6).items())
            raise SctoolError(
                f"obs[{key!r}] (--split) has no {wanted!r} cell; it has: {there}", "use the values train, validation and test"
            )
    return split


def parse_fold(text: str) -> tuple[int, int]:
    """``"2/5"``, the second of five folds, as (1, 5).

    Raises
    ------
    SctoolError
        If it is not a fold.
    """
    found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]) or int(found[2]) < 2:
        raise SctoolError(f"--fold {text!r} is not a fold", "write it like 2/5, the second of five")
    return int(found[1]) - 1, int(found[2])


def _combinations(name_n: Names) -> list[str]:
    """The combinations of a file, sorted; two at least."""
    there = sorted(set(map(str, name_n)) - {""})
    found = [name for name in there if len(targets_of(name)) > 1]
    if len(found) < 2:
        what = f"only one combination of targets, {found[0]!r}," if found else "no combination of targets"
        raise SctoolError(
            f"{what} is in the file, so none can be held out; names are like {', '.join(there[:4])}",
            "give --split singles (unseen targets) or --split cells, or --delimiter if combinations are written in another way than A+B",
        )
    return found


def _fold(names: list[str], fold: tuple[int, int], seed: int, what: str) -> set[str]:
    i, k = fold
    if not 0 <= i < k:
        raise SctoolError(f"there is no fold {i + 1} of {k}", f"give 1/{k} to {k}/{k}")
    if not 2 <= k <= len(names):
        raise SctoolError(f"{len(names)} {what} cannot be shared out over {k} folds", f"give 2 to {len(names)} folds")
    return set(_shuffled(names, seed)[i::k])


def _shuffled(names: list[str], seed: int) -> list[str]:
    order = np.array(names)
    np.random.default_rng(seed).shuffle(order)
    return [str(name) for name in order]


def _hold_out(
    name_n: Names, held_out: Collection[str], unused: Collection[str], validation: float, control_share: float, seed: int
) -> Split:
    """What is drawn of a perturbation's cells does not depend on which perturbations are held out."""
    rank_n, size_n = _ranks(name_n, seed)
    control_n = name_n == CONTROL
    test_n = np.where(control_n, np.minimum(_rounded(control_share * size_n), size_n - 1), 0)
    validation_n = np.minimum(_rounded(validation * (size_n - test_n)), size_n - test_n - 1)
    split = np.where(rank_n < test_n, "test", np.where(rank_n < test_n + validation_n, "validation", "train"))
    split = np.where(np.isin(name_n.astype(str), sorted(held_out)), "test", split)
    return _as_split(np.where(np.isin(name_n.astype(str), ["", *sorted(unused)]), "unused", split))


def _ranks(name_n: Names, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Place of each cell in a random order of its perturbation's cells, and how many these are."""
    code_n = np.unique(name_n.astype(str), return_inverse=True)[1]
    draw_n = np.random.default_rng([seed, 2]).random(len(name_n))
    order = np.lexsort((draw_n, code_n))
    sizes = np.bincount(code_n)
    rank_n = np.empty(len(name_n), np.int64)
    rank_n[order] = np.arange(len(name_n)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return rank_n, sizes[code_n]


def _rounded(count_n: NDArray[Any]) -> NDArray[np.int64]:
    return np.floor(count_n + 0.5).astype(np.int64)


def _as_split(values: Any) -> Split:
    return np.asarray(values).astype("<U10")


def _published_cells(rows: NDArray[np.int64], test: float, validation: float, seed: int, n: int) -> Split:
    from sklearn.model_selection import train_test_split

    split = np.full(n, "unused", "<U10")
    rest, split_test = train_test_split(rows, test_size=test, random_state=seed)
    train, split_validation = train_test_split(rest, test_size=validation, random_state=seed)
    split[train], split[split_validation], split[split_test] = "train", "validation", "test"
    return split


def _published_ood(name_n: Names, trained: Collection[str], held_out: Collection[str], seed: int) -> Split:
    from sklearn.model_selection import train_test_split

    several_n = np.array([len(targets_of(str(name))) > 1 for name in name_n])
    split = _published_cells(np.flatnonzero(several_n), 0.2, 0.2, seed, len(name_n))
    split[several_n & np.isin(split, ["train", "validation"]) & ~np.isin(name_n.astype(str), sorted(trained))] = "unused"
    split[several_n & (split == "test") & ~np.isin(name_n.astype(str), sorted(held_out))] = "unused"
    train, validation = train_test_split(np.flatnonzero(~several_n), test_size=0.2, random_state=seed)
    split[train], split[validation] = "train", "validation"
    return split
