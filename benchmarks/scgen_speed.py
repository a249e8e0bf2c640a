"""Training time of scGen against the bare forward and backward of the same network, in one interleaved run.

    python benchmarks/scgen_speed.py FILE.h5ad GROUP_KEY CONDITION_KEY CONTROL PERTURBED HELD_OUT

How to read it: each round times one epoch of training (minibatches from sparse expression, loss, optimiser, validation, bookkeeping)
and the same number of steps of the network's loss, forward and backward, on a resident dense minibatch, without an optimiser. The
ratios within a round count, not the seconds.
"""

import statistics
import sys
import time
from pathlib import Path

import torch
from train_speed import Clock

from sctool.config import load_config
from sctool.data.minibatch import CellStore
from sctool.data.response import prepare_response
from sctool.engine.samplers import make_sampler
from sctool.engine.trainer import Trainer
from sctool.models.scgen import SCGen
from sctool.nn.likelihood import normal_kl

ROUNDS = 7


def train(prepared, config, sampler):
    """Seconds of the third epoch."""
    torch.manual_seed(0)
    store, clock = CellStore(prepared.matrix, prepared.codes, prepared.obs.index), Clock()
    settings = config.train.model_copy(update={"epochs": 3, "sampler": sampler})
    model, rows = SCGen(config.scgen, **prepared.sizes), prepared.rows("train")
    Trainer(
        model, store, make_sampler(rows, settings, config.ar), settings, validation_rows=prepared.rows("validation"), reporter=clock
    ).fit()
    return clock.ends[-1] - clock.ends[-2]


def bare(prepared, config):
    """Seconds of as many forward and backward passes."""
    rows, size = prepared.rows("train"), config.train.batch_size
    model = SCGen(config.scgen, **prepared.sizes).train()
    x_ng = torch.from_numpy(prepared.matrix[rows[:size]].toarray())

    def step():
        model.zero_grad()
        mean_nl, variance_nl = model.encoder(x_ng)
        decoded = model.decode(mean_nl + variance_nl.sqrt() * torch.randn_like(variance_nl))
        error = 0.5 * (x_ng - decoded).square().sum(1).mean()
        (error + 0.5 * config.scgen.kl_weight * normal_kl(mean_nl, variance_nl).mean()).backward()

    step()
    began = time.perf_counter()
    for _ in range(round(len(rows) / size)):
        step()
    return time.perf_counter() - began


def main():
    if len(sys.argv) != 7:
        sys.exit(__doc__)
    torch.set_num_threads(1)
    keys = ("data.group_key", "scgen.condition_key", "scgen.control", "scgen.perturbed", "scgen.held_out")
    config = load_config(None, dict(zip(keys, sys.argv[2:], strict=True)), [], "scgen")
    prepared = prepare_response(Path(sys.argv[1]), config)
    contestants = {
        "bare": lambda: bare(prepared, config),
        "sctool": lambda: train(prepared, config, "uniform"),
        "sctool --ar": lambda: train(prepared, config, "adaptive"),
    }
    seconds = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name, run in contestants.items():
            seconds[name].append(run())
    print(f"{'':14s}{'s/epoch':>9s}{'time / bare':>13s}{'(min':>8s}{'max)':>7s}")
    for name, times in seconds.items():
        ratios = [t / base for t, base in zip(times, seconds["bare"], strict=True)]
        print(f"{name:14s}{statistics.median(times):9.2f}{statistics.median(ratios):13.2f}{min(ratios):8.2f}{max(ratios):7.2f}")


if __name__ == "__main__":
    main()
