"""Maps of samples: two dimensions coloured by what is known of them, and how alike each two are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from sctool.artifacts.atomic import atomic_file
from sctool.report.figures import saved
from sctool.report.sample_look import DISTINCT, GREY, Facts, Goal, clustered, counted, inches, looks_of, natural, short, table_of
from sctool.report.style import figure
from sctool.report.umap import umap_xy

FEW = 200  # below, a UMAP has few neighbourhoods to keep and takes half a minute to compile: principal components are drawn
_PANELS, _NAMED, _STRIPS = 9, 90, 4
_MISSING = "missing"


def map_figures(plots: Path, formats: list[str], run: Path, facts: Facts) -> list[Path]:
    """Maps and likenesses of the samples of ``embeddings.csv``."""
    table = table_of(run / "embeddings.csv")
    if table is None or len(table) < 3:
        return []
    e_sd = table[[column for column in table if re.fullmatch(r"e\d+", str(column))]].to_numpy(float)
    kept = np.isfinite(e_sd).all(1) if e_sd.shape[1] else np.zeros(len(table), bool)
    if kept.sum() < 3:
        return []
    table, e_sd = table[kept].reset_index(drop=True), e_sd[kept]
    if "donor" not in table:
        table["donor"] = table["sample"]
    xy, axes = _coordinates(run, table, e_sd)
    return donor_map(plots / "donor-map", formats, table, xy, axes, facts) + likeness(plots / "likeness", formats, table, e_sd, facts)


def _coordinates(run: Path, table: pd.DataFrame, e_sd: NDArray[Any]) -> tuple[NDArray[Any], tuple[str, str]]:
    """Two dimensions, shape (samples, 2), and their names. Principal components of the standardised embedding, for many samples a UMAP.

    A UMAP is computed once and kept as ``umap.csv``.
    """
    if len(table) < FEW:
        sd_d = e_sd.std(0)
        moved_sd = (e_sd - e_sd.mean(0)) / np.where(sd_d > 1e-12, sd_d, 1)
        u, size, _ = np.linalg.svd(moved_sd, full_matrices=False)
        share = np.r_[size**2, 0.0] / max(float((size**2).sum()), 1e-12)
        xy = np.c_[u * size, np.zeros(len(u))][:, :2]
        return xy, (f"PC 1 ({share[0]:.0%} of the variance)", f"PC 2 ({share[1]:.0%} of the variance)")
    kept = table_of(run / "umap.csv")
    if kept is None or list(kept.get("sample", [])) != list(table["sample"]):
        xy = umap_xy(e_sd)
        kept = pd.DataFrame({"sample": table["sample"], "umap_1": xy[:, 0], "umap_2": xy[:, 1]})
        with atomic_file(run / "umap.csv") as partial:
            kept.to_csv(partial, index=False)
    return kept[["umap_1", "umap_2"]].to_numpy(float), ("UMAP 1", "UMAP 2")


def _columns(table: pd.DataFrame, facts: Facts) -> list[str]:
    """What to colour by: tasks, technical columns, cells, then what else differs between samples without naming each of them."""
    first = [column for column in (*facts.goals, *facts.technical, "n_cells") if column in table]
    rest = [c for c in map(str, table) if c not in {"sample", "donor", *first} and not re.fullmatch(r"e\d+|umap_\d", c)]
    rest = [c for c in rest if _numeric(table[c]) or table[c].nunique() <= max(2, len(table) // 3)]
    return [column for column in [*first, *rest] if table[column].nunique() > 1][:_PANELS]


def _numeric(values: pd.Series[Any]) -> bool:
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values) and values.nunique() > 6


def _classes(values: pd.Series[Any], order: tuple[str, ...]) -> tuple[pd.Series[Any], dict[str, tuple[Any, str]]]:
    """Classes as words and their looks: those in order, else the most frequent, the rest taken together."""
    text = values.map(lambda value: f"{value:g}" if isinstance(value, float) else str(value)).where(values.notna(), _MISSING)
    seen = text[values.notna()].value_counts().sort_index()
    names = [level for level in order if level in seen.index] if order else sorted(seen.index, key=natural)
    if len(names) > len(DISTINCT) and not order:
        common = set(seen.sort_values(ascending=False, kind="stable").index[: len(DISTINCT)])
        names = [name for name in names if name in common]
    looks = looks_of(names, bool(order))
    other = values.notna() & ~text.isin(names)
    if other.any():
        rest = f"{text[other].nunique()} others"
        looks[rest] = (GREY, ".")
        text = text.where(~other, rest)
    return text, looks


def _order(goal: Goal | None) -> tuple[str, ...]:
    return goal.order if goal is not None and goal.kind == "ordinal" else ()


def _scaled(table: pd.DataFrame, column: str, facts: Facts) -> bool:
    """Whether a column is drawn as numbers on a scale."""
    goal = facts.goals.get(column)
    classes = column in facts.technical or (goal is not None and goal.kind in ("class", "ordinal"))
    return not classes and _numeric(table[column])


def _beside(table: pd.DataFrame, column: str, facts: Facts) -> float:
    """Inches that the legend of a panel needs."""
    if not column or _scaled(table, column, facts):
        return 0.9
    return 0.75 + inches([short(value, 30) for value in _classes(table[column], _order(facts.goals.get(column)))[1]], 8)


def donor_map(path: Path, formats: list[str], table: pd.DataFrame, xy: NDArray[Any], names: tuple[str, str], facts: Facts) -> list[Path]:
    """The same map of samples once for each column; a line joins the samples of one donor. Missing values are hollow."""
    shown = _columns(table, facts) or [""]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    size = float(np.clip(3_000 / len(table), 10, 46))
    donors = table["donor"].nunique()
    beside = [_beside(table, column, facts) for column in shown]
    title = f"{counted(len(table), 'sample')} of {counted(donors, 'donor')}"
    title += "; lines join samples of one donor" if donors < len(table) else ""
    title += "\naxes: principal components of the standardised embedding" if names[0].startswith("PC") else ""
    width = 2.9 * columns + sum(max(beside[at::columns]) for at in range(columns))
    width = max(width, inches(title.split("\n"), 10) + 0.3)
    with figure(path, formats, width, 2.85 * rows + 0.5, columns=columns, rows=rows) as (fig, axes):
        for axis in axes.flat[len(shown) :]:
            axis.axis("off")
        for axis, column in zip(axes.flat, shown, strict=False):
            for _, own in table.groupby("donor"):
                if len(own) > 1:
                    axis.plot(xy[own.index, 0], xy[own.index, 1], color="#c8c8c8", lw=0.7, zorder=1)
            axis.set(xticks=[], yticks=[], title=short(column, 34) or "samples")
            _points(fig, axis, table, xy, column, size, facts)
            axis.margins(0.06)
        for axis in axes[-1]:
            axis.set_xlabel(names[0])
        for axis in axes[:, 0]:
            axis.set_ylabel(names[1])
        fig.suptitle(title, x=0.01, ha="left", fontsize=10)
    return saved(path, formats)


def _points(fig: Any, axis: Any, table: pd.DataFrame, xy: NDArray[Any], column: str, size: float, facts: Facts) -> None:
    look: dict[str, Any] = {"s": size, "linewidths": 0.5, "edgecolors": "white", "zorder": 2}
    hollow: dict[str, Any] = {"s": size, "facecolors": "none", "edgecolors": GREY, "linewidths": 0.8, "zorder": 2}
    if not column:
        axis.scatter(*xy.T, color=GREY, **look)
        return
    goal, values = facts.goals.get(column), table[column]
    if _scaled(table, column, facts):
        known = values.notna().to_numpy()
        axis.scatter(*xy[~known].T, **hollow)
        logs = bool(column == "n_cells" and values.min() > 0)
        dots = axis.scatter(*xy[known].T, c=values[known], cmap="viridis", norm="log" if logs else "linear", **look)
        bar = fig.colorbar(dots, ax=axis, shrink=0.7, aspect=18)
        if logs:
            span = float(values.min()), float(values.max())
            ticks = [tick for power in range(0, 9) for tick in (10**power, 3 * 10**power) if span[0] <= tick <= span[1]]
            bar.set_ticks(ticks if len(ticks) > 1 else span, labels=[f"{tick:,.0f}" for tick in (ticks if len(ticks) > 1 else span)])
            bar.minorticks_off()
        if not known.all():
            axis.legend(
                handles=[Line2D([], [], marker="o", ls="", mfc="none", mec=GREY, label=_MISSING)],
                loc="upper left",
                bbox_to_anchor=(1.0, 0.06),
            )
        return
    text, looks = _classes(values, _order(goal))
    handles = []
    for value, (colour, marker) in looks.items():
        own = (text == value).to_numpy()
        axis.scatter(*xy[own].T, color=colour, marker=marker, **look)
        handles.append(
            Line2D([], [], marker=marker, ls="", color=colour, mec="white", mew=0.4, ms=6.5, label=f"{short(value, 30)} ({own.sum()})")
        )
    if values.isna().any():
        axis.scatter(*xy[values.isna().to_numpy()].T, **hollow)
        handles.append(Line2D([], [], marker="o", ls="", mfc="none", mec=GREY, ms=5.5, label=f"{_MISSING} ({values.isna().sum()})"))
    axis.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.02), handletextpad=0.1, borderaxespad=0.2)


def likeness(path: Path, formats: list[str], table: pd.DataFrame, e_sd: NDArray[Any], facts: Facts) -> list[Path]:
    """Cosine of each two samples' embeddings, like beside like; strips show the classes. Too many samples go without names."""
    unit = e_sd / np.maximum(np.linalg.norm(e_sd, axis=1, keepdims=True), 1e-12)
    order = clustered(unit)
    cosine = np.clip(unit @ unit.T, -1, 1)[np.ix_(order, order)]
    own = table.iloc[order].reset_index(drop=True)
    strips = [column for column in _columns(table, facts) if not _scaled(table, column, facts)][:_STRIPS]
    named = len(own) <= _NAMED
    side = float(np.clip(0.155 * len(own), 2.6, 0.155 * _NAMED if named else 7.0))
    labels = [short(name, 40) for name in own["sample"]] if named else []
    looks = {column: _classes(own[column], _order(facts.goals.get(column))) for column in strips}
    beside = max([inches([f"{short(value, 30)}" for _, look in looks.values() for value in look], 8) + 0.5, 1.2])
    with figure(path, formats, side + inches(labels, 6.5) + beside + 0.24 * len(strips) + 1.3, side + 1.0, columns=2) as (fig, axes):
        strip, axis = axes[0]
        strip.get_gridspec().set_width_ratios([max(0.2 * len(strips), 0.05), side])
        image = axis.imshow(cosine, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest", aspect="auto")
        axis.set(xticks=[], yticks=[], title=f"Likeness of {counted(len(own), 'sample')}, {counted(own['donor'].nunique(), 'donor')}")
        if strips:
            rgb = [[to_rgb(look.get(value, ("white", ""))[0]) for value in text] for text, look in looks.values()]
            strip.imshow(np.transpose(np.array(rgb), (1, 0, 2)), aspect="auto", interpolation="nearest")
            strip.set_xticks(range(len(strips)), [short(column, 18) for column in strips], rotation=90, fontsize=7)
        else:
            strip.set_xticks([])
        strip.set_yticks(range(len(labels)), labels, fontsize=6.5)
        strip.tick_params(length=0, pad=2)
        for part in (strip, axis):
            part.spines[:].set_visible(False)
        handles = []
        for column, (_, look) in looks.items():
            handles.append(Line2D([], [], ls="", label=column))
            handles += [
                Line2D([], [], marker="s", ls="", ms=7, color=colour, label=short(value, 30)) for value, (colour, _) in look.items()
            ]
        fig.colorbar(image, ax=axis, label="cosine", shrink=min(1.0, 1.6 / side), aspect=12, pad=0.02, anchor=(0.0, 0.0))
        if handles:
            fig.legend(handles=handles, loc="outside right upper", handletextpad=0.2)
    return saved(path, formats)
