"""Several detectors on one space, each with scores of known cells it did not learn, from which thresholds and the combination come.

A raw score means nothing by itself, and cells that were learned score lower than new ones of the same type. So the known cells are also
cross-fitted: each third (whole donors or batches, where there are any) is scored by detectors that learned the other two. A new cell's
score is read against these: the threshold is what they exceed at the stated rate, and the combination adds up, over its members, the
(squared) share of them that the cell exceeds. No other cell of a query matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sctool.errors import SctoolError
from sctool.metrics.novelty import threshold
from sctool.models.novelty.base import Detector, Scores
from sctool.models.novelty.cells import Cells, Expression, Space
from sctool.models.novelty.registry import COMBINED, DEFAULT, DETECTORS, LATENT, members


@dataclass(frozen=True)
class Settings:
    """How detectors are fitted."""

    methods: tuple[str, ...]
    alpha: float = 0.05
    n_genes: int = 2000
    n_components: int = 50
    seed: int = 0
    threads: int | None = None


class NoveltyModel:
    """Fitted detectors.

    Parameters
    ----------
    methods
        What is scored: names of detectors, and ``default``.
    space
        What they read; None where it is the latent space of another model.
    detectors
        Those the methods need, by name.
    held_out
        Scores of cross-fitted known cells by detector, ascending.
    kept_nl
        Principal components (or latent codes) of the training cells, for detectors that keep them.
    """

    def __init__(
        self,
        methods: Sequence[str],
        space: Space,
        detectors: dict[str, Detector],
        held_out: dict[str, Scores],
        thresholds: dict[str, float],
        kept_nl: NDArray[Any] | None = None,
    ) -> None:
        self.methods, self.space, self.detectors = tuple(methods), space, detectors
        self.held_out, self.thresholds, self.kept_nl = held_out, thresholds, kept_nl

    @classmethod
    def fit(cls, known: Expression, code_n: NDArray[np.int64], folds: Sequence[NDArray[np.int64]], settings: Settings) -> NoveltyModel:
        """Fit on all known cells, and cross-fit for what is expected of new ones.

        Parameters
        ----------
        known
            Cells of known types.
        code_n
            Their types, 0 to K-1 without gaps.
        folds
            Rows of each part that is scored by detectors which learned the others.
        """
        # Genes are chosen once: with fewer in a fold than in the end, its scores would not compare. Types have no part in the choice.
        columns = known.variable(settings.n_genes)
        raw = {name: [] for name in members(settings.methods)}  # type: dict[str, list[Scores]]
        for fold in folds:
            rest = np.setdiff1d(np.arange(len(known)), fold)
            types, code_rest = np.unique(code_n[rest], return_inverse=True)
            own = fold[np.isin(code_n[fold], types)]  # a type only this part has is novel to the others
            if len(types) < 2 or not len(own):
                continue
            space, detectors, _ = _fit(known.take(rest), code_rest, columns, settings)
            cells = space.cells(known.take(own))
            for name, detector in detectors.items():
                raw[name].append(detector.score(cells))
        if not all(raw.values()):
            raise SctoolError("no part of the known cells can be scored by what the others teach", "give two types with several cells each")
        scores = {name: np.concatenate(parts) for name, parts in raw.items()}
        space, detectors, learned = _fit(known, code_n, columns, settings)
        kept = learned.pcs_nl if any(detector.keeps_cells for detector in detectors.values()) else None
        model = cls(settings.methods, space, detectors, {name: np.sort(score_n) for name, score_n in scores.items()}, {}, kept)
        model._set_thresholds(scores, settings.alpha)
        return model

    @classmethod
    def on_latent(cls, train_nl: NDArray[Any], held_out_nl: NDArray[Any], alpha: float) -> NoveltyModel:
        """Distances in the latent space of a trained model, with cells it was not trained on for the threshold; shapes (cells, latent)."""
        space = _no_space()
        detector = DETECTORS[LATENT]().fit(Cells(space, None, latent_nl=train_nl))
        scores = {LATENT: detector.score(Cells(space, None, latent_nl=held_out_nl))}
        model = cls([LATENT], space, {LATENT: detector}, {LATENT: np.sort(scores[LATENT])}, {}, train_nl)
        model._set_thresholds(scores, alpha)
        return model

    def score(self, cells: Cells) -> dict[str, Scores]:
        """Scores of each method, higher is stranger; each of shape (cells,)."""
        return self._with_combined({name: detector.score(cells) for name, detector in self.detectors.items()})

    def score_all(self, expression: Expression, columns_f: NDArray[np.int64] | None = None, chunk: int = 4096) -> dict[str, Scores]:
        """The same, in pieces of so many cells."""
        parts = [
            self.score(self.space.cells(expression.take(np.arange(start, min(start + chunk, len(expression)))), columns_f))
            for start in range(0, len(expression), chunk)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All that :meth:`from_arrays` needs beside the methods and thresholds."""
        out = {f"space/{name}": array for name, array in self.space.arrays().items()}
        for name, detector in self.detectors.items():
            out |= {f"detector/{name}/{key}": array for key, array in detector.arrays().items()}
            out[f"held_out/{name}"] = self.held_out[name]
        return out if self.kept_nl is None else out | {"kept_nl": self.kept_nl}

    @classmethod
    def from_arrays(
        cls, arrays: dict[str, NDArray[Any]], methods: Sequence[str], thresholds: dict[str, float | None], threads: int | None = None
    ) -> NoveltyModel:
        """Become the model that gave these arrays."""
        space, kept = Space.from_arrays(_below(arrays, "space/"), threads), arrays.get("kept_nl")
        detectors = {name: DETECTORS[name]() for name in members(methods)}
        learned = Cells(space, None, pcs_nl=kept, latent_nl=kept)
        for name, detector in detectors.items():
            if detector.keeps_cells:
                detector.fit(learned)
            else:
                detector.restore(_below(arrays, f"detector/{name}/"))
        limits = {name: float("inf") if value is None else value for name, value in thresholds.items()}
        return cls(methods, space, detectors, {name: arrays[f"held_out/{name}"] for name in detectors}, limits, kept)

    def _set_thresholds(self, scores: dict[str, Scores], alpha: float) -> None:
        self.thresholds = {name: threshold(score_n, alpha) for name, score_n in self._with_combined(scores).items()}

    def _with_combined(self, scores: dict[str, Scores]) -> dict[str, Scores]:
        if COMBINED in self.methods:
            scores = {**scores, COMBINED: combine(scores, self.held_out)}
        return {method: scores[method] for method in self.methods}


