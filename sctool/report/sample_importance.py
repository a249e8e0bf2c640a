"""Which cell types a model's attention dwells on. The unit is the donor: cells of one donor are no independent evidence."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from sctool.report.figures import saved
from sctool.report.sample_look import DISTINCT, GREY, Facts, Goal, counted, inches, looks_of, p_words, short, table_of
from sctool.report.style import figure

FIRM = 10  # cells of a type below which a donor's enrichment is mostly chance
_TYPES, _GROUPS, _MANY, _PANELS = 40, 4, 80, 4
_UNITS = {
    "class": "logit of {}\n(less the mean over classes)",
    "ordinal": "logit of a higher {}",
    "regression": "{} (in its standard deviations)",
}


def importance_figures(plots: Path, formats: list[str], run: Path, facts: Facts, stability: float | None = None) -> list[Path]:
    """Enrichment of attention by cell type, by head where there are several, and what each type adds to the answers.

    Parameters
    ----------
    stability
        Rank correlation between the importances that different networks give the same cells; None where there is one network.
    """
    table = table_of(run / "importance_by_celltype.csv")
    if table is None:
        return []
    each = by_donor(table)
    if not len(each):
        return []
    shown, samples = _ranked(each), table_of(run / "embeddings.csv")
    tests = table_of(run / "importance_tests.csv")
    first = next((goal for goal in facts.goals.values() if _classes(samples, goal)), Goal(""))
    made = importance(plots / "importance", formats, table, shown, tests, _classes(samples, first), _order(samples, first), stability)
    heads = [str(column) for column in each if re.fullmatch(r"enrichment_h\d+", str(column))]
    if len(heads) > 1:
        made += head_map(plots / "importance-heads", formats, each, shown, heads)
    effects = [str(column) for column in each if str(column).startswith("effect_") and each[column].notna().any()]
    if effects:
        made += effect_panels(plots / "importance-effects", formats, table, shown, effects[:_PANELS], samples, facts)
    return made


def by_donor(table: pd.DataFrame, class_of: dict[str, str] | None = None) -> pd.DataFrame:
    """A row for each donor, class and cell type: cells summed, enrichments and effects their mean over those samples of the donor.

    Without ``class_of`` (the class of each sample by its name) all samples of a donor are of the one class "", as they are tested.
    In a paired design a donor has samples of two classes, and their mean would say nothing of either.
    """
    columns = [column for column in table if re.fullmatch(r"enrichment(_h\d+)?|effect_.+", str(column))]
    table = table[(table["n_cells"] > 0) & table["enrichment"].notna()]
    table = table.assign(group=table["sample"].map(class_of or {}).fillna("").astype(str))
    how = dict.fromkeys(columns, "mean") | {"n_cells": "sum"}
    return table.groupby(["donor", "group", "cell_type"], sort=False).agg(how).reset_index()


def _ranked(each: pd.DataFrame) -> list[str]:
    """Types by median enrichment, the most enriched first; of too many those farthest from 1."""
    middle = each.groupby("cell_type")["enrichment"].median().sort_values(ascending=False, kind="stable")
    if len(middle) > _TYPES:
        far = np.log(middle.clip(lower=1e-6)).abs().sort_values(ascending=False, kind="stable").index[:_TYPES]
        middle = middle[middle.index.isin(far)]
    return [str(name) for name in middle.index]


def _classes(samples: pd.DataFrame | None, goal: Goal) -> dict[str, str]:
    """Class of each sample for a task; none where the task has no classes, or too many for groups of points."""
    if samples is None or goal.kind not in ("class", "ordinal") or goal.column not in samples:
        return {}
    known = samples.dropna(subset=[goal.column])
    values = known[goal.column].map(lambda value: f"{value:g}" if isinstance(value, float) else str(value))
    return dict(zip(known["sample"].astype(str), values, strict=True)) if 1 < values.nunique() <= _GROUPS else {}


def _order(samples: pd.DataFrame | None, goal: Goal) -> list[str]:
    """Classes in the order in which they are drawn: levels from low to high, names by name."""
    found = set(_classes(samples, goal).values())
    return [level for level in goal.order if level in found] + sorted(found - set(goal.order))


def _looks(groups: Iterable[str], order: list[str]) -> dict[str, tuple[Any, str]]:
    """Colour and shape of each class; grey for samples of no known class."""
    present = set(groups)
    looks = looks_of([name for name in order if name in present])
    return looks | ({"": (GREY if looks else DISTINCT[0], "o")} if "" in present else {})


def _handles(looks: dict[str, tuple[Any, str]]) -> list[Line2D]:
    several = len(looks) > 1
    return [
        Line2D([], [], marker=m, ls="", color=c, ms=5.5, label=short(g, 34) if g else "class not known" if several else "a donor")
        for g, (c, m) in looks.items()
    ]


def _stable(stability: float | None) -> str:
    """How far networks that were trained apart agree on which cells matter."""
    if stability is None or not np.isfinite(stability):
        return ""
    return f"\nrank correlation between networks {stability:.2f}" + (": the networks disagree" if stability < 0.5 else "")


def importance(
    path: Path,
    formats: list[str],
    table: pd.DataFrame,
    shown: list[str],
    tests: pd.DataFrame | None,
    class_of: dict[str, str],
    order: list[str],
    stability: float | None = None,
) -> list[Path]:
    """A point for each donor (in each class it has samples of), a box for their quartiles, the mean over donors with its interval.

    The line at 1 is a cell's fair share. That the mean is not 1 says only that these networks attend unevenly, nothing of the target,
    so no p value of it is shown; ``effect_q`` is, where ``tests`` has it: whether a type speaks for the truth of unseen donors.
    """
    rng = np.random.default_rng(0)
    each = by_donor(table, class_of)
    low = 0.7 * float(each.loc[each["enrichment"] > 0, "enrichment"].min()) if (each["enrichment"] > 0).any() else 0.1
    looks = _looks(each["group"], order)
    tested = tests.set_index("cell_type") if tests is not None else pd.DataFrame()
    differs = "effect_q" in tested and bool(tested["effect_q"].notna().any())
    donors, types = each["donor"].nunique(), each["cell_type"].nunique()
    lanes, hollow, ends = len(looks), False, [0.5, 2.0]
    step = 0.34 if lanes == 1 else 0.24 + 0.14 * lanes
    width = inches([short(name, 40) for name in shown]) + 5.2 + (1.9 if differs else 0.8 if len(tested) else 0.3)
    with figure(path, formats, max(width, 6.0), 1.95 + step * max(len(shown), 2)) as (fig, axes):
        axis = axes[0, 0]
        axis.axvline(1, color="black", lw=0.9, ls="--", zorder=0.5)
        for at, name in enumerate(shown):
            own = each[each["cell_type"] == name]
            ends += [max(float(own["enrichment"].min()), low), float(own["enrichment"].max())]
            for lane, (group, (colour, marker)) in enumerate(looks.items()):
                middle = at + (lane - (lanes - 1) / 2) * 0.8 / lanes
                hollow |= _lane(axis, own[own["group"] == group], middle, 0.7 / lanes, colour, marker, low, rng)
            if name in tested.index:
                row: Any = tested.loc[name]
                span = max(row["low"], low), max(row["high"], low)
                ends += span
                axis.plot(span, [at + 0.46] * 2, color="black", lw=1.6, zorder=4, solid_capstyle="butt")
                axis.plot(max(row["mean_enrichment"], low), at + 0.46, "D", color="black", ms=4.2, mec="white", mew=0.4, zorder=5)
                q = float(row["effect_q"]) if differs else np.nan
                said = (f"{p_words(q, 'q')}, " if np.isfinite(q) else "") + f"n = {row['n_donors']:.0f}"
                look: dict[str, Any] = {"transform": axis.get_yaxis_transform(), "va": "center", "fontsize": 7.5}
                axis.text(1.015, at, said, fontweight="bold" if q < 0.05 else "normal", **look)
        if differs:
            axis.text(1.015, -0.72, "speaks for the\ntruth, q", transform=axis.get_yaxis_transform(), va="bottom", fontsize=7.5)
        axis.set_xscale("log", base=2)
        _log_ticks(axis, min(ends), max(ends))
        axis.set_yticks(range(len(shown)), [short(name, 40) for name in shown])
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="x", color="#ececec", lw=0.6)
        axis.set_axisbelow(True)
        for at in range(1, len(shown)):
            axis.axhline(at - 0.5 + (0.06 if len(tested) else 0), color="#f0f0f0", lw=0.8, zorder=0.2)
        axis.set_ylim(len(shown) - 0.35, -0.65)
        axis.set_xlabel("enrichment: share of the attention / share of the cells (1 = uniform)")
        more = f"; the {len(shown)} of {types} types farthest from 1" if types > len(shown) else ""
        dots = "; a dot: a donor in one class" if len(each[["donor", "group"]].drop_duplicates()) > donors else ""
        fig.suptitle(f"Attention by cell type, {counted(donors, 'donor')}{more}{dots}{_stable(stability)}", x=0.01, ha="left", fontsize=10)
        handles = _handles(looks)
        if hollow:
            handles.append(Line2D([], [], marker="o", ls="", mfc="none", mec=GREY, ms=5, label=f"fewer than {FIRM} cells"))
        if len(tested):
            handles.append(Line2D([], [], marker="D", color="black", ms=4.2, lw=1.6, label="mean, 95 % interval"))
        fig.legend(handles=handles, loc="outside lower center", ncols=2 if len(handles) == 4 else 3)
    return saved(path, formats)


def _log_ticks(axis: Any, low: float, high: float) -> None:
    """Powers of 2, never less than from 1/2 to 2: on a narrower axis a few per cent would look large."""
    first, last = int(np.floor(np.log2(low * 1.001))), int(np.ceil(np.log2(high / 1.001)))
    gap = -(-(last - first) // 11)
    ticks = sorted({at for at in range(first, last + 1) if at % gap == 0} | {-1, 0, 1})
    axis.set_xlim(min(low, 0.5) / 1.06, max(high, 2.0) * 1.06)
    axis.set_xticks([2.0**at for at in ticks], [f"{2**at}" if at >= 0 else f"1/{2**-at}" for at in ticks])
    axis.minorticks_off()


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


def _target(effect: str, facts: Facts) -> tuple[Goal, str]:
    """Task of a column of effects, and in which of its answers; the longest name that fits."""
    rest = effect.removeprefix("effect_")
    fits = [goal for goal in facts.goals.values() if rest == goal.column or rest.startswith(f"{goal.column}_")]
    goal = max(fits, key=lambda goal: len(goal.column), default=Goal(""))
    return goal, rest[len(goal.column) :].lstrip("_") if goal.column else rest


def effect_panels(
    path: Path, formats: list[str], table: pd.DataFrame, shown: list[str], effects: list[str], samples: pd.DataFrame | None, facts: Facts
) -> list[Path]:
    """Answer of the networks with all cells less their answer without those of a type; 0: the type adds nothing.

    A point for each donor in each class of the task that it has samples of, a box for their quartiles.
    """
    rng = np.random.default_rng(0)
    names = [short(name, 40) for name in shown]
    found = [_target(effect, facts) for effect in effects]
    looks_by = [_looks(by_donor(table, _classes(samples, goal))["group"], _order(samples, goal)) for goal, _ in found]
    height = 0.3 if max(map(len, looks_by)) == 1 else 0.2 + 0.12 * max(map(len, looks_by))
    with figure(path, formats, inches(names) + 3.2 * len(effects) + 0.4, 2.0 + height * max(len(shown), 3), columns=len(effects)) as (
        fig,
        axes,
    ):
        for axis, effect, (goal, answer), looks in zip(axes[0], effects, found, looks_by, strict=True):
            each = by_donor(table[table[effect].notna()], _classes(samples, goal))
            lanes = len(looks)
            axis.axvline(0, color="black", lw=0.9, ls="--", zorder=0.5)
            for at, name in enumerate(shown):
                own = each[each["cell_type"] == name]
                for lane, (group, (colour, marker)) in enumerate(looks.items()):
                    part = own[own["group"] == group]
                    middle = at + (lane - (lanes - 1) / 2) * 0.8 / lanes
                    _lane(axis, part.assign(enrichment=part[effect]), middle, 0.7 / lanes, colour, marker, -np.inf, rng)
            axis.set_yticks(range(len(names)), names if axis is axes[0, 0] else [""] * len(names))
            axis.tick_params(axis="y", length=0)
            axis.set_ylim(len(names) - 0.4, -0.6)
            axis.grid(axis="x", color="#ececec", lw=0.6)
            axis.set_axisbelow(True)
            axis.locator_params(axis="x", nbins=5)
            what = short(answer or goal.column, 30)
            # Logits of classes are less their mean over the classes: of two classes half the log-odds.
            unit = _UNITS.get(goal.kind, "answer for {}").format(what)
            axis.set_title(f"{short(goal.column, 30) or 'task'}, {counted(each['donor'].nunique(), 'donor')}", fontsize=9)
            axis.set_xlabel(f"what the type adds to the\n{unit}")
            if lanes > 1:
                axis.legend(handles=_handles(looks), loc="upper left", bbox_to_anchor=(0.0, -0.7 / (height * max(len(shown), 3))))
        fig.suptitle("Answer with all cells less the answer without those of the type", x=0.01, ha="left", fontsize=10)
    return saved(path, formats)
