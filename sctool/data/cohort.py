"""Samples and donors: which cells make up a sample, what is known of it, and what is to be predicted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from sctool.config import Config
from sctool.data.representation import Matrix, Representation
from sctool.errors import SctoolError

Mask = NDArray[np.bool_]
KINDS = ("class", "regression", "ordinal")
OWN = ("sample", "donor", "n_cells")
"""Columns of the table of samples that are not from obs."""


@dataclass(frozen=True)
class Task:
    """What is predicted of a sample.

    Attributes
    ----------
    column
        Of obs.
    kind
        ``class``, ``regression`` or ``ordinal``.
    order
        The classes, sorted, or the levels from low to high; empty for a number.
    weight
        Of its loss.
    """

    column: str
    kind: Literal["class", "regression", "ordinal"]
    order: tuple[str, ...] = ()
    weight: float = 1.0

    @property
    def n_outputs(self) -> int:
        """Of its head: logits of classes, one number, or logits of being above each level but the last."""
        return {"class": len(self.order), "regression": 1, "ordinal": len(self.order) - 1}[self.kind]

    def encode(self, values: pd.Series) -> NDArray[np.float64]:
        """Codes of classes or levels, or the numbers; NaN where the value is missing or of no class of ours."""
        if self.kind == "regression":
            return pd.to_numeric(values.astype(object), errors="coerce").to_numpy(np.float64)
        code = {name: float(number) for number, name in enumerate(self.order)}
        return np.array([code.get(name, np.nan) for name in text(values)], np.float64)


@dataclass(frozen=True)
class Cohort:
    """Cells by sample.

    Attributes
    ----------
    samples, donor_s
        Names of the samples and of their donors, shape (samples,).
    sample_n
        Code of each cell's sample, -1 for cells of none; shape (cells,).
    table
        A row for each sample: ``sample, donor, n_cells`` and each column of obs that is constant within samples.
    obs
        Of the cells.
    types_n
        Type of each cell, "" where missing; None without a column of types.
    usable_s
        Samples with enough cells to train on and to be scored.
    given_sd
        Means over the cells of what ``ar.embedding`` names, by which samples are drawn.
    memo
        What :meth:`remembered` keeps; a copy made by ``dataclasses.replace`` has none.
    """

    samples: NDArray[Any]
    donor_s: NDArray[Any]
    sample_n: NDArray[np.int64]
    table: pd.DataFrame
    obs: pd.DataFrame
    types_n: NDArray[Any] | None
    source: Representation
    usable_s: Mask
    given_sd: Matrix | None = None
    memo: dict[str, tuple[bytes, Any]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def fingerprint(self) -> str:
        """A hash of the names of the cells, their samples and what is known of these."""
        digest = hashlib.sha256("\n".join(map(str, self.obs.index)).encode())
        digest.update(self.sample_n.tobytes())
        digest.update(self.table.to_csv(index=False).encode())
        return digest.hexdigest()

    def cells(self, chosen_s: Mask) -> Mask:
        """Cells of some samples, shape (cells,)."""
        return np.append(chosen_s, False)[self.sample_n]

    def features(self, train_s: Mask) -> Matrix:
        """Features of all cells, shape (cells, features), with anything that is fitted fitted on the cells of ``train_s`` only."""
        return self.source.features(self.cells(train_s))

    def remembered(self, what: str, train_s: Mask, make: Callable[[], Any]) -> Any:
        """What was made for the last training samples, or is made now: several baselines ask for the same in each fold."""
        key = np.packbits(train_s).tobytes()
        if what not in self.memo or self.memo[what][0] != key:
            self.memo[what] = key, make()
        return self.memo[what][1]

    def types(self) -> tuple[list[str], NDArray[np.int64]]:
        """Names of the types of cells, and the code of each cell's, -1 where it is missing."""
        assert self.types_n is not None
        names, type_n = np.unique(self.types_n.astype(str), return_inverse=True)
        return (names[1:].tolist(), type_n - 1) if len(names) and names[0] == "" else (names.tolist(), type_n)

    def truth(self, task: Task) -> NDArray[Any]:
        """Of each sample: names of classes ("" missing), numbers or levels (NaN missing)."""
        if task.kind == "class":
            names = text(self.table[task.column])
            return np.where(np.isin(names, task.order), names, "")
        return task.encode(self.table[task.column])

    def known(self, task: Task) -> Mask:
        """Usable samples whose value is known."""
        truth = self.truth(task)
        return self.usable_s & ((truth != "") if task.kind == "class" else np.isfinite(truth))


def text(values: pd.Series) -> NDArray[Any]:
    """Values as stripped strings, "" where missing; whole numbers without a decimal point."""
    whole = values.map(lambda value: int(value) if isinstance(value, float) and value.is_integer() else value)
    return whole.astype(object).where(values.notna(), "").astype(str).str.strip().to_numpy(object)


