"""From a file and a configuration to what a model of counts trains on: genes, codes, and which cells are for what."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from sctool.config import Config
from sctool.data.cache import cached_csr, take_rows
from sctool.data.check import check_counts_file
from sctool.data.demo import Demo
from sctool.data.genes import gene_names, match_genes, variable_genes
from sctool.data.matrix_kind import find_counts
from sctool.data.minibatch import CellStore
from sctool.data.read import H5ad
from sctool.data.splits import select, split_cells, split_groups
from sctool.data.vocabulary import Vocabulary
from sctool.errors import SctoolError

_PLURALS = {
    "batch": "n_batches",
    "group": "n_groups",
    "label": "n_labels",
    "perturbation": "n_perturbations",
    "target": "n_targets",
    "criterion": "n_criteria",
}
HVG_CELLS_BACKED = 10_000
"""Training cells on which genes are chosen when the matrix stays on disk."""


@dataclass(frozen=True)
class Prepared:
    """Cells ready for training."""

    matrix: Any
    """What the model reads, counts or log expression: CSR of shape (cells, all genes of the file); in memory or memory-mapped."""
    obs: pd.DataFrame
    columns: NDArray[np.int64]
    """Columns of ``matrix`` the model uses, in the model's order."""
    genes: dict[str, list[str]]
    """Names of those genes by kind; ``name`` is the main one."""
    vocabularies: dict[str, Vocabulary]
    codes: dict[str, NDArray[np.int64]]
    split: NDArray[Any]
    """``train``, ``validation``, ``test`` (never trained on) or ``unused``, shape (cells,)."""
    about: dict[str, Any]
    """Where the data came from, for the manifest."""
    embedding: NDArray[np.float32] | None = None
    """Given latent codes of the cells, where ``ar.embedding`` names them; shape (cells, dimensions)."""
    kept: tuple[str, ...] = ()
    """Columns of obs that the model folder's table of cells keeps, beside those of labels and batches."""

    measured_g: NDArray[np.bool_] | None = None
    """Which of the model's genes the file has, where it may lack some; shape (genes,)."""
    totals: NDArray[np.float32] | None = None
    """Counts of each cell over all genes of the experiment, where the model reads what is beyond its genes as one more; shape (cells,)."""
    initial: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """What the network holds from the beginning, by the name of its buffer or parameter."""
    more_sizes: Mapping[str, int] = field(default_factory=dict)
    """Sizes of the network that are no vocabulary's."""

    @property
    def sizes(self) -> dict[str, int]:
        """What a network is built from."""
        return {
            "n_genes": len(self.columns) + (self.totals is not None),
            **{_PLURALS[key]: len(known) for key, known in self.vocabularies.items()},
            **self.more_sizes,
        }

    @property
    def notes(self) -> list[str]:
        """Lines for people."""
        sizes = {part: len(self.rows(part)) for part in ("train", "validation", "test")}
        said = ", ".join(f"{n:,} {part}" for part, n in sizes.items() if n)
        return [
            *(f"note: {note}" for note in self.about["notes"]),
            f"{said} cells; {len(self.columns):,} genes; {self.reads} from {self.about[self.reads]}",
        ]

    @property
    def reads(self) -> str:
        """``counts`` or ``expression``."""
        return "counts" if "counts" in self.about else "expression"

    unit = "cell"
    """What a row is."""

    def rows(self, part: str) -> NDArray[np.int64]:
        """Rows of a part."""
        return np.flatnonzero(self.split == part)

    def epochs(self, most: int) -> int:
        """So many epochs, fewer for more than 20,000 cells, so that as many are seen: the rule of scvi-tools."""
        return default_epochs(len(self.rows("train")), most)

    def labels(self, config: Config) -> NDArray[Any] | None:
        """What the balanced sampler gives equal mass, "" where unknown; None without a column of labels."""
        key = config.data.label_key
        return self.obs[key].astype(object).where(self.obs[key].notna(), "").astype(str).to_numpy() if key else None

    def open_store(self, device: Any, *, on_disk: bool) -> Any:
        """What gives minibatches; columns are taken once where the matrix is in memory, and at every fetch where it is on disk."""
        matrix = self.matrix if on_disk else self.matrix[:, self.columns]
        return CellStore(matrix, self.codes, self.obs.index, self.columns if on_disk else None, device, self.totals)


