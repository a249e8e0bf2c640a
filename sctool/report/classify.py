"""Figures of cell-type classification, from the tables of ``train classify``, ``eval classify`` and ``predict classify``."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from sctool.report.classify_curves import PLAIN, RECOMMENDED, read_table, rejection_curves, reliability_curves, roc_and_pr
from sctool.report.classify_curves import curve_figures as curve_figures
from sctool.report.figures import saved
from sctool.report.style import ARM_COLOURS, PALETTE, figure

SCORES = {
    "f1_macro_present": "macro F1",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "coverage": "share of cells kept",
    "accuracy_assigned": "accuracy of cells kept",
    "ece": "calibration error (0 is best)",
}
SIGNS = {1: ("#3b7ea1", "for the type"), -1: ("#b5651d", "against it"), 0: ("#8c8c8c", "for or against it")}
UNASSIGNED = "Unassigned"
_OTHERS, _WRITTEN, _GENES, _PANELS, _LABELS = 2, 40, 8, 12, 40


def classify_figures(plots: Path, formats: list[str], run: Path) -> list[Path]:
    """Everything the tables of a folder of ``results/classify`` allow."""
    with plt.rc_context(PLAIN):
        if (run / "scores.csv").exists():
            return _evaluated(plots, formats, run)
        called = run / "predictions.csv"
        calls = read_table(called, "cell", "label", "label_raw") if called.exists() else pd.DataFrame()
        return label_bars(plots / "labels", formats, calls) if {"label", "confidence"} <= set(calls) and len(calls) else []


def _evaluated(plots: Path, formats: list[str], run: Path) -> list[Path]:
    scores = read_table(run / "scores.csv", "name", "arm", "fold")
    baselines = set(scores.loc[scores["arm"] == "baseline", "name"])
    means = scores.groupby("name", sort=False)[[column for column in SCORES if column in scores]].mean()
    about = json.loads((run / "metrics.json").read_text()) if (run / "metrics.json").exists() else {}
    chosen = set(about.get("chosen_in_folds", [])) if RECOMMENDED in means.index else set()
    # Where all folds chose one model, what is recommended and that model are one; it is drawn once.
    twin = next(iter(chosen)) if len(chosen) == 1 else None
    ranked = means.loc[sorted(means.index, key=lambda name: name != RECOMMENDED)].sort_values(
        "f1_macro_present", ascending=False, kind="stable"
    )
    order = [name for name in ranked.index if name != twin]
    said = {name: f"{name} ({twin})" if twin and name == RECOMMENDED else name for name in order}
    models = [name for name in order if name not in baselines]
    shown = RECOMMENDED if RECOMMENDED in order else (models or order)[0]
    made = model_bars(plots / "model-compare", formats, scores[scores["name"].isin(order)], order, said)
    for name in [shown, *[name for name in models if name != shown][:_OTHERS]]:
        if (run / name / "confusion_matrix.csv").exists():
            made += confusion_map(plots / f"confusion-{name}", formats, _confusion(run / name), said[name])
    found = _tables(run, order, "metrics_by_class", "label")
    if found:
        made += class_map(plots / "per-class-f1", formats, found, said)
    sure = [name for name in order if name != "majority"]  # whose confidence says nothing
    ece = {name: float(means.loc[name, "ece"]) for name in order} if "ece" in means else {}
    tables = _tables(run, sure, "reliability")
    if tables:
        made += reliability_curves(plots / "reliability", formats, tables, ece, said)
    tables = _tables(run, sure, "rejection")
    if tables:
        rules = {name: rule for name in tables if (rule := _rule(run / name / "predictions.csv"))}
        made += rejection_curves(plots / "rejection", formats, tables, rules, said)
    if shown in found and (run / shown / "proba.csv").exists() and (run / shown / "predictions.csv").exists():
        proba = read_table(run / shown / "proba.csv", "cell")
        truth = read_table(run / shown / "predictions.csv", "cell", "y_true")
        if "y_true" in truth and len(truth) == len(proba):
            made += roc_and_pr(plots, formats, proba, truth["y_true"].to_numpy(object), found[shown], said[shown])
    genes = _genes(run, order)
    if genes is not None:
        classes = next((list(table["label"]) for table in found.values()), [])
        made += top_genes(plots / "top-genes", formats, genes, classes)
    return made


def _confusion(folder: Path) -> pd.DataFrame:
    table = pd.read_csv(folder / "confusion_matrix.csv", dtype=str, keep_default_na=False)
    return table.set_index(table.columns[0]).astype(float)


def _tables(run: Path, names: list[str], table: str, *words: str) -> dict[str, pd.DataFrame]:
    return {name: read_table(run / name / f"{table}.csv", *words) for name in names if (run / name / f"{table}.csv").exists()}


def _rule(path: Path) -> tuple[float, float] | None:
    """Share of the cells a run kept, and of these the share of right calls; none where there is no rule, or it kept nothing."""
    if not path.exists():
        return None
    calls = read_table(path, "y_true", "y_pred")
    if "rejected" not in calls or calls["rejected"].all() or not calls["rejected"].any():
        return None
    kept = calls[~calls["rejected"].astype(bool)]
    return len(kept) / len(calls), float((kept["y_true"] == kept["y_pred"]).mean())


def _genes(run: Path, order: list[str]) -> pd.DataFrame | None:
    """Genes of the recommended model by type; of logistic regression, or the best that has them, where it has none; else of all types."""
    kept = json.loads((run / "run.json").read_text()).get("recommended") if (run / "run.json").exists() else None
    tables = _tables(run, list(dict.fromkeys(filter(None, [kept, "lr", *order]))), "importance", "model", "class", "gene")
    tables = {name: table for name, table in tables.items() if len(table) and (table["importance"] > 0).any()}
    by_class = [table for table in tables.values() if set(table["class"]) != {"all"}]
    return next(iter([*by_class, *tables.values()]), None)


def model_bars(path: Path, formats: list[str], scores: pd.DataFrame, order: list[str], said: dict[str, str]) -> list[Path]:
    """Mean scores over folds of each model, the best on top, with a dot for each fold; baselines grey."""
    shown = {column: title for column, title in SCORES.items() if column in scores and scores[column].notna().any()}
    arms, at = scores.drop_duplicates("name").set_index("name")["arm"], np.arange(len(order))
    looks = ["baseline" if arms[name] == "baseline" else "ar" if name == RECOMMENDED else "balanced" for name in order]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    wide = 0.075 * max(len(said[name]) for name in order)
    with figure(path, formats, wide + 2.7 * columns, rows * (0.75 + 0.3 * len(order)), columns=columns, rows=rows) as (_, axes):
        for axis in axes.flat[len(shown) :]:
            axis.axis("off")
        for number, (axis, (column, title)) in enumerate(zip(axes.flat, shown.items(), strict=False)):
            mean = scores.groupby("name")[column].mean().reindex(order)
            axis.barh(at, mean.fillna(0), 0.72, color=[ARM_COLOURS[look] for look in looks])
            for place, name in enumerate(order):
                folds = scores.loc[scores["name"] == name, column].dropna()
                if len(folds) > 1:
                    axis.plot(folds, np.full(len(folds), place), "o", color="white", mec="black", ms=3, mew=0.6, clip_on=False)
                text = "none" if np.isnan(mean[name]) else f"{mean[name]:.3f}"
                axis.text(1.05, place, text, transform=axis.get_yaxis_transform(), va="center", fontsize=8)
            axis.set_yticks(at, [said[name] for name in order] if number % columns == 0 else [""] * len(order))
            top = max(float(scores[column].max()), 0.01) * 1.05 if column == "ece" else 1.0
            axis.set(xlim=(0, top), ylim=(len(order) - 0.4, -0.6), title=title)
            axis.tick_params(axis="y", length=0)
    return saved(path, formats)


def confusion_map(path: Path, formats: list[str], table: pd.DataFrame, said: str) -> list[Path]:
    """Share of the cells of each true type (row) that were called each type (column); a type without test cells is hatched."""
    cells, totals = table.to_numpy(float), table.to_numpy(float).sum(1)
    share = np.divide(cells, totals[:, None], out=np.zeros_like(cells), where=totals[:, None] > 0)
    rows, columns = cells.shape
    written = max(rows, columns) <= _WRITTEN
    side = 0.5 if written else 10 / max(rows, columns)
    step = 1 if written else -(-max(rows, columns) // 70)
    names = [f"{label} (n={total:,.0f})" for label, total in zip(table.index, totals, strict=True)]
    letters = 0.072 * max(len(name) for name in names), 0.072 * max(len(str(name)) for name in table.columns)
    cmap = plt.get_cmap("Blues")
    with figure(path, formats, max(side * columns, 2.5) + letters[0] + 1.3, max(side * rows, 1.8) + letters[1] + 0.9) as (fig, axis):
        axis = axis[0, 0]
        image = axis.imshow(share, vmin=0, vmax=1, cmap=cmap, aspect="equal", interpolation="nearest")
        for row in np.flatnonzero(totals == 0):
            axis.add_patch(plt.Rectangle((-0.5, row - 0.5), columns, 1, fc="white", ec="#b0b0b0", hatch="////", lw=0))
            if written:
                box = {"fc": "white", "ec": "none", "pad": 1.5}
                axis.text((columns - 1) / 2, row, "n=0", ha="center", va="center", fontsize=8, bbox=box)
        if written:
            for row, column in zip(*np.nonzero(cells), strict=True):
                dark = np.dot(cmap(share[row, column])[:3], (0.3, 0.59, 0.11)) < 0.5
                percent = f"{share[row, column]:.0%}" if share[row, column] >= 0.005 else "<1%"
                text = f"{cells[row, column]:,.0f}\n{percent}"
                axis.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
            axis.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
            axis.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
            axis.grid(which="minor", color="white", lw=1)
        small = {} if written else {"fontsize": 7}
        axis.set_xticks(range(0, columns, step), [str(name) for name in table.columns[::step]], rotation=90, **small)
        axis.set_yticks(range(0, rows, step), names[::step], **small)
        axis.tick_params(which="both", length=0)
        axis.spines[:].set_visible(False)
        axis.set(xlabel="called", ylabel="true type (test cells)", title=said)
        fig.colorbar(image, ax=axis, label="share of the true type", aspect=25, shrink=min(1.0, 3 / (side * rows)))
    return saved(path, formats)


def class_map(path: Path, formats: list[str], tables: dict[str, pd.DataFrame], said: dict[str, str]) -> list[Path]:
    """F1 of each type with test cells (rows, the most frequent on top) by each model (columns)."""
    every = pd.concat([table.assign(model=name) for name, table in tables.items()])
    every = every[every["cells"] > 0]
    labels = every.drop_duplicates("label").sort_values("cells", ascending=False, kind="stable")
    known = dict(every.groupby("label")["trained"].max().items())
    f1 = every.pivot(index="label", columns="model", values="f1").reindex(index=labels["label"], columns=list(tables))
    pairs = zip(labels["label"], labels["cells"], strict=True)
    names = [f"{label} ({cells:,}{'' if known[label] else '; never trained'})" for label, cells in pairs]
    written = len(names) <= 60
    height, wide = (0.3 if written else 0.14), 0.072 * max(map(len, names))
    cmap = plt.get_cmap("Blues")
    tall = 0.072 * max(len(said[name]) for name in tables) * 0.8
    with figure(path, formats, wide + 0.6 * len(tables) + 1.5, height * max(len(names), 3) + tall + 0.7) as (fig, axes):
        axis = axes[0, 0]
        image = axis.imshow(np.ma.masked_invalid(f1.to_numpy(float)), vmin=0, vmax=1, cmap=cmap, aspect="auto", interpolation="nearest")
        for (row, column), value in np.ndenumerate(f1.to_numpy(float)) if written else ():
            dark = not np.isnan(value) and np.dot(cmap(value)[:3], (0.3, 0.59, 0.11)) < 0.5
            text = "none" if np.isnan(value) else f"{value:.2f}"
            axis.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
        axis.set_yticks(range(len(names)), names, fontsize=9 if written else 7)
        for label, name in zip(axis.get_yticklabels(), labels["label"], strict=True):
            label.set_fontstyle("normal" if known[name] else "italic")
        axis.set_xticks(range(len(tables)), [said[name] for name in tables], rotation=45, ha="right", rotation_mode="anchor")
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.set_title("F1 by type (test cells)")
        fig.colorbar(image, ax=axis, label="F1", aspect=25, shrink=min(1.0, 3 / (height * max(len(names), 3))))
    return saved(path, formats)


def top_genes(path: Path, formats: list[str], genes: pd.DataFrame, classes: list[str]) -> list[Path]:
    """The genes that weigh most in a model for each type, the most frequent types first."""
    there = list(dict.fromkeys(genes["class"]))
    labels = ([label for label in classes if label in there] + [label for label in there if label not in classes])[:_PANELS]
    columns = min(4, len(labels))
    rows = -(-len(labels) // columns)
    with figure(path, formats, 2.6 * columns + 0.2, 2.0 * rows + 0.7, columns=columns, rows=rows) as (fig, axes):
        for axis in axes.flat[len(labels) :]:
            axis.axis("off")
        for axis, label in zip(axes.flat, labels, strict=False):
            part = genes[genes["class"] == label].sort_values("rank").head(_GENES)
            axis.barh(range(len(part)), part["importance"], 0.72, color=[SIGNS[int(sign)][0] for sign in part["sign"]])
            axis.set_yticks(range(len(part)), part["gene"], fontsize=8)
            axis.set_ylim(_GENES - 0.4, -0.6)
            axis.set_title("all types" if label == "all" else textwrap.fill(label, 24), fontsize=9)
            axis.tick_params(axis="x", labelsize=7)
            axis.locator_params(axis="x", nbins=4)
        seen = sorted({int(sign) for sign in genes["sign"]}, reverse=True)
        handles = [Line2D([], [], marker="s", ls="", color=SIGNS[sign][0], label=SIGNS[sign][1]) for sign in seen]
        title = f"importance in {genes['model'].iloc[0]}; more of the gene speaks"
        fig.legend(handles=handles, loc="outside lower left", ncols=len(handles) + 1, title=title, alignment="left", title_fontsize=8)
    return saved(path, formats)


def label_bars(path: Path, formats: list[str], calls: pd.DataFrame) -> list[Path]:
    """How many cells were called what, and how sure each call was."""
    counts = calls["label"].value_counts()
    shown = list(counts.index[:_LABELS])
    named = [label for label in shown if label != UNASSIGNED]
    colours = {label: PALETTE[at % len(PALETTE)] for at, label in enumerate(named)} | {UNASSIGNED: ARM_COLOURS["baseline"]}
    at, edges = np.arange(len(shown)), np.linspace(0, 1, 41)
    width = 0.072 * max(len(label) for label in shown) + 6.4
    with figure(path, formats, width, 1.0 + 0.34 * max(len(shown), 3), columns=2) as (_, axes):
        left, right = axes[0]
        left.barh(at, counts[shown], 0.74, color=[colours[label] for label in shown])
        for place, label in enumerate(shown):
            left.text(counts[label], place, f" {counts[label]:,} ({counts[label] / len(calls):.1%})", va="center", fontsize=8)
            height, _ = np.histogram(calls.loc[calls["label"] == label, "confidence"].clip(0, 1), edges)
            right.stairs(place + 0.4 - 0.84 * height / max(height.max(), 1), edges, baseline=place + 0.4, fill=True, color=colours[label])
        more = len(counts) - len(shown)
        title = f"Cells by label ({len(calls):,})" + (f"; {more} rarer labels not drawn" if more else "")
        left.set_yticks(at, shown)
        left.set(xlim=(0, counts.max() * 1.45), xlabel="cells", title=title)
        left.locator_params(axis="x", nbins=4)
        right.set_yticks(at, [""] * len(shown))
        right.hlines(at + 0.4, 0, 1, color="#e0e0e0", lw=0.6)
        right.set(xlim=(0, 1), xlabel="confidence of the call", title="Confidence, each to its own height")
        for axis in (left, right):
            axis.set_ylim(len(shown) - 0.4, -0.6)
            axis.tick_params(axis="y", length=0)
    return saved(path, formats)
