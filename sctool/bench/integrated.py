"""A trained integration on the cells of a file: codes, refined if that is worth it, expression, types, and their scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sctool.artifacts.atomic import write_json
from sctool.artifacts.model_folder import ModelFolder
from sctool.artifacts.result_folder import result_folder
from sctool.bench.entries import ARMS
from sctool.bench.evaluation import Evaluation
from sctool.bench.integration import score_embeddings
from sctool.bench.refinement import Gate, refinement_gate
from sctool.bench.unintegrated import unintegrated_pca
from sctool.bench.zero_shot import Contestant
from sctool.config import Config
from sctool.data.expression import read_expression
from sctool.data.integration import check_targets, labels_of, target_batch
from sctool.data.read import H5ad, near
from sctool.engine.correct import prediction_table, write_corrected
from sctool.engine.query import Query, open_query
from sctool.engine.refine import Encoded, encode, refine
from sctool.errors import SctoolError
from sctool.models.registry import BUILDERS
from sctool.sections import IntegrateConfig

Say = Callable[[str], None]


@dataclass(frozen=True)
class Integrated:
    """What is written to ``results/integrate/RUN``."""

    folder: ModelFolder
    query: Query
    encoded: Encoded
    names: list[str]
    """Of the classes."""
    z_nl: NDArray[np.float32]
    """The codes: refined ones if a refinement was asked for and accepted."""
    moved_n: NDArray[np.bool_]
    gate: Gate | None
    target: str | int
    evaluation: Evaluation | None
    figures: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    @property
    def metrics(self) -> dict[str, Any]:
        """What ``metrics.json`` holds."""
        scored = self.evaluation.metrics if self.evaluation else {"task": "integration"}
        gate = {"refinement": {"accepted": self.gate.accepted, "reason": self.gate.reason, **self.gate.figures}} if self.gate else {}
        return {**scored, "model": str(self.folder.path), **self.figures, **gate}

    def write(self, results: Path, *, force: bool) -> None:
        """Write the result folder atomically."""
        query, folder = self.query, self.folder
        predictions = prediction_table(self.encoded, self.names, query.obs.index)
        columns = predictions.set_index("cell")[["label", "probability"]].add_prefix("predicted_").assign(refined=self.moved_n)
        columns.index = query.obs.index
        about = {"model": str(folder.path), "target_batch": str(self.target), "refined": bool(self.gate and self.gate.accepted)}
        with result_folder(results, force=force) as partial:
            if self.evaluation:
                self.evaluation.write(partial, force=True, beside=True)
            np.save(partial / "latent_embeddings.npy", self.z_nl)
            if self.gate:
                np.save(partial / "latent_unrefined.npy", self.encoded.mean_nl)
            predictions.to_csv(partial / "cell_type_predictions.csv", index=False)
            write_corrected(partial / "corrected_expression.h5ad", query, self.z_nl, self.target, about, columns)
            folder.table("history").to_csv(partial / "history.csv", index=False)
            _log(partial / "logs" / "training.log", folder, self.lines)
            write_json(partial / "metrics.json", self.metrics)


def integrate_cells(folder: ModelFolder, path: Path, config: Config, say: Say = lambda text: None) -> Integrated:
    """Apply a trained integration to the cells of a file.

    Parameters
    ----------
    folder
        The model.
    path
        The cells: those of training, or new ones.
    config
        The keys of ``integrate`` that say what is refined, decoded and scored; keys of the file that differ from those of training.
    say
        Told what is done.
    """
    trained = Config.model_validate(folder.manifest["config"])
    vocabularies, wanted = folder.manifest["vocabularies"], config.integrate
    check_targets(config.replaced({"diffusion.train_steps": trained.diffusion.train_steps}), vocabularies["batch"])
    target = target_batch(wanted.target_batch, vocabularies["batch"])
    query = open_query(folder, BUILDERS["integrate"], path, config)
    if config.data.batch_key and config.data.batch_key not in query.obs:
        columns = list(map(str, query.obs.columns))
        wrong = f"{path}: obs has no column {config.data.batch_key!r} (--batch-key); it has: {', '.join(columns[:20])}"
        raise SctoolError(wrong, near(config.data.batch_key, columns))
    lines = [str(query.match)]
    if query.batches_known < 1:
        lines.append(f"note: {1 - query.batches_known:.0%} of the cells are from batches the model has not seen; placed as of any batch")
    for line in lines:
        say(line)
    encoded = encode(query)
    labels = vocabularies.get("label")
    names = labels or [f"cluster_{k}" for k in range(query.module.n_classes)]
    z_nl, moved_n, gate = encoded.mean_nl, np.zeros(len(encoded.mean_nl), bool), None
    if wanted.refine and wanted.refine_method != "none":
        if isinstance(target, int) and wanted.refine_target == "auto":
            wanted = wanted.model_copy(update={"refine_target": vocabularies["batch"][target]})
        z_nl, moved_n, gate = gated_refinement(query, encoded, wanted, vocabularies["batch"], config.seed)
        what = f"accepted at {gate.figures['steps']} steps" if gate.accepted else "not accepted"
        lines.append(f"refinement {what}: {gate.reason} ({gate.figures['moved']:.0%} of the cells moved)")
        say(lines[-1])
    figures = {
        "mode": folder.manifest["data"]["mode"],
        "cells": len(z_nl),
        "genes": len(query.genes),
        "gene_coverage": query.match.coverage,
        "batches_known": query.batches_known,
        "target_batch": wanted.target_batch,
        "moved": float(moved_n.mean()),
    }
    evaluation = _scored(folder, query, encoded, z_nl, gate, path, config, trained, say) if config.integrate.score else None
    if evaluation:
        lines += [*evaluation.verdict(), *evaluation.notes]
        if labels and "total" in evaluation.columns:
            lines.append("trained with labels, which flatters the scores of biology: compare it with methods that saw them too")
    return Integrated(folder, query, encoded, names, z_nl, moved_n, gate, target, evaluation, figures, lines)


def gated_refinement(
    query: Query, encoded: Encoded, wanted: IntegrateConfig, batches: list[str], seed: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_], Gate]:
    """New codes where the gate accepts them, else the old ones; less noise is tried before giving up, half and a quarter of the steps."""
    gates = []
    for part in (1, 2, 4):
        milder = wanted.model_copy(update={"refine_steps": max(1, wanted.refine_steps // part)})
        z_nl, moved_n = refine(query, encoded, milder, batches)
        gates.append(refinement_gate(encoded.mean_nl, z_nl, moved_n, encoded.type_n, encoded.batch_n, seed))
        gates[-1].figures["steps"] = milder.refine_steps
        if gates[-1].accepted:
            return z_nl, moved_n, gates[-1]
        if not moved_n.any():
            break
    return encoded.mean_nl, np.zeros(len(encoded.mean_nl), bool), gates[0]


def _scored(
    folder: ModelFolder,
    query: Query,
    encoded: Encoded,
    z_nl: NDArray[np.float32],
    gate: Gate | None,
    path: Path,
    config: Config,
    trained: Config,
    say: Say,
) -> Evaluation | None:
    """Scores of the codes beside the cells without integration; None where there is one batch."""
    obs = query.obs
    batch_key, label_key = config.data.batch_key or trained.data.batch_key, config.data.label_key or trained.data.label_key
    if batch_key not in obs or obs[batch_key].nunique() < 2:
        say("not scored: the cells are of one batch")
        return None
    labels = None
    if label_key and label_key in obs:
        labels = labels_of(obs[label_key], trained.integrate.unlabeled)
        labels[labels == ""] = None
    arm = ARMS[folder.manifest["sampler"]]
    contestants = [Contestant("integrated", arm, int(folder.manifest["seed"]), encoded.mean_nl)]
    if gate and gate.accepted:
        contestants.append(Contestant("refined", arm, int(folder.manifest["seed"]), z_nl))
    log_ng, _ = read_expression(H5ad(path), config.data, 1e4)
    pca_np = unintegrated_pca(log_ng)
    batches = obs[batch_key].astype(str).to_numpy()
    keys = (str(batch_key), str(label_key))
    cells = obs.index.to_numpy()
    try:
        return score_embeddings(contestants, pca_np, batches, labels, cells, keys=keys, say=say)
    except SctoolError as error:  # labels that cannot be scored are no reason to lose the result
        say(f"note: {error.message}; only mixing is scored")
        return score_embeddings(contestants, pca_np, batches, None, cells, keys=keys, say=say)


def _log(path: Path, folder: ModelFolder, lines: list[str]) -> None:
    """The history in words, and what was said while the cells were integrated."""
    path.parent.mkdir()
    history: pd.DataFrame = folder.table("history")
    rows = [
        ", ".join(f"{key} {value:.5g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items() if pd.notna(value))
        for row in history.to_dict("records")
    ]
    path.write_text("\n".join([folder.manifest["command"], *rows, *lines]) + "\n")
