"""Figures of a representation of samples that need no task: halves of a sample, fewer cells, batches, and what is confounded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sctool.config import Config
from sctool.data.cohort import Cohort, Task, text
from sctool.metrics.sample_uncertainty import donor_draws, interval
from sctool.metrics.samples import association, half_hits, sample_distances
from sctool.models.samples.baselines import BASELINES

Embed = Callable[[NDArray[np.bool_]], NDArray[Any]]
"""From a mask of cells to a representation of the samples by those cells, shape (samples, dimensions)."""
REPEATS = 5
_MANY = 10
"""Numbers of more values than these are numbers, of fewer they are groups."""


def halves(cohort: Cohort, rng: np.random.Generator) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Two disjoint halves of the cells of every sample, as masks of cells; an odd cell is in neither."""
    order = rng.permutation(len(cohort.sample_n))
    code_n = cohort.sample_n[order]
    by_sample = np.argsort(code_n, kind="stable")
    first_s = np.searchsorted(code_n[by_sample], np.arange(len(cohort.samples) + 1))
    place_n = np.arange(len(order)) - first_s[np.maximum(code_n[by_sample], 0)]
    half_n = np.diff(first_s)[np.maximum(code_n[by_sample], 0)] // 2
    cell, own = order[by_sample], code_n[by_sample] >= 0
    out = np.zeros((2, len(order)), bool)
    out[0, cell[own & (place_n < half_n)]] = True
    out[1, cell[own & (place_n >= half_n) & (place_n < 2 * half_n)]] = True
    return out[0], out[1]


def split_halves(cohort: Cohort, embed: Embed, rng: np.random.Generator, repeats: int = REPEATS) -> dict[str, float]:
    """Retrieval of split halves: how often a half of a sample's cells has the other half as the nearest of all halves.

    Dimensions are standardised and distances Euclidean, for every representation alike. Samples that are too small are left out.

    Returns
    -------
    ``top1`` with ``low`` and ``high`` (donors drawn), ``donor_top1`` (nearest among halves of other samples is of the same donor; NaN
    where no donor has two samples), ``chance``, ``samples``, ``donors``.
    """
    usable = np.flatnonzero(cohort.usable_s)
    donor_s = cohort.donor_s[usable].astype(str)
    found = []
    for _ in range(repeats):
        a_sd, b_sd = (np.asarray(embed(mask_n), np.float64)[usable] for mask_n in halves(cohort, rng))
        found.append(half_hits(a_sd, b_sd, donor_s))
    hits_s = np.mean([own_s for own_s, _ in found], axis=0)
    by_donor_s = np.mean([donor_s for _, donor_s in found], axis=0)
    weight_bs = donor_draws(donor_s, rng)
    donors = len(set(donor_s.tolist()))
    value, low, high = interval(float(hits_s.mean()), weight_bs @ hits_s / weight_bs.sum(1), donors)
    repeated_s = np.isfinite(by_donor_s)
    return {
        "top1": value,
        "low": low,
        "high": high,
        "donor_top1": float(by_donor_s[repeated_s].mean()) if repeated_s.any() else float("nan"),
        "chance": 1 / (2 * len(usable) - 1),
        "samples": len(usable),
        "donors": donors,
    }


def retrieval_table(cohort: Cohort, embeds: Mapping[str, Embed], seed: int = 0) -> pd.DataFrame:
    """:func:`split_halves` of each representation, on the same halves: ``name, top1, low, high, donor_top1, chance, samples, donors``."""
    return pd.DataFrame([{"name": name, **split_halves(cohort, embed, np.random.default_rng(seed))} for name, embed in embeds.items()])


