"""When does adaptive resampling help? Two designs on real cells, every sampler in the same loop, paired over seeds.

    python benchmarks/adaptive_resampling.py rare  OUT.csv pbmc_facs.h5ad:"CD14+ Monocyte,CD34+" kang.h5ad:NK,B --cut 20 0.003 0.01
    python benchmarks/adaptive_resampling.py atlas OUT.csv pbmc_facs.h5ad:"CD19+ B,CD34+"  --counts 0 1 10 100 1000
    python benchmarks/adaptive_resampling.py table OUT.csv

``rare``: half of the cells are for training, and of one type (named after the colon) only CUT cells of it (under 1: share of the
training cells) are kept. Scored on the other half: F1 of the cut type and macro F1 of 5 nearest neighbours in the latent space (five
random halves), and the mean correlation of decoded and observed profiles of the cut type.
``atlas``: the published design. The base are the types NOT named after the colon; N cells of the named ones replace as many of it.
Scored on held-out cells of the named types, early (5 epochs), and late (100 epochs).
Rows are appended to OUT.csv as they come; runs that are there already are skipped, so it can be stopped and started.
``table`` prints means, and differences from ``standard`` paired over data set, type, cut and seed with their standard error.
How to read it: an effect smaller than twice its standard error is noise.
"""

import argparse
import csv
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier

from sctool.bench.paired import paired_difference
from sctool.bench.reconstruct import reconstruction_table
from sctool.data.genes import variable_genes
from sctool.data.matrix_kind import find_counts
from sctool.data.minibatch import CellStore
from sctool.data.read import H5ad
from sctool.engine.samplers import make_sampler
from sctool.engine.trainer import Trainer
from sctool.models.scvi import SCVI
from sctool.sections import ARConfig, SCVIConfig, TrainConfig

warnings.filterwarnings("ignore")
SAMPLERS = {
    "standard": ("uniform", {}),
    "ar": ("adaptive", {}),
    "ar tempered": ("adaptive", {"temper": 0.5}),
    "ar online": ("adaptive", {"refresh": "online"}),
    "ar knn": ("adaptive", {"density": "knn", "max_ratio": 10.0}),
    "balanced": ("balanced", {}),
}
COLUMNS = [
    "design",
    "file",
    "type",
    "cut",
    "seed",
    "latent",
    "epochs",
    "sampler",
    "f1",
    "macro_f1",
    "accuracy",
    "correlation",
    "ess",
    "lift",
    "seconds",
]


def load(spec, label_key):
    name, _, types = spec.partition(":")
    file = H5ad(Path(name))
    return file.path.stem, file.matrix(find_counts(file).source), file.obs[label_key].astype(str).to_numpy(), types.split(",")


