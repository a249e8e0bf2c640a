"""Curves and bars of samples: retrieval of split halves, robustness to fewer cells, and the monitors of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sctool.report.figures import saved
from sctool.report.sample_look import GREY, MARKERS, Facts, counted, inches, short
from sctool.report.style import PALETTE, figure

# Monitors of training: words, and the value at which all samples have become one point.
MONITORS: dict[str, tuple[str, float | None]] = {
    "effective_rank": ("effective rank", 1.0),
    "pairwise_cosine": ("mean cosine of two samples", 1.0),
    "uniformity": ("uniformity (lower: spread out)", 0.0),
    "alignment": ("alignment of two views (0: equal)", None),
    "ess": ("effective number of cells", None),
}
_CURVES = 12
_FEWEST = 5  # samples below which a share is chance


def retrieval_bars(path: Path, formats: list[str], table: pd.DataFrame, facts: Facts, samples: int) -> list[Path]:
    """How often the other half of a sample's cells is the nearest of all, best on top; dotted what guessing finds."""
    table = table.sort_values("top1", ascending=False, kind="stable").reset_index(drop=True)
    colours, at = facts.colours(list(table["name"])), np.arange(len(table))
    chance = float(table["chance"].mean()) if "chance" in table else 1 / samples if samples > 1 else None
    with figure(path, formats, inches([short(name, 30) for name in table["name"]]) + 4.4, 1.25 + 0.29 * max(len(table), 3)) as (_, axes):
        axis = axes[0, 0]
        axis.barh(at, table["top1"], 0.7, color=[colours[name] for name in table["name"]])
        ends = table["top1"].to_numpy(float)
        if {"low", "high"} <= set(table):
            axis.hlines(at, table["low"], table["high"], color="black", lw=1.1)
            ends = np.fmax(ends, table["high"].to_numpy(float))
        for place, (end, value) in enumerate(zip(ends, table["top1"], strict=True)):
            axis.text(end + 0.015, place, f"{value:.2f}", va="center", fontsize=8)
        if chance is not None:
            axis.axvline(chance, color="black", lw=1.2, ls=":", label=f"chance ({chance:.3f})")
            axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        axis.set_yticks(at, [short(name, 30) for name in table["name"]])
        axis.tick_params(axis="y", length=0)
        n = f" ({counted(samples, 'sample')})" if samples else ""
        axis.set(xlim=(0, 1), ylim=(len(table) - 0.4, -0.6), xlabel="share of samples", title=f"Other half of the cells found{n}")
    return saved(path, formats)


def robustness_curves(path: Path, formats: list[str], table: pd.DataFrame, facts: Facts, samples: int) -> list[Path]:
    """Retrieval and drift of the embedding as fewer cells of each sample are read; baselines grey, each with a mark of its own."""
    titles = {"retrieval": "sample found from N of its cells", "drift": "drift from the embedding of all cells", "score": "score"}
    if "samples" in table:
        table = table[table["samples"] >= _FEWEST]
    shown = {column: title for column, title in titles.items() if column in table and table[column].notna().any()}
    if not shown:
        return []
    sizes = sorted(set(table["cells"]), key=lambda size: float(size) if _is_number(size) else np.inf)
    names = sorted(dict.fromkeys(table["name"]), key=lambda name: name not in facts.models([name]))[:_CURVES]
    colours, models = facts.colours(names), facts.models(names)
    labels = [f"{float(size):,.0f}" if _is_number(size) else size for size in sizes]
    labels = [f"{label}\n{said}" if said else label for label, said in zip(labels, _thinned(table, sizes), strict=True)]
    greys = np.linspace(0.35, 0.75, max(len(names) - len(models), 2))
    with figure(path, formats, 3.5 * len(shown) + 0.6 + inches([short(name, 30) for name in names], 8), 3.2, columns=len(shown)) as (
        fig,
        axes,
    ):
        for axis, (column, title) in zip(axes[0], shown.items(), strict=True):
            for index, name in enumerate(names):
                part = table[table["name"] == name].groupby("cells")[column].mean().reindex(sizes)
                strong = name in models
                look: dict[str, Any] = (
                    {"lw": 2.2, "ms": 6, "color": colours[name], "zorder": 3}
                    if strong
                    else {"lw": 1.2, "ms": 4.5, "color": str(greys[index - len(models)])}
                )
                axis.plot(
                    range(len(sizes)),
                    part,
                    marker=MARKERS[index % len(MARKERS)],
                    mec="white",
                    mew=0.4,
                    label=short(name, 30),
                    clip_on=False,
                    **look,
                )
            if column == "retrieval":
                if samples > 1:
                    axis.axhline(1 / samples, color="black", lw=1, ls=":", label=f"chance ({1 / samples:.3f})")
                axis.set_ylim(0, 1)
            elif column == "drift":
                axis.set_ylim(bottom=0)
            axis.set_xticks(range(len(sizes)), labels)
            axis.set_title(title + ("\n(nearest of all to its own vector of all cells)" if column == "retrieval" else ""), fontsize=9.5)
            axis.set_xlabel("N cells read of each sample")
            axis.grid(axis="y", color="#e5e5e5", lw=0.6)
        fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper")
    return saved(path, formats)


