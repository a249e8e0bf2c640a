"""A trained network of samples on a new file: its cells read as those of training were, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sctool.artifacts.model_folder import ModelFolder
from sctool.config import Config
from sctool.data.check_samples import CheckedSamples, check_samples_file
from sctool.data.cohort import Cohort, Task
from sctool.data.expression import log_normalise, same_scale
from sctool.data.genes import match_genes
from sctool.data.read import H5ad
from sctool.data.representation import Given, find_source
from sctool.data.samples import batch_codes
from sctool.data.vocabulary import Vocabulary
from sctool.engine.device import choose_device
from sctool.engine.query import load_module
from sctool.engine.samples import CELLS, Blocks, in_blocks, represent
from sctool.errors import SctoolError
from sctool.models.registry import BUILDERS


@dataclass(frozen=True)
class SampleQuery:
    """Cells of new samples as a trained network reads them."""

    module: Any
    cohort: Cohort
    batch_s: NDArray[np.int64]
    blocks: Blocks
    tasks: list[Task]
    scales: dict[str, list[float]]
    notes: list[str]


def stored_tasks(folder: ModelFolder) -> list[Task]:
    """What a model predicts."""
    return [Task(t["column"], t["kind"], tuple(t["order"]), t["weight"]) for t in folder.manifest["data"]["tasks"]]


def open_sample_query(folder: ModelFolder, path: Path, config: Config, rep: str | None = None) -> SampleQuery:
    """Match a file to a trained network.

    Parameters
    ----------
    config
        Columns of the file; those not given are called as in training.
    rep
        Where the file has what the model reads, if it is called otherwise there.

    Raises
    ------
    SctoolError
        If the file lacks what the model reads, or it is of another size.
    """
    trained, about = Config.model_validate(folder.manifest["config"]), folder.manifest["data"]
    own = {key: getattr(config.sampleclr, key) or getattr(trained.sampleclr, key) for key in ("sample_key", "donor_key")}
    file = H5ad(path)
    if config.sampleclr.donor_key is None and trained.sampleclr.donor_key == trained.sampleclr.sample_key:
        own["donor_key"] = own["sample_key"]  # samples are donors, whatever they are called here
    donor_key = own["donor_key"]
    if config.sampleclr.donor_key is None and donor_key != own["sample_key"] and not _complete(file, donor_key):
        own["donor_key"] = None  # a new file need not have donors
    label, batch = config.data.label_key, config.data.batch_key or trained.data.batch_key
    batch = batch if config.data.batch_key or batch in file.obs else None
    settings = config.sampleclr.model_copy(
        update={**own, "rep": rep or folder.manifest["data"]["rep"], "min_cells": trained.sampleclr.min_cells}
    )
    data = config.data.model_copy(update={"batch_key": batch, "label_key": label, "n_top_genes": trained.data.n_top_genes})
    config = config.model_copy(update={"sampleclr": settings, "data": data})
    if label is None and trained.data.label_key in file.obs:
        config = config.replaced({"data.label_key": trained.data.label_key})
    # What the cells are read from comes in blocks below; the check needs the samples only.
    checked: CheckedSamples = check_samples_file(file, config, _unread, training=False)
    cohort = checked.require_cohort()
    module = load_module(folder, BUILDERS["sampleclr"]).to(choose_device(config.device))
    blocks, notes = _blocks(file, cohort, folder, config, rep)
    batch_s, known = np.full(len(cohort), -1), folder.manifest["vocabularies"].get("batch")
    if known is not None:
        batch_s = batch_s if batch is None else batch_codes(cohort.table[batch], Vocabulary(tuple(known)))
        new = int((batch_s < 0).sum())
        notes += [f"{new} samples are of no batch the model was trained on; they are taken as of an average one"] if new else []
    return SampleQuery(module, cohort, batch_s, blocks, stored_tasks(folder), about["scales"], [*checked.notes, *notes])


def _complete(file: H5ad, key: str | None) -> bool:
    return key in file.obs and bool(file.obs[key].notna().all())


def _unread(file: H5ad, config: Config) -> Given:
    return Given(np.empty((file.n_cells, 0), np.float32), {})


def _blocks(file: H5ad, cohort: Cohort, folder: ModelFolder, config: Config, given: str | None) -> tuple[Blocks, list[str]]:
    about, rep = folder.manifest["data"], str(config.sampleclr.rep)
    n_features = folder.manifest["sizes"]["n_features"]
    kind, _, key = rep.partition(":")
    if "expression" in about:
        return _expression(file, cohort, folder, config)
    if kind != "obsm":
        source = represent(file, config)
        x_nf = source.features(np.ones(file.n_cells, bool))
        _same_size(x_nf.shape[1], n_features, rep)
        return in_blocks(x_nf, cohort.sample_n), source.about.get("notes", [])
    if given is None and key not in file.obsm:
        there = ", ".join(f"obsm:{name}" for name in file.obsm)
        raise SctoolError(
            f"{file.path} has no obsm {key!r}, which the model reads; it has: {there or 'none'}",
            "say where it is with --rep, e.g. --rep obsm:X_mine; it must be the embedding of training, not another one",
        )
    first = next(file.embedding_blocks(key, 1))
    _same_size(first.shape[1], n_features, rep)

    def blocks() -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        for at, x_nf in zip(range(0, file.n_cells, CELLS), file.embedding_blocks(key, CELLS), strict=True):
            yield x_nf, cohort.sample_n[at : at + CELLS]

    return blocks, []


def _same_size(found: int, wanted: int, rep: str) -> None:
    if found != wanted:
        raise SctoolError(
            f"{rep} has {found} dimensions, the model was trained on {wanted}", "give the embedding it was trained on with --rep"
        )


def _expression(file: H5ad, cohort: Cohort, folder: ModelFolder, config: Config) -> tuple[Blocks, list[str]]:
    """Principal components of log expression; genes that the file lacks stand at their mean."""
    about, weights = folder.manifest["data"], folder.weights()
    target_sum = about["target_sum"]
    found = same_scale(file, find_source(file, config), target_sum)
    match = match_genes(folder.manifest["genes"], found.var, config.data.min_gene_coverage)
    have = match.columns >= 0
    components_gf, mean_g = weights["components_gf"].numpy()[have], weights["mean_g"].numpy()[have]

    def blocks() -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        starts = list(range(0, file.n_cells, CELLS // 8))
        for at, x_ng in zip(starts, file.blocks(found.source, starts, CELLS // 8), strict=True):
            bad = int((~np.isfinite(x_ng.data)).sum() + (x_ng.data < 0).sum())
            if bad:
                raise SctoolError(f"{file.path}: {found.source} has {bad} NaN, infinite or negative values", "put raw counts into it")
            x_ng = log_normalise(x_ng, target_sum) if found.kind.is_linear else x_ng
            x_nf = x_ng[:, match.columns[have]] @ components_gf - mean_g @ components_gf
            yield np.asarray(x_nf, np.float32), cohort.sample_n[at : at + CELLS // 8]

    return blocks, [str(match)]
