"""Embeddings and metadata of samples from CSV files of any tool, and the cohort that these are of."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sctool.config import Config
from sctool.data.check_samples import check_samples_file
from sctool.data.cohort import Cohort, sample_table, text
from sctool.data.read import H5ad, near
from sctool.data.representation import Given
from sctool.engine.samples import represent
from sctool.errors import SctoolError
from sctool.models.samples.baselines import BASELINES

FEWEST = 4
"""Samples that files must share."""
_ROW = "give a CSV with a row for each sample: its name, then its dimensions"
_MISSING = ["", "NA", "NaN", "nan"]


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of the same samples.

    Attributes
    ----------
    x_sd
        By name, shape (samples, dimensions) each.
    cohort
        The samples; without cells where no file of cells was given.
    varying
        Columns of cells that are not of samples, with an example.
    """

    x_sd: dict[str, NDArray[np.float64]]
    cohort: Cohort
    varying: dict[str, str]


def open_embeddings(
    files: Sequence[Path], metadata: Path | None, data: Path | None, config: Config, known: Sequence[str], say: Callable[[str], None]
) -> Embeddings:
    """Read embeddings and what is known of their samples.

    Parameters
    ----------
    files
        CSV files with a row for each sample, or folders with an ``embeddings.csv``.
    metadata
        CSV of what is known of the samples; where it is None, what else the first file says. It goes before columns of cells.
    data
        The .h5ad of the cells.
    known
        Columns that are no dimensions, even if they are numbers.

    Raises
    ------
    SctoolError
        If a file is not one of samples, or files don't fit each other.
    """
    paths = [path / "embeddings.csv" if path.is_dir() else path for path in files]
    names = embedding_names(paths)
    settings = config.sampleclr
    _check_key(settings.sample_key, [*paths, *([metadata] if metadata else [])], data)
    about = None if metadata is None else by_sample(metadata, settings.sample_key)
    known = [*known, *(about if about is not None else ())]
    known += [key for key in (settings.donor_key, settings.study_key, *settings.covariates) if key]
    values, others = {}, []
    for name, path in zip(names, paths, strict=True):
        values[name], other = read_embedding(path, settings.sample_key, known)
        others.append(other)
        dims = list(map(str, values[name].columns))
        said = dims[0] if len(dims) == 1 else f"{len(dims)} dimensions {dims[0]} to {dims[-1]}"
        unused = [str(key) for key in other if pd.api.types.is_numeric_dtype(other[key])]
        say(f"{name}: {len(other)} samples, {said}" + (f"; not used as dimensions: {', '.join(unused)}" if unused else ""))
    table = others[0] if about is None else about
    varying: dict[str, str] = {}
    if data is None:
        cohort = of_table(table, config, metadata or paths[0])
    else:
        cohort = of_cells(data, config, table, metadata is not None)
        varying = {key: said for key, said in sample_table(cohort.obs, cohort.sample_n, cohort.samples)[1].items() if key not in table}
        say(f"{data.name}: {len(cohort)} samples, {len(cohort.obs):,} cells")
    named, where = cohort.samples.astype(str), (data or metadata or paths[0]).name
    shared_s = np.all([np.isin(named, table.index) for table in values.values()], axis=0)
    if shared_s.sum() < FEWEST:
        examples = ", ".join(f"{name} has {one.index[0]}" for name, one in values.items())
        raise SctoolError(
            f"{int(shared_s.sum())} samples of {where}, such as {named[0]}, are in every embedding ({examples})",
            f"give files of the same samples, at least {FEWEST}, or their column with --sample-key",
        )
    for name, one in values.items():
        more = int((~one.index.isin(named)).sum())
        if more:
            say(f"note: {more} of {len(one)} samples of {name} are not in {where} and are left out")
    if not shared_s.all():
        say(f"note: {int((~shared_s).sum())} of {len(shared_s)} samples of {where} are not in every embedding and are left out")
    if len(set(cohort.donor_s.tolist())) == len(cohort) and settings.donor_key is None and "donor" not in table:
        say("note: every sample counts as a donor of its own; if donors have several samples, give their column with --donor-key")
    cohort = _kept(cohort, shared_s)
    few = int((~cohort.usable_s).sum())
    if few:
        say(f"note: {few} samples have fewer than {settings.min_cells} cells and are not scored (--set sampleclr.min_cells=N)")
    ordered = {name: one.loc[cohort.samples.astype(str)].to_numpy(np.float64) for name, one in values.items()}
    return Embeddings(ordered, cohort, varying)