def default_epochs(n_rows: int, most: int = 400, enough: int = 20_000) -> int:
    """So many epochs, fewer for more rows than ``enough``, so that as many are seen."""
    return int(min(most, max(1, round(most * enough / n_rows))))


def prepare_counts(path: Path, config: Config, demo: Demo | None = None) -> Prepared:
    """Read and check a file, choose cells for training, validation and test, and genes on the training cells.

    Parameters
    ----------
    path
        The .h5ad file.
    config
        Its ``data`` section and ``seed``.
    demo
        The bundled data set, where ``path`` is one; its own part plays the atlas.
    """
    data, rng = config.data, np.random.default_rng(config.seed)
    file = H5ad(path)
    embedding = file.given_embedding(config)
    checked = check_counts_file(file, data)
    source = checked.require().source
    obs, var = file.obs, file.genes(source)
    counts = cached_csr(file, source, Path(data.cache_dir) if data.cache_dir else None) if data.backed else file.matrix(source)
    split = np.full(len(obs), "train", dtype="<U10")
    if data.cells:
        split[~select(obs, data.cells)] = "unused"
    if data.hold_out:
        split[select(obs, data.hold_out) & (split == "train")] = "test"
    if data.skip_empty:
        split[np.diff(counts.indptr) == 0] = "unused"
    about: dict[str, Any] = {"file": str(path), "counts": source, "notes": checked.notes}
    if data.atlas and data.atlas_count is None:
        raise SctoolError(f"--atlas {data.atlas} without --atlas-count", "say how many of its cells replace as many of the base")
    if data.atlas_count is not None:
        if data.atlas and embedding is not None:
            raise SctoolError("--ar-embedding and --atlas don't go together", "merge the files first, or leave one out")
        counts, obs, split, var = _mix_atlas(config, demo, counts, obs, split, var, rng)
        about["atlas"] = data.atlas or (demo.atlas if demo else "")
    elif data.total_cells is not None:
        split = _keep(split, np.flatnonzero(split == "train"), data.total_cells, rng)

    train = np.flatnonzero(split == "train")
    if data.group_key:
        _, validation = split_groups(train, obs[data.group_key].astype(str).to_numpy(), data.validation, rng)
    else:
        _, validation = split_cells(train, data.validation, rng)
    split[validation] = "validation"
    train = np.flatnonzero(split == "train")
    if len(train) < 2:
        raise SctoolError(f"{len(train)} cells are left to train on", "hold out or leave out fewer cells")

    vocabularies = {"batch": Vocabulary.of(obs[data.batch_key].iloc[train]) if data.batch_key else Vocabulary(("all",))}
    batch = obs[data.batch_key] if data.batch_key else pd.Series("all", index=obs.index)
    codes = {"batch": vocabularies["batch"].codes(batch)}
    chosen = train if not data.backed else np.sort(rng.permutation(train)[:HVG_CELLS_BACKED])
    columns = variable_genes(take_rows(counts, chosen), data.n_top_genes, codes["batch"][chosen] if data.batch_key else None)
    genes = {kind: [names[column] for column in columns] for kind, names in gene_names(var).items()}
    about |= {"cells": len(obs), "genes": len(var), "fingerprint": fingerprint(obs, var, counts)}
    return Prepared(counts, obs, columns, genes, vocabularies, codes, split, about, embedding)


