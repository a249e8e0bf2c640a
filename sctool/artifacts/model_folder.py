"""The model folder: ``model.safetensors``, ``manifest.json``, ``history.csv`` and tables of the run. No pickle anywhere.

A run in progress lives in ``RUN.part``; only a finished one gets the name ``RUN``.
"""

from __future__ import annotations

import json
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from sctool.artifacts.atomic import atomic_file, atomic_folder, disk_errors, strict, write_json
from sctool.artifacts.tables import read_table
from sctool.artifacts.tensors import load_tensors, save_tensors
from sctool.errors import SctoolError

FORMAT = 1
_PACKAGES = ("sctool", "torch", "numpy", "scipy", "anndata", "scanpy", "scikit-learn", "xgboost", "pandas", "safetensors")
_OF_NO_EFFECT = (
    *("path", "cache_dir", "backed", "inference_chunk", "checkpoint_seconds"),
    *(f"integrate.{key}" for key in ("score", "refine", "refine_method", "refine_steps", "refine_grid")),
    *(f"integrate.{key}" for key in ("refine_min_cells", "refine_blend", "refine_target", "target_batch")),
)
"""Settings that a trained model does not depend on."""


@dataclass(frozen=True)
class ModelFolder:
    """A finished model on disk."""

    path: Path
    manifest: dict[str, Any]

    def weights(self) -> dict[str, Tensor]:
        """Its tensors, on the CPU."""
        return load_tensors(self.path / "model.safetensors")[0]

    def table(self, name: str) -> pd.DataFrame:
        """One of its CSV tables, e.g. ``history`` or ``cells``; in ``cells`` NA is a name, and only an empty field is missing."""
        read = read_table if name == "cells" else pd.read_csv
        return read(self.path / f"{name}.csv", dtype={"cell": str, "perturbation": str})

    def trained_on(self, cells: Any) -> bool:
        """Whether these are the cells of the file of training, by name and order."""
        return list(self.table("cells")["cell"]) == list(map(str, cells))

    def require_cells(self, cells: Any, path: Path) -> None:
        """Refuse a file that is not any more what the model was trained on."""
        if not self.trained_on(cells):
            raise SctoolError(f"{path} has other cells than when {self.path} was trained on it", "give the file of then, or train again")

    def require_settings(self, sections: dict[str, dict[str, Any]], seed: int | None = None) -> None:
        """Refuse to take a finished run for one with other settings, however alike their names."""
        if seed is not None and self.manifest["seed"] != seed:
            was = self.manifest["seed"]
            raise SctoolError(f"{self.path} was trained with --seed {was}, not {seed}", "give another --name, or --force to train again")
        for section, values in strict(sections).items():
            for key, value in values.items():
                old = self.manifest["config"].get(section, {}).get(key, value)
                if old != value and value is not None and key not in _OF_NO_EFFECT and f"{section}.{key}" not in _OF_NO_EFFECT:
                    raise SctoolError(
                        f"{self.path} was trained with other settings: {section}.{key} was {old!r} and is {value!r}",
                        "give another --name, or --force to train it again",
                    )

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.path.name


def save_model(
    folder: Path,
    model: str,
    weights: dict[str, Tensor],
    contents: dict[str, Any],
    tables: dict[str, pd.DataFrame],
    files: dict[str, bytes] | None = None,
) -> ModelFolder:
    """Write a model folder atomically.

    Parameters
    ----------
    folder
        Its final place.
    model
        The kind of model, e.g. ``scvi``.
    contents
        What the manifest holds beyond format, versions and command: config, genes, vocabularies, data, seed, metrics.
    tables
        Written as ``NAME.csv``.
    files
        Written as they are.
    """
    manifest = {"format": FORMAT, "model": model, **contents, "versions": versions(), "command": command()}
    with atomic_folder(folder) as partial:
        save_tensors(partial / "model.safetensors", weights)
        for name, table in tables.items():
            table.to_csv(partial / f"{name}.csv", index=False)
        for name, content in (files or {}).items():
            (partial / name).write_bytes(content)
        write_json(partial / "manifest.json", manifest)
    return ModelFolder(folder, strict(manifest))


