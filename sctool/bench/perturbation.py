"""Predicted perturbation responses beside the baselines, what no change scores (floor), and what real cells score (ceilings)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sctool.bench.evaluation import Evaluation
from sctool.bench.perturbation_case import POOLED, Case, Contestant, listed
from sctool.bench.perturbation_input import open_cases
from sctool.bench.perturbation_tables import DECIDE, against_baselines, aggregates, by_effect, differences, shown_changes, undefined_as_0
from sctool.bench.perturbed import CELL_SCORES, FEWEST_CELLS, SCORES, Changes, Truth
from sctool.config import Config
from sctool.errors import SctoolError
from sctool.models.perturbation.means import Means
from sctool.models.perturbation.predictors import PREDICTORS

SHOWN = ("change_r", "change_r_top20", "specific_r", "change_error")
DETAILED = (*SHOWN, "cosine", "discrimination_l2", "discrimination_cosine", *CELL_SCORES)


def compare(
    truth: Truth,
    means: Means | Sequence[tuple[Sequence[str], Means]] | None,
    contestants: Sequence[Contestant] | Mapping[str, Changes],
    *,
    control_ng: Any = None,
    say: Callable[[str], None] = lambda text: None,
) -> Evaluation:
    """Score predictions, every baseline, the floor and the ceilings on the same held-out cells.

    Parameters
    ----------
    truth
        The held-out cells.
    means
        What the baselines learn from; several, each with the perturbations it is used for; None leaves all but the floor out.
    contestants
        Or changes by name.
    control_ng
        Training control cells (log expression). Baselines move them, where a contestant has predicted cells.
    say
        Told what is left out.
    """
    if isinstance(contestants, Mapping):
        contestants = [Contestant(name, changes) for name, changes in contestants.items()]
    case = Case(truth, [(truth.perturbations, means)] if isinstance(means, Means) else list(means or []), list(contestants), control_ng)
    return assemble([case], say)


def assemble(cases: list[Case], say: Callable[[str], None] = lambda text: None) -> Evaluation:
    """Score each case, and sum up over perturbations, effect sizes, seeds and splits."""
    cases = [case.common(say) for case in cases]
    each = pd.concat([case.rows() for case in cases], ignore_index=True)
    first = ["name", "arm", "seed", "run", "split", "perturbation"]
    scores = [score for score in SCORES if score in each]
    about = ["cells", "control_cells", "few_cells", "effect", "significant_genes"]
    each = each[[*first, *about, *(["predicted_cells"] if "predicted_cells" in each else []), *scores]]
    counted = each[~each["few_cells"]]
    few = sorted(set(each.loc[each["few_cells"], "perturbation"]))
    if counted.empty:
        raise SctoolError(
            f"no perturbation has {FEWEST_CELLS} held-out cells; most: {each['cells'].max()}", "hold out more cells, or score another file"
        )
    notes = [f"left out of the means, with fewer than {FEWEST_CELLS} held-out cells: {listed(few)}"] if few else []
    counted = undefined_as_0(counted)
    by_run = counted.groupby(["name", "arm", "seed", "run", "split"], sort=False)
    table = by_run[scores].mean()
    table.insert(0, "perturbations", by_run.size())
    table.insert(1, "undefined", by_run["undefined"].sum())
    pooled = pd.concat([case.pooled() for case in cases], ignore_index=True)
    table = table.reset_index().merge(pooled, how="left", on=["name", "seed", "run", "split"])
    sums, against = aggregates(counted, scores), against_baselines(counted)
    tables = {"per_perturbation": each, "aggregates": sums, "by_effect": by_effect(counted, scores), "against_baselines": against}
    if sum(len(case.contestants) for case in cases) == 1:
        tables["changes"] = shown_changes(cases[0])
    return Evaluation(
        task="perturbation",
        scores=table,
        columns=tuple(scores) + POOLED,
        about=_about(cases, each, sums, few),
        tables=tables,
        pair_by=("split", "seed"),
        decide=DECIDE,
        notes=(*differences(against), *notes),
    )


def _about(cases: list[Case], each: pd.DataFrame, sums: pd.DataFrame, few: list[str]) -> dict[str, Any]:
    main = sums[sums["score"].isin(DETAILED)]
    shown: dict[str, dict[str, Any]] = {}
    for row in main.drop(columns="arm").to_dict("records"):
        shown.setdefault(str(row.pop("name")), {})[str(row.pop("score"))] = row
    known = each.drop_duplicates(["split", "perturbation"])
    return {
        "perturbations": int(known["perturbation"].nunique()),
        "cells": int(known["cells"].sum()),
        "control_cells": [int(case.truth.means.control_cells) for case in cases],
        "training_cells": [int(case.means[0][1].cells_p.sum() + case.means[0][1].control_cells) if case.means else 0 for case in cases],
        "few_cells": few,
        "genes": len(cases[0].truth.means.genes),
        "runs": sorted({one.run or one.name for case in cases for one in case.contestants}),
        "baselines": {name: text for name, (_, text) in PREDICTORS.items() if name in set(each["name"])},
        "aggregates": shown,
    }


def evaluate_perturbations(
    paths: list[Path], data: Path | None, config: Config, say: Callable[[str], None], given: Mapping[str, Any] | None = None
) -> Evaluation:
    """Score predictions of perturbations.

    Parameters
    ----------
    paths
        Result folders of ``predict cradle``, or predictions of any tool: cells (.h5ad) or a table of means or changes.
    data, config
        The file with the real cells and its columns; both known for result folders.
    say
        Told what is left out.
    given
        Settings, by dotted key, that win over those a run was trained with.
    """
    return assemble(open_cases(paths, data, config, say, given), say)
