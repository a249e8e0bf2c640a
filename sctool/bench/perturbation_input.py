"""Predictions to be scored, ours or of any tool, and the held-out cells they are scored on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sctool.artifacts.atomic import read_json
from sctool.artifacts.model_folder import ModelFolder, open_model
from sctool.artifacts.tables import read_table
from sctool.bench.entries import ARMS
from sctool.bench.perturbation_case import FOLDS, Case, Contestant, Counts, folds_of_means
from sctool.bench.perturbed import Truth, with_test_controls
from sctool.config import Config
from sctool.data.matrix_kind import matrix_kind
from sctool.data.perturbation import learned_cells
from sctool.data.perturbation_names import CONTROL, canonical
from sctool.data.perturbation_splits import split_column
from sctool.data.read import H5ad
from sctool.data.screen import SIZE_COLUMN, Screen, read_screen
from sctool.errors import SctoolError
from sctool.metrics.response import pearson
from sctool.models.perturbation.means import Means

FEWEST_GENES = 10
LIKE_CONTROL = 0.7
TABLES = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
_VALUES = ("mean", "value", "expression", "predicted", "prediction")
_CHANGES = ("change", "delta", "logfc", "log_fc", "lfc")


@dataclass(frozen=True)
class Predicted:
    """What a file predicts."""

    table: pd.DataFrame
    """Perturbations x genes: mean log expression, or the change; control among them where there is one."""
    is_change: bool | None
    """None: to be judged by :meth:`judged`."""
    cells: Mapping[str, Any] = field(default_factory=dict)
    """Predicted cells, by perturbation."""
    cell_genes: tuple[str, ...] = ()
    counts: Counts | None = None
    """Where cells are counts: nothing is known of them before :meth:`normalised`."""

    @property
    def genes(self) -> set[str]:
        """Those that can be scored."""
        return set(self.table.columns) & set(self.cell_genes or self.table.columns)

    def normalised(self, screen: Screen, control: NDArray[np.int64], size_key: str, name: str, say: Callable[[str], None]) -> Predicted:
        """Counts on the scale of the real cells; ``control`` are rows of real control cells."""
        if self.counts is None:
            return self
        log_ng, how = self.counts.log_expression(screen, control, size_key)
        say(f"note: {name}: X holds counts, which are scaled to {screen.target_sum:,.0f} per cell ({how}) before logarithms are taken")
        return _of_cells(log_ng, self.counts.name_n, self.cell_genes)

    def cells_of(self, genes: list[str]) -> dict[str, Any]:
        """Cells with these genes, in their order."""
        at = {gene: column for column, gene in enumerate(self.cell_genes)}
        return {name: x_ng[:, [at[gene] for gene in genes]] for name, x_ng in self.cells.items()}

    def judged(self, genes: list[str], control_g: NDArray[Any], name: str, say: Callable[[str], None]) -> Predicted:
        """With ``is_change`` known: means are much as control cells are, changes are not."""
        if self.is_change is not None:
            return self
        is_change = not pearson(self.table[genes].to_numpy(float).mean(0), control_g) > LIKE_CONTROL
        say(f"{name}: its values are taken as {'changes against control' if is_change else 'mean log expression'}")
        return replace(self, is_change=is_change)

    def changes(self, genes: list[str], control_g: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
        """Change against the file's own control, or without one against these control means."""
        table = self.table[genes]
        base: Any = 0.0 if self.is_change else table.loc[CONTROL].to_numpy(float) if CONTROL in table.index else control_g
        return {str(name): row.to_numpy(float) - base for name, row in table.drop(index=CONTROL, errors="ignore").iterrows()}

    def control(self, genes: list[str]) -> NDArray[np.float64] | None:
        """The file's own control."""
        return None if self.is_change or CONTROL not in self.table.index else self.table.loc[CONTROL, genes].to_numpy(float)


