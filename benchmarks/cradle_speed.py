"""Training time of CRADLE-VAE against scVI on the same cells, genes, sizes and number of draws, in one interleaved run.

    python benchmarks/cradle_speed.py SCREEN.h5ad PERTURBATION_KEY CONTROL

How to read it: each round times the third epoch of each; the ratios within a round count, not the seconds. scVI gets the latent and hidden
sizes of CRADLE-VAE, its layers and its minibatches. CRADLE-VAE is timed with and without its artifact terms, and with --ar.
"""

import statistics
import sys
import time
from pathlib import Path

import torch
from train_speed import Clock

from sctool.config import load_config
from sctool.data.minibatch import CellStore
from sctool.data.perturbation import prepare_screen
from sctool.data.screen import read_screen
from sctool.engine.samplers import make_sampler
from sctool.engine.trainer import Trainer
from sctool.models.cradle import CradleVAE
from sctool.models.scvi import SCVI

ROUNDS = 7


def epoch(model, prepared, config, sampler="uniform"):
    """Seconds of the third epoch."""
    store = CellStore(prepared.matrix[:, prepared.columns], prepared.codes, prepared.obs.index, totals=prepared.totals)
    settings, clock = config.train.model_copy(update={"epochs": 3, "sampler": sampler}), Clock()
    rows = prepared.rows("train")
    Trainer(
        model, store, make_sampler(rows, settings, config.ar), settings, validation_rows=prepared.rows("validation"), reporter=clock
    ).fit()
    return clock.ends[-1] - clock.ends[-2]


def main():
    """Time them in turn."""
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    torch.set_num_threads(1)
    config = load_config(None, dict(zip(("cradle.perturbation_key", "cradle.control"), sys.argv[2:], strict=True)), [], "cradle")
    began = time.perf_counter()
    screen = read_screen(Path(sys.argv[1]), config)
    prepared = prepare_screen(screen, config)
    print(f"{len(prepared.rows('train')):,} cells, {prepared.sizes['n_genes']:,} genes; prepared in {time.perf_counter() - began:.0f} s")
    equal = {key: getattr(config.cradle, key) for key in ("n_latent", "n_hidden", "n_layers")}
    scvi = config.scvi.model_copy(update=equal)
    sams = config.cradle.model_copy(update={"model": "sams", "counterfactual_weight": 0.0})

    def network(settings):
        torch.manual_seed(0)
        model = CradleVAE(settings, **prepared.sizes)
        for name, tensor in model.state_dict().items():
            if name in prepared.initial:
                tensor.copy_(torch.as_tensor(prepared.initial[name]))
        return model

    contestants = {
        "scVI": lambda: epoch(SCVI(scvi, prepared.sizes["n_genes"], prepared.sizes["n_batches"]), prepared, config),
        "CRADLE-VAE": lambda: epoch(network(config.cradle), prepared, config),
        "no artifact": lambda: epoch(network(sams), prepared, config),
        "with --ar": lambda: epoch(network(config.cradle), prepared, config, "adaptive"),
    }
    seconds = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name, run in contestants.items():
            seconds[name].append(run())
    print(f"{'':14s}{'s/epoch':>9s}{'time / scVI':>13s}{'(min':>8s}{'max)':>7s}")
    for name, times in seconds.items():
        ratios = [t / base for t, base in zip(times, seconds["scVI"], strict=True)]
        print(f"{name:14s}{statistics.median(times):9.2f}{statistics.median(ratios):13.2f}{min(ratios):8.2f}{max(ratios):7.2f}")


if __name__ == "__main__":
    main()
