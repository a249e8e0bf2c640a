"""How well technical columns can be told from representations of samples, beside what shuffled labels give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sctool.bench.evaluation import Evaluation
from sctool.bench.sample_folds import FEWEST_DONORS, SampleFold, codes, sample_folds
from sctool.bench.samples import Contestant, evaluate_samples
from sctool.config import Config
from sctool.data.cohort import Cohort, Task
from sctool.errors import SctoolError

FOUND = 0.05
"""A p from which a technical column counts as found."""


def leakage(
    cohort: Cohort,
    tasks: Sequence[Task],
    contestants: Sequence[Contestant],
    config: Config,
    say: Callable[[str], None] = print,
    folds: Sequence[SampleFold] | None = None,
) -> list[Evaluation]:
    """Probes of technical columns, whole donors held out.

    A sample is tested in folds that train on ``FEWEST_DONORS`` other donors of its batch or more: a batch of one donor cannot be told from
    the donor, and samples of a batch that is not trained on would always be taken for another's. A column of which fewer than two batches
    are left is not tested.

    Parameters
    ----------
    tasks
        Columns that should not be found.
    say
        Told what is left out and why.
    folds
        In which contestants were fitted, if these are slow to fit; None: folds that spread each column's batches.
    """
    by_donor = config.replaced({"sampleclr.cv": "auto"})
    found = []
    for task in tasks:
        try:
            if folds is None:
                kept = _of_enough_donors(cohort, task, say)
                kept, own = _testable(cohort, kept, sample_folds(cohort, kept, by_donor), say)
            else:
                kept, own = _testable(cohort, task, folds, say)
        except SctoolError as error:
            say(f"note: traces of {task.column} are not tested: {error.message}")
            continue
        found.append(evaluate_samples(cohort, kept, contestants, own, by_donor, say))
    return found


def _of_enough_donors(cohort: Cohort, task: Task, say: Callable[[str], None]) -> Task:
    """Without batches of too few donors to test on one."""
    truth_s, known_s = cohort.truth(task), cohort.known(task)
    if task.kind != "class":
        return task
    donors = {name: len(set(cohort.donor_s[known_s & (truth_s == name)].tolist())) for name in task.order}
    few = [name for name in task.order if donors[name] <= FEWEST_DONORS]
    kept = tuple(name for name in task.order if name not in few)
    if len(kept) < 2:
        said = f"{len(kept)} of {len(task.order)} batches have more than {FEWEST_DONORS} donors"
        raise SctoolError(f"{task.column}: {said}", "give a column of batches of several donors")
    if few:
        say(f"note: {_batches(task, few)} of no more than {FEWEST_DONORS} donors: left out")
    return replace(task, order=kept)


def _testable(cohort: Cohort, task: Task, folds: Sequence[SampleFold], say: Callable[[str], None]) -> tuple[Task, list[SampleFold]]:
    """The batches that can be tested, and folds with the samples of these; see :func:`leakage`."""
    code_s = codes(cohort, task)
    known_s = cohort.usable_s & np.isfinite(code_s)
    if task.kind != "class":
        if not any((fold.test_s & known_s).any() and (fold.train_s & known_s).any() for fold in folds):
            raise SctoolError(f"{task.column}: no sample that is held out has a value", "give a column that is known of more samples")
        return task, list(folds)
    left: list[SampleFold] = []
    for repeat in sorted({fold.repeat for fold in folds}):
        part = [
            replace(fold, test_s=fold.test_s & _trained(cohort, code_s, fold.train_s & known_s)) for fold in folds if fold.repeat == repeat
        ]
        tested_s = np.any([fold.test_s for fold in part], axis=0)
        if len(set(code_s[tested_s].tolist())) > 1:  # of one batch there is nothing to tell apart
            left += [fold for fold in part if fold.test_s.any()]
    if not left:
        said = f"donors held out leave no two batches with {FEWEST_DONORS} donors to train on"
        raise SctoolError(f"{task.column}: {said}", "give a column of batches of several donors")
    held_s = known_s & np.any([fold.test_s for fold in folds], axis=0)
    tested_s = np.any([fold.test_s for fold in left], axis=0)
    never = [name for code, name in enumerate(task.order) if (held_s & (code_s == code)).any() and not (tested_s & (code_s == code)).any()]
    if never:
        say(f"note: {_batches(task, never)} of fewer than {FEWEST_DONORS} donors to train on where held out: left out")
    kept = tuple(name for code, name in enumerate(task.order) if (tested_s & (code_s == code)).any())
    asked_s = known_s & np.isin(code_s, np.unique(code_s[tested_s]))
    asked, done = (sum(int((fold.test_s & asked_s).sum()) for fold in some) for some in (folds, left))
    if done < asked:
        say(
            f"note: {task.column}: {asked - done} of {asked} tests of samples are left out, as too few donors of their batch are trained on"
        )
    return replace(task, order=kept), left


def _trained(cohort: Cohort, code_s: NDArray[np.float64], fit_s: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Samples of batches of which enough donors are fitted on."""
    enough = [code for code in np.unique(code_s[fit_s]) if len(set(cohort.donor_s[fit_s & (code_s == code)].tolist())) >= FEWEST_DONORS]
    return cohort.usable_s & np.isin(code_s, enough)


def _batches(task: Task, names: Sequence[str]) -> str:
    """Which values of a column."""
    listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"traces of {task.column} {listed}" if len(names) == 1 else f"traces of {len(names)} values of {task.column} ({listed})"


def leaks(evaluations: Sequence[Evaluation]) -> Iterator[str]:
    """A line for each technical column and embedding: whether it is found there, as far as the shuffles are enough to say so."""
    for one in evaluations:
        table, score = one.tables["comparison"], one.columns[0]
        for row in table[(table["score"] == score) & (table["arm"] == "embedding")].to_dict("records"):
            said, found = f"{score} {row['value']:.3f}", ""
            if np.isfinite(row["p"]):
                said += f", shuffled {row['null']:.3f}, p {row['p']:.3f}"
                found = " found" if row["p"] <= FOUND else " not found" if 1 / (one.about["permutations"] + 1) <= FOUND else ""
            yield f"{row['name']}: {one.about['target']}{found} ({said})"
