"""A similarity of samples that is known beforehand, for the contrast to keep: from their cells, or given."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
KEEPING = ("xsample", "xsample_bce")
"""Losses that keep a prior."""
Floats = NDArray[np.float64]


def check_prior(cohort: Cohort, config: Config) -> None:
    """Refuse a prior that cannot be used, before anything is trained.

    Raises
    ------
    SctoolError
        If the loss keeps none, there is no such file, or it lacks a sample that is trained on.
    """
    said, loss = config.sampleclr.prior, config.sampleclr.loss
    if said == "none":
        return
    if loss not in KEEPING:
        raise SctoolError(
            f"--prior {said}: the loss {loss} keeps no prior", "--prior needs sampleclr.loss xsample: give --set sampleclr.loss=xsample"
        )
    if said not in FROM_CELLS:
        _require_known(said, _given(Path(said), cohort), cohort, cohort.usable_s)


def prior_graph(cohort: Cohort, config: Config, train_s: Mask) -> tuple[NDArray[np.float32] | None, list[str]]:
    """Similarities ``exp(-distance / sampleclr.prior_scale)`` of all samples, and what they ask of the contrast; None without a prior.

    ``gloscope``: divergences of the samples as distributions of cells; ``pseudobulk``: distances of their means, in units of the training
    samples' median distance, times the scale; else a CSV of distances with a row and a column for each sample. A sample without
    distances is as far from all as can be.

    Raises
    ------
    SctoolError
        As :func:`check_prior` says.
    """
    said = config.sampleclr.prior
    if said == "none":
        return None, []
    check_prior(cohort, config)
    scale = config.sampleclr.prior_scale
    if said == "gloscope":
        distance_ss = _of_features(said, cohort, train_s, lambda x_nf: divergences(x_nf, cohort.sample_n, len(cohort)))
    elif said == "pseudobulk":
        distance_ss = _of_features(said, cohort, train_s, lambda _: sample_distances(mean(cohort, train_s), "euclidean"))
        own = distance_ss[np.ix_(train_s, train_s)]
        distance_ss = scale * distance_ss / max(float(np.median(own[np.triu_indices(len(own), 1)])), 1e-12)
    else:
        distance_ss = _given(Path(said), cohort)
    _require_known(said, distance_ss, cohort, train_s)
    similarity_ss = np.exp(-np.where(np.isfinite(distance_ss), distance_ss, np.inf) / scale).astype(np.float32)
    np.fill_diagonal(similarity_ss, 1.0)
    asked = target_summary(torch.as_tensor(similarity_ss[np.ix_(train_s, train_s)]), config.sampleclr.graph_temperature)
    note = f"prior {said}: {asked['own']:.0%} of the target is the sample's own other view, {asked['perplexity']:.1f} views share the rest"
    return similarity_ss, [note]


def _of_features(what: str, cohort: Cohort, train_s: Mask, make: Callable[[NDArray[Any]], Floats]) -> Floats:
    """Distances made from features, made once for all folds where these do not depend on the fold.

    They are kept as the baseline of GloScope keeps its own, which are the same; the features are held weakly, so that those of one fold are
    not kept beside those of the next.
    """
    x_nf = cohort.features(train_s)
    of, distance_ss = cohort.memo.get(what, (b"", (lambda: None, None)))[1]
    if of() is not x_nf:
        of, distance_ss = weakref.ref(x_nf), make(x_nf)
        cohort.memo[what] = b"", (of, distance_ss)
    return np.asarray(distance_ss)


def _require_known(said: str, distance_ss: Floats, cohort: Cohort, train_s: Mask) -> None:
    missing = train_s & ~np.isfinite(distance_ss[:, train_s]).all(1)
    if missing.any():
        raise SctoolError(f"--prior {said}: {int(missing.sum())} samples have no distances, e.g. {cohort.samples[missing][0]}", "add them")


def _given(path: Path, cohort: Cohort) -> Floats:
    if not path.is_file():
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
