"""Curves of classifiers, from saved tables: how far a confidence can be trusted, what rejection buys, ROC and PR, and learning curves."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from sctool.report.figures import saved
from sctool.report.style import ARM_COLOURS, PALETTE, figure

BASELINE_NAMES = ("knn", "majority")
RECOMMENDED = "recommended"
NAMED = 12
_POINTS = 500
_KNOWN = {"lr": 0, "svm": 1, "rf": 2, "xgb": 4, "mlp": 5, "ensemble": 6}
_BASELINE_LINES = {"knn": "--", "majority": ":"}
_BESIDE: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.02, 1.0)}
# A label such as "$IL7R$" is a name, not a formula.
PLAIN = {"text.parse_math": False}


def read_table(path: Path, *words: str) -> pd.DataFrame:
    """A table whose columns ``words`` are text, where a type called NA stays one; only an empty field is missing."""
    table = pd.read_csv(path, dtype=dict.fromkeys(words, str), keep_default_na=False, na_values=[""])
    return table.fillna(dict.fromkeys([word for word in words if word in table], ""))


def line_of(name: str, index: int) -> dict[str, Any]:
    """Colour and line of a model, the same in every figure; baselines grey."""
    if name in BASELINE_NAMES:
        return {"color": "#8c8c8c", "ls": _BASELINE_LINES[name], "lw": 1.2, "zorder": 1.5}
    if name == RECOMMENDED:
        return {"color": ARM_COLOURS["ar"], "lw": 2.0, "zorder": 3}
    return {"color": PALETTE[_KNOWN.get(name, 7 + index) % len(PALETTE)], "lw": 1.3, "zorder": 2}


def reliability_curves(
    path: Path, formats: list[str], tables: dict[str, pd.DataFrame], ece: dict[str, float], said: dict[str, str]
) -> list[Path]:
    """Accuracy against confidence; the larger a dot, the more cells. Below the diagonal a model is surer than it should be."""
    labels = {name: f"{said[name]}: {_value(ece.get(name))}" for name in tables}
    with figure(path, formats, 4.6 + _wide(labels.values()), 3.9) as (_, axes):
        axis = axes[0, 0]
        axis.plot([0, 1], [0, 1], color="#bbbbbb", lw=1, ls="--")
        for index, (name, table) in enumerate(tables.items()):
            part, look = table[table["cells"] > 0], line_of(name, index)
            # A line through bins of a few cells would show their chance.
            firm = part[part["cells"] >= 5] if (part["cells"] >= 5).sum() > 1 else part
            axis.plot(firm["confidence"], firm["accuracy"], label=labels[name], **look)
            area = 8 + 130 * part["cells"] / part["cells"].sum()
            axis.scatter(part["confidence"], part["accuracy"], s=area, color=look["color"], alpha=0.5, lw=0, clip_on=False)
        axis.set(xlim=(0, 1.01), ylim=(-0.01, 1.02), xlabel="confidence of the call", ylabel="share of right calls", title="Calibration")
        axis.set_aspect("equal", anchor="W")
        axis.legend(title="calibration error (0 is best)", title_fontsize=8, alignment="left", **_BESIDE)
    return saved(path, formats)


def rejection_curves(
    path: Path, formats: list[str], tables: dict[str, pd.DataFrame], rules: dict[str, tuple[float, float]], said: dict[str, str]
) -> list[Path]:
    """Accuracy of the most confident cells against their share; a ring where the rule of the run leaves each model."""
    labels = {name: said[name] + (": {1:.1%} of {0:.0%}".format(*rules[name]) if name in rules else "") for name in tables}
    with figure(path, formats, 4.8 + max(_wide(labels.values()), 1.8), 3.6) as (_, axes):
        axis, lowest = axes[0, 0], 1.0
        for index, (name, table) in enumerate(tables.items()):
            look = line_of(name, index)
            if name in rules:
                kept, right = rules[name]
                axis.plot(kept, right, "o", mfc="white", mec=look["color"], mew=1.6, ms=7, zorder=4, clip_on=False)
                lowest = min(lowest, right)
            axis.plot(table["coverage"], table["accuracy"], label=labels[name], **look)
            # The first few cells say little, and one wrong among them would flatten the rest.
            lowest = min(lowest, table.loc[table["coverage"] >= 0.1, "accuracy"].min())
        bottom = max(min(1.1 * lowest - 0.1, 0.95), 0)
        axis.set(xlim=(0, 1.01), ylim=(bottom, 1 + 0.05 * (1 - bottom)), title="What rejection buys")
        axis.set(xlabel="share of cells kept, the most confident first", ylabel="share of right calls among them")
        title = "ring: right calls among those\nkept by the rule of this run" if rules else None
        axis.legend(title=title, title_fontsize=8, alignment="left", **_BESIDE)
    return saved(path, formats)


def roc_and_pr(plots: Path, formats: list[str], proba: pd.DataFrame, truth: NDArray[Any], by_class: pd.DataFrame, said: str) -> list[Path]:
    """A curve for each type against the rest and their mean, over types that were trained and have test cells."""
    drawn = by_class[
        by_class["trained"] & (by_class["cells"] > 0) & (by_class["cells"] < len(truth)) & by_class["label"].isin(proba.columns)
    ]
    if drawn.empty:
        return []
    left = int(((by_class["cells"] > 0) & ~by_class["trained"]).sum())
    note = f"; without {left} type{'s' * (left > 1)} never trained" if left else ""
    curves = {label: _rates(truth == label, proba[label].to_numpy()) for label in drawn["label"]}
    made = []
    for name, which, score, title, unit in (
        ("roc", 0, "roc_auc", "ROC", "area under the curve"),
        ("pr", 1, "auprc", "Precision and recall", "average precision"),
    ):
        whole = f"mean of {len(drawn)} types: {drawn[score].mean():.3f}"
        texts = [f"{row['label']} ({row['cells']:,}): {row[score]:.3f}" for _, row in drawn.head(NAMED).iterrows()]
        with figure(plots / name, formats, 4.8 + max(_wide([whole, *texts]), 1.8), 3.9) as (_, axes):
            axis, grid = axes[0, 0], np.linspace(0, 1, 201)
            mean = np.mean([np.interp(grid, *curves[label][which]) for label in drawn["label"]], axis=0)
            if name == "roc":
                axis.plot([0, 1], [0, 1], color="#bbbbbb", lw=1, ls="--")
                grid, mean = np.append(0, grid), np.append(0, mean)
            axis.plot(grid, mean, color="black", lw=2.2, zorder=3, label=whole, clip_on=False)
            for index, label in enumerate(drawn["label"]):
                look: dict[str, Any] = {"color": "#d0d0d0", "lw": 0.7, "zorder": 1.5}
                if index < NAMED:
                    look = {"color": PALETTE[index % len(PALETTE)], "lw": 1.2, "zorder": 2, "label": texts[index]}
                axis.plot(*curves[label][which], clip_on=False, **look)
            names = ("false positive rate", "true positive rate") if name == "roc" else ("recall", "precision")
            axis.set(xlim=(0, 1), ylim=(0, 1.01), xlabel=names[0], ylabel=names[1], title=f"{title}: {said}{note}")
            axis.set_aspect("equal", anchor="W")
            axis.legend(title=f"type (test cells): {unit}", title_fontsize=8, alignment="left", **_BESIDE)
        made += saved(plots / name, formats)
    return made


def _rates(own_n: NDArray[np.bool_], p_n: NDArray[Any]) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """False and true positive rate; recall and precision, both rising in the first."""
    order = np.argsort(-p_n, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(p_n[order]) != 0, True))  # cells of one probability are above a threshold together
    hits = np.cumsum(own_n[order])[ends]
    alarms = ends + 1 - hits
    if len(ends) > _POINTS:
        # By rank of the positives: nearly all that is to be seen happens among the first cells.
        keep = np.unique(np.searchsorted(hits + 0.02 * alarms, np.linspace(0, (hits + 0.02 * alarms)[-1], _POINTS)))
        hits, alarms = hits[keep], alarms[keep]
    recall, precision = hits / hits[-1], hits / (hits + alarms)
    false = alarms / max(alarms[-1], 1)
    return (np.append(0, false), np.append(0, recall)), (np.append(0, recall), np.append(precision[0], precision))


def curve_figures(plots: Path, formats: list[str], run: Path) -> list[Path]:
    """The learning curve of a folder of ``results/curve``: scores by how much was trained on; band: one standard deviation."""
    summary, table = read_table(run / "learning_curve_summary.csv", "model"), read_table(run / "learning_curve.csv", "model", "outer_fold")
    by = json.loads((run / "metrics.json").read_text())["axis"] if (run / "metrics.json").exists() else "groups"
    x = "n_cells_mean" if by == "cells" else "size"
    titles = {"f1_macro_present": "macro F1", "accuracy": "accuracy"}
    names = sorted(summary["model"].unique(), key=lambda name: (name in BASELINE_NAMES, name))
    path = plots / "learning-curve"
    with plt.rc_context(PLAIN), figure(path, formats, 7.2 + _wide(names), 3.5, columns=len(titles)) as (fig, axes):
        for axis, (score, title) in zip(axes[0], titles.items(), strict=True):
            for index, name in enumerate(names):
                part, look = summary[summary["model"] == name].sort_values("size"), line_of(name, index)
                middle, spread = part[f"{score}_mean"], part[f"{score}_sd"].fillna(0)
                axis.plot(part[x], middle, marker="o" if len(part) == 1 else None, ms=4, label=name, **look)
                if name in BASELINE_NAMES:
                    continue
                axis.fill_between(part[x], middle - spread, middle + spread, color=look["color"], alpha=0.15, lw=0)
                runs = table[table["model"] == name].groupby(["size", "repeat"])[[score]].mean().reset_index()
                where = pd.Series(part[x].to_numpy(), part["size"]).reindex(runs["size"])
                axis.plot(where.to_numpy(), runs[score], "o", color=look["color"], ms=4, mec="white", mew=0.5, zorder=4, clip_on=False)
            if by == "cells":
                _count_axis(axis, summary.groupby("size")["n_cells_mean"].mean())
            else:
                axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.set(xlabel="cells trained on" if by == "cells" else "groups trained on", title=title)
            axis.set_ylim(min(0.5, max(0, axis.get_ylim()[0])), 1.01)
            axis.grid(axis="y", color="#e5e5e5", lw=0.6)
        handles, texts = axes[0, 0].get_legend_handles_labels()
        fig.legend(handles, texts, loc="outside right upper")
    return saved(path, formats)


def _count_axis(axis: Any, counts: pd.Series) -> None:
    """A logarithmic axis with ticks at the sizes that were trained on, as far as they have room."""
    axis.set_xscale("log")
    ticks: list[float] = []
    for count in sorted(counts):
        if not ticks or count > 1.5 * ticks[-1]:
            ticks.append(count)
    axis.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axis.minorticks_off()


def _wide(texts: Iterable[str]) -> float:
    """Inches a legend of such lines takes."""
    return 0.5 + 0.068 * max(map(len, texts), default=0)


def _value(value: float | None) -> str:
    return "not known" if value is None or np.isnan(value) else f"{value:.3f}"
