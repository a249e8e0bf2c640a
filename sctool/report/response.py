"""Figures and tables of predicted responses, from the tables of ``eval scgen``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sctool.artifacts.atomic import atomic_file
from sctool.report.figures import saved
from sctool.report.style import PALETTE, arm_colour, figure

TITLES = {
    "change_r": "r of the change",
    "energy_distance": "energy distance (0 is best)",
    "mean_r2": "R2 of the mean",
    "change_error": "error / real change (0 is best)",
}
NAMED_GENES = 12


def response_figures(plots: Path, formats: list[str], run: Path) -> list[Path]:
    """Everything the tables of one evaluation allow."""
    scores = pd.read_csv(run / "scores.csv", keep_default_na=True)
    made = method_dots(plots / "groups", formats, scores)
    if scores["group"].nunique() > 1 or scores.loc[scores["run"].notna(), "seed"].nunique() > 1:
        made += method_boxes(plots / "methods", formats, scores)
    if scores["control_share"].nunique() > 1:
        made += share_curves(plots / "control-share", formats, scores)
    if (run / "means.csv").exists():
        made += mean_scatter(plots / "genes", formats, pd.read_csv(run / "means.csv"))
    return [*made, *summary_tables(plots, scores)]


def _methods(scores: pd.DataFrame) -> list[tuple[str, str, Any]]:
    """Name, arm and colour of each method, the models first and the ceiling last."""
    order = {"baseline": 2, "ceiling": 3}
    seen = scores[["name", "arm"]].drop_duplicates()
    seen = seen.assign(rank=[order.get(arm, 0 if arm == "standard" else 1) for arm in seen["arm"]]).sort_values("rank", kind="stable")
    out = []
    for index, (name, arm) in enumerate(zip(seen["name"], seen["arm"], strict=True)):
        out.append(
            (name, arm, "black" if arm == "ceiling" else PALETTE[index % len(PALETTE)] if arm == "baseline" else arm_colour(arm, index))
        )
    return out


def method_dots(path: Path, formats: list[str], scores: pd.DataFrame) -> list[Path]:
    """A row for each group, a mark for each method: mean over seeds, models large, the ceiling as a line."""
    groups = list(dict.fromkeys(scores["group"]))
    with figure(path, formats, 3.2 * len(TITLES) + 2.2, 1.3 + 0.42 * len(groups), columns=len(TITLES)) as (fig, axes):
        for axis, (column, title) in zip(axes[0], TITLES.items(), strict=True):
            for name, arm, colour in _methods(scores):
                value = scores[scores["name"] == name].groupby("group")[column].mean().reindex(groups)
                at = np.arange(len(groups))
                if arm == "ceiling":
                    axis.vlines(value, at - 0.35, at + 0.35, color=colour, lw=1.5, label=name)
                    continue
                large = arm not in ("baseline", "ceiling")
                axis.plot(
                    value,
                    at,
                    "D" if large else "o",
                    color=colour,
                    ms=7 if large else 4.5,
                    mec="black" if large else colour,
                    mew=0.6,
                    label=name,
                )
            axis.set_yticks(range(len(groups)), groups if axis is axes[0, 0] else [""] * len(groups))
            axis.set(title=title, ylim=(len(groups) - 0.5, -0.5))
            axis.grid(axis="x", color="#e5e5e5", lw=0.6)
        handles, names = axes[0, 0].get_legend_handles_labels()
        fig.legend(handles, names, loc="outside right center")
    return saved(path, formats)


def method_boxes(path: Path, formats: list[str], scores: pd.DataFrame) -> list[Path]:
    """The spread of each method over groups, with a dot for each group and seed."""
    methods = _methods(scores)
    with figure(path, formats, 3.4 * len(TITLES), 1.2 + 0.32 * len(methods), columns=len(TITLES)) as (_, axes):
        for axis, (column, title) in zip(axes[0], TITLES.items(), strict=True):
            for at, (name, _arm, colour) in enumerate(methods):
                values = scores.loc[scores["name"] == name, column].dropna().to_numpy()
                if not len(values):
                    continue
                axis.boxplot(values, positions=[at], widths=0.6, orientation="horizontal", showfliers=False, medianprops={"color": "black"})
                axis.plot(values, at + np.linspace(-0.18, 0.18, len(values)), "o", color=colour, ms=2.8, alpha=0.8, mew=0)
            axis.set_yticks(range(len(methods)), [name for name, _, _ in methods] if axis is axes[0, 0] else [""] * len(methods))
            axis.set(title=title, ylim=(len(methods) - 0.5, -0.5))
            axis.grid(axis="x", color="#e5e5e5", lw=0.6)
    return saved(path, formats)


def share_curves(path: Path, formats: list[str], scores: pd.DataFrame) -> list[Path]:
    """Score by the share of the held-out group's control cells that were trained on."""
    trained = scores[~scores["arm"].isin(["baseline", "ceiling"])]
    groups = list(dict.fromkeys(trained["group"]))
    columns = list(TITLES)[:2]
    with figure(path, formats, 2.6 * len(groups) + 1.5, 2.5 * len(columns), columns=len(groups), rows=len(columns)) as (_, axes):
        for row, column in zip(axes, columns, strict=True):
            for axis, group in zip(row, groups, strict=True):
                for index, (name, part) in enumerate(trained[trained["group"] == group].groupby("name", sort=False)):
                    table = part.groupby("control_share")[column].agg(["mean", "std"])
                    colour = arm_colour(part["arm"].iloc[0], index)
                    axis.errorbar(
                        table.index, table["mean"], table["std"].fillna(0), color=colour, marker="o", ms=3.5, capsize=2, label=name
                    )
                axis.set(title=group, xlabel="share of control cells", ylabel=TITLES[column] if axis is row[0] else "")
        axes[0, 0].legend()
    return saved(path, formats)


