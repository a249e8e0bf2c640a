"""Anyone's embedding of samples against what is known of these: a probe on donors held out, nearest samples, and traces of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sctool.artifacts.atomic import write_json
from sctool.artifacts.result_folder import result_folder
from sctool.bench.evaluation import Evaluation
from sctool.bench.sample_confounding import confounding
from sctool.bench.sample_folds import parse_sample_cv, sample_folds
from sctool.bench.sample_given import open_embeddings
from sctool.bench.sample_leakage import leakage, leaks
from sctool.bench.sample_tables import combined, figures, verdicts
from sctool.bench.samples import Contestant, baseline_contestants, evaluate_samples
from sctool.config import Config
from sctool.data.cohort import OWN, Cohort, Task, parse_tasks
from sctool.data.read import near
from sctool.errors import SctoolError
from sctool.metrics.samples import replicate_robustness, sample_distances, spare_score, spare_total

PERFECT, FAR = 0.9995, 0.02
"""A best possible score, and how far below it the best baseline is where it is suspicious."""
_SPARE = {"class": "class", "regression": "regression", "ordinal": "ranking"}


@dataclass(frozen=True)
class Scored:
    """Scores of embeddings.

    Attributes
    ----------
    neighbours
        ``name, arm, covariate, role, kind, neighbours``: SPARE's score of the three nearest samples; low is good for a technical covariate.
    spare
        ``name, arm, retention, removal, total, replicates``: means of those scores of targets, and of 1 - those of technical columns,
        their weighed sum, and how near samples of a donor are.
    """

    evaluations: list[Evaluation]
    neighbours: pd.DataFrame
    spare: pd.DataFrame
    metrics: dict[str, Any]
    lines: list[str]
    tables: dict[str, pd.DataFrame]

    def write(self, folder: Path, *, force: bool) -> None:
        """Write the result folder atomically."""
        with result_folder(folder, force=force) as partial:
            for name, table in self.tables.items():
                table.to_csv(partial / f"{name}.csv", index=False)
            write_json(partial / "metrics.json", self.metrics)


def evaluate_embeddings(
    files: list[Path], metadata: Path | None, data: Path | None, config: Config, technical: list[str], say: Callable[[str], None]
) -> Scored:
    """Score embeddings of samples.

    Parameters
    ----------
    files
        CSV files, each with a row for each sample, or folders with an ``embeddings.csv``.
    metadata
        CSV of what is known of the samples; where it is None, what else the first file says.
    data
        The .h5ad of the cells, for baselines made of these; None has those of covariates and chance only.
    config
        ``sampleclr``: keys, ``tasks`` (the targets), folds.
    technical
        Columns that should not be found in an embedding.

    Raises
    ------
    SctoolError
        If files don't fit each other, or a column is not there.
    """
    if parse_sample_cv(config.sampleclr.cv)[0] == "none":
        raise SctoolError("--cv none holds out no donor to score on", "give --cv auto, donors:K or leave-one-donor-out")
    said = [*config.sampleclr.tasks, *technical]
    columns = [part for one in said for part in {one, one.rpartition(":")[0]} if part]
    given = open_embeddings(files, metadata, data, config, columns, say)
    cohort = given.cohort
    tasks, aside = _tasks(given.cohort, given.varying, config, technical)
    for task in (*tasks, *aside):
        unknown = int((cohort.usable_s & ~cohort.known(task)).sum())
        if unknown:
            say(f"note: {unknown} of {int(cohort.usable_s.sum())} samples have no value of {task.column} and are not scored on it")
    baselines = baseline_contestants(cohort, config, say)
    if data is None:
        told = cohort.table["n_cells"].nunique() > 1 or bool(config.sampleclr.covariates)
        baselines = [one for one in baselines if one.name == "random" or (one.name == "covariates" and told)]
    contestants = [Contestant(name, "embedding", features=partial(_as_given, x_sd)) for name, x_sd in given.x_sd.items()]
    folds = sample_folds(cohort, tasks[0], config)
    evaluations = [evaluate_samples(cohort, task, [*contestants, *baselines], folds, config, say) for task in tasks]
    traces = leakage(cohort, aside, [*contestants, *baselines], config, say)
    neighbours, spare = _spare(cohort, [*contestants, *baselines], tasks, aside)
    keys = [*(task.column for task in aside), *config.sampleclr.covariates]
    confounded = pd.concat([confounding(cohort, task, keys) for task in tasks], ignore_index=True)
    tables = combined(evaluations, neighbours=neighbours, spare=spare, confounding=confounded)
    if traces:
        tables["technical"] = pd.concat([one.tables["comparison"] for one in traces], ignore_index=True)
    metrics = figures(evaluations, tasks, n_samples=len(cohort), technical={str(one.about["target"]): one.metrics for one in traces})
    metrics["neighbours"] = {
        name: dict(zip(part["covariate"], part["neighbours"], strict=True)) for name, part in neighbours.groupby("name", sort=False)
    }
    metrics["spare"] = {row.pop("name"): row for row in spare.drop(columns="arm").to_dict("records")}
    metrics["notes"] = lines = [*verdicts(evaluations), *suspicions(evaluations), *leaks(traces)]
    return Scored(evaluations, neighbours, spare, metrics, lines, tables)


def _as_given(x_sd: NDArray[np.float64], train_s: NDArray[np.bool_]) -> NDArray[np.float64]:
    return x_sd


def _tasks(cohort: Cohort, varying: dict[str, str], config: Config, technical: Sequence[str]) -> tuple[list[Task], list[Task]]:
    """Targets, and technical columns as tasks."""
    made: list[list[Task]] = []
    for flag, said in (("--target", config.sampleclr.tasks), ("--technical", technical)):
        found = []
        for one in parse_tasks(config.replaced({"sampleclr.tasks": list(said)}), cohort.table, varying):
            if isinstance(one, SctoolError):
                nothing = set(cohort.table) <= set(OWN)
                hint = "give what is known of the samples with --metadata" if nothing else one.hint
                raise SctoolError(one.message.replace("--task", flag), hint)
            found.append(one)
        made.append(found)
    tasks, aside = made
    both = {task.column for task in tasks} & {task.column for task in aside}
    if both:
        raise SctoolError(f"{min(both)!r} is both a --target and --technical", "say which: should it be found in an embedding, or not?")
    named = [task.column for task in (*tasks, *aside)]
    for key in config.sampleclr.orders:
        if key not in named:
            raise SctoolError(f"sampleclr.orders: {key!r} is no target; there are: {', '.join(named)}", near(key, named))
    return tasks, aside


def _spare(
    cohort: Cohort, contestants: Sequence[Contestant], tasks: Sequence[Task], aside: Sequence[Task]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """SPARE's scores of every representation by cosine distances; nothing is fitted but on features, on all samples."""
    rows, totals = [], []
    usable = np.flatnonzero(cohort.usable_s)
    for one in contestants:
        if one.features is None or one.neighbours:
            continue
        d_ss = sample_distances(np.asarray(one.features(cohort.usable_s), np.float64)[usable])
        score: dict[str, list[float]] = {"target": [], "technical": []}
        for role, group in (("target", tasks), ("technical", aside)):
            for task in group:
                value = _neighbours(cohort, task, d_ss, usable)
                score[role].append(value)
                rows.append([one.name, one.arm, task.column, role, task.kind, value])
        retention, removal = float(np.mean(score["target"])), 1 - float(np.mean(score["technical"])) if aside else float("nan")
        replicates = replicate_robustness(d_ss, cohort.donor_s[usable].astype(str))
        totals.append([one.name, one.arm, retention, removal, spare_total(retention, removal), replicates])
    neighbours = pd.DataFrame(rows, columns=["name", "arm", "covariate", "role", "kind", "neighbours"])
    return neighbours, pd.DataFrame(totals, columns=["name", "arm", "retention", "removal", "total", "replicates"])


def _neighbours(cohort: Cohort, task: Task, d_ss: NDArray[np.float64], usable: NDArray[np.int64]) -> float:
    own = np.flatnonzero(cohort.known(task)[usable])
    kind: Any = _SPARE[task.kind]
    return spare_score(d_ss[np.ix_(own, own)], cohort.truth(task)[usable[own]], kind)


def suspicions(evaluations: Sequence[Evaluation]) -> Iterator[str]:
    """A line for each embedding that is right about every held-out sample where no baseline nearly is."""
    for one in evaluations:
        table, score = one.summary, one.columns[0]
        best = table.loc[table["arm"] == "baseline", score].max()
        for row in table[(table["arm"] != "baseline") & (table[score] >= PERFECT)].to_dict("records"):
            if not best > row[score] - FAR:
                yield (
                    f"warning: {row['name']} has {score} {row[score]:.3f} for {one.about['target']}, the best baseline {best:.3f}: "
                    "it may have been trained on the target of these samples, and then says nothing of new ones"
                )
