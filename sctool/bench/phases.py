"""Sequential integration: one model after the other, and how the cells of each phase fare after the later ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sctool.artifacts.atomic import write_json
from sctool.artifacts.model_folder import ModelFolder, RunPlace, open_model
from sctool.artifacts.result_folder import check_free, result_folder
from sctool.config import Config
from sctool.data.demo import BATCHES
from sctool.data.integration import labels_of, prepare_integration
from sctool.data.phases import Phase, in_words_of, with_replayed
from sctool.data.read import H5ad
from sctool.data.splits import select
from sctool.engine.integrate import integration_stages, replay
from sctool.engine.query import load_module, open_query
from sctool.engine.refine import encode
from sctool.engine.run import run_training
from sctool.engine.trainer import Reporter
from sctool.errors import SctoolError
from sctool.metrics.integration import ari, clisi, integration_scores, kmeans_clusters, nmi, silhouettes
from sctool.metrics.kbet import FEWEST_CELLS
from sctool.metrics.neighbours import exact_neighbours
from sctool.models.registry import BUILDERS

Say = Callable[[str], None]
REPLAYED = 500, 50_000
"""Cells the old model makes: as many as it has seen, within these limits."""
ARCHITECTURE = ("n_latent", "n_hidden", "n_layers", "likelihood", "dispersion", "n_components")
"""What stays as the first phase had it."""


@dataclass(frozen=True)
class PhaseRun:
    """What came out of all phases."""

    table: pd.DataFrame
    """One row for each phase of training and each phase up to it whose cells are scored: ``after, cells_of, cells, ...``."""
    results: Path
    models: list[Path]
    lines: list[str]

    @property
    def metrics(self) -> dict[str, Any]:
        """What ``metrics.json`` holds."""
        return {
            "task": "phases",
            "models": [str(path) for path in self.models],
            "phases": self.table.to_dict("records"),
            "notes": self.lines,
        }


def run_phases(
    phases: list[Phase],
    config: Config,
    out: Path,
    run: str,
    *,
    first: ModelFolder | None = None,
    resume: bool = False,
    force: bool = False,
    say: Say = lambda text: None,
    reporter: Callable[[], Reporter] | None = None,
) -> PhaseRun:
    """Train a model on the first phase, grow it and train on at each later one; score after each.

    Parameters
    ----------
    phases, config
        What differs between phases, and what doesn't.
    out, run
        Models go to ``out/checkpoints/integrate/RUN-PHASE``, the table to ``out/results/integrate/RUN``.
    first
        A trained model to go on from, instead of a new one.
    resume, force
        Finished phases are passed over with ``resume``; the others go on where they were.
    """
    results = out / "results" / "integrate" / run
    if not resume:
        check_free(results, force=force)
    settings = [_settings(phase, config, say) for phase in phases]
    before, models, rows, lines = first, [], [], []
    for number, (phase, own) in enumerate(zip(phases, settings, strict=True)):
        say(f"phase {number + 1} of {len(phases)}: {phase.name}")
        if phase.resume_from:
            before = open_model(Path(phase.resume_from), "integrate")
        place = RunPlace(out / "checkpoints" / "integrate" / f"{run}-{phase.name}", resume=resume, force=force)
        if place.finished:
            before = open_model(place.folder)
            before.require_settings(own.model_dump(include={"data", "train", "ar", "diffusion"}))
        else:
            before = _train(own, before, place, say, reporter() if reporter else None)
        models.append(before.path)
        for earlier, theirs in zip(phases[: number + 1], settings[: number + 1], strict=True):
            rows.append({"after": phase.name, "cells_of": earlier.name, **_scores(before, theirs)})
    table = pd.DataFrame(rows)
    lines += _changes(table, phases)
    made = PhaseRun(table, results, models, lines)
    with result_folder(results, force=force or resume) as partial:
        table.to_csv(partial / "phases.csv", index=False)
        write_json(partial / "metrics.json", made.metrics)
    return made


def _settings(phase: Phase, config: Config, say: Say) -> Config:
    own = config.replaced(phase.settings())
    if own.data.path is None:
        own = own.replaced({"data.path": str(BATCHES.path), **{k: v for k, v in BATCHES.settings.items() if _empty(own, k)}})
    if not Path(str(own.data.path)).exists():
        raise SctoolError(f"phase {phase.name}: {own.data.path}: no such file", "mend the key data of that phase")
    file, data = H5ad(Path(str(own.data.path))), own.data
    try:  # before an earlier phase is trained
        for key, flag in ((data.batch_key, "--batch-key"), (data.label_key, "--label-key")):
            if key is not None:
                file.column(key, flag)
        for condition in (data.cells, data.hold_out):
            if condition is not None:
                select(file.obs, condition)
    except SctoolError as error:
        raise SctoolError(f"phase {phase.name}: {error.message}", error.hint) from None
    if phase.output_checkpoint:
        say(f"note: output_checkpoint has no effect; the model of phase {phase.name} goes to checkpoints/integrate/RUN-{phase.name}")
    return own


def _empty(config: Config, key: str) -> bool:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name) is None


def _train(config: Config, before: ModelFolder | None, place: RunPlace, say: Say, reporter: Reporter | None) -> ModelFolder:
    path, build = Path(str(config.data.path)), BUILDERS["integrate"]
    prepared = prepare_integration(path, config, few_batches=True)
    stages = integration_stages
    if before is not None:
        module = load_module(before, build)
        shape = Config.model_validate(before.manifest["config"]).integrate
        config = config.replaced({f"integrate.{key}": getattr(shape, key) for key in ARCHITECTURE})
        prepared = in_words_of(prepared, path, before.manifest["genes"], before.manifest["vocabularies"])
        n = 0
        if config.integrate.transfer == "replay":
            if not Config.model_validate(before.manifest["config"]).diffusion.train_steps:
                raise SctoolError(f"{before.path} has no diffusion to replay from", "train it with one, or give transfer: finetune")
            n = int(np.clip(int(module.cells_cb.sum()), *REPLAYED))
        counts, codes = replay(module, n, config.seed)
        counts.resize((n, len(prepared.columns)))  # it knows nothing of the new genes
        prepared = with_replayed(prepared, counts, codes)
        stages = partial(integration_stages, older=module)
    for line in prepared.notes:
        say(line)
    return run_training("integrate", build, prepared, config, place, stages=stages, reporter=reporter)


def _scores(folder: ModelFolder, config: Config) -> dict[str, float]:
    """Of the held-out cells of a phase, or of all its cells where none are held out."""
    query = open_query(folder, BUILDERS["integrate"], Path(str(config.data.path)), config)
    rows = _cells(query.obs, config)
    encoded = encode(query)
    scores: dict[str, float] = {"cells": len(rows)}
    key = config.data.label_key
    if key is None:
        return scores
    labels = labels_of(query.obs[key], config.integrate.unlabeled)[rows].astype(str)
    names = folder.manifest["vocabularies"].get("label")
    if names:
        known = np.isin(labels, names)
        scores["accuracy"] = float((np.array(names)[encoded.type_n[rows]] == labels)[known].mean()) if known.any() else np.nan
    kinds, counts = np.unique(labels, return_counts=True)
    kept = np.isin(labels, kinds[(counts >= FEWEST_CELLS) & (kinds != "")])
    if len(np.unique(labels[kept])) < 2:
        return scores
    z_nl, labels = encoded.mean_nl[rows][kept], labels[kept]
    batches = query.obs[config.data.batch_key].astype(str).to_numpy()[rows][kept]
    if len(np.unique(batches)) > 1:
        values = integration_scores(z_nl, batches, labels, z_nl).values
        return scores | {name: values[name] for name in ("total", "batch", "bio")}
    clusters = kmeans_clusters(z_nl, len(np.unique(labels)))
    parts = [nmi(labels, clusters), ari(labels, clusters), (silhouettes(z_nl, labels).mean() + 1) / 2]
    return scores | {"bio": float(np.mean([*parts, clisi(exact_neighbours(z_nl, 90), labels)]))}


def _cells(obs: pd.DataFrame, config: Config) -> NDArray[np.int64]:
    own = select(obs, config.data.cells) if config.data.cells else np.ones(len(obs), bool)
    return np.flatnonzero(own & select(obs, config.data.hold_out) if config.data.hold_out else own)


def _changes(table: pd.DataFrame, phases: list[Phase]) -> list[str]:
    """How much each phase's cells have lost or gained by the end."""
    lines: list[str] = []
    score = "total" if "total" in table else "bio"
    if score not in table:
        return lines
    for phase in phases[:-1]:
        own = table[table["cells_of"] == phase.name]
        change = own[score].iloc[-1] - own[score].iloc[0]
        lines.append(f"{phase.name}: {score} {own[score].iloc[0]:.3f} after its own phase, {change:+.3f} after the last")
    return lines