def vote(z, labels, own=None):
    """F1 of one type (or NaN), macro F1 and accuracy of 5 neighbours, mean over five random halves."""
    out = []
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(z))
        a, b = order[: len(z) // 2], order[len(z) // 2 :]
        made = KNeighborsClassifier(5).fit(z[a], labels[a]).predict(z[b])
        f1 = f1_score(labels[b] == own, made == own) if own else np.nan
        out.append((f1, f1_score(labels[b], made, average="macro"), (made == labels[b]).mean()))
    return np.mean(out, 0)


def train(counts, labels, rows, seed, sampler, latent, epochs):
    """A trainer after ``epochs`` epochs."""
    name, settings = SAMPLERS[sampler]
    config = TrainConfig(epochs=epochs, warmup=0.0, sampler=name)
    torch.manual_seed(seed)
    store = CellStore(counts, {"batch": np.zeros(len(labels), int)}, [""] * len(labels))
    chosen = make_sampler(rows, config, ARConfig(**settings), labels=labels)
    trainer = Trainer(SCVI(SCVIConfig(n_latent=latent), counts.shape[1]), store, chosen, config, seed=seed)
    trainer.fit()
    return trainer


@torch.inference_mode()
def correlation(trainer, counts, rows):
    """Mean correlation of decoded and observed profiles of some cells."""
    if not len(rows):
        return np.nan
    batch = trainer.store.batch(rows)
    made = trainer.model.proportions(trainer.model.embed(batch), batch.codes).numpy()
    return reconstruction_table(lambda r: counts[r].toarray(), [(rows, made)])["correlation"].mean()


def weights_of(trainer, own):
    """Effective sample size over n, and mean weight of some training cells relative to uniform."""
    w = trainer.sampler.state.get("weights")
    if w is None:
        return 1.0, 1.0
    return trainer.sampler.log()["weights_ess"], float(w[own].mean() * len(w)) if own.any() else np.nan


def rare(args, write, done):
    for seed in args.seeds:
        for spec in args.files:
            stem, counts, labels, types = load(spec, args.label_key)
            for own in types:
                for cut in args.cut:
                    order = np.random.default_rng(seed).permutation(len(labels))
                    train_rows, test = order[: len(order) // 2], np.sort(order[len(order) // 2 :])
                    keep = int(cut) if cut >= 1 else max(2, round(cut * len(train_rows)))
                    of_type = train_rows[labels[train_rows] == own]
                    rows = np.sort(np.concatenate([train_rows[labels[train_rows] != own], of_type[:keep]]))
                    chosen = None
                    for sampler in args.samplers:
                        key = ["rare", stem, own, cut, seed, args.latent, args.epochs, sampler]
                        if tuple(map(str, key)) in done:
                            continue
                        if chosen is None:
                            chosen = counts[:, variable_genes(counts[rows], 2000)]
                        began = time.perf_counter()
                        trainer = train(chosen, labels, rows, seed, sampler, args.latent, args.epochs)
                        f1, macro, accuracy = vote(trainer.embed(test), labels[test], own)
                        r = correlation(trainer, chosen, test[labels[test] == own])
                        write([*key, f1, macro, accuracy, r, *weights_of(trainer, labels[rows] == own), time.perf_counter() - began])


def atlas(args, write, done):
    for seed in args.seeds:
        for spec in args.files:
            stem, counts, labels, types = load(spec, args.label_key)
            others = np.isin(labels, types)
            rng = np.random.default_rng(seed)
            base, other = rng.permutation(np.flatnonzero(~others)), rng.permutation(np.flatnonzero(others))
            pool, test = other[: len(other) // 2], np.sort(other[len(other) // 2 :])
            for wanted in args.counts:
                n = min(int(wanted), len(pool))
                rows = np.sort(np.concatenate([base[: len(base) - n], pool[:n]]))
                chosen = None
                for sampler in args.samplers:
                    for epochs in args.epochs_list:
                        key = ["atlas", stem, "+".join(types), n, seed, args.latent, epochs, sampler]
                        if tuple(map(str, key)) in done:
                            continue
                        if chosen is None:
                            chosen = counts[:, variable_genes(counts[rows], 2000)]
                        began = time.perf_counter()
                        trainer = train(chosen, labels, rows, seed, sampler, args.latent, epochs)
                        f1, macro, accuracy = vote(trainer.embed(test), labels[test])
                        r = correlation(trainer, chosen, test)
                        write([*key, f1, macro, accuracy, r, *weights_of(trainer, others[rows]), time.perf_counter() - began])


def table(path):
    import pandas as pd

    runs = pd.read_csv(path, names=COLUMNS)
    for (design, cut, latent, epochs), part in runs.groupby(["design", "cut", "latent", "epochs"]):
        print(f"\n{design}, cut or atlas cells {cut:g}, latent {latent}, {epochs} epochs")
        print(
            f"{'sampler':14s}{'runs':>5s}"
            + "".join(f"{c:>12s}{'paired':>17s}" for c in ("f1", "macro_f1", "correlation"))
            + f"{'lift':>7s}{'ess':>6s}"
        )
        wide = part.pivot_table(index=["file", "type", "seed"], columns="sampler", values=["f1", "macro_f1", "correlation"], dropna=False)
        for sampler in [s for s in SAMPLERS if s in set(part["sampler"])]:
            own = part[part["sampler"] == sampler]
            line = f"{sampler:14s}{len(own):5d}"
            for column in ("f1", "macro_f1", "correlation"):
                pair = paired_difference(wide[column][sampler], wide[column]["standard"]) if column in wide else None
                said = f"{pair.difference:+.3f} +- {pair.standard_error:.3f}" if pair and pair.pairs > 1 else ""
                line += f"{own[column].mean():12.3f}{said:>17s}"
            print(line + f"{own['lift'].mean():7.1f}{own['ess'].mean():6.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("design", choices=["rare", "atlas", "table"])
    parser.add_argument("out")
    parser.add_argument("files", nargs="*", help="FILE.h5ad:TYPE,TYPE")
    parser.add_argument("--label-key", default="cell_type")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--samplers", nargs="+", choices=list(SAMPLERS), default=["standard", "ar", "ar tempered", "ar knn", "balanced"])
    parser.add_argument("--cut", nargs="+", type=float, default=[20, 0.003, 0.01])
    parser.add_argument("--counts", nargs="+", type=float, default=[0, 1, 10, 100, 1000])
    parser.add_argument("--latent", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--epochs-list", nargs="+", type=int, default=[5, 100])
    args = parser.parse_args()
    if args.design == "table":
        table(args.out)
        return
    torch.set_num_threads(1)
    out = Path(args.out)
    done = {tuple(row[:8]) for row in csv.reader(out.open())} if out.exists() else set()

    def write(row):
        with out.open("a", newline="") as file:
            csv.writer(file).writerow(row)

    (rare if args.design == "rare" else atlas)(args, write, done)


if __name__ == "__main__":
    main()
