"""Scores of perturbations summed up: over perturbations, sizes of effect, and against the baselines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sctool.bench.paired import paired_difference
from sctool.bench.perturbation_case import CEILING, FLOOR, ORACLE, Case
from sctool.bench.perturbed import COUNTED_AS_0
from sctool.metrics.perturbation import EFFECTS

DECIDE = ("change_r", "change_error")
RESAMPLINGS = 1000
TOP_GENES, OTHER_GENES = 50, 200
MOST_PAIRS = 200_000


def undefined_as_0(each: pd.DataFrame) -> pd.DataFrame:
    """Scores with correlations that are not defined counted as 0, and a column that says where there was one."""
    columns = [column for column in COUNTED_AS_0 if column in each]
    undefined = each["change_r"].isna() & (each["arm"] != "ceiling")
    return each.assign(
        undefined=undefined, **{column: each[column].where(each["arm"] == "ceiling", each[column].fillna(0)) for column in columns}
    )


def aggregates(counted: pd.DataFrame, scores: Sequence[str]) -> pd.DataFrame:
    """Mean, median and bootstrap interval over perturbations of each method and score, seeds averaged first.

    ``normalised``: 0 for the floor and 1 for the ceiling of real halves; ``of_oracle`` the same for the oracle.
    """
    each = counted.groupby(["name", "arm", "perturbation"], sort=False)[list(scores)].mean()
    rows = []
    for (name, arm), part in each.groupby(level=["name", "arm"], sort=False):
        for score in scores:
            values = part[score].dropna().to_numpy()
            if len(values):
                low, high = bootstrap_interval(values)
                row = {"name": name, "arm": arm, "score": score, "perturbations": len(values), "mean": values.mean()}
                rows.append({**row, "median": np.median(values), "low": low, "high": high})
    table = pd.DataFrame(rows)
    wide = table.pivot_table(index="name", columns="score", values="mean")
    for column, ceiling in (("normalised", CEILING), ("of_oracle", ORACLE)):
        floor, best = (wide.reindex([name]).iloc[0].reindex(table["score"]).to_numpy(float) for name in (FLOOR, ceiling))
        room = best - floor
        table[column] = np.divide(table["mean"] - floor, room, out=np.full(len(table), np.nan), where=np.abs(room) > 1e-6)
    return table


def bootstrap_interval(value_p: NDArray[Any], confidence: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile interval of the mean when perturbations are drawn again with replacement; NaN for fewer than two."""
    n = len(value_p)
    if n < 2:
        return float("nan"), float("nan")
    draws = np.random.default_rng(seed).integers(0, n, (RESAMPLINGS, n))
    low, high = np.quantile(np.asarray(value_p)[draws].mean(1), [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def by_effect(counted: pd.DataFrame, scores: Sequence[str]) -> pd.DataFrame:
    """Mean scores over the third of the perturbations with the weakest, medium and strongest true change; empty for fewer than three."""
    size = counted.groupby("perturbation")["effect"].mean()
    if len(size) < 3:
        return pd.DataFrame(columns=["name", "arm", "effect", "perturbations", *scores])
    third = pd.qcut(size.rank(method="first"), 3, labels=list(EFFECTS)).astype(str)
    table = counted.assign(effect=counted["perturbation"].map(third))
    groups = table.groupby(["name", "arm", "effect"], sort=False)
    made = groups[list(scores)].mean()
    made.insert(0, "perturbations", groups["perturbation"].nunique())
    made = made.reset_index()
    return made.sort_values("effect", key=lambda e: e.map(EFFECTS.index), kind="stable").sort_values(
        "name", kind="stable", ignore_index=True
    )


def against_baselines(counted: pd.DataFrame) -> pd.DataFrame:
    """Each contestant minus each baseline, paired over perturbations (seeds averaged first), with a t interval."""
    each = counted.groupby(["arm", "name", "perturbation"], sort=False)[list(DECIDE)].mean().reset_index()
    groups = {(str(arm), str(name)): part.set_index("perturbation") for (arm, name), part in each.groupby(["arm", "name"], sort=False)}
    rows = []
    for (arm, name), own in groups.items():
        for (kind, baseline), other in groups.items():
            if arm in ("baseline", "ceiling") or kind != "baseline":
                continue
            shared = own.index.intersection(other.index)
            for score in DECIDE:
                made = paired_difference(own.loc[shared, score], other.loc[shared, score])
                rows.append({"name": name, "baseline": baseline, "score": score, **vars(made), "baseline_mean": other[score].mean()})
    return pd.DataFrame(rows)


def differences(against: pd.DataFrame) -> list[str]:
    """The line that says how a contestant stands to the best baseline."""
    lines = []
    for (name, score), part in against.groupby(["name", "score"], sort=False) if len(against) else ():
        best = part.sort_values("baseline_mean", ascending=score == "change_error", kind="stable").iloc[0]
        interval = f"95 % interval {best['low']:+.3f} to {best['high']:+.3f}, " if best["pairs"] > 1 else ""
        lines.append(
            f"{name} - {best['baseline']} (best baseline), {score}: {best['difference']:+.3f} ({interval}{best['pairs']} perturbations)"
        )
    return lines


def shown_changes(case: Case) -> pd.DataFrame:
    """True and predicted change for pictures: all genes, or where that is much, the most changed ones and a random choice of the others."""
    truth, one = case.truth, case.contestants[0]
    genes, order = np.array(truth.means.genes), np.argsort(-truth.effect_p, kind="stable")
    most = max(1, MOST_PAIRS // (TOP_GENES + OTHER_GENES))
    few = len(genes) * len(truth.perturbations) <= MOST_PAIRS
    strongest_g = np.abs(truth.change_pg[order[:TOP_GENES]]).max(0)
    shared = np.union1d(np.argsort(-strongest_g, kind="stable")[:TOP_GENES], np.random.default_rng(0).permutation(len(genes))[:OTHER_GENES])
    parts = []
    for at in order[:most]:
        ranked = np.argsort(-np.abs(truth.change_pg[at]), kind="stable")
        chosen = ranked if few else np.concatenate([ranked[:TOP_GENES], np.setdiff1d(shared, ranked[:TOP_GENES])])
        rank_g = np.empty(len(genes), np.int64)
        rank_g[ranked] = np.arange(len(genes))
        columns = {"true": truth.change_pg[at, chosen], "predicted": np.asarray(one.changes[truth.perturbations[at]])[chosen]}
        about = {"rank": rank_g[chosen], "significant": truth.significant_pg[at, chosen]}
        parts.append(pd.DataFrame({"perturbation": truth.perturbations[at], "gene": genes[chosen], **columns, **about}))
    return pd.concat(parts, ignore_index=True)
