"""Effects and artifacts planted in a simulated screen: how well effects are freed of what failing cells have in common.

    python benchmarks/perturbation_artifacts.py [--perturbations 100] [--cells 15000] [--genes 1000] [--seeds 3]

A perturbation moves genes along one or two of eight programmes (six in ten do, the others do nothing) and has 45 to 1,300 cells. A failing
cell has half the counts and a shift of a fifth of the genes, the same in every failing cell; 15 % of control cells fail and 15 to 45 %
(30 % in all) of perturbed ones, so that pooling all cells takes the artifact for an effect. Flags are right for 95 % of the cells.

How to read it: against the true change of mean log expression of passing cells, ``r`` and the squared error as a share of the true
change's, over perturbations that have an effect; ``null`` is the mean size of the change predicted for those that have none, as a share of
the mean true size. ``restored`` is how much nearer failing cells come to what they would have been had they passed (1: all the way), by
the network's counterfactual. Each row is a mean over seeds, with its standard deviation.
"""

import argparse
import tempfile
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from sctool.artifacts.model_folder import RunPlace
from sctool.config import load_config
from sctool.data.perturbation import prepare_screen
from sctool.data.screen import read_screen
from sctool.engine.perturb import Response, screen_stages
from sctool.engine.run import run_training
from sctool.engine.screen_query import ScreenQuery
from sctool.metrics.response import pearson
from sctool.models.perturbation.means import Means
from sctool.models.perturbation.predictors import predictor
from sctool.models.registry import BUILDERS

SCALE = 1e4


def simulate(n_perturbations, n_cells, n_genes, seed):
    """The screen, and its true changes and expectations."""
    rng = np.random.default_rng(seed)
    mean_g = np.exp(rng.normal(-2.4, 1.75, n_genes)).clip(1e-3)
    programme_kg = np.where(rng.random((8, n_genes)) < 0.04, rng.normal(0, 1.0, (8, n_genes)), 0)
    log_effect_pg = np.zeros((n_perturbations + 1, n_genes))
    for p in range(1, n_perturbations + 1):
        if rng.random() < 0.6:
            for k in rng.choice(8, rng.integers(1, 3), replace=False):
                log_effect_pg[p] += rng.uniform(0.5, 1.5) * rng.choice([-1, 1]) * programme_kg[k]
            log_effect_pg[p] += np.where(rng.random(n_genes) < 0.01, rng.normal(0, 1, n_genes), 0)
    artifact_g = np.where(rng.random(n_genes) < 0.2, rng.normal(0, 0.8, n_genes), 0)
    share_p = rng.dirichlet(np.full(n_perturbations, 1.5)) * 0.9
    cells_p = np.r_[int(0.1 * n_cells), np.clip((share_p * n_cells).astype(int), 45, 1300)]
    fail_p = np.r_[0.15, rng.uniform(0.15, 0.45, n_perturbations)]
    code_n = np.repeat(np.arange(n_perturbations + 1), cells_p)
    fail_n = rng.random(len(code_n)) < fail_p[code_n]
    state_ng = rng.normal(0, 1, (len(code_n), 3)) @ np.where(rng.random((3, n_genes)) < 0.3, rng.normal(0, 0.25, (3, n_genes)), 0)
    size_n = np.exp(rng.normal(np.log(4000), 0.4, len(code_n))) * np.where(fail_n, 0.5, 1.0)
    phi_g = np.exp(rng.normal(np.log(0.3), 0.8, n_genes))

    def shares(log_ng):
        rate_ng = mean_g * np.exp(log_ng)
        return rate_ng / rate_ng.sum(1, keepdims=True)

    pass_ng = shares(log_effect_pg[code_n] + state_ng)
    share_ng = np.where(fail_n[:, None], shares(log_effect_pg[code_n] + state_ng + artifact_g), pass_ng)
    counts_ng = rng.poisson(rng.gamma(1 / phi_g, phi_g * share_ng * size_n[:, None]))
    flag_n = np.where(rng.random(len(fail_n)) < 0.95, fail_n, ~fail_n)
    names = np.array(["control", *(f"P{p}" for p in range(1, n_perturbations + 1))])
    obs = pd.DataFrame({"perturbation": names[code_n], "qc": np.where(flag_n, "fail", "pass")}, index=[f"c{i}" for i in range(len(code_n))])
    var = pd.DataFrame(index=[f"G{g}" for g in range(n_genes)])
    cells = ad.AnnData(sp.csr_matrix(counts_ng.astype(np.float32)), obs, var)
    # The true change: mean log expression of many passing cells of the same states, with and without the effect, at one depth.
    some = rng.permutation(len(code_n))[:400]

    def expected(p):
        lam = shares(log_effect_pg[p] + state_ng[some]) * 4000
        draws = rng_at(7).poisson(rng_at(8).gamma(1 / phi_g, phi_g, (8, len(some), n_genes)) * lam)
        return np.log1p(draws * (SCALE / 4000)).mean((0, 1))

    def rng_at(stream):
        return np.random.default_rng([seed, stream])

    base_g = expected(0)
    truth_pg = np.stack([expected(p) - base_g for p in range(1, n_perturbations + 1)])
    return cells, names[1:], truth_pg, pass_ng, fail_n & flag_n


