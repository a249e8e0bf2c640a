"""Which cell types a model's attention dwells on. The unit is the donor: cells of one donor are no independent evidence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator
from numpy.typing import NDArray

from sctool.report.figures import saved
from sctool.report.sample_look import DISTINCT, GREY, Facts, counted, inches, looks_of, p_words, short, table_of
from sctool.report.style import figure

FIRM = 10  # cells of a type below which a donor's enrichment is mostly chance
_TYPES, _GROUPS, _MANY, _PANELS = 40, 4, 80, 4


def importance_figures(plots: Path, formats: list[str], run: Path, facts: Facts) -> list[Path]:
    """Enrichment of attention by cell type, and by head where there are several."""
    table = table_of(run / "importance_by_celltype.csv")
    if table is None:
        return []
    each = by_donor(table)
    if not len(each):
        return []
    shown = _ranked(each)
    tests = table_of(run / "importance_tests.csv")
    made = importance(plots / "importance", formats, each, shown, tests, _groups(run, facts))
    heads = [str(column) for column in each if re.fullmatch(r"enrichment_h\d+", str(column))]
    if len(heads) > 1:
        made += head_map(plots / "importance-heads", formats, each, shown, heads)
    effects = [str(column) for column in each if str(column).startswith("effect_") and each[column].notna().any()]
    return made + (effect_panels(plots / "importance-effects", formats, each, shown, effects[:_PANELS]) if effects else [])


def by_donor(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each donor and cell type: cells summed, enrichments and effects their mean over the donor's samples, as they are tested."""
    columns = [column for column in table if re.fullmatch(r"enrichment(_h\d+)?|effect_.+", str(column))]
    table = table[(table["n_cells"] > 0) & table["enrichment"].notna()]
    how = dict.fromkeys(columns, "mean") | {"n_cells": "sum"}
    return table.groupby(["donor", "cell_type"], sort=False).agg(how).reset_index()


def _ranked(each: pd.DataFrame) -> list[str]:
    """Types by median enrichment, the most enriched first; of too many those farthest from 1."""
    middle = each.groupby("cell_type")["enrichment"].median().sort_values(ascending=False, kind="stable")
    if len(middle) > _TYPES:
        far = np.log(middle.clip(lower=1e-6)).abs().sort_values(ascending=False, kind="stable").index[:_TYPES]
        middle = middle[middle.index.isin(far)]
    return [str(name) for name in middle.index]


def _groups(run: Path, facts: Facts) -> dict[str, str]:
    """Each donor's class of the first task of classes, where no donor has two."""
    table = table_of(run / "embeddings.csv")
    for goal in facts.goals.values():
        if table is None or goal.kind not in ("class", "ordinal") or not {"donor", goal.column} <= set(table):
            continue
        known = table.dropna(subset=[goal.column]).groupby("donor")[goal.column]
        values = known.first().map(lambda value: f"{value:g}" if isinstance(value, float) else str(value))
        if (known.nunique() == 1).all() and 1 < values.nunique() <= _GROUPS:
            return {str(donor): str(value) for donor, value in values.items()}
    return {}


