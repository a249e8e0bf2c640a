"""Trained classifiers on disk, without pickle: arrays in safetensors, numbers and names in the manifest, XGBoost's own file beside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sctool.artifacts.model_folder import ModelFolder, open_model, save_model
from sctool.config import Config
from sctool.data.labelled import Labelled
from sctool.engine.classifiers import new_classifier
from sctool.engine.classify import Fitted
from sctool.errors import SctoolError
from sctool.models.classify.calibration import Calibration
from sctool.models.classify.features import Features
from sctool.models.classify.reject import Rejector

RECOMMENDED = "recommended.json"


@dataclass(frozen=True)
class Bundle:
    """A trained classifier and what is known of its training."""

    folder: ModelFolder
    fitted: Fitted
    importance_f: NDArray[np.float64]
    """Share of each feature in what decides, as it was saved."""

    @property
    def genes(self) -> dict[str, list[str]]:
        """Names of its features by kind."""
        return dict(self.folder.manifest["genes"])

    @property
    def embedding(self) -> str | None:
        """The obsm it reads instead of genes."""
        text: str = self.folder.manifest["features"]
        return text.removeprefix("obsm:") if text.startswith("obsm:") else None


def save_bundle(folder: Path, fitted: Fitted, cells: Labelled, config: Config, metrics: dict[str, Any]) -> None:
    """Write one trained classifier as a model folder; an ensemble names the folders beside it."""
    features = fitted.features
    arrays: dict[str, NDArray[Any]] = {"scale_f": features.scale_f, "mean_f": features.mean_f, "importance_f": fitted.importance_f}
    files: dict[str, bytes] = {}
    if fitted.classifier is not None:
        arrays |= {f"model/{name}": array for name, array in fitted.classifier.arrays().items()}
        files = fitted.classifier.files()
    names, sizes = np.unique(cells.labels_n[cells.train], return_counts=True)
    save_model(
        folder,
        "classify",
        {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()},
        {
            "classifier": fitted.name,
            "members": [member.name for member in fitted.members],
            "seed": config.seed,
            "config": config.model_dump(exclude={"out", "device", "threads"}),
            "label_key": config.data.label_key,
            "classes": list(fitted.classes),
            "class_cells": {str(name): int(n) for name, n in zip(names, sizes, strict=True)},
            "features": config.classify.features if cells.kind == "embedding" else cells.kind,
            "unit_length": features.unit,
            "genes": {kind: [known[column] for column in features.columns] for kind, known in cells.genes.items()},
            "target_sum": cells.target_sum,
            "counts": cells.counts is not None,
            "calibration": fitted.calibration.to_json(),
            "rejection": fitted.rejector.to_json(),
            "held_out": fitted.held_out,
            "data": {**cells.about, "train": len(cells.train)},
            "metrics": metrics,
        },
        {},
        files,
    )


def open_bundle(path: Path) -> Bundle:
    """Open a trained classifier: its folder, or the run with several, of which the recommended one is taken.

    Raises
    ------
    SctoolError
        If it is no classifier, or a member of an ensemble is missing.
    """
    from sctool.artifacts.atomic import read_json

    if (path / RECOMMENDED).exists():
        path = path / read_json(path / RECOMMENDED)["recommended"]
    folder = open_model(path, "classify")
    manifest, arrays = folder.manifest, {name: tensor.numpy() for name, tensor in folder.weights().items()}
    config = Config.model_validate(manifest["config"])
    columns = np.arange(len(arrays["scale_f"]))
    features = Features(columns, arrays["scale_f"], arrays["mean_f"], manifest["unit_length"])
    members: tuple[Fitted, ...] = ()
    classifier = None
    if manifest["members"]:
        absent = [name for name in manifest["members"] if not (path.parent / name / "manifest.json").exists()]
        if absent:
            raise SctoolError(f"{path} is a mean of models, of which {path.parent / absent[0]} is not there", "copy the whole run")
        members = tuple(open_bundle(path.parent / name).fitted for name in manifest["members"])
    else:
        classifier = new_classifier(manifest["classifier"], config)
        classifier.restore({name.removeprefix("model/"): array for name, array in arrays.items() if name.startswith("model/")})
    fitted = Fitted(
        manifest["classifier"],
        features,
        classifier,
        tuple(manifest["classes"]),
        Calibration.from_json(manifest["calibration"]),
        Rejector.from_json(manifest["rejection"]),
        manifest["held_out"],
        members,
    )
    return Bundle(folder, fitted, arrays["importance_f"])
