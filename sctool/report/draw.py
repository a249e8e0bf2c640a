"""Which figures the tables of a run allow."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from sctool.errors import SctoolError
from sctool.report import figures
from sctool.report.classify import classify_figures
from sctool.report.classify_curves import curve_figures
from sctool.report.integration import integration_figures
from sctool.report.novelty import novelty_figures
from sctool.report.perturbation import model_figures, perturbation_figures
from sctool.report.response import response_figures
from sctool.report.samples import has_monitors, is_cohort, monitor_curves, sample_figures

FORMATS = ("png", "svg", "pdf")


def draw_runs(runs: list[Path], formats: list[str], say: Callable[[str], None] = lambda text: None) -> list[Path]:
    """Draw each run into its ``plots`` folder, and several runs of training together into the last one's.

    Parameters
    ----------
    runs
        Folders of ``checkpoints/`` or ``results/``.
    formats
        Endings.
    say
        Told what takes long.

    Returns
    -------
    Paths of the pictures, without repeats.

    Raises
    ------
    SctoolError
        If a folder has nothing to draw.
    """
    wrong = [ending for ending in formats if ending not in FORMATS]
    if wrong:
        raise SctoolError(f"unknown format {wrong[0]!r}", f"give one of {', '.join(FORMATS)}")
    for run in runs:
        if not run.is_dir():
            raise SctoolError(f"{run}: no such folder", "give a run under results/ or checkpoints/")
    made: list[Path] = []
    for run in runs:
        drawn = _draw_one(run, formats, say)
        if not drawn and len(runs) > 1 and (run / "history.csv").exists():
            say(f"note: {run} has nothing to draw: its model is not trained in epochs")
        elif not drawn:
            raise _nothing(run)
        made += drawn
    if not made:
        raise _nothing(runs[-1])
    histories = {run.name: history for run in runs if (history := _history(run)) is not None}
    if len(histories) > 1:
        made += figures.training_curves(runs[-1] / "plots" / "training-side-by-side", formats, histories)
    return made


def _nothing(run: Path) -> SctoolError:
    if (run / "prediction.json").exists() and not (run / "scores.csv").exists():
        task = json.loads((run / "prediction.json").read_text()).get("task")
        kind = "perturbation" if task == "perturbation" else "scgen"
        return SctoolError(f"{run} has predictions but no scores to draw", f"run `sctool eval {kind} {run}` first")
    if (run / "history.csv").exists():
        hint = "see its comparison.csv, or draw what `sctool eval` writes"
        return SctoolError(f"{run} has nothing to draw: its model is not trained in epochs", hint)
    return SctoolError(f"{run} has no table to draw", "give a run folder, e.g. results/classification/RUN")


def _history(run: Path) -> pd.DataFrame | None:
    """Losses by epoch; None where a model has none, as those of means."""
    history = pd.read_csv(run / "history.csv") if (run / "history.csv").exists() else None
    return history if history is not None and len(history) and "train_loss" in history else None


def _draw_one(run: Path, formats: list[str], say: Callable[[str], None]) -> list[Path]:
    plots = run / "plots"
    made: list[Path] = []
    history = _history(run)
    if history is not None:
        made += figures.training_curves(plots / "training", formats, {run.name: history})
        if "weights_ess" in history:
            made += figures.weight_curves(plots / "weights", formats, history)
        if has_monitors(history):
            made += monitor_curves(plots / "monitors", formats, history)
    if (run / "latent.npy").exists():
        made += figures.latent_maps(plots / "umap", formats, _umap(run, say))
    metrics = json.loads((run / "metrics.json").read_text()) if (run / "metrics.json").exists() else {}
    if metrics.get("task") == "samples" or is_cohort(run):  # its embeddings.csv is one of samples, not of perturbations
        return made + sample_figures(plots, formats, run, metrics)
    made += model_figures(plots, formats, run)
    if metrics.get("task") in ("classification", "reconstruction") and (run / "scores.csv").exists():
        scores: Any = pd.read_csv(run / "scores.csv")
        columns = ["accuracy", "macro_f1"] if metrics["task"] == "classification" else ["correlation", "r2"]
        made += figures.arm_bars(plots / "scores", formats, scores, columns)
    if metrics.get("task") == "classify" or (metrics.get("task") == "predict" and (run / "predictions.csv").exists()):
        return made + classify_figures(plots, formats, run)
    if metrics.get("task") == "curve":
        return made + curve_figures(plots, formats, run)
    if metrics.get("task") == "novelty":
        return made + novelty_figures(plots, formats, run, metrics)
    if metrics.get("task") == "scgen" and (run / "scores.csv").exists():
        made += response_figures(plots, formats, run)
    if metrics.get("task") == "perturbation" and (run / "aggregates.csv").exists():
        return made + perturbation_figures(plots, formats, run)
    if metrics.get("task") == "integration" and (run / "scores.csv").exists():
        return made + integration_figures(plots, formats, run, metrics, say)
    if (run / "per_type.csv").exists():
        per_type = pd.read_csv(run / "per_type.csv")
        value = "recall" if "recall" in per_type else "correlation"
        made += figures.per_type_bars(plots / "per-type", formats, per_type, value)
    return made


def _umap(run: Path, say: Callable[[str], None]) -> pd.DataFrame:
    """The table of cells with UMAP coordinates; computed once and kept as ``umap.csv``."""
    kept = run / "umap.csv"
    if kept.exists():
        return pd.read_csv(kept, dtype={"cell": str})
    import numpy as np

    from sctool.artifacts.atomic import atomic_file
    from sctool.report.umap import umap_xy

    say("computing a UMAP; it is kept in umap.csv")
    cells = pd.read_csv(run / "cells.csv", dtype={"cell": str})
    xy = umap_xy(np.load(run / "latent.npy"))
    cells["umap_1"], cells["umap_2"] = xy[:, 0], xy[:, 1]
    with atomic_file(kept) as partial:
        cells.to_csv(partial, index=False)
    return cells
