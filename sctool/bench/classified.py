"""Writing what classification gave: models into checkpoints, answers and scores into results."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from sctool.artifacts.atomic import atomic_folder, write_json
from sctool.artifacts.model_folder import command, versions
from sctool.bench.answers import RECOMMENDED
from sctool.bench.classify import Classified
from sctool.config import Config
from sctool.engine.bundle import RECOMMENDED as RECOMMENDED_FILE
from sctool.engine.bundle import save_bundle


def write_classified(made: Classified, results: Path, checkpoints: Path, config: Config, *, force: bool) -> None:
    """Write the checkpoints of a run and, where cells were held out, its results."""
    scores = made.evaluation.files["summary_metrics.json"] if made.evaluation else {}
    with atomic_folder(checkpoints) as partial:
        for name, fitted in made.models.items():
            metrics = {key: scores.get(name, {}).get(key) for key in ("accuracy", "f1_macro_present")} if scores else {}
            save_bundle(partial / name, fitted, made.cells, config, metrics)
        split = pd.DataFrame({"cell": made.cells.obs.index[made.cells.train], "split": "train"})
        split.to_csv(partial / "cells.csv", index=False)
        held = {name: fitted.held_out for name, fitted in made.models.items()}
        write_json(partial / RECOMMENDED_FILE, {"recommended": made.recommended, "held_out": held})
    if made.evaluation is None:
        shutil.rmtree(results, ignore_errors=True)  # of older models
        return
    tables = made.evaluation.tables
    tables.update({"splits": made.splits, "dropped": made.cells.dropped})
    made.evaluation.files.update({"run.json": _run(made, config), "features.txt": _features(made)})
    tables.update({f"{name}/importance": table for name, table in made.importance.items()})
    made.evaluation.write(results, force=force)


def _features(made: Classified) -> str:
    features = made.models[made.recommended].features
    return "\n".join(made.cells.genes["name"][column] for column in features.columns) + "\n"


def _run(made: Classified, config: Config) -> dict[str, Any]:
    cells = made.cells
    return {
        "command": command(),
        "versions": versions(),
        "seed": config.seed,
        "config": config.model_dump(exclude={"out", "device", "threads"}),
        "data": cells.about,
        "n_train": len(cells.train),
        "n_test": len(cells.test),
        "dropped": len(cells.dropped),
        "features": cells.kind,
        "transductive": "unknown" if cells.kind == "embedding" else False,
        "recommended": made.recommended,
        "shown_as": RECOMMENDED,
    }