def importance(
    path: Path, formats: list[str], each: pd.DataFrame, shown: list[str], tests: pd.DataFrame | None, of_donor: dict[str, str]
) -> list[Path]:
    """A point for each donor, a box for their quartiles, the tested mean with its interval; the line at 1 is a cell's fair share."""
    rng = np.random.default_rng(0)
    low = 0.7 * float(each.loc[each["enrichment"] > 0, "enrichment"].min()) if (each["enrichment"] > 0).any() else 0.1
    group_n = each["donor"].map(of_donor).fillna("")
    looks = looks_of(sorted(set(group_n) - {""}))
    if (group_n == "").any():
        looks[""] = (GREY, "o")
    tested = tests.set_index("cell_type") if tests is not None else pd.DataFrame()
    donors, types = each["donor"].nunique(), each["cell_type"].nunique()
    lanes, hollow = len(looks), False
    step = 0.34 if lanes == 1 else 0.24 + 0.14 * lanes
    width = inches([short(name, 40) for name in shown]) + 5.2 + (1.6 if len(tested) else 0.3)
    with figure(path, formats, max(width, 6.0), 1.7 + step * max(len(shown), 2)) as (fig, axes):
        axis = axes[0, 0]
        axis.axvline(1, color="black", lw=0.9, ls="--", zorder=0.5)
        for at, name in enumerate(shown):
            own = each[each["cell_type"] == name]
            for lane, (group, (colour, marker)) in enumerate(looks.items()):
                part = own[group_n[own.index] == group]
                middle = at + (lane - (lanes - 1) / 2) * 0.8 / lanes
                hollow |= _lane(axis, part, middle, 0.7 / lanes, colour, marker, low, rng)
            if name in tested.index:
                row: Any = tested.loc[name]
                axis.plot(
                    [max(row["low"], low), max(row["high"], low)], [at + 0.46] * 2, color="black", lw=1.6, zorder=4, solid_capstyle="butt"
                )
                axis.plot(max(row["mean_enrichment"], low), at + 0.46, "D", color="black", ms=4.2, mec="white", mew=0.4, zorder=5)
                said = p_words(float(row["q"]), "q") if "q" in row and np.isfinite(row["q"]) else ""
                strong = "bold" if said and float(row["q"]) < 0.05 else "normal"
                axis.text(
                    1.015,
                    at,
                    f"{said}, n = {row['n_donors']:.0f}" if said else f"n = {row['n_donors']:.0f}",
                    transform=axis.get_yaxis_transform(),
                    va="center",
                    fontsize=7.5,
                    fontweight=strong,
                )
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_locator(LogLocator(base=2, numticks=12))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}" if x >= 1 else f"1/{1 / x:g}"))
        axis.minorticks_off()
        axis.set_yticks(range(len(shown)), [short(name, 40) for name in shown])
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="x", color="#ececec", lw=0.6)
        axis.set_axisbelow(True)
        for at in range(1, len(shown)):
            axis.axhline(at - 0.5 + (0.06 if len(tested) else 0), color="#f0f0f0", lw=0.8, zorder=0.2)
        axis.set_ylim(len(shown) - 0.35, -0.65)
        axis.set_xlabel("enrichment: share of the attention / share of the cells (1 = uniform)")
        more = f"; the {len(shown)} of {types} types farthest from 1" if types > len(shown) else ""
        axis.set_title(f"Attention by cell type, {counted(donors, 'donor')}{more}")
        handles = [
            Line2D([], [], marker=m, ls="", color=c, ms=5.5, label=short(g, 34) if g else "other donors" if of_donor else "a donor")
            for g, (c, m) in looks.items()
        ]
        if hollow:
            handles.append(Line2D([], [], marker="o", ls="", mfc="none", mec=GREY, ms=5, label=f"fewer than {FIRM} cells"))
        if len(tested):
            handles.append(Line2D([], [], marker="D", color="black", ms=4.2, lw=1.6, label="mean, 95 % interval"))
        fig.legend(handles=handles, loc="outside lower center", ncols=2 if len(handles) == 4 else 3)
    return saved(path, formats)


def _lane(
    axis: Any, part: pd.DataFrame, middle: float, height: float, colour: Any, marker: str, low: float, rng: np.random.Generator
) -> bool:
    """Points and quartiles of some donors on one height, what is 0 at the edge; whether some points are hollow. A box needs five donors."""
    value, firm = part["enrichment"].clip(lower=low).to_numpy(float), (part["n_cells"] >= FIRM).to_numpy(bool)
    many = len(value) > _MANY
    if len(value) >= 5:
        first, half, third = np.quantile(value, [0.25, 0.5, 0.75])
        axis.barh(
            middle, third - first, height * 0.9, left=first, color=colour, alpha=0.35 if many else 0.2, lw=0, zorder=2.5 if many else 1
        )
        axis.plot([half, half], [middle - 0.45 * height, middle + 0.45 * height], color="black" if many else colour, lw=1.8, zorder=3)
    y = middle + _spread(value, height * 0.36, rng)
    if many:
        axis.scatter(value, y, s=5, color=colour, lw=0, alpha=0.3, zorder=2, rasterized=True)
        return False
    axis.scatter(value[firm], y[firm], s=13, color=colour, marker=marker, lw=0.3, edgecolors="white", alpha=0.9, zorder=2)
    axis.scatter(value[~firm], y[~firm], s=13, facecolors="none", edgecolors=colour, marker=marker, lw=0.7, zorder=2)
    return not firm.all()


