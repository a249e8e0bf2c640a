"""Representations and predictions of samples beside the baselines: the same donors held out, the same probe, intervals over donors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sctool.bench.evaluation import Evaluation
from sctool.bench.sample_confounding import confounding
from sctool.bench.sample_folds import SampleFold, codes, folds_table, sample_folds
from sctool.config import Config
from sctool.data.cohort import Cohort, Task
from sctool.errors import SctoolError
from sctool.metrics.sample_scores import LOWER, SCORES, scores_of
from sctool.metrics.sample_uncertainty import donor_draws, interval, permutation_p, shuffled
from sctool.models.samples.baselines import BASELINES, covariates
from sctool.models.samples.gloscope import MOST_SAMPLES
from sctool.models.samples.probe import NEIGHBOURS, Answers, Probe, called_classes, median_level

__all__ = ["Contestant", "SampleFold", "baseline_contestants", "confounding", "evaluate_samples", "sample_folds"]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
DRAWS = 1000
MOST_NULL_VALUES = 40_000_000
"""Of all shuffles' answers at once; larger cohorts are shuffled less often."""


@dataclass(frozen=True)
class Contestant:
    """What is compared: features of samples, on which a probe is fitted, or answers of its own.

    Attributes
    ----------
    arm
        ``baseline`` of what any learned representation is to be compared with.
    features
        From the samples to fit on to features of all samples, shape (samples, features); it does not see the task.
    predict
        From the samples to fit on to answers for all: probabilities (samples, classes or levels), or numbers (samples, 1).
        Those of classes are as if these were as frequent as among all samples of the task, whatever they are among those to fit on.
    neighbours
        For a probe of so many nearest training samples instead of the linear one.
    """

    name: str
    arm: str
    features: Callable[[Mask], NDArray[Any]] | None = None
    predict: Callable[[Mask], NDArray[Any]] | None = None
    neighbours: int = 0


def baseline_contestants(cohort: Cohort, config: Config, say: Callable[[str], None] = lambda text: None) -> list[Contestant]:
    """Every baseline with the linear probe, and with that of nearest neighbours those that are about distances.

    ``gloscope`` is left out of many samples, as each is compared with each; ``say`` is told.
    """
    made = []
    for name, (function, _) in BASELINES.items():
        if name == "gloscope" and len(cohort) > MOST_SAMPLES:
            say(f"note: the baseline gloscope is left out: it compares all {len(cohort)} samples, of more than {MOST_SAMPLES} too slowly")
            continue
        given: Callable[..., Floats] = partial(covariates, columns=config.sampleclr.covariates) if name == "covariates" else function
        features = partial(_features, given, cohort)
        made.append(Contestant(name, "baseline", features=features))
        if name in ("mean", "gloscope"):
            made.append(Contestant(f"{name}, nearest", "baseline", features=features, neighbours=NEIGHBOURS))
    return made


def _features(function: Callable[..., Floats], cohort: Cohort, train_s: Mask) -> Floats:
    return function(cohort, train_s, None)


@dataclass
class _Answered:
    """Out-of-fold answers of a contestant, and those it would have given had labels been shuffled.

    Probabilities of classes are at the frequencies of the cohort, at which folds can be ranked together.
    """

    contestant: Contestant
    values_rsc: Floats
    called_rs: Floats
    null_values_brsc: Floats | None
    null_called_brs: Floats | None
    scores: list[dict[str, float]] = field(default_factory=list)
    draws: dict[str, Floats] = field(default_factory=dict)
    nulls: dict[str, Floats] = field(default_factory=dict)