def _thinned(table: pd.DataFrame, sizes: list[str]) -> list[str]:
    """Number of samples at the first size and where it is not half to twice the last written; else nothing."""
    if "samples" not in table:
        return [""] * len(sizes)
    n, said = table.groupby("cells")["samples"].max().reindex(sizes), []
    last = float("nan")
    for at, count in enumerate(n):
        changed = at == 0 or not 0.5 <= count / last <= 2
        last = count if changed else last
        said.append(counted(int(count), "sample") if changed else "")
    return said if any(said[1:]) else [""] * len(sizes)


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


def has_monitors(history: pd.DataFrame | None) -> bool:
    """Whether a history of training watches for collapse."""
    return history is not None and any(
        f"{part}{name}" in history for name in MONITORS if name != "ess" for part in ("", "train_", "validation_")
    )


def monitor_curves(path: Path, formats: list[str], history: pd.DataFrame) -> list[Path]:
    """What tells collapse from learning, by epoch: validation solid, training pale; dotted where all samples are one point."""
    found = {
        name: {
            part: history[f"{part}{name}"]
            for part in ("train_", "validation_", "")
            if f"{part}{name}" in history and history[f"{part}{name}"].notna().any()
        }
        for name in MONITORS
    }
    found = {name: lines for name, lines in found.items() if lines}
    both = any("validation_" in lines for lines in found.values())
    at = np.arange(1, len(history) + 1)  # the stages of a run one after the other
    stages = history["stage"].astype(str).to_numpy() if "stage" in history else np.full(len(history), "")
    starts = [0, *(np.flatnonzero(stages[1:] != stages[:-1]) + 1)]
    with figure(path, formats, 2.75 * len(found) + 0.3, 3.0, columns=len(found)) as (fig, axes):
        for axis, (name, lines) in zip(axes[0], found.items(), strict=True):
            title, collapsed = MONITORS[name]
            for part, values in lines.items():
                pale = part == "train_" and both
                label = {"train_": "training", "validation_": "validation", "": "training"}[part]
                axis.plot(at, values, color=PALETTE[0], alpha=0.4 if pale else 1, lw=1 if pale else 1.5, label=label)
            if collapsed is not None:
                axis.axhline(collapsed, color="black", lw=1.2, ls=":", label="collapse")
            if name in ("alignment", "ess"):
                axis.set_ylim(bottom=0)
            for start in starts[1:]:
                axis.axvline(start + 0.5, color=GREY, lw=0.8, ls="--")
            if len(starts) > 1:
                for start, end in zip(starts, [*starts[1:], len(history)], strict=True):
                    axis.text(
                        (start + end + 1) / 2,
                        1.0,
                        stages[start],
                        transform=axis.get_xaxis_transform(),
                        fontsize=7,
                        color="#555555",
                        ha="center",
                        va="bottom",
                    )
            axis.set(xlabel="epoch")
            axis.set_title(title, fontsize=9, pad=14 if len(starts) > 1 else 6)
        handles = {label: handle for axis in axes[0] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
        fig.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=3)
    return saved(path, formats)
