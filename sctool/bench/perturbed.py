"""Measured changes of held-out perturbed cells, and the scores of predicted ones, one row for each perturbation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from sctool.data.perturbation_names import CONTROL, targets_of
from sctool.errors import SctoolError
from sctool.metrics import perturbation as m
from sctool.metrics import response
from sctool.models.perturbation.means import Means

FEWEST_CELLS = 10
COMPONENTS = 50
MOST_CELLS = 500
FALSE_DISCOVERIES = 0.05
TOPS = (20, 50, 100)
Profile = NDArray[Any]
Changes = Mapping[str, Profile]

COUNTED_AS_0 = ("change_r", *(f"change_r_top{k}" for k in TOPS), "change_r_other_genes", "specific_r", "spearman", "cosine")
"""Correlations: where one is not defined, as for a prediction of no change, it counts as 0."""
CELL_SCORES = ("energy_distance", "mmd", "variance_ratio", "zero_difference")
SCORES = (
    *COUNTED_AS_0,
    *("change_r2", "change_r2_top20", "change_error", "change_error_top20", "rmse", "mae", "jaccard_top20", "jaccard_top50"),
    *(f"de_overlap_top{k}" for k in TOPS),
    *("de_overlap", "de_precision", "de_direction", "de_spearman"),
    *(f"{form}_{distance}" for form in ("discrimination", "cell_eval") for distance in ("l1", "l2", "cosine")),
    *("retrieval_top1", "retrieval_top5", "interaction_r"),
    *CELL_SCORES,
)
LOWER_IS_BETTER = ("change_error", "change_error_top20", "rmse", "mae", "energy_distance", "mmd", "zero_difference")


@dataclass(frozen=True)
class Truth:
    """Cells that were held out: the change of each perturbation against held-out control cells, and the genes that differ by a test."""

    means: Means
    """Of the held-out cells."""
    x_ng: sp.csr_matrix
    """Their log expression, control cells too."""
    name_n: NDArray[Any]
    """Their canonical perturbations."""

    @classmethod
    def of(cls, x_ng: Any, name_n: NDArray[Any], split_n: NDArray[Any], genes: Sequence[str]) -> Truth:
        """The cells whose split is ``test``; perturbations with one cell are left out.

        Parameters
        ----------
        x_ng
            Log expression of all cells, CSR or dense.
        name_n, split_n
            Canonical perturbation of every cell, and its split. See :func:`with_test_controls` where no control cell is ``test``.
        """
        rows = np.flatnonzero(np.asarray(split_n, str) == "test")
        return cls._from(sp.csr_matrix(x_ng[rows]), np.asarray(name_n, str)[rows], genes)

    @classmethod
    def _from(cls, x_ng: sp.csr_matrix, name_n: NDArray[Any], genes: Sequence[str]) -> Truth:
        names, count = np.unique(name_n, return_counts=True)
        rows = np.flatnonzero(np.isin(name_n, names[count > 1]))
        if len(names) < 2 or not len(rows) or CONTROL not in names[count > 1] or names[count > 1].tolist() == [CONTROL]:
            found = ", ".join(f"{name} {n}" for name, n in list(zip(names, count, strict=True))[:5]) or "none"
            raise SctoolError(
                f"too few held-out cells to score: {found}",
                "two control cells and two of a perturbation are needed at least; see the split",
            )
        return cls(Means.of(x_ng, name_n, rows, genes), x_ng[rows], name_n[rows])

    def only(self, perturbations: Sequence[str]) -> Truth:
        """For some of the perturbations."""
        keep = np.isin(self.name_n, [CONTROL, *perturbations])
        return self if keep.all() else Truth._from(self.x_ng[keep], self.name_n[keep], self.means.genes)

    @property
    def divisible(self) -> bool:
        """Whether there are cells enough for :meth:`halves`."""
        return bool(self.means.control_cells > 3 and self.means.cells_p.max() > 3)

    def halves(self, seed: int) -> tuple[Truth, Truth]:
        """The same from two random halves of the cells of each perturbation and of control; fewer than four cells are left out."""
        order = np.random.default_rng(seed).permutation(len(self.name_n))
        rank_n = np.empty(len(order), np.int64)
        rank_n[order] = pd.Series(self.name_n[order]).groupby(self.name_n[order]).cumcount()
        names, count = np.unique(self.name_n, return_counts=True)
        enough = np.isin(self.name_n, names[count > 3])
        first, second = (Truth._from(self.x_ng[own], self.name_n[own], self.means.genes) for own in _two(enough, rank_n % 2 == 0))
        return first, second

    @property
    def perturbations(self) -> tuple[str, ...]:
        """Those with held-out cells, without control."""
        return self.means.perturbations

    @cached_property
    def change_pg(self) -> NDArray[np.float64]:
        """Measured change, shape (P, G)."""
        return self.means.change_pg

    @cached_property
    def ranked_pg(self) -> NDArray[np.intp]:
        """Genes of each perturbation by absolute change, the largest first."""
        return m.top(np.abs(self.change_pg), TOPS[-1])

    @cached_property
    def noise_pg(self) -> NDArray[np.float64]:
        """Squared standard error of the change, shape (P, G)."""
        means = self.means
        return means.variance_pg / means.cells_p[:, None] + means.control_variance_g / means.control_cells

    @cached_property
    def effect_p(self) -> NDArray[np.float64]:
        """Size of each change: root of its mean square over genes, the part that sampling noise makes taken off."""
        return np.asarray(np.sqrt(np.maximum(np.square(self.change_pg).mean(1) - self.noise_pg.mean(1), 0)))

    @cached_property
    def t_pg(self) -> NDArray[np.float64]:
        """Welch's t of each gene against control."""
        return self._test[0]

    @cached_property
    def significant_pg(self) -> NDArray[np.bool_]:
        """Genes that differ from control at a false discovery rate of 5 %."""
        return m.benjamini_hochberg(self._test[1]) < FALSE_DISCOVERIES

    @cached_property
    def _test(self) -> NDArray[Any]:
        means = self.means
        moments = means.mean_pg, means.variance_pg, means.cells_p, means.control_g, means.control_variance_g, means.control_cells
        return m.welch_test(*moments)

    @cached_property
    def _axes(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Centre and principal axes of the cells, (G,) and (50, G)."""
        rows = np.random.default_rng(0).permutation(len(self.name_n))[:4000]
        space = PCA(min(COMPONENTS, len(rows) - 1, self.x_ng.shape[1] - 1), random_state=0).fit(self.x_ng[rows].toarray())
        return space.mean_, space.components_

    def project(self, x_ng: Profile) -> Profile:
        """Cells in the principal components of the held-out ones; where cells are compared."""
        centre_g, axes_dg = self._axes
        return np.asarray((x_ng - centre_g) @ axes_dg.T)

    def cells(self, name: str) -> sp.csr_matrix:
        """Log expression of the cells of one perturbation, a seeded choice of at most 500."""
        return self.x_ng[some_rows(np.flatnonzero(self.name_n == name))]

    @cached_property
    def projected(self) -> dict[str, Profile]:
        """Cells of each perturbation in the principal components."""
        return {name: self.project(self.cells(name).toarray()) for name in self.perturbations}

    @property
    def about(self) -> pd.DataFrame:
        """A row for each perturbation: cells behind it, size of the change, significant genes."""
        return pd.DataFrame(
            {
                "perturbation": self.perturbations,
                "cells": self.means.cells_p.astype(int),
                "control_cells": int(self.means.control_cells),
                "few_cells": self.means.cells_p < FEWEST_CELLS,
                "effect": self.effect_p,
                "significant_genes": self.significant_pg.sum(1),
            }
        )


def _two(among: NDArray[np.bool_], first: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    return among & first, among & ~first


def some_rows(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """A seeded choice of at most 500."""
    return np.sort(np.random.default_rng(0).permutation(rows)[:MOST_CELLS])


class Moved(Mapping[str, Profile]):
    """Control cells that a change moves, all alike; made when asked for."""

    def __init__(self, control_ng: Any, changes: Changes) -> None:
        chosen = control_ng[some_rows(np.arange(control_ng.shape[0]))]
        self._start_ng = np.asarray(chosen.toarray() if sp.issparse(chosen) else chosen, np.float32)
        self._changes = changes

    def __getitem__(self, name: str) -> Profile:
        return np.asarray(self._start_ng + np.asarray(self._changes[name], np.float32))

    def __iter__(self) -> Iterator[str]:
        return iter(self._changes)

    def __len__(self) -> int:
        return len(self._changes)


def with_test_controls(name_n: NDArray[Any], split_n: NDArray[Any], seed: int = 0) -> tuple[NDArray[Any], str]:
    """A split in which control cells are test cells too, and what was changed to that end.

    Where fewer than two are, a random half of all control cells becomes ``test``.
    """
    control = np.flatnonzero((np.asarray(name_n, str) == CONTROL) & (np.asarray(split_n) != "unused"))
    if (np.asarray(split_n)[control] == "test").sum() > 1:
        return split_n, ""
    half = np.random.default_rng(seed).permutation(control)[: len(control) // 2]
    changed = np.array(split_n, dtype="<U10")
    changed[half] = "test"
    return changed, f"no control cell is held out: a random half of the {len(control)} control cells stands for held-out ones"


def score_changes(
    truth: Truth, predicted: Changes, *, shared_g: Profile | None = None, singles: Changes | None = None, base_g: Profile | None = None
) -> pd.DataFrame:
    """Scores of one prediction, a row for each perturbation of ``truth``; what is not defined is NaN.

    Parameters
    ----------
    predicted
        Change of mean log expression against control of every perturbation of ``truth`` (others may be among them).
    shared_g
        Mean profile of the perturbed cells a model learned from, log expression, one or a row for each perturbation; taken off for
        ``specific_r``. Default: of the truth.
    singles
        Mean log expression of single perturbations measured in other cells, for the interactions of doubles.
    base_g
        Mean log expression of the control cells the changes start from. Default: of the truth.
    """
    names = truth.perturbations
    lacking = [name for name in names if name not in predicted]
    if lacking:
        raise SctoolError(f"there is no prediction of {', '.join(lacking[:5])}", "predict every perturbation that is scored")
    d_pg, q_pg = truth.change_pg, np.stack([np.asarray(predicted[name], np.float64) for name in names])
    if q_pg.shape != d_pg.shape or not np.isfinite(q_pg).all():
        raise SctoolError(
            f"predictions of {q_pg.shape[1]} genes, some maybe NaN, cannot be scored against {d_pg.shape[1]}", "predict every gene"
        )
    means, significant_pg = truth.means, truth.significant_pg
    shared_g = means.mean_pg.mean(0) if shared_g is None else shared_g
    base_g = means.control_g if base_g is None else base_g
    scores: dict[str, Any] = {
        "change_r": m.correlations(d_pg, q_pg),
        "specific_r": m.specific_r(means.mean_pg, base_g + q_pg, shared_g),
        "spearman": m.rank_correlations(d_pg, q_pg),
        "cosine": m.cosines(d_pg, q_pg),
        "change_r2": m.determinations(d_pg, q_pg),
        "change_error": m.error_shares(d_pg, q_pg),
        "rmse": np.sqrt(np.square(d_pg - q_pg).mean(1)),
        "mae": np.abs(d_pg - q_pg).mean(1),
        "de_precision": m.de_precision(q_pg, significant_pg),
        "de_direction": m.de_direction(d_pg, q_pg, significant_pg),
        "de_spearman": np.where(significant_pg.sum(1) > 2, np.nan_to_num(m.de_spearman(d_pg, q_pg, significant_pg)), np.nan),
    }
    for k in TOPS:
        columns = truth.ranked_pg[:, :k]
        true_pk, predicted_pk = (np.take_along_axis(x_pg, columns, 1) for x_pg in (d_pg, q_pg))
        scores[f"change_r_top{k}"] = m.correlations(true_pk, predicted_pk)
        scores[f"de_overlap_top{k}"] = m.de_overlap(truth.t_pg, q_pg, k)
        if k == TOPS[0]:
            scores[f"change_r2_top{k}"] = m.determinations(true_pk, predicted_pk)
            scores[f"change_error_top{k}"] = m.error_shares(true_pk, predicted_pk)
        if k != TOPS[-1]:
            scores[f"jaccard_top{k}"] = m.top_jaccard(d_pg, q_pg, k)
    scores["change_r_other_genes"], scores["de_overlap"] = _without_targets(truth, q_pg), _overlap_of_significant(truth, q_pg)
    for distance in ("l1", "l2", "cosine"):
        for name, form in (("discrimination", "tied"), ("cell_eval", "cell-eval")):
            scores[f"{name}_{distance}"] = m.discrimination(q_pg, d_pg, distance, form)  # type: ignore[arg-type]
    for k in (1, 5):
        scores[f"retrieval_top{k}"] = m.retrieval(q_pg, d_pg, k) if len(names) > k else np.nan
    scores["interaction_r"] = [_interaction(name, truth, predicted, singles or {}, base_g) for name in names]
    return pd.concat([truth.about, pd.DataFrame({name: scores[name] for name in SCORES if name in scores})], axis=1)


def _without_targets(truth: Truth, q_pg: Profile) -> list[float]:
    """Correlation over the genes that are not perturbed themselves."""
    genes = np.array(truth.means.genes)
    own = [~np.isin(genes, targets_of(name)) for name in truth.perturbations]
    return [response.pearson(d_g[keep], q_g[keep]) for d_g, q_g, keep in zip(truth.change_pg, q_pg, own, strict=True)]


def _overlap_of_significant(truth: Truth, q_pg: Profile) -> list[float]:
    """Share of the N significant genes among the N of largest predicted change; NaN where none is significant."""
    rows = zip(truth.t_pg, q_pg, truth.significant_pg.sum(1), strict=True)
    return [float(m.de_overlap(t_g[None], q_g[None], int(k))[0]) if k else np.nan for t_g, q_g, k in rows]


def _interaction(name: str, truth: Truth, predicted: Changes, measured: Changes, base_g: Profile) -> float:
    """Of a double whose singles were both measured; 0 where the prediction has none, NaN for everything else."""
    targets = targets_of(name)
    at = {other: row for row, other in enumerate(truth.perturbations) if truth.means.cells_p[row] >= FEWEST_CELLS}
    if len(targets) < 2 or any(t not in at and t not in measured for t in targets):
        return float("nan")
    # against the held-out control cells, whose noise no prediction shares
    true = [truth.change_pg[at[t]] if t in at else measured[t] - truth.means.control_g for t in targets]
    own = [predicted[t] if t in predicted else measured[t] - base_g if t in measured else one for t, one in zip(targets, true, strict=True)]
    return float(np.nan_to_num(m.interaction_r(truth.change_pg[truth.perturbations.index(name)], predicted[name], true, own)))


def score_cells(truth: Truth, predicted: Mapping[str, Any]) -> pd.DataFrame:
    """Predicted cells against the held-out ones, a row for each perturbation that has both (two cells of each at least).

    Energy distance, MMD and the ratio of total variance are taken in 50 principal components of the held-out cells.
    """
    rows = []
    for name in truth.perturbations:
        made = predicted.get(name)
        if made is None or made.shape[0] < 2:
            continue
        chosen = made[some_rows(np.arange(made.shape[0]))]
        made_ng = np.asarray(chosen.toarray() if sp.issparse(chosen) else chosen)
        real_nd, made_nd = truth.projected[name], truth.project(made_ng)
        values = (
            response.energy_distance(real_nd, made_nd),
            m.mmd(real_nd, made_nd),
            response.variance_ratio(real_nd, made_nd),
            m.zero_difference(truth.cells(name), made_ng),
        )
        rows.append({"perturbation": name, "predicted_cells": made.shape[0], **dict(zip(CELL_SCORES, values, strict=True))})
    return pd.DataFrame(rows, columns=["perturbation", "predicted_cells", *CELL_SCORES])


def oracle_scores(truth: Truth, shared_g: Profile | None = None) -> pd.DataFrame:
    """What the true change, known exactly, would score against these cells: their sampling noise is all that is left.

    For the scores that follow from the noise alone: error shares are noise / measured square, correlations the root of what is not noise.
    On the most changed genes it is too good, as noise helped to choose them.
    """
    d_pg, noise_pg, means = truth.change_pg, truth.noise_pg, truth.means
    columns = truth.ranked_pg[:, : TOPS[0]]
    top_pk, top_noise_pk = np.take_along_axis(d_pg, columns, 1), np.take_along_axis(noise_pg, columns, 1)
    own_pg = means.mean_pg - (means.mean_pg.mean(0) if shared_g is None else shared_g)
    table = truth.about
    table["change_r"] = _reachable(noise_pg, d_pg.var(1))
    table["change_r_top20"] = _reachable(top_noise_pk, top_pk.var(1))
    table["specific_r"] = _reachable(means.variance_pg / means.cells_p[:, None], own_pg.var(1))
    table["cosine"] = _reachable(noise_pg, np.square(d_pg).mean(1))
    for name, true_pk, noise_pk in (("change_error", d_pg, noise_pg), ("change_error_top20", top_pk, top_noise_pk)):
        table[name] = np.minimum(noise_pk.mean(1) / np.maximum(np.square(true_pk).mean(1), 1e-12), 1)
    return table


def _reachable(noise_pg: Profile, square_p: Profile) -> Profile:
    return np.asarray(np.sqrt(np.clip(1 - noise_pg.mean(1) / np.maximum(square_p, 1e-12), 0, 1)))
