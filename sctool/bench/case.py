"""One group whose response was predicted: the scores of cells, the changes that need no model, and the ceiling."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from sctool.metrics import response as m
from sctool.models.scgen import group_weights, learned_power, proportional_change
from sctool.sections import SCGenConfig

COMPONENTS = 50
HALVES = 5
Matrix = NDArray[np.float32]
Profile = NDArray[np.floating]


@dataclass(frozen=True)
class Case:
    """A group whose response was predicted: its real cells, and what is known of the other groups."""

    group: str
    genes: tuple[str, ...]
    control_ng: Matrix
    real_mg: Matrix
    known: dict[str, tuple[Profile, Profile]]
    """Mean control and perturbed expression of each group that was seen under both conditions."""
    up: NDArray[np.int64]
    """Genes by Wilcoxon score, the most raised first (as published)."""
    changed: NDArray[np.int64]
    """Genes by absolute Wilcoxon score, raised or lowered."""
    space: PCA
    """Of the real cells, control and perturbed; where the energy distance is taken."""

    @classmethod
    def of(cls, group: str, genes: tuple[str, ...], control_ng: Matrix, real_mg: Matrix, known: dict[str, tuple[Profile, Profile]]) -> Case:
        """Rank genes and fit the space."""
        up, changed = differential_genes(control_ng, real_mg)
        both = np.vstack([control_ng, real_mg])
        space = PCA(min(COMPONENTS, *(side - 1 for side in both.shape)), random_state=0).fit(both)
        return cls(group, genes, control_ng, real_mg, known, up, changed, space)


def differential_genes(control_ng: Matrix, real_mg: Matrix) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Genes ranked by the Wilcoxon rank-sum score of perturbed against control cells: by the score itself, and by its absolute value."""
    import scanpy as sc

    cells = ad.AnnData(np.vstack([control_ng, real_mg]))
    cells.obs["condition"] = pd.Categorical(["control"] * len(control_ng) + ["perturbed"] * len(real_mg))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.tl.rank_genes_groups(cells, "condition", groups=["perturbed"], reference="control", method="wilcoxon")
    ranked = cells.uns["rank_genes_groups"]
    order, scores = np.array([int(name[0]) for name in ranked["names"]]), np.array([float(score[0]) for score in ranked["scores"]])
    return order, order[np.argsort(-np.abs(scores), kind="stable")]


def score_cells(case: Case, predicted_ng: Matrix, real_mg: Matrix | None = None) -> dict[str, float]:
    """Every metric of predicted cells; ``real_mg`` may be a part of the real cells."""
    real_mg = case.real_mg if real_mg is None else real_mg
    p, q, u = (x.mean(0, dtype=np.float64) for x in (real_mg, predicted_ng, case.control_ng))
    scores = {
        "change_r": m.change_r(p, q, u),
        "energy_distance": m.energy_distance(case.space.transform(real_mg), case.space.transform(predicted_ng)),
        "mean_r2": m.mean_r2(p, q),
        "change_error": m.change_error(p, q, u),
        "mse": m.mean_squared_error(p, q),
        "cosine": m.cosine_similarity(p, q),
        "variance_r2": m.variance_r2(real_mg, predicted_ng),
        "variance_ratio": m.variance_ratio(real_mg, predicted_ng),
    }
    for k in (20, 50, 100):
        for name, order in (("up", case.up), ("deg", case.changed)):
            top = order[:k]
            scores[f"{name}{k}_r2"] = m.mean_r2(p[top], q[top])
            scores[f"{name}{k}_mse"] = m.mean_squared_error(p[top], q[top])
            scores[f"{name}{k}_change_r"] = m.change_r(p[top], q[top], u[top])
    scores["up20_cosine"] = m.cosine_similarity(p[case.up[:20]], q[case.up[:20]])
    return scores


def baseline_changes(control_g: Profile, known: dict[str, tuple[Profile, Profile]]) -> dict[str, Profile]:
    """Changes of the mean that need no model, shape (genes,) each.

    Parameters
    ----------
    control_g
        Mean control expression of the new group.
    known
        Mean control and perturbed expression of the other groups.
    """
    u_kg, p_kg = (np.stack([pair[side] for pair in known.values()]).astype(np.float64) for side in (0, 1))
    d_kg = p_kg - u_kg
    square_k = np.square(u_kg - control_g).sum(1)
    near_k = np.exp(-square_k / (0.5 * np.median(square_k) + 1e-12))
    near_k /= near_k.sum()
    mean_ksg, floor = torch.from_numpy(np.stack([u_kg, p_kg], 1)), SCGenConfig().floor
    w_k = group_weights(torch.from_numpy(square_k).sqrt(), "similar", learned_power(mean_ksg, floor))
    centred_kg = u_kg - u_kg.mean(0)
    spread_g = np.square(centred_kg).sum(0)
    slope_g = (centred_kg * (d_kg - d_kg.mean(0))).sum(0) / (spread_g + spread_g.mean() + 1e-12)
    return {
        "no change": np.zeros_like(control_g),
        "mean change": d_kg.mean(0),
        "nearest group": d_kg[square_k.argmin()],
        "similar groups": near_k @ d_kg,
        "similar groups, proportional": proportional_change(torch.from_numpy(control_g), mean_ksg, w_k, floor).numpy(),
        "per-gene linear": d_kg.mean(0) + slope_g * (control_g - u_kg.mean(0)),
    }


def score_baselines(case: Case) -> Iterator[dict[str, Any]]:
    """A row for each baseline (the control cells, all moved alike), and for halves of the real cells as the ceiling."""
    changes = baseline_changes(case.control_ng.mean(0, dtype=np.float64), case.known)
    for name, change_g in changes.items():
        yield {"name": name, "arm": "baseline", "seed": -1, **score_cells(case, (case.control_ng + change_g).astype(np.float32))}
    for seed in range(HALVES):
        half = np.random.default_rng(seed).permutation(len(case.real_mg)) % 2 == 0
        yield {"name": "real half", "arm": "ceiling", "seed": seed, **score_cells(case, case.real_mg[half], case.real_mg[~half])}
