"""From a file of samples to a trained network, its test on donors held out beside the baselines, and all tables of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sctool.artifacts.atomic import write_json
from sctool.artifacts.model_folder import ModelFolder, RunPlace, amend
from sctool.artifacts.result_folder import result_folder
from sctool.bench.evaluation import Evaluation
from sctool.bench.sample_confounding import confounding
from sctool.bench.sample_files import distances_table, embeddings_table, write_importance
from sctool.bench.sample_folds import SampleFold, codes, plain_folds, sample_folds
from sctool.bench.sample_importance import evidence_by_type
from sctool.bench.sample_leakage import leakage, leaks
from sctool.bench.sample_predict import reach
from sctool.bench.sample_retrieval import Parts, baseline_embeds, retrieval_tables
from sctool.bench.sample_tables import combined, figures, verdicts
from sctool.bench.samples import Contestant, baseline_contestants, evaluate_samples
from sctool.config import Config
from sctool.data.check_samples import open_cohort
from sctool.data.cohort import Cohort, Task, text
from sctool.data.samples import prepare_samples
from sctool.engine.query import load_module
from sctool.engine.run import run_settings, run_training
from sctool.engine.sample_answers import Blend
from sctool.engine.sample_folds import FoldNetworks, shares
from sctool.engine.sample_prior import prior_graph
from sctool.engine.samples import in_blocks, represent, sample_stages, see
from sctool.engine.trainer import Reporter
from sctool.models.registry import BUILDERS

PROBED, LEARNED = "SampleCLR + linear probe", "contrast + linear probe"
SUPERVISED, ALONE = "SampleCLR", "attention alone"


@dataclass(frozen=True)
class Plan:
    """A cohort, its tasks and the folds they are tested in.

    Attributes
    ----------
    folds
        Of the first task, all repeats; without a task whole donors once.
    confounded
        What the tasks go with.
    """

    config: Config
    cohort: Cohort
    tasks: list[Task]
    folds: list[SampleFold]
    confounded: pd.DataFrame

    @property
    def rows(self) -> list[list[str]]:
        """What a dry run says."""
        usable_s = self.cohort.usable_s
        rows = [["samples", f"{int(usable_s.sum())} of {len(self.cohort)}, of {len(set(self.cohort.donor_s[usable_s]))} donors"]]
        rows.append(["cells", f"{len(self.cohort.obs):,}"])
        for task in self.tasks:
            truth_s = self.cohort.truth(task)[self.cohort.known(task)]
            said = (
                f"{len(truth_s)} samples, {truth_s.min():g} to {truth_s.max():g}"
                if task.kind == "regression"
                else ", ".join(
                    f"{name} {int((truth_s == (name if task.kind == 'class' else code)).sum())}" for code, name in enumerate(task.order)
                )
            )
            rows.append([f"{task.kind} {task.column}", said])
        repeats = len({fold.repeat for fold in self.folds})
        tested = [int(fold.test_s.sum()) for fold in self.folds] or [0]
        sizes = " to ".join(dict.fromkeys([str(min(tested)), str(max(tested))]))
        said = f"{len(self.folds)} in {repeats} repeat{'s' * (repeats != 1)}; {sizes} samples tested"
        rows.append(["folds", said if self.folds else "none"])
        own = 1 + (self.config.sampleclr.n_networks if self.tasks else 0)
        rows.append(["networks to train", str(len(self.folds) * (own + bool(self.tasks)) + own)])
        for row in self.confounded.dropna(subset=["value"]).to_dict("records") if len(self.confounded) else ():
            rows.append(
                [f"{row['task']} and {row['covariate']}", f"{row['measure']} {row['value']:.2f}{' (strong)' if row['strong'] else ''}"]
            )
        return rows


def plan(path: Path, config: Config, say: Callable[[str], None]) -> Plan:
    """Read and check a file, share its donors out into folds, and say what the tasks are confounded with."""
    checked = open_cohort(path, config, represent)
    for note in checked.notes:
        say(f"note: {note}")
    cohort, tasks = checked.require_cohort(), checked.tasks
    config = config.replaced({"sampleclr.tasks": [f"{task.column}:{task.kind}" for task in tasks]})
    folds = sample_folds(cohort, tasks[0], config) if tasks else plain_folds(cohort, config)
    keys = [key for key in (config.data.batch_key, config.sampleclr.study_key, *config.sampleclr.covariates) if key]
    tables = [confounding(cohort, task, keys) for task in tasks]
    confounded = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    for row in confounded[confounded["strong"].astype(bool)].to_dict("records") if len(confounded) else ():
        say(
            f"warning: {row['task']} goes with {row['covariate']} ({row['measure']} {row['value']:.2f}): what predicts one predicts the "
            "other, and these samples cannot tell which it is"
        )
    return Plan(config, cohort, tasks, folds, confounded)


@dataclass(frozen=True)
class Trained:
    """What came of a run."""

    folder: ModelFolder
    evaluations: list[Evaluation]
    retrieval: pd.DataFrame
    metrics: dict[str, Any]
    lines: list[str]


def train_cohort(
    made: Plan,
    place: RunPlace,
    results: Path,
    *,
    force: bool,
    reporter: Reporter | None,
    tick: Callable[[str, int, int], None],
    say: Callable[[str], None],
) -> Trained:
    """Test by cross-validation, train on all samples, and write the results."""
    cohort, tasks, config = made.cohort, made.tasks, made.config
    graph_ss, notes = prior_graph(cohort, config, cohort.usable_s)
    for note in notes:
        say(note)
    prepared = prepare_samples(cohort, tasks, config, cohort.usable_s, graph_ss)
    config = config.replaced({"train.epochs": config.train.epochs or prepared.epochs(config.train.most_epochs)})
    place.open(run_settings("sampleclr", config, prepared))
    place.resume = True  # what is there from here on is of this run
    test = _Test(made, place, tick, say)
    evaluations = [evaluate_samples(cohort, task, test.contestants(task), made.folds, config, say) for task in tasks if made.folds]
    retrieval, robustness = test.retrieval() if made.folds else (pd.DataFrame(), pd.DataFrame())
    told = test.leaks()
    for line in prepared.notes:
        say(line)
    folder = run_training("sampleclr", BUILDERS["sampleclr"], prepared, config, place, stages=sample_stages, reporter=reporter)
    module, blocks = load_module(folder, BUILDERS["sampleclr"]), in_blocks(prepared.matrix, cohort.sample_n)
    seen = see(module, blocks, prepared.codes["batch"], tasks, prepared.about["scales"])
    table = embeddings_table(cohort, seen.embedded, [task.column for task in tasks])
    blends = {
        task.column: Blend.fit(
            task,
            [one[task.column] for one in seen.answers],
            seen.embedded.embedding_sd,
            codes(cohort, task),
            prepared.inner,
            shares(cohort, task),
        )
        for task in tasks
    }
    about = {"reach": reach(seen.embedded.embedding_sd[cohort.usable_s]), "blends": {name: one.to_json() for name, one in blends.items()}}
    folder = amend(folder, {"data": {**folder.manifest["data"], **about}}, {"embeddings": table})
    metrics = figures(
        evaluations,
        tasks,
        batch_key=config.data.batch_key,
        study_key=config.sampleclr.study_key,
        n_samples=len(cohort),
        network_weight=test.weights(),
        retrieval={row["name"]: {key: row[key] for key in ("top1", "low", "high", "chance")} for row in retrieval.to_dict("records")},
    )
    with result_folder(results, force=force) as partial:
        table.to_csv(partial / "embeddings.csv", index=False)
        distances_table(cohort, seen.embedded.embedding_sd).to_csv(partial / "distances.csv", index=False)
        stability = write_importance(partial, module, seen, blocks, cohort, np.random.default_rng(config.seed), tasks, test.evidence())
        metrics["importance_stability"] = stability
        for name, one in combined(
            evaluations,
            retrieval=retrieval,
            robustness=robustness,
            confounding=made.confounded,
            technical=combined(told).get("comparison", pd.DataFrame()),
        ).items():
            one.to_csv(partial / f"{name}.csv", index=False)
        write_json(partial / "metrics.json", metrics)
    return Trained(folder, evaluations, retrieval, metrics, [*_lines(evaluations, retrieval, test.weights()), *leaks(told)])


def _lines(evaluations: list[Evaluation], retrieval: pd.DataFrame, weights: dict[str, float]) -> list[str]:
    lines = verdicts(evaluations)
    lines += [f"{name}: the networks make up {share:.0%} of the answers, the linear probe the rest" for name, share in weights.items()]
    if len(retrieval):
        own, others = retrieval[retrieval["name"] == PROBED], retrieval[retrieval["name"] != PROBED]
        best = others.iloc[int(others["top1"].to_numpy().argmax())]
        lines.append(
            f"halves of held-out samples found: {own['top1'].iloc[0]:.3f} by the embedding, {best['top1']:.3f} by the best baseline "
            f"({best['name']}), {best['chance']:.3f} by chance"
        )
    return lines


class _Test:
    """Networks trained in each fold, and what is asked of them."""

    def __init__(self, made: Plan, place: RunPlace, tick: Callable[[str, int, int], None], say: Callable[[str], None]) -> None:
        self.made, self.done, self.tick, self.say = made, 0, tick, say
        self.baselines = baseline_contestants(made.cohort, made.config, say)
        self.total = len(made.folds) * (1 + bool(made.tasks))
        self.parts = Parts(made.cohort, made.config.seed)
        alone = made.config.replaced({"sampleclr.joint_contrast": 0.0, "sampleclr.gumbel": False, "sampleclr.label_smoothing": 0.0})
        given = made.cohort, made.tasks
        self.first = [fold for fold in made.folds if fold.repeat == 0]
        close = [fold.train_s for fold in self.first]
        self.networks = FoldNetworks(*given, made.config, self.parts.cells, close, place, "fold", True, partial(self._count, "SampleCLR"))
        self.alone = FoldNetworks(*given, alone, {}, (), place, "alone", False, partial(self._count, "attention alone"))

    def _count(self, what: str) -> None:
        self.done += 1
        self.tick(what, self.done, self.total)

    def contestants(self, task: Task) -> list[Contestant]:
        """Ours, then attention learned from the labels alone, then simple summaries."""
        return [
            Contestant(PROBED, "self-supervised", features=self.networks.embedding),
            Contestant(LEARNED, "self-supervised", features=self.networks.learned),
            Contestant(SUPERVISED, "supervised", predict=lambda train_s: self.networks.answers(train_s, task)),
            Contestant(ALONE, "baseline", predict=lambda train_s: self.alone.answers(train_s, task)),
            *self.baselines,
        ]

    def leaks(self) -> list[Evaluation]:
        """How well the batch of held-out samples can be told from the embedding, and from the mean of the cells; the less the better."""
        made, key = self.made, self.made.config.data.batch_key
        if key is None or not made.folds:
            return []
        names = sorted(set(text(made.cohort.table[key])) - {""})
        contestants = [Contestant(PROBED, "embedding", features=self.networks.embedding)]
        contestants += [one for one in self.baselines if one.name == "mean"]
        batches = Task(key, "class", tuple(map(str, names)))
        return leakage(made.cohort, [batches], contestants, made.config, self.say, made.folds)

    def weights(self) -> dict[str, float]:
        """Share of the networks in the answers, the rest is the probe's; mean over fits."""
        return {task.column: float(np.mean(self.networks.weights(task))) for task in self.made.tasks if self.made.folds}

    def evidence(self) -> pd.DataFrame | None:
        """What types of cells add to the answers for held-out donors; None without types, tasks or folds."""
        made = self.made
        if made.cohort.types_n is None or not made.tasks or not self.first:
            return None
        return evidence_by_type(made.cohort, made.tasks, lambda fold, task: self.networks.effects(fold.train_s, task), self.first)

    def retrieval(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Of the first repeat, in which every sample is held out once."""
        embeds = {PROBED: self.networks.by_part, **baseline_embeds(self.made.cohort, self.parts)}
        return retrieval_tables(self.made.cohort, embeds, self.first, self.parts)
