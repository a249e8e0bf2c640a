"""Which cells networks of samples look at: by cell, and by donor and cell type, which is what a claim can rest on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sctool.bench.sample_folds import SampleFold
from sctool.data.cohort import Cohort, Task
from sctool.engine.sample_importance import cell_weights
from sctool.engine.samples import Blocks, Seen

FEWEST_DONORS = 3


def importance_blocks(module: Any, seen: Seen, blocks: Blocks, cohort: Cohort) -> Iterator[pd.DataFrame]:
    """Cells block by block: ``cell, sample, [cell_type], enrichment`` and, where there are tasks, ``network_1, network_2, ...``.

    An enrichment is the weight of a cell times the number of cells of its sample, mean over heads of attention, so 1 is what every cell
    would have if all counted alike. With tasks it is the mean over the networks for them, each of which has a column; without, it is of
    the encoder of the contrast, with a column ``w_1 ... w_H`` of the weight in each head.
    """
    encoders = seen.told or [seen.embedded]
    at = 0
    for weights in zip(*(cell_weights(module, one, blocks) for one in encoders), strict=True):
        part = slice(at, at + len(weights[0]))
        at += len(weights[0])
        sample_n = cohort.sample_n[part]
        own = sample_n >= 0
        n_cells_n = seen.embedded.n_cells_s[sample_n[own]]
        table = pd.DataFrame({"cell": cohort.obs.index[part][own], "sample": cohort.samples[sample_n[own]]})
        if cohort.types_n is not None:
            table["cell_type"] = cohort.types_n[part][own]
        each = [w_nh[own].mean(1) * n_cells_n for w_nh in weights]
        table["enrichment"] = np.mean(each, axis=0)
        columns = {f"network_{number + 1}": values for number, values in enumerate(each)}
        if not seen.told:
            columns = {f"w_{number + 1}": values for number, values in enumerate(weights[0][own].T)}
        yield pd.concat([table, pd.DataFrame(columns, index=table.index)], axis=1)


class ByType:
    """Sums cells of blocks by sample and type; :meth:`table` has a row for each that has cells."""

    def __init__(self, cohort: Cohort) -> None:
        self.cohort = cohort
        self._parts: list[pd.DataFrame] = []

    def add(self, block: pd.DataFrame) -> None:
        """Take in a block of cells."""
        values = [key for key in block if str(key).startswith(("w_", "enrichment"))]
        grouped = block[block["cell_type"] != ""].groupby(["sample", "cell_type"], sort=False)
        self._parts.append(grouped[values].sum().assign(n_cells=grouped.size()))

    def table(self) -> pd.DataFrame:
        """``sample, donor, cell_type, n_cells, share, enrichment, [enrichment_h1 ...]``: means over the cells of the type."""
        sums = pd.concat(self._parts).groupby(level=[0, 1]).sum().reset_index()
        size = pd.Series(self.cohort.table["n_cells"].to_numpy(), self.cohort.samples)
        donor = pd.Series(self.cohort.donor_s, self.cohort.samples)
        own = sums["sample"].map(size)
        table = pd.DataFrame({"sample": sums["sample"], "donor": sums["sample"].map(donor), "cell_type": sums["cell_type"]})
        table["n_cells"] = sums["n_cells"].astype(int)
        table["share"] = sums["n_cells"] / own
        table["enrichment"] = sums["enrichment"] / sums["n_cells"]
        for key in map(str, sums.columns):
            if key.startswith("w_"):
                table[f"enrichment_h{key[2:]}"] = sums[key] * own / sums["n_cells"]
        return table


def evidence_by_type(
    cohort: Cohort, tasks: Sequence[Task], effects: Callable[[SampleFold, Task], NDArray[np.float64]], folds: Sequence[SampleFold]
) -> pd.DataFrame:
    """What the cells of a type add to the answer for samples of donors that the networks did not see.

    Parameters
    ----------
    effects
        Of the networks of a fold for a task: answer with all cells less that without those of the type, shape (samples, types, outputs).

    Returns
    -------
    ``sample, cell_type``; for each task ``effect_...`` (of two classes the second, of levels the mean over thresholds, of a number in
    standard deviations) and ``evidence_TASK``: the effect on the true class's logit, or towards the true level; none of numbers.
    """
    names, _ = cohort.types()
    table = pd.DataFrame({"sample": np.repeat(cohort.samples, len(names)), "cell_type": np.tile(names, len(cohort))})
    for task in tasks:
        made = np.full((len(cohort), len(names), task.n_outputs), np.nan)
        for fold in folds:
            made[fold.test_s] = effects(fold, task)[fold.test_s]
        truth_s = task.encode(cohort.table[task.column])
        known = np.flatnonzero(np.isfinite(truth_s))
        evidence_st = np.full(made.shape[:2], np.nan)
        if task.kind == "class":
            evidence_st[known] = made[known, :, truth_s[known].astype(int)]
            shown = list(enumerate(task.order))
            for output, name in shown[1:] if len(shown) == 2 else shown:
                table[f"effect_{task.column}_{name}"] = made[..., output].ravel()
        else:
            table[f"effect_{task.column}"] = made.mean(2).ravel()
            if task.kind == "ordinal":
                above_sk = np.where(truth_s[known, None] > np.arange(task.n_outputs), 1.0, -1.0)
                evidence_st[known] = (made[known] * above_sk[:, None]).mean(2)
        if task.kind != "regression":
            table[f"evidence_{task.column}"] = evidence_st.ravel()
    return table


def importance_tests(by_type: pd.DataFrame, tasks: Sequence[Task], rng: np.random.Generator, draws: int = 2000) -> pd.DataFrame:
    """How much attention donors' cells of a type get, and whether they speak for what is true of donors that were held out.

    That a trained network looks at one type more than at another says nothing of the task: it does with shuffled labels, too. What counts
    is whether leaving the type out makes the true answer for unseen donors less likely.

    Returns
    -------
    ``cell_type, mean_enrichment, low, high, n_donors``: mean over donors with its 95 % bootstrap interval. With classes or levels also
    ``task, effect, effect_low, effect_high, effect_p, effect_q``: mean over held-out donors of the evidence for the truth (log-odds), p of
    Wilcoxon's signed rank test, one-sided, q by Benjamini and Hochberg over the types of a task; a row for each task.
    """
    from scipy.stats import false_discovery_control, wilcoxon

    tested = [task.column for task in tasks if f"evidence_{task.column}" in by_type]
    rows: list[dict[str, Any]] = []
    for name, part in by_type.groupby("cell_type", sort=True):
        looked = _over_donors(part.groupby("donor")["enrichment"].mean().to_numpy(), rng, draws)
        row = {"cell_type": name, "mean_enrichment": looked[0], "low": looked[1], "high": looked[2], "n_donors": part["donor"].nunique()}
        if not tested:
            rows.append(row)
        for column in tested:
            donors = part.groupby("donor")[f"evidence_{column}"].mean().dropna().to_numpy()
            enough = len(donors) >= FEWEST_DONORS and np.any(donors)
            p = float(wilcoxon(donors, alternative="greater").pvalue) if enough else np.nan
            value, low, high = _over_donors(donors, rng, draws)
            rows.append({**row, "task": column, "effect": value, "effect_low": low, "effect_high": high, "effect_p": p})
    table = pd.DataFrame(rows)
    if tested:
        table["effect_q"] = np.nan
        for column in tested:
            own = (table["task"] == column) & table["effect_p"].notna()
            if own.any():
                table.loc[own, "effect_q"] = false_discovery_control(table.loc[own, "effect_p"].to_numpy())
    return table.sort_values("mean_enrichment", ascending=False, ignore_index=True, kind="stable")


def _over_donors(value_d: NDArray[np.float64], rng: np.random.Generator, draws: int) -> tuple[float, float, float]:
    """Mean and its 95 % bootstrap interval; NaN without donors."""
    if not len(value_d):
        return np.nan, np.nan, np.nan
    drawn = value_d[rng.integers(len(value_d), size=(draws, len(value_d)))].mean(1)
    return float(value_d.mean()), float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975))
