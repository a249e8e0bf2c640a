"""What an evaluation gives: figures, tables, and the sentence that says who won."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sctool.artifacts.atomic import atomic_file, write_json
from sctool.artifacts.result_folder import result_folder
from sctool.bench.entries import ModelEntry
from sctool.bench.paired import Paired, paired_difference
from sctool.metrics.base import METRICS

_UNTRAINED = ("baseline", "ceiling", "embedding", "prediction")


@dataclass(frozen=True)
class Evaluation:
    """The result of scoring several contestants on the same cells."""

    task: str
    scores: pd.DataFrame
    """One row per contestant, baseline or ceiling (and split or group): ``name, arm, seed``, and a column per score."""
    columns: tuple[str, ...]
    """The scores shown."""
    about: dict[str, Any]
    """Further figures for ``metrics.json``."""
    tables: dict[str, pd.DataFrame]
    """Further tables, by file name."""
    arrays: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """Arrays for pictures, by file name."""
    pair_by: tuple[str, ...] = ("seed",)
    """What two arms must share to be compared."""
    decide: tuple[str, ...] = ()
    """The scores that say who is behind; none: the first of ``columns``."""
    notes: tuple[str, ...] = ()
    """Lines printed after the verdict."""
    files: dict[str, Any] = field(default_factory=dict)
    """Further files by name: text, or what becomes JSON."""

    @property
    def summary(self) -> pd.DataFrame:
        """Mean scores of each contestant and baseline."""
        return self.scores.groupby(["name", "arm"], sort=False)[list(self.columns)].mean().reset_index()

    @property
    def paired(self) -> dict[str, dict[str, Paired]]:
        """Each other arm against ``standard``, by arm and score, paired over training seeds (and groups); empty where none has both."""
        if "standard" not in set(self.scores["arm"]):
            return {}
        runs = self.scores[~self.scores["arm"].isin(_UNTRAINED)].groupby(["arm", *self.pair_by])[list(self.columns)].mean()
        arms = list(runs.index.unique("arm"))
        out = {}
        for arm in arms:
            shared = runs.loc[arm].index.intersection(runs.loc["standard"].index)
            if arm != "standard" and len(shared):
                pair = runs.loc[arm].loc[shared], runs.loc["standard"].loc[shared]
                out[arm] = {score: paired_difference(pair[0][score], pair[1][score]) for score in self.columns}
        return out

    @property
    def metrics(self) -> dict[str, Any]:
        """What ``metrics.json`` holds."""
        by_name = self.scores.groupby("name", sort=False)[list(self.columns)]
        scores = {name: {c: {"mean": part[c].mean(), "sd": part[c].std()} for c in self.columns} for name, part in by_name}
        paired = {arm: {score: vars(value) for score, value in values.items()} for arm, values in self.paired.items()}
        return {"task": self.task, **self.about, "scores": scores, "paired_with_standard": paired}

    def verdict(self) -> list[str]:
        """Lines: paired differences, and which contestants are behind a baseline."""
        table, lines = self.summary, []
        for score in self.decide or self.columns[:1]:
            lines += [f"{arm} - standard, {score}: {values[score]}" for arm, values in self.paired.items()]
            sign = 1 if score not in METRICS or METRICS[score].higher_is_better else -1
            baselines = table[table["arm"] == "baseline"].dropna(subset=[score])
            best = baselines.iloc[int((sign * baselines[score]).to_numpy().argmax())]
            contestants = table[~table["arm"].isin(["baseline", "ceiling"])]
            behind = contestants["name"][sign * contestants[score] < sign * best[score]]
            if len(behind):
                lines.append(f"behind the baseline {best['name']!r} in {score} ({best[score]:.3f}): {', '.join(behind)}")
        return lines

    def write(self, folder: Path, *, force: bool, beside: bool = False) -> None:
        """Write the result folder atomically; with ``beside``, file by file into a folder that is there, ``metrics.json`` last."""
        if beside:
            self._write_files(folder)
            return
        with result_folder(folder, force=force) as partial:
            self._write_files(partial)

    def _write_files(self, folder: Path) -> None:
        for name, table in {"scores": self.scores, **self.tables}.items():
            with atomic_file(folder / f"{name}.csv") as partial:
                table.to_csv(partial, index=False)
        for name, array in self.arrays.items():
            with atomic_file(folder / f"{name}.npy") as partial, partial.open("wb") as file:
                np.save(file, array)
        for name, content in self.files.items():
            if isinstance(content, str):
                with atomic_file(folder / name) as partial:
                    partial.write_text(content)
            else:
                write_json(folder / name, content)
        (folder / "umap.csv").unlink(missing_ok=True)  # of older arrays
        write_json(folder / "metrics.json", self.metrics)


def with_training_cells(per_type: pd.DataFrame, entries: list[ModelEntry], key: str) -> pd.DataFrame:
    """Add how many cells of each type each model was trained on, where it was trained with that label column."""
    known: dict[tuple[str, str], int] = {}
    for entry in entries:
        cells = entry.folder.table("cells")
        if key in cells:
            counts = cells.loc[cells["split"] == "train", key].astype(str).value_counts()
            known |= {(entry.name, label): int(counts.get(label, 0)) for label in set(cells[key].astype(str))}
    pairs = zip(per_type["name"], per_type["label"], strict=True)
    return per_type.assign(training_cells=pd.array([known.get(pair) for pair in pairs], dtype="Int64"))
