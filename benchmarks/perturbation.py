"""Predicted changes of perturbations by networks and by simple predictors, on held-out perturbations or cells, over folds and seeds.

    python benchmarks/perturbation.py SCREEN.h5ad PERTURBATION_KEY CONTROL SCENARIO [--models cradle sams] [--seeds 5] [--set K=V]

SCENARIO: ``doubles`` (all combinations held out), ``doubles-both`` (those whose targets are all perturbed alone), ``doubles-folds``
(5 folds over combinations), ``singles-folds`` (5 folds over single targets), ``cells`` (20 % of the cells of each perturbation),
``group:COLUMN`` (each value of a column of obs in turn). Half of the control cells are held out, so that truth and prediction never share
a control.

How to read it: means over perturbations, folds and seeds, then the standard deviation over seeds. ``r`` is the correlation over genes of
predicted and true change (undefined counts as 0), ``r_top20`` the same on the genes that change most, ``error`` the squared error as a
share of that of no change, ``specific_r`` the correlation after the mean perturbed profile is taken off. ``alone`` is the network without
the model of means. ``split half`` predicts one half of the held-out cells from the other; ``oracle`` is what the true mean would score.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from sctool.artifacts.model_folder import RunPlace
from sctool.bench.perturbation import compare
from sctool.bench.perturbed import Truth
from sctool.bench.trained import contestants
from sctool.config import load_config
from sctool.data import perturbation_splits as splits
from sctool.data.perturbation import prepare_screen
from sctool.data.perturbation_names import CONTROL, targets_of
from sctool.data.screen import read_screen
from sctool.engine.perturb import Response, screen_stages
from sctool.engine.run import run_training
from sctool.models.registry import BUILDERS

SHOWN = ["change_r", "change_r_top20", "change_error", "specific_r", "cosine", "discrimination_l2", "discrimination_cosine"]
FOLDS = 5


def parts(scenario, name_n, obs, seed):
    """Splits of the cells, one for each fold."""
    there = set(name_n)
    doubles = {name for name in there if len(targets_of(name)) > 1}
    singles = {name for name in there if len(targets_of(name)) == 1}
    keep = {"validation": 0.1, "control_share": 0.5, "seed": seed}
    if scenario == "cells":
        split_n = splits.split_cells(name_n, 0.2, 0.2, seed)
        return [halve_controls(split_n, name_n, seed)]
    if scenario == "doubles-folds":
        return [splits.split_perturbations(name_n, (i, FOLDS), **keep) for i in range(FOLDS)]
    if scenario == "singles-folds":
        return [splits.split_singles(name_n, fold=(i, FOLDS), **keep) for i in range(FOLDS)]
    if scenario.startswith("group:"):
        group_n = obs[scenario.removeprefix("group:")].astype(str).to_numpy()
        made = []
        for group in sorted(set(group_n)):
            split_n = splits.split_cells(name_n, 0.0, 0.1, seed)
            split_n[group_n == group] = "test"
            made.append(split_n)
        return made
    held = doubles if scenario == "doubles" else {name for name in doubles if set(targets_of(name)) <= singles}
    split_n = splits.split_cells(name_n, 0.0, 0.1, seed)
    split_n[np.isin(name_n.astype(str), sorted(held))] = "test"
    return [halve_controls(split_n, name_n, seed)]


def halve_controls(split_n, name_n, seed):
    """Half of the control cells are test, a tenth of the others validation."""
    rows = np.random.default_rng([seed, 7]).permutation(np.flatnonzero(name_n == CONTROL))
    half = len(rows) // 2
    split_n[rows[:half]], split_n[rows[half:]] = "test", "train"
    split_n[rows[half : half + half // 10]] = "validation"
    return split_n


def main():
    """Train, predict, score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("key")
    parser.add_argument("control")
    parser.add_argument("scenario")
    parser.add_argument("--models", nargs="*", default=["cradle"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", nargs="*", default=[])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    flags = {"cradle.perturbation_key": given.key, "cradle.control": given.control, "cradle.split": "none"}
    config = load_config(None, flags, given.set, "cradle")
    tables = []
    for seed in range(given.seeds):
        config = config.replaced({"seed": seed})
        screen = read_screen(given.file, config)
        for fold, split_n in enumerate(parts(given.scenario, screen.name_n, screen.obs, seed)):
            tables.append(scores(replace(screen, split_n=split_n), config, given.models).assign(fold=fold, seed=seed))
        table = pd.concat(tables)
        if given.out:
            table.to_csv(given.out, index=False)
    by_seed = table.groupby(["name", "seed"], sort=False)[SHOWN].mean()
    mean, spread = by_seed.groupby("name", sort=False).mean(), by_seed.groupby("name", sort=False).std()
    print(f"{given.file.stem}, {given.scenario}, {given.seeds} seeds, {len(table['perturbation'].unique())} perturbations")
    print(f"{'':16s}" + "".join(f"{column.replace('change_', '').replace('discrimination', 'disc'):>18s}" for column in SHOWN))
    for name, row in mean.iterrows():
        print(f"{name:16s}" + "".join(f"{row[column]:10.3f} ±{spread.loc[name, column]:6.3f}" for column in SHOWN))


def scores(screen, config, models):
    """A row for each perturbation and method."""
    predicted = []
    for model in models:
        settings = config.replaced({"cradle.model": model})
        with tempfile.TemporaryDirectory() as home:
            place = RunPlace(Path(home) / "run", resume=False, force=False)
            made = run_training("cradle", BUILDERS["cradle"], prepare_screen(screen, settings), settings, place, stages=screen_stages)
            response = Response(made)
        if not predicted:
            test = np.flatnonzero(screen.split_n == "test")
            x_ng = screen.log_expression(test, response.columns_of(screen))
            truth = Truth.of(x_ng, screen.name_n[test], screen.split_n[test], response.means.genes)
        for one in contestants(response, list(truth.perturbations)):
            predicted.append(replace(one, name=one.name.replace("network", model)))
    scored = compare(truth, response.means, predicted)
    each = scored.tables["per_perturbation"]
    each = each[~each["few_cells"]]
    counted = [column for column in SHOWN if column.endswith("_r") or "_r_" in column or column == "cosine"]
    return each.assign(**{column: each[column].fillna(0) for column in counted})[["name", "perturbation", *SHOWN]]


if __name__ == "__main__":
    main()
