"""Every problem of a file at once, each with its remedy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from sctool.data.genes import id_type
from sctool.data.matrix_kind import Chosen, find_counts, judge
from sctool.data.read import H5ad
from sctool.data.splits import select
from sctool.errors import SctoolError
from sctool.sections import DataConfig

FEWEST_CELLS = 20
FEWEST_GENES = 10
_EVERYWHERE = {"ACTB", "B2M", "EEF1A1", "FTH1", "GAPDH", "MALAT1", "RPLP0", "TMSB4X"}
"""Genes that nearly every table of genes has."""


class Problems(SctoolError):
    """Several mistakes of one file; each is a line of what is wrong and a line of what to do."""

    def __init__(self, problems: list[SctoolError]) -> None:
        super().__init__("; ".join(problem.message for problem in problems), "; ".join(problem.hint for problem in problems))
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


@dataclass
class Checked:
    """What a file is, what is wrong with it, and what is only worth a word."""

    file: H5ad
    matrix: Chosen | None = None
    problems: list[SctoolError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def require(self) -> Chosen:
        """The matrix to read, if the file is fit for training; see :meth:`require_fit`."""
        self.require_fit()
        assert self.matrix is not None
        return self.matrix

    def require_fit(self) -> None:
        """Go on only if nothing is wrong.

        Raises
        ------
        SctoolError
            The one problem, or :class:`Problems`.
        """
        if self.problems:
            raise self.problems[0] if len(self.problems) == 1 else Problems(self.problems)


def check_counts_file(file: H5ad, data: DataConfig) -> Checked:
    """Check a file for a model of raw counts, with the columns and the layer of a configuration."""
    checked = Checked(file)
    try:
        checked.matrix = find_counts(file, data.counts_layer)
    except SctoolError as error:
        checked.problems.append(error)
    checked.problems += check_names(file, checked.matrix.var if checked.matrix else file.var)
    checked.problems += _columns(file, data)
    for condition in (data.cells, data.hold_out):
        try:
            if condition:
                select(file.obs, condition)
        except SctoolError as error:
            checked.problems.append(error)
    if file.n_cells < FEWEST_CELLS:
        checked.problems.append(SctoolError(f"only {file.n_cells} cells; a model needs at least {FEWEST_CELLS}", "give more cells"))
    if checked.matrix and len(checked.matrix.var) < FEWEST_GENES:
        checked.problems.append(
            SctoolError(f"only {len(checked.matrix.var)} genes; a model needs at least {FEWEST_GENES}", "give more genes")
        )
    if checked.matrix:
        if checked.matrix.note:
            checked.notes.append(f"{checked.matrix.source}: {checked.matrix.note}")
        check_values(checked, data)
    return checked


def check_names(file: H5ad, var: pd.DataFrame) -> Iterator[SctoolError]:
    """Names of cells or genes that occur more than once; genes where cells should be."""
    rows = [str(name) for name in file.obs.index[:20_000]]
    found = sorted(_EVERYWHERE & {name.upper() for name in rows})
    if len(found) >= len(_EVERYWHERE) / 2 or id_type(rows) == "Ensembl ids":
        yield SctoolError(
            f"the rows look like genes ({', '.join(found[:3] or rows[:3])}, ...): cells and genes are swapped",
            "transpose it: AnnData wants cells as rows (docs/from-seurat.md)",
        )
    for names, what, remedy in (
        (file.obs.index, "cell", "adata.obs_names_make_unique()"),
        (var.index, "gene", "adata.var_names_make_unique(), or sum the copies"),
    ):
        repeated = names[names.duplicated()]
        if len(repeated):
            yield SctoolError(f"{len(repeated)} {what} names occur more than once, e.g. {repeated[0]}", f"make them unique: {remedy}")


def _columns(file: H5ad, data: DataConfig) -> Iterator[SctoolError]:
    for key, flag in ((data.batch_key, "--batch-key"), (data.group_key, "--group-key"), (data.label_key, "--label-key")):
        if key is None:
            continue
        try:
            column = file.column(key, flag)
        except SctoolError as error:
            yield error
            continue
        missing = int(column.isna().sum())
        if missing and flag != "--label-key":
            yield SctoolError(
                f"{missing} of {file.n_cells} cells have no value in obs[{key!r}] ({flag})", "fill it in, or leave those cells out"
            )
        elif missing == file.n_cells:
            yield SctoolError(f"no cell has a value in obs[{key!r}] ({flag})", "give another column")
        elif flag == "--batch-key":
            yield from _batches(key, column)
        elif flag == "--label-key" and pd.api.types.is_numeric_dtype(column) and column.nunique() > 100:
            yield SctoolError(f"obs[{key!r}] ({flag}) looks continuous: {column.nunique()} distinct numbers", "give a column of categories")


def _batches(key: str, column: pd.Series) -> Iterator[SctoolError]:
    sizes = column.astype(str).value_counts()
    single = sizes.index[sizes == 1]
    if len(sizes) > len(column) / 2:
        yield SctoolError(
            f"obs[{key!r}] (--batch-key) has {len(sizes)} values for {len(column)} cells; it looks like a name of each cell",
            "give the column of samples, donors or plates",
        )
    elif len(single):
        names = ", ".join(single[:5])
        yield SctoolError(
            f"{len(single)} of {len(sizes)} batches in obs[{key!r}] have one cell: {names}", "merge or leave out those batches"
        )


def check_values(checked: Checked, data: DataConfig) -> None:
    """One pass over the counts in blocks: NaN, negative values, empty cells and genes."""
    file, counts = checked.file, checked.matrix
    assert counts is not None
    bad = negative = 0
    gene_totals = np.zeros(len(counts.var))
    empty: list[np.ndarray[Any, Any]] = []
    block = 8192
    for number, x_ng in enumerate(file.blocks(counts.source, list(range(0, file.n_cells, block)), block)):
        bad += int((~np.isfinite(x_ng.data)).sum())
        negative += int((x_ng.data < 0).sum())
        empty.append(np.flatnonzero(np.asarray(x_ng.sum(1)).ravel() == 0) + number * block)
        gene_totals += np.asarray(x_ng.sum(0)).ravel()
    if bad or negative:
        checked.problems.append(
            SctoolError(f"{counts.source} has {bad} NaN or infinite and {negative} negative values", "put raw counts into it")
        )
    empty_rows = np.concatenate(empty)
    if len(empty_rows) and not data.skip_empty:
        checked.problems.append(
            SctoolError(
                f"{len(empty_rows)} of {file.n_cells} cells have no counts, e.g. {file.obs.index[empty_rows[0]]}",
                "filter them out, or train without them with --set data.skip_empty=true",
            )
        )
    silent = int((gene_totals == 0).sum())
    if silent:
        checked.notes.append(f"{silent:,} of {len(gene_totals):,} genes have no counts in any cell")


def describe(checked: Checked, data: DataConfig, model: str = "scvi") -> list[tuple[str, str]]:
    """What the file is, as rows of (what, value)."""
    file = checked.file
    rows = [("file", str(file.path)), ("size", f"{file.n_cells:,} cells x {len(file.var):,} genes")]
    for source in file.shapes:
        kind = checked.matrix.kind if checked.matrix and checked.matrix.source == source else judge(file, source)
        density = file.nnz[source] / max(1, int(np.prod(file.shapes[source])))
        rows.append((source, f"{kind}; {file.stored[source]}, {density:.1%} stored"))
    if model == "sampleclr":
        rows += describe_samples(checked)
    else:
        rows.append(("read by the model", checked.matrix.source if checked.matrix else "none found"))
    names = [str(name) for name in file.var.index]
    rows.append(("genes named by", f"{id_type(names)}, like {', '.join(names[:3])}"))
    rows.append(("obsm", ", ".join(file.obsm) or "none"))
    for column in file.obs.columns:
        values = file.obs[column]
        if values.nunique() <= 50 and not pd.api.types.is_float_dtype(values):
            counts = values.astype(str).value_counts()
            listed = ", ".join(f"{value} {n:,}" for value, n in counts.head(4).items())
            rows.append((f"obs {column}", f"{len(counts)} values: {listed}" + (", ..." if len(counts) > 4 else "")))
    if checked.matrix:
        gigabytes = file.nnz[checked.matrix.source] * 8 / 1e9
        rows.append(("memory for it", f"{gigabytes:.2f} GB" + ("; --backed keeps them on disk" if gigabytes > 2 else "")))
        if model == "scvi":
            genes = min(data.n_top_genes or len(file.var), len(file.var))
            # 12 ms for a step of 128 cells x 2,000 genes x 128 hidden units on one thread of 2024; good to a factor of two.
            seconds = file.n_cells / 128 * 0.012 * genes / 2000
            rows.append(("one epoch of scVI", f"about {seconds:.1f} s on one CPU thread ({genes:,} genes, defaults)"))
    return rows


def describe_samples(checked: Checked) -> list[tuple[str, str]]:
    """What is read, the samples and the tasks of a file of samples, as rows of (what, value); none where they could not be made."""
    from sctool.data.check_samples import CheckedSamples

    if not isinstance(checked, CheckedSamples) or checked.cohort is None:
        return []
    cohort = checked.cohort
    about, size_s = cohort.source.about, cohort.table["n_cells"].to_numpy()
    rep, matrix = str(about["rep"]), str(about.get("expression", about["rep"]))
    rows = [("read by the model", rep if matrix in (rep, rep.replace(":", "/")) else f"{rep}: {matrix}")]
    donors = len(set(cohort.donor_s.astype(str)))
    few = int((~cohort.usable_s).sum())
    rows.append(("samples", f"{len(cohort):,} of {donors:,} donors" + (f"; {few:,} with too few cells" if few else "")))
    if len(size_s):
        rows.append(("cells per sample", f"{size_s.min():,} to {size_s.max():,}, median {np.median(size_s):,.0f}"))
    for task in checked.tasks:
        truth_s, known_s = cohort.truth(task), cohort.known(task)
        if task.kind == "regression":
            values = truth_s[known_s].astype(float)
            said = f"{len(values):,} samples" + (
                f", {values.min():g} to {values.max():g}, median {np.median(values):g}" if len(values) else ""
            )
        else:
            codes = task.order if task.kind == "class" else range(len(task.order))
            counts = [int((known_s & (truth_s == code)).sum()) for code in codes]
            said = ", ".join(f"{name} {n:,}" for name, n in zip(task.order, counts, strict=True))
        unknown = int((cohort.usable_s & ~known_s).sum())
        rows.append((f"task {task.column}", f"{task.kind}: {said}" + (f"; {unknown:,} not known" if unknown else "")))
    return rows