@dataclass(frozen=True)
class Source:
    """A path of the command line: what it predicts and what it is scored on."""

    path: Path
    label: str
    arm: str
    seed: int
    run: str
    data: Path
    config: Config
    predicted: Predicted
    target_sum: float | None = None
    folder: ModelFolder | None = None
    quality: str = "pass"

    @property
    def place(self) -> tuple[Any, ...]:
        """The same for sources that are scored on the same cells."""
        split = None if self.folder is None else tuple(self.folder.table("cells")["split"])
        cradle = self.config.cradle
        return (
            self.data.resolve(),
            split,
            self.target_sum,
            self.quality,
            cradle.perturbation_key,
            cradle.control,
            cradle.split,
            cradle.qc_key,
        )


def open_cases(
    paths: list[Path], data: Path | None, config: Config, say: Callable[[str], None], given: Mapping[str, Any] | None = None
) -> list[Case]:
    """Predictions with the cells they are scored on; those with the same held-out cells together.

    Of runs, the settings of training hold, but for those that are ``given``, by dotted key.
    Beside a run, files of other tools without ``data`` are scored on the cells that the run held out.
    """
    runs = {path: open_source(path, data, config, say, given=given) for path in paths if path.is_dir()}
    beside = next(iter(runs.values()), None) if data is None else None
    sources = _distinct([runs[path] if path in runs else open_source(path, data, config, say, beside) for path in paths])
    groups: dict[tuple[Any, ...], list[Source]] = {}
    for source in sources:
        groups.setdefault(source.place, []).append(source)
    return [_case(group, group[0].run or group[0].label if len(groups) > 1 else "", say) for group in groups.values()]


def _distinct(sources: list[Source]) -> list[Source]:
    """Names that tell sources apart: the run's where two of one kind, seed and split would be taken for repeats."""
    keys = [(source.label, source.seed, source.place) for source in sources]
    if len(set(keys)) == len(keys):
        return sources
    names = [source.run or source.label for source in sources]
    return [replace(s, label=name if names.count(name) == 1 else str(s.path)) for s, name in zip(sources, names, strict=True)]


def open_source(
    path: Path,
    data: Path | None,
    config: Config,
    say: Callable[[str], None],
    beside: Source | None = None,
    given: Mapping[str, Any] | None = None,
) -> Source:
    """A result folder of ``predict cradle``; or cells (.h5ad) or a table of another tool, with the held-out cells of ``beside``."""
    if path.is_dir():
        note = path / "prediction.json"
        if not note.exists() or not (path / "predictions.csv").exists() or read_json(note).get("task") != "perturbation":
            raise SctoolError(
                f"{path} holds no predictions of perturbations", "run `sctool predict cradle checkpoints/cradle/RUN` first, or give a file"
            )
        about = read_json(note)
        folder = open_model(Path(about["model"]), "cradle")
        trained, kind = Config.model_validate(folder.manifest["config"]), str(about.get("kind", "cradle"))
        arm = ARMS.get(about.get("sampler", "uniform"), "standard")
        label = kind if arm == "standard" else f"{kind} {arm}"
        predicted = Predicted(_wide(path / "predictions.csv", read_table(path / "predictions.csv", index_col=0), trained), False)
        if (path / "predictions.h5ad").exists():
            made = _cells(path / "predictions.h5ad", trained, say)
            predicted = replace(predicted, cells=made.cells, cell_genes=made.cell_genes)
        flagged = config.cradle.qc_key != "none"
        about_run: dict[str, Any] = {"target_sum": about.get("target_sum"), "folder": folder}
        about_run["quality"] = str(about.get("quality") or "pass") if flagged else "all"
        arm = arm if kind == "cradle" else label
        real, asked = data or Path(about["file"]), trained.replaced(dict(given or {}))
        return Source(path, label, arm, int(about["seed"]), folder.name, real, asked, predicted, **about_run)
    name = path.name.removesuffix(".gz").rsplit(".", 1)[0]
    if beside is not None:
        predicted = read_predicted(path, beside.config, say)
        return replace(beside, path=path, label=name, arm="prediction", seed=-1, run="", predicted=predicted)
    if data is None:
        raise SctoolError(f"{path}: the real cells are not known", "give their file with --data, and --perturbation-key, --control")
    return Source(path, name, "prediction", -1, "", data, config, read_predicted(path, config, say))