def amend(folder: ModelFolder, contents: dict[str, Any], tables: dict[str, pd.DataFrame]) -> ModelFolder:
    """Add to a finished model folder: tables first, then what the manifest says, each atomically."""
    for name, table in tables.items():
        with atomic_file(folder.path / f"{name}.csv") as partial:
            table.to_csv(partial, index=False)
    manifest = strict({**folder.manifest, **contents})
    write_json(folder.path / "manifest.json", manifest)
    return ModelFolder(folder.path, manifest)


def open_model(path: Path, model: str | None = None) -> ModelFolder:
    """Open a model folder.

    Parameters
    ----------
    path
        The folder, e.g. ``checkpoints/scvi/RUN``.
    model
        The kind expected; None takes any.

    Raises
    ------
    SctoolError
        If there is no model, it is of another kind, or of a newer format.
    """
    file = path / "manifest.json"
    if not file.exists():
        if path.with_name(path.name + ".part").exists():
            raise SctoolError(f"{path} is not finished", "run its train command again with --resume")
        siblings = sorted(other.name for other in path.parent.glob("*") if (other / "manifest.json").exists())
        there = f"{path.parent} has {', '.join(siblings[:5])}" if siblings else "give a folder like checkpoints/scvi/RUN"
        raise SctoolError(f"{path} is not a model folder (no manifest.json)", there)
    try:
        manifest = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SctoolError(f"{file} cannot be read: {error}", "copy the folder again, or train again") from None
    if manifest.get("format", 0) > FORMAT:
        raise SctoolError(
            f"{path} has format {manifest['format']}, made by sctool {manifest.get('versions', {}).get('sctool')}; this one reads {FORMAT}",
            "update sctool: pip install -U sctool",
        )
    if model is not None and manifest.get("model") != model:
        raise SctoolError(f"{path} is a {manifest.get('model')} model, not {model}", f"give a folder under checkpoints/{model}/")
    return ModelFolder(path, manifest)


class RunPlace:
    """Where a run of training is written: the final folder, and ``RUN.part`` with the state until then.

    Parameters
    ----------
    folder
        ``OUT/checkpoints/MODEL/RUN``.
    resume, force
        The flags of the command.
    marker
        The file that a finished run has.

    Raises
    ------
    SctoolError
        If a finished or unfinished run of that name is there and neither flag was given.
    """

    def __init__(self, folder: Path, *, resume: bool, force: bool, marker: str = "manifest.json") -> None:
        self.folder = folder
        self.part = folder.with_name(folder.name + ".part")
        self.state = self.part / "state.safetensors"
        self.resume = resume
        self.saved = False
        """Set once the model folder is written; the state is then of no more use."""
        there = (folder / marker).exists()
        self.finished = there and not force and not (resume and self.begun)
        if self.finished and not resume:
            raise SctoolError(f"{folder} is there already", "give another --name, --force to replace it, or --resume to keep it")
        if self.begun and not resume and not force:
            raise SctoolError(f"{self.part} holds an unfinished run", "give --resume to go on with it, or --force to start over")

    @property
    def begun(self) -> bool:
        """Whether a run was broken off here."""
        return any(self.part.glob("*.safetensors"))

    def stage(self, number: int) -> Path:
        """Where the weights after a stage are kept until all are done."""
        return self.part / f"stage{number}.safetensors"

    def open(self, settings: dict[str, Any]) -> None:
        """Make room for the state.

        Parameters
        ----------
        settings
            All that the result depends on; a state made with other settings is not resumed.
        """
        note, settings = self.part / "settings.json", strict(settings)
        with disk_errors(self.part):
            if self.resume and self.begun and note.exists():
                old = json.loads(note.read_text())
                changed = [key for key in settings if old.get(key) != settings[key]]
                if changed:
                    shown = f"{changed[0]} was {_short(old.get(changed[0]))} and is {_short(settings[changed[0]])}"
                    raise SctoolError(
                        f"{self.part} was started with other settings: {shown}", "give the same ones, or --force to start over"
                    )
            self.part.mkdir(parents=True, exist_ok=True)
            if not self.resume:
                for kept in self.part.glob("*.safetensors"):
                    kept.unlink()
        write_json(note, settings)

    def close(self) -> None:
        """Forget the state of a run that is saved, or that ended before any was kept."""
        if self.begun and not self.saved:
            return
        shutil.rmtree(self.part, ignore_errors=True)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def versions() -> dict[str, str]:
    """Versions of what the result depends on."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def command() -> str:
    """The command line."""
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
