"""Who is scored on the same held-out cells: predictions, every baseline, no change (the floor), and real cells (the ceilings)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sctool.bench.perturbed import FEWEST_CELLS, Changes, Moved, Truth, oracle_scores, score_cells, score_changes
from sctool.data.cache import take_rows
from sctool.data.perturbation_names import CONTROL, targets_of
from sctool.data.screen import SIZE_COLUMN, Screen, size_column
from sctool.errors import SctoolError
from sctool.metrics import perturbation as m
from sctool.models.perturbation.means import Means
from sctool.models.perturbation.predictors import CONTROLS, PREDICTORS

FLOOR, CEILING, ORACLE = m.FLOOR, m.CEILING, m.ORACLE
HALVES = 5
FOLDS = 10
POOLED = ("ate_pearson", "ate_r2", "ate_pearson_top20", "ate_r2_top20")


@dataclass(frozen=True)
class Counts:
    """Predicted cells before logarithms are taken."""

    x_ng: Any
    name_n: NDArray[Any]
    genes: Sequence[str]
    size_n: NDArray[np.float64] | None
    """Over all genes of the experiment, where the file says so."""

    def log_expression(self, screen: Screen, control: NDArray[np.int64], size_key: str) -> tuple[Any, str]:
        """On the scale of the real cells, and how; ``control`` are rows of real control cells.

        Without sizes over all genes, each cell has the share of counts in these genes that real control cells have.
        """
        if self.size_n is not None and size_column(screen.obs, size_key) is not None:
            size_n, how = self.size_n, f"of obs[{SIZE_COLUMN!r}]"
        else:
            at = {gene: place for place, gene in enumerate(self.genes)}
            real = np.array([place for place, gene in enumerate(screen.genes) if gene in at], np.int64)
            own = np.array([at[screen.genes[place]] for place in real], np.int64)
            panel_n = np.asarray(take_rows(screen.counts, control)[:, real].sum(1), np.float64).ravel()
            share = float((panel_n / screen.size_n[control]).mean()) if len(control) else 1.0
            size_n = np.asarray(self.x_ng[:, own].sum(1), np.float64).ravel() / max(share, 1e-12)
            how = f"of which these genes have {share:.0%}, as in the real control cells"
        scale_n = np.divide(screen.target_sum, size_n, out=np.zeros(len(size_n)), where=size_n > 0)
        log_ng = self.x_ng.copy()
        log_ng.data = np.log1p(log_ng.data * np.repeat(scale_n, np.diff(log_ng.indptr))).astype(np.float32)
        return log_ng, how


@dataclass(frozen=True)
class Contestant:
    """Predictions of one model or tool."""

    name: str
    changes: Changes
    """Change of mean log expression against control, by perturbation."""
    arm: str = "prediction"
    seed: int = -1
    run: str = ""
    cells: Mapping[str, Any] = field(default_factory=dict)
    """Predicted cells (log expression), by perturbation."""
    control_g: NDArray[Any] | None = None
    """The control that the changes are against, where it is not the mean of the training control cells."""


@dataclass(frozen=True)
class Case:
    """Contestants that are scored on the same held-out cells."""

    truth: Truth
    means: list[tuple[Sequence[str], Means]]
    contestants: list[Contestant]
    control_ng: Any = None
    label: str = ""

    def common(self, say: Callable[[str], None]) -> Case:
        """With the perturbations only that every contestant predicted; a contestant called as a baseline gets a name of its own."""
        truth = self.truth.perturbations
        names = [name for name in truth if all(name in one.changes for one in self.contestants)]
        if not names:
            asked = ", ".join(sorted(set(self.contestants[0].changes) - {CONTROL})[:5]) or "none"
            raise SctoolError(
                f"none of the {len(truth)} held-out perturbations ({', '.join(truth[:5])}, ...) was predicted (but {asked})",
                "predict them, with parts joined by '+'",
            )
        if len(names) < len(truth):
            lacking = sorted(set(truth) - set(names))
            say(f"note: {len(lacking)} of {len(truth)} held-out perturbations were not predicted and are not scored: {listed(lacking)}")
        taken = {*PREDICTORS, FLOOR, CEILING, ORACLE}
        own = [replace(one, name=f"{one.name} (given)") if one.name in taken else one for one in self.contestants]
        return replace(self, truth=self.truth.only(names), contestants=own)

    @cached_property
    def baseline_changes(self) -> dict[str, Changes]:
        """What each baseline predicts, by name; of single perturbations too, which interactions need."""
        names = self.truth.perturbations
        if not self.means or set(names) - {name for use, _ in self.means for name in use}:
            return {FLOOR: {name: np.zeros(len(self.truth.means.genes)) for name in names}}
        wanted = set(names) | {target for name in names for target in targets_of(name)}
        out: dict[str, Changes] = {}
        for baseline, (predict, _) in PREDICTORS.items():
            changes: dict[str, Any] = {}
            for use, means in self.means:
                asked = [name for name in sorted(wanted) if name in set(use) or len(self.means) == 1]
                changes |= dict(zip(asked, predict(means, asked), strict=True)) if asked else {}
            out[baseline] = changes
        return out

    def _known(self, names: Sequence[str]) -> dict[str, Any]:
        """What scores take from the cells that were learned from."""
        if not self.means:
            return {}
        shared = {name: means.mean_pg.mean(0) for use, means in self.means for name in use}
        out = {"base_g": self.means[0][1].control_g}
        if set(names) <= set(shared):
            out["shared_g"] = np.stack([shared[name] for name in names])
        singles = dict(zip(self.means[0][1].perturbations, self.means[0][1].mean_pg, strict=True))
        return out if len(self.means) > 1 else {**out, "singles": singles}

    def rows(self) -> pd.DataFrame:
        """Scores of everyone, a row for each method and perturbation."""
        truth = self.truth
        known = self._known(truth.perturbations)
        made = []
        for one in self.contestants:
            table = score_changes(truth, one.changes, **_against(one.control_g, known))
            if one.cells:
                table = table.merge(score_cells(truth, one.cells), how="left", on="perturbation")
            made.append(table.assign(name=one.name, arm=one.arm, seed=one.seed, run=one.run))
        with_cells = any(one.cells for one in self.contestants)
        for name, changes in self.baseline_changes.items():
            own = CONTROLS[name](self.means[0][1]) if name in CONTROLS and len(self.means) == 1 else None
            table = score_changes(truth, changes, **_against(own, known))
            if with_cells and self.control_ng is not None:
                table = table.merge(score_cells(truth, Moved(self.control_ng, changes)), how="left", on="perturbation")
            made.append(table.assign(name=name, arm="baseline", seed=-1, run=""))
        for seed in range(HALVES if truth.divisible else 0):
            given, real = truth.halves(seed)
            names = [name for name in real.perturbations if name in given.perturbations]
            changes = dict(zip(given.perturbations, given.change_pg, strict=True))
            table = score_changes(real.only(names), changes, **{**self._known(names), "base_g": given.means.control_g})
            if with_cells:
                halves = {name: given.cells(name) for name in names}
                table = table.merge(score_cells(real.only(names), halves), how="left", on="perturbation")
            whole = truth.about.set_index("perturbation").loc[table["perturbation"]].reset_index()
            table[whole.columns] = whole  # size and number of cells
            made.append(table.assign(name=CEILING, arm="ceiling", seed=seed, run=""))
        made.append(oracle_scores(truth, known.get("shared_g")).assign(name=ORACLE, arm="ceiling", seed=-1, run=""))
        out = pd.concat(made, ignore_index=True).assign(split=self.label)
        # learned from several parts, singles and doubles are not predicted from the same cells
        return out if len(self.means) < 2 else out.drop(columns="interaction_r")

    def pooled(self) -> pd.DataFrame:
        """Scores over all perturbations and genes at once; perturbations with few cells left out."""
        keep = self.truth.means.cells_p >= FEWEST_CELLS
        names = [name for name, yes in zip(self.truth.perturbations, keep, strict=True) if yes]
        rows = []
        given = [(one.name, one.seed, one.run, one.changes) for one in self.contestants]
        given += [(name, -1, "", changes) for name, changes in self.baseline_changes.items()]
        for name, seed, run, changes in given if names else []:
            true_pg, predicted_pg = self.truth.change_pg[keep], np.stack([changes[other] for other in names])
            pair = [f(true_pg, predicted_pg, k) for k in (None, 20) for f in (m.ate_pearson, m.ate_r2)]
            rows.append({"name": name, "seed": seed, "run": run, "split": self.label, **dict(zip(POOLED, pair, strict=True))})
        return pd.DataFrame(rows, columns=["name", "seed", "run", "split", *POOLED])


def _against(control_g: NDArray[Any] | None, known: dict[str, Any]) -> dict[str, Any]:
    return known if control_g is None else {**known, "base_g": control_g}


def folds_of_means(x_ng: Any, name_n: NDArray[Any], rows: NDArray[Any], genes: Sequence[str], scored: Sequence[str]) -> list[Any]:
    """Where all cells are scored: what the baselines learn from when each perturbation, in turn of ten parts, is left out.

    Single perturbations stay known for the doubles, but no double for its singles.

    Parameters
    ----------
    rows
        All perturbed cells, and the control cells that are not scored.

    Returns
    -------
    Pairs: perturbations, and the means they are predicted from.
    """
    out: list[tuple[list[str], Means]] = []
    name_r = np.asarray(name_n, str)[rows]
    for several in (False, True):
        kind = [name for name in scored if (len(targets_of(name)) > 1) == several]
        for fold in range(min(FOLDS, len(kind))):
            held = kind[fold::FOLDS]
            parts = {target for name in held for target in targets_of(name)}
            hidden = {name for name in set(name_r) if name in held or (not several and parts & set(targets_of(name)))}
            keep = rows[~np.isin(name_r, sorted(hidden))]
            if (np.asarray(name_n, str)[keep] != CONTROL).any():
                out.append((held, Means.of(x_ng, name_n, keep, genes)))
    return out


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
