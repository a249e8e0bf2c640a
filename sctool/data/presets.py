"""The four published screens: where their perturbations are in obs, which cells are left out, and the published hyperparameters.

Guides of one target are pooled; a perturbation is named by its targets. Columns are named one by one or by a pattern of their whole
name: a stray column of obs never becomes a perturbation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sctool.data.download.registry import choose
from sctool.data.perturbation_names import CONTROL, DELIMITER
from sctool.errors import SctoolError


@dataclass(frozen=True)
class Indicators:
    """A column of 0 and 1 for each guide or target; a cell without any target is control."""

    target: str
    """Pattern of the columns' names; its group is the target."""
    control: str = ""
    """Pattern of the columns of control guides. Where there are such, cells without any guide are left out."""
    like: str = ""
    """An example, for messages."""

    def names(self, obs: pd.DataFrame, preset: str) -> pd.Series:
        """Canonical names, missing for cells to leave out."""
        found = {str(key): match[1] for key in obs.columns if (match := re.fullmatch(self.target, str(key)))}
        if not found:
            raise _missing(preset, f"columns of guides like {self.like}", obs)
        value_ng = obs[list(found)].astype(object).apply(pd.to_numeric, errors="coerce").to_numpy(float)
        for key, value_n in zip(found, value_ng.T, strict=True):
            if not np.isin(value_n, (0.0, 1.0)).all():
                raise SctoolError(
                    f"obs[{key!r}] is not a column of 0 and 1, as preset {preset} needs", "name the perturbations in a column"
                )
        targets = sorted(set(found.values()))
        has_nt = np.stack([value_ng[:, [at for at, target in enumerate(found.values()) if target == t]].any(1) for t in targets], 1)
        patterns, code_n = np.unique(has_nt, axis=0, return_inverse=True)
        joined = [DELIMITER.join(t for t, has in zip(targets, row, strict=True) if has) or CONTROL for row in patterns]
        name_n = pd.Series(np.array(joined, object)[code_n.ravel()], obs.index)
        guides = [key for key in map(str, obs.columns) if self.control and re.fullmatch(self.control, key)]
        if guides:
            unguided_n = ~obs[guides].astype(float).to_numpy().any(1)
            name_n = name_n.mask(unguided_n & (name_n == CONTROL).to_numpy())
        return name_n


@dataclass(frozen=True)
class Text:
    """One column of names."""

    column: str
    control: str
    """Pattern that is found in the names of control cells."""
    target: str = "(.+)"
    """Pattern at the start of a name; its group is the target."""
    drop: tuple[str, ...] = ()
    """Values of cells to leave out."""

    def names(self, obs: pd.DataFrame, preset: str) -> pd.Series:
        """Canonical names, missing for cells to leave out."""
        if self.column not in obs:
            raise _missing(preset, f"column {self.column!r}", obs)
        text_n = obs[self.column].astype(object)
        return text_n.map({value: self._name(str(value)) for value in text_n.dropna().unique()})

    def _name(self, value: str) -> str | None:
        found = re.match(self.target, value)
        if value in self.drop or not found:
            return None
        return CONTROL if re.search(self.control, value) else found[1]


@dataclass(frozen=True)
class Preset:
    """A published screen."""

    name: str
    rule: Indicators | Text
    settings: dict[str, Any]
    """Published hyperparameters, by the keys of config.yaml."""
    most_targets: int | None = None
    """Cells with more are left out."""

    @property
    def path(self) -> Path:
        """Where ``sctool download cradle`` puts it."""
        return Path("data") / "cradle" / choose("cradle", [self.name])[0].file


_SHARED: dict[str, Any] = {
    "data.n_top_genes": 0,
    "data.validation": 0.2,
    "train.batch_size": 512,
    "train.epochs": 2000,
    "train.grad_clip": 100.0,
    "train.lr": 3e-4,
    "train.patience": 50,
    "train.weight_decay": 1e-6,
    "cradle.embedding_scale": 1.0,
    "cradle.guide": "correlated",
    "cradle.mode": "concat",
    "cradle.n_hidden": 400,
    "cradle.n_layers": 1,
    "cradle.particles": 5,
    "cradle.qc_mad": 3.0,
}
_COMBINED = _SHARED | {
    "cradle.split": "ood",
    "cradle.train_share": 0.75,
    "cradle.test_share": 0.25,
    "cradle.n_latent": 200,
    "cradle.mask_prior": 0.01,
}
_SINGLE = _SHARED | {
    "cradle.split": "cells",
    "cradle.test_share": 0.2,
    "cradle.n_latent": 100,
    "cradle.mask_prior": 0.001,
    "cradle.counterfactual_weight": 0.1,
}
_DIXIT_TARGETS = "CREB1|E2F4|EGR1|ELF1|ELK1|ETS1|GABPA|IRF1|NR2C2|YY1"
PRESETS = {
    preset.name: preset
    for preset in (
        Preset("norman", Indicators(r"guide_(?!identity$|ids$)(.+)", like="guide_KLF1"), _COMBINED | {"cradle.counterfactual_weight": 0.5}),
        Preset(
            "dixit",
            Indicators(rf"(?:sg)?({_DIXIT_TARGETS})(?:_\d+)?", r"INTERGENIC\d*", "sgEGR1 or sgEGR1_2"),
            _COMBINED | {"cradle.counterfactual_weight": 0.1},
            most_targets=2,
        ),
        Preset("replogle", Text("gene", "non-targeting"), _SINGLE | {"train.patience": 100}),
        Preset("adamson", Text("perturbation", r"\(mod\)|neg_ctrl", r"([^_]+)", ("*",)), _SINGLE),
    )
}


def apply(preset: str, obs: pd.DataFrame) -> pd.Series:
    """Canonical name of each cell's perturbation; missing for cells which the screen leaves out.

    Parameters
    ----------
    preset
        A key of ``PRESETS``.
    obs
        Table of cells of the published file.

    Raises
    ------
    SctoolError
        If columns are not there, or no control cell is found.
    """
    if preset not in PRESETS:
        from sctool.data.read import near

        raise SctoolError(f"there is no preset {preset!r}; there are: {', '.join(PRESETS)}", near(preset, list(PRESETS)))
    chosen = PRESETS[preset]
    name_n = chosen.rule.names(obs, preset)
    if chosen.most_targets is not None:
        name_n = name_n.where(name_n.isna() | (name_n.astype(str).str.count(re.escape(DELIMITER)) < chosen.most_targets))
    if not (name_n == CONTROL).any():
        raise SctoolError(f"preset {preset} finds no control cell in this file", "is it another file? name the perturbations in a column")
    return name_n.astype(object)


def _missing(preset: str, what: str, obs: pd.DataFrame) -> SctoolError:
    columns = ", ".join(map(str, obs.columns[:20])) or "none"
    return SctoolError(
        f"preset {preset} needs the {what} in obs, which has: {columns}",
        "is it another file? leave --preset out and give --perturbation-key and --control",
    )
