"""What can be wrong with a file for classification: its labels, what is split by, and what is read of a cell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sctool.config import Config
from sctool.data.check import FEWEST_CELLS, Checked, check_names
from sctool.data.expression import find_expression
from sctool.data.integration import labels_of
from sctool.data.read import H5ad, near, read_lines
from sctool.data.splits import select
from sctool.errors import SctoolError

Mask = NDArray[np.bool_]
SHOWN = 5


def check_classify_file(file: H5ad, config: Config) -> Checked:
    """Check a file for classification with the columns, the features and the split of a configuration."""
    checked = Checked(file)
    var = file.var
    try:
        features_of(config.classify.features)
    except SctoolError as error:
        checked.problems.append(error)
    if config.classify.features.startswith("obsm:"):
        embedding = config.classify.features.removeprefix("obsm:")
        try:
            file.embedding(embedding)
            checked.notes.append(
                f"{embedding} was made from all cells, test cells too, unless you made sure of the contrary: scores may flatter"
            )
        except SctoolError as error:
            checked.problems.append(error)
    else:
        try:
            checked.matrix = find_expression(file, config.data)
            var = checked.matrix.var
            if not checked.matrix.kind.is_linear:
                checked.notes.append(f"{checked.matrix.source}: {checked.matrix.note}; variable genes are chosen by Seurat's first rule")
        except SctoolError as error:
            checked.problems.append(error)
    checked.problems += check_names(file, var)
    if file.n_cells < FEWEST_CELLS:
        checked.problems.append(SctoolError(f"only {file.n_cells} cells; a classifier needs at least {FEWEST_CELLS}", "give more cells"))
    for key, flag in ((config.data.group_key, "--group-key"), (config.data.batch_key, "--batch-key")):
        checked.problems += _complete(file, key, flag)
    try:
        train, test = split_masks(file, config)
    except SctoolError as error:
        checked.problems.append(error)
        train, test = np.ones(file.n_cells, bool), np.zeros(file.n_cells, bool)
    problems, notes = _labels(file, config, train, test)
    checked.problems += problems
    checked.notes += notes
    return checked


def split_masks(file: H5ad, config: Config) -> tuple[Mask, Mask]:
    """Cells to train on and cells to test on; without a split, all and none.

    Raises
    ------
    SctoolError
        If a value is not there, or cells or groups are on both sides.
    """
    c = config.classify
    everyone = select(file.obs, config.data.cells) if config.data.cells else np.ones(file.n_cells, bool)
    nobody = np.zeros(file.n_cells, bool)
    if c.split_key is None:
        if c.split_train or c.split_test:
            raise SctoolError("--split-train and --split-test need --split-key", "give the obs column they are values of")
        return everyone, nobody
    column = file.column(c.split_key, "--split-key")
    if not c.split_train and not c.split_test:
        if c.cv in ("pairs", "auto"):
            return everyone, nobody
        raise SctoolError(f"--split-key {c.split_key} without --split-train and --split-test", "give both, or one: the other is the rest")
    test = _members(column, c.split_test, "--split-test") if c.split_test else ~_members(column, c.split_train, "--split-train")
    train = _members(column, c.split_train, "--split-train") if c.split_train else ~test
    train, test = train & everyone, test & everyone
    both = int((train & test).sum())
    if both:
        shared = ", ".join(value for value in c.split_train if value in c.split_test) or "some values"
        raise SctoolError(f"{both:,} cells are in both --split-train and --split-test ({shared})", "leave them out of one")
    if config.data.group_key and config.data.group_key in file.obs:
        groups = file.obs[config.data.group_key].astype(str).to_numpy()
        shared_groups = sorted(set(groups[train]) & set(groups[test]))
        if shared_groups:
            said = ", ".join(shared_groups[:SHOWN])
            raise SctoolError(
                f"groups of obs[{config.data.group_key!r}] are on both sides of the split: {said}",
                "the score would be too good; split by whole groups, or give another --group-key",
            )
    return train, test


def _members(column: pd.Series, wanted: list[str], flag: str) -> Mask:
    """Cells with one of the values; numbers are compared as numbers, so 1 finds 1.0."""
    text_n = column.astype(str).str.strip().to_numpy(object)
    kind = column.cat.categories.dtype if isinstance(column.dtype, pd.CategoricalDtype) else column.dtype
    number_n = np.full(len(column), np.nan)
    if pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind):
        number_n = column.astype(float).to_numpy()
    members = np.zeros(len(column), bool)
    for value in wanted:
        own = (text_n == value) | (number_n == (float(value) if _is_number(value) else np.nan))
        if not own.any():
            counts = pd.Series(text_n).value_counts()
            there = ", ".join(f"{name} ({n:,})" for name, n in counts.head(10).items())
            raise SctoolError(
                f"{flag}: obs[{column.name!r}] has no {value!r}; it has: {there}", near(value, [str(v) for v in counts.index])
            )
        members |= own
    return members


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _complete(file: H5ad, key: str | None, flag: str) -> Iterator[SctoolError]:
    if key is None:
        return
    try:
        column = file.column(key, flag)
    except SctoolError as error:
        yield error
        return
    missing = int(column.isna().sum())
    if missing:
        yield SctoolError(
            f"{missing} of {file.n_cells} cells have no value in obs[{key!r}] ({flag})", "fill it in, or leave those cells out"
        )
    elif column.astype(str).nunique() > len(column) / 2:
        yield SctoolError(
            f"obs[{key!r}] ({flag}) has {column.nunique()} values for {len(column)} cells", "give a column of donors or batches"
        )


def _labels(file: H5ad, config: Config, train: Mask, test: Mask) -> tuple[list[SctoolError], list[str]]:
    """Of the label column: missing, continuous, one type only, none shared; and what is only worth a word."""
    key = config.data.label_key
    if key is None:
        return [SctoolError("classification needs labels", "give the obs column of cell types with --label-key")], []
    try:
        column = file.column(key, "--label-key")
    except SctoolError as error:
        return [error], []
    if pd.api.types.is_numeric_dtype(column) and column.nunique() > 100:
        return [SctoolError(f"obs[{key!r}] (--label-key) looks continuous: {column.nunique()} distinct numbers", "give types")], []
    if column.nunique() > max(10, len(column) / 2):
        found = f"obs[{key!r}] (--label-key) has {column.nunique():,} values for {len(column):,} cells"
        return [SctoolError(f"{found}; it looks like a name of each cell", "give the column of types")], []
    labels = labels_of(column, config.classify.missing_labels)
    used = train | test
    missing = int((labels[used] == "").sum())
    if missing > used.sum() / 2:
        found = f"{missing:,} of {int(used.sum()):,} cells have no label in obs[{key!r}]"
        return [SctoolError(found, "label more cells, give another --label-key, or leave those out with --set data.cells=COLUMN=VALUE")], []
    notes = [f"{missing:,} cells have no label and are left out"] if missing else []
    trained, tested = set(labels[train]) - {""}, set(labels[test]) - {""}
    if len(trained) < 2:
        only = ", ".join(trained) or "none"
        return [SctoolError(f"the training cells are of one type only: {only}", "two types at least are needed")], notes
    if tested and not trained & tested:
        shown = f"training: {', '.join(sorted(trained)[:SHOWN])}; test: {', '.join(sorted(tested)[:SHOWN])}"
        return [SctoolError(f"training and test cells share no label ({shown})", "bring the names into line")], notes
    unseen = sorted(tested - trained)
    if unseen:
        share = np.isin(labels[test], unseen).sum() / max(1, (labels[test] != "").sum())
        said = f"{share:.1%} of the test cells are of types never trained ({', '.join(unseen[:SHOWN])})"
        notes.append(f"{said}; they count as errors and are reported apart")
    names, sizes = np.unique(labels[train][labels[train] != ""], return_counts=True)
    few = [f"{name} ({n})" for name, n in zip(names, sizes, strict=True) if n < 10]
    notes += [f"types of fewer than 10 training cells: {', '.join(few)}"] if few else []
    return [], notes


def features_of(text: str) -> tuple[str, list[str] | None]:
    """What ``--features`` means: its kind, and the names in the file, where it is one."""
    if text in ("hvg", "all"):
        return text, None
    if text.startswith("obsm:"):
        return "embedding", None
    path = Path(text)
    if not path.is_file():
        raise SctoolError(f"--features {text!r} is neither hvg, all, obsm:KEY nor a file", "give a text file with one gene per line")
    wanted = [line.split("\t")[0].strip() for line in read_lines(path)]
    if not wanted:
        raise SctoolError(f"{path} names no gene", "give one gene per line")
    return "list", wanted
