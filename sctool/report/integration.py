"""Figures of integrated cells, from the tables of ``eval integration``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from sctool.artifacts.atomic import atomic_file
from sctool.report.figures import saved
from sctool.report.style import ARM_COLOURS, PALETTE, figure
from sctool.report.umap import umap_xy

GROUPS = {
    "Batch mixing": ("Blues", {"ilisi": "iLISI", "kbet": "kBET", "graph_connectivity": "graph\nconn.", "bras": "BRAS"}),
    "Biology kept": (
        "Greens",
        {"nmi": "NMI", "ari": "ARI", "label_asw": "label\nASW", "clisi": "cLISI", "isolated_labels": "isolated\nlabels"},
    ),
    "Outside the means": ("Greys", {"pcr_comparison": "PCR", "batch_asw": "batch\nASW"}),
}
MEANS = {"batch": ("batch", "#6baed6"), "bio": ("bio", "#74c476"), "total": ("total", "#fdae6b")}
_LISTED, _ROWS = 36, 18
_AT_RISK = ("lost", "merged")
_RING: dict[str, Any] = {"mfc": "none", "mec": "#d62728", "ms": 8.5, "mew": 1.2}


def integration_figures(
    plots: Path, formats: list[str], run: Path, metrics: dict[str, Any], say: Callable[[str], None] = lambda text: None
) -> list[Path]:
    """Everything the tables of one evaluation allow."""
    scores = pd.read_csv(run / "scores.csv")
    made = score_table(plots / "scores", formats, scores)
    if (run / "per_type.csv").exists():
        made += type_dots(plots / "per-type", formats, pd.read_csv(run / "per_type.csv", dtype={"label": str, "finding": str}))
    return made + maps(plots / "umap", formats, _coordinates(run, metrics["embeddings"], say), scores, metrics)


def _coordinates(run: Path, embeddings: dict[str, str], say: Callable[[str], None]) -> pd.DataFrame:
    """A row for each embedding and cell with its UMAP; computed once and kept as ``umap.csv``."""
    kept, words = run / "umap.csv", {"cell": str, "batch": str, "label": str, "name": str}
    if kept.exists():
        return pd.read_csv(kept, dtype=words, keep_default_na=False)
    cells, parts = pd.read_csv(run / "cells.csv", dtype=words, keep_default_na=False), []
    for name, file in embeddings.items():
        say(f"computing a UMAP of {name}; it is kept in umap.csv")
        xy = umap_xy(np.load(run / file))
        parts.append(cells.assign(name=name, umap_1=xy[:, 0], umap_2=xy[:, 1]))
    with atomic_file(kept) as partial:
        pd.concat(parts).to_csv(partial, index=False)
    return pd.concat(parts, ignore_index=True)


def maps(path: Path, formats: list[str], cells: pd.DataFrame, scores: pd.DataFrame, metrics: dict[str, Any]) -> list[Path]:
    """A row for each embedding, the cells without integration first: by batch, and by type."""
    *others, before = dict.fromkeys(cells["name"])
    names = [before, *others]
    columns = {column: metrics[f"{column}_key"] for column in ("batch", "label") if column in cells}
    totals = scores.drop_duplicates("name").set_index("name")
    rng = np.random.default_rng(0)
    legends = sum((0.3 + 0.075 * cells[c].str.len().max()) * (1 + (cells[c].nunique() > _ROWS)) for c in columns)
    with figure(path, formats, 3.5 * len(columns) + legends, 3.1 * len(names) + 0.3, columns=len(columns), rows=len(names)) as (_, axes):
        for axis, (column, key) in zip(axes[0], columns.items(), strict=True):
            axis.set_title(key)
            colours = {value: PALETTE[at % len(PALETTE)] for at, value in enumerate(cells[column].value_counts().index)}
            dots = [Line2D([], [], marker="o", ls="", ms=5, mew=0, color=c, label=v) for v, c in list(colours.items())[:_LISTED]]
            axis.legend(handles=dots, loc="upper left", bbox_to_anchor=(1.0, 1.0), handletextpad=0.1, ncols=1 + (len(dots) > _ROWS))
            for row, name in zip(axes, names, strict=True):
                # In random order: drawn batch by batch, the last would cover the others.
                part = cells[cells["name"] == name].sample(frac=1, random_state=rng)
                at = row[list(columns).index(column)]
                size = float(np.clip(12_000 / len(part), 0.8, 9))
                at.scatter(part["umap_1"], part["umap_2"], s=size, c=[colours[v] for v in part[column]], lw=0, rasterized=True)
                at.set(xticks=[], yticks=[])
        for axis, name in zip(axes[:, 0], names, strict=True):
            total = f"\ntotal {totals.loc[name, 'total']:.3f}" if "total" in totals else ""
            axis.set_ylabel(name + total)
    return saved(path, formats)


def score_table(path: Path, formats: list[str], scores: pd.DataFrame) -> list[Path]:
    """Methods by scores, the best first: coloured cells, and the means as bars. Colours run from 0 to 1 in every column."""
    order = next(column for column in ("total", "ilisi") if column in scores)
    scores = scores.sort_values(order, ascending=False, kind="stable").reset_index(drop=True)
    groups = {title: (cmap, {c: t for c, t in names.items() if c in scores}) for title, (cmap, names) in GROUPS.items()}
    groups = {title: found for title, found in groups.items() if found[1]}
    means = {column: look for column, look in MEANS.items() if column in scores}
    width = sum(len(names) for _, names in groups.values()) + 0.3 * len(groups) + 1.6 * len(means)
    with figure(path, formats, 2.2 + 0.62 * width, 1.1 + 0.36 * len(scores)) as (_, axes):
        axis, x = axes[0, 0], 0.0
        for column, (title, colour) in means.items():
            axis.barh(scores.index, 1.3 * scores[column].clip(lower=0), 0.72, left=x, color=colour)
            axis.plot([x, x], [-0.5, len(scores) - 0.5], color="#999999", lw=0.6)
            for at, value in enumerate(scores[column]):
                axis.text(x + 0.06, at, f"{value:.3f}", va="center", fontsize=8, fontweight="bold")
            axis.text(x, -0.75, title, ha="left", va="bottom", fontweight="bold")
            x += 1.6
        for group, (cmap, names) in groups.items():
            axis.text(x, -1.6, group, ha="left", va="bottom", fontsize=8, color="#555555")
            for column, title in names.items():
                for at, value in enumerate(scores[column]):
                    colour = plt.get_cmap(cmap)(0.05 + (0.45 if cmap == "Greys" else 0.8) * float(np.clip(value, 0, 1)))
                    axis.add_patch(plt.Rectangle((x, at - 0.46), 0.96, 0.92, color=colour, lw=0))
                    dark = np.dot(colour[:3], (0.3, 0.59, 0.11)) < 0.5
                    axis.text(x + 0.48, at, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if dark else "black")
                axis.text(x + 0.48, -0.65, title, ha="center", va="bottom", fontsize=8)
                x += 1.0
            x += 0.3
        axis.set(xlim=(-0.05, x), ylim=(len(scores) - 0.4, -2.1), xticks=[])
        axis.set_yticks(scores.index, scores["name"])
        for label, arm in zip(axis.get_yticklabels(), scores["arm"], strict=True):
            label.set_fontstyle("italic" if arm == "baseline" else "normal")
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    return saved(path, formats)


def type_dots(path: Path, formats: list[str], per_type: pd.DataFrame) -> list[Path]:
    """Of each type, the most frequent on top: how pure its neighbourhoods are, and how mixed its batches."""
    titles = {"knn_purity": "kNN purity", "recall": "recall of a 15-NN vote", "kbet": "kBET (batch mixing)"}
    labels = per_type.drop_duplicates("label").sort_values("cells", kind="stable")[["label", "cells"]]
    names = list(dict.fromkeys(per_type["name"]))
    before = names.pop()  # the cells without integration come last
    with figure(path, formats, 3.1 * len(titles) + 3.0, 1.3 + 0.27 * len(labels), columns=len(titles)) as (fig, axes):
        at = np.arange(len(labels))
        for axis, (column, title) in zip(axes[0], titles.items(), strict=True):
            wide = per_type.pivot_table(index="label", columns="name", values=column, sort=False).reindex(labels["label"])
            if before in wide:
                axis.vlines(wide[before], at - 0.36, at + 0.36, color=ARM_COLOURS["standard"], lw=1.6, label=before)
            for index, name in enumerate(names):
                if name not in wide:
                    continue
                shift = (index - (len(names) - 1) / 2) * min(0.16, 0.6 / len(names))
                axis.plot(wide[name], at + shift, "o", color=PALETTE[index % len(PALETTE)], ms=5, mec="white", mew=0.4, label=name)
                own = per_type[(per_type["name"] == name) & per_type["finding"].isin(_AT_RISK)].set_index("label")
                hit = labels["label"].isin(own.index).to_numpy()
                if column == "knn_purity" and hit.any():
                    axis.plot(wide[name][hit], (at + shift)[hit], "o", **_RING)
            ticks = [f"{label} ({cells:,})" for label, cells in labels.itertuples(index=False)]
            axis.set_yticks(at, ticks if axis is axes[0, 0] else [""] * len(ticks))
            axis.set(title=title, xlim=(-0.03, 1.03), ylim=(-0.6, len(labels) - 0.4))
            axis.grid(axis="x", color="#e5e5e5", lw=0.6)
            axis.set_axisbelow(True)
        handles, texts = axes[0, 0].get_legend_handles_labels()
        if per_type["finding"].isin(_AT_RISK).any():
            handles.append(Line2D([], [], marker="o", ls="", **_RING))
            texts.append("lost or merged")
        fig.legend(handles, texts, loc="outside right upper")
    return saved(path, formats)
