"""Networks of samples trained without some donors, each once, for all that is asked of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from sctool.artifacts.model_folder import RunPlace
from sctool.artifacts.tensors import load_tensors, save_tensors
from sctool.config import Config
from sctool.data.cohort import Cohort, Mask, Task
from sctool.data.samples import prepare_samples
from sctool.engine.run import set_up, train_in_memory
from sctool.engine.sample_answers import Blend, probed
from sctool.engine.sample_prior import prior_graph
from sctool.engine.samples import answers, attention_stage, embed_samples, in_blocks, sample_stages, see
from sctool.models.registry import BUILDERS

Arrays = dict[str, NDArray[np.float64]]


@dataclass
class FoldNetworks:
    """What networks trained on some samples make of all samples.

    Attributes
    ----------
    parts
        Parts of the cells by name, by which samples are embedded too.
    contrast
        Whether there is an embedding, or only the network of the tasks.
    place, name
        Where the answers of each fit are kept, and taken up again by ``--resume``.
    tick
        Told of each fit.
    """

    cohort: Cohort
    tasks: list[Task]
    config: Config
    parts: Mapping[str, Mask] = field(default_factory=dict)
    place: RunPlace | None = None
    name: str = "fold"
    contrast: bool = True
    tick: Callable[[], None] = lambda: None
    _made: dict[bytes, Arrays] = field(default_factory=dict)

    def embedding(self, train_s: Mask) -> NDArray[np.float64]:
        """Self-supervised: after the contrast, before any label was seen; shape (samples, dimensions)."""
        return self._of(train_s)["embedding"]

    def by_part(self, train_s: Mask, part: str) -> NDArray[np.float64]:
        """:meth:`embedding` of samples by part of their cells."""
        return self._of(train_s)[f"part/{part}"]

    def answers(self, train_s: Mask, task: Task) -> NDArray[np.float64]:
        """Probabilities of classes or levels, shape (samples, classes), or numbers, shape (samples, 1)."""
        return self._of(train_s)[f"answers/{task.column}"]

    def weights(self, task: Task) -> list[float]:
        """Of the networks beside the probe, of each fit."""
        return [float(made[f"weight/{task.column}"][0]) for made in self._made.values()]

    def _of(self, train_s: Mask) -> Arrays:
        key = np.packbits(train_s).tobytes()
        if key not in self._made:
            file = None if self.place is None else self.place.part / f"{self.name}{len(self._made)}.safetensors"
            if file is not None and self.place is not None and self.place.resume and file.exists():
                self._made[key] = {name: tensor.numpy() for name, tensor in load_tensors(file)[0].items()}
            else:
                self._made[key] = fit_fold(self.cohort, self.tasks, self.config, train_s, self.parts, contrast=self.contrast)
                if file is not None:
                    save_tensors(file, {name: torch.from_numpy(array) for name, array in self._made[key].items()}, {})
            self.tick()
        return self._made[key]


def shares(cohort: Cohort, task: Task) -> NDArray[np.float64] | None:
    """How frequent classes are in a cohort: the same for every fold, or what a fold holds out would tell its ranks."""
    if task.kind != "class":
        return None
    code_s = task.encode(cohort.table[task.column])[cohort.known(task)].astype(int)
    return np.bincount(code_s, minlength=len(task.order)) / len(code_s)


def fit_fold(
    cohort: Cohort, tasks: list[Task], config: Config, train_s: Mask, parts: Mapping[str, Mask], *, contrast: bool = True
) -> Arrays:
    """Train on some samples; embed and answer all, and embed them by parts of their cells."""
    prepared = prepare_samples(cohort, tasks, config, train_s, prior_graph(cohort, config, train_s)[0])
    setting = set_up(BUILDERS["sampleclr"], prepared, config)
    blocks, batch_s, made = in_blocks(prepared.matrix, cohort.sample_n), prepared.codes["batch"], {}
    module, scales = setting.module, prepared.about["scales"]
    for _ in train_in_memory(setting, sample_stages if contrast else attention_stage):
        pass
    if not contrast:
        given = answers(module, embed_samples(module, blocks, batch_s, network=0), 0, tasks, scales)
        return {f"answers/{column}": values_sc for column, values_sc in given.items()}
    seen = see(module, blocks, batch_s, tasks, scales)
    made["embedding"] = seen.embedded.embedding_sd.astype(np.float64)
    for name, cells_n in parts.items():
        some = in_blocks(prepared.matrix[cells_n], cohort.sample_n[cells_n])
        made[f"part/{name}"] = embed_samples(module, some, batch_s).embedding_sd.astype(np.float64)
    for task in tasks:
        truth_s = task.encode(cohort.table[task.column])
        network_ksc = [one[task.column] for one in seen.answers]
        blend = Blend.fit(task, network_ksc, made["embedding"], truth_s, prepared.inner, shares(cohort, task))
        probe_sc = probed(task, made["embedding"][train_s], truth_s[train_s], made["embedding"], blend.share_c)
        made[f"answers/{task.column}"] = blend(task, network_ksc, probe_sc)
        made[f"weight/{task.column}"] = np.array([blend.weight])
    return made
