"""Is a cell type that was kept away found? Each type of each data set in turn, against the known types of held-out cells.

    python benchmarks/novelty.py cellmix_lung.h5ad@cell_type@batch pbmc_facs.h5ad@cell_type ... [--methods default xgb-energy iforest]

Each file is PATH@LABEL_KEY[@BATCH_KEY]. With a batch key the known cells judged are those of batches that were held out (each in turn);
without, a random third of all cells.

How to read it: AUROC is the chance that a cell of the type kept away scores stranger than a known cell that was held out (0.5: coin);
FPR95 is the share of known cells that would be flagged so as to find 95 % of the novel ones. Both are means over the types kept away,
each counting once. `flagged` is the share of known cells above the threshold set for 5 %. The row `previous best` is the mean of ranks
within the query of four scores (multinomial misfit, Mahalanobis by type, logistic regression, energy of XGBoost), measured on the same
files with the same protocols; ranks within a query cannot score a single cell, ours can.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from sctool.bench.novelty import mean_by, run_novelty
from sctool.config import Config
from sctool.data.novelty import EACH, read_typed
from sctool.models.novelty.registry import COMBINED, DEFAULT

PREVIOUS = {
    "cellmix_lung cell_type batch": 0.999,
    "cellmix_lung cell_type": 0.999,
    "pancreas_5tech_a cell_type batch": 0.951,
    "pancreas_5tech_a cell_type": 0.945,
    "pbmc_facs cell_type": 0.834,
    "pbmc_facs facs_subpop": 0.979,
}
SHOWN = [COMBINED, *DEFAULT, "xgb-maxprob", "lr-maxprob", "lof", "knn", "pca-recon", "mahalanobis", "iforest", "ocsvm"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", metavar="PATH@LABEL[@BATCH]")
    parser.add_argument("--methods", nargs="*", default=SHOWN)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    tables = {}
    for text in given.sets:
        path, label, *batch = text.split("@")
        keys = {"data.label_key": label, "data.batch_key": batch[0] if batch else None}
        config = Config().replaced({**keys, "novelty.hold_out": EACH, "novelty.methods": given.methods, "threads": given.threads})
        made, _, _ = run_novelty(read_typed(Path(path), config), config, print)
        assert made.by_type is not None
        tables[" ".join([Path(path).stem, label, *batch])] = mean_by(made.by_type)
    for measure, title in (("auroc", "AUROC"), ("fpr_at_95tpr", "FPR95"), ("false_alarms", "flagged (5 % promised)")):
        table = pd.DataFrame({name: made[measure] for name, made in tables.items()})
        if measure == "auroc":
            table.loc["previous best"] = pd.Series(PREVIOUS)
        table["mean"] = table.mean(1, skipna=False)
        print(f"\n{title}\n{table.round(3).to_string()}")


if __name__ == "__main__":
    main()
