"""From a screen to what a model of perturbations trains on: genes, codes, and what is known of each perturbation from its mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from sctool.config import Config
from sctool.data.cache import take_rows
from sctool.data.genes import gene_names, variable_genes
from sctool.data.perturbation_names import CONTROL, design, targets_of
from sctool.data.prepare import HVG_CELLS_BACKED, Prepared, fingerprint
from sctool.data.quality import gene_symbols
from sctool.data.screen import BLOCK, Rows, Screen, size_column
from sctool.data.vocabulary import Vocabulary

SD_FLOOR = 0.1
"""Of standardised log expression; genes that hardly vary are not blown up."""
FEWEST_PASSED = 10
"""Passing cells that a perturbation needs for its mean to be of these alone."""
BASE_CELLS = 256
"""Control cells that predictions start from."""
ANY = -1


def prepare_screen(screen: Screen, config: Config) -> Prepared:
    """Choose what a model is trained on.

    Parameters
    ----------
    screen
        The screen, split.
    config
        Its sections ``data``, ``cradle`` and ``ar``, and ``seed``.
    """
    data = config.data
    train, known = np.flatnonzero(screen.split_n == "train"), screen.known()
    names = (CONTROL, *sorted(set(screen.name_n[known]) - {CONTROL}))
    targets = tuple(sorted({target for name in names for target in targets_of(name)}))
    columns = _columns(screen, train, targets, config)
    kinds = gene_names(screen.var)
    flags_kq, flag_n = np.unique(screen.failed.to_numpy(bool), axis=0, return_inverse=True)
    batch = screen.obs[data.batch_key].astype(str) if data.batch_key else pd.Series("all", index=screen.obs.index)
    vocabularies = {
        "batch": Vocabulary.of(batch.iloc[train]),
        "perturbation": Vocabulary(names),
        "target": Vocabulary(targets),
        "criterion": Vocabulary(tuple(map(str, screen.failed.columns))),
    }
    codes = {
        "batch": vocabularies["batch"].codes(batch),
        "perturbation": vocabularies["perturbation"].codes(pd.Series(screen.name_n)),
        "flags": flag_n.ravel().astype(np.int64),
    }
    base = np.flatnonzero((screen.name_n == CONTROL) & ~screen.fail_n & np.isin(screen.split_n, ("train", "validation")))
    base = np.random.default_rng([config.seed, 4]).permutation(base)[:BASE_CELLS]
    codes["base"] = np.full(len(screen.obs), -1)
    codes["base"][base] = np.arange(len(base))
    about: dict[str, Any] = {
        "file": str(screen.path.resolve()),
        "counts": screen.source,
        "cells": len(screen.obs),
        "genes": len(screen.var),
        "fingerprint": fingerprint(screen.obs, screen.var, screen.counts),
        "notes": screen.notes,
        "target_sum": screen.target_sum,
        "size_column": size_column(screen.obs, config.cradle.size_key),
        "quality": screen.quality,
        "failed": int(screen.fail_n[known].sum()),
    }
    pools, codes["opposite"] = opposite_pools(codes["perturbation"], codes["batch"], screen.fail_n, train)
    return Prepared(
        screen.counts,
        screen.obs.assign(perturbation=screen.name_n, quality=np.where(screen.fail_n, "fail", "pass")),
        columns,
        {kind: [values[column] for column in columns] for kind, values in kinds.items()},
        vocabularies,
        codes,
        screen.split_n,
        about,
        screen.embedding,
        ("perturbation", "quality"),
        totals=screen.size_n.astype(np.float32),
        more_sizes={"n_flags": len(flags_kq), "n_profiles": len(pools), "n_base": len(base)},
        initial={
            "design_pt": design(names, targets).astype(np.float32),
            "flags_kq": flags_kq.astype(np.float32),
            "n_cells": np.array(len(train), np.float32),
            "failed": np.array(screen.fail_n[train].mean(), np.float32),
            "usual_q": screen.failed.to_numpy(np.float32)[train].sum(0) / max(1, screen.fail_n[train].sum()),
            "target_sum": np.array(screen.target_sum, np.float32),
            **_summary(screen, columns, codes["perturbation"], len(names), train, pools),
        },
    )


def _summary(
    screen: Screen, columns: NDArray[np.int64], name_n: NDArray[np.int64], n_names: int, train: Rows, pools: list[Rows]
) -> dict[str, NDArray[np.float32]]:
    """Means of each perturbation, standardisation of the encoder's input, counterfactual profiles, shares and dispersions of genes."""
    used = np.flatnonzero(learned_cells(screen.name_n, screen.split_n, ~screen.fail_n))
    groups = [used[name_n[used] == code] for code in range(n_names)]
    mean_kg, square_kg = group_means(screen, columns, [train, *groups, *pools])
    share_g, theta_g = count_moments(screen, columns, train)
    cells_p = np.array([len(rows) for rows in groups], float)
    one, several = slice(1, 1 + n_names), slice(1 + n_names, None)
    variance_pg = np.maximum(square_kg[one] - mean_kg[one] ** 2, 0)[:, :-1]
    within_g = cells_p @ variance_pg / max(cells_p.sum() - n_names, 1)
    correction_p = np.where(cells_p > 1, cells_p / np.maximum(cells_p - 1, 1), 0)
    sd_g = np.maximum(np.sqrt(np.maximum(square_kg[0] - mean_kg[0] ** 2, 0)), SD_FLOOR)
    made = {
        "mean_pg": mean_kg[one, :-1],
        "variance_pg": np.where(cells_p[:, None] > 1, variance_pg * correction_p[:, None], within_g),
        "cells_p": cells_p,
        "log_share_g": np.log(share_g + 0.5 / screen.size_n[train].sum()),
        "log_theta": np.log(theta_g),
        "log_mean_g": mean_kg[0],
        "log_sd_g": sd_g,
        "profile_kg": mean_kg[several] / sd_g,
    }
    return {name: array.astype(np.float32) for name, array in made.items()}


