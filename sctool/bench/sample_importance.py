"""Which cells a network of samples looks at: by cell, and by donor and cell type, which is what a claim can rest on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sctool.data.cohort import Cohort, Task
from sctool.engine.samples import Blocks, Embedded, cell_effects, cell_weights

FEWEST_DONORS = 3


def importance_blocks(module: Any, embedded: Embedded, blocks: Blocks, cohort: Cohort, tasks: Sequence[Task]) -> Iterator[pd.DataFrame]:
    """Cells block by block: ``cell, sample, [cell_type], w_1 ... w_H, enrichment, effect_...``.

    ``enrichment`` is the mean over heads of the weight times the number of cells of the sample, so 1 is what every cell would have if
    all counted alike. ``effect`` is signed: by how much an output rises with the log of the cell's weight, times the number of cells.
    """
    outputs = [(number, output, name) for number, task in enumerate(tasks) for output, name in _outputs(task)]
    effects = [cell_effects(module, embedded, blocks, number, output) for number, output, _ in outputs]
    at = 0
    for w_nh, *effect_n in zip(cell_weights(module, embedded, blocks), *effects, strict=True):
        part = slice(at, at + len(w_nh))
        at += len(w_nh)
        sample_n = cohort.sample_n[part]
        own = sample_n >= 0
        n_cells_n = embedded.n_cells_s[sample_n[own]]
        table = pd.DataFrame({"cell": cohort.obs.index[part][own], "sample": cohort.samples[sample_n[own]]})
        if cohort.types_n is not None:
            table["cell_type"] = cohort.types_n[part][own]
        for head in range(w_nh.shape[1]):
            table[f"w_{head + 1}"] = w_nh[own, head]
        table["enrichment"] = w_nh[own].mean(1) * n_cells_n
        for (_, _, name), values in zip(outputs, effect_n, strict=True):
            table[name] = values[own] * n_cells_n
        yield table


def _outputs(task: Task) -> list[tuple[int, str]]:
    """Outputs of a head worth a column: of two classes the second only, of levels all thresholds as one."""
    if task.kind == "class":
        shown = list(enumerate(task.order))
        return [(output, f"effect_{task.column}_{name}") for output, name in (shown[1:] if len(shown) == 2 else shown)]
    return [(0, f"effect_{task.column}")]


class ByType:
    """Sums cells of a block into samples and types; :meth:`table` has a row for each that has cells."""

    def __init__(self, cohort: Cohort) -> None:
        self.cohort = cohort
        self._parts: list[pd.DataFrame] = []

    def add(self, block: pd.DataFrame) -> None:
        """Take in a block of cells."""
        heads = [key for key in block if key.startswith("w_")]
        values = [*heads, "enrichment", *(key for key in block if key.startswith("effect_"))]
        grouped = block[block["cell_type"] != ""].groupby(["sample", "cell_type"], sort=False)
        self._parts.append(grouped[values].sum().assign(n_cells=grouped.size()))

    def table(self) -> pd.DataFrame:
        """``sample, donor, cell_type, n_cells, share, enrichment, enrichment_h1 ..., effect_...``: means over the cells of the type."""
        sums = pd.concat(self._parts).groupby(level=[0, 1]).sum().reset_index()
        size = pd.Series(self.cohort.table["n_cells"].to_numpy(), self.cohort.samples)
        donor = pd.Series(self.cohort.donor_s, self.cohort.samples)
        own = sums["sample"].map(size)
        table = pd.DataFrame({"sample": sums["sample"], "donor": sums["sample"].map(donor), "cell_type": sums["cell_type"]})
        table["n_cells"] = sums["n_cells"].astype(int)
        table["share"] = sums["n_cells"] / own
        for key in sums:
            if str(key).startswith("w_"):
                table[f"enrichment_h{str(key)[2:]}"] = sums[key] * own / sums["n_cells"]
            elif key == "enrichment" or str(key).startswith("effect_"):
                table[key] = sums[key] / sums["n_cells"]
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
