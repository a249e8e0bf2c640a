"""Samples of a cohort: SampleCLR beside simple baselines on donors held out, over seeds.

    python benchmarks/samples.py FILE.h5ad --sample-key sample --donor-key donor --task condition:class
    python benchmarks/samples.py FILE.h5ad --sample-key donor                   # no task: halves of samples found

Each seed shares the donors out into folds anew and trains anew (`sctool train sampleclr --repeats 1`). The table holds means over
seeds, the spread of the score over seeds, and the mean of the intervals over donors. Read it so: with few donors the interval is wide,
and only differences that are larger than the spread over seeds say something of the method.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd


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
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
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
