"""What classifiers answered to held-out cells, and every score, table and file that follows from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sctool.bench.evaluation import Evaluation
from sctool.config import Config
from sctool.data.folds import Fold
from sctool.data.labelled import Labelled
from sctool.engine.annotate import confidence_columns
from sctool.engine.classify import Fitted
from sctool.metrics import classify as m
from sctool.metrics import confusions as calls
from sctool.models.classify.registry import BASELINES
from sctool.models.classify.reject import coverage_table

RECOMMENDED = "recommended"
PUBLISHED = ("accuracy", "f1_macro", "roc_auc_macro_ovr")
COLUMNS = ("f1_macro_present", "accuracy", "balanced_accuracy", "ece", "coverage", "accuracy_assigned")
ROWS = 4096


@dataclass
class Answers:
    """What one model answered to the test cells of all folds."""

    rows: list[NDArray[np.int64]] = field(default_factory=list)
    p_nc: list[NDArray[np.float64]] = field(default_factory=list)
    rejected: list[NDArray[np.bool_]] = field(default_factory=list)
    trained: list[NDArray[np.bool_]] = field(default_factory=list)
    folds: list[str] = field(default_factory=list)
    sets: list[NDArray[np.bool_]] = field(default_factory=list)
    """With a conformal rule: the types each cell may be, shape (cells, classes)."""
    promise: str = ""

    @property
    def pooled(self) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]:
        """Rows of the test cells of all folds, their probabilities, and who was rejected."""
        return np.concatenate(self.rows), np.concatenate(self.p_nc), np.concatenate(self.rejected)

    @property
    def fold_n(self) -> NDArray[Any]:
        """The fold of each."""
        return np.repeat(self.folds, [len(rows) for rows in self.rows])

    @property
    def set_nc(self) -> NDArray[np.bool_] | None:
        """The sets of a conformal rule."""
        return np.concatenate(self.sets) if self.sets else None

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """The answers to the last fold, as arrays and what else there is, for :meth:`restore`."""
        arrays = {"rows": self.rows[-1], "p_nc": self.p_nc[-1], "rejected": self.rejected[-1], "trained": self.trained[-1]}
        return arrays | ({"sets": self.sets[-1]} if self.sets else {}), {"fold": self.folds[-1], "promise": self.promise}

    def restore(self, arrays: dict[str, NDArray[Any]], note: dict[str, Any]) -> None:
        """Take up the answers to a fold that was done before an interruption."""
        for name, array in arrays.items():
            getattr(self, name).append(array)
        self.folds.append(note["fold"])
        self.promise = note["promise"]

    def add(self, fold: Fold, fitted: Fitted, cells: Labelled, classes: NDArray[Any]) -> None:
        """Answer the test cells of a fold."""
        at = np.searchsorted(classes, np.array(fitted.classes))
        parts = [fold.test[start : start + ROWS] for start in range(0, len(fold.test), ROWS)]
        local_nc = np.concatenate([fitted.proba(cells.x_ng[part]) for part in parts])
        p_nc = np.zeros((len(fold.test), len(classes)))
        p_nc[:, at] = local_nc
        trained_c = np.zeros(len(classes), bool)
        trained_c[at] = True
        self.rows.append(fold.test)
        self.p_nc.append(p_nc)
        self.rejected.append(fitted.rejector.rejects(local_nc))
        self.trained.append(trained_c)
        self.folds.append(fold.name)
        if fitted.rejector.kind == "conformal":
            sets_nc = np.zeros((len(fold.test), len(classes)), bool)
            sets_nc[:, at] = fitted.rejector.sets(local_nc)
            self.sets.append(sets_nc)
        self.promise = fitted.rejector.promise


@dataclass(frozen=True)
class Pooled:
    """The answers of one model to the test cells of all folds, beside the truth."""

    cells: Labelled
    names: tuple[str, ...]
    answer: Answers
    rows: NDArray[np.int64]
    truth_n: NDArray[np.int64]
    p_nc: NDArray[np.float64]
    rejected: NDArray[np.bool_]

    @classmethod
    def of(cls, answer: Answers, cells: Labelled, classes: NDArray[Any]) -> Pooled:
        """All folds of a model one after the other."""
        rows, p_nc, rejected = answer.pooled
        return cls(cells, tuple(map(str, classes)), answer, rows, np.searchsorted(classes, cells.labels_n[rows]), p_nc, rejected)

    @cached_property
    def predicted_n(self) -> NDArray[np.int64]:
        """The most probable class."""
        return self.p_nc.argmax(1)

    @cached_property
    def groups_n(self) -> NDArray[Any] | None:
        """Donor or batch of each cell, where they are known."""
        return None if self.cells.groups_n is None else self.cells.groups_n[self.rows]

    @cached_property
    def trained_c(self) -> NDArray[np.bool_]:
        """Classes trained in any fold."""
        return np.any(self.answer.trained, axis=0)

    @cached_property
    def scores(self) -> dict[str, float]:
        """Over all cells."""
        return fold_scores(self.truth_n, self.p_nc, self.rejected, self.names, self.trained_c)

    def by_fold(self) -> Iterator[dict[str, Any]]:
        """A row of scores for each fold."""
        a, start = self.answer, 0
        for rows, trained_c, fold in zip(a.rows, a.trained, a.folds, strict=True):
            own = slice(start, start + len(rows))
            start += len(rows)
            scores = fold_scores(self.truth_n[own], self.p_nc[own], self.rejected[own], self.names, trained_c)
            yield {"fold": fold, "cells": len(rows), **scores}

    @cached_property
    def confusion(self) -> pd.DataFrame:
        """Cells of each true and predicted class."""
        return calls.confusion_table(self.truth_n, self.predicted_n, self.names)

    def coverage(self) -> pd.DataFrame:
        """What the rule of rejection did to each type."""
        return coverage_table(self.names, self.truth_n, self.p_nc, self.rejected, self.answer.set_nc)

    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables of one model, by file name."""
        truth_n, predicted_n, p_nc, groups_n, fold_n = self.truth_n, self.predicted_n, self.p_nc, self.groups_n, self.answer.fold_n
        return {
            "predictions": self._predictions(),
            "proba": self._proba(),
            "metrics_by_class": m.per_class_table(truth_n, predicted_n, p_nc, self.names, self.trained_c),
            "metrics_by_group": m.per_group_table(fold_n if groups_n is None else groups_n, truth_n, predicted_n),
            "reliability": m.reliability_table(p_nc, truth_n),
            "rejection": calls.risk_coverage_table(predicted_n == truth_n, p_nc.max(1)),
            "confusion_matrix": self.confusion.rename_axis("").reset_index(),
        }

    def documents(self, rng: np.random.Generator) -> dict[str, Any]:
        """Its ``metrics.json`` and scikit-learn's report."""
        from sklearn.metrics import classification_report

        scores = self.scores
        about = {
            "n_test": len(self.rows),
            "intervals_95": m.bootstrap_intervals(self.truth_n, self.predicted_n, self.groups_n, rng),
            "mean_over_folds": pd.DataFrame(self.by_fold())[list(COLUMNS)].mean().to_dict(),
            "reject_promise": self.answer.promise,
            "undefined": m.undefined_reasons(scores, self.truth_n, self.p_nc, self.trained_c),
            "definitions": m.DEFINITIONS,
        }
        labels = {"labels": range(len(self.names)), "target_names": list(self.names)}
        report = classification_report(self.truth_n, self.predicted_n, **labels, zero_division=0)
        return {"metrics.json": scores | about, "classification_report.txt": str(report)}

    def _predictions(self) -> pd.DataFrame:
        names = np.array(self.names, object)
        called = names[self.predicted_n]
        return pd.DataFrame(
            {
                "cell": self.cells.obs.index[self.rows],
                "y_true": names[self.truth_n],
                "y_pred": called,
                "y_true_idx": self.truth_n,
                "y_pred_idx": self.predicted_n,
                **confidence_columns(self.p_nc),
                "rejected": self.rejected,
                "label": np.where(self.rejected, m.UNASSIGNED, called),
                "group": "" if self.groups_n is None else self.groups_n,
                "fold": self.answer.fold_n,
            }
        )

    def _proba(self) -> pd.DataFrame:
        table = pd.DataFrame(self.p_nc.round(6), columns=list(self.names))
        table.insert(0, "cell", self.cells.obs.index[self.rows].to_numpy(), allow_duplicates=True)
        return table


