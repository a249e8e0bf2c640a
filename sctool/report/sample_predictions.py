"""What was answered for samples no fold had trained on: by class, by sample, and how far the probabilities can be believed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sctool.report.figures import saved
from sctool.report.sample_calibration import calibration
from sctool.report.sample_look import GREY, RIGHT, Facts, Goal, by_task, counted, file_name, inches, short, table_of
from sctool.report.sample_rows import answers, by_sample, has_probabilities
from sctool.report.style import figure

_MODELS = 3
_SAID = {"class": ("balanced_accuracy",), "ordinal": ("kappa", "quadratic_kappa"), "regression": ("r2",)}
_FIRST = {"class": ("auc", "balanced_accuracy"), "ordinal": ("kappa", "quadratic_kappa", "spearman"), "regression": ("r2", "spearman")}
_SHORT = {"balanced_accuracy": "balanced accuracy", "kappa": "kappa", "quadratic_kappa": "kappa", "r2": "R²"}


def prediction_figures(plots: Path, formats: list[str], run: Path, facts: Facts) -> list[Path]:
    """Of each task: the answers of the models and of the best baseline."""
    table, made = table_of(run / "predictions.csv"), []
    if table is None or not {"sample", "prediction"} <= set(table):
        return []
    if "truth" not in table:
        return answers(plots, formats, table)
    table = table[(table["truth"] != "") & (table["prediction"] != "")]
    for column, value in (("name", "model"), ("repeat", "0")):
        table[column] = table.get(column, value)
    table["donor"] = table["donor"] if "donor" in table else table["sample"]
    scored = table_of(run / "comparison.csv")
    parts = by_task(table)
    for task, part in parts.items():
        own = scored[scored["task"] == task] if scored is not None and "task" in scored else scored
        goal = _goal(facts.goals.get(task, Goal(task)), part)
        part = _coded(part, goal)
        if not len(part):
            continue
        shown = _shown(list(dict.fromkeys(part["name"])), own, goal.kind, facts)
        said = {name: _said(name, part[part["name"] == name], own, goal.kind) for name in shown}
        ending = (task, len(parts) == 1)
        if goal.kind == "regression":
            made += scatter(plots / file_name("predictions", *ending), formats, part, shown, said, goal)
        else:
            made += confusions(plots / file_name("predictions", *ending), formats, part, shown, said, goal)
        made += by_sample(plots / file_name("by-sample", *ending), formats, part[part["name"] == shown[0]], shown[0], goal)
        if goal.kind == "class" and has_probabilities(part, goal):
            made += calibration(plots / file_name("calibration", *ending), formats, part, shown, goal)
    return made


def _goal(goal: Goal, part: pd.DataFrame) -> Goal:
    """The task with its kind and the order of its classes, from the answers where nothing else says."""
    kind = goal.kind
    if not kind:
        given = [c for c in part if str(c).startswith("p_") and part[c].notna().any()]
        numbers = pd.to_numeric(part["truth"], errors="coerce")
        kind = "regression" if not given and numbers.notna().all() and numbers.nunique() > 2 else "class"
    order = goal.order
    if not order and kind != "regression":
        seen = sorted(set(part["truth"]) | set(part["prediction"]))
        numbers = pd.to_numeric(pd.Series(seen), errors="coerce")
        if kind == "ordinal" and numbers.notna().all():
            order = tuple(f"{level:g}" for level in range(int(numbers.min()), int(np.ceil(numbers.max())) + 1))
        else:
            order = tuple(seen)
    return Goal(goal.column, kind, order)


def _coded(part: pd.DataFrame, goal: Goal) -> pd.DataFrame:
    """With ``true`` and ``called``: numbers, or places of the classes in ``goal.order``. Levels may be written by name or by place."""
    if goal.kind == "regression":
        return part.assign(true=pd.to_numeric(part["truth"]), called=pd.to_numeric(part["prediction"]))
    place = {name: float(at) for at, name in enumerate(goal.order)}
    plain = {new: part[old].map(place) for new, old in (("true", "truth"), ("called", "prediction"))}
    if goal.kind == "ordinal" and plain["true"].isna().any():
        numbers = {new: pd.to_numeric(part[old], errors="coerce") for new, old in (("true", "truth"), ("called", "prediction"))}
        level = pd.to_numeric(pd.Series(goal.order), errors="coerce").to_numpy(float)
        if not numbers["true"].dropna().isin(level).all():  # places, not names that are numbers
            level = np.arange(len(goal.order), dtype=float)
        plain = {new: _nearest(value, level) for new, value in numbers.items()}
    coded = part.assign(**plain).dropna(subset=["true", "called"])
    return coded.astype({"true": int, "called": int})


def _nearest(value: pd.Series[Any], level: NDArray[Any]) -> pd.Series[Any]:
    """Place of the level nearest to each number; missing stays missing."""
    place = np.abs(value.to_numpy(float)[:, None] - level).argmin(1).astype(float)
    return pd.Series(np.where(value.notna(), place, np.nan), index=value.index)


def _shown(names: list[str], scored: pd.DataFrame | None, kind: str, facts: Facts) -> list[str]:
    """Models, the best first, then the best baseline."""
    values: dict[str, float] = {}
    if scored is not None:
        main = next((score for score in _FIRST[kind] if score in set(scored["score"])), "")
        values = dict(zip(*(scored.loc[scored["score"] == main, column] for column in ("name", "value")), strict=True))
    ranked = sorted(names, key=lambda name: -values.get(name, -np.inf))
    models = facts.models(ranked)
    return models[:_MODELS] + [name for name in ranked if name not in models][:1]


def _said(name: str, part: pd.DataFrame, scored: pd.DataFrame | None, kind: str) -> str:
    """The title of a panel: name, score with its interval over donors, donors."""
    n = counted(part["donor"].nunique(), "donor")
    if scored is not None:
        row = scored[scored["score"].isin(_SAID[kind]) & (scored["name"] == name)]
        if len(row):
            value, low, high = (float(row[column].iloc[0]) for column in ("value", "low", "high"))
            said = f"{_SHORT[row['score'].iloc[0]]} {value:.2f}" + (f" ({low:.2f} to {high:.2f})" if np.isfinite(low) else "")
            return f"{short(name, 30)}\n{said}\n{n}"
    return f"{short(name, 30)}\n{n}"


def confusions(path: Path, formats: list[str], part: pd.DataFrame, shown: list[str], said: dict[str, str], goal: Goal) -> list[Path]:
    """Samples of each true class (row) by what they were called (column), mean over the repeats; shades are shares of the row."""
    k, cmap = len(goal.order), plt.get_cmap("Blues")
    names = [short(name, 30) for name in goal.order]
    side = float(np.clip(0.62 * k, 1.9, 9.0))
    size = 8 if k <= 10 else 6
    wide = max(side, inches([line for text in said.values() for line in text.split("\n")], 9) * 0.86) + 0.25
    lines = max(text.count("\n") for text in said.values()) + 1
    with figure(
        path,
        formats,
        inches(names) + wide * len(shown) + 1.3,
        side + inches(names) * 0.7 + 0.16 * lines + 1.0,
        columns=len(shown),
    ) as (fig, axes):
        for axis, name in zip(axes[0], shown, strict=True):
            own = part[part["name"] == name]
            counts = np.zeros((k, k))
            np.add.at(counts, (own["true"], own["called"]), 1 / own["repeat"].nunique())
            total = counts.sum(1, keepdims=True)
            share = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
            image = axis.imshow(share, vmin=0, vmax=1, cmap=cmap, interpolation="nearest")
            for (row, column), value in np.ndenumerate(counts) if k <= 20 else ():
                if value > 0:
                    text = f"{value:.0f}" if abs(value - round(value)) < 0.05 else f"{value:.1f}"
                    text = f"{text}\n{share[row, column]:.0%}"
                    axis.text(
                        column, row, text, ha="center", va="center", fontsize=size, color="white" if share[row, column] > 0.6 else "black"
                    )
            axis.set_xticks(range(k), names, rotation=40, ha="right", rotation_mode="anchor")
            axis.set_yticks(
                range(k), [f"{label} ({n:.0f})" for label, n in zip(names, total[:, 0], strict=True)] if axis is axes[0, 0] else [""] * k
            )
            axis.tick_params(length=0)
            axis.spines[:].set_visible(False)
            axis.set_anchor("W")  # a title is wider than few classes, and runs to the right
            axis.set_title(said[name], fontsize=9)
            axis.set_xlabel("called (out of fold)")
        axes[0, 0].set_ylabel(f"true {short(goal.column or 'class', 24)} (samples)")
        fig.colorbar(image, ax=list(axes[0]), label="share of the true class", shrink=0.8, aspect=16)
    return saved(path, formats)


def scatter(path: Path, formats: list[str], part: pd.DataFrame, shown: list[str], said: dict[str, str], goal: Goal) -> list[Path]:
    """Predicted against true values; a dot for each sample's mean over the repeats, a line for their range. Grey: predicted right."""
    drawn = part[part["name"].isin(shown)]
    low, high = (float(f(drawn[["true", "called"]].to_numpy())) for f in (np.min, np.max))
    room = 0.04 * max(high - low, 1e-9)
    repeats = drawn["repeat"].nunique()
    with figure(path, formats, 3.2 * len(shown) + 0.3, 4.1, columns=len(shown)) as (_, axes):
        for axis, name in zip(axes[0], shown, strict=True):
            own = (
                part[part["name"] == name]
                .groupby("sample")
                .agg(true=("true", "first"), mean=("called", "mean"), low=("called", "min"), high=("called", "max"))
            )
            axis.axline((low, low), slope=1, color=GREY, lw=0.9, ls="--", zorder=1)
            if repeats > 1:
                axis.vlines(own["true"], own["low"], own["high"], color=RIGHT, lw=0.9, alpha=0.35, zorder=1.5)
            axis.scatter(own["true"], own["mean"], s=22, color=RIGHT, alpha=0.85, edgecolors="white", linewidths=0.5, zorder=2)
            axis.set(xlim=(low - room, high + room), ylim=(low - room, high + room), box_aspect=1)
            axis.set_title(said[name], fontsize=9)
            axis.set_xlabel(f"true {short(goal.column, 24)}")
        ranged = f"\nlines: range over {repeats} repeats" if repeats > 1 else ""
        axes[0, 0].set_ylabel(f"predicted {short(goal.column, 24)} (out of fold){ranged}")
    return saved(path, formats)
