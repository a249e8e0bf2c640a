"""Training from disk (--backed) against training from memory: throughput and private memory.

    python benchmarks/backed.py FOLDER --cells 200000 --genes 20000 --density 0.05

Writes a simulated .h5ad into FOLDER (once), then trains scVI on 2,000 variable genes in two fresh processes, in turn, one thread each.
How to read it: ``private MB`` is the peak of memory that belongs to the process alone (anonymous pages); the page cache, which the
system takes back when it needs it, is not counted. The ratio of cells/s is that of the median training epoch.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np


def simulate(path, cells, genes, density, seed=0):
    """Counts drawn gene by gene from 20 types of profiles; the file is written block by block, so memory stays small."""
    import h5py
    import pandas as pd
    from anndata.io import write_elem

    rng = np.random.default_rng(seed)
    base = rng.lognormal(0, 1.3, genes)
    cumulative = [np.cumsum(base * rng.lognormal(0, 0.5, genes)) for _ in range(20)]
    draws = int(density * genes * 1.17)  # several fall on the same gene
    names = [np.array([f"{letter}{i}" for i in range(n)], dtype=object) for letter, n in (("c", cells), ("g", genes))]
    type_n = rng.integers(20, size=cells)
    obs = pd.DataFrame({"cell_type": [f"type{t}" for t in type_n], "donor": [f"donor{i % 8}" for i in range(cells)]}, index=names[0])
    with h5py.File(path, "w") as file:
        file.attrs["encoding-type"], file.attrs["encoding-version"] = "anndata", "0.1.0"
        write_elem(file, "obs", obs)
        write_elem(file, "var", pd.DataFrame(index=names[1]))
        group = file.create_group("X")
        group.attrs["encoding-type"], group.attrs["encoding-version"], group.attrs["shape"] = "csr_matrix", "0.1.0", (cells, genes)
        data = group.create_dataset("data", (0,), np.float32, maxshape=(None,), chunks=(1 << 20,))
        indices = group.create_dataset("indices", (0,), np.int32, maxshape=(None,), chunks=(1 << 20,))
        ends = [0]
        for start in range(0, cells, 2000):
            columns, counts = [], []
            for cell in range(start, min(cells, start + 2000)):
                profile = cumulative[type_n[cell]]
                column, count = np.unique(np.searchsorted(profile, rng.random(draws) * profile[-1]), return_counts=True)
                columns.append(column)
                counts.append(count)
                ends.append(ends[-1] + len(column))
            for dataset, parts in ((data, counts), (indices, columns)):
                dataset.resize((ends[-1],))
                dataset[len(dataset) - sum(map(len, parts)) :] = np.concatenate(parts)
        group["indptr"] = np.array(ends, np.int64)


def private_mb():
    """Anonymous memory of this process."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1e3 for line in file if line.startswith("RssAnon"))


def work(path, backed, epochs_of):
    """Train, and print the throughput and the peak of private memory as JSON."""
    import torch

    torch.set_num_threads(1)
    from sctool.config import load_config
    from sctool.data.minibatch import CellStore
    from sctool.data.prepare import prepare_counts
    from sctool.data.samplers import UniformSampler
    from sctool.engine.trainer import Trainer
    from sctool.models.scvi import SCVI

    peak = [0.0]
    alive = [True]

    def watch():
        while alive[0]:
            peak[0] = max(peak[0], private_mb())
            time.sleep(0.05)

    threading.Thread(target=watch, daemon=True).start()
    config = load_config(None, {"data.backed": backed, "data.cache_dir": str(Path(path).parent), "train.epochs": 3})
    prepared = prepare_counts(Path(path), config)
    ready = peak[0]
    counts = prepared.counts if backed else prepared.counts[:, prepared.columns]
    store = CellStore(counts, prepared.codes, prepared.obs.index, prepared.columns if backed else None)
    rows = np.random.default_rng(0).permutation(prepared.rows("train"))[:epochs_of]
    times = []

    class Clock:
        def start(self, epochs, done):
            times.append(time.perf_counter())

        def step(self, cells): ...
        def stop(self, message): ...
        def epoch(self, row):
            times.append(time.perf_counter())

    Trainer(SCVI(config.scvi, store.n_genes), store, UniformSampler(rows), config.train, reporter=Clock()).fit()
    alive[0] = False
    print(json.dumps({"cells_per_s": len(rows) / np.median(np.diff(times)), "private_mb": peak[0], "before_training": ready}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epoch", type=int, default=20_000, help="Cells in a timed epoch.")
    parser.add_argument("--work", choices=["memory", "backed"])
    args = parser.parse_args()
    path = args.folder / f"simulated-{args.cells}x{args.genes}.h5ad"
    if args.work:
        work(path, args.work == "backed", args.epoch)
        return
    if not path.exists():
        args.folder.mkdir(parents=True, exist_ok=True)
        simulate(path, args.cells, args.genes, args.density)
    print(f"{path} ({path.stat().st_size / 1e9:.2f} GB)")
    ratios = []
    for _ in range(args.rounds):
        made = {}
        for kind in ("memory", "backed"):
            command = [sys.executable, __file__, *sys.argv[1:], "--work", kind]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            made[kind] = json.loads(done.stdout.splitlines()[-1])
            print(f"{kind:8s}{made[kind]['cells_per_s']:10,.0f} cells/s{made[kind]['private_mb']:10,.0f} private MB", flush=True)
        ratios.append(made["backed"]["cells_per_s"] / made["memory"]["cells_per_s"])
    print(f"backed / memory: {np.median(ratios):.2f} (of {', '.join(f'{ratio:.2f}' for ratio in ratios)})")


if __name__ == "__main__":
    main()