def read_predicted(path: Path, config: Config, say: Callable[[str], None] = lambda text: None) -> Predicted:
    """Predictions of any tool.

    Parameters
    ----------
    path
        ``.h5ad``: predicted cells, the perturbation in obs. A table (``.csv``, ``.tsv``, also ``.gz``): a row for each perturbation and a
        column for each gene; or long, with the columns ``perturbation, gene`` and ``mean`` (or ``value``) or ``change``.
    config
        Names the column, the control and what joins the parts of a perturbation.
    say
        Told where counts were normalised.
    """
    if path.suffix == ".h5ad":
        return _cells(path, config, say)
    if not path.name.endswith(TABLES):
        raise SctoolError(f"{path.name} is neither an .h5ad nor a table", f"give .h5ad, or one of {', '.join(TABLES)}")
    try:
        table = read_table(path, sep="," if ".csv" in path.name else "\t")
    except (ValueError, OSError, UnicodeDecodeError) as error:  # pandas' own errors are ValueErrors
        raise SctoolError(f"{path} cannot be read: {str(error).splitlines()[0]}", "write a table with a header") from None
    columns = {str(column).lower(): column for column in table.columns}
    if "perturbation" in columns and "gene" in columns:
        found = next(((name, name in _CHANGES) for name in (*_CHANGES, *_VALUES) if name in columns), None)
        if found is None:
            raise SctoolError(
                f"{path.name} has no column change, mean or value; it has: {', '.join(map(str, table.columns[:8]))}", "add one"
            )
        name, is_change = found
        pairs = table[[columns["perturbation"], columns["gene"]]].astype(str)
        if pairs.duplicated().any():
            twice = pairs[pairs.duplicated()].iloc[0]
            raise SctoolError(f"{path.name} has {' and '.join(twice)} twice", "write each perturbation and gene once")
        wide = table.pivot(index=columns["perturbation"], columns=columns["gene"], values=columns[name])
        return Predicted(_wide(path, wide, config), is_change)
    if table.shape[1] < 2:
        raise SctoolError(f"{path.name} has {table.shape[1]} column", "the first names the perturbation, the others are genes")
    wide = _wide(path, table.set_index(table.columns[0]), config)
    if CONTROL not in wide.index:
        return Predicted(wide, None)
    return Predicted(wide, not wide.loc[CONTROL].to_numpy().any())


def _wide(path: Path, table: pd.DataFrame, config: Config) -> pd.DataFrame:
    """Checked, with canonical names of perturbations."""
    if table.index.isna().any():
        raise SctoolError(f"{path.name} has a row without a perturbation", "name it, or leave the row out")
    names = _canonical(table.index, config)
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise SctoolError(f"{path.name} has {twice[0]!r} more than once", "write one row for each perturbation")
    numbers = table.apply(pd.to_numeric, errors="coerce")
    wrong = ~np.isfinite(numbers.to_numpy(float))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        value: Any = table.iloc[row, column]
        what = "is empty" if pd.isna(value) else f"is {str(value)!r}, not a number"
        raise SctoolError(f"{path.name}: {table.index[row]}, {table.columns[column]} {what}", "give every gene for every perturbation")
    out = numbers.set_axis(names, axis=0).set_axis([str(column) for column in table.columns], axis=1)
    if not out.columns.is_unique:
        raise SctoolError(f"{path.name} has the gene {out.columns[out.columns.duplicated()][0]!r} twice", "write each gene once")
    return out


def _canonical(names: Any, config: Config) -> list[str]:
    control = config.cradle.control or CONTROL
    return [CONTROL if str(name).strip() == CONTROL else canonical(str(name), control, config.cradle.delimiter) for name in names]