def evaluate_samples(
    cohort: Cohort,
    task: Task,
    contestants: Sequence[Contestant],
    folds: Sequence[SampleFold],
    config: Config,
    say: Callable[[str], None] = lambda text: None,
) -> Evaluation:
    """Score contestants on samples of donors they were not fitted on.

    Scores are of all samples of a repeat together, each answered in the fold that held it out, and their mean over repeats. Intervals
    come from drawing donors; p from shuffling labels (``permuted``: ``labels``, the probe fitted anew on each shuffle; or ``answers``, for
    contestants with answers of their own, which are too slow to fit so often); differences are against the best baseline, on the same
    draws of donors. Folds balance classes only roughly, so that scores pooled over folds lie a little below chance where there is nothing
    to learn (``null``); p takes that into account.

    Probabilities are at the class frequencies of the cohort where folds share it out, else (a study held out) at those in training; ranks
    are not touched by that, and a class is called where it is most probable beside its frequency.

    Parameters
    ----------
    folds
        Of :func:`sample_folds`, maybe of another task: samples without a truth of this one are left out, and folds without any to fit on.
    config
        ``sampleclr.permutations`` and ``seed``.
    say
        Told what is left out.

    Raises
    ------
    SctoolError
        If there is nothing to test, or an answer is missing.
    """
    truth_s = codes(cohort, task)
    known_s = cohort.usable_s & np.isfinite(truth_s)
    folds = list(_of_use(folds, task, truth_s, known_s, say))
    if not folds or not contestants:
        raise SctoolError(f"no sample of {task.column} is held out, or nothing is to be tested", "give folds with samples that are tested")
    tested_s = np.zeros(len(truth_s), bool)
    tested_s[np.flatnonzero(known_s & np.any([fold.test_s for fold in folds], axis=0))] = True
    rng = np.random.default_rng(config.seed)
    n_outputs = 1 if task.kind == "regression" else len(task.order)
    repeats = sorted({fold.repeat for fold in folds})
    # every shuffle's answers are kept until all folds are done
    fits = MOST_NULL_VALUES // max(1, len(repeats) * len(truth_s) * n_outputs * sum(c.features is not None for c in contestants))
    n_null = min(config.sampleclr.permutations, max(20, fits))
    if n_null < config.sampleclr.permutations:
        say(f"labels of {int(known_s.sum())} samples are shuffled {n_null} times instead of {config.sampleclr.permutations}")
    null_bs = np.full((n_null, len(truth_s)), np.nan)
    if n_null:
        null_bs[:, known_s] = shuffled(truth_s[known_s], cohort.donor_s[known_s], rng, n_null)
    truth_bs = np.vstack([truth_s, null_bs])
    answered = _answers(cohort, task, contestants, folds, truth_bs, repeats)
    shift_brsc = _shift(task, folds, truth_bs, known_s, repeats)
    draw_bs = donor_draws(cohort.donor_s[tested_s], rng, DRAWS)
    for one in answered:
        _score(one, task.kind, truth_bs, tested_s, draw_bs, shift_brsc)
        if shift_brsc is not None:
            one.values_rsc = _shifted(one.values_rsc, shift_brsc[0])
    donors = len(set(cohort.donor_s[tested_s].tolist()))
    comparison = _comparison(answered, task, donors, int(tested_s.sum()))
    rows = [
        {"name": one.contestant.name, "arm": one.contestant.arm, "seed": repeat, "task": task.column, **score}
        for one in answered
        for repeat, score in zip(repeats, one.scores, strict=True)
    ]
    tables = {
        "comparison": comparison,
        "predictions": pd.concat(_predictions(cohort, task, answered, folds, truth_s, repeats), ignore_index=True),
        "folds": folds_table(cohort, list(folds)),
    }
    return Evaluation(
        task="samples",
        scores=pd.DataFrame(rows),
        columns=SCORES[task.kind],
        about=_about(cohort, task, truth_s, tested_s, folds, n_null, comparison),
        tables=tables,
        decide=SCORES[task.kind][:1],
        notes=tuple(_notes(comparison, SCORES[task.kind][0])),
    )


