"""A file of cells whose types a trained classifier calls: what is read, what is written, and what the user is told."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sctool.artifacts.atomic import atomic_file, write_json
from sctool.artifacts.result_folder import result_folder
from sctool.config import Config
from sctool.data.read import H5ad
from sctool.engine.annotate import WELL_COVERED, Called, call_types, gene_report, open_query
from sctool.engine.bundle import Bundle, open_bundle
from sctool.errors import SctoolError
from sctool.models.classify.hierarchy import Hierarchy
from sctool.models.classify.reject import Rejector

MANY = 0.3
_CHUNK = 20_000


@dataclass(frozen=True)
class CalledFile:
    """Called cells, and where they came from."""

    path: Path
    bundle: Bundle
    called: Called
    genes: pd.DataFrame
    figures: dict[str, Any]
    lines: list[str]

    def write(self, results: Path, *, force: bool, copy: Path | None = None) -> None:
        """Write ``predictions.csv``, ``proba.csv``, ``gene_report.tsv`` and ``metrics.json``; and a copy of the file with the labels."""
        with result_folder(results, force=force) as partial:
            self.called.table.to_csv(partial / "predictions.csv", index=False)
            with (partial / "proba.csv").open("w") as file:
                for start in range(0, len(self.called.table), _CHUNK):
                    part = pd.DataFrame(self.called.probabilities[start : start + _CHUNK], columns=list(self.bundle.fitted.classes))
                    part.insert(0, "cell", self.called.table["cell"].to_numpy()[start : start + _CHUNK], allow_duplicates=True)
                    part.to_csv(file, index=False, header=start == 0)
            self.genes.to_csv(partial / "gene_report.tsv", index=False, sep="\t")
            write_json(partial / "metrics.json", {"task": "predict", **self.figures})
        if copy is not None:
            _copy_with_labels(self.path, copy, self.called.table)


def call_file(model: Path, path: Path, config: Config, *, given_rule: str | None, say: Callable[[str], None]) -> CalledFile:
    """Call the types of the cells of a file.

    Parameters
    ----------
    given_rule
        A rule of rejection that needs no held-out cells (``none`` or ``max_prob:T``); None takes the model's own.
    """
    bundle, file, c = open_bundle(model), H5ad(path), config.classify
    if file.obs.index.has_duplicates:
        name = file.obs.index[file.obs.index.duplicated()][0]
        raise SctoolError(f"{path.name}: cell names occur more than once, e.g. {name}", "make them unique: adata.obs_names_make_unique()")
    rejector = Rejector.parse(given_rule) if given_rule else None
    hierarchy = Hierarchy.read(Path(c.hierarchy)) if c.hierarchy else None
    if c.vote and c.vote != "auto":
        file.column(c.vote, "--vote")
    query = open_query(bundle, file, config.data)
    genes = gene_report(bundle, query)
    if query.match is not None:
        say(f"{query.match}; {query.covered:.0%} by importance")
    called = call_types(
        bundle, query, rejector=rejector, hierarchy=hierarchy, back_off=c.back_off, vote=c.vote, min_share=c.min_share, seed=config.seed
    )
    table, lines = called.table, []
    rejected = float(table["rejected"].mean())
    trained = _trained_on(bundle)
    seen = int(table["cell"].isin(trained).sum())
    if seen:
        lines.append(f"note: {seen:,} of {len(table):,} cells have names of training cells: a score of them would be too good")
    if query.covered < WELL_COVERED:
        lines.append(f"note: the file has {query.covered:.0%} of what decides (by importance); gene_report.tsv says what is missing")
    if rejected > MANY:
        lines.append(
            f"note: {rejected:.0%} of the cells are left unassigned: types or a technology the model has not seen, or missing genes; "
            "`sctool novelty` looks closer"
        )
    promise = (rejector or bundle.fitted.rejector).promise
    if promise:
        lines.append(f"unassigned: {promise}")
    figures = {
        "cells": len(table),
        "model": str(bundle.folder.path),
        "rejected": rejected,
        "mean_confidence": float(table["confidence"].mean()),
        "features_covered": query.covered,
        "features_found": float((genes["status"] != "missing").mean()),
    }
    return CalledFile(path, bundle, called, genes, figures, lines)


def _trained_on(bundle: Bundle) -> set[str]:
    """Names of the cells it was trained on, where the run it belongs to is there."""
    file = bundle.folder.path.parent / "cells.csv"
    return set(pd.read_csv(file, dtype=str)["cell"]) if file.exists() else set()


def _copy_with_labels(path: Path, copy: Path, table: pd.DataFrame) -> None:
    """A copy of the file whose obs has the new columns, ``sctool_label`` and so on; the file itself is left alone."""
    import h5py
    from anndata.io import read_elem, write_elem

    columns = table.drop(columns="cell").add_prefix("sctool_").set_index(table["cell"].to_numpy())
    with atomic_file(copy) as partial:
        shutil.copyfile(path, partial)
        with h5py.File(partial, "r+") as file:
            obs = read_elem(file["obs"])
            for key in columns:
                obs[key] = columns[key].to_numpy()
            del file["obs"]
            write_elem(file, "obs", obs)
