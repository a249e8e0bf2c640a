"""A run of training from prepared cells to a model folder; the same for every model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch

from sctool.artifacts.model_folder import ModelFolder, RunPlace, save_model
from sctool.config import Config
from sctool.data.minibatch import CellStore
from sctool.data.prepare import Prepared
from sctool.data.samplers import Sampler
from sctool.engine.device import choose_device, in_chunks, own_randomness
from sctool.engine.samplers import make_sampler
from sctool.engine.trainer import Fit, Reporter, Trainer


def default_epochs(n_cells: int) -> int:
    """Epochs so that about eight million cells are seen, at most 400: the rule of scvi-tools."""
    return int(min(400, max(1, round(400 * 20_000 / n_cells))))


def run_settings(model: str, config: Config, prepared: Prepared) -> dict[str, Any]:
    """All that the result of a run depends on."""
    tree = config.model_dump(exclude={"out", "device", "threads"})
    return {"model": model, **tree, "fingerprint": prepared.about["fingerprint"]}


def run_training(
    name: str,
    build: Callable[[Config, dict[str, int]], Any],
    prepared: Prepared,
    config: Config,
    place: RunPlace,
    *,
    reporter: Reporter | None = None,
) -> ModelFolder:
    """Train a model and write its folder.

    Parameters
    ----------
    name, build
        The model's name and how it is made from the configuration and its sizes.
    prepared
        The cells.
    place
        Where it is written, and whether an interrupted run is resumed.
    """
    device = choose_device(config.device)
    sizes = prepared.sizes
    train_rows, validation_rows = prepared.rows("train"), prepared.rows("validation")
    config = config.model_copy(
        update={"train": config.train.model_copy(update={"epochs": config.train.epochs or default_epochs(len(train_rows))})}
    )
    # Columns are taken once where the matrix is in memory, and at every fetch where it is on disk.
    on_disk = config.data.backed
    matrix = prepared.matrix if on_disk else prepared.matrix[:, prepared.columns]
    store = CellStore(matrix, prepared.codes, prepared.obs.index, prepared.columns if on_disk else None, device)
    labels = prepared.obs[config.data.label_key].astype(object).fillna("").astype(str).to_numpy() if config.data.label_key else None
    sampler = make_sampler(train_rows, config.train, config.ar, labels=labels, embedding=prepared.embedding)
    with own_randomness(device):
        torch.manual_seed(config.seed)
        module = build(config, sizes).to(device)
    trainer = Trainer(
        module,
        store,
        sampler,
        config.train,
        seed=config.seed,
        validation_rows=validation_rows,
        reporter=reporter,
        state_path=place.state,
    )
    place.open(run_settings(name, config, prepared))
    try:
        fit = trainer.fit(resume=place.resume)
        if hasattr(module, "remember"):
            known = np.sort(np.concatenate([train_rows, validation_rows]))
            module.remember(batch for _, batch in in_chunks(store.batch, known, config.train.inference_chunk))
        folder = _save(name, module, sampler, fit, sizes, prepared, config, place, device)
        place.saved = True
        return folder
    finally:
        place.close()


def _save(
    name: str,
    module: Any,
    sampler: Sampler,
    fit: Fit,
    sizes: dict[str, int],
    prepared: Prepared,
    config: Config,
    place: RunPlace,
    device: torch.device,
) -> ModelFolder:
    """Write the model folder."""
    train_rows, validation_rows = prepared.rows("train"), prepared.rows("validation")
    cells = pd.DataFrame({"cell": prepared.obs.index.astype(str), "split": prepared.split})
    for key in dict.fromkeys((config.data.label_key, config.data.batch_key, *prepared.kept)):
        if key and key in prepared.obs:  # under another name where it would hide a column of ours
            cells[f"obs_{key}" if key in ("cell", "split", "weight") else key] = prepared.obs[key].astype(object).to_numpy()
    if "weights" in sampler.state:
        cells.loc[train_rows, "weight"] = sampler.state["weights"] * len(train_rows)
    best = {name: value for name, value in fit.history[fit.best_epoch - 1].items() if name != "epoch"}
    return save_model(
        place.folder,
        name,
        module.state_dict(),
        {
            "seed": config.seed,
            "sampler": config.train.sampler,
            "config": config.model_dump(exclude={"out", "device", "threads"}),
            "sizes": sizes,
            "genes": prepared.genes,
            "vocabularies": {key: list(value.categories) for key, value in prepared.vocabularies.items()},
            "data": {**prepared.about, "train": len(train_rows), "validation": len(validation_rows)},
            "metrics": {"epochs": len(fit.history), "best_epoch": fit.best_epoch, "stopped": fit.reason, **best},
            "device": str(device),
        },
        {"history": pd.DataFrame(fit.history), "cells": cells},
    )
