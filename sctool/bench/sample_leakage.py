"""How well technical columns can be told from representations of samples, beside what shuffled labels give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from sctool.bench.evaluation import Evaluation
from sctool.bench.sample_folds import sample_folds
from sctool.bench.samples import Contestant, evaluate_samples
from sctool.config import Config
from sctool.data.cohort import Cohort, Task
from sctool.errors import SctoolError

FOUND = 0.05
"""A p from which a technical column counts as found."""


def leakage(
    cohort: Cohort, technical: Sequence[Task], contestants: Sequence[Contestant], config: Config, say: Callable[[str], None] = print
) -> list[Evaluation]:
    """Probes of technical columns, whole donors held out whatever the folds of the targets are.

    A column that cannot be tested so, such as one with a batch of two donors, is left out.

    Parameters
    ----------
    technical
        Columns that should not be found.
    say
        Told what is left out and why.
    """
    by_donor = config.replaced({"sampleclr.cv": "auto"})
    found = []
    for task in technical:
        try:
            folds = sample_folds(cohort, task, by_donor)
        except SctoolError as error:
            say(f"note: traces of {task.column} are not tested: {error.message}")
            continue
        found.append(evaluate_samples(cohort, task, contestants, folds, by_donor, say))
    return found


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