def _answers(
    cohort: Cohort, task: Task, contestants: Sequence[Contestant], folds: Sequence[SampleFold], truth_bs: Floats, repeats: list[int]
) -> list[_Answered]:
    """Answers under the true labels and, of contestants with features, under each shuffle, fold by fold."""
    n, labellings = truth_bs.shape[1], len(truth_bs)
    n_outputs = 1 if task.kind == "regression" else len(task.order)
    known_s = cohort.usable_s & np.isfinite(truth_bs[0])
    prior_c = None if task.kind != "class" else _shares(truth_bs[0, known_s], n_outputs)
    made = []
    for contestant in contestants:
        layers = labellings if contestant.features is not None else 1
        values, called = np.full((layers, len(repeats), n, n_outputs), np.nan), np.full((layers, len(repeats), n), np.nan)
        null = (values[1:], called[1:]) if layers > 1 else (None, None)
        made.append(_Answered(contestant, values[0], called[0], *null))
    for fold in folds:
        at, test_s, fit_s = repeats.index(fold.repeat), fold.test_s & known_s, fold.train_s & known_s
        features: dict[int, NDArray[Any]] = {}
        for one in made:
            own = one.contestant
            if own.features is not None:
                key = id(own.features)
                if key not in features:
                    features[key] = np.asarray(own.features(fold.train_s), np.float64)
                x_sf = features[key]
                got = Probe(task.kind, n_outputs, own.neighbours).answers(x_sf[fit_s], truth_bs[:, fit_s], x_sf[test_s], prior_c)
            elif own.predict is not None:
                got = _own_answers(own, task, np.asarray(own.predict(fold.train_s), np.float64)[test_s], n_outputs, prior_c)
            else:
                raise SctoolError(f"{own.name} has neither features nor answers", "give one of them")
            one.values_rsc[at, test_s], one.called_rs[at, test_s] = got.values_bsc[0], got.called_bs[0]
            if one.null_values_brsc is not None and one.null_called_brs is not None:
                one.null_values_brsc[:, at, test_s], one.null_called_brs[:, at, test_s] = got.values_bsc[1:], got.called_bs[1:]
    return made


def _own_answers(contestant: Contestant, task: Task, values_sc: Floats, n_outputs: int, share_c: Floats | None) -> Answers:
    if values_sc.ndim != 2 or values_sc.shape[1] != n_outputs or not np.isfinite(values_sc).all():
        raise SctoolError(
            f"{contestant.name}: answers of shape {values_sc.shape} are not finite or do not fit {n_outputs} of {task.column}",
            "look for samples without cells, or for a fold that failed to train",
        )
    if task.kind == "regression":
        called_s = values_sc[:, 0]
    elif share_c is None:
        called_s = median_level(1 - np.cumsum(values_sc, 1)[:, :-1])
    else:
        called_s = called_classes(values_sc, share_c)
    return Answers(values_sc[None], called_s[None])


def _of_use(folds: Sequence[SampleFold], task: Task, truth_s: Floats, known_s: Mask, say: Callable[[str], None]) -> Iterator[SampleFold]:
    """Folds with samples to test and to fit on; says which have none to fit on, or none of some class (they were made for another task)."""
    empty, lacking = [], []
    for fold in folds:
        if not (fold.test_s & known_s).any():
            continue
        where, fit_s = f"{fold.name} of repeat {fold.repeat + 1}", fold.train_s & known_s
        if not fit_s.any():
            empty.append(where)
            continue
        if task.kind == "class":
            absent = sorted(set(truth_s[known_s].tolist()) - set(truth_s[fit_s].tolist()))
            lacking += [f"{where} lacks {task.order[int(code)]!r}" for code in absent]
        yield fold
    if empty:
        say(f"note: {task.column} is not known of any sample to train on in {len(empty)} folds, e.g. {empty[0]}: they are left out")
    if lacking:
        say(f"note: {task.column}: not every fold trains on every class: {', '.join(lacking[:3])}{' and others' * (len(lacking) > 3)}")


def _shares(code_s: Floats, n_classes: int) -> Floats:
    """How frequent classes are, over the last axis."""
    return (code_s[..., None] == np.arange(n_classes)).mean(-2)


