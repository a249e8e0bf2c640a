"""Detectors by their names on the command line, and the combination that is the default."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sctool.data.read import near
from sctool.errors import SctoolError
from sctool.models.novelty.base import Detector
from sctool.models.novelty.boundary import IsolationForest, OneClassSVM
from sctool.models.novelty.cells import CLASSIFIERS
from sctool.models.novelty.classifier import UNSURE, Unsure
from sctool.models.novelty.gaussian import Mahalanobis, TypeMahalanobis
from sctool.models.novelty.misfit import Misfit
from sctool.models.novelty.neighbours import LatentNeighbours, LocalOutlier, Neighbours
from sctool.models.novelty.reconstruction import Reconstruction


def _unsure(classifier: str, measure: str) -> Callable[[], Detector]:
    return lambda: Unsure(classifier, measure)


DETECTORS: dict[str, Callable[[], Detector]] = {
    "iforest": IsolationForest,
    "ocsvm": OneClassSVM,
    "lof": LocalOutlier,
    "knn": Neighbours,
    "mahalanobis": Mahalanobis,
    "mahalanobis-class": TypeMahalanobis,
    "pca-recon": Reconstruction,
    "misfit": Misfit,
    **{f"{name}-{measure}": _unsure(name, measure) for name in CLASSIFIERS for measure in UNSURE},
    "latent": LatentNeighbours,
}
DEFAULT = {"misfit": 1.0, "mahalanobis-class": 1.0, "lr-energy": 1.0, "xgb-energy": 2.0}
"""Members of the combination, with their weights: two that measure distance from every type, two that ask whether classifiers are sure."""
COMBINED = "default"
LATENT = "latent"


def members(methods: Sequence[str]) -> list[str]:
    """The detectors that must be fitted for these methods, each once."""
    return list(dict.fromkeys(name for method in methods for name in (DEFAULT if method == COMBINED else [method])))


def check_methods(methods: Sequence[str], *, latent: bool = False) -> list[str]:
    """The methods asked for, each once; none: the combination and its members.

    Raises
    ------
    SctoolError
        If there is no such method, with the nearest that there is.
    """
    names = [COMBINED, *(name for name in DETECTORS if name != LATENT or latent)]
    for method in methods:
        if method == LATENT and not latent:
            raise SctoolError("latent reads the latent space of a trained model", "give --model checkpoints/scvi/RUN, and a query")
        if method not in names:
            raise SctoolError(f"no detector {method!r}; there are: {', '.join(names)}", near(method, names))
    return list(dict.fromkeys(methods)) or [COMBINED, *DEFAULT]
