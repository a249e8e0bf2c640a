"""How good a representation of samples is without a model on top: neighbours, replicates, halves of a sample, and what is confounded.

SPARE (Shitov et al. 2025) scores are those of the benchmark's library, with replicates counted over the number of samples there are.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from sctool.errors import InputError
from sctool.metrics.base import metric
from sctool.metrics.sample_scores import spearman

Floats = NDArray[np.float64]
Kind = Literal["class", "regression", "ranking"]
Distance = Literal["cosine", "euclidean"]


def sample_distances(z_sd: NDArray[Any], distance: Distance = "cosine", other_sd: NDArray[Any] | None = None) -> Floats:
    """Distances of each sample to each, or to each of others; a row of zeros is at cosine distance 1 to all."""
    rows = [np.asarray(x, np.float64) for x in (z_sd, z_sd if other_sd is None else other_sd)]
    if distance == "euclidean":
        return cdist(*rows)
    norms = [np.linalg.norm(x, axis=1, keepdims=True) for x in rows]
    unit = [np.divide(x, n, out=np.zeros_like(x), where=n > 0) for x, n in zip(rows, norms, strict=True)]
    return np.clip(1 - unit[0] @ unit[1].T, 0, 2)


def knn_predict(d_ss: NDArray[Any], target_s: NDArray[Any], kind: Kind, k: int = 3) -> NDArray[Any]:
    """What the k nearest other samples say of each, nearer ones more (weights 1 / distance).

    Parameters
    ----------
    d_ss
        Distances. The diagonal is set to the largest of them, so that no sample votes for itself.
    target_s
        Labels, or numbers for ``regression`` and ``ranking``; no missing ones.
    k
        Falls to the number of other samples.
    """
    d_ss = np.array(d_ss, np.float64)
    if d_ss.shape != (len(target_s), len(target_s)):
        raise InputError(f"distances of shape {d_ss.shape} do not fit {len(target_s)} samples", "give the distance of each pair of samples")
    np.fill_diagonal(d_ss, d_ss.max())
    near_sk = np.argsort(d_ss, axis=1, kind="stable")[:, : min(k, len(d_ss) - 1)]
    near_d_sk = np.take_along_axis(d_ss, near_sk, 1)
    same_sk = near_d_sk == 0
    with np.errstate(divide="ignore"):  # samples at the same place outvote all others
        w_sk = np.where(same_sk.any(1, keepdims=True), same_sk, 1 / near_d_sk)
    if kind != "class":
        return (w_sk * np.asarray(target_s, np.float64)[near_sk]).sum(1) / w_sk.sum(1)
    labels, code_s = np.unique(np.asarray(target_s), return_inverse=True)
    votes_sl = (w_sk[:, :, None] * (code_s[near_sk][:, :, None] == np.arange(len(labels)))).sum(1)
    return labels[votes_sl.argmax(1)]


@metric(best=1.0)
def spare_score(d_ss: NDArray[Any], target_s: NDArray[Any], kind: Kind, k: int = 3) -> float:
    """SPARE's score of one covariate in 0..1: macro F1 above chance of classes, rank correlation of numbers (negative ones are 0).

    Samples whose target is missing (None, NaN or "") are left out; NaN with fewer than 3 left or one class only.
    """
    missing = [value is None or value == "" or (isinstance(value, (float, np.floating)) and np.isnan(value)) for value in target_s]
    known = np.flatnonzero(~np.array(missing, bool))
    target_s, d_ss = np.asarray(target_s)[known], np.asarray(d_ss)[np.ix_(known, known)]
    if len(known) < 3 or len(set(target_s.tolist())) < 2:
        return float("nan")
    predicted_s = knn_predict(d_ss, target_s, kind, k)
    if kind != "class":
        return float(np.clip(np.nan_to_num(spearman(target_s.astype(np.float64), predicted_s)), 0, 1))
    from sklearn.metrics import f1_score

    chance = 1 / len(set(target_s.tolist()))
    f1 = f1_score(target_s, predicted_s, average="macro", zero_division=0)
    return float(np.clip((f1 - chance) / (1 - chance), 0, 1))


def spare_total(retention: float, removal: float) -> float:
    """``(retention + removal / 2) / 1.5``: SPARE's total where there is no trajectory to keep; NaN where either is."""
    return (retention + 0.5 * removal) / 1.5


@metric(best=1.0)
def replicate_robustness(d_ss: NDArray[Any], replicate_s: NDArray[Any]) -> float:
    """1 - share of the other samples that are nearer than the replicate, mean over samples that have one; NaN where none has.

    Samples as near as the replicate count half, or a representation of one value would do well.

    Parameters
    ----------
    replicate_s
        Name of what a sample is a replicate of. Of several replicates the nearest counts.
    """
    d_ss, replicate_s = np.asarray(d_ss, np.float64), np.asarray(replicate_s)
    off = ~np.eye(len(d_ss), dtype=bool)
    same_ss = (replicate_s[:, None] == replicate_s[None]) & off
    has_s = same_ss.any(1)
    if not has_s.any():
        return float("nan")
    nearest_s1 = np.where(same_ss, d_ss, np.inf).min(1, keepdims=True)
    nearer_s = ((d_ss < nearest_s1) & off).sum(1) + 0.5 * ((d_ss == nearest_s1) & off & ~same_ss).sum(1)
    return float(1 - (nearer_s[has_s] / (len(d_ss) - 1)).mean())