def mean_scatter(path: Path, formats: list[str], means: pd.DataFrame) -> list[Path]:
    """Real against predicted change of every gene, a panel for each group (one run of each), the most changed genes named."""
    means = means.assign(ar=means["arm"] != "standard").sort_values("ar", kind="stable")  # a standard run where there is one
    panels = [part[part["run"] == part["run"].iloc[0]] for _, part in means.groupby("group", sort=True)][:9]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with figure(path, formats, 3.7 * columns, 3.6 * rows, columns=columns, rows=rows) as (_, axes):
        for axis in axes.flat[len(panels) :]:
            axis.axis("off")
        for axis, part in zip(axes.flat, panels, strict=False):
            x, y = part["real"] - part["control"], part["predicted"] - part["control"]
            axis.axline((0, 0), slope=1, color="#bdbdbd", lw=0.8)
            axis.scatter(x, y, s=5, color="#7f7f7f", lw=0, alpha=0.5, rasterized=True)
            for gene in part[part["rank"] < NAMED_GENES].index:
                axis.plot(x[gene], y[gene], "o", color="#b5651d", ms=3.5)
                axis.annotate(part["gene"][gene], (x[gene], y[gene]), fontsize=6.5, xytext=(2, 2), textcoords="offset points")
            r = np.corrcoef(x, y)[0, 1]
            axis.set(title=f"{part['group'].iloc[0]}: r = {r:.3f}", xlabel="real change", ylabel="predicted change")
            axis.set_aspect("equal", adjustable="datalim")
    return saved(path, formats)


def summary_tables(plots: Path, scores: pd.DataFrame) -> list[Path]:
    """Mean and standard deviation over groups of each method (seeds averaged first), as CSV and LaTeX."""
    per_group = scores.groupby(["name", "arm", "group"], sort=False)[list(TITLES)].mean()
    table = per_group.groupby(level=["name", "arm"], sort=False).agg(["mean", "std"])
    flat = table.set_axis(["_".join(pair) for pair in table.columns], axis=1)
    shown = {
        title: [
            f"{mean:.3f} $\\pm$ {std:.3f}" if np.isfinite(std) else f"{mean:.3f}"
            for mean, std in zip(flat[f"{column}_mean"], flat[f"{column}_std"], strict=True)
        ]
        for column, title in TITLES.items()
    }
    words = pd.DataFrame(shown, index=[str(name).replace("_", r"\_") for name in table.index.get_level_values("name")])
    paths = [plots / "summary.csv", plots / "summary.tex"]
    for path, text in zip(paths, (flat.to_csv(), words.replace("nan", "--").to_latex(column_format="l" + "r" * len(TITLES))), strict=True):
        with atomic_file(path) as partial:
            partial.write_text(text)
    return paths
