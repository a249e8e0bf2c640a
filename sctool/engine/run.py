"""A run of training from prepared cells to a model folder; the same for every model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from sctool.artifacts.model_folder import ModelFolder, RunPlace, save_model
from sctool.artifacts.tensors import load_tensors, save_tensors
from sctool.config import Config
from sctool.data.prepare import Prepared
from sctool.data.samplers import Sampler
from sctool.engine.device import choose_device, in_chunks, own_randomness
from sctool.engine.samplers import make_sampler
from sctool.engine.trainer import Fit, Reporter, Rows, Store, Trainer
from sctool.sections import TrainConfig

_SAMPLER = "sampler/"


@dataclass(frozen=True)
class Stage:
    """One training of a run."""

    name: str
    module: Any
    """The module or a part of it."""
    store: Store
    sampler: Sampler
    train: TrainConfig
    """With ``epochs`` set."""
    validation_rows: Rows


@dataclass(frozen=True)
class Setting:
    """What the stages of a run are made from."""

    module: Any
    store: Any
    prepared: Prepared
    config: Config

    def sampler(self, rows: Rows | None = None) -> Sampler:
        """A new sampler of the training cells (or of some), as the configuration wants it."""
        config, prepared = self.config, self.prepared
        labels = prepared.labels(config) if config.train.sampler == "balanced" else None
        return make_sampler(
            prepared.rows("train") if rows is None else rows, config.train, config.ar, labels=labels, embedding=prepared.embedding
        )


def one_stage(setting: Setting) -> Iterator[Stage]:
    """The whole module on the cells: all that most models need."""
    validation_rows = setting.prepared.rows("validation")
    yield Stage("training", setting.module, setting.store, setting.sampler(), setting.config.train, validation_rows)


def run_settings(model: str, config: Config, prepared: Prepared) -> dict[str, Any]:
    """All that the result of a run depends on."""
    tree = config.model_dump(exclude={"out", "device", "threads"})
    return {"model": model, **tree, "fingerprint": prepared.about["fingerprint"]}


def run_training(
    name: str,
    build: Callable[[Config, dict[str, int]], Any],
    prepared: Prepared,
    config: Config,
    place: RunPlace,
    *,
    stages: Callable[[Setting], Iterator[Stage]] = one_stage,
    reporter: Reporter | None = None,
) -> ModelFolder:
    """Train a model and write its folder.

    Parameters
    ----------
    name, build
        The model's name and how it is made from the configuration and its sizes.
    prepared
        The cells.
    place
        Where it is written, and whether an interrupted run is resumed.
    stages
        What is trained one after the other; each is set up when the one before it is done.
    """
    setting = set_up(build, prepared, config)
    config, module, store = setting.config, setting.module, setting.store
    try:
        fits: dict[str, Fit] = {}
        sampler: Sampler | None = None
        for number, stage in enumerate(stages(setting)):
            trainer = _trainer(stage, config.seed + number, place.state, reporter)
            if number == 0:  # nothing is written before all is set up
                place.open(run_settings(name, config, prepared))
            done = place.stage(number)
            if place.resume and done.exists():
                tensors, note = load_tensors(done)
                module.load_state_dict({name: tensor for name, tensor in tensors.items() if not name.startswith(_SAMPLER)})
                stage.sampler.state |= {
                    name.removeprefix(_SAMPLER): tensor.numpy() for name, tensor in tensors.items() if name.startswith(_SAMPLER)
                }
                fits[stage.name] = Fit(**note)
            else:
                fits[stage.name] = trainer.fit(resume=place.resume)
                state = {f"{_SAMPLER}{name}": torch.from_numpy(array) for name, array in stage.sampler.state.items()}
                save_tensors(done, {**module.state_dict(), **state}, vars(fits[stage.name]))
                place.state.unlink(missing_ok=True)
            if stage.store is store and len(stage.sampler.state.get("weights", ())) in (0, len(prepared.rows("train"))):
                sampler = stage.sampler
        if hasattr(module, "remember"):
            known = np.sort(np.concatenate([prepared.rows(part) for part in ("train", "validation", "replayed")]))
            module.remember(batch for _, batch in in_chunks(store.batch, known, config.train.inference_chunk))
        folder = _save(name, module, sampler, fits, prepared, config, place, store.device)
        place.saved = True
        return folder
    finally:
        place.close()


def set_up(build: Callable[[Config, dict[str, int]], Any], prepared: Prepared, config: Config) -> Setting:
    """A new network on its device, and where its minibatches come from."""
    device = choose_device(config.device)
    epochs = config.train.epochs or prepared.epochs(config.train.most_epochs)
    config = config.model_copy(update={"train": config.train.model_copy(update={"epochs": epochs})})
    store = prepared.open_store(device, on_disk=config.data.backed)
    with own_randomness(device):
        torch.manual_seed(config.seed)
        module = build(config, prepared.sizes)
        for name, tensor in module.state_dict().items():
            if name in prepared.initial:
                tensor.copy_(torch.as_tensor(prepared.initial[name]))
        module = module.to(device)
    return Setting(module, store, prepared, config)


def train_in_memory(setting: Setting, stages: Callable[[Setting], Iterator[Stage]]) -> Iterator[str]:
    """Train stage by stage, keeping nothing on disk; gives the name of each stage once it is done."""
    for number, stage in enumerate(stages(setting)):
        _trainer(stage, setting.config.seed + number, None, None).fit()
        yield stage.name


def _trainer(stage: Stage, seed: int, state: Path | None, reporter: Reporter | None) -> Trainer:
    return Trainer(
        stage.module,
        stage.store,
        stage.sampler,
        stage.train,
        seed=seed,
        validation_rows=stage.validation_rows,
        reporter=reporter,
        state_path=state,
        title=stage.name,
    )


def _save(
    name: str,
    module: Any,
    sampler: Sampler | None,
    fits: dict[str, Fit],
    prepared: Prepared,
    config: Config,
    place: RunPlace,
    device: torch.device,
) -> ModelFolder:
    """Write the model folder."""
    train_rows, validation_rows = prepared.rows("train"), prepared.rows("validation")
    cells = pd.DataFrame({prepared.unit: prepared.obs.index.astype(str), "split": prepared.split})
    for key in dict.fromkeys((config.data.label_key, config.data.batch_key, *prepared.kept)):
        if key and key in prepared.obs:  # under another name where it would hide a column of ours
            cells[f"obs_{key}" if key in (prepared.unit, "split", "weight") else key] = prepared.obs[key].astype(object).to_numpy()
    if sampler is not None and "weights" in sampler.state:
        cells.loc[train_rows, "weight"] = sampler.state["weights"] * len(train_rows)
    cells = cells[cells["split"] != "replayed"]
    histories = [pd.DataFrame(fit.history).assign(**({"stage": stage} if len(fits) > 1 else {})) for stage, fit in fits.items()]
    history = pd.concat(histories) if histories else pd.DataFrame(columns=["epoch"])  # surgery may have found nothing to train
    return save_model(
        place.folder,
        name,
        module.state_dict(),
        {
            "seed": config.seed,
            "sampler": config.train.sampler,
            "config": config.model_dump(exclude={"out", "device", "threads"}),
            "sizes": prepared.sizes,
            "genes": prepared.genes,
            "vocabularies": {key: list(value.categories) for key, value in prepared.vocabularies.items()},
            "data": {**prepared.about, "train": len(train_rows), "validation": len(validation_rows)},
            "metrics": _figures(fits),
            "device": str(device),
        },
        {"history": history, f"{prepared.unit}s": cells},
    )


def _figures(fits: dict[str, Fit]) -> dict[str, Any]:
    """Of the best epoch; where there are several stages, each figure with its stage before it."""
    figures: dict[str, Any] = {}
    for stage, fit in fits.items():
        best = {name: value for name, value in fit.history[fit.best_epoch - 1].items() if name != "epoch"}
        own = {"epochs": len(fit.history), "best_epoch": fit.best_epoch, "stopped": fit.reason, **best}
        figures |= own if len(fits) == 1 else {f"{stage}_{name}": value for name, value in own.items()}
    return figures
