"""Which cells networks of samples look at: by cell, and by donor and cell type, which is what a claim can rest on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sctool.data.cohort import Cohort, Task
from sctool.engine.sample_importance import cell_weights, type_effects
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


def effects_by_type(module: Any, seen: Seen, blocks: Blocks, cohort: Cohort, tasks: Sequence[Task]) -> pd.DataFrame:
    """``sample, cell_type, effect_...``: what leaving a type out takes from the answer, mean over networks.

    Of two classes the second's, of levels the mean over thresholds, of a number in its standard deviations.
    """
    assert cohort.types_n is not None
    names, code_n = np.unique(cohort.types_n.astype(str), return_inverse=True)
    if names[0] == "":
        names, code_n = names[1:], code_n - 1
    n_types = len(names)
    found = [type_effects(module, one, number, blocks, code_n, n_types) for number, one in enumerate(seen.told)]
    table = pd.DataFrame({"sample": np.repeat(cohort.samples, n_types), "cell_type": np.tile(names, len(cohort))})
    for number, task in enumerate(tasks):
        mean_sto = np.mean([one[number] for one in found], axis=0)
        if task.kind == "class":
            shown = list(enumerate(task.order))
            for output, name in shown[1:] if len(shown) == 2 else shown:
                table[f"effect_{task.column}_{name}"] = mean_sto[..., output].ravel()
        else:
            table[f"effect_{task.column}"] = mean_sto.mean(2).ravel()
    return table


def importance_tests(by_type: pd.DataFrame, rng: np.random.Generator, draws: int = 2000) -> pd.DataFrame:
    """Whether donors agree that a type counts more or less than its share: the donor, not the cell, is what is drawn.

    Returns
    -------
    ``cell_type, mean_enrichment, low, high, p, q, n_donors``: mean over donors with its 95 % bootstrap interval, p of Wilcoxon's signed
    rank test of the log enrichment against 0, q by Benjamini and Hochberg.
    """
    from scipy.stats import false_discovery_control, wilcoxon

    rows = []
    for name, part in by_type.groupby("cell_type", sort=True):
        donors = part.groupby("donor")["enrichment"].mean().to_numpy()
        drawn = donors[rng.integers(len(donors), size=(draws, len(donors)))].mean(1)
        logs = np.log(np.maximum(donors, 1e-12))
        p = float(wilcoxon(logs).pvalue) if len(donors) >= FEWEST_DONORS and np.any(logs) else np.nan
        low, high = np.quantile(drawn, [0.025, 0.975])
        rows.append({"cell_type": name, "mean_enrichment": donors.mean(), "low": low, "high": high, "p": p, "n_donors": len(donors)})
    table = pd.DataFrame(rows)
    table.insert(5, "q", np.nan)
    tested = table["p"].notna()
    if tested.any():
        table.loc[tested, "q"] = false_discovery_control(table.loc[tested, "p"].to_numpy())
    return table.sort_values("mean_enrichment", ascending=False, ignore_index=True)
