"""Samples of a cohort: SampleCLR beside simple baselines on donors held out, over seeds.

    python benchmarks/samples.py FILE.h5ad --sample-key sample --donor-key donor --task condition:class
    python benchmarks/samples.py FILE.h5ad --sample-key donor                   # no task: halves of samples found

Each seed shares the donors out into folds anew and trains anew (`sctool train sampleclr --repeats 1`). The table holds means over
seeds, the spread of the score over seeds, and the mean of the intervals over donors. Read it so: with few donors the interval is wide,
and only differences that are larger than the spread over seeds say something of the method. With `--even-types` (and `--label-key`) every
sample has the same number of cells of each type that all samples have, so that composition can say nothing.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd


def even(path, sample_key, label_key, folder):
    """A copy with the same number of cells of each type in every sample."""
    a = ad.read_h5ad(path)
    counts = pd.crosstab(a.obs[sample_key].astype(str), a.obs[label_key].astype(str))
    least = counts.min()
    rng, rows = np.random.default_rng(0), []
    for (_, kind), own in a.obs.reset_index().groupby([sample_key, label_key], observed=True).groups.items():
        rows.append(rng.permutation(np.asarray(own))[: least[str(kind)]])
    made = Path(folder) / f"{path.stem}-even.h5ad"
    a[np.sort(np.concatenate(rows))].write_h5ad(made)
    print(f"{made.name}: " + ", ".join(f"{n} {kind}" for kind, n in least.items() if n) + " in each sample")
    return made


def one_seed(args, folder, seed):
    """Tables of a run."""
    words = ["--sample-key", args.sample_key, "--seed", str(seed), "--repeats", "1", "--threads", "1", "--no-plots", "--quiet"]
    for flag, value in (("--donor-key", args.donor_key), ("--rep", args.rep), ("--label-key", args.label_key), ("--task", args.task)):
        words += [flag, value] if value else []
    name = f"{args.file.stem}-{seed}"
    command = [sys.executable, "-m", "sctool", "train", "sampleclr", str(args.file), *words, *args.more.split()]
    subprocess.run([*command, "--name", name, "--out", str(folder), "--force"], check=True, capture_output=True)
    results = Path(folder) / "results" / "sampleclr" / name
    tables = {key: pd.read_csv(results / f"{key}.csv") for key in ("comparison", "retrieval") if (results / f"{key}.csv").exists()}
    return {key: table.assign(seed=seed) for key, table in tables.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    for flag in ("--sample-key", "--donor-key", "--rep", "--label-key", "--task"):
        parser.add_argument(flag)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--more", default="", help="further flags of the command")
    parser.add_argument("--out", default=None, help="keep the runs here")
    parser.add_argument("--even-types", action="store_true", help="the same composition in all samples")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if args.even_types:
            Path(args.out or scratch).mkdir(parents=True, exist_ok=True)
            args.file = even(args.file, args.sample_key, args.label_key, args.out or scratch)
        runs = [one_seed(args, args.out or scratch, seed) for seed in range(args.seeds)]
    if "comparison" in runs[0]:
        table = pd.concat([run["comparison"] for run in runs])
        for score in table["score"].unique()[:3]:
            part = table[table["score"] == score]
            by = part.groupby(["name", "arm"], sort=False)
            shown = by.agg(value=("value", "mean"), sd=("value", "std"), low=("low", "mean"), high=("high", "mean"), p=("p", "median"))
            print(f"\n{args.file.stem}, {args.task}: {score}, {args.seeds} seeds, {part['n_donors'].iloc[0]} donors")
            print(shown.round(3).to_string())
    table = pd.concat([run["retrieval"] for run in runs])
    by = table.groupby("name", sort=False)
    print(f"\n{args.file.stem}: halves of held-out samples found, chance {table['chance'].iloc[0]:.3f}")
    print(by.agg(top1=("top1", "mean"), sd=("top1", "std"), low=("low", "mean"), high=("high", "mean")).round(3).to_string())


if __name__ == "__main__":
    main()
