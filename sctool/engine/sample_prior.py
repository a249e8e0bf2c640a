"""A similarity of samples that is known beforehand, for the contrast to keep: from their cells, or given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from sctool.artifacts.tables import read_table
from sctool.config import Config
from sctool.data.cohort import Cohort, Mask
from sctool.errors import SctoolError
from sctool.metrics.samples import sample_distances
from sctool.models.samples.baselines import mean
from sctool.models.samples.gloscope import divergences
from sctool.nn.contrastive import target_summary

FROM_CELLS = ("gloscope", "pseudobulk")


def prior_graph(cohort: Cohort, config: Config, train_s: Mask) -> tuple[NDArray[np.float32] | None, list[str]]:
    """Similarities ``exp(-distance / sampleclr.prior_scale)`` of all samples, and what they ask of the contrast; None without a prior.

    ``gloscope``: divergences of the samples as distributions of cells; ``pseudobulk``: distances of their means, in units of the training
    samples' median distance, times the scale; else a CSV of distances with a row and a column for each sample. A sample without
    distances is as far from all as can be.

    Raises
    ------
    SctoolError
        If there is no such file, or it lacks a sample that is trained on.
    """
    said = config.sampleclr.prior
    if said == "none":
        return None, []
    scale = config.sampleclr.prior_scale
    if said == "gloscope":
        distance_ss = divergences(cohort.features(train_s), cohort.sample_n, len(cohort))
    elif said == "pseudobulk":
        distance_ss = sample_distances(mean(cohort, train_s), "euclidean")
        own = distance_ss[np.ix_(train_s, train_s)]
        distance_ss = scale * distance_ss / max(float(np.median(own[np.triu_indices(len(own), 1)])), 1e-12)
    else:
        distance_ss = _given(Path(said), cohort)
    missing = train_s & ~np.isfinite(distance_ss[:, train_s]).all(1)
    if missing.any():
        raise SctoolError(f"--prior {said}: {int(missing.sum())} samples have no distances, e.g. {cohort.samples[missing][0]}", "add them")
    similarity_ss = np.exp(-np.where(np.isfinite(distance_ss), distance_ss, np.inf) / scale).astype(np.float32)
    np.fill_diagonal(similarity_ss, 1.0)
    asked = target_summary(torch.as_tensor(similarity_ss[np.ix_(train_s, train_s)]), config.sampleclr.graph_temperature)
    note = f"prior {said}: {asked['own']:.0%} of the target is the sample's own other view, {asked['perplexity']:.1f} views share the rest"
    return similarity_ss, [note]


def _given(path: Path, cohort: Cohort) -> NDArray[np.float64]:
    if not path.exists():
        raise SctoolError(f"--prior {path}: no such file", f"give none, {', '.join(FROM_CELLS)}, or a CSV of distances of samples")
    table = read_table(path)
    table.index = pd.Index(table.iloc[:, 0].astype(str))
    names = cohort.samples.astype(str)
    square = table.reindex(index=names, columns=names)
    if square.isna().all(axis=None):
        raise SctoolError(f"--prior {path}: it names samples like {table.index[0]}, the data like {names[0]}", "use the same names")
    distance_ss = square.to_numpy(np.float64)
    if not np.allclose(distance_ss, distance_ss.T, equal_nan=True):
        raise SctoolError(f"--prior {path}: the distance of two samples is not the same both ways", "give symmetric distances")
    return distance_ss
