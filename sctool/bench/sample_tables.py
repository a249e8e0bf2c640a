"""What evaluations of several tasks give together: tables, figures and lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from sctool.bench.evaluation import Evaluation
from sctool.data.cohort import Task

SHOWN = {
    "class": ("auc", "balanced_accuracy", "log_loss"),
    "regression": ("r2", "spearman", "mae"),
    "ordinal": ("quadratic_kappa", "spearman", "mae"),
}
"""Scores shown of a kind of task."""


def combined(evaluations: Sequence[Evaluation], **more: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Tables of all tasks below each other, and others; without those that are empty. Folds are the same for all tasks."""
    parts: dict[str, list[pd.DataFrame]] = {}
    for one in evaluations:
        for name, table in {"scores": one.scores, **one.tables}.items():
            parts.setdefault(name, []).append(table)
    tables = {name: found[0] if name == "folds" else pd.concat(found, ignore_index=True) for name, found in parts.items()}
    return {name: table for name, table in {**tables, **more}.items() if len(table)}


def figures(evaluations: Sequence[Evaluation], tasks: Sequence[Task], **more: Any) -> dict[str, Any]:
    """What ``metrics.json`` holds."""
    return {
        "task": "samples",
        "tasks": [{"column": task.column, "kind": task.kind, "order": list(task.order)} for task in tasks],
        "predicted": {str(one.about["target"]): one.metrics for one in evaluations},
        **more,
    }


def verdicts(evaluations: Sequence[Evaluation]) -> list[str]:
    """Who is behind a baseline, and by how much each contestant differs from the best one, for each task."""
    named = len(evaluations) > 1
    return [f"{one.about['target']}: {line}" if named else line for one in evaluations for line in (*one.verdict(), *one.notes)]
