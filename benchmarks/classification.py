"""Classifiers across batches or donors: every group of a data set is held out in turn.

    python benchmarks/classification.py pbmc.h5ad:cell_type:batch kang.h5ad:cell_type:donor --models lr svm rf xgb mlp --seeds 0 1 2

Prints, for each data set and model, the mean over held-out groups of macro F1 (over the types the group has), accuracy and calibration
error, and how far the promises of rejection hold: `kept of right` is the share of the right calls that keep their label under
quantile:0.95 (promised .95), `set coverage` the share of cells whose conformal set holds the true type under conformal:0.9 (promised
.90), both over all held-out cells, with the worst group in brackets. `recommended` is what inner cross-validation chose without a look
at the held-out group. Read differences between models against the spread over groups, not over cells.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from sctool.bench.answers import RECOMMENDED, fold_scores
from sctool.config import load_config
from sctool.data.folds import outer_folds
from sctool.data.labelled import prepare_labelled
from sctool.engine.classify import fit_classifiers, recommended
from sctool.models.classify.reject import Rejector


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="FILE:LABEL_KEY:GROUP_KEY")
    parser.add_argument("--models", nargs="+", default=["lr", "svm"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--set", action="append", default=[], dest="sets")
    parser.add_argument("--out", type=Path, help="A CSV of all figures.")
    args = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)
    rows = [row for spec in args.data for seed in args.seeds for row in evaluate(spec, args.models, seed, args.sets)]
    table = pd.DataFrame(rows)
    if args.out:
        table.to_csv(args.out, index=False)
    by_seed = table.groupby(["data", "model", "seed"], sort=False)
    means = by_seed[["macro_f1", "accuracy", "ece", "kept", "accuracy_of_kept"]].mean()
    for name, top, bottom in (("kept of right", "right_kept", "right"), ("set coverage", "in_set", "cells")):
        sums = by_seed[[top, bottom]].sum()
        means[name] = sums[top] / sums[bottom]
        means[f"worst {name}"] = by_seed.apply(lambda part, top=top, bottom=bottom: (part[top] / part[bottom]).min(), include_groups=False)
    print(means.groupby(["data", "model"], sort=False).mean().round(3).to_string())


def evaluate(spec: str, models: list[str], seed: int, sets: list[str]) -> list[dict[str, object]]:
    path, label_key, group_key = spec.rsplit(":", 2)
    flags = {"data.label_key": label_key, "data.group_key": group_key, "seed": seed, "threads": 1, "classify.reject": "quantile:0.95"}
    config = load_config(Path("/dev/null"), flags, sets, "classify")
    cells = prepare_labelled(Path(path), config)
    classes = np.unique(cells.labels_n[cells.train])
    truth_of = np.searchsorted(classes, cells.labels_n)
    rows: list[dict[str, object]] = []
    for fold in outer_folds(cells.train, cells.labels_n, cells.groups_n, "leave-one-group-out", seed):
        began = time.perf_counter()
        made = fit_classifiers(models, cells, fold.train, config)
        conformal = fit_classifiers(
            [m for m in models if m in ("lr", "svm")], cells, fold.train, config.replaced({"classify.reject": "conformal:0.9"})
        )
        seconds = time.perf_counter() - began
        best = recommended(made)
        for name, fitted in [*made.items(), (RECOMMENDED, made[best])]:
            at = np.searchsorted(classes, np.array(fitted.classes))
            local_nc = fitted.proba(cells.x_ng[fold.test])
            p_nc = np.zeros((len(fold.test), len(classes)))
            p_nc[:, at] = local_nc
            truth_n, rejected = truth_of[fold.test], fitted.rejector.rejects(local_nc)
            trained = np.isin(np.arange(len(classes)), at)
            scores = fold_scores(truth_n, p_nc, rejected, tuple(classes), trained)
            right = p_nc.argmax(1) == truth_n
            rule = conformal.get(best if name == RECOMMENDED else name)
            row = {"data": Path(path).stem, "seed": seed, "group": fold.name, "model": name, "chosen": best, "fit_seconds": seconds}
            row |= {
                "macro_f1": scores["f1_macro_present"],
                "accuracy": scores["accuracy"],
                "ece": scores["ece"],
                "kept": scores["coverage"],
            }
            row |= {"accuracy_of_kept": scores["accuracy_assigned"], "right_kept": (right & ~rejected).sum(), "right": right.sum()}
            if rule is not None and isinstance(rule.rejector, Rejector):
                sets_nc = np.zeros(p_nc.shape, bool)
                sets_nc[:, at] = rule.rejector.sets(rule.proba(cells.x_ng[fold.test]))
                row |= {"in_set": sets_nc[np.arange(len(truth_n)), truth_n].sum(), "cells": len(truth_n), "set_size": sets_nc.sum(1).mean()}
            rows.append(row)
    return rows


if __name__ == "__main__":
    main()
