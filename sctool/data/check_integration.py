"""What can be wrong with a file for integration: its batches, its labels, and how the two cross."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sctool.config import Config
from sctool.data.check import Checked, check_counts_file
from sctool.data.integration import labels_of
from sctool.data.read import H5ad
from sctool.data.splits import select
from sctool.errors import SctoolError

SHOWN = 5


def check_integration_file(file: H5ad, config: Config) -> Checked:
    """Check a file for integration with the columns, the layer and the mode of a configuration.

    Of the cells to train on: batches of few cells, the share of known labels, labels of one batch only.
    """
    data, mode = config.data, config.integrate.mode
    checked = check_counts_file(file, data)
    if data.batch_key is None:
        checked.problems.append(SctoolError("integration needs batches", "give the obs column of batches with --batch-key"))
    if data.label_key is None and mode in ("supervised", "semi"):
        remedy = "give the obs column of cell types with --label-key, or --set integrate.mode=unsupervised"
        checked.problems.append(SctoolError(f"integrate.mode {mode} needs labels", remedy))
    obs = file.obs[_trained_on(file.obs, config)]
    if data.batch_key in obs:
        batches = obs[data.batch_key].astype(str)
        checked.problems += _one_batch(batches)
        checked.notes += _small_batches(batches, config.integrate.refine_min_cells)
    if data.label_key in obs:
        labels = pd.Series(labels_of(obs[data.label_key], config.integrate.unlabeled), obs.index)
        if not (labels != "").any():
            if mode != "unsupervised" and file.obs[data.label_key].notna().any():  # else the column is told of already
                remedy = "give another --label-key, or --set integrate.mode=unsupervised"
                checked.problems.append(SctoolError(f"no training cell has a label in obs[{data.label_key!r}]", remedy))
            return checked
        checked.notes += _known(obs[data.label_key], labels, config)
        if data.batch_key in obs and batches.nunique() > 1:
            checked.notes += _crossed(labels, batches)
    return checked


def _trained_on(obs: pd.DataFrame, config: Config) -> NDArray[np.bool_]:
    """Cells to train on; a condition that cannot be met is a problem of its own."""
    mask = np.ones(len(obs), bool)
    for condition, wanted in ((config.data.cells, True), (config.data.hold_out, False)):
        try:
            mask &= select(obs, condition) == wanted if condition else True
        except SctoolError:
            continue
    return mask


def _one_batch(batches: pd.Series) -> Iterator[SctoolError]:
    if batches.nunique() == 1:
        only = batches.iloc[0]
        yield SctoolError(f"all training cells are from one batch, {only!r}", "give another --batch-key; there is nothing to integrate")


def _small_batches(batches: pd.Series, fewest: int) -> Iterator[str]:
    sizes = batches.value_counts()
    small = sizes[sizes < fewest]
    if len(small):
        named = _listed([f"{name} ({n})" for name, n in small.items()])
        yield f"{len(small)} of {len(sizes)} batches have fewer than {fewest} cells, too few to be refined: {named}"


def _known(column: pd.Series, labels: pd.Series, config: Config) -> Iterator[str]:
    """How many cells have a label, what the others have instead, and the mode that follows."""
    known, mode = labels != "", config.integrate.mode
    kinds = labels[known].nunique()
    yield f"{known.mean():.0%} of {len(labels):,} training cells have one of {kinds} labels; " + (
        f"mode auto takes them as {'supervised' if known.all() else 'semi'}" if mode == "auto" else f"mode {mode}"
    )
    if not known.all():
        words = column[~known].astype(object).where(column[~known].notna(), "missing").astype(str).value_counts()
        said = _listed([f"{word or 'empty'} {n:,}" for word, n in words.items()])
        yield f"{int((~known).sum()):,} count as unlabelled (integrate.unlabeled): {said}"


def _crossed(labels: pd.Series, batches: pd.Series) -> Iterator[str]:
    """Labels of one batch only; where that is true of all, nothing tells types from batches."""
    known = labels != ""
    batches_of = batches[known].groupby(labels[known]).nunique()
    single = batches_of.index[batches_of == 1]
    if len(single) == len(batches_of):
        yield "no label is in two batches: types and batches cannot be told apart, and what is removed may be biology"
    elif len(single):
        yield f"{len(single)} of {len(batches_of)} labels are in one batch only: {_listed(list(single))}"


def _listed(words: list[str]) -> str:
    return ", ".join(words[:SHOWN]) + (", ..." if len(words) > SHOWN else "")
