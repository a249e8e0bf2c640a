"""Training logistic regression against CellTypist at equal data, and the memory of calling the types of a large file.

    python benchmarks/classification_scale.py FOLDER --cells 200000 --genes 20000 --train-cells 20000

Writes a simulated .h5ad into FOLDER (once). Both train on the same cells and genes, in turn, one thread each; ours includes what
CellTypist has not: choosing genes, three held-out parts for calibration and rejection, the baselines. How to read it: the ratio is
CellTypist's seconds over ours, so above 1 we are faster. CellTypist standardises all genes as a dense matrix, which sets how many cells
it can take. Then `sctool predict classify` runs over the whole file in a process of its own; the figure is its largest resident memory.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import anndata as ad
import numpy as np
from backed import simulate
from threadpoolctl import threadpool_limits


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--train-cells", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--skip-celltypist", action="store_true")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    whole, part = (asked.folder / f"{n}x{asked.genes}.h5ad" for n in (asked.cells, asked.train_cells))
    for path, cells in ((whole, asked.cells), (part, asked.train_cells)):
        if not path.exists():
            simulate(path, cells, asked.genes, asked.density)
    # First, for a child process inherits the largest resident memory of this one.
    run(f"train classify {part} --label-key cell_type --group-key donor --cv none --models lr --name scale", asked.folder)
    began = time.perf_counter()
    gigabytes = run(f"predict classify {asked.folder}/checkpoints/classify/scale/lr {whole} --name scale", asked.folder)
    seconds = time.perf_counter() - began
    print(f"predict: {seconds:.0f} s, {asked.cells / seconds:,.0f} cells/s, at most {gigabytes:.2f} GB resident")
    ours, theirs = [], []
    for number in range(asked.rounds):
        ours.append(train_ours(part))
        print(f"round {number + 1}: ours {ours[-1]:.1f} s", flush=True)
        if not asked.skip_celltypist:
            theirs.append(train_celltypist(part))
            print(f"round {number + 1}: CellTypist {theirs[-1]:.1f} s", flush=True)
    if theirs:
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        print(f"CellTypist / ours: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)


def run(arguments, folder):
    """A command in a process of its own; its largest resident memory in GB."""
    command = [sys.executable, "-m", "sctool", *arguments.split(), "--out", str(folder), "--threads", "1", "--force", "--quiet"]
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, command
    return usage.ru_maxrss / 1e6


def train_ours(path):
    from sctool.config import load_config
    from sctool.data.labelled import prepare_labelled
    from sctool.engine.classify import fit_classifiers

    flags = {"data.label_key": "cell_type", "data.group_key": "donor", "threads": 1}
    config = load_config(Path(os.devnull), flags, [], "classify")
    cells = prepare_labelled(path, config)
    began = time.perf_counter()
    fit_classifiers(["lr"], cells, cells.train, config)
    return time.perf_counter() - began


def train_celltypist(path):
    """Its default, one type against the rest; done here, for it asks scikit-learn for an argument that new versions lack."""
    import celltypist
    import scanpy as sc
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    def one_against_rest(indata, labels, C, solver, max_iter, n_jobs, **kwargs):  # noqa: N803
        model = OneVsRestClassifier(LogisticRegression(C=C, solver=solver or "lbfgs", max_iter=max_iter)).fit(indata, labels)
        model.coef_ = np.vstack([one.coef_ for one in model.estimators_])
        return model

    sys.modules["celltypist.train"]._LRClassifier = one_against_rest
    data = ad.read_h5ad(path)
    sc.pp.normalize_total(data, target_sum=1e4)
    sc.pp.log1p(data)
    began = time.perf_counter()
    celltypist.train(data, labels="cell_type", n_jobs=1, check_expression=False)
    return time.perf_counter() - began


if __name__ == "__main__":
    np.random.seed(0)  # CellTypist draws from the global generator
    with threadpool_limits(1):
        main()