def sample_means(x_nf: NDArray[Any], sample_n: NDArray[np.int64], n_samples: int) -> NDArray[np.float64]:
    """Mean features of the cells of each sample, summed in double precision, shape (samples, features); 0 for samples without cells."""
    own = np.flatnonzero(sample_n >= 0)
    pick = sp.csr_matrix((np.ones(len(own)), (sample_n[own], own)), shape=(n_samples, len(x_nf)))
    n_cells_s = np.bincount(sample_n[own], minlength=n_samples)
    return np.asarray(pick @ x_nf) / np.maximum(n_cells_s, 1)[:, None]


def sample_table(obs: pd.DataFrame, sample_n: NDArray[np.int64], samples: NDArray[Any]) -> tuple[pd.DataFrame, dict[str, str]]:
    """A row for each sample with the columns of obs that are constant within samples, and an example for each of those that are not.

    Missing values in part of a sample's cells make the sample's value missing, as they leave open which it is.
    """
    own = sample_n >= 0
    first_s = np.full(len(samples), -1)
    rows = np.flatnonzero(own)
    first_s[sample_n[rows[::-1]]] = rows[::-1]
    table = pd.DataFrame({"sample": samples, "n_cells": np.bincount(sample_n[own], minlength=len(samples))})
    varying: dict[str, str] = {}
    for key in map(str, obs.columns):
        code_n, _ = pd.factorize(obs[key])
        differs = own & (code_n != code_n[first_s][sample_n])
        real = differs & (code_n >= 0) & (code_n[first_s][sample_n] >= 0)
        if real.any():
            cell = int(np.flatnonzero(real)[0])
            at = sample_n[cell]
            varying[key] = f"{samples[at]}: {obs[key].iloc[first_s[at]]}, {obs[key].iloc[cell]}"
            continue
        values = obs[key].iloc[first_s].reset_index(drop=True)
        partly = np.unique(sample_n[differs])
        if len(partly):
            values = values.astype(object)
            values.iloc[partly] = np.nan
        table[key if key not in OWN else f"obs_{key}"] = values
    return table, varying


def parse_tasks(config: Config, table: pd.DataFrame, varying: dict[str, str]) -> Iterator[Task | SctoolError]:
    """The tasks of a configuration with their classes or levels, or what is wrong with each.

    ``COLUMN:KIND``; without a kind, numbers with more than ten values are regression and all else classes.
    """
    from sctool.data.read import near

    settings = config.sampleclr
    for said in dict.fromkeys(settings.tasks):
        column, colon, kind = said.rpartition(":")
        if not colon:
            column, kind = said, ""
        columns = [key for key in table.columns if key not in OWN]
        if column in varying:
            yield SctoolError(
                f"--task {said}: obs[{column!r}] is not one value for each sample ({varying[column]})",
                "give a column of samples, or a --sample-key that tells those apart",
            )
            continue
        if column not in columns:
            yield SctoolError(
                f"--task {said}: there is no column {column!r} of samples; there are: {', '.join(columns) or 'none'}", near(column, columns)
            )
            continue
        values = table[column]
        numbers = pd.to_numeric(values.astype(object), errors="coerce")
        numeric = bool((numbers.notna() == values.notna()).all())
        kind = kind or ("regression" if numeric and values.nunique() > 10 else "class")
        if kind not in KINDS:
            yield SctoolError(f"--task {said}: {kind!r} is not known", f"give {column}:class, {column}:regression or {column}:ordinal")
            continue
        made = _task(said, column, cast(Literal["class", "regression", "ordinal"], kind), values, numeric, config)
        yield made


def _task(
    said: str, column: str, kind: Literal["class", "regression", "ordinal"], values: pd.Series, numeric: bool, config: Config
) -> Task | SctoolError:
    weight = config.sampleclr.task_weights.get(column, 1.0)
    if not values.notna().any():
        return SctoolError(f"--task {said}: no sample has a value of {column}", "give another column")
    if kind == "regression":
        if not numeric:
            odd = values[pd.to_numeric(values.astype(object), errors="coerce").isna() & values.notna()].iloc[0]
            return SctoolError(f"--task {said}: {odd!r} is not a number", f"give {column}:class, or {column}:ordinal with its order")
        return Task(column, kind, (), weight)
    names = sorted({name for name in text(values) if name}, key=(lambda name: (float(name), name)) if numeric else str)
    if len(names) < 2:
        return SctoolError(f"--task {said}: all samples have the value {names[0]!r}", "give a column with two values or more")
    if kind == "ordinal":
        order = config.sampleclr.orders.get(column)
        if order is None and not numeric:
            listed = ", ".join(names)
            return SctoolError(
                f"--task {said}: the order of {listed} is not known",
                f'say it from low to high: --set "sampleclr.orders={{{column}: [...]}}"',
            )
        absent = [name for name in names if name not in (order or names)]
        if absent:
            return SctoolError(f"--task {said}: {absent[0]!r} is not in its order {', '.join(order or [])}", "add it to sampleclr.orders")
        names = [str(name) for name in order or names]
    if len(names) > 0.5 * values.notna().sum() and len(names) > 10:
        return SctoolError(
            f"--task {said}: {len(names)} values in {values.notna().sum()} samples", f"give {column}:regression, or another column"
        )
    return Task(column, kind, tuple(names), weight)