def read_embedding(path: Path, sample_key: str | None = None, known: Sequence[str] = ()) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Dimensions and other columns of an embedding, both indexed by sample.

    Dimensions are ``e1, e2, ...`` where there are such columns, else columns of numbers: those of one name and a number (``PC_1, PC_2``)
    where these are most, else all but ``n_cells``, row numbers and known ones.

    Raises
    ------
    SctoolError
        If there are none, samples repeat, or a value is missing.
    """
    table = by_sample(path, sample_key)
    dims = [key for key in map(str, table) if re.fullmatch(r"e\d+", key)]
    dims = dims or _alike([key for key in map(str, table) if _is_dimension(table[key]) and key not in (*known, "n_cells", "donor")])
    if not dims:
        listed = ", ".join(map(str, table)) or "none but names"
        raise SctoolError(f"{path} has no columns of numbers that could be dimensions; it has: {listed}", _ROW)
    for key in dims:
        numbers = pd.to_numeric(table[key], errors="coerce").astype(float)
        bad = ~np.isfinite(numbers.to_numpy())
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            said = table[key].iloc[at]
            value = "no value" if pd.isna(said) else repr(str(said))
            raise SctoolError(
                f"{path}: sample {table.index[at]} has {value} in {key}, which is no finite number ({int(bad.sum())} such samples)",
                "drop those samples from the file",
            )
    return table[dims].astype(float), table.drop(columns=dims)


def _is_dimension(values: pd.Series) -> bool:
    if not pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        return False
    # what pandas calls Unnamed is the number of a row, or a column without a name
    return not (str(values.name).startswith("Unnamed: ") and values.tolist() == list(range(len(values))))


def _alike(keys: list[str]) -> list[str]:
    """Those of one name and a number, where these are most, so that an age beside components is not a dimension."""
    stems = [re.sub(r"\d+$", "", key) for key in keys]
    commonest = max(stems, key=stems.count, default="")
    return [key for key, stem in zip(keys, stems, strict=True) if stem == commonest] if 2 * stems.count(commonest) > len(keys) else keys


def _check_key(sample_key: str | None, paths: Sequence[Path], data: Path | None) -> None:
    """The column of samples that was asked for must be in some file; the others may call theirs ``sample``."""
    if sample_key is None or data is not None:
        return
    columns = [key for path in paths for key in _header(path)[0]]
    if sample_key not in columns:
        columns = list(dict.fromkeys(columns))
        raise SctoolError(f"no file has a column {sample_key!r} (--sample-key); there are: {_listed(columns)}", near(sample_key, columns))


def _header(path: Path) -> tuple[list[str], str]:
    """Columns of a table, and what separates them.

    Raises
    ------
    SctoolError
        If it is none.
    """
    if not path.exists():
        raise SctoolError(f"{path}: no such file", _ROW)
    try:
        with path.open(encoding="utf-8") as file:
            first = file.readline()
        sep = max(",\t;", key=first.count)
        return list(map(str, pd.read_csv(path, nrows=0, sep=sep).columns)), sep
    except (UnicodeDecodeError, OSError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise SctoolError(f"{path} is not a CSV table ({' '.join(str(error).split())})", _ROW) from None


def by_sample(path: Path, sample_key: str | None = None) -> pd.DataFrame:
    """A CSV (or one with tabs or semicolons) by sample: the column asked for, ``sample``, or the first.

    Raises
    ------
    SctoolError
        If the file is no table, is empty, or a sample has no name or several rows.
    """
    columns, sep = _header(path)
    key = sample_key if sample_key in columns else "sample" if "sample" in columns else columns[0]
    words: dict[str, Any] = {"sep": sep, "keep_default_na": False, "na_values": _MISSING}
    try:
        unnamed = not isinstance(pd.read_csv(path, nrows=1, **words).index, pd.RangeIndex)  # R's write.table: names have no header
        table = pd.read_csv(path, dtype=None if unnamed else {key: str}, **words)  # 007 is a name
    except (UnicodeDecodeError, OSError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise SctoolError(f"{path} is not a CSV table ({' '.join(str(error).split())})", _ROW) from None
    if not len(table):
        raise SctoolError(f"{path} has a header and no rows", _ROW)
    if isinstance(table.index, pd.MultiIndex):
        raise SctoolError(f"{path}: rows have {table.index.nlevels} fields more than the header", _ROW)
    if unnamed:
        key = "the first column"
        table.insert(0, key, table.index)
    table.index = pd.Index(text(table[key]).astype(str), name=None)
    if (table.index == "").any():
        raise SctoolError(f"{path}: row {int(np.flatnonzero(table.index == '')[0]) + 2} has no name in {key!r}", "name every sample")
    repeated = table.index[table.index.duplicated()]
    if len(repeated):
        raise SctoolError(
            f"{path}: {len(repeated)} rows repeat a sample of {key!r}, e.g. {repeated[0]}",
            "give one row for each sample, or their column with --sample-key",
        )
    return table.drop(columns=[key])


def _listed(columns: Sequence[str], most: int = 12) -> str:
    return ", ".join(columns[:most]) + (f" and {len(columns) - most} more" if len(columns) > most else "")


def embedding_names(paths: Sequence[Path]) -> list[str]:
    """A name for each file: of the file, or of its folder where files share theirs or are called ``embeddings``.

    Raises
    ------
    SctoolError
        If a file is given twice.
    """
    real = [path.resolve() for path in paths]
    for at, path in enumerate(real):
        if path in real[:at]:
            raise SctoolError(f"{paths[at]} is given twice", "give each embedding once")
    stems = [path.stem for path in real]
    named = [path.parent.name if path.stem == "embeddings" or stems.count(path.stem) > 1 else path.stem for path in real]
    named = [str(path.with_suffix("")) if named.count(name) > 1 else name for name, path in zip(named, real, strict=True)]
    taken = {*BASELINES, *(f"{name}, nearest" for name in BASELINES)}
    return [f"{name} (given)" if name in taken else name for name in named]


def of_table(table: pd.DataFrame, config: Config, path: Path) -> Cohort:
    """A cohort of samples without cells; their number is NaN where the table does not say it.

    Raises
    ------
    SctoolError
        If a column asked for is not there, or a sample has no donor.
    """
    columns = list(map(str, table.columns))
    settings = config.sampleclr
    for flag, keys in (("--donor-key", [settings.donor_key]), ("--study-key", [settings.study_key]), ("--covariate", settings.covariates)):
        for asked in keys:
            if asked is not None and asked not in table:
                raise SctoolError(f"{path} has no column {asked!r} ({flag}); it has: {_listed(columns) or 'none'}", near(asked, columns))
    key = settings.donor_key or ("donor" if "donor" in table else None)
    samples = table.index.to_numpy(object)
    donor_s = _donors(text(table[key]), samples, f"{key!r} of {path}") if key else samples
    rows = pd.DataFrame({"sample": samples, "donor": donor_s, "n_cells": np.nan})
    if "n_cells" in table:
        rows["n_cells"] = pd.to_numeric(table["n_cells"], errors="coerce").to_numpy(np.float64)
        bad = np.flatnonzero(~(rows["n_cells"] >= 0))
        if len(bad):
            raise SctoolError(f"{path}: sample {samples[bad[0]]} has {table['n_cells'].iloc[bad[0]]} in n_cells", "correct or drop n_cells")
    rest = table.drop(columns=[name for name in ("donor", "n_cells") if name in table]).reset_index(drop=True)
    n, whole = len(table), pd.concat([rows, rest], axis=1)
    no_cells = Given(np.zeros((n, 1), np.float32), {})
    return Cohort(samples, donor_s, np.arange(n), whole, rows, None, no_cells, np.ones(n, bool))


def of_cells(path: Path, config: Config, known: pd.DataFrame, first: bool) -> Cohort:
    """A cohort with its cells, and with columns of the metadata, which go ``first`` or only add to those of cells.

    Raises
    ------
    SctoolError
        As :func:`sctool.data.check_samples.check_samples_file` says; donors, studies and covariates may be of either file.
    """
    file, settings = H5ad(path), config.sampleclr
    mine = {key: getattr(settings, key) for key in ("donor_key", "study_key")}
    there = {f"sampleclr.{key}": None if name in known and name not in file.obs else name for key, name in mine.items()}
    there["sampleclr.covariates"] = [key for key in settings.covariates if key not in known]
    cohort = check_samples_file(file, config.replaced(there), represent, training=False).require_cohort()
    more = known[[key for key in known if (first or key not in cohort.table) and key not in ("sample", "n_cells", "donor")]]
    more = more.reindex(cohort.samples.astype(str)).reset_index(drop=True)
    table = pd.concat([cohort.table.drop(columns=[key for key in more if key in cohort.table]), more], axis=1)
    donor_s, own = cohort.donor_s, mine["donor_key"]
    if own is not None and there["sampleclr.donor_key"] is None:
        named_s = text(known[own].reindex(cohort.samples.astype(str)))
        donor_s = np.where(named_s == "", cohort.samples, named_s)  # of samples that are in no metadata, which have no target either
        table["donor"] = donor_s
    return replace(cohort, donor_s=donor_s, table=table)


def _donors(donor_s: NDArray[Any], samples: NDArray[Any], where: str) -> NDArray[Any]:
    unknown = samples[donor_s == ""]
    if len(unknown):
        raise SctoolError(f"{len(unknown)} samples have no donor in {where}, e.g. {unknown[0]}", "fill it in, or drop those samples")
    return donor_s


def _kept(cohort: Cohort, kept_s: NDArray[np.bool_]) -> Cohort:
    code_s = np.where(kept_s, np.cumsum(kept_s) - 1, -1)
    return replace(
        cohort,
        samples=cohort.samples[kept_s],
        donor_s=cohort.donor_s[kept_s],
        sample_n=np.append(code_s, -1)[cohort.sample_n],
        table=cohort.table[kept_s].reset_index(drop=True),
        usable_s=cohort.usable_s[kept_s],
    )
