"""Predictions sample by sample, each with its name: beside the truth where it is known, else as an answer to be judged by its warnings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from sctool.report.figures import saved
from sctool.report.sample_look import GREY, RIGHT, WRONG, Goal, by_task, counted, file_name, inches, looks_of, short
from sctool.report.style import figure

_LISTED = 60


def has_probabilities(part: pd.DataFrame, goal: Goal) -> bool:
    """Whether some rows give a probability of every class."""
    return all(f"p_{name}" in part and part[f"p_{name}"].notna().any() for name in goal.order)


def by_sample(path: Path, formats: list[str], own: pd.DataFrame, name: str, goal: Goal) -> list[Path]:
    """Each sample by name: probability of its true class, or true and predicted value; its range over the repeats."""
    classes = goal.kind == "class"
    given = classes and has_probabilities(own, goal)
    if given:
        p_nc = own[[f"p_{label}" for label in goal.order]].to_numpy(float)
        value = p_nc[np.arange(len(own)), own["true"]]
    else:
        value = (own["true"] == own["called"]).to_numpy(float) if classes else own["called"].to_numpy(float)
        if goal.kind == "ordinal" and "expected" in own:
            value = own["expected"].fillna(own["called"]).to_numpy(float)
    right = (own["true"] == own["called"]).to_numpy(float)
    each = (
        own.assign(value=value, right=right)
        .groupby("sample")
        .agg(
            donor=("donor", "first"),
            true=("true", "first"),
            mean=("value", "mean"),
            low=("value", "min"),
            high=("value", "max"),
            right=("right", "mean"),
        )
    )
    each["off"] = -each["mean"] if classes else (each["mean"] - each["true"]).abs()
    more = ""
    if len(each) > _LISTED:
        more = f"; the {_LISTED} worst of {len(each):,}"
        each = each.sort_values("off", kind="stable").iloc[-_LISTED:]
    each = each.sort_values(["true", "off"], kind="stable")
    names = [short(str(sample), 44) for sample in each.index]
    at = np.arange(len(each))
    good = (each["right"] >= 0.5).to_numpy() if goal.kind != "regression" else np.ones(len(each), bool)
    with figure(path, formats, inches(names, 7) + 4.9, 1.75 + 0.165 * max(len(each), 4)) as (fig, axes):
        axis = axes[0, 0]
        axis.hlines(at, each["low"], each["high"], color="#b5b5b5", lw=1.6, zorder=1)
        handles = []
        if not classes:
            axis.scatter(each["true"], at, s=75, marker="|", color="black", linewidths=1.4, zorder=4)
            handles.append(Line2D([], [], marker="|", ls="", color="black", mew=1.6, label="true"))
        for yes, colour, marker, words in ((True, RIGHT, "o", "called right"), (False, WRONG, "X", "called wrong")):
            if (good == yes).any():
                axis.scatter(
                    each["mean"][good == yes],
                    at[good == yes],
                    s=24,
                    color=colour,
                    marker=marker,
                    edgecolors="white",
                    linewidths=0.4,
                    zorder=3,
                )
                text = "predicted" if goal.kind == "regression" else f"{words} in most repeats" if own["repeat"].nunique() > 1 else words
                handles.append(Line2D([], [], marker=marker, ls="", color=colour, label=text))
        if own["repeat"].nunique() > 1:
            handles.append(Line2D([], [], color="#b5b5b5", lw=1.6, label="range over repeats"))
        if goal.kind != "regression":
            _brackets(axis, each["true"].to_numpy(), goal)
        if goal.kind == "ordinal":
            axis.set_xticks(range(len(goal.order)), [short(level, 14) for level in goal.order])
            axis.set_xlim(-0.25, len(goal.order) - 0.75)
        elif classes:
            axis.set_xlim(-0.02, 1.02)
        # No line at 0.5: a class is called at equal shares of the classes, so where right turns to wrong differs between contestants.
        words = "probability of the true class" if given else "share of repeats called right" if classes else f"{short(goal.column, 30)}"
        axis.set_yticks(at, names, fontsize=7)
        axis.set_ylim(len(each) - 0.3, -0.7)
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="x", color="#ececec", lw=0.6)
        axis.set_axisbelow(True)
        axis.set_xlabel(words + " (out of fold)")
        n = f"{counted(own['sample'].nunique(), 'sample')}, {counted(own['donor'].nunique(), 'donor')}"
        fig.suptitle(f"{short(f'{goal.column}: {name}' if goal.column else name, 50)}\n{n}{more}", x=0.01, ha="left", fontsize=10)
        fig.legend(handles=handles, loc="outside lower right", ncols=len(handles), columnspacing=1.2, handletextpad=0.3)
    return saved(path, formats)


def _brackets(axis: Any, true: NDArray[Any], goal: Goal) -> None:
    """The true class beside its samples, and a line between classes."""
    for code in dict.fromkeys(true):
        place = np.flatnonzero(true == code)
        if place[0]:
            axis.axhline(place[0] - 0.5, color="black", lw=0.7)
        tall = 0.165 * len(place)
        label = short(goal.order[int(code)], max(4, int(tall / 0.075)))
        axis.text(1.02, place.mean(), label, transform=axis.get_yaxis_transform(), rotation=270, ha="left", va="center", fontsize=8)


def answers(plots: Path, formats: list[str], table: pd.DataFrame) -> list[Path]:
    """Of each task what new samples were said to be."""
    made, parts = [], by_task(table)
    for task, part in parts.items():
        made += answer_rows(plots / file_name("answers", task, len(parts) == 1), formats, part.reset_index(drop=True), task)
    return made


def answer_rows(path: Path, formats: list[str], part: pd.DataFrame, task: str) -> list[Path]:
    """Probabilities of the classes as bars, or a number with the spread of its draws; those with a warning pale or hollow."""
    classes = [str(c) for c in part if str(c).startswith("p_") and part[c].notna().any()]
    value = part[classes].max(axis=1) if classes else pd.to_numeric(part["prediction"], errors="coerce")
    part = part.assign(value=value).dropna(subset=["value"])
    if not len(part):
        return []
    warned = {"far": "far from all training samples", "few": "too few cells"}
    far = part["far"].astype(bool).to_numpy() if "far" in part else np.zeros(len(part), bool)
    few = ~part["enough_cells"].astype(bool).to_numpy() if "enough_cells" in part else np.zeros(len(part), bool)
    part = part.assign(
        doubt=far | few,
        note=[", ".join(word for word, yes in zip(warned, both, strict=True) if yes) for both in zip(far, few, strict=True)],
    )
    part = part.sort_values(["prediction", "value"] if classes else ["value"], ascending=not classes, kind="stable")
    total, part = len(part), part.iloc[:_LISTED]
    names = [short(str(name), 44) + (f" ({note})" if note else "") for name, note in zip(part["sample"], part["note"], strict=True)]
    at, doubt = np.arange(len(part)), part["doubt"].to_numpy(bool)
    looks = looks_of([name.removeprefix("p_") for name in classes])
    beside = inches([short(name, 30) for name in looks], 8) + 0.5
    with figure(path, formats, inches(names, 7) + 3.6 + max(beside, 1.2), 1.4 + 0.165 * max(len(part), 4)) as (fig, axes):
        axis, left = axes[0, 0], np.zeros(len(part))
        for name, (colour, _) in zip(classes, looks.values(), strict=True):
            share = part[name].fillna(0).to_numpy(float)
            for yes in (False, True):
                own = doubt == yes
                axis.barh(at[own], share[own], 0.78, left=left[own], color=colour, alpha=0.35 if yes else 1, lw=0)
            left += share
        if not classes:
            spread = part["sd"].fillna(0).to_numpy(float) if "sd" in part else np.zeros(len(part))
            axis.hlines(at, part["value"] - spread, part["value"] + spread, color="#b5b5b5", lw=1.6, zorder=1)
            axis.scatter(part["value"][~doubt], at[~doubt], s=24, color=RIGHT, zorder=2)
            axis.scatter(part["value"][doubt], at[doubt], s=24, facecolors="white", edgecolors=RIGHT, zorder=2)
            axis.grid(axis="x", color="#ececec", lw=0.6)
            axis.set_axisbelow(True)
        else:
            axis.set_xlim(0, 1)
            handles = [Line2D([], [], marker="s", ls="", color=colour, ms=7, label=short(name, 30)) for name, (colour, _) in looks.items()]
            if doubt.any():
                handles.append(Line2D([], [], marker="s", ls="", color=GREY, alpha=0.35, ms=7, label="far, or too few cells"))
            axis.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0), handletextpad=0.2)
        axis.set_yticks(at, names, fontsize=7)
        axis.set_ylim(len(part) - 0.3, -0.7)
        axis.tick_params(axis="y", length=0)
        axis.set_xlabel(
            "probability" if classes else short(task or "prediction", 30) + (" (lines: sd over draws of cells)" if "sd" in part else "")
        )
        n = counted(total, "sample") + (f", the first {_LISTED}" if total > _LISTED else "")
        fig.suptitle(f"{short(task, 40)}: {n}" if task else n, x=0.01, ha="left", fontsize=10)
        notes = [f"{word}: {said}" for word, said in warned.items() if part["note"].str.contains(word).any()]
        if notes:
            fig.supxlabel("; ".join(notes), fontsize=7.5, color="#555555", x=0.01, ha="left")
    return saved(path, formats)