def _shift(task: Task, folds: Sequence[SampleFold], truth_bs: Floats, known_s: Mask, repeats: list[int]) -> Floats | None:
    """By what the odds of classes are multiplied to be at those in training rather than in the cohort, where folds don't share it out.

    Shape (labellings, repeats, samples, classes). A class that is not trained on counts as half a sample.
    """
    if task.kind != "class" or all(fold.shared for fold in folds):
        return None
    classes = len(task.order)
    share_c = _shares(truth_bs[0, known_s], classes)
    made = np.ones((len(truth_bs), len(repeats), truth_bs.shape[1], classes))
    for fold in folds:
        if not fold.shared:
            fit_s = fold.train_s & known_s
            trained_bc = np.maximum(_shares(truth_bs[:, fit_s], classes), 0.5 / fit_s.sum())
            by_bc = np.divide(trained_bc, share_c, out=np.zeros(trained_bc.shape), where=share_c > 0)
            made[:, repeats.index(fold.repeat), fold.test_s] = by_bc[:, None]
    return made


def _shifted(p_sc: Floats, shift_sc: Floats) -> Floats:
    odds_sc = p_sc * shift_sc
    return odds_sc / np.maximum(odds_sc.sum(-1, keepdims=True), 1e-300)


def _score(one: _Answered, kind: str, truth_bs: Floats, tested_s: Mask, draw_bs: Floats, shift_brsc: Floats | None) -> None:
    """Scores of each repeat, and means over repeats of each draw of donors and of each shuffle."""
    drawn: list[dict[str, Floats]] = []
    weight_bs = np.vstack([np.ones((1, draw_bs.shape[1])), draw_bs])
    tested = [tested_s & np.isfinite(called_s) for called_s in one.called_rs]
    for r, (values_sc, called_s, rows_s) in enumerate(zip(one.values_rsc, one.called_rs, tested, strict=True)):
        own_bs, rank_sc = weight_bs[:, rows_s[tested_s]], values_sc[rows_s]
        shown_sc = rank_sc if shift_brsc is None else _shifted(rank_sc, shift_brsc[0, r, rows_s])
        drawn.append(scores_of(kind, truth_bs[0, rows_s], shown_sc, called_s[rows_s], own_bs, rank_sc))
    one.scores = [{name: float(score_b[0]) for name, score_b in each.items()} for each in drawn]
    one.draws = {name: np.mean([each[name][1:] for each in drawn], axis=0) for name in drawn[0]}
    nulls: list[dict[str, float]] = []
    for b, null_s in enumerate(truth_bs[1:]):
        by_repeat = []
        for r, rows_s in enumerate(tested):
            values_sc = one.values_rsc[r] if one.null_values_brsc is None else one.null_values_brsc[b, r]
            called_s = one.called_rs[r] if one.null_called_brs is None else one.null_called_brs[b, r]
            # answers of their own were not fitted to the shuffle
            of, rank_sc = 0 if one.null_values_brsc is None else b + 1, values_sc[rows_s]
            shown_sc = rank_sc if shift_brsc is None else _shifted(rank_sc, shift_brsc[of, r, rows_s])
            by_repeat.append(scores_of(kind, null_s[rows_s], shown_sc, called_s[rows_s], rank_nc=rank_sc))
        nulls.append({name: float(np.mean([each[name][0] for each in by_repeat])) for name in by_repeat[0]})
    one.nulls = {name: np.array([each[name] for each in nulls]) for name in drawn[0]}


