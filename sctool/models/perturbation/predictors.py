"""Predictors of a perturbation's change that need no more than means, by name."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches

from sctool.errors import SctoolError
from sctool.models.perturbation import baselines
from sctool.models.perturbation.baselines import Predictor
from sctool.models.perturbation.means import Means
from sctool.models.perturbation.mixture import Array
from sctool.models.perturbation.shrunken import Effects, shrunken

PREDICTORS: dict[str, tuple[Predictor, str]] = {
    "no_change": (baselines.no_change, "perturbed cells are as control cells"),
    "perturbed_mean": (baselines.perturbed_mean, "mean change over the training perturbations"),
    "train_mean": (baselines.train_mean, "mean change of the perturbation's own training cells"),
    "additive": (baselines.additive, "sum of the single changes"),
    "matching_mean": (baselines.matching_mean, "mean of the single changes"),
    "linear": (baselines.linear, "bilinear ridge regression on the targets' expression scores"),
    "knn": (baselines.knn, "mean of the training targets with the nearest expression scores"),
    "own_gene": (baselines.own_gene, "mean change, with the target's own change"),
    "lowrank": (baselines.lowrank, "training means or their sum, from the components above noise"),
    "shrunken": (shrunken, "hierarchical additive model of changes, noise and control (empirical Bayes)"),
}


CONTROLS: dict[str, Callable[[Means], Array]] = {"shrunken": lambda means: Effects.fit(means).control_g}
"""The control of predictors that have one of their own, shape (genes,)."""


def predictor(name: str) -> Predictor:
    """The predictor of this name.

    Raises
    ------
    SctoolError
        If there is none.
    """
    if name not in PREDICTORS:
        close = get_close_matches(name, PREDICTORS, 1)
        raise SctoolError(
            f"no predictor of changes is called {name!r}",
            hint=(f"did you mean {close[0]}? " if close else "") + f"there are {', '.join(PREDICTORS)}",
        )
    return PREDICTORS[name][0]