def evaluate(answers: dict[str, Answers], chosen: list[str], cells: Labelled, classes: NDArray[Any], config: Config) -> Evaluation:
    """Scores, tables and files of what the models answered.

    Parameters
    ----------
    answers
        By model; ``recommended`` is one of them where there are several.
    chosen
        Which model was recommended in each fold.
    classes
        Types of training and test cells, sorted.
    """
    rng = np.random.default_rng(config.seed)
    pooled = {name: Pooled.of(answer, cells, classes) for name, answer in answers.items()}
    arms = {name: "baseline" if name in BASELINES else "prediction" for name in pooled}
    rows = [{"name": name, "arm": arms[name], "seed": config.seed, **row} for name, own in pooled.items() for row in own.by_fold()]
    tables = {f"{name}/{table}": content for name, own in pooled.items() for table, content in own.tables().items()}
    files: dict[str, Any] = {f"{name}/{file}": text for name, own in pooled.items() for file, text in own.documents(rng).items()}
    summary = {name: {key: own.scores[key] for key in dict.fromkeys((*PUBLISHED, *m.DEFINITIONS))} for name, own in pooled.items()}
    confusions = [calls.top_confusions(own.confusion).assign(model=name) for name, own in pooled.items()]
    tables |= {
        "summary_metrics": pd.DataFrame(summary).T.rename_axis("model").reset_index(),
        "top_confusions": pd.concat(confusions, ignore_index=True)[["model", "true", "predicted", "cells", "row_share"]],
        "rejection_by_type": pd.concat([own.coverage().assign(model=name) for name, own in pooled.items()], ignore_index=True),
        "disagreement": _disagreement({name: own.predicted_n for name, own in pooled.items()}),
    }
    names = tuple(map(str, classes))
    trained_c = [int((cells.labels_n[cells.train] == label).sum()) for label in classes]
    files |= {
        "summary_metrics.json": summary,
        "classes.json": {
            name: {"index": i, "train_seen": n > 0, "train_cells": n} for i, (name, n) in enumerate(zip(names, trained_c, strict=True))
        },
        "classes.txt": "\n".join(f"{i}\t{name}" for i, name in enumerate(names)),
    }
    shown = RECOMMENDED if RECOMMENDED in pooled else next(iter(pooled))
    notes = [f"{shown}: {line}" for line in calls.confusions_in_words(pooled[shown].confusion)]
    notes += [f"{shown}{line}" for line in _claims(pooled[shown], pooled["knn"], rng)]
    about = {"folds": sorted(set(answers[shown].folds)), "chosen_in_folds": chosen, "classes": list(names), "read": cells.about["read"]}
    return Evaluation("classify", pd.DataFrame(rows), COLUMNS, about, tables, notes=tuple(notes), files=files)


