"""How good a representation of samples is, without labels: it should find the other half of a sample's cells, and bear fewer cells.

Both are asked of donors that the representation was not fitted on: a contrast that has seen a sample has learned to find its halves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sctool.bench.sample_folds import SampleFold
from sctool.data.cohort import Cohort, Mask
from sctool.metrics.sample_uncertainty import donor_draws, interval
from sctool.metrics.samples import half_hits, sample_distances
from sctool.models.samples.baselines import BASELINES

Embed = Callable[[Mask, str], NDArray[np.float64]]
"""From the samples to fit on and the name of a part of the cells to a representation of all samples by those cells."""
SIZES = (25, 50, 100, 250, 500, 1000)
DRAWN = ("mean", "mean_sd", "lda", "composition_clr", "mean_and_composition")
"""Baselines that can be made of any part of a sample's cells."""


@dataclass(frozen=True)
class Parts:
    """Parts of the cells of each sample, the same for every representation.

    Attributes
    ----------
    repeats
        Draws of two halves.
    """

    cohort: Cohort
    seed: int
    repeats: int = 3

    @cached_property
    def cells(self) -> dict[str, Mask]:
        """``half/R/a`` and ``half/R/b``; ``few/N`` for each number below the cells of the largest usable sample; and ``all``."""
        rng, own_n = np.random.default_rng(self.seed), self.cohort.sample_n >= 0
        largest = int(self.cohort.table["n_cells"][self.cohort.usable_s].max())
        made = {"all": own_n}
        for repeat in range(self.repeats):
            place_n = self._places(rng)
            half_n = np.append(self.cohort.table["n_cells"].to_numpy() // 2, 0)[self.cohort.sample_n]
            made[f"half/{repeat}/a"] = own_n & (place_n < half_n)
            made[f"half/{repeat}/b"] = own_n & (place_n >= half_n) & (place_n < 2 * half_n)
        place_n = self._places(rng)
        return made | {f"few/{size}": own_n & (place_n < size) for size in SIZES if size < largest}

    def _places(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Place of each cell in a random order of its sample's cells."""
        order = rng.permutation(len(self.cohort.sample_n))
        place_n = np.empty(len(order), np.int64)
        place_n[order] = pd.Series(self.cohort.sample_n[order]).groupby(self.cohort.sample_n[order]).cumcount().to_numpy()
        return place_n


def baseline_embeds(cohort: Cohort, parts: Parts) -> dict[str, Embed]:
    """Baselines that can be made of parts of the cells."""

    def of(name: str, train_s: Mask, part: str) -> NDArray[np.float64]:
        return BASELINES[name][0](cohort, train_s, parts.cells[part])

    return {name: partial(of, name) for name in DRAWN}


def retrieval_tables(
    cohort: Cohort, embeds: Mapping[str, Embed], folds: Sequence[SampleFold], parts: Parts
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Retrieval of halves, and by fewer cells, of samples whose donors were not fitted on.

    Returns
    -------
    ``name, top1, low, high, donor_top1, chance, samples, donors``: the share of halves whose nearest among the halves of all samples is
    the other half, with its interval over donors; of ``donor_top1`` the nearest half of another sample, where donors have several.
    ``name, cells, samples, retrieval, drift``: by so many cells, the share of samples nearest to themselves by all cells, and the median
    distance to it as a share of that between samples. Only samples with more cells than that count.
    """
    usable = np.flatnonzero(cohort.usable_s)
    donor_s = cohort.donor_s[usable].astype(str)
    n_cells_s = cohort.table["n_cells"].to_numpy()[usable]
    sizes = [int(key.removeprefix("few/")) for key in parts.cells if key.startswith("few/")]
    rng = np.random.default_rng(parts.seed)
    weight_bs = donor_draws(donor_s, rng)
    found, robust = [], []
    for name, embed in embeds.items():
        hits_s, by_donor_s = np.full(len(usable), np.nan), np.full(len(usable), np.nan)
        near: dict[int, list[NDArray[Any]]] = {size: [] for size in sizes}
        drift: dict[int, list[NDArray[Any]]] = {size: [] for size in sizes}
        for fold in folds:
            held_s = fold.test_s[usable]
            z = {key: np.asarray(embed(fold.train_s, key), np.float64)[usable] for key in parts.cells}
            each = [half_hits(z[f"half/{r}/a"], z[f"half/{r}/b"], donor_s) for r in range(parts.repeats)]
            hits_s[held_s] = np.mean([own_s for own_s, _ in each], 0)[held_s]
            by_donor_s[held_s] = np.mean([other_s for _, other_s in each if other_s is not None], 0)[held_s]
            scale_d = z["all"].std(0)
            scale_d = np.where(scale_d > 1e-12, scale_d, np.inf)
            apart = float(np.median(sample_distances(z["all"] / scale_d, "euclidean")[np.triu_indices(len(usable), 1)])) or np.nan
            for size in sizes:
                chosen = np.flatnonzero(held_s & (n_cells_s > size))
                d_ss = sample_distances(z[f"few/{size}"][chosen] / scale_d, "euclidean", z["all"] / scale_d)
                near[size].append(d_ss.argmin(1) == chosen)
                drift[size].append(d_ss[np.arange(len(chosen)), chosen] / apart)
        known_s = np.isfinite(hits_s)
        weights = weight_bs[:, known_s]
        donors = len(set(donor_s[known_s].tolist()))
        value, low, high = interval(float(hits_s[known_s].mean()), weights @ hits_s[known_s] / np.maximum(weights.sum(1), 1), donors)
        repeated = by_donor_s[np.isfinite(by_donor_s)]
        found.append(
            {"name": name, "top1": value, "low": low, "high": high, "donor_top1": float(repeated.mean()) if len(repeated) else np.nan}
            | {"chance": 1 / (2 * len(usable) - 1), "samples": int(known_s.sum()), "donors": donors}
        )
        for size in sizes:
            hit, far = np.concatenate(near[size]), np.concatenate(drift[size])
            if len(hit):
                row = {"name": name, "cells": size, "samples": len(hit)}
                robust.append({**row, "retrieval": float(hit.mean()), "drift": float(np.median(far))})
    columns = ["name", "cells", "samples", "retrieval", "drift"]
    return pd.DataFrame(found), pd.DataFrame(robust, columns=columns)
