"""Memory and time of training on a large screen that stays on disk.

    python benchmarks/perturbation_scale.py FOLDER [--cells 100000] [--genes 5000] [--perturbations 230]

Writes a simulated .h5ad into FOLDER (once), then runs `sctool train cradle --backed` for one epoch in a process of its own. The figures are
its largest resident memory (which counts pages of the memory-mapped counts that happen to be cached) and its seconds, all steps included.
"""

import argparse
import sys
import time
from pathlib import Path

import h5py
import numpy as np
from classification_scale import run


def simulate(path, n_cells, n_genes, n_perturbations, density=0.1, block=5000):
    """Sparse counts of a tenth of the genes of each cell, written block by block; pairs make up a third of the perturbations."""
    import anndata as ad
    import pandas as pd
    import scipy.sparse as sp

    rng = np.random.default_rng(0)
    n_pairs = n_perturbations // 3
    singles = [f"T{i}" for i in range(n_perturbations - n_pairs)]
    names = ["control"] * 20 + singles + [f"{a}+{b}" for a, b in rng.choice(singles, (n_pairs, 2))]
    obs = pd.DataFrame({"perturbation": rng.choice(names, n_cells)}, index=[f"c{i}" for i in range(n_cells)])
    frame = ad.AnnData(sp.csr_matrix((n_cells, n_genes), dtype=np.float32), obs, pd.DataFrame(index=[f"G{i}" for i in range(n_genes)]))
    frame.write_h5ad(path)
    share_g = rng.dirichlet(np.full(n_genes, 0.3))
    per_cell = int(density * n_genes)
    with h5py.File(path, "a") as file:
        del file["X"]["data"], file["X"]["indices"], file["X"]["indptr"]
        data = file["X"].create_dataset("data", (n_cells * per_cell,), np.float32)
        indices = file["X"].create_dataset("indices", (n_cells * per_cell,), np.int32)
        for start in range(0, n_cells, block):
            n = min(block, n_cells - start)
            # The genes of a cell: the highest of their shares with Gumbel noise, which is drawing without replacement.
            key_ng = np.log(share_g + 1e-12) - np.log(-np.log(rng.random((n, n_genes))))
            chosen_nk = np.sort(np.argpartition(-key_ng, per_cell, axis=1)[:, :per_cell], axis=1)
            at = slice(start * per_cell, (start + n) * per_cell)
            indices[at], data[at] = chosen_nk.ravel(), 1 + rng.poisson(1.0, n * per_cell)
        file["X"].create_dataset("indptr", data=np.arange(n_cells + 1, dtype=np.int64) * per_cell)


def main():
    """Simulate and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name, value in (("cells", 100_000), ("genes", 5000), ("perturbations", 230)):
        parser.add_argument(f"--{name}", type=int, default=value)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    path = asked.folder / f"screen-{asked.cells}x{asked.genes}.h5ad"
    if not path.exists():
        simulate(path, asked.cells, asked.genes, asked.perturbations)
        sys.exit(f"{path} is made; run this again to train (memory of the simulation would count)")
    began = time.perf_counter()
    keys = "--perturbation-key perturbation --control control"
    gigabytes = run(f"train cradle {path} {keys} --backed --epochs 1 --name scale --set data.cache_dir={asked.folder}/cache", asked.folder)
    print(f"{time.perf_counter() - began:.0f} s, at most {gigabytes:.2f} GB resident")


if __name__ == "__main__":
    main()