def _comparison(answered: list[_Answered], task: Task, donors: int, samples: int) -> pd.DataFrame:
    """A row for each contestant and score; see :func:`evaluate_samples`."""
    rows = []
    for score in SCORES[task.kind]:
        higher = score not in LOWER
        value = {one.contestant.name: float(np.mean([each[score] for each in one.scores])) for one in answered}
        baselines = [one for one in answered if one.contestant.arm == "baseline" and np.isfinite(value[one.contestant.name])]
        best = max(baselines, key=lambda one: (1 if higher else -1) * value[one.contestant.name]) if baselines else None
        for one in answered:
            name = one.contestant.name
            _, low, high = interval(value[name], one.draws[score], donors)
            row: dict[str, Any] = {"task": task.column, "name": name, "arm": one.contestant.arm, "score": score, "value": value[name]}
            row |= {"low": low, "high": high, "p": permutation_p(value[name], one.nulls[score], higher_is_better=higher)}
            known = one.nulls[score][np.isfinite(one.nulls[score])]
            row |= {"null": float(known.mean()) if len(known) else np.nan, "permuted": "labels" if one.contestant.features else "answers"}
            row |= {"n_donors": donors, "n_samples": samples}
            if best is not None and best is not one:
                other = best.contestant.name
                apart = interval(value[name] - value[other], one.draws[score] - best.draws[score], donors)
                row |= {"against": other, "difference": apart.value, "difference_low": apart.low, "difference_high": apart.high}
            rows.append(row)
    columns = ["against", "difference", "difference_low", "difference_high"]
    table = pd.DataFrame(rows)
    return table.reindex(columns=[*[c for c in table if c not in columns], *columns])


def _predictions(
    cohort: Cohort, task: Task, answered: list[_Answered], folds: Sequence[SampleFold], truth_s: Floats, repeats: list[int]
) -> Iterator[pd.DataFrame]:
    """Out-of-fold answers, a row for each contestant, repeat and sample."""
    order = np.array(task.order, object)
    for one in answered:
        for fold in folds:
            r = repeats.index(fold.repeat)
            rows = np.flatnonzero(fold.test_s & np.isfinite(one.called_rs[r]))
            values_sc, called_s = one.values_rsc[r, rows], one.called_rs[r, rows]
            named = task.kind != "regression"
            table = pd.DataFrame({"sample": cohort.samples[rows], "donor": cohort.donor_s[rows], "task": task.column})
            table["repeat"], table["fold"], table["name"] = fold.repeat, fold.name, one.contestant.name
            table["truth"] = order[truth_s[rows].astype(int)] if named else truth_s[rows]
            table["prediction"] = order[called_s.astype(int)] if named else called_s
            if task.kind == "ordinal":
                table["expected"] = values_sc @ np.arange(len(order))
            for code, name in enumerate(task.order if named else ()):
                table[f"p_{name}"] = values_sc[:, code]
            yield table


def _about(
    cohort: Cohort, task: Task, truth_s: Floats, tested_s: Mask, folds: Sequence[SampleFold], n_null: int, comparison: pd.DataFrame
) -> dict[str, Any]:
    by_class = {}
    for code, name in enumerate(task.order if task.kind != "regression" else ()):
        own_s = tested_s & (truth_s == code)
        by_class[name] = {"samples": int(own_s.sum()), "donors": len(set(cohort.donor_s[own_s].tolist()))}
    first = comparison[comparison["score"] == SCORES[task.kind][0]]
    return {
        "target": task.column,
        "kind": task.kind,
        "order": list(task.order),
        "samples": int(tested_s.sum()),
        "donors": len(set(cohort.donor_s[tested_s].tolist())),
        "by_class": by_class,
        "folds": len(folds),
        "repeats": len({fold.repeat for fold in folds}),
        "permutations": n_null,
        "baselines": {name: text for name, (_, text) in BASELINES.items() if name in set(comparison["name"])},
        "comparison": {row["name"]: {key: row[key] for key in ("value", "low", "high", "p", "null")} for row in first.to_dict("records")},
    }


def _notes(comparison: pd.DataFrame, score: str) -> Iterator[str]:
    """What each contestant differs by from the best baseline."""
    own = comparison[(comparison["score"] == score) & (comparison["arm"] != "baseline")].dropna(subset=["difference"])
    for row in own.to_dict("records"):
        text = f"{row['name']} - {row['against']}, {score}: {row['difference']:+.3f}"
        if np.isfinite(row["difference_low"]):
            text += f" (95 % interval {row['difference_low']:+.3f} to {row['difference_high']:+.3f} over {row['n_donors']} donors)"
        yield text
