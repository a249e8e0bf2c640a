"""What can be wrong with a perturbation screen: its names, its control, its combinations, its flags of quality."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from sctool.config import Config
from sctool.data.check import Checked, check_counts_file
from sctool.data.perturbation_names import CONTROL, DELIMITER, canonical, pieces, targets_of
from sctool.data.perturbation_splits import split_kind, split_screen
from sctool.data.quality import check_criteria, gene_symbols, given_flags, share_notes
from sctool.data.read import H5ad, near
from sctool.errors import SctoolError
from sctool.sections import CradleConfig

FEW_CELLS = 10
SHOWN = 5
_CONTROL = re.compile(
    r"(neg_?)?(ctrl|control)s?[\s_-]*\d*|(non|safe)[-_ ]?targeting[\s_-]*\d*|nt|ntc|unperturbed|untreated|vehicle|dmso|mock|scrambled?",
    re.IGNORECASE,
)
"""What control cells are called."""
_OTHER_DELIMITERS = ("__", "_", "|", ";", ",", "&", "/", ":", "-", " ")


def check_perturbation_file(file: H5ad, config: Config) -> Checked:
    """Check a screen with the columns, the control and the split of a configuration; every problem at once."""
    settings = config.cradle
    checked = check_counts_file(file, config.data)
    key = settings.perturbation_key
    written = list(_written(file.obs[key].dropna().astype(str), settings)) if key in file.obs and not settings.preset else []
    try:
        name_n = perturbation_names(file.obs, settings)
    except SctoolError as error:
        checked.problems.append(error)
    else:
        written = written or [*_one_kind(name_n, settings), *(() if config.data.hold_out else _split(name_n, file.obs, config))]
        checked.notes += _sizes(name_n)
        checked.notes += () if config.data.hold_out else _auto_split(name_n, settings)
        checked.notes += _measured(name_n, gene_symbols(checked.matrix.var if checked.matrix else file.var))
    checked.problems += written
    try:
        check_criteria(settings.qc_criteria, settings.qc_limits)
        if settings.qc_key not in ("auto", "none"):
            checked.notes += share_notes(given_flags(file.obs, settings.qc_key))
    except SctoolError as error:
        checked.problems.append(error)
    return checked


def perturbation_names(obs: pd.DataFrame, settings: CradleConfig) -> NDArray[Any]:
    """Canonical perturbation of each cell, shape (cells,); ``""`` for cells which a preset leaves out.

    Raises
    ------
    SctoolError
        If the column or the control is not given or not there, a cell has no value, or a value cannot be told from others.
    """
    if settings.preset:
        from sctool.data.presets import apply

        return apply(settings.preset, obs).fillna("").to_numpy(object)
    key, columns = settings.perturbation_key, list(map(str, obs.columns))
    if key is None:
        raise SctoolError("--perturbation-key is missing", f"give the obs column of perturbations; there are: {', '.join(columns[:20])}")
    if key not in obs:
        listed = ", ".join(columns[:20]) or "none"
        raise SctoolError(f"obs has no column {key!r} (--perturbation-key); it has: {listed}", near(key, columns))
    missing = int(obs[key].isna().sum())
    if missing:
        remedy = "fill it in, or leave those cells out"
        raise SctoolError(f"{missing} of {len(obs)} cells have no value in obs[{key!r}] (--perturbation-key)", remedy)
    text_n = obs[key].astype(str)
    values = text_n.value_counts()
    if settings.control is None:
        raise SctoolError("--control is missing", f"give the value of control cells; obs[{key!r}] has: {_counted(values, True)}")
    names = {value: canonical(value, settings.control, settings.delimiter) for value in values.index}
    if CONTROL not in names.values() or not any(settings.control in (value, *pieces(value, settings.delimiter)) for value in names):
        remedy = _nearest_control(settings.control, list(values.index))
        raise SctoolError(f"obs[{key!r}] has no {settings.control!r} (--control); it has: {_counted(values, True)}", remedy)
    _require_distinct(values, settings)
    return text_n.map(names).to_numpy(object)


def _require_distinct(values: pd.Series, settings: CradleConfig) -> None:
    """Refuse values whose canonical name would be that of something else."""
    key, control = settings.perturbation_key, settings.control or ""
    words = {str(value): {*pieces(str(value), settings.delimiter)} - {"", control} for value in values.index}
    controls = [value for value, targets in words.items() if not targets or value.strip() == control]
    other = [value for value, targets in words.items() if targets == {CONTROL} and value not in controls]
    if other:
        raise SctoolError(
            f"obs[{key!r}] has {values[controls].sum():,} cells of {control!r} (--control) and {values[other].sum():,} of {other[0]!r}",
            f"rename one of them: {CONTROL!r} is the name of control cells",
        )
    joined = [value for value, targets in words.items() if value not in controls and any(DELIMITER in target for target in targets)]
    if joined:
        delimited = any(settings.delimiter in value for value in words)
        raise SctoolError(
            f"obs[{key!r}] has {joined[0]!r}, whose {DELIMITER!r} is not the delimiter {settings.delimiter!r} (--delimiter), "
            "but would part two targets",
            ("" if delimited else f"give --delimiter '{DELIMITER}', or ") + "replace the plus sign in the names",
        )


def _written(text_n: pd.Series, settings: CradleConfig) -> Iterator[SctoolError]:
    """Names written in another way than the settings say."""
    values, control, delimiter = sorted(set(text_n)), settings.control or "", settings.delimiter
    if len(values) > 20 and len(values) > len(text_n) / 2:
        yield SctoolError(
            f"obs[{settings.perturbation_key!r}] has {len(values)} values for {len(text_n)} cells; it looks like a name of each cell",
            "give the column of perturbed genes",
        )
        return
    for value in values:
        targets = targets_of(canonical(value, control, delimiter))
        words = [target for target in targets if _is_control(target)]
        if words and len(targets) > 1:
            yield SctoolError(
                f"{words[0]!r}, as in {value!r}, counts as a target, since --control is {settings.control!r}",
                f"give --control {words[0]}, or write one word for control cells",
            )
            break
    if any(delimiter in value for value in values):
        return
    for other in _OTHER_DELIMITERS:
        known = {value for value in values if other not in value} | {control}
        split = {value: pieces(value, other) for value in values if other in value and value != control}
        # A name beside a control, like A_ctrl, is a name by itself.
        known |= {piece for words in split.values() if any(map(_is_control, words)) for piece in words}
        combined = [
            value
            for value, words in split.items()
            if all(word in known or _is_control(word) for word in words) and not all(map(_is_control, words))
        ]
        if combined:
            yield SctoolError(
                f"no name has the delimiter {delimiter!r}, but {len(combined)} look like combinations written with {other!r}: "
                f"{_listed(combined)}",
                f"give --delimiter '{other}'",
            )
            return


def _one_kind(name_n: NDArray[Any], settings: CradleConfig) -> Iterator[SctoolError]:
    if not set(name_n) - {CONTROL, ""}:
        where = f"preset {settings.preset}" if settings.preset else f"obs[{settings.perturbation_key!r}]"
        yield SctoolError(f"all cells are control cells by {where}", "give another --perturbation-key or --control")


def _split(name_n: NDArray[Any], obs: pd.DataFrame, config: Config) -> Iterator[SctoolError]:
    """Whether the split can be made."""
    named = name_n != ""
    try:
        split_screen(name_n[named], obs[named], config)
    except SctoolError as error:
        yield error


def _auto_split(name_n: NDArray[Any], settings: CradleConfig) -> Iterator[str]:
    """What ``auto`` means here."""
    if settings.split == "auto":
        kind = split_kind(name_n, settings)
        yield f"--split auto is {kind} here: it holds out " + ("combinations" if kind == "ood" else "cells of every perturbation")


def _sizes(name_n: NDArray[Any]) -> Iterator[str]:
    sizes = pd.Series(name_n[name_n != ""]).value_counts()
    left_out, perturbed = int((name_n == "").sum()), len(sizes) - (CONTROL in sizes)
    combinations = sum(len(targets_of(name)) > 1 for name in sizes.index)
    yield (
        f"{_several(perturbed, 'perturbation')}, {combinations} of them combinations, and {_several(sizes.get(CONTROL, 0), 'control cell')}"
        + (f"; {_several(left_out, 'cell')} {'is' if left_out == 1 else 'are'} left out" if left_out else "")
    )
    both = sum(len(targets_of(name)) > 1 and set(targets_of(name)) <= set(sizes.index) for name in sizes.index)
    if combinations > both:
        yield f"{both} of {combinations} combinations have every target perturbed alone too; of the others less is known beforehand"
    small = sizes[sizes < FEW_CELLS]
    if len(small):
        one = len(small) == 1
        yield (
            f"{_several(len(small), 'perturbation')} {'has' if one else 'have'} fewer than {FEW_CELLS} cells, "
            f"so {'its mean says' if one else 'their means say'} little: {_counted(small)}"
        )
    others = [str(name) for name in sizes.index if name != CONTROL and _is_control(str(name))]
    if others:
        yield f"counted as perturbations and not as control: {_listed(others)}"
    by_case = pd.Series(sizes.index).groupby([str(name).lower() for name in sizes.index]).agg(list)
    alike = [" and ".join(sorted(names)) for names in by_case if len(names) > 1]
    if alike:
        yield f"names that differ by case only count as different: {_listed(alike)}"


def _measured(name_n: NDArray[Any], symbols: list[str]) -> Iterator[str]:
    """How many targets are genes of the file; nothing of one or two that are none, as treatments are."""
    targets = sorted({target for name in set(name_n) for target in targets_of(name)})
    absent = sorted(set(targets) - set(symbols))
    known = len(targets) - len(absent)
    if absent and (known or len(targets) > 2):
        are = "is a gene" if known == 1 else "are genes"
        yield (
            f"{known} of {len(targets)} targets {are} of the file; the change of the perturbed gene itself is seen for "
            f"{'this' if known == 1 else 'these'} only, not for: {_listed(absent)}"
        )


def _is_control(word: str) -> bool:
    return _CONTROL.fullmatch(word.strip()) is not None


def _nearest_control(control: str, values: list[str]) -> str:
    alike = [value for value in values if _is_control(value)]
    return f"did you mean {alike[0]!r}?" if alike else near(control, values)


def _counted(sizes: pd.Series, control_first: bool = False) -> str:
    order = sorted(sizes.index, key=lambda value: not _is_control(value)) if control_first else list(sizes.index)
    return _listed([f"{value} ({sizes[value]:,})" for value in order])


def _several(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _listed(words: list[str]) -> str:
    return ", ".join(words[:SHOWN]) + (", ..." if len(words) > SHOWN else "")
