"""Which cells are better left without a label, by rules that say what they promise and for whom.

A softmax must name one of the types it knows; a rule of rejection lets it say "none that I am sure of". Two rules set their thresholds on
held-out cells: ``quantile`` keeps a share of the right calls of every type, ``conformal`` gives sets of types that hold the true one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sctool.errors import InputError, SctoolError

FORMS = "none, max_prob:0.5, quantile:0.95 or conformal:0.9"
FEWEST = 20
"""Right held-out calls that a type needs for a threshold of its own."""
_EPS = 1e-9  # so that a rank that is whole but for rounding is not moved by one


@dataclass(frozen=True)
class Rejector:
    """A rule of rejection, and what held-out cells made of it.

    ``kind`` and ``value`` are the rule; ``thresholds`` are a quantile rule's least probabilities by type, ``cut`` a conformal rule's
    largest score; ``cells`` and ``groups`` were held out (0 groups: cells were taken as exchangeable), and ``shared`` types have too few.
    """

    kind: str = "none"
    value: float = 0.0
    thresholds: tuple[float, ...] = ()
    cut: float | None = None
    cells: int = 0
    groups: int = 0
    shared: int = 0

    @classmethod
    def parse(cls, spec: str) -> Rejector:
        """The rule ``none``, ``max_prob:T``, ``quantile:Q`` or ``conformal:Q``; the last two reject nothing before :meth:`fit`."""
        kind, colon, number = spec.strip().partition(":")
        if kind == "none" and not colon:
            return cls()
        if kind not in ("max_prob", "quantile", "conformal"):
            raise SctoolError(f"unknown rule of rejection {spec!r}", f"give {FORMS}")
        try:
            value = float(number)
        except ValueError:
            value = float("nan")
        if not (0 <= value <= 1 if kind == "max_prob" else 0 < value < 1):
            raise SctoolError(f"rule of rejection {spec!r} needs a number between 0 and 1 after {kind}:", f"give {FORMS}")
        return cls(kind, value)

    @classmethod
    def fit(cls, spec: str, p_nk: NDArray[Any], truth_n: NDArray[Any], groups_n: NDArray[Any] | None = None) -> Rejector:
        """Set the thresholds of a rule on cells the classifier was not trained on.

        ``quantile:Q``: a type's threshold is the r-th smallest probability of its n right calls, r = floor((1 - Q)(n + 1)), so that a
        further right call of such cells is kept with probability Q or more, and so are these. Types with fewer than ``FEWEST`` share the
        threshold of all right calls.

        ``conformal:Q``: a type is in a cell's set if ``1 - p`` is at most the cut (LAC, Sadinle et al. 2019), and a cell is named if its
        set has one type. Without groups the cut is the ceil((n + 1) Q)-th smallest score of the true types, which holds for cells
        exchangeable with those held out. Cells of a donor are exchangeable among themselves only, and pooling them falls short for new
        donors. A mean of the groups' own quantiles is right for the typical group only, as a quantile of a mixture is not the mean of
        quantiles. Lee, Barber & Willett (2023) give every group the weight 1 / (K + 1), shared by its cells, and the new group's to an
        infinite score; the Q quantile of that holds for a random cell of a new group, on average over groups, and is used. It is infinite
        with fewer than Q / (1 - Q) groups (9 for 0.9), with which no method can promise Q. Then the cut is the largest of the groups' own
        quantiles: in all but one of K + 1 exchangeable groups the others' largest is no less than the group's own, hence Q K / (K + 1).
        Where held-out cells were called by models of other folds, all this holds as far as those are like the final one.

        Parameters
        ----------
        spec
            The rule.
        p_nk
            Calibrated probabilities of held-out cells.
        truth_n
            Their types, 0 to k - 1; cells at -1, of a type without a column, are left out.
        groups_n
            Their donors or cultures.
        """
        rule = cls.parse(spec)
        if rule.kind in ("none", "max_prob"):
            return rule
        p_nk, truth_n = np.asarray(p_nk, np.float64), np.asarray(truth_n, np.int64)
        if len(p_nk) != len(truth_n) or (len(truth_n) and truth_n.max() >= p_nk.shape[1]):
            raise InputError(
                f"probabilities of shape {p_nk.shape} do not fit {len(truth_n)} types", "give a row for every cell, a column for every type"
            )
        known_n = truth_n >= 0
        if not known_n.any():
            raise SctoolError(f"there are no held-out cells to set {spec!r} on", "hold out more cells, or give none or max_prob:0.5")
        p_nk, truth_n = p_nk[known_n], truth_n[known_n]
        if rule.kind == "quantile":
            thresholds, shared = _thresholds(p_nk, truth_n, rule.value)
            return cls(rule.kind, rule.value, thresholds, cells=len(truth_n), shared=shared)
        score_n = 1 - p_nk[np.arange(len(truth_n)), truth_n]
        code_n = pd.factorize(np.asarray(groups_n)[known_n], use_na_sentinel=False)[0] if groups_n is not None else np.zeros(1, np.int64)
        groups = int(code_n.max()) + 1
        if groups < 2:
            return cls(rule.kind, rule.value, cut=_rank(score_n, rule.value), cells=len(truth_n))
        return cls(rule.kind, rule.value, cut=_group_cut(score_n, code_n, rule.value), cells=len(truth_n), groups=groups)

    def rejects(self, p_nk: NDArray[Any]) -> NDArray[np.bool_]:
        """Whether each cell is left without a label, shape (cells,)."""
        p_nk = np.asarray(p_nk)
        if self.kind == "none":
            return np.zeros(len(p_nk), bool)
        if self.kind == "max_prob":
            return p_nk.max(1) < self.value
        if self.kind == "quantile":
            return p_nk.max(1) < np.array(self._fitted(p_nk).thresholds)[p_nk.argmax(1)]
        return self.sets(p_nk).sum(1) != 1

    def sets(self, p_nk: NDArray[Any]) -> NDArray[np.bool_]:
        """Which types each cell may be, shape (cells, types): of other rules than conformal its call, and none if it is rejected."""
        p_nk = np.asarray(p_nk)
        if self.kind == "conformal":
            cut = self._fitted(p_nk).cut
            return 1 - np.asarray(p_nk, np.float64) <= (1.0 if cut is None else cut)
        named_nk = np.arange(p_nk.shape[1]) == p_nk.argmax(1)[:, None]
        return named_nk & ~self.rejects(p_nk)[:, None]

    def _fitted(self, p_nk: NDArray[Any]) -> Rejector:
        if not self.cells:
            raise SctoolError(
                f"the rule {self.kind}:{self.value:g} is set on held-out cells when a model is trained",
                "give none or max_prob:0.5 here, or train with this rule",
            )
        if self.thresholds and len(self.thresholds) != p_nk.shape[1]:
            raise InputError(f"{p_nk.shape[1]} types, but thresholds of {len(self.thresholds)}", "use the rule of the model that was asked")
        return self

    @property
    def promise(self) -> str:
        """One sentence: what is promised, and for which cells. Empty where nothing is rejected."""
        q, n = f"{100 * self.value:g} %", f"{self.cells:,} held-out cells"
        if self.kind == "none":
            return ""
        if self.kind == "max_prob":
            return f"calls with a probability below {self.value:g} are left unassigned; what share of them is right is not promised"
        if not self.cells:
            return f"the rule {self.kind}:{self.value:g} is not set yet"
        if self.kind == "quantile":
            some = f" ({self.shared} types with few right calls share one threshold)" if self.shared else ""
            return (
                f"at least {q} of the right calls of each type keep their label, of cells like the {n}{some}; nothing is said of wrong ones"
            )
        if self.cut is not None and self.cut >= 1:
            return f"{n} are too few or too hard for {q}, so every type is possible for every cell and no cell is named"
        holds = "the set of possible types, which names a cell if it has one member, holds the true one"
        if not self.groups:
            return f"{holds} for at least {q} of cells like the {n}, if their type is a trained one; cells of new donors may differ"
        if _enough(self.groups, self.value):
            return f"{holds} for at least {q} of the cells of new groups like the {self.groups} held out, on average, if of a trained type"
        less = f"{100 * self.value * self.groups / (self.groups + 1):.0f} %"
        return (
            f"{holds} for at least {q} of the cells in each of the {self.groups} held-out groups, and {less} of those of new groups on "
            f"average, if of a trained type; so few groups can promise no more"
        )

    def to_json(self) -> dict[str, Any]:
        """As a dict of words, numbers and lists."""
        return {**vars(self), "thresholds": list(self.thresholds)}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Rejector:
        """What :meth:`to_json` gave."""
        return cls(**{**stored, "thresholds": tuple(stored["thresholds"])})


def _thresholds(p_nk: NDArray[np.float64], truth_n: NDArray[np.int64], share: float) -> tuple[tuple[float, ...], int]:
    call_n, confidence_n = p_nk.argmax(1), p_nk.max(1)
    right_n = call_n == truth_n

    def lowest(keep_n: NDArray[np.bool_]) -> float:
        sure = np.sort(confidence_n[keep_n])
        rank = int(np.floor((1 - share) * (len(sure) + 1) + _EPS))
        return float(sure[rank - 1]) if rank else 0.0

    own = [right_n & (call_n == k) for k in range(p_nk.shape[1])]
    few = [int(keep_n.sum()) < FEWEST for keep_n in own]
    pooled = lowest(right_n)
    return tuple(pooled if short else lowest(keep_n) for keep_n, short in zip(own, few, strict=True)), sum(few)


def _rank(score_n: NDArray[np.float64], share: float) -> float:
    rank = int(np.ceil((len(score_n) + 1) * share - _EPS))
    return float(np.sort(score_n)[rank - 1]) if rank <= len(score_n) else 1.0


def _enough(groups: int, share: float) -> bool:
    return groups / (groups + 1) >= share - _EPS


def _group_cut(score_n: NDArray[np.float64], code_n: NDArray[np.int64], share: float) -> float:
    cells_k = np.bincount(code_n)
    if not _enough(len(cells_k), share):
        parts = (np.sort(score_n[code_n == k]) for k in range(len(cells_k)))
        return max(float(part[int(np.ceil(share * len(part) - _EPS)) - 1]) for part in parts)
    order = np.argsort(score_n, kind="stable")
    mass = np.cumsum(1 / ((len(cells_k) + 1) * cells_k[code_n[order]]))
    at = min(int(np.searchsorted(mass, share - _EPS)), len(order) - 1)
    return float(score_n[order[at]])


def coverage_table(
    classes: Sequence[str],
    truth_n: NDArray[Any],
    p_nc: NDArray[Any],
    rejected_n: NDArray[np.bool_],
    sets_nc: NDArray[np.bool_] | None = None,
) -> pd.DataFrame:
    """What a rule did to the cells of each true type, most frequent first; NaN where there is nothing to take a share of.

    Returns
    -------
    ``label, cells``, ``kept`` (share with a label), ``accuracy_kept`` (right of those), ``kept_of_right`` (share of the right calls that
    kept their label) and, with ``sets_nc``, ``set_coverage`` (share whose set holds the true type) and ``set_size`` (mean).
    """
    truth_n, kept_n = np.asarray(truth_n, np.int64), ~np.asarray(rejected_n, bool)
    right_n = np.asarray(p_nc).argmax(1) == truth_n
    columns = {"cells": np.ones(len(truth_n)), "kept": kept_n, "right": right_n, "both": kept_n & right_n}
    if sets_nc is not None:
        columns |= {"set_coverage": sets_nc[np.arange(len(truth_n)), truth_n], "set_size": sets_nc.sum(1)}
    total = pd.DataFrame(columns).astype(float).groupby(truth_n).sum()
    table = pd.DataFrame({"label": np.array(classes, object)[total.index], "cells": total["cells"].astype(int)})
    table["kept"] = total["kept"] / total["cells"]
    table["accuracy_kept"] = (total["both"] / total["kept"]).where(total["kept"] > 0)
    table["kept_of_right"] = (total["both"] / total["right"]).where(total["right"] > 0)
    for name in ("set_coverage", "set_size"):
        if sets_nc is not None:
            table[name] = total[name] / total["cells"]
    return table.sort_values("cells", ascending=False, kind="stable", ignore_index=True)
