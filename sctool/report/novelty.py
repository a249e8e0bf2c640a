"""Figures of novelty detection: scores of known and novel cells, ROC and precision-recall, AUROC by the type kept away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sctool.metrics.novelty import precision_recall_curve, roc_curve
from sctool.report.figures import saved
from sctool.report.style import PALETTE, figure

KNOWN, NOVEL = "#8c8c8c", "#b5651d"
_HEAD = ("cell", "type", "held_out", "part", "is_novel", "flagged")
_MOST = 8
"""Methods drawn one by one; further ones are in the tables."""


def novelty_figures(plots: Path, formats: list[str], run: Path, metrics: dict[str, Any]) -> list[Path]:
    """Draw a run of ``sctool novelty``.

    Parameters
    ----------
    plots
        Where to.
    formats
        Endings.
    run
        The result folder, with ``scores.csv`` and, where the truth is known, ``novelty_by_class.csv``.
    metrics
        Its ``metrics.json``.
    """
    scores = pd.read_csv(run / "scores.csv", dtype={"cell": str, "type": str, "held_out": str})
    methods = [column for column in scores.columns if column not in _HEAD]
    table = run / "novelty_by_class.csv"
    by_type = pd.read_csv(table, dtype={"held_out": str}) if table.exists() else None
    made = _histograms(plots / "scores", formats, scores, methods[:_MOST], _thresholds(metrics, by_type))
    if by_type is None:
        return made
    made += _curves(plots / "curves", formats, scores, methods[:_MOST], metrics)
    if by_type["held_out"].nunique() > 1:
        made += _by_type(plots / "auroc-by-type", formats, by_type, methods[:_MOST])
    return made


def _thresholds(metrics: dict[str, Any], by_type: pd.DataFrame | None) -> dict[str, float]:
    given = metrics.get("thresholds") or {name: row.get("threshold") for name, row in metrics.get("methods", {}).items()}
    one = by_type is None or len(by_type[["held_out", "part"]].drop_duplicates()) == 1
    return {name: float(value) for name, value in given.items() if value is not None and one}  # of several trials each has its own


def _histograms(path: Path, formats: list[str], scores: pd.DataFrame, methods: list[str], thresholds: dict[str, float]) -> list[Path]:
    """Known and novel cells by score, each method in a panel."""
    columns = min(3, len(methods))
    rows = -(-len(methods) // columns)
    novel_n = scores["is_novel"].to_numpy(bool) if "is_novel" in scores else None
    with figure(path, formats, 3.4 * columns, 2.5 * rows, columns=columns, rows=rows) as (_, axes):
        for axis in axes.flat[len(methods) :]:
            axis.axis("off")
        for axis, method in zip(axes.flat, methods, strict=False):
            score_n = scores[method].to_numpy(float)
            low, high = np.quantile(score_n, [0.002, 0.998])
            if method in thresholds:
                low, high = min(low, thresholds[method]), max(high, thresholds[method])
            edges = np.linspace(low, high if high > low else low + 1, 41)
            groups = (
                {"cells": (~np.zeros(len(scores), bool), KNOWN)}
                if novel_n is None
                else {"known": (~novel_n, KNOWN), "novel": (novel_n, NOVEL)}
            )
            for name, (own, colour) in groups.items():
                share = np.full(int(own.sum()), 1 / max(own.sum(), 1))
                axis.hist(score_n[own].clip(low, edges[-1]), edges, weights=share, color=colour, alpha=0.6, label=f"{name} ({own.sum():,})")
            if method in thresholds:
                axis.axvline(thresholds[method], color="black", lw=1, ls="--", label="threshold")
            axis.set(title=method, xlabel="score (higher: stranger)", ylabel="share of cells")
        axes.flat[0].legend()
    return saved(path, formats)


def _curves(path: Path, formats: list[str], scores: pd.DataFrame, methods: list[str], metrics: dict[str, Any]) -> list[Path]:
    """ROC and precision-recall, averaged over trials, types counting alike: raw scores of different fits don't share a scale."""
    scores = scores if "held_out" in scores else scores.assign(held_out="", part=0)
    grid = np.linspace(0, 1, 201)
    with figure(path, formats, 9.4, 3.7, columns=2) as (_, axes):
        roc, pr = axes[0]
        for index, method in enumerate(methods):
            parts: dict[str, list[NDArray[np.float64]]] = {}
            for (held_out, _part), trial in scores.groupby(["held_out", "part"], sort=False):
                novel_n, score_n = trial["is_novel"].to_numpy(bool), trial[method].to_numpy(float)
                fpr, tpr = roc_curve(novel_n, score_n)
                recall, precision = precision_recall_curve(novel_n, score_n)
                curve = np.stack([np.interp(grid, fpr, tpr), np.interp(grid, recall, precision)])
                parts.setdefault(str(held_out), []).append(curve)
            mean = np.mean([np.mean(curves, axis=0) for curves in parts.values()], axis=0)
            row = metrics["methods"][method]
            wide = 2.0 if index == 0 else 1.1
            colour = PALETTE[index % len(PALETTE)]
            roc.plot(np.append(0, grid), np.append(0, mean[0]), color=colour, lw=wide, label=f"{method} ({row['auroc']:.3f})")
            pr.plot(grid, mean[1], color=colour, lw=wide, label=f"{method} ({row['aupr']:.3f})")
        roc.plot([0, 1], [0, 1], color=KNOWN, lw=0.8, ls=":")
        pr.axhline(metrics["methods"][methods[0]]["prevalence"], color=KNOWN, lw=0.8, ls=":", label="chance")
        roc.set(xlabel="known cells flagged", ylabel="novel cells flagged", title="ROC (area)", xlim=(0, 1), ylim=(0, 1.01))
        pr.set(
            xlabel="novel cells flagged (recall)",
            ylabel="novel among flagged (precision)",
            title="Precision-recall",
            xlim=(0, 1),
            ylim=(0, 1.01),
        )
        for axis in (roc, pr):
            axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return saved(path, formats)


def _by_type(path: Path, formats: list[str], by_type: pd.DataFrame, methods: list[str]) -> list[Path]:
    """AUROC of each method for each type kept away, hardest type on top."""
    wide = by_type.groupby(["held_out", "method"])["auroc"].mean().unstack()[methods]
    wide = wide.loc[wide[methods[0]].sort_values(ascending=False).index]
    at_k, thick = np.arange(len(wide)), 0.8 / len(methods)
    with figure(path, formats, 6.6, 1.1 + len(wide) * max(0.3, 0.11 * len(methods))) as (_, axes):
        axis = axes[0, 0]
        for index, method in enumerate(methods):
            place_k = at_k + 0.4 - (index + 0.5) * thick
            axis.barh(
                place_k, wide[method], height=thick, color=PALETTE[index % len(PALETTE)], label=f"{method} (mean {wide[method].mean():.3f})"
            )
        axis.axvline(0.5, color="black", lw=0.8, ls=":")
        low = min(0.45, float(wide.min().min()) - 0.03)
        axis.set(yticks=at_k, yticklabels=wide.index, xlim=(max(0.0, low), 1.0), xlabel="AUROC (dotted: chance)", title="Type kept away")
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return saved(path, formats)
