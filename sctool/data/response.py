"""Cells of two conditions in several groups: which are trained on, which are held out to be predicted.

Three designs (one must be chosen):

- *held-out group*: its perturbed cells are never seen; of its control cells a share may be;
- *in distribution*: half of a group's cells, of both conditions, are kept back;
- *random group*: a random share of all cells plays a group of its own, whose perturbed cells are never seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from sctool.config import Config
from sctool.data.check import Checked, check_names, check_values
from sctool.data.expression import find_expression, log_normalise, read_expression
from sctool.data.genes import GeneMatch, gene_names, match_genes, variable_genes
from sctool.data.prepare import Prepared, fingerprint
from sctool.data.read import H5ad, near
from sctool.data.splits import select, split_cells
from sctool.data.vocabulary import Vocabulary
from sctool.errors import SctoolError
from sctool.sections import DataConfig, SCGenConfig

RANDOM_GROUP = "test-data"
CONTROL, PERTURBED, OTHER = 0, 1, 2


@dataclass(frozen=True)
class Design:
    """What each cell of a file is to a response model."""

    group: NDArray[Any]
    """Group of each cell; cells of the random group are called ``test-data``."""
    condition: NDArray[np.int64]
    """``CONTROL``, ``PERTURBED`` or ``OTHER`` (not used), shape (cells,)."""
    split: NDArray[Any]
    """``train``, ``test`` (kept back) or ``unused``, shape (cells,)."""
    targets: tuple[str, ...]
    """The groups to predict."""
    names: tuple[str, str]
    """Values of the condition column: control, perturbed."""
    from_split: str
    """Control cells to predict from: those of the targets with this split, or of any (``""``)."""

    def controls(self, group: str) -> NDArray[np.int64]:
        """Rows of the control cells whose response is predicted."""
        own = (self.group == group) & (self.condition == CONTROL)
        return np.flatnonzero(own & (self.split == self.from_split)) if self.from_split else np.flatnonzero(own)

    def truth(self, group: str) -> NDArray[np.int64]:
        """Rows of the real perturbed cells that were kept back."""
        return np.flatnonzero((self.group == group) & (self.condition == PERTURBED) & (self.split == "test"))


def design(obs: pd.DataFrame, config: Config) -> Design:
    """Choose cells by the settings ``scgen`` and ``data.group_key``; random choices by ``seed``.

    Raises
    ------
    SctoolError
        If columns, values or groups are not there, or nothing would be left to learn from.
    """
    settings, key = config.scgen, config.data.group_key
    rng = np.random.default_rng(config.seed)
    group = _column(obs, key, "--group-key")
    named = _column(obs, settings.condition_key, "--condition-key")
    control, perturbed = _conditions(named, settings)
    condition = np.where(named == control, CONTROL, np.where(named == perturbed, PERTURBED, OTHER))
    chosen = [settings.held_out, settings.in_distribution, settings.random_share]
    if sum(value is not None for value in chosen) > 1:
        raise SctoolError(
            "--held-out, --in-distribution and --random-share exclude each other", "give one of them, or config.yaml may hold another"
        )
    split = np.where(condition == OTHER, "unused", "train").astype("<U10")
    from_split = ""
    if settings.random_share is not None:
        group = group.copy()
        group[np.sort(rng.permutation(len(obs))[: int(settings.random_share * len(obs))])] = RANDOM_GROUP
        targets: tuple[str, ...] = (RANDOM_GROUP,)
    elif settings.in_distribution is not None:
        targets, from_split = _named_groups(settings.in_distribution, group, "--in-distribution"), "test"
    elif settings.held_out is not None:
        targets = _named_groups(settings.held_out, group, "--held-out")
    else:
        both = _groups_of_both(group, condition)
        targets = tuple(g for g in _groups(group, condition, CONTROL) if g not in both)
        if not targets:
            raise SctoolError(
                f"every group of obs[{key!r}] has both conditions, so none is left to predict",
                f"give --held-out GROUP; there are: {_listed(group)}",
            )
    for target in targets:
        own = group == target
        if not (own & (condition == CONTROL)).any():
            raise SctoolError(f"group {target!r} has no control cells ({control!r}) to predict from", f"groups: {_listed(group)}")
        if from_split:
            for side in (CONTROL, PERTURBED):
                rows = rng.permutation(np.flatnonzero(own & (condition == side)))
                split[rows[: len(rows) // 2]] = "test"
        else:
            split[own & (condition == PERTURBED)] = "test"
            rows = np.flatnonzero(own & (condition == CONTROL))
            kept = rng.choice(len(rows), int(settings.control_share * len(rows)), replace=False)
            split[np.delete(rows, kept)] = "unused"
    if config.data.hold_out:
        split[select(obs, config.data.hold_out) & (split == "train")] = "unused"
    known = split == "train"
    if not _groups_of_both(group[known], condition[known]):
        raise SctoolError(
            f"no group but {', '.join(targets)} has both {control!r} and {perturbed!r} cells",
            "hold out fewer groups, or look at the columns",
        )
    return Design(group, condition, split, targets, (control, perturbed), from_split)


def check_response_file(file: H5ad, config: Config) -> Checked:
    """Check a file for a response model; every problem at once."""
    checked = Checked(file)
    try:
        found = find_expression(file, config.data)
        checked.notes += [f"{found.source}: {found.note}"] if found.note else []
        checked.matrix = found
    except SctoolError as error:
        checked.problems.append(error)
    checked.problems += check_names(file, checked.matrix.var if checked.matrix else file.var)
    try:
        design(file.obs, config)
    except SctoolError as error:
        checked.problems.append(error)
    if config.data.label_key:
        try:
            file.column(config.data.label_key, "--label-key")
        except SctoolError as error:
            checked.problems.append(error)
    if checked.matrix:
        check_values(checked, config.data)
    return checked


def prepare_response(path: Path, config: Config) -> Prepared:
    """Read and check a file, and choose cells and genes for a response model.

    Parameters
    ----------
    path
        The .h5ad file.
    config
        Its sections ``data`` and ``scgen``, and ``seed``.
    """
    data, file = config.data, H5ad(path)
    checked = check_response_file(file, config)
    found = checked.require()
    chosen = design(file.obs, config)
    embedding = file.given_embedding(config)
    split, target_sum = chosen.split, None
    matrix = file.matrix(found.source)
    split[matrix.getnnz(1) == 0] = "unused"
    if found.kind.is_linear:
        target_sum = data.target_sum or float(np.median(np.asarray(matrix[split == "train"].sum(1))))
        matrix = log_normalise(matrix, target_sum)
    rng = np.random.default_rng([config.seed, 1])  # not the stream of the design, whose choices it would repeat
    _, validation = split_cells(np.flatnonzero(split == "train"), data.validation, rng)
    split[validation] = "validation"
    train = np.flatnonzero(split == "train")
    if len(train) < 2:
        raise SctoolError(f"{len(train)} cells are left to train on", "hold out or leave out fewer cells")
    columns = variable_genes(matrix[train], data.n_top_genes, logged=True) if data.n_top_genes else np.arange(matrix.shape[1])
    genes = {kind: [names[column] for column in columns] for kind, names in gene_names(found.var).items()}
    groups = Vocabulary(tuple(sorted(set(chosen.group))))
    codes = {"group": groups.codes(pd.Series(chosen.group)), "condition": chosen.condition}
    about: dict[str, Any] = {
        "file": str(path.resolve()),
        "expression": found.source,
        "target_sum": target_sum or found.kind.target or None,
        "notes": checked.notes,
        "targets": list(chosen.targets),
        "group_key": data.group_key,
        "condition_key": config.scgen.condition_key,
        "control": chosen.names[0],
        "perturbed": chosen.names[1],
        "cells": file.n_cells,
        "genes": len(found.var),
        "fingerprint": fingerprint(file.obs, found.var, matrix),
    }
    kept = tuple(key for key in (data.group_key, config.scgen.condition_key) if key)
    return Prepared(matrix, file.obs, columns, genes, {"group": groups}, codes, split, about, embedding, kept)


def control_cells(
    obs: pd.DataFrame, trained: Config, asked: Config, targets: list[str], groups: list[str] | None, *, same_file: bool
) -> dict[str, NDArray[np.int64]]:
    """Rows of the control cells to predict from, by group.

    Parameters
    ----------
    obs
        Of the query.
    trained
        The configuration of training: its design holds where the query is the file of training, and names columns elsewhere.
    asked
        ``data.group_key``, ``scgen.condition_key`` and ``scgen.control`` of the query, where they differ from those of training.
    targets
        The groups the model held out; these are predicted where the query has them, else every group with control cells.
    groups
        To predict these only.
    same_file
        Whether the query is the file of training.

    Raises
    ------
    SctoolError
        If a group asked for is not there or has no control cells.
    """
    if asked.scgen.condition_key is not None:
        _column(obs, asked.scgen.condition_key, "--condition-key")
    if same_file:
        chosen = design(obs, trained)
        if groups is None:
            return {group: chosen.controls(group) for group in chosen.targets}
        if set(groups) <= set(chosen.targets):
            return {group: chosen.controls(group) for group in groups}
        group_n, control_n = chosen.group, chosen.condition == CONTROL
    else:
        group_n = _column(obs, asked.data.group_key or trained.data.group_key, "--group-key")
        key, control = asked.scgen.condition_key or trained.scgen.condition_key, asked.scgen.control or trained.scgen.control
        # A file without a column of conditions is a file of control cells.
        control_n = (obs[key].astype(str) == control).to_numpy() if key in obs else np.ones(len(obs), bool)
    there = _groups(group_n, np.where(control_n, CONTROL, OTHER), CONTROL)
    absent = [group for group in groups or [] if group not in there]
    if absent or not there:
        raise SctoolError(
            f"no control cells of group {(absent or ['any'])[0]!r}", f"groups with control cells: {', '.join(there) or 'none'}"
        )
    wanted = groups or [group for group in targets if group in there] or there
    return {group: np.flatnonzero(control_n & (group_n == group)) for group in wanted}


def query_expression(
    path: Path, data: DataConfig, genes: dict[str, list[str]], target_sum: float | None
) -> tuple[sp.csr_matrix, pd.DataFrame, GeneMatch]:
    """Read a query for a trained response model: log expression on the model's scale, obs, and the model's columns in it."""
    file = H5ad(path)
    matrix, found = read_expression(file, data, target_sum)
    return matrix, file.obs, match_genes(genes, found.var, data.min_gene_coverage)


def _column(obs: pd.DataFrame, key: str | None, flag: str) -> NDArray[Any]:
    columns = list(map(str, obs.columns))
    if key is None:
        raise SctoolError(f"{flag} is missing", f"give a column of obs; there are: {', '.join(columns[:20])}")
    if key not in obs:
        raise SctoolError(f"obs has no column {key!r} ({flag}); it has: {', '.join(columns[:20])}", near(key, columns))
    missing = int(obs[key].isna().sum())
    if missing:
        raise SctoolError(f"{missing} of {len(obs)} cells have no value in obs[{key!r}] ({flag})", "fill it in, or leave those cells out")
    return obs[key].astype(str).to_numpy(object)


def _conditions(named: NDArray[Any], settings: SCGenConfig) -> tuple[str, str]:
    """The two values, checked; the perturbed one may be left out where only one other is there."""
    values = sorted(set(named))
    pair = [settings.control, settings.perturbed]
    for value, flag in zip(pair, ("--control", "--perturbed"), strict=True):
        if value is not None and value not in values:
            raise SctoolError(f"obs[{settings.condition_key!r}] has no {value!r} ({flag}); it has: {_listed(named)}", near(value, values))
    if pair[0] is None:
        raise SctoolError(
            "--control is missing", f"give the value of untreated cells; obs[{settings.condition_key!r}] has: {_listed(named)}"
        )
    others = [value for value in values if value != pair[0]]
    if pair[1] is None and len(others) != 1:
        raise SctoolError(
            "--perturbed is missing", f"give the value of treated cells; obs[{settings.condition_key!r}] has: {_listed(named)}"
        )
    perturbed = pair[1] if pair[1] is not None else others[0]
    if perturbed == pair[0]:
        raise SctoolError(f"--control and --perturbed are both {perturbed!r}", "give two different values")
    return str(pair[0]), perturbed


def _named_groups(text: str, group: NDArray[Any], flag: str) -> tuple[str, ...]:
    there = sorted(set(group))
    wanted = [text] if text in there else list(dict.fromkeys(name.strip() for name in text.split(",")))
    absent = [name for name in wanted if name not in there]
    if absent:
        raise SctoolError(f"no group {absent[0]!r} ({flag}); there are: {_listed(group)}", near(absent[0], there))
    return tuple(wanted)


def _groups(group: NDArray[Any], condition: NDArray[np.int64], value: int) -> list[str]:
    return sorted(set(group[condition == value]))


def _groups_of_both(group: NDArray[Any], condition: NDArray[np.int64]) -> list[str]:
    return sorted(set(_groups(group, condition, CONTROL)) & set(_groups(group, condition, PERTURBED)))


def _listed(values: NDArray[Any]) -> str:
    counts = pd.Series(values).value_counts()
    return ", ".join(f"{value} ({n})" for value, n in counts.head(12).items())
