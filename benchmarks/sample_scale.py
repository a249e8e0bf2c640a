"""Memory and time of embedding a large cohort: time should grow in line with the cells, and memory stay small.

    python benchmarks/sample_scale.py [--cells 250000 500000 1000000] [--samples 500] [--features 50] [--importance]

A cohort is drawn (normal features with a shift for each sample), a network is trained on a small part of it, and each size is embedded
by `sctool predict sampleclr` in a process of its own. Read it so: `seconds / 1M cells` should not grow down the column, `peak GB` is the
most memory that the process ever held.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp


def write_cohort(path, n_cells, n_samples, n_features, seed):
    rng = np.random.default_rng(seed)
    sample = rng.integers(n_samples, size=n_cells)
    shift = rng.normal(scale=0.3, size=(n_samples, n_features))
    x = (rng.normal(size=(n_cells, n_features)) + shift[sample]).astype(np.float32)
    obs = pd.DataFrame({"sample": pd.Categorical.from_codes(sample, [f"s{i:03d}" for i in range(n_samples)])})
    obs.index = [f"c{i}" for i in range(n_cells)]
    a = ad.AnnData(sp.csr_matrix((n_cells, 10), dtype=np.float32), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(10)]))
    a.obsm["X_pca"] = x
    a.write_h5ad(path)


def measured(command):
    """Seconds and peak gigabytes of a command; the peak is the child's own, as this process stays below it."""
    script = (
        "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6); sys.exit(done.returncode)"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True, check=True)
    return time.perf_counter() - start, float(done.stdout.split()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[250_000, 500_000, 1_000_000])
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--features", type=int, default=50)
    parser.add_argument("--importance", action="store_true", help="also write the weight of each cell")
    args = parser.parse_args()
    sctool = [sys.executable, "-m", "sctool"]
    common = ["--sample-key", "sample", "--threads", "1", "--quiet"]
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "small.h5ad"
        write_cohort(small, 20_000, 50, args.features, 0)
        train = [*sctool, "train", "sampleclr", str(small), *common, "--epochs", "20", "--out", folder, "--name", "small", "--no-plots"]
        subprocess.run(train, check=True, capture_output=True)
        print(f"{'cells':>10} {'seconds':>8} {'seconds / 1M cells':>19} {'peak GB':>8}")
        for n in args.cells:
            path = Path(folder) / f"cells{n}.h5ad"
            write_cohort(path, n, args.samples, args.features, 1)
            model = f"{folder}/checkpoints/sampleclr/small"
            flags = [] if args.importance else ["--no-importance"]
            seconds, peak = measured([*sctool, "predict", "sampleclr", model, str(path), *common, *flags, "--out", folder])
            print(f"{n:>10,} {seconds:>8.1f} {seconds / n * 1e6:>19.1f} {peak:>8.2f}", flush=True)
            path.unlink()


if __name__ == "__main__":
    main()
