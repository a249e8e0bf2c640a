"""Do labels leak into the codes? Training labels are permuted, so that they mean nothing; codes of held-out cells must not know them.

    python benchmarks/integration_leak.py FILE.h5ad BATCH_KEY LABEL_KEY [--seeds 0 1 2]

A fifth of the cells is held out. Printed for the unsupervised model and for the supervised one with permuted labels: silhouette (-1 to 1)
of the held-out cells by the permuted labels, where a leak would show, and by the true ones, where the damage of wrong labels shows.
"""

import argparse
import tempfile
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
from sklearn.metrics import silhouette_score

from sctool.artifacts.model_folder import RunPlace
from sctool.config import load_config
from sctool.data.integration import prepare_integration
from sctool.engine.integrate import integration_stages
from sctool.engine.query import open_query
from sctool.engine.run import run_training
from sctool.models.registry import BUILDERS


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("batch_key")
    parser.add_argument("label_key")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for seed in asked.seeds:
        cells, rng = ad.read_h5ad(asked.file), np.random.default_rng(seed)
        true = cells.obs[asked.label_key].astype(str).to_numpy()
        permuted = rng.permutation(true)
        part = np.where(rng.random(len(true)) < 0.2, "test", "train")
        cells.obs["permuted"], cells.obs["part_of_leak"] = pd.Categorical(permuted), pd.Categorical(part)
        held = part == "test"
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "cells.h5ad"
            cells.write_h5ad(path)
            (Path(scratch) / "config.yaml").write_text("{}")
            for mode in ("unsupervised", "supervised"):
                flags = {
                    "seed": seed,
                    "data.batch_key": asked.batch_key,
                    "data.label_key": "permuted",
                    "data.hold_out": "part_of_leak=test",
                    "integrate.mode": mode,
                    "diffusion.train_steps": 0,
                }
                config = load_config(Path(scratch) / "config.yaml", flags, [], "integrate")
                place = RunPlace(Path(scratch) / mode, resume=False, force=True)
                prepared = prepare_integration(path, config)
                folder = run_training("integrate", BUILDERS["integrate"], prepared, config, place, stages=integration_stages)
                z_nl = open_query(folder, BUILDERS["integrate"], path, config).embed()[held]
                by = {
                    name: round(float(silhouette_score(z_nl, labels[held])), 3) for name, labels in (("permuted", permuted), ("true", true))
                }
                print(f"seed {seed}, {mode}: silhouette by permuted labels {by['permuted']}, by true labels {by['true']}", flush=True)


if __name__ == "__main__":
    main()