def robustness(cohort: Cohort, embed: Embed, sizes: Sequence[int], rng: np.random.Generator, repeats: int = REPEATS) -> pd.DataFrame:
    """How far a representation by fewer cells is from that by all: ``cells, samples, retrieval, drift``.

    Of each size only samples with more cells are drawn from. ``retrieval`` is the share whose representation by few cells is nearest to
    their own by all cells; ``drift`` the median distance to it as a share of the median distance between samples.
    """
    usable = np.flatnonzero(cohort.usable_s)
    own_n = cohort.sample_n >= 0
    full_sd = np.asarray(embed(own_n), np.float64)[usable]
    sd_d = full_sd.std(0)
    scale_d = np.where(sd_d > 1e-12, sd_d, np.inf)
    full_sd = full_sd / scale_d
    apart = float(np.median(sample_distances(full_sd, "euclidean")[np.triu_indices(len(usable), 1)])) if len(usable) > 1 else np.nan
    size_s = np.bincount(cohort.sample_n[own_n], minlength=len(cohort.samples))[usable]
    rows = []
    for size in sizes:
        chosen = np.flatnonzero(size_s > size)
        if not len(chosen):
            continue
        hits, drifts = [], []
        for _ in range(repeats):
            few_sd = np.asarray(embed(_drawn(cohort, size, rng)), np.float64)[usable[chosen]] / scale_d
            d_ss = sample_distances(few_sd, "euclidean", full_sd)
            hits.append((d_ss.argmin(1) == chosen).mean())
            drifts.append(np.median(d_ss[np.arange(len(chosen)), chosen]) / apart if apart > 0 else np.nan)
        rows.append({"cells": size, "samples": len(chosen), "retrieval": float(np.mean(hits)), "drift": float(np.mean(drifts))})
    return pd.DataFrame(rows, columns=["cells", "samples", "retrieval", "drift"])


def _drawn(cohort: Cohort, size: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """A mask of ``size`` cells of each sample, or all where it has fewer."""
    order = rng.permutation(len(cohort.sample_n))
    order = order[cohort.sample_n[order] >= 0]
    place_n = pd.Series(cohort.sample_n[order]).groupby(cohort.sample_n[order]).cumcount().to_numpy()
    mask_n = np.zeros(len(cohort.sample_n), bool)
    mask_n[order[place_n < size]] = True
    return mask_n


def robustness_table(cohort: Cohort, embeds: Mapping[str, Embed], sizes: Sequence[int], seed: int = 0) -> pd.DataFrame:
    """:func:`robustness` of each representation, on the same cells: ``name, cells, samples, retrieval, drift``."""
    parts = [robustness(cohort, embed, sizes, np.random.default_rng(seed)).assign(name=name) for name, embed in embeds.items()]
    table = pd.concat(parts, ignore_index=True)
    return table[["name", *[key for key in table if key != "name"]]]


def baseline_embeds(cohort: Cohort, config: Config) -> dict[str, Embed]:
    """Baselines that can be made of any part of a sample's cells, fitted on all samples."""
    made: dict[str, Embed] = {}
    for name, (function, _) in BASELINES.items():
        if name not in ("random", "gloscope", "covariates"):
            made[name] = partial(function, cohort, cohort.usable_s)
    return made


def _variable(cohort: Cohort, key: str) -> tuple[NDArray[Any], bool, NDArray[np.bool_]]:
    """Values of a column of samples, whether they are numbers, and where they are known."""
    values = cohort.table[key]
    numbers = pd.to_numeric(values.astype(object), errors="coerce").to_numpy(np.float64)
    if np.isfinite(numbers).sum() == values.notna().sum() and values.nunique() > _MANY:
        return numbers, True, np.isfinite(numbers)
    said = text(values)
    return said, False, said != ""


def confounding(cohort: Cohort, task: Task, batch_keys: Sequence[str] = (), strong: float = 0.5) -> pd.DataFrame:
    """What the target goes with: ``task, covariate, measure, value, levels_of_one, samples, strong``.

    Parameters
    ----------
    batch_keys
        Columns of samples beside ``n_cells``, such as batch, study or sex; those that are not there are left out.
    strong
        A value from which the target cannot be told from the covariate by these samples alone.

    Returns
    -------
    Cramer's V of two groupings, eta squared of a number and a grouping, |Spearman's rho| of two numbers. ``levels_of_one``: levels of the
    covariate with samples of one class only.
    """
    truth_s = cohort.truth(task)
    is_number = task.kind != "class"
    own_s = cohort.known(task)
    rows = []
    for key in dict.fromkeys([*(key for key in batch_keys if key in cohort.table and key != task.column), "n_cells"]):
        other_s, numeric, known_s = _variable(cohort, key)
        if key == "n_cells":
            other_s, numeric = np.log1p(cohort.table["n_cells"].to_numpy(np.float64)), True
        both_s = own_s & known_s
        if both_s.sum() < 3:
            continue
        measure, value = association(truth_s[both_s], other_s[both_s], (is_number, numeric))
        one = np.nan
        if not numeric and not is_number:
            one = float(pd.Series(truth_s[both_s]).groupby(other_s[both_s]).nunique().eq(1).sum())
        rows.append([task.column, key, measure, value, one, int(both_s.sum()), bool(value >= strong)])
    return pd.DataFrame(rows, columns=["task", "covariate", "measure", "value", "levels_of_one", "samples", "strong"])
