"""Cells of a file as a trained model of perturbations sees them: the ones to perturb, or to see as if quality control had passed them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from sctool.artifacts.atomic import write_json
from sctool.artifacts.cells import CHUNK_CELLS, Block, frame_of, write_cells
from sctool.artifacts.result_folder import result_folder
from sctool.config import Config
from sctool.data.check_perturbation import perturbation_names
from sctool.data.genes import GeneMatch, match_genes
from sctool.data.matrix_kind import find_counts
from sctool.data.minibatch import CellStore
from sctool.data.perturbation_names import CONTROL
from sctool.data.quality import Thresholds, flags, gene_symbols, given_flags, measure
from sctool.data.read import H5ad
from sctool.data.screen import cell_sizes
from sctool.data.vocabulary import Vocabulary
from sctool.engine.perturb import Cells, Response


class ScreenQuery:
    """A file read for a trained network.

    Parameters
    ----------
    response
        The model.
    path
        The .h5ad file; a column of perturbations it lacks means that all its cells are control cells.
    config
        Its keys, where they differ from those of training.
    """

    def __init__(self, response: Response, path: Path, config: Config) -> None:
        folder, trained = response.folder, response.config
        self.response, self.notes = response, list[str]()
        file = H5ad(path)
        layer = config.data.counts_layer or trained.data.counts_layer
        found = find_counts(file, layer if layer is None or layer in file.layers else None)
        self.match: GeneMatch = match_genes(folder.manifest["genes"], found.var, config.data.min_gene_coverage)
        self.obs = file.obs
        counts = file.matrix(found.source)
        given = {key: value for key, value in config.cradle.model_dump().items() if key in ("perturbation_key", "control") and value}
        settings = trained.cradle.model_copy(update=given)
        there = bool(settings.preset) or settings.perturbation_key in file.obs
        if "perturbation_key" in given and not there:
            file.column(given["perturbation_key"], "--perturbation-key")  # raises
        self.name_n = perturbation_names(file.obs, settings) if there else np.full(file.n_cells, CONTROL, object)
        total_n = self._totals(counts, file.obs)
        known = {key: Vocabulary(tuple(values)) for key, values in folder.manifest["vocabularies"].items()}
        key = config.data.batch_key or trained.data.batch_key
        if config.data.batch_key and config.data.batch_key not in file.obs:
            file.column(config.data.batch_key, "--batch-key")  # raises
        unknown = 0 if len(known["batch"]) == 1 else len(known["batch"])
        if unknown and key not in file.obs:
            self.notes.append(f"obs has no column {key!r} of batches: the cells are taken for those of an average batch")
        batch_n = known["batch"].codes(file.obs[key]) if key in file.obs and unknown else np.full(file.n_cells, unknown)
        batches = file.obs[key].astype(str).to_numpy() if trained.cradle.qc_by_batch and key in file.obs else None
        self.failed = _failed(response, file, counts, gene_symbols(found.var), batches)
        self.batch_n = torch.from_numpy(np.asarray(batch_n, np.int64))
        codes = {"batch": np.asarray(batch_n, np.int64)}
        self.store = CellStore(counts, codes, file.obs.index, self.match.columns, totals=total_n)

    def _totals(self, counts: Any, obs: pd.DataFrame) -> NDArray[np.float64]:
        """Counts of each cell over all genes of the experiment; where only training had a column of these, by the genes' usual share."""
        key, column = self.response.config.cradle.size_key, self.response.folder.manifest["data"].get("size_column")
        if column is None or column in obs:
            return cell_sizes(counts, obs, key if column is not None or key != "auto" else "none")
        share = 1 - float(self.response.module.log_share_g[-1].exp())
        self.notes.append(
            f"obs has no column {column!r}, by which cells were scaled in training: totals are guessed from the genes there are"
        )
        return cell_sizes(counts[:, self.match.columns[self.match.columns >= 0]], obs, "none") / max(share, 1e-6)

    @torch.inference_mode()
    def cells(self, rows: NDArray[np.int64]) -> Cells:
        """Some cells with their latent states: what is left of their expression without perturbation and artifact."""
        response, module = self.response, self.response.module
        effect_tl, artifact_ql, _ = module.draw(sample=False)
        effects = {name: response.effect(effect_tl, name) for name in set(self.name_n[rows])}
        failed_nq = torch.from_numpy(self.failed[rows].astype(np.float32))
        z_nl = torch.empty(len(rows), artifact_ql.shape[1])
        total_n = torch.empty(len(rows))
        for start in range(0, len(rows), CHUNK_CELLS):
            at = slice(start, start + CHUNK_CELLS)
            batch = self.store.batch(rows[at])
            u_nl = torch.stack([effects[name] for name in self.name_n[rows[at]]])
            x_nh = module.project(module.standardised(batch), batch.codes["batch"])
            z_nl[at] = module.encode(x_nh, u_nl, failed_nq[at] @ artifact_ql)[0]
            total_n[at] = batch.depth_n1[:, 0]
        return Cells(self.store.names(rows), z_nl, total_n, self.batch_n[rows])


def _failed(response: Response, file: H5ad, counts: Any, symbols: list[str], batch_n: Any) -> NDArray[np.bool_]:
    """Which of the model's criteria each cell failed, by the limits of training; shape (cells, criteria)."""
    about, criteria = response.folder.manifest["data"]["quality"], response.folder.manifest["vocabularies"]["criterion"]
    if not criteria:
        return np.zeros((file.n_cells, 0), bool)
    if about["key"] != "auto":
        there = about["key"] in file.obs
        return given_flags(file.obs, about["key"])[:, None] if there else np.zeros((file.n_cells, 1), bool)
    made = flags(measure(counts, symbols, file.obs), Thresholds.from_json(about["thresholds"]), batch_n)
    return made.reindex(columns=criteria, fill_value=False).to_numpy(bool)


def write_counterfactual(query: ScreenQuery, results: Path, about: dict[str, Any], *, force: bool) -> dict[str, Any]:
    """Write every cell of a file as if it had passed quality control, its perturbation and depth kept; returns the figures.

    ``predictions.h5ad``: ``X`` is the expected log expression, layer ``expected`` the expected counts.
    """
    response, n = query.response, len(query.obs)
    rows = np.arange(n)
    obs = query.obs.assign(perturbation=query.name_n, quality_observed=np.where(query.failed.any(1), "fail", "pass"), quality="pass")
    said = {"model": str(response.folder.path), "X": f"log1p of expected counts per {response.target_sum:,.0f}", "cells": about["meaning"]}

    def blocks() -> Iterator[Block]:
        for at in range(0, n, CHUNK_CELLS):
            cells = query.cells(rows[at : at + CHUNK_CELLS])
            expected_ng = response.expected_counts(cells, query.name_n[at : at + CHUNK_CELLS])
            scale_n1 = response.target_sum / cells.total_n[:, None]
            yield {"X": torch.log1p(expected_ng * scale_n1).numpy(), "expected": expected_ng.numpy()}

    figures = {"cells": n, "failed": int(query.failed.any(1).sum())}
    with result_folder(results, force=force) as partial:
        write_cells(partial / "predictions.h5ad", frame_of(obs, response.genes, uns={"sctool": said}), blocks())
        write_json(partial / "metrics.json", {"task": "counterfactual", **figures, **about})
    return figures