def combine(scores: dict[str, Scores], held_out: dict[str, Scores]) -> Scores:
    """Weighted mean, over the members, of the squared share of held-out known cells that a cell exceeds; between 0 and 1, shape (cells,).

    Shares make scores of any scale comparable, and hold the weight of a member that goes wild on one batch. Squares let a member that is
    alarmed count for more than one that is merely not at ease: members fail on different types.
    """
    total = sum(weight * exceeded(scores[name], held_out[name]) ** 2 for name, weight in DEFAULT.items())
    return np.asarray(total / sum(DEFAULT.values()), np.float64)


def exceeded(score_n: Scores, known_m: Scores) -> Scores:
    """Share of known scores (ascending) below each score, ties counting half; shape (cells,)."""
    below_n = np.searchsorted(known_m, score_n, "left") + np.searchsorted(known_m, score_n, "right")
    return np.asarray(below_n / (2 * len(known_m)), np.float64)


def _fit(
    known: Expression, code_n: NDArray[np.int64], columns: NDArray[np.int64], settings: Settings
) -> tuple[Space, dict[str, Detector], Cells]:
    detectors = {name: DETECTORS[name]() for name in members(settings.methods)}
    space, cells = Space.fit(
        known,
        code_n,
        {need for detector in detectors.values() for need in detector.needs},
        columns=columns,
        n_components=settings.n_components,
        seed=settings.seed,
        threads=settings.threads,
    )
    for detector in detectors.values():
        detector.fit(cells)
    return space, detectors, cells


def _no_space() -> Space:
    empty = np.zeros(0)
    return Space.from_arrays({"scale_f": empty, "filled_f": empty, "mean_f": empty, "loading_fl": np.zeros((0, 0))})


def _below(arrays: dict[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
