"""Novelty detection, judged: types kept away in turn, and held-out known cells to be told from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from sctool.artifacts.atomic import write_json
from sctool.artifacts.model_folder import ModelFolder, save_model
from sctool.artifacts.result_folder import result_folder
from sctool.config import Config
from sctool.data.novelty import EACH, Rows, Split, TypedCells, parts, splits
from sctool.errors import SctoolError
from sctool.metrics.novelty import aupr, auroc, fpr_at_95tpr, prevalence, tpr_at_5fpr
from sctool.models.novelty.cells import Expression
from sctool.models.novelty.model import NoveltyModel, Settings
from sctool.models.novelty.registry import check_methods

BASELINES = ("depth", "random")
MEASURES = (
    "auroc",
    "aupr",
    "prevalence",
    "fpr_at_95tpr",
    "tpr_at_5fpr",
    "threshold",
    "false_alarms",
    "detected",
    "n_novel",
    "n_known_test",
)


@dataclass(frozen=True)
class Novelty:
    """Scores of cells and, where the truth is known, how good they are."""

    methods: tuple[str, ...]
    scores: pd.DataFrame
    """One row for each cell scored and trial: ``cell, flagged``, a column per method; where known ``type, held_out, part, is_novel``."""
    by_type: pd.DataFrame | None
    """One row for each type kept away, part and method, with the measures."""
    about: dict[str, Any]
    model: NoveltyModel | None = None
    lines: list[str] = field(default_factory=list)

    @property
    def summary(self) -> pd.DataFrame:
        """Mean measures of each method: over the parts of a type, then over types."""
        assert self.by_type is not None
        return mean_by(self.by_type)

    @property
    def metrics(self) -> dict[str, Any]:
        """What ``metrics.json`` holds."""
        values: dict[str, Any] = {"task": "novelty", **self.about}
        if self.by_type is not None:
            table = self.summary.to_dict("index")
            values["methods"] = {name: row for name, row in table.items() if name not in BASELINES}
            values["baselines"] = {name: row for name, row in table.items() if name in BASELINES}
        return values

    def write(self, folder: Path, *, force: bool) -> None:
        """Write the result folder atomically."""
        with result_folder(folder, force=force) as partial:
            self.scores.to_csv(partial / "scores.csv", index=False)
            if self.by_type is not None:
                self.by_type.to_csv(partial / "novelty_by_class.csv", index=False)
            write_json(partial / "metrics.json", self.metrics)


def mean_by(by_type: pd.DataFrame) -> pd.DataFrame:
    """Measures by method: each type counts once, however many trials it had."""
    columns = [column for column in MEASURES if column in by_type]
    per_type = by_type.groupby(["method", "held_out"], sort=False)[columns].mean()
    return per_type.groupby(level="method", sort=False).mean()


def settings_of(config: Config) -> Settings:
    """How detectors are fitted, by a configuration."""
    novelty = config.novelty
    return Settings(
        tuple(check_methods(novelty.methods)),
        novelty.alpha,
        config.data.n_top_genes,
        novelty.n_components,
        config.seed,
        config.threads,
    )


def fit_rows(cells: TypedCells, rows: Rows, settings: Settings) -> tuple[NoveltyModel, list[str]]:
    """Fit on some rows, and on nothing else; returned with the types, in the order of their codes."""
    types, code_n = np.unique(cells.type_n[rows], return_inverse=True)
    groups = None if cells.group_n is None else cells.group_n[rows]
    folds = parts(np.arange(len(rows)), groups, np.random.default_rng(settings.seed))
    known = Expression(cells.log_ng, cells.counts_ng).take(rows)
    return NoveltyModel.fit(known, code_n, folds, settings), list(map(str, types))


def judge(novel_n: NDArray[np.bool_], score_n: NDArray[np.float64], threshold: float | None) -> dict[str, float]:
    """All measures of one method on known and novel cells; shapes (cells,)."""
    known = int((~novel_n).sum())
    out = {"auroc": auroc(novel_n, score_n), "aupr": aupr(novel_n, score_n), "prevalence": prevalence(novel_n)}
    out |= {"fpr_at_95tpr": fpr_at_95tpr(novel_n, score_n), "tpr_at_5fpr": tpr_at_5fpr(novel_n, score_n)}
    if threshold is not None:
        flagged_n = score_n > threshold
        out |= {"threshold": threshold, "false_alarms": float(flagged_n[~novel_n].mean()), "detected": float(flagged_n[novel_n].mean())}
    return out | {"n_novel": len(novel_n) - known, "n_known_test": known}


def run_novelty(cells: TypedCells, config: Config, say: Callable[[str], None] = lambda text: None) -> tuple[Novelty, Rows, list[str]]:
    """Fit detectors; where some cells are novel, judge them.

    Parameters
    ----------
    cells
        From :func:`sctool.data.novelty.read_typed`.
    config
        Its ``novelty`` section says which cells play the novel ones: ``hold_out`` (a type, or ``each``) or ``novel_key``; neither: all
        known cells are learned, and nothing is judged.

    Returns
    -------
    The result; the rows its model was fitted on, and its types. For a single type or a column of novel cells that is the (first) model
    judged, which has seen no novel cell; for ``each`` and for neither, one fitted on all known cells.
    """
    novelty, settings = config.novelty, settings_of(config)
    protocol = f"held-out {cells.group_key}" if cells.group_n is not None else "random third"
    about: dict[str, Any] = {"alpha": novelty.alpha, "label_key": config.data.label_key, "hold_out": novelty.hold_out}
    about |= {"novel_key": novelty.novel_key, "protocol": protocol}
    if not novelty.hold_out and not novelty.novel_key:
        model, types = fit_rows(cells, cells.known, settings)
        scores = pd.DataFrame({"cell": cells.obs.index[:0]})
        lines = [f"{len(cells.known):,} cells of {len(types)} types learned: {', '.join(types)}", *_no_promise(model, novelty.alpha)]
        return Novelty(model.methods, scores, None, {**about, "protocol": "none"}, model, lines), cells.known, types
    trials = list(splits(cells, novelty.hold_out, novelty.novel_key, config.seed))
    if not trials:
        raise SctoolError("no known cells can be held out to be told from the novel ones", "give more cells, or another --group-key")
    tables, rows, kept = [], [], None
    for number, trial in enumerate(trials, 1):
        model, types = fit_rows(cells, trial.train, settings)
        kept = kept or (model, trial.train, types)
        table, judged = _try(cells, trial, model, config.train.inference_chunk, config.seed)
        tables.append(table)
        rows += judged
        first = next(row for row in judged)
        say(f"{number} of {len(trials)}: without {trial.held_out} (part {trial.part}), {first['method']} AUROC {first['auroc']:.3f}")
    if novelty.hold_out == EACH:
        model, types = fit_rows(cells, cells.known, settings)
        kept = (model, cells.known, types)
    assert kept is not None
    made = Novelty(settings.methods, pd.concat(tables, ignore_index=True), pd.DataFrame(rows), about, kept[0])
    made.lines.extend([*_verdict(made, novelty.alpha), *_no_promise(kept[0], novelty.alpha)])
    return made, kept[1], kept[2]


def _try(cells: TypedCells, trial: Split, model: NoveltyModel, chunk: int, seed: int) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    rows = np.concatenate([trial.known, trial.novel])
    novel_n = np.arange(len(rows)) >= len(trial.known)
    scores = model.score_all(Expression(cells.log_ng, cells.counts_ng).take(rows), chunk=chunk)
    table = pd.DataFrame({"cell": cells.obs.index[rows], "type": cells.type_n[rows], "held_out": trial.held_out, "part": trial.part})
    table["is_novel"] = novel_n
    table["flagged"] = scores[model.methods[0]] > model.thresholds[model.methods[0]]
    table = table.assign(**scores)
    baselines = {"depth": cells.depth(rows), "random": np.random.default_rng(seed).random(len(rows))}
    head = {"held_out": trial.held_out, "part": trial.part}
    judged = [{**head, "method": name, **judge(novel_n, scores[name], model.thresholds[name])} for name in model.methods]
    return table, judged + [{**head, "method": name, **judge(novel_n, score_n, None)} for name, score_n in baselines.items()]


def _no_promise(model: NoveltyModel, alpha: float) -> list[str]:
    few = [name for name, limit in model.thresholds.items() if not np.isfinite(limit)]
    return [f"too few known cells to promise {alpha:.0%} false alarms; nothing is flagged by {', '.join(few)}"] if few else []


def _verdict(made: Novelty, alpha: float) -> list[str]:
    assert made.by_type is not None
    table: dict[str, dict[str, float]] = made.summary.to_dict("index")  # type: ignore[assignment]
    floor = max(table.pop(name)["auroc"] for name in BASELINES)
    first, best = made.methods[0], max(table, key=lambda name: table[name]["auroc"])
    own = table[first]
    lines = [
        f"{first}: AUROC {own['auroc']:.3f}; at its threshold {own['detected']:.0%} of novel cells are flagged, and "
        f"{own['false_alarms']:.1%} of held-out known ones ({alpha:.0%} promised for cells like those learned)"
    ]
    if table[best]["auroc"] > own["auroc"] + 0.005:
        lines.append(f"best here: {best} (AUROC {table[best]['auroc']:.3f}); chosen after the fact, so don't count on it")
    types = made.by_type[made.by_type["method"] == first].groupby("held_out")["auroc"].mean()
    if len(types) > 1:
        lines.append(f"hardest for {first}: {types.idxmin()} (AUROC {types.min():.3f})")
    behind = [name for name, row in table.items() if row["auroc"] <= floor]
    return [*lines, f"no better than a baseline ({', '.join(BASELINES)}): {', '.join(behind)}"] if behind else lines


def save_novelty(
    folder: Path,
    model: NoveltyModel,
    cells: TypedCells,
    rows: Rows,
    types: Sequence[str],
    config: Config,
    path: Path,
    metrics: dict[str, Any],
) -> ModelFolder:
    """Write a reusable model folder."""
    columns = model.space.features.columns
    contents = {
        "config": config.model_dump(),
        "genes": {kind: [names[column] for column in columns] for kind, names in cells.genes.items()},
        "vocabularies": {"label": list(types)},
        "methods": list(model.methods),
        "thresholds": model.thresholds,
        "alpha": config.novelty.alpha,
        "data": {
            "file": str(path),
            "source": cells.source,
            "target_sum": config.data.target_sum if cells.counts_ng is not None else None,
            "cells": len(rows),
        },
        "seed": config.seed,
        "metrics": metrics,
    }
    table = pd.DataFrame({"cell": cells.obs.index[rows], "type": cells.type_n[rows], "split": "train"})
    weights = {name: torch.from_numpy(np.array(array)) for name, array in model.arrays().items()}
    return save_model(folder, "novelty", weights, contents, {"cells": table})