def fold_scores(
    truth_n: NDArray[np.int64], p_nc: NDArray[np.float64], rejected: NDArray[np.bool_], classes: tuple[str, ...], trained: NDArray[np.bool_]
) -> dict[str, float]:
    """Scores of all calls, with the share kept and the accuracy of those kept where there is a rule of rejection."""
    predicted_n = p_nc.argmax(1)
    scores = m.classify_scores(truth_n, predicted_n, p_nc, classes, trained)
    kept = ~rejected
    right = (predicted_n == truth_n)[kept]
    return scores | {"coverage": float(kept.mean()), "accuracy_assigned": float(right.mean()) if kept.any() else float("nan")}


def _claims(own: Pooled, knn: Pooled, rng: np.random.Generator) -> Iterator[str]:
    """The difference to the k-NN vote with its interval over groups, and whether the promise of rejection was kept."""
    made = m.paired_group_bootstrap(own.truth_n, own.predicted_n, knn.predicted_n, own.groups_n, rng)
    interval = f"{made['low']:+.3f} to {made['high']:+.3f}"
    yield f" - knn, macro F1: {made['difference']:+.3f} (95 % interval over {made['unit']} {interval})"
    right, kept, sets_nc = own.predicted_n == own.truth_n, ~own.rejected, own.answer.set_nc
    if sets_nc is not None:
        held = sets_nc[np.arange(len(own.rows)), own.truth_n].mean()
        yield f": the set of types holds the true one for {held:.1%} of the cells; {sets_nc.sum(1).mean():.2f} types on average"
    if not own.answer.promise or not right.any():
        return
    if not kept.any():
        yield ": no cell keeps its label"
        return
    shares = f"{kept.mean():.1%} of the cells keep their label ({kept[right].mean():.1%} of the right ones)"
    yield f": {shares}; {right[kept].mean():.1%} of these are right"


def _disagreement(pooled: dict[str, NDArray[np.int64]]) -> pd.DataFrame:
    """Share of test cells on which each two models differ; columns ``model`` and the models."""
    names = [name for name in pooled if name not in (RECOMMENDED, "majority")]
    share = [[float((pooled[a] != pooled[b]).mean()) for b in names] for a in names]
    return pd.DataFrame(share, columns=names).assign(model=names)[["model", *names]]