def _mix_atlas(
    config: Config, demo: Demo | None, counts: Any, obs: pd.DataFrame, split: NDArray[Any], var: pd.DataFrame, rng: np.random.Generator
) -> tuple[Any, pd.DataFrame, NDArray[Any], pd.DataFrame]:
    """A base in which ``atlas_count`` cells are replaced by cells of an atlas; the total stays.

    The atlas is a file of its own (its genes are matched to the base's; genes it lacks are dropped from both), or part of the demo.
    """
    data, wanted = config.data, config.data.atlas_count
    assert wanted is not None
    if data.atlas:
        if data.backed:
            raise SctoolError("--backed and --atlas don't go together", "leave --backed out, or merge the files first")
        file = H5ad(Path(data.atlas))
        source = check_counts_file(file, data.model_copy(update={"label_key": None, "hold_out": None})).require().source
        match = match_genes({"name": [str(name) for name in var.index]}, file.genes(source), config.data.min_gene_coverage)
        shared = np.flatnonzero(match.columns >= 0)
        other = file.matrix(source)[:, match.columns[shared]]
        counts, var = sp.vstack([counts[:, shared], other], format="csr"), var.iloc[shared]
        atlas_obs = file.obs.copy()
        repeated = atlas_obs.index.isin(obs.index)
        if repeated.any():
            raise SctoolError(
                f"{int(repeated.sum())} cells are in both {data.path or 'the base'} and {data.atlas}, e.g. {atlas_obs.index[repeated][0]}",
                "take them out of one, or give the cells of each file names of their own",
            )
        base = np.flatnonzero(split == "train")
        atlas = np.arange(len(obs), len(obs) + len(atlas_obs))
        if data.hold_out and data.hold_out.partition("=")[0] in atlas_obs:
            held = select(pd.concat([obs, atlas_obs]), data.hold_out)
            atlas = atlas[~held[atlas]]
        split = np.concatenate([split, np.full(len(atlas_obs), "unused", dtype=split.dtype)])
        obs = pd.concat([obs, atlas_obs])
    elif demo is not None and demo.atlas:
        is_atlas = select(obs, demo.atlas)
        base, atlas = np.flatnonzero((split == "train") & ~is_atlas), np.flatnonzero((split == "train") & is_atlas)
        split = np.where((split == "train") & is_atlas, "unused", split)
    else:
        raise SctoolError(f"--atlas-count {wanted} needs an atlas", "give its file with --atlas ATLAS.h5ad")
    total = data.total_cells or len(base)
    if wanted > len(atlas) or wanted > total:
        limit = f"the atlas has {len(atlas):,} cells" if wanted > len(atlas) else f"there are {total:,} training cells in all"
        raise SctoolError(f"--atlas-count {wanted}: {limit}", f"give at most {min(len(atlas), total)}")
    split = _keep(split, base, total - wanted, rng)
    split[rng.permutation(atlas)[:wanted]] = "train"
    return counts, obs, split, var


def _keep(split: NDArray[Any], rows: NDArray[np.int64], n: int, rng: np.random.Generator) -> NDArray[Any]:
    """Leave all but ``n`` of some training cells unused."""
    if n > len(rows):
        raise SctoolError(f"--total-cells: {n:,} asked for, {len(rows):,} there", f"give at most {len(rows)}")
    split = split.copy()
    split[rng.permutation(rows)[n:]] = "unused"
    return split


def fingerprint(obs: pd.DataFrame, var: pd.DataFrame, counts: Any) -> str:
    """A hash of the cell names, the gene names and where the counts of each cell lie."""
    digest = hashlib.sha256()
    for names in (obs.index, var.index):
        digest.update("\n".join(map(str, names)).encode())
    digest.update(np.asarray(counts.indptr, np.int64).tobytes())
    digest.update(np.ascontiguousarray(counts.data[:: max(1, counts.nnz // 1_000_000)]).tobytes())
    return digest.hexdigest()


def query_counts(path: Path, config: Config, genes: dict[str, list[str]], vocabularies: dict[str, Vocabulary]) -> tuple[Any, ...]:
    """Read a query for a trained model: counts, obs, the model's columns in it, and codes; new batches become "unknown".

    Returns
    -------
    counts, obs, match, codes
        Of which ``match`` is a :class:`~sctool.data.genes.GeneMatch`.
    """
    data = config.data
    file = H5ad(path)
    found = find_counts(file, data.counts_layer)
    match = match_genes(genes, found.var, data.min_gene_coverage)
    counts = cached_csr(file, found.source, Path(data.cache_dir) if data.cache_dir else None) if data.backed else file.matrix(found.source)
    bad = int((~np.isfinite(counts.data)).sum() + (counts.data < 0).sum())
    if bad:
        raise SctoolError(f"{path}: {found.source} has {bad} NaN, infinite or negative values", "put raw counts into it")
    known = vocabularies["batch"]
    if data.batch_key and data.batch_key in file.obs:
        codes = known.codes(file.obs[data.batch_key])
    else:
        codes = np.full(file.n_cells, 0 if len(known) == 1 else len(known))
    return counts, file.obs, match, {"batch": codes}