def half_hits(
    a_sd: NDArray[Any], b_sd: NDArray[Any], donor_s: NDArray[Any] | None = None, distance: Distance = "euclidean"
) -> tuple[Floats, Floats | None]:
    """Of each sample: the share of its two halves whose nearest among all other halves is its own other one, shape (samples,).

    Parameters
    ----------
    a_sd, b_sd
        Representations of two disjoint halves of every sample's cells. For ``euclidean`` every dimension is standardised over the halves.
    donor_s
        Of the samples: then also whether the nearest is a half of another sample of the same donor, where a donor has several and the
        sample's own other half is set aside; NaN for donors of one sample. None without donors.
    """
    z_hd = np.vstack([a_sd, b_sd]).astype(np.float64)
    if distance == "euclidean":
        sd_d = z_hd.std(0)
        z_hd = (z_hd - z_hd.mean(0)) / np.where(sd_d > 1e-12, sd_d, np.inf)
    n = len(a_sd)
    d_hh, sample_h = sample_distances(z_hd, distance), np.tile(np.arange(n), 2)
    np.fill_diagonal(d_hh, np.inf)
    # of halves equally near the own one counts for its share only, or a representation of one value would do well
    nearest_hh = d_hh <= d_hh.min(1, keepdims=True) + 1e-12
    own_hh = sample_h[:, None] == sample_h[None]
    hit_h = (nearest_hh & own_hh).sum(1) / nearest_hh.sum(1)
    hits_s = (hit_h[:n] + hit_h[n:]) / 2
    if donor_s is None:
        return hits_s, None
    donor_h = np.tile(np.asarray(donor_s).astype(str), 2)
    same_hh = (donor_h[:, None] == donor_h[None]) & ~own_hh
    d_hh[own_hh] = np.inf
    nearest_hh = d_hh <= d_hh.min(1, keepdims=True) + 1e-12
    found_h = np.where(same_hh.any(1), (nearest_hh & same_hh).sum(1) / nearest_hh.sum(1), np.nan)
    return hits_s, (found_h[:n] + found_h[n:]) / 2


@metric(best=1.0)
def split_half_top1(a_sd: NDArray[Any], b_sd: NDArray[Any], distance: Distance = "euclidean") -> float:
    """Mean of :func:`half_hits`; chance is 1 / (2 samples - 1)."""
    return float(half_hits(a_sd, b_sd, distance=distance)[0].mean())


def cramers_v(a_n: NDArray[Any], b_n: NDArray[Any]) -> float:
    """Association of two groupings in 0..1, with Bergsma's (2013) correction for small samples; NaN where one has one group only."""
    a_n, b_n = (np.unique(np.asarray(x).astype(str), return_inverse=True)[1] for x in (a_n, b_n))
    n, shape = len(a_n), (int(a_n.max()) + 1, int(b_n.max()) + 1)
    if min(shape) < 2 or n < 3:
        return float("nan")
    seen = np.bincount(a_n * shape[1] + b_n, minlength=shape[0] * shape[1]).reshape(shape)
    chance = np.outer(seen.sum(1), seen.sum(0)) / n
    phi2 = max(0.0, float((np.square(seen - chance) / chance).sum()) / n - (shape[0] - 1) * (shape[1] - 1) / (n - 1))
    least = min(size - (size - 1) ** 2 / (n - 1) for size in shape) - 1
    return float(min(1.0, np.sqrt(phi2 / least))) if least > 0 else float("nan")


def eta_squared(value_n: NDArray[Any], group_n: NDArray[Any]) -> float:
    """Share of a number's variance that is between groups; NaN where it does not vary or there is one group only."""
    value_n = np.asarray(value_n, np.float64)
    _, code_n = np.unique(np.asarray(group_n).astype(str), return_inverse=True)
    total = np.square(value_n - value_n.mean()).sum()
    if total <= 1e-12 or code_n.max() < 1:
        return float("nan")
    size_g = np.bincount(code_n)
    mean_g = np.bincount(code_n, weights=value_n) / size_g
    return float((size_g * np.square(mean_g - value_n.mean())).sum() / total)


def association(a_n: NDArray[Any], b_n: NDArray[Any], numbers: tuple[bool, bool]) -> tuple[str, float]:
    """Name and size (0..1) of the association of two variables: Cramer's V, eta squared, or |Spearman's rho|."""
    if all(numbers):
        return "spearman", abs(spearman(np.asarray(a_n, np.float64), np.asarray(b_n, np.float64)))
    if any(numbers):
        value_n, group_n = (a_n, b_n) if numbers[0] else (b_n, a_n)
        return "eta_squared", eta_squared(value_n, group_n)
    return "cramers_v", cramers_v(a_n, b_n)
