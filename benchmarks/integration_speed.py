"""Training time of integration against scVI of the same size, in one interleaved run on one thread.

    python benchmarks/integration_speed.py FILE.h5ad BATCH_KEY LABEL_KEY

How to read it: each round times one epoch of ``train scvi`` (2 x 128 hidden units, 20 latent dimensions), one epoch of the autoencoder
before and after its classes are placed, and the whole diffusion. The ratios within a round count, not the seconds; "whole" is by the
default epochs of this file.
"""

import statistics
import sys
from pathlib import Path

import numpy as np
import torch
from train_speed import Clock

from sctool.config import load_config
from sctool.data.integration import prepare_integration
from sctool.data.minibatch import CellStore
from sctool.data.prepare import default_epochs
from sctool.data.samplers import UniformSampler
from sctool.engine.integrate import integration_stages
from sctool.engine.run import Setting
from sctool.engine.trainer import Trainer
from sctool.models.registry import BUILDERS

ROUNDS = 5


def epoch(module, store, train, rows, epochs=3):
    """Seconds of the last epoch."""
    clock = Clock()
    settings = train.model_copy(update={"epochs": epochs})
    Trainer(module, store, UniformSampler(rows), settings, reporter=clock).fit()
    return clock.ends[-1] - clock.ends[-2]


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    torch.set_num_threads(1)
    flags = {"data.batch_key": sys.argv[2], "data.label_key": sys.argv[3], "data.validation": 0.0, "train.epochs": 3}
    sizes = {"scvi.n_latent": 20, "scvi.n_hidden": 128, "scvi.n_layers": 2, "integrate.finetune_epochs": 3}
    config = load_config(None, {**flags, **sizes}, [], "integrate")
    prepared = prepare_integration(Path(sys.argv[1]), config)
    rows = prepared.rows("train")
    store = CellStore(prepared.matrix[:, prepared.columns], prepared.codes, prepared.obs.index)
    names = ("scVI", "autoencoder", "tuning", "diffusion, whole")
    seconds = {name: [] for name in names}
    for _ in range(ROUNDS):
        scvi = BUILDERS["scvi"](config, {key: value for key, value in prepared.sizes.items() if key != "n_labels"})
        seconds["scVI"].append(epoch(scvi, store, config.train, rows))
        module = BUILDERS["integrate"](config, prepared.sizes)
        stages = integration_stages(Setting(module, store, prepared, config))
        for name, stage in zip(names[1:3], stages, strict=False):
            seconds[name].append(epoch(module, store, stage.train, rows))
        stage, clock = next(stages), Clock()
        Trainer(stage.module, stage.store, stage.sampler, stage.train, reporter=clock).fit()
        each = np.diff(clock.ends)
        seconds["diffusion, whole"].append(float(each.sum() + each.mean()))
    print(f"{'':18s}{'seconds':>9s}{'time / scVI':>13s}{'(min':>8s}{'max)':>7s}")
    for name in names[:3]:
        ratios = [t / base for t, base in zip(seconds[name], seconds["scVI"], strict=True)]
        print(f"{name:18s}{statistics.median(seconds[name]):9.3f}{statistics.median(ratios):13.2f}{min(ratios):8.2f}{max(ratios):7.2f}")
    whole = [default_epochs(len(rows)) * t for t in seconds["autoencoder"]]
    ratios = [t / base for t, base in zip(seconds["diffusion, whole"], whole, strict=True)]
    print(f"diffusion, whole, over the autoencoder's {default_epochs(len(rows))} epochs: {statistics.median(ratios):.2f} of its time")


if __name__ == "__main__":
    main()
