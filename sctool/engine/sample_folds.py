"""Networks of samples trained without some donors, each once, for all that is asked of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from sctool.engine.sample_answers import Blend, at_shares, probed
from sctool.engine.sample_importance import type_effects
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
    closely
        The training samples of those fits for which that is done, and for which is looked at what types of cells do to the answers.
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
    closely: Sequence[Mask] = ()
    place: RunPlace | None = None
    name: str = "fold"
    contrast: bool = True
    tick: Callable[[], None] = lambda: None
    _made: dict[bytes, Arrays] = field(default_factory=dict)

    def embedding(self, train_s: Mask) -> NDArray[np.float64]:
        """Self-supervised: after the contrast, before any label was seen; shape (samples, dimensions)."""
        return self._of(train_s)["embedding"]

    def learned(self, train_s: Mask) -> NDArray[np.float64]:
        """The part of :meth:`embedding` that the contrast has learned, without the plain summaries beside it."""
        return self._of(train_s)["learned"]

    def by_part(self, train_s: Mask, part: str) -> NDArray[np.float64]:
        """:meth:`embedding` of samples by part of their cells."""
        return self._of(train_s)[f"part/{part}"]

    def answers(self, train_s: Mask, task: Task) -> NDArray[np.float64]:
        """Probabilities of classes or levels, shape (samples, classes), or numbers, shape (samples, 1)."""
        return self._of(train_s)[f"answers/{task.column}"]

    def effects(self, train_s: Mask, task: Task) -> NDArray[np.float64]:
        """What cells of a type add to each output, mean over networks, shape (samples, types, outputs)."""
        return self._of(train_s)[f"effects/{task.column}"]

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
                close = any(np.array_equal(train_s, one) for one in self.closely)
                self._made[key] = self._fitted(train_s, self.parts if close else {}, effects=close)
                if file is not None:
                    save_tensors(file, {name: torch.from_numpy(array) for name, array in self._made[key].items()}, {})
            self.tick()
        return self._made[key]

    def _fitted(self, train_s: Mask, parts: Mapping[str, Mask], *, effects: bool) -> Arrays:
        if not self.contrast:
            return fit_attention(self.cohort, self.tasks, self.config, train_s)
        return fit_fold(self.cohort, self.tasks, self.config, train_s, parts, effects=effects)


def shares(cohort: Cohort, task: Task) -> NDArray[np.float64] | None:
    """How frequent classes are in a cohort: the same for every fold, or what a fold holds out would tell its ranks."""
    if task.kind != "class":
        return None
    code_s = task.encode(cohort.table[task.column])[cohort.known(task)].astype(int)
    return np.bincount(code_s, minlength=len(task.order)) / len(code_s)


def fit_attention(cohort: Cohort, tasks: list[Task], config: Config, train_s: Mask) -> Arrays:
    """One network for the tasks, trained on some samples by their labels alone; its answers for all."""
    prepared = prepare_samples(cohort, tasks, config, train_s)
    setting = set_up(BUILDERS["sampleclr"], prepared, config)
    for _ in train_in_memory(setting, attention_stage):
        pass
    embedded = embed_samples(setting.module, in_blocks(prepared.matrix, cohort.sample_n), prepared.codes["batch"], network=0)
    given = answers(setting.module, embedded, 0, tasks, prepared.about["scales"])
    return {f"answers/{task.column}": at_shares(given[task.column], shares(cohort, task)) for task in tasks}


def fit_fold(
    cohort: Cohort, tasks: list[Task], config: Config, train_s: Mask, parts: Mapping[str, Mask], *, effects: bool = False
) -> Arrays:
    """Train on some samples; embed and answer all, and embed them by parts of their cells.

    Parameters
    ----------
    effects
        Whether to look at what the cohort's types of cells, if there are any, do to the answers.
    """
    prepared = prepare_samples(cohort, tasks, config, train_s, prior_graph(cohort, config, train_s)[0])
    setting = set_up(BUILDERS["sampleclr"], prepared, config)
    blocks, batch_s, made = in_blocks(prepared.matrix, cohort.sample_n), prepared.codes["batch"], {}
    module = setting.module
    for _ in train_in_memory(setting, sample_stages):
        pass
    seen = see(module, blocks, batch_s, tasks, prepared.about["scales"])
    made["embedding"] = seen.embedded.embedding_sd.astype(np.float64)
    made["learned"] = seen.embedded.z_sd.astype(np.float64)
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
    if effects and cohort.types_n is not None:
        names, type_n = cohort.types()
        each = [type_effects(module, one, number, blocks, type_n, len(names)) for number, one in enumerate(seen.told)]
        made |= {f"effects/{task.column}": np.mean([one[number] for one in each], axis=0) for number, task in enumerate(tasks)}
    return made