def trained(path, config, model, cells=None):
    """A model trained on the screen, or on the cells that meet a condition."""
    settings = config.replaced({"cradle.model": model, "data.cells": cells, "cradle.qc_key": "qc"})
    screen = read_screen(path, settings)
    with tempfile.TemporaryDirectory() as home:
        place = RunPlace(Path(home) / "run", resume=False, force=False)
        prepared = prepare_screen(screen, settings)
        return screen, Response(run_training("cradle", BUILDERS["cradle"], prepared, settings, place, stages=screen_stages))


def main():
    """Simulate, train, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("perturbations", 100), ("cells", 15_000), ("genes", 1000), ("seeds", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--set", nargs="*", default=[])
    given = parser.parse_args()
    torch.set_num_threads(1)
    flags = {"cradle.perturbation_key": "perturbation", "cradle.control": "control", "cradle.split": "none"}
    rows = []
    for seed in range(given.seeds):
        cells, names, truth_pg, pass_ng, known_fail_n = simulate(given.perturbations, given.cells, given.genes, seed)
        config = load_config(None, {**flags, "seed": seed}, given.set, "cradle")
        with tempfile.TemporaryDirectory() as home:
            path = Path(home) / "screen.h5ad"
            cells.write_h5ad(path)
            made = {}
            screen, cradle = trained(path, config, "cradle")
            made["CRADLE-VAE"] = cradle.changes(list(names)).change_pg
            made["its network alone"] = cradle.network_changes(list(names))
            sams = trained(path, config, "sams")[1]
            made["SAMS-VAE, all cells"], made["that network alone"] = sams.changes(list(names)).change_pg, sams.network_changes(list(names))
            made["SAMS-VAE, passing cells"] = trained(path, config, "sams", "qc=pass")[1].changes(list(names)).change_pg
            everything = Means.of(screen.log_expression(np.arange(len(cells))), screen.name_n, np.arange(len(cells)), screen.genes)
            made["means of all cells"] = predictor("train_mean")(everything, list(names))
            made["means of passing cells"] = predictor("train_mean")(cradle.means, list(names))
            restored = restoration(cradle, path, config, pass_ng, known_fail_n)
        moved = np.abs(truth_pg).max(1) > 0.05
        size = np.sqrt(np.square(truth_pg[moved]).sum(1)).mean()
        for name, change_pg in made.items():
            error_p = np.square(change_pg - truth_pg)[moved].sum(1) / np.square(truth_pg[moved]).sum(1)
            r = np.mean([pearson(a, b) for a, b in zip(truth_pg[moved], change_pg[moved], strict=True)])
            null = np.sqrt(np.square(change_pg[~moved]).sum(1)).mean() / size
            rows.append((name, r, error_p.mean(), null, restored if name == "CRADLE-VAE" else np.nan))
    table = pd.DataFrame(rows, columns=["method", "r", "error", "null", "restored"]).groupby("method", sort=False)
    mean, spread = table.mean(), table.std()
    print(f"{given.perturbations} perturbations, {len(cells):,} cells, {given.genes:,} genes, {given.seeds} seeds")
    print(f"{'':26s}" + "".join(f"{column:>16s}" for column in mean))
    for name, row in mean.iterrows():
        print(f"{name:26s}" + "".join(f"{row[c]:9.3f} ±{spread.loc[name, c]:5.3f}" if row[c] == row[c] else f"{'':16s}" for c in mean))


def restoration(response, path, config, pass_ng, failed_n):
    """How far the mean of failing cells moves to what it would have been; 1 is all the way."""
    query = ScreenQuery(response, path, config)
    rows = np.flatnonzero(failed_n)
    cells = query.cells(rows)
    made_ng = response.as_passed(cells, query.name_n[rows]).numpy() / cells.total_n[:, None].numpy()
    observed_g = (query.store.batch(rows).dense()[:, :-1] / cells.total_n[:, None]).mean(0).numpy()
    true_g = pass_ng[rows].mean(0)
    log = [np.log1p(SCALE * share_g) for share_g in (observed_g, made_ng.mean(0), true_g)]
    return 1 - np.linalg.norm(log[1] - log[2]) / np.linalg.norm(log[0] - log[2])


if __name__ == "__main__":
    main()