def learned_cells(name_n: NDArray[Any], split_n: NDArray[Any], keep_n: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Cells that means are of, shape (cells,): known ones of the quality to keep, or all of a perturbation with too few of these."""
    known = np.flatnonzero(np.isin(split_n, ("train", "validation")))
    names, code_k = np.unique(np.asarray(name_n, str)[known], return_inverse=True)
    kept_p, all_p = (np.bincount(codes, minlength=len(names)) for codes in (code_k[keep_n[known]], code_k))
    few_p = kept_p < np.minimum(FEWEST_PASSED, all_p)
    learned = np.zeros(len(split_n), bool)
    learned[known] = keep_n[known] | few_p[code_k]
    return learned


def count_moments(screen: Screen, columns: NDArray[np.int64], rows: Rows) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean share of each gene in the counts of a cell, and the inverse dispersion of a negative binomial by moments, in 0.1 to 100.

    Of all other genes of the experiment last; each of shape (genes + 1,). For the dispersion, cells differ by their totals only.
    """
    share_g, square_g, cross_g = np.zeros((3, len(columns) + 1))
    for at in range(0, len(rows), BLOCK):
        part = rows[at : at + BLOCK]
        x_ng, size_n = take_rows(screen.counts, part)[:, columns].astype(np.float64), screen.size_n[part]
        rest_n = np.maximum(size_n - np.asarray(x_ng.sum(1)).ravel(), 0)
        share_g += np.append((1 / size_n) @ x_ng, (rest_n / size_n).sum())
        square_g += np.append(np.asarray(x_ng.multiply(x_ng).sum(0)).ravel(), rest_n @ rest_n)
        cross_g += np.append(size_n @ x_ng, size_n @ rest_n)
    share_g /= max(len(rows), 1)
    total, squares = screen.size_n[rows].sum(), np.square(screen.size_n[rows]).sum()
    excess_g = square_g - 2 * share_g * cross_g + share_g**2 * squares - share_g * total
    return share_g, np.clip(share_g**2 * squares / np.maximum(excess_g, 1e-9), 0.1, 100.0)


def group_means(screen: Screen, columns: NDArray[np.int64], groups: list[Rows]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean of log expression, and of its square, over groups of cells, each (groups, genes + 1).

    The last column is all other genes of the experiment. Groups may share cells; each cell is read once.
    """
    of = np.repeat(np.arange(len(groups)), [len(rows) for rows in groups])
    rows, at = np.unique(np.concatenate(groups), return_inverse=True)
    weight_e = 1 / np.maximum(np.bincount(of, minlength=len(groups)), 1)[of]
    member_kn = sp.csc_matrix((weight_e, (of, at)), shape=(len(groups), len(rows)))
    mean_kg, square_kg = np.zeros((2, len(groups), len(columns) + 1))
    start = 0
    for part, log_ng in screen.blocks(rows, columns):
        x_ng = log_ng.astype(np.float64)
        own_kn = member_kn[:, start : start + len(part)].tocsr()
        start += len(part)
        modelled_n = np.asarray(x_ng.expm1().sum(1)).ravel()
        rest_n = np.log1p(np.maximum(screen.target_sum - modelled_n, 0))
        for sums_kg, made_ng, made_n in ((mean_kg, x_ng, rest_n), (square_kg, x_ng.multiply(x_ng).tocsr(), rest_n**2)):
            sums_kg[:, :-1] += (own_kn @ made_ng).toarray()
            sums_kg[:, -1] += own_kn @ made_n
    return mean_kg, square_kg


def opposite_pools(
    name_n: NDArray[np.int64], batch_n: NDArray[np.int64], fail_n: NDArray[np.bool_], rows: Rows
) -> tuple[list[Rows], NDArray[np.int64]]:
    """For each cell, the cells that show what it would have been with the other result of quality control.

    Of its perturbation and batch with the opposite result; where there are none, of any batch; else control cells (code 0), of its batch
    or any.

    Parameters
    ----------
    name_n, batch_n
        Codes of shape (cells,).
    fail_n
        Which cells failed.
    rows
        The cells of one part of a split; no other is in a pool.

    Returns
    -------
    pools, pool_n
        The pools, and the number of each cell's, ``len(pools)`` where it has none.
    """
    pool_n = np.full(len(name_n), -1)
    members: dict[tuple[int, int, bool], Rows] = {}
    for batches in (batch_n, np.full(len(name_n), ANY)):
        keys = pd.DataFrame({"name": name_n[rows], "batch": batches[rows], "fail": fail_n[rows]})
        groups: dict[Any, Any] = keys.groupby(list(keys)).indices
        members |= {tuple(key): rows[at] for key, at in groups.items()}
    used: dict[tuple[int, int, bool], int] = {}
    for (name, batch, fail), own in members.items():
        if batch == ANY:
            continue
        for tried in ((name, batch), (name, ANY), (0, batch), (0, ANY)):
            if (*tried, not fail) in members:
                pool_n[own] = used.setdefault((*tried, not fail), len(used))
                break
    return [members[key] for key in used], np.where(pool_n < 0, len(used), pool_n)


def _columns(screen: Screen, train: Rows, targets: tuple[str, ...], config: Config) -> NDArray[np.int64]:
    """Variable genes on training cells, and with them every target that was measured."""
    n_top, n_genes = config.data.n_top_genes, len(screen.var)
    if not n_top or n_top >= n_genes:
        return np.arange(n_genes)
    chosen = train if not config.data.backed else np.sort(np.random.default_rng(config.seed).permutation(train)[:HVG_CELLS_BACKED])
    wanted = set(targets)
    measured = [at for at, name in enumerate(gene_symbols(screen.var)) if name in wanted]
    return np.union1d(variable_genes(take_rows(screen.counts, chosen), n_top, None), np.array(measured, np.int64))