def _cells(path: Path, config: Config, say: Callable[[str], None]) -> Predicted:
    """Predicted cells and their means; of counts, when the real cells are known."""
    file, wanted = H5ad(path), config.cradle.perturbation_key
    key = wanted if wanted is not None and wanted in file.obs else "perturbation"
    column = file.column(key if key in file.obs else wanted or key, "--perturbation-key")
    if column.isna().any():
        raise SctoolError(f"{path.name}: {int(column.isna().sum())} cells have no perturbation in obs[{column.name!r}]", "fill it in")
    names: NDArray[Any] = np.array(_canonical(column, config), str)
    if "X" not in file.shapes or not file.var.index.is_unique:
        raise SctoolError(
            f"{path.name} has {'no X' if 'X' not in file.shapes else 'repeated genes'}", "write log expression, each gene once"
        )
    x_ng, genes = file.matrix(), tuple(map(str, file.var.index))
    if not np.isfinite(x_ng.data).all():
        raise SctoolError(f"{path.name} has NaN or infinite values", "predict those cells again")
    if matrix_kind(x_ng[:2000]).is_counts:
        size_n = pd.to_numeric(file.obs[SIZE_COLUMN].astype(object), errors="coerce").to_numpy(float) if SIZE_COLUMN in file.obs else None
        if size_n is not None and not (size_n >= 0.99 * np.asarray(x_ng.sum(1)).ravel()).all():
            raise SctoolError(f"{path.name}: obs[{SIZE_COLUMN!r}] is missing or below the counts of some cells", "mend it, or leave it out")
        return Predicted(pd.DataFrame(columns=list(genes)), False, {}, genes, Counts(x_ng, names, genes, size_n))
    return _of_cells(x_ng, names, genes)


def _of_cells(x_ng: Any, name_n: NDArray[Any], genes: tuple[str, ...]) -> Predicted:
    """Cells of log expression, and their means."""
    by_name = {str(name): x_ng[name_n == name] for name in dict.fromkeys(name_n)}
    means = {name: np.asarray(own.mean(0)).ravel() for name, own in by_name.items()}
    table = pd.DataFrame.from_dict(means, orient="index", columns=list(genes))
    return Predicted(table, False, {name: own for name, own in by_name.items() if name != CONTROL}, genes)


def _case(sources: list[Source], label: str, say: Callable[[str], None]) -> Case:
    """Real cells of some sources, of the genes that all of them have."""
    first = sources[0]
    settings = {"cradle.split": "none", "cradle.fold": None, "data.hold_out": None}
    if first.folder is not None or first.config.cradle.qc_key == "auto":
        settings["cradle.qc_key"] = "none"  # of a model, flags are kept; for other tools, only a column of flags counts
    screen = read_screen(first.data, first.config.replaced(settings))
    if first.target_sum is not None:
        screen = replace(screen, target_sum=first.target_sum)
    for source in sources:
        _not_transposed(source, screen)
    genes = [gene for gene in screen.genes if all(gene in source.predicted.genes for source in sources)]
    if len(genes) < FEWEST_GENES:
        raise SctoolError(
            f"{first.path.name} has {len(genes)} of the {len(screen.genes)} genes of {first.data.name}", "name its genes as that file does"
        )
    if len(genes) < len(screen.genes):
        say(f"note: scored on the {len(genes):,} of {len(screen.genes):,} genes that were predicted")
    split_n, keep_n = _split(first, screen, say)
    keep_n, split_n = keep_n & (screen.size_n > 0), np.where(screen.size_n > 0, split_n, "unused")
    learned_n = learned_cells(screen.name_n, split_n, keep_n)
    split_n, changed = with_test_controls(screen.name_n, np.where(keep_n, split_n, np.where(learned_n, "train", "unused")))
    if changed:
        say(f"note: {changed}")
    rows = np.flatnonzero(split_n != "unused")
    at = {gene: column for column, gene in enumerate(screen.genes)}
    x_ng = screen.log_expression(rows, np.array([at[gene] for gene in genes]))
    name_n, split_n = np.asarray(screen.name_n, str)[rows], split_n[rows]
    truth = Truth.of(x_ng, name_n, split_n, genes)
    known = np.flatnonzero(np.isin(split_n, ("train", "validation")))
    control = known[name_n[known] == CONTROL]
    means: list[Any] = []
    if len(control) and (name_n[known] != CONTROL).any():
        means = [(truth.perturbations, Means.of(x_ng, name_n, known, genes))]
    elif len(control):
        say(f"note: all cells are scored, so the baselines learn from those of the other perturbations, {FOLDS} parts in turn")
        learned = np.flatnonzero((split_n != "test") | (name_n != CONTROL))
        means = folds_of_means(x_ng, name_n, learned, genes, truth.perturbations)
    else:
        say("note: no control cell is left to learn from, so there is no baseline but 'no change'")
    start_ng = x_ng[control] if len(control) else None
    control_g = np.asarray(start_ng.mean(0)).ravel() if start_ng is not None else truth.means.control_g
    real_control = rows[control] if len(control) else rows[name_n == CONTROL]
    contestants = []
    for source in sources:
        scaled = source.predicted.normalised(screen, real_control, source.config.cradle.size_key, source.path.name, say)
        predicted = scaled.judged(genes, control_g, source.path.name, say)
        changes, cells = predicted.changes(genes, control_g), predicted.cells_of(genes)
        own_g = predicted.control(genes)
        contestants.append(Contestant(source.label, changes, source.arm, source.seed, source.run, cells, own_g))
    return Case(truth, means, contestants, start_ng, label)


