"""Simple predictors of a perturbation's change: what every model stands beside.

Each takes :class:`Means` and the names of the wanted perturbations and gives the change of mean log expression against control, shape
(wanted, G). A name that was not seen never fails; ``"control"`` does not change. References: Ahlmann-Eltze 2025 (``linear``,
``additive``, ``perturbed_mean``); Vinas Torne 2025, Systema (``matching_mean``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from sctool.data.perturbation_names import CONTROL, targets_of
from sctool.models.perturbation.means import Means

Change = NDArray[np.float64]
Predictor = Callable[[Means, Sequence[str]], Change]

COMPONENTS = 10
RIDGE = 0.1
NEIGHBOURS = 3


def no_change(means: Means, wanted: Sequence[str]) -> Change:
    """Perturbed cells are as control cells."""
    return np.zeros((len(wanted), len(means.genes)))


def perturbed_mean(means: Means, wanted: Sequence[str]) -> Change:
    """Mean change over the training perturbations, the same for all."""
    mean_g = means.change_pg.mean(0)
    return _rows(means, wanted, lambda name: mean_g)


def train_mean(means: Means, wanted: Sequence[str]) -> Change:
    """Mean change of the perturbation's own training cells; of all perturbations where there are none."""
    seen, mean_g = _seen(means)
    return _rows(means, wanted, lambda name: seen.get(name, mean_g))


def additive(means: Means, wanted: Sequence[str]) -> Change:
    """Sum of the single changes; a target not seen alone adds nothing."""
    seen, _ = _seen(means)
    return _rows(means, wanted, lambda name: np.sum([seen.get(target, 0.0 * means.control_g) for target in targets_of(name)], 0))


def matching_mean(means: Means, wanted: Sequence[str]) -> Change:
    """Mean of the single changes; a target not seen alone counts as the mean change."""
    seen, mean_g = _seen(means)
    return _rows(means, wanted, lambda name: np.mean([seen.get(target, mean_g) for target in targets_of(name)], 0))


def linear(means: Means, wanted: Sequence[str]) -> Change:
    """Bilinear ridge regression from the targets' expression scores (10 components, ridge 0.1)."""
    change_wg = bilinear(means, wanted)
    change_wg[np.asarray(wanted, dtype=str) == CONTROL] = 0.0
    return change_wg


def bilinear(means: Means, wanted: Sequence[str], components: int = COMPONENTS, ridge: float = RIDGE) -> Change:
    """:func:`linear` with other constants, as a formula: control gets a change too.

    With scores G of the genes, B those of the measured training targets (control: 0) and Y their changes less the row means b,
    ``W = (G'G + ridge I)^-1 G' Y B' (B B' + ridge I)^-1``; the change is ``G W p + b``, p the scores of the wanted targets, summed.
    A target that is not measured has scores 0.
    """
    row, score_gk = _row(means), _scores(means, components)
    seen, _ = _seen(means)
    singles = [name for name in means.perturbations if name in row]
    y_gn = np.column_stack([seen[name] for name in singles] + [np.zeros(len(means.genes))])
    mean_g = y_gn.mean(1)
    eye_kk = ridge * np.eye(score_gk.shape[1])

    def embedding(targets: Sequence[str]) -> Change:
        return score_gk[[row[target] for target in targets if target in row]].sum(0)

    b_kn = np.column_stack([embedding([name]) for name in singles] + [np.zeros(len(eye_kk))])
    left_kn = np.linalg.solve(score_gk.T @ score_gk + eye_kk, score_gk.T @ (y_gn - mean_g[:, None]))
    w_kk = np.linalg.solve(b_kn @ b_kn.T + eye_kk, b_kn @ left_kn.T).T
    wanted_wk = np.array([embedding(targets_of(name)) for name in wanted]).reshape(-1, len(eye_kk))
    return wanted_wk @ w_kk.T @ score_gk.T + mean_g


def knn(means: Means, wanted: Sequence[str]) -> Change:
    """Mean, over the targets, of the 3 training singles with the nearest expression scores of the target; else as ``matching_mean``."""
    row, score_gk = _row(means), _scores(means, COMPONENTS)
    seen, mean_g = _seen(means)
    singles = [name for name in means.perturbations if name in row]
    score_sk = score_gk[[row[name] for name in singles]]

    def of_target(target: str) -> Change:
        if target not in row or not singles:
            return seen.get(target, mean_g)
        nearest = np.argsort(np.linalg.norm(score_sk - score_gk[row[target]], axis=1), kind="stable")[:NEIGHBOURS]
        return np.mean([seen[singles[at]] for at in nearest], 0)

    return _rows(means, wanted, lambda name: np.mean([of_target(target) for target in targets_of(name)], 0))


def own_gene(means: Means, wanted: Sequence[str]) -> Change:
    """Mean change, and each target's own expression by the share of control that the training targets change theirs."""
    row, change_pg = _row(means), means.change_pg
    known = [(at, row[name]) for at, name in enumerate(means.perturbations) if name in row]
    expressed = sum(means.control_g[gene] for _, gene in known)
    share = sum(change_pg[at, gene] for at, gene in known) / expressed if expressed > 0 else 0.0
    mean_g = change_pg.mean(0)

    def change(name: str) -> Change:
        change_g = mean_g.copy()
        own = [row[target] for target in targets_of(name) if target in row] if known else []
        change_g[own] = share * means.control_g[own]
        return change_g

    return _rows(means, wanted, change)


def lowrank(means: Means, wanted: Sequence[str]) -> Change:
    """Own training mean or sum of singles, from changes cut to the components above noise (Gavish & Donoho 2014)."""
    change_pg = means.change_pg
    mean_g = change_pg.mean(0)
    left_pk, size_k, right_kg = np.linalg.svd(change_pg - mean_g, full_matrices=False)
    shape = min(change_pg.shape) / max(change_pg.shape)
    noise = (0.56 * shape**3 - 0.95 * shape**2 + 1.82 * shape + 1.43) * np.median(size_k)
    kept = max(int((size_k > noise).sum()), 1)
    denoised_pg = (left_pk[:, :kept] * size_k[:kept]) @ right_kg[:kept] + mean_g
    seen = dict(zip(means.perturbations, denoised_pg, strict=True))

    def change(name: str) -> Change:
        targets = targets_of(name)
        alone = np.sum([seen[target] for target in targets], 0) if all(target in seen for target in targets) else mean_g
        return seen.get(name, alone)

    return _rows(means, wanted, change)


def _rows(means: Means, wanted: Sequence[str], change: Callable[[str], Change]) -> Change:
    """Changes of all wanted perturbations; control does not change."""
    change_wg = np.zeros((len(wanted), len(means.genes)))
    for at, name in enumerate(wanted):
        if targets_of(name):
            change_wg[at] = change(name)
    return change_wg


def _seen(means: Means) -> tuple[dict[str, Change], Change]:
    """Measured change of each training perturbation, and their mean."""
    change_pg = means.change_pg
    return dict(zip(means.perturbations, change_pg, strict=True)), change_pg.mean(0)


def _row(means: Means) -> dict[str, int]:
    """Place of each measured gene."""
    return {gene: at for at, gene in enumerate(means.genes)}


def _scores(means: Means, components: int) -> Change:
    """PCA scores of the genes over training means and control, columns centred, shape (G, components)."""
    x_gn = np.vstack([means.mean_pg, means.control_g]).T
    left_gk, size_k, _ = np.linalg.svd(x_gn - x_gn.mean(0), full_matrices=False)
    return (left_gk * size_k)[:, :components]
