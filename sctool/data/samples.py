"""From a cohort to what a network of samples trains on: features, codes of what is predicted and of batches, who is trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sctool.config import Config
from sctool.data.clusters import cluster_centres, nearest_centre
from sctool.data.cohort import Cohort, Mask, Task, sample_means, text
from sctool.data.folds import Rows, inner_folds
from sctool.data.prepare import Prepared, default_epochs
from sctool.data.representation import Matrix
from sctool.data.sample_store import LOG_RATIO_CELLS, SampleStore
from sctool.data.splits import split_groups
from sctool.data.vocabulary import Vocabulary


@dataclass(frozen=True)
class PreparedSamples(Prepared):
    """Samples ready for training; rows are samples, ``matrix`` holds the features of cells."""

    sample_n: NDArray[np.int64] | None = None
    targets: Mapping[str, NDArray[np.float64]] | None = None
    """By task: codes, levels or standardised numbers, NaN where unknown; shape (samples,)."""
    cells_per_view: int | Sequence[int] = 100
    graph_ss: NDArray[np.float32] | None = None
    weight_n: NDArray[np.float64] | None = None
    inner: tuple[tuple[Rows, Rows], ...] = ()
    """Of each network for the tasks: samples it is trained on, and those of other donors that it is judged on."""
    unit = "sample"

    @property
    def sizes(self) -> dict[str, int]:
        """What a network is built from."""
        return dict(self.more_sizes)

    @property
    def notes(self) -> list[str]:
        """Lines for people."""
        sizes = {part: len(self.rows(part)) for part in ("train", "validation", "unused")}
        said = ", ".join(f"{n:,} {part}" for part, n in sizes.items() if n)
        return [f"{said} samples; {self.matrix.shape[1]} features of {len(self.matrix):,} cells ({self.about['rep']})"]

    def epochs(self, most: int) -> int:
        """So many, fewer for more than 64 samples, so that about as many are seen, but not below a fifth."""
        return max(default_epochs(len(self.rows("train")), most, 64), most // 5)

    def labels(self, config: Config) -> NDArray[Any] | None:
        """Classes of the first task that has any."""
        for task in self.about["tasks"]:
            if task["kind"] == "class":
                return text(self.obs[task["column"]])
        return None

    def open_store(self, device: Any, *, on_disk: bool) -> SampleStore:
        """What draws views."""
        assert self.sample_n is not None
        names = self.obs.index.astype(str).tolist()
        batch_s, donor_s = self.codes.get("batch"), self.codes["donor"]
        given = self.targets, batch_s, donor_s, self.graph_ss, self.weight_n
        return SampleStore(self.matrix, self.sample_n, names, self.cells_per_view, *given, device)


def prepare_samples(
    cohort: Cohort, tasks: Sequence[Task], config: Config, train_s: Mask, graph_ss: NDArray[np.float32] | None = None
) -> PreparedSamples:
    """Features, scales and codes of a cohort, all fitted on the samples of ``train_s``; part of these (whole donors) may be for validation.

    Parameters
    ----------
    train_s
        Samples to learn from.
    graph_ss
        Similarities of all samples, for the contrast to keep.
    """
    settings, rng = config.sampleclr, np.random.default_rng(config.seed)
    split = np.where(train_s, "train", "unused").astype("<U10")
    if config.data.validation:
        _, held = split_groups(np.flatnonzero(train_s), cohort.donor_s, config.data.validation, rng)
        split[held] = "validation"
        train_s = split == "train"
    own_n = cohort.cells(train_s)
    x_nf, projection = cohort.features(train_s), cohort.source.projection(own_n)
    train_nf = x_nf[own_n]
    centre_f, scale_f = train_nf.mean(0), train_nf.std(0)
    scale_f = np.where(scale_f > 0, scale_f, 1.0).astype(np.float32)
    k = settings.n_clusters
    centre_kf = cluster_centres(train_nf, k, config.seed) if k else np.zeros((0, x_nf.shape[1]), np.float32)
    plain_sv = _plain(x_nf, centre_f, scale_f, centre_kf, cohort)
    initial = {"centre_f": centre_f, "scale_f": scale_f, "encoder.centre_kf": (centre_kf - centre_f) / scale_f, "encoder.metric_f": scale_f}
    vocabularies, codes = {}, {"batch": np.full(len(cohort), -1)}
    if config.data.batch_key:
        column = cohort.table[config.data.batch_key]
        vocabularies["batch"] = Vocabulary.of(column[train_s].dropna())
        codes["batch"] = batch_codes(column, vocabularies["batch"])
    n_batches = len(vocabularies["batch"]) if vocabularies else 0
    level_bv = _levels(plain_sv, codes["batch"], n_batches, cohort.donor_s, train_s)
    centred_sv = plain_sv - level_bv[codes["batch"]]
    spread_v = centred_sv[train_s].std(0)
    initial |= {"encoder.level_bv": level_bv, "encoder.spread_v": np.where(spread_v > 1e-6, spread_v, 1.0)}
    genes: dict[str, list[str]] = {"name": []}
    if projection is not None:
        initial |= {"mean_g": projection.mean_g, "components_gf": projection.components_gf}
        genes = {kind: [names[column] for column in projection.columns] for kind, names in cohort.source.genes.items()}
    scales = {task.column: _scale(task.encode(cohort.table[task.column])[train_s]) for task in tasks if task.kind == "regression"}
    for number, task in enumerate(tasks):
        if task.kind == "class":  # classes weigh the same in total
            code_s = task.encode(cohort.table[task.column])[train_s]
            count_c = np.bincount(code_s[np.isfinite(code_s)].astype(int), minlength=len(task.order))
            initial[f"balance_{number}"] = count_c.sum() / (np.maximum(count_c, 1) * len(count_c))
    targets = {}
    for task in tasks:
        centre, scale = scales.get(task.column, (0.0, 1.0))
        targets[task.column] = (task.encode(cohort.table[task.column]) - centre) / scale
    more = {
        "n_features": x_nf.shape[1],
        "n_genes": len(genes["name"]),
        "n_clusters": len(centre_kf),
        "n_batches": n_batches,
    }
    more |= {f"n_outputs_{number}": task.n_outputs for number, task in enumerate(tasks)}
    about = {
        **{key: value for key, value in cohort.source.about.items() if key != "notes"},
        "tasks": [{"column": t.column, "kind": t.kind, "order": list(t.order), "weight": t.weight} for t in tasks],
        "scales": {key: list(value) for key, value in scales.items()},
        "fingerprint": cohort.fingerprint,
        "cells": len(cohort.obs),
        "samples": len(cohort),
    }
    codes["donor"] = np.unique(cohort.donor_s.astype(str), return_inverse=True)[1]
    inner = _inner_folds(cohort, tasks, settings.n_networks, train_s, config.seed)
    more["n_networks"] = len(inner)
    obs = cohort.table.set_index(pd.Index(cohort.samples.astype(str)))
    weights = None
    if settings.cell_weights:
        weights = np.maximum(pd.to_numeric(cohort.obs[settings.cell_weights], errors="coerce").fillna(0).to_numpy(np.float64), 1e-12)
    return PreparedSamples(
        x_nf,
        obs,
        np.empty(0, np.int64),
        genes,
        vocabularies,
        codes,
        split,
        about,
        cohort.given_sd,
        initial=initial,
        more_sizes=more,
        kept=("donor", "n_cells", *(task.column for task in tasks)),
        sample_n=cohort.sample_n,
        targets=targets,
        cells_per_view=settings.cells_per_view,
        graph_ss=graph_ss,
        weight_n=weights,
        inner=inner,
    )


def _inner_folds(cohort: Cohort, tasks: Sequence[Task], k: int, train_s: Mask, seed: int) -> tuple[tuple[Rows, Rows], ...]:
    """Whole donors left out in turn, the classes of the first task (or the halves of a number) spread evenly."""
    if not tasks:
        return ()
    rows = np.flatnonzero(train_s)
    value_s = tasks[0].encode(cohort.table[tasks[0].column])[rows]
    if tasks[0].kind == "regression":
        value_s = (value_s > np.nanmedian(value_s)).astype(float)
    folds = inner_folds(np.nan_to_num(value_s, nan=-1.0), cohort.donor_s[rows].astype(str), k, seed)
    return tuple((rows[a], rows[b]) for a, b in folds)


def _plain(x_nf: Matrix, centre_f: Matrix, scale_f: Matrix, centre_kf: Matrix, cohort: Cohort) -> NDArray[np.float64]:
    """Mean standardised features and log-ratios of clusters of each sample, shape (samples, features + clusters)."""
    mean_sf = (sample_means(x_nf, cohort.sample_n, len(cohort)) - centre_f) / scale_f
    if not len(centre_kf):
        return mean_sf
    own = np.flatnonzero(cohort.sample_n >= 0)
    place = cohort.sample_n[own] * len(centre_kf) + nearest_centre(x_nf[own], centre_kf)
    count_sk = np.bincount(place, minlength=len(cohort) * len(centre_kf)).reshape(len(cohort), -1)
    log_sk = np.log1p(LOG_RATIO_CELLS * count_sk / np.maximum(count_sk.sum(1, keepdims=True), 1))
    return np.hstack([mean_sf, log_sk - log_sk.mean(1, keepdims=True)])


FEWEST_DONORS = 4
"""Of a batch whose mean is taken away; of fewer, what is the batch and what is the donor cannot be told apart."""


def _levels(plain_sv: NDArray[np.float64], batch_s: Rows, n_batches: int, donor_s: NDArray[Any], train_s: Mask) -> NDArray[np.float64]:
    """Mean of each batch of training samples, or of all where it has few donors; the last row is of all."""
    whole_v = plain_sv[train_s].mean(0)
    own = [train_s & (batch_s == code) for code in range(n_batches)]
    enough = [len(set(donor_s[own_s].tolist())) >= FEWEST_DONORS for own_s in own]
    return np.stack([*(plain_sv[own_s].mean(0) if ok else whole_v for own_s, ok in zip(own, enough, strict=True)), whole_v])


def batch_codes(column: pd.Series, known: Vocabulary) -> NDArray[np.int64]:
    """Codes of the batches of samples, -1 where a batch is unknown."""
    code_s = known.codes(column)
    return np.where(code_s < len(known), code_s, -1)


def _scale(y_s: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and standard deviation of known values."""
    known = y_s[np.isfinite(y_s)]
    return (float(known.mean()), float(known.std()) or 1.0) if len(known) else (0.0, 1.0)