def _spread(value: NDArray[Any], most: float, rng: np.random.Generator) -> NDArray[Any]:
    return rng.uniform(-most, most, len(value)) if len(value) > 1 else np.zeros(len(value))


def head_map(path: Path, formats: list[str], each: pd.DataFrame, shown: list[str], heads: list[str]) -> list[Path]:
    """Median enrichment over donors, of each type in each head."""
    middle = each.groupby("cell_type")[heads].median().reindex(shown)
    shade = np.log2(middle.clip(lower=2.0**-4).to_numpy(float))
    high = float(np.clip(np.nanmax(np.abs(shade)), 1.0, 4.0))
    n = each.groupby("cell_type")["donor"].nunique()
    names = [f"{short(name, 40)} ({n[name]})" for name in shown]
    height = 0.3 * max(len(shown), 3)
    with figure(path, formats, inches(names) + 0.55 * len(heads) + 1.9, height + 1.1) as (fig, axes):
        axis = axes[0, 0]
        image = axis.imshow(shade, cmap="PuOr_r", vmin=-high, vmax=high, aspect="auto", interpolation="nearest")
        for (row, column), value in np.ndenumerate(middle.to_numpy(float)):
            dark = abs(shade[row, column]) > 0.7 * high
            text = f"{value:.2g}" if value < 10 else f"{value:.0f}"
            axis.text(column, row, text, ha="center", va="center", fontsize=7.5, color="white" if dark else "black")
        axis.set_yticks(range(len(names)), names)
        axis.set_xticks(range(len(heads)), [head.removeprefix("enrichment_h") for head in heads])
        axis.set(xlabel="head", title="Median enrichment over donors (their number)")
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        ticks = np.arange(-int(high), int(high) + 1)
        bar = fig.colorbar(image, ax=axis, shrink=min(1.0, 2.2 / height), aspect=16, label="enrichment")
        bar.set_ticks(ticks, labels=[f"{2.0**tick:g}" if tick >= 0 else f"1/{2.0**-tick:g}" for tick in ticks])
    return saved(path, formats)


def effect_panels(path: Path, formats: list[str], each: pd.DataFrame, shown: list[str], effects: list[str]) -> list[Path]:
    """How an output of the model rises with the attention on a type: a point for each donor, a box for their quartiles; 0 is no effect."""
    rng = np.random.default_rng(0)
    names = [short(name, 40) for name in shown]
    with figure(path, formats, inches(names) + 3.0 * len(effects) + 0.4, 1.2 + 0.3 * max(len(shown), 3), columns=len(effects)) as (_, axes):
        for axis, effect in zip(axes[0], effects, strict=True):
            axis.axvline(0, color="black", lw=0.9, ls="--", zorder=0.5)
            for at, name in enumerate(shown):
                own = each[(each["cell_type"] == name) & each[effect].notna()]
                _lane(axis, own.assign(enrichment=own[effect]), at, 0.8, DISTINCT[0], "o", -np.inf, rng)
            axis.set_yticks(range(len(names)), names if axis is axes[0, 0] else [""] * len(names))
            axis.tick_params(axis="y", length=0)
            axis.set_ylim(len(names) - 0.4, -0.6)
            axis.grid(axis="x", color="#ececec", lw=0.6)
            axis.set_axisbelow(True)
            axis.locator_params(axis="x", nbins=5)
            axis.set_title(
                f"effect on {short(effect.removeprefix('effect_').replace('_', ' '), 34)}\n{counted(each['donor'].nunique(), 'donor')}",
                fontsize=9,
            )
            axis.set_xlabel("signed effect of more attention")
    return saved(path, formats)
