"""Training speed of scVI: sctool, scvi-tools, and the bare dense products of the same network, in one interleaved run.

    python benchmarks/train_speed.py                                  # 2,000 genes / 128 hidden / minibatch 128
    python benchmarks/train_speed.py --genes 11000 --hidden 512 --batch 256 --density 0.07 --cells 4096

Needs the ``peers`` extra for the comparison with scvi-tools. One thread unless ``--threads`` says otherwise; counts are simulated NB.
How to read it: each round times one epoch of each contestant in turn; the table shows the median over rounds of the time per step, and
the median of the ratios within a round, which is what counts on a busy machine. ``products`` multiplies the same matrices forward and
backward with nothing else: no loss, no optimiser, no loading.
"""

import argparse
import statistics
import time
import warnings

import numpy as np
import scipy.sparse as sp
import torch

from sctool.data.minibatch import CellStore
from sctool.engine.samplers import make_sampler
from sctool.engine.trainer import Trainer
from sctool.models.scvi import SCVI
from sctool.sections import ARConfig, SCVIConfig, TrainConfig

warnings.filterwarnings("ignore")


def simulate(cells, genes, density, seed=0):
    """Counts with the wanted share of non-zeros, most of them ones, as in 10x data."""
    rng = np.random.default_rng(seed)
    rate = rng.lognormal(0, 1.2, genes)
    low, high = 1e-6, 1e3
    for _ in range(60):
        scale = (low * high) ** 0.5
        low, high = (scale, high) if (1 - np.exp(-scale * rate)).mean() < density else (low, scale)
    depth = rng.lognormal(0, 0.4, cells)
    return sp.vstack([sp.csr_matrix(rng.poisson(scale * rate * d).astype(np.float32)) for d in depth], format="csr")


class Clock:
    """A reporter that keeps the time of each epoch."""

    def __init__(self):
        self.ends = []

    def start(self, epochs, done, title=""):
        self.ends = [time.perf_counter()]

    def step(self, cells):
        pass

    def epoch(self, row):
        self.ends.append(time.perf_counter())

    def stop(self, message):
        pass


def ours(counts, args, sampler="uniform", refresh="epoch"):
    """Seconds of the second epoch."""
    torch.manual_seed(0)
    store = CellStore(counts, {"batch": np.zeros(counts.shape[0], int)}, [""] * counts.shape[0], device=args.device)
    config = TrainConfig(epochs=2 + (sampler != "uniform"), batch_size=args.batch, precision=args.precision, sampler=sampler)
    model = SCVI(SCVIConfig(n_hidden=args.hidden, n_latent=args.latent, likelihood=args.likelihood), counts.shape[1]).to(args.device)
    clock = Clock()
    rows = np.arange(counts.shape[0])
    Trainer(model, store, make_sampler(rows, config, ARConfig(refresh=refresh)), config, reporter=clock).fit()
    return clock.ends[-1] - clock.ends[-2]


def theirs(counts, args):
    """Seconds of the second epoch of ``SCVI.train``."""
    import anndata as ad
    import lightning.pytorch as pl
    import scvi

    class EpochClock(pl.Callback):
        def on_train_epoch_start(self, *_):
            self.began = time.perf_counter()

        def on_train_epoch_end(self, *_):
            self.seconds = time.perf_counter() - self.began

    scvi.settings.verbosity = 40
    cells = ad.AnnData(counts)
    scvi.model.SCVI.setup_anndata(cells)
    model = scvi.model.SCVI(cells, n_hidden=args.hidden, n_latent=args.latent, gene_likelihood=args.likelihood)
    clock = EpochClock()
    accelerator = "gpu" if args.device == "cuda" else "cpu"
    model.train(
        2, train_size=1.0, batch_size=args.batch, accelerator=accelerator, callbacks=[clock], enable_progress_bar=False, logger=False
    )
    return clock.seconds


def products(counts, args):
    """Seconds of the matrix products of one epoch, forward and backward, on a resident dense minibatch."""
    genes, hidden, latent, batch = counts.shape[1], args.hidden, args.latent, args.batch
    sizes = [(genes, hidden), (hidden, latent), (hidden, latent), (latent, hidden), (hidden, genes)]
    weights = [torch.randn(n_out, n_in, device=args.device) for n_in, n_out in sizes]
    inputs = [torch.randn(batch, n_in, device=args.device) for n_in, _ in sizes]
    grads = [torch.randn(batch, n_out, device=args.device) for _, n_out in sizes]
    steps = -(-counts.shape[0] // batch)

    def step():
        for index, (w, x, g) in enumerate(zip(weights, inputs, grads, strict=True)):
            x @ w.T
            g.T @ x
            if index:  # the counts need no gradient
                g @ w

    step()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    if args.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"cells": 8192, "genes": 2000, "hidden": 128, "latent": 10, "batch": 128, "rounds": 5, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--likelihood", default="nb")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--skip-peer", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    counts = simulate(args.cells, args.genes, args.density)
    contestants = {
        "sctool": lambda: ours(counts, args),
        "sctool --ar-refresh online": lambda: ours(counts, args, "adaptive", "online"),
        "sctool --ar-refresh epoch": lambda: ours(counts, args, "adaptive", "epoch"),
        "products": lambda: products(counts, args),
    }
    if not args.skip_peer:
        contestants["scvi-tools"] = lambda: theirs(counts, args)
    seconds = {name: [] for name in contestants}
    for _ in range(args.rounds):
        for name, run in contestants.items():
            seconds[name].append(run())
    steps = -(-args.cells // args.batch)
    print(
        f"{args.cells} cells x {args.genes} genes, {counts.nnz / np.prod(counts.shape):.1%} non-zero, hidden {args.hidden}, "
        f"minibatch {args.batch}, {args.likelihood}, {args.precision}, {args.device}, {args.threads} thread(s)"
    )
    print(f"{'':28s}{'ms/step':>9s}{'cells/s':>10s}{'time / sctool':>15s}{'(min':>8s}{'max)':>7s}")
    for name, times in seconds.items():
        ratios = [t / base for t, base in zip(times, seconds["sctool"], strict=True)]
        middle = statistics.median(times)
        print(
            f"{name:28s}{1e3 * middle / steps:9.2f}{args.cells / middle:10,.0f}"
            f"{statistics.median(ratios):15.2f}{min(ratios):8.2f}{max(ratios):7.2f}"
        )


if __name__ == "__main__":
    main()
