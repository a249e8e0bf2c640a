"""Classifiers by name, with one set of parameters for every command."""

from __future__ import annotations

from collections.abc import Callable

from sctool.models.classify.base import Classifier
from sctool.models.classify.baselines import Majority, Neighbours
from sctool.models.classify.boosting import BoostedTrees
from sctool.models.classify.forest import Forest
from sctool.models.classify.linear import LogisticClassifier, SupportVectors
from sctool.sections import ClassifyConfig

BASELINES = ("knn", "majority")
"""Always run."""
MODELS = ("lr", "svm", "rf", "xgb", "mlp")
"""Those a user may ask for; ``mlp`` is trained by the engine."""
Make = Callable[[ClassifyConfig, int, int | None, str], Classifier]

_MAKERS: dict[str, Make] = {
    "lr": lambda config, seed, threads, device: LogisticClassifier(config.lr_c, seed),
    "svm": lambda config, seed, threads, device: SupportVectors(config.svm_c, seed),
    "rf": lambda config, seed, threads, device: Forest(config.rf, seed, threads),
    "xgb": lambda config, seed, threads, device: BoostedTrees(config.xgb, seed, threads, device),
    "knn": lambda config, seed, threads, device: Neighbours(seed),
    "majority": lambda config, seed, threads, device: Majority(),
}


def make_classifier(name: str, config: ClassifyConfig, *, seed: int = 0, threads: int | None = None, device: str = "cpu") -> Classifier:
    """A classifier that has learned nothing yet; ``mlp`` comes from :mod:`sctool.engine.classifiers`."""
    return _MAKERS[name](config, seed, threads, device)
