"""What the figures of samples share: which task is of which kind, and the same colour, shape and words for the same thing everywhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from numpy.typing import NDArray

from sctool.report.classify_curves import read_table
from sctool.report.style import ARM_COLOURS, PALETTE

# Of the palette, in an order in which neighbours stay apart for a colour-blind eye; each class has a shape of its own besides.
DISTINCT = [PALETTE[at] for at in (0, 1, 9, 6, 5, 4, 8)]
MARKERS = "os^DvPXp<>*h"
OWN = (ARM_COLOURS["balanced"], ARM_COLOURS["ar"], *DISTINCT[2:])
GREY, PALE = "#8c8c8c", ARM_COLOURS["baseline"]
RIGHT, WRONG = DISTINCT[0], DISTINCT[1]
WORDS = ("sample", "donor", "task", "name", "arm", "truth", "prediction", "cell_type", "score", "repeat", "fold", "cells", "baseline")


@dataclass(frozen=True)
class Goal:
    """One task: what is predicted of a sample."""

    column: str
    kind: str = ""  # "class", "regression", "ordinal"; empty where metrics.json does not say
    order: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """What is known of a run besides its tables."""

    goals: dict[str, Goal] = field(default_factory=dict)
    technical: tuple[str, ...] = ()
    arms: dict[str, str] = field(default_factory=dict)

    def models(self, names: Iterable[str]) -> list[str]:
        """Those of some names that are no baselines."""
        return [name for name in names if self.arms.get(name, "") != "baseline"]

    def colours(self, names: Sequence[str]) -> dict[str, Any]:
        """A colour of its own for each model, in the order of ``arms``; baselines grey."""
        models = self.models(self.arms) + [name for name in names if name not in self.arms]
        return {name: OWN[models.index(name) % len(OWN)] if name in models else GREY for name in names}


def facts_of(run: Path, metrics: dict[str, Any]) -> Facts:
    """Tasks, technical columns and arms, from ``metrics.json`` and the tables of scores."""
    goals = {goal.column: goal for goal in map(_goal, metrics.get("tasks") or [])}
    technical = [str(metrics[key]) for key in ("batch_key", "study_key") if metrics.get(key)]
    arms: dict[str, str] = {}
    for file in ("scores.csv", "comparison.csv"):
        table = table_of(run / file)
        if table is not None and {"name", "arm"} <= set(table):
            arms = dict(zip(table["name"], table["arm"], strict=True)) | arms
    return Facts(goals, tuple(dict.fromkeys(technical)), arms)


def _goal(said: Any) -> Goal:
    if isinstance(said, dict):
        return Goal(str(said["column"]), str(said.get("kind", "")), tuple(map(str, said.get("order") or ())))
    column, _, kind = str(said).rpartition(":")
    return Goal(column, kind) if column else Goal(kind)


def table_of(path: Path) -> pd.DataFrame | None:
    """A table whose names are text; None where there is none, or no row in it."""
    table = read_table(path, *WORDS) if path.exists() else None
    return table if table is not None and len(table) else None


def by_task(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each task; all under the empty name where the table knows none."""
    if "task" not in table:
        return {"": table}
    return {str(task): part for task, part in table.groupby("task", sort=False)}


def file_name(stem: str, task: str, alone: bool) -> str:
    """``stem``, with the task behind it where there are several."""
    return stem if alone or not task else f"{stem}-{re.sub(r'[^0-9A-Za-z._-]+', '-', task).strip('-.') or 'task'}"


def looks_of(values: Sequence[str], ordered: bool = False) -> dict[str, tuple[Any, str]]:
    """Colour and shape of each class; ordered ones run from dark to light."""
    if ordered:
        steps = [0.88 * at / max(len(values) - 1, 1) for at in range(len(values))]
        return {
            value: (plt.get_cmap("viridis")(step), MARKERS[at % len(MARKERS)])
            for at, (value, step) in enumerate(zip(values, steps, strict=True))
        }
    return {value: (DISTINCT[at % len(DISTINCT)], MARKERS[(at + at // len(DISTINCT)) % len(MARKERS)]) for at, value in enumerate(values)}


def short(name: str, most: int = 34) -> str:
    """A name with its middle left out where it is long: beginnings are shared by many samples, so the end is kept too."""
    name = str(name)
    return name if len(name) <= most else f"{name[: most - most // 2 - 1]}…{name[-(most // 2) :]}"


def counted(n: int, word: str) -> str:
    """A number with its noun."""
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def natural(name: str) -> tuple[Any, ...]:
    """A key that puts pool2 before pool10."""
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part)


def p_words(p: float, letter: str = "p") -> str:
    """A p value as a paper writes it."""
    return f"{letter} < 0.001" if p < 0.001 else f"{letter} = {p:.3f}" if p < 0.0995 else f"{letter} = {p:.2f}"


def inches(names: Iterable[str], size: float = 9.0) -> float:
    """About how wide the longest of some names is drawn."""
    return 0.0082 * size * max((len(name) for name in names), default=0)


def clustered(rows_by_columns: NDArray[Any]) -> list[int]:
    """Order of the rows by average-linkage clustering, like next to like."""
    from scipy.cluster.hierarchy import leaves_list, linkage

    if len(rows_by_columns) < 3:
        return list(range(len(rows_by_columns)))
    return [int(at) for at in leaves_list(linkage(rows_by_columns, "average", optimal_ordering=len(rows_by_columns) <= 300))]
