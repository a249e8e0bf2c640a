"""From a file and a configuration to what integration trains on: counts, batches, and the labels its mode may use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sctool.config import Config
from sctool.data.demo import Demo
from sctool.data.prepare import Prepared, prepare_counts
from sctool.data.vocabulary import Vocabulary
from sctool.errors import SctoolError


def prepare_integration(path: Path, config: Config, demo: Demo | None = None, *, few_batches: bool = False) -> Prepared:
    """Cells as :func:`~sctool.data.prepare.prepare_counts` gives them, with a code of each cell's label.

    ``few_batches`` allows a single one, as the phase of a sequence may have.

    Only labels of training cells are ever used. ``about["mode"]`` says what became of ``integrate.mode``: ``auto`` is unsupervised
    without ``data.label_key``, supervised where all training cells have a label, else semi.

    Raises
    ------
    SctoolError
        If there are no batches, or the mode wants labels that are not there.
    """
    data, mode = config.data, config.integrate.mode
    if data.batch_key is None:
        raise SctoolError("integration needs batches", "give the obs column of batches with --batch-key")
    if mode in ("supervised", "semi") and data.label_key is None:
        raise SctoolError(f"--mode {mode} needs labels", "give the obs column of cell types with --label-key, or --mode unsupervised")
    prepared = prepare_counts(path, config, demo)
    if len(prepared.vocabularies["batch"]) < 2 and not few_batches:
        only = prepared.vocabularies["batch"].categories[0]
        raise SctoolError(f"all training cells are from one batch, {only!r}", "give another --batch-key; there is nothing to integrate")
    if not few_batches:
        check_targets(config, prepared.vocabularies["batch"].categories)
    if mode == "unsupervised" or data.label_key is None:
        return replace(prepared, about={**prepared.about, "mode": "unsupervised"})
    labels = labels_of(prepared.obs[data.label_key], config.integrate.unlabeled)
    train = prepared.rows("train")
    known = pd.Series([label for label in labels[train] if label], dtype=object)
    if known.empty:
        raise SctoolError(f"no training cell has a label in obs[{data.label_key!r}]", "give another --label-key, or --mode unsupervised")
    share = len(known) / len(train)
    vocabulary = Vocabulary.of(known)
    if mode == "auto":
        mode = "supervised" if share == 1 else "semi"
    notes = [*prepared.about["notes"], f"mode {mode}: {share:.0%} of the training cells have one of {len(vocabulary)} labels"]
    return replace(
        prepared,
        vocabularies={**prepared.vocabularies, "label": vocabulary},
        codes={**prepared.codes, "label": vocabulary.codes(pd.Series(labels, dtype=object))},
        about={**prepared.about, "mode": mode, "notes": notes},
    )


def target_batch(wanted: str, batches: Sequence[str]) -> str | int:
    """``average``, ``source``, or the code of a batch given by name or number.

    Raises
    ------
    SctoolError
        If there is no such batch.
    """
    if wanted in ("average", "source"):
        return wanted
    if wanted in batches:
        return list(batches).index(wanted)
    if wanted.isdigit() and int(wanted) < len(batches):
        return int(wanted)
    raise SctoolError(
        f"--target-batch {wanted!r} is not a batch of the model; it has: {', '.join(batches[:20])}", "or give average, or source"
    )


def check_targets(config: Config, batches: Sequence[str]) -> None:
    """Refuse batches to decode as or to carry to that the model will not have, before it is trained."""
    wanted = config.integrate
    target_batch(wanted.target_batch, batches)
    if wanted.refine_target != "auto" and wanted.refine_target not in batches:
        raise SctoolError(
            f"integrate.refine_target {wanted.refine_target!r} is not a batch of the model; it has: {', '.join(batches[:20])}",
            "give one of them, or auto",
        )
    if wanted.refine and not config.diffusion.train_steps:
        raise SctoolError(
            "--ddpm-refine is not possible without a diffusion (diffusion.train_steps is 0)", "train with one, or don't refine"
        )


def labels_of(column: pd.Series, unlabeled: list[str]) -> NDArray[Any]:
    """Labels as strings without spaces around them, "" where there is none or a word for none."""
    labels = column.astype(object).where(column.notna(), "").astype(str).str.strip().to_numpy(object)
    return np.where(np.isin(labels, unlabeled), "", labels)
