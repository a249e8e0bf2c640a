"""Phases of a sequential integration: what each trains on, in the words of the models before it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
import yaml
from numpy.typing import NDArray
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from sctool.data.genes import gene_names, match_genes
from sctool.data.prepare import Prepared
from sctool.data.read import H5ad
from sctool.data.vocabulary import Vocabulary
from sctool.errors import SctoolError


class Phase(BaseModel):
    """One entry of a phases file; the words of the published configuration are understood too."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[\w][\w.+-]*$")
    data: str | None = Field(None, validation_alias=AliasChoices("data", "data_path"))
    cells: str | None = None
    hold_out: str | None = None
    batch_key: str | None = None
    label_key: str | None = None
    mode: Literal["auto", "supervised", "semi", "unsupervised"] | None = None
    supervised: bool | None = None
    epochs: int | None = Field(None, ge=1, validation_alias=AliasChoices("epochs", "n_epochs"))
    transfer: Literal["replay", "finetune", "surgery"] | None = None
    resume_from: str | None = None
    output_checkpoint: str | None = None

    def settings(self) -> dict[str, Any]:
        """Keys of config.yaml, without those that are not given."""
        mode = self.mode if self.supervised is None else ("auto" if self.supervised else "unsupervised")
        keys = {
            "data.path": self.data,
            "data.cells": self.cells,
            "data.hold_out": self.hold_out,
            "data.batch_key": self.batch_key,
            "data.label_key": self.label_key,
            "integrate.mode": mode,
            "integrate.transfer": self.transfer,
            "train.epochs": self.epochs,
        }
        return {key: value for key, value in keys.items() if value is not None}


def read_phases(path: Path) -> list[Phase]:
    """The phases of a YAML file: a list, or below ``phases``, ``sessions``, ``training: sessions``, or the last two in ``integrate``.

    Raises
    ------
    SctoolError
        Naming the phase and the key that is wrong.
    """
    try:
        tree = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise SctoolError(f"{path}: no such file", "give a YAML list of phases after --phases") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SctoolError(f"{path} is not valid YAML: {' '.join(str(error).split())[:200]}", "mend that line") from None
    tree = _listed(tree)
    if not isinstance(tree, list) or not tree:
        raise SctoolError(f"{path} holds no list of phases", "write: - name: first, data: a.h5ad, mode: supervised, one entry a phase")
    phases = []
    for number, entry in enumerate(tree, 1):
        try:
            phases.append(Phase.model_validate(entry))
        except ValidationError as error:
            problem = error.errors()[0]
            key = ".".join(map(str, problem["loc"]))
            valid = "name, data, cells, hold_out, batch_key, label_key, mode, epochs, transfer"
            wrong = f"{path}, phase {number}: {key}: {problem['msg'].lower()} (found {problem['input']!r})"
            raise SctoolError(wrong, f"keys: {valid}") from None
    names = [phase.name for phase in phases]
    if len(set(names)) < len(names):
        raise SctoolError(f"{path}: two phases have the same name", "give each its own")
    return phases


def _listed(tree: Any) -> Any:
    """What lies below the first of the keys that is there."""
    for key in ("phases", "sessions", "training", "integrate"):
        if isinstance(tree, dict) and tree.get(key) is not None:
            return _listed(tree[key])
    return tree


def in_words_of(prepared: Prepared, path: Path, genes: dict[str, list[str]], vocabularies: dict[str, list[str]]) -> Prepared:
    """Cells with the genes, batches and labels of an older model first, and what is new after them.

    ``columns`` is -1 for a gene the file does not have.
    """
    var = H5ad(path).genes(prepared.about["counts"])
    match = match_genes(genes, var, floor=0.0)
    names = gene_names(var)
    kinds = [kind for kind in genes if kind in names]
    known = set(match.columns.tolist())
    new = [int(column) for column in prepared.columns if int(column) not in known]
    merged = {kind: [*genes[kind], *(names[kind][column] for column in new)] for kind in kinds}
    words, codes = {}, {}
    for key, vocabulary in prepared.vocabularies.items():
        old = vocabularies.get(key, [])
        words[key] = Vocabulary((*old, *(value for value in vocabulary.categories if value not in set(old))))
        moved = words[key].codes(pd.Series([*vocabulary.categories, None], dtype=object))
        codes[key] = moved[prepared.codes[key]]
    for key, old in vocabularies.items():  # labels that this phase does not use
        if key not in words:
            words[key] = Vocabulary(tuple(old))
            codes[key] = np.full(len(prepared.obs), len(old))
    again = sorted(set(vocabularies.get("batch", [])) & set(prepared.vocabularies["batch"].categories))
    notes = list(prepared.about["notes"])
    if again:
        notes.append(f"batches of this name were there before and are taken for the same: {', '.join(again[:5])}")
    notes.append(f"{int((match.columns >= 0).sum()):,} of {len(match.columns):,} old genes are in the file, {len(new):,} are new")
    return replace(
        prepared,
        columns=np.concatenate([match.columns, np.array(new, np.int64)]),
        genes=merged,
        vocabularies=words,
        codes=codes,
        about={**prepared.about, "notes": notes},
    )


def with_replayed(prepared: Prepared, replayed: sp.csr_matrix, codes: dict[str, NDArray[np.int64]]) -> Prepared:
    """Cells with made ones after them, whose split is ``replayed``.

    Parameters
    ----------
    replayed
        Counts of the model's genes, shape (cells, genes).
    codes
        Their codes, -1 for unknown; ``panel`` of the real cells is 0, of the replayed ones 1.
    """
    n, column = len(prepared.obs), prepared.columns
    made = {key: np.where(codes[key] < 0, len(prepared.vocabularies[key]), codes[key]) for key in prepared.codes}
    there = np.flatnonzero(column >= 0)
    place = sp.csr_matrix((np.ones(len(there), np.float32), (column[there], there)), shape=(prepared.matrix.shape[1], len(column)))
    matrix = sp.vstack([sp.csr_matrix(prepared.matrix @ place), replayed], format="csr")
    obs = pd.concat([prepared.obs, pd.DataFrame(index=[f"replayed_{i}" for i in range(replayed.shape[0])])])
    panel = np.repeat([0, 1], [n, replayed.shape[0]])
    return replace(
        prepared,
        matrix=matrix,
        obs=obs,
        columns=np.arange(len(column)),
        measured_g=column >= 0,
        codes={**{key: np.concatenate([prepared.codes[key], made[key]]) for key in prepared.codes}, "panel": panel},
        split=np.concatenate([prepared.split.astype("<U10"), np.full(replayed.shape[0], "replayed", "<U10")]),
        embedding=None if prepared.embedding is None else np.pad(prepared.embedding, ((0, replayed.shape[0]), (0, 0))),
    )