def _split(source: Source, screen: Screen, say: Callable[[str], None]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """What each cell is for, and which count: those of the quality that was predicted."""
    if source.folder is None:
        return _given_split(source, screen, say), _of_quality("pass", np.asarray(screen.fail_n), say)
    cells, names = source.folder.table("cells"), [str(name) for name in screen.obs.index]
    if source.folder.trained_on(names):
        split_n, quality = cells["split"].to_numpy(str), cells["quality"]
    else:
        known = cells.drop_duplicates("cell").set_index("cell")
        split_n = known["split"].reindex(names).fillna("test").to_numpy(str)
        quality = known["quality"].reindex(names)
        others = int((~np.isin(names, known.index)).sum())
        say(f"note: {screen.path.name} is not the file of training; its {others:,} other cells are all held out, whatever their quality")
    return split_n, _of_quality(source.quality, (quality == "fail").to_numpy(bool), say)


def _given_split(source: Source, screen: Screen, say: Callable[[str], None]) -> NDArray[Any]:
    """By the user's column, or all perturbed cells."""
    key = source.config.cradle.split
    if key in ("auto", "none", "ood", "cells", "singles"):
        say("note: no --split-key, so all perturbed cells are scored; a tool that was trained on some of them has an advantage")
        return np.where(screen.name_n == CONTROL, "train", "test").astype("<U10")
    return split_column(H5ad(screen.path).column(key, "--split-key").to_frame(key), key)


def _not_transposed(source: Source, screen: Screen) -> None:
    """Refuse a table whose rows are the genes, and whose columns the perturbations, of the screen."""
    table, known = source.predicted.table, set(screen.name_n)
    if not len(table):
        return
    names = _canonical(table.columns, source.config)
    as_rows, as_columns = (sum(name in known for name in some) / len(some) for some in (list(table.index), names))
    if as_columns > max(as_rows, 0.5) and np.isin(table.index, screen.genes).mean() > 0.5:
        raise SctoolError(f"{source.path.name} has genes as rows and perturbations as columns", "transpose it")


def _of_quality(quality: str, fail_n: NDArray[np.bool_], say: Callable[[str], None]) -> NDArray[np.bool_]:
    if quality not in ("pass", "fail") or not fail_n.any():
        return np.ones(len(fail_n), bool)
    keep_n = ~fail_n if quality == "pass" else fail_n
    say(f"note: {quality}ing cells are scored, {int(keep_n.sum()):,} of {len(keep_n):,}; --set cradle.qc_key=none takes all")
    return keep_n
