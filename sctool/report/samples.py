"""Figures of samples and donors, from the tables of ``train sampleclr``, ``predict sampleclr`` and ``eval samples``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from sctool.report.classify_curves import PLAIN
from sctool.report.figures import saved
from sctool.report.sample_curves import has_monitors as has_monitors
from sctool.report.sample_curves import monitor_curves as monitor_curves
from sctool.report.sample_curves import retrieval_bars, robustness_curves
from sctool.report.sample_importance import importance_figures
from sctool.report.sample_look import Facts, by_task, counted, facts_of, file_name, inches, p_words, short, table_of
from sctool.report.sample_maps import map_figures
from sctool.report.sample_predictions import prediction_figures
from sctool.report.style import figure

# Scores in the order they are drawn: words, what no skill is worth (None: not the same for all data), whether more is better.
SCORES: dict[str, tuple[str, float | None, bool]] = {
    "auc": ("AUC", 0.5, True),
    "balanced_accuracy": ("balanced accuracy", None, True),
    "kappa": ("quadratic kappa", 0.0, True),
    "quadratic_kappa": ("quadratic kappa", 0.0, True),
    "r2": ("R²", 0.0, True),
    "spearman": ("Spearman's r", 0.0, True),
    "mae": ("mean absolute error", None, False),
    "log_loss": ("log loss", None, False),
    "brier": ("Brier score", None, False),
    "ece": ("calibration error", None, False),
}
_MOST_SCORES = 4


def sample_figures(plots: Path, formats: list[str], run: Path, metrics: dict[str, Any]) -> list[Path]:
    """Everything the tables of one run allow; a table that is not there has no figure.

    Parameters
    ----------
    plots, formats
        Folder and endings of the pictures.
    run
        Folder with any of ``embeddings.csv``, ``importance_by_celltype.csv``, ``importance_tests.csv``, ``comparison.csv``,
        ``predictions.csv``, ``retrieval.csv`` and ``robustness.csv``.
    metrics
        Its ``metrics.json``: ``tasks`` (each with ``column``, ``kind`` and, for ordered levels, ``order``), ``batch_key``, ``study_key``,
        ``importance_stability``.

    Returns
    -------
    Paths of the pictures.
    """
    facts = facts_of(run, metrics)
    with plt.rc_context(PLAIN):
        made = map_figures(plots, formats, run, facts) + importance_figures(plots, formats, run, facts, metrics.get("importance_stability"))
        scored = table_of(run / "comparison.csv")
        if scored is not None:
            parts = by_task(scored)
            for task, part in parts.items():
                made += comparison(plots / file_name("comparison", task, len(parts) == 1), formats, part, task, facts, _classes(run, task))
        made += prediction_figures(plots, formats, run, facts)
        retrieved = table_of(run / "retrieval.csv")
        if retrieved is not None:
            made += retrieval_bars(plots / "retrieval", formats, retrieved, facts, _samples(run, metrics))
        drifts = table_of(run / "robustness.csv")
        if drifts is not None:
            made += robustness_curves(plots / "robustness", formats, drifts, facts, _samples(run, metrics))
    return made


def is_cohort(run: Path) -> bool:
    """Whether the ``embeddings.csv`` of a folder, as that of a trained model, is one of samples."""
    path = run / "embeddings.csv"
    return path.exists() and {"sample", "donor", "n_cells"} <= set(pd.read_csv(path, nrows=0).columns)


def _samples(run: Path, metrics: dict[str, Any]) -> int:
    """How many samples were searched among; 0 where nothing says."""
    table = table_of(run / "embeddings.csv")
    return len(table) if table is not None else int(metrics.get("n_samples") or 0)


def _classes(run: Path, task: str) -> int:
    """Number of true classes of a task; 0 where no prediction says."""
    table = table_of(run / "predictions.csv")
    if table is None or "truth" not in table:
        return 0
    own = table[table["task"] == task] if task and "task" in table else table
    return own.loc[own["truth"] != "", "truth"].nunique()


def comparison(path: Path, formats: list[str], table: pd.DataFrame, task: str, facts: Facts, classes: int) -> list[Path]:
    """Every contestant with its interval over donors, the best on top; baselines grey, no skill dotted; then the paired differences."""
    found = list(dict.fromkeys(table["score"]))
    scores = sorted(found, key=lambda score: list(SCORES).index(score) if score in SCORES else len(SCORES))[:_MOST_SCORES]
    main = table[table["score"] == scores[0]].drop_duplicates("name").set_index("name")
    main = main.sort_values("value", ascending=not SCORES.get(scores[0], ("", None, True))[2], kind="stable")
    names = list(main.index)
    colours, models = facts.colours(names), facts.models(names)
    paired = "difference" in main and bool(main["difference"].notna().any())
    columns = len(scores) + paired
    with figure(
        path, formats, inches([short(name, 30) for name in names]) + 2.5 * columns + 0.6, 1.35 + 0.27 * max(len(names), 3), columns=columns
    ) as (fig, axes):
        for axis, score in zip(axes[0], scores, strict=False):
            words, chance, more = SCORES.get(score, (score.replace("_", " "), None, True))
            chance = 1 / classes if score == "balanced_accuracy" and classes > 1 else chance
            part = table[table["score"] == score].drop_duplicates("name").set_index("name").reindex(names)
            if chance is not None:
                axis.axvline(chance, color="black", lw=1, ls=":", zorder=0.5)
            _rows(axis, part[["value", "low", "high"]].to_numpy(float), names, models, colours)
            axis.set_title(words + ("" if more else "\n(lower is better)"), fontsize=9.5)
        if paired:
            axis = axes[0, -1]
            axis.axvline(0, color="black", lw=1, ls="--", zorder=0.5)
            _rows(axis, main[["difference", "difference_low", "difference_high"]].to_numpy(float), names, models, colours)
            axis.set_title(f"{SCORES.get(scores[0], (scores[0],))[0]} minus\nbest baseline", fontsize=9.5)
        said = _chances(axes[0, -1], main, scores[0])
        for axis in axes[0]:
            axis.set_yticks(range(len(names)), [short(name, 30) for name in names] if axis is axes[0, 0] else [""] * len(names))
            axis.set_ylim(len(names) - 0.4, -0.6)
            axis.tick_params(axis="y", length=0)
            axis.grid(axis="x", color="#e5e5e5", lw=0.6)
            axis.set_axisbelow(True)
            axis.locator_params(axis="x", nbins=5)
        for label in axes[0, 0].get_yticklabels():
            label.set_fontweight("bold" if label.get_text() in [short(name, 30) for name in models] else "normal")
        fig.suptitle(_heading(table, task, facts), x=0.01, ha="left", fontsize=10)
        fig.text(0.01, 0.0, "Lines: 95 % interval over donors. Dotted: no skill." + said, fontsize=7.5, color="#555555", va="bottom")
        fig.get_layout_engine().set(rect=(0, 0.22 / fig.get_figheight(), 1, 1 - 0.22 / fig.get_figheight()))
    return saved(path, formats)


def _chances(axis: Any, main: pd.DataFrame, score: str) -> str:
    """The p values of one score at the right of the last panel, under a heading; what they are."""
    p_values = main["p"].to_numpy(float) if "p" in main else np.full(len(main), np.nan)
    if not np.isfinite(p_values).any():
        return ""
    look: dict[str, Any] = {"transform": axis.get_yaxis_transform(), "fontsize": 7.5}
    axis.text(1.04, -0.75, f"p of {SCORES.get(score, (score,))[0]}", va="bottom", **look)
    for at, p in enumerate(p_values):
        if np.isfinite(p):
            axis.text(1.04, at, p_words(p).removeprefix("p ").removeprefix("= "), va="center", **look)
    return " p: labels shuffled across donors."


def _heading(table: pd.DataFrame, task: str, facts: Facts) -> str:
    """The task, its kind and how many donors a score rests on."""
    kind = facts.goals[task].kind if task in facts.goals else ""
    said = f"{task} ({kind})" if task and kind else task
    if "n_donors" not in table or table["n_donors"].isna().all():
        return said
    low, high = int(table["n_donors"].min()), int(table["n_donors"].max())
    n = counted(low, "donor") if low == high else f"{low:,} to {high:,} donors"
    return f"{said}, {n}" if said else n


def _rows(axis: Any, value_low_high: Any, names: list[str], models: list[str], colours: dict[str, Any]) -> None:
    """A point and its interval for each name, from the top; models stand out."""
    for at, (name, (value, low, high)) in enumerate(zip(names, value_low_high, strict=True)):
        if not np.isfinite(value):
            continue
        strong = name in models
        if np.isfinite(low) and np.isfinite(high):
            axis.plot([low, high], [at, at], color=colours[name], lw=2.4 if strong else 1.4, solid_capstyle="butt")
        axis.plot(value, at, "D" if strong else "o", color=colours[name], ms=6.5 if strong else 5, mec="white", mew=0.5)
