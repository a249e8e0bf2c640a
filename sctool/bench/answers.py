"""What classifiers answered to held-out cells, and every score, table and file that follows from it."""

from __future__ import annotations

from dataclasses import dataclass, field
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


def evaluate(answers: dict[str, Answers], chosen: list[str], cells: Labelled, classes: NDArray[Any], config: Config) -> Evaluation:
    """Scores, tables and files of what the models answered."""
    rng = np.random.default_rng(config.seed)
    names = tuple(map(str, classes))
    truth_of = np.searchsorted(classes, cells.labels_n)
    rows: list[dict[str, Any]] = []
    tables: dict[str, pd.DataFrame] = {}
    documents: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    pooled: dict[str, NDArray[np.int64]] = {}
    confusions: list[pd.DataFrame] = []
    coverage: list[pd.DataFrame] = []
    for name, answer in answers.items():
        arm = "baseline" if name in BASELINES else "prediction"
        for part, p_nc, rejected, trained, fold in zip(
            answer.rows, answer.p_nc, answer.rejected, answer.trained, answer.folds, strict=True
        ):
            rows.append(
                {"name": name, "arm": arm, "fold": fold, "cells": len(part)} | fold_scores(truth_of[part], p_nc, rejected, names, trained)
            )
        part, p_nc, rejected = answer.pooled
        truth_n, predicted_n, trained = truth_of[part], p_nc.argmax(1), np.any(answer.trained, axis=0)
        groups_n = None if cells.groups_n is None else cells.groups_n[part]
        pooled[name] = predicted_n
        scores = fold_scores(truth_n, p_nc, rejected, names, trained)
        table = calls.confusion_table(truth_n, predicted_n, names)
        confusions.append(calls.top_confusions(table).assign(model=name))
        covered = coverage_table(names, truth_n, p_nc, rejected, answer.set_nc).assign(model=name)
        coverage.append(covered)
        group = np.full(len(part), "") if groups_n is None else groups_n
        tables |= {
            f"{name}/predictions": _predictions(cells, part, truth_n, p_nc, rejected, names, group, answer.fold_n),
            f"{name}/proba": _proba(cells, part, p_nc, names),
            f"{name}/metrics_by_class": m.per_class_table(truth_n, predicted_n, p_nc, names, trained),
            f"{name}/metrics_by_group": m.per_group_table(answer.fold_n if groups_n is None else groups_n, truth_n, predicted_n),
            f"{name}/reliability": m.reliability_table(p_nc, truth_n),
            f"{name}/rejection": calls.risk_coverage_table(predicted_n == truth_n, p_nc.max(1)),
            f"{name}/confusion_matrix": table.rename_axis("").reset_index(),
        }
        intervals = m.bootstrap_intervals(truth_n, predicted_n, groups_n, rng)
        reasons = m.undefined_reasons(scores, truth_n, p_nc, trained)
        own = pd.DataFrame([row for row in rows if row["name"] == name])
        folds_mean = own[list(COLUMNS)].mean().to_dict()
        documents[f"{name}/metrics.json"] = {
            **scores,
            "n_test": len(truth_n),
            "intervals_95": intervals,
            "mean_over_folds": folds_mean,
            "reject_promise": answer.promise,
            "undefined": reasons,
            "definitions": m.DEFINITIONS,
        }
        documents[f"{name}/classification_report.txt"] = _report(truth_n, predicted_n, names)
        summary[name] = {key: scores[key] for key in ("accuracy", "f1_macro", "roc_auc_macro_ovr", *m.DEFINITIONS) if key in scores}
    wide = pd.DataFrame(summary).T.rename_axis("model").reset_index()
    tables |= {
        "summary_metrics": wide,
        "top_confusions": pd.concat(confusions, ignore_index=True)[["model", "true", "predicted", "cells", "row_share"]],
        "rejection_by_type": pd.concat(coverage, ignore_index=True),
        "disagreement": _disagreement(pooled),
    }
    documents["summary_metrics.json"] = summary
    trained_cells = {str(label): int((cells.labels_n[cells.train] == label).sum()) for label in classes}
    documents["classes.json"] = {
        label: {"index": i, "train_seen": trained_cells[label] > 0, "train_cells": trained_cells[label]} for i, label in enumerate(names)
    }
    documents["classes.txt"] = "\n".join(f"{i}\t{label}" for i, label in enumerate(names))
    shown = RECOMMENDED if RECOMMENDED in answers else next(iter(answers))
    notes = [f"{shown}: {line}" for line in calls.confusions_in_words(_confusion_of(tables[f"{shown}/confusion_matrix"]))]
    notes += _claim(pooled, truth_of, answers, cells, shown, rng)
    about = {"folds": sorted(set(answers[shown].folds)), "chosen_in_folds": chosen, "classes": list(names), "read": cells.about["read"]}
    return Evaluation("classify", pd.DataFrame(rows), COLUMNS, about, tables, notes=tuple(notes), files=documents)


def fold_scores(
    truth_n: NDArray[np.int64], p_nc: NDArray[np.float64], rejected: NDArray[np.bool_], classes: tuple[str, ...], trained: NDArray[np.bool_]
) -> dict[str, float]:
    """Scores of all calls, with the share kept and the accuracy of those kept where there is a rule of rejection."""
    predicted_n = p_nc.argmax(1)
    scores = m.classify_scores(truth_n, predicted_n, p_nc, classes, trained)
    kept = ~rejected
    right = (predicted_n == truth_n)[kept]
    return scores | {"coverage": float(kept.mean()), "accuracy_assigned": float(right.mean()) if kept.any() else float("nan")}


def _predictions(
    cells: Labelled,
    rows: NDArray[np.int64],
    truth_n: NDArray[np.int64],
    p_nc: NDArray[np.float64],
    rejected: NDArray[np.bool_],
    classes: tuple[str, ...],
    group_n: NDArray[Any],
    fold_n: NDArray[Any],
) -> pd.DataFrame:
    names, predicted_n = np.array(classes, object), p_nc.argmax(1)
    table = pd.DataFrame(
        {
            "cell": cells.obs.index[rows],
            "y_true": names[truth_n],
            "y_pred": names[predicted_n],
            "y_true_idx": truth_n,
            "y_pred_idx": predicted_n,
            **confidence_columns(p_nc),
            "rejected": rejected,
            "label": np.where(rejected, m.UNASSIGNED, names[predicted_n]),
            "group": group_n,
            "fold": fold_n,
        }
    )
    return table


def _proba(cells: Labelled, rows: NDArray[np.int64], p_nc: NDArray[np.float64], classes: tuple[str, ...]) -> pd.DataFrame:
    table = pd.DataFrame(p_nc.round(6), columns=list(classes))
    table.insert(0, "cell", cells.obs.index[rows].to_numpy(), allow_duplicates=True)
    return table


def _report(truth_n: NDArray[np.int64], predicted_n: NDArray[np.int64], classes: tuple[str, ...]) -> str:
    from sklearn.metrics import classification_report

    return str(classification_report(truth_n, predicted_n, labels=range(len(classes)), target_names=list(classes), zero_division=0))


def _disagreement(pooled: dict[str, NDArray[np.int64]]) -> pd.DataFrame:
    """Share of test cells on which each two models differ; columns ``model`` and the models."""
    names = [name for name in pooled if name not in (RECOMMENDED, "majority")]
    share = [[float((pooled[a] != pooled[b]).mean()) for b in names] for a in names]
    return pd.DataFrame(share, columns=names).assign(model=names)[["model", *names]]


def _confusion_of(table: pd.DataFrame) -> pd.DataFrame:
    return table.set_index(table.columns[0])


def _claim(
    pooled: dict[str, NDArray[np.int64]],
    truth_of: NDArray[np.int64],
    answers: dict[str, Answers],
    cells: Labelled,
    shown: str,
    rng: np.random.Generator,
) -> list[str]:
    """The difference to the better of the k-NN vote and the second model, with its interval over groups."""
    lines = []
    rows, p_nc, rejected = answers[shown].pooled
    groups_n = None if cells.groups_n is None else cells.groups_n[rows]
    made = m.paired_group_bootstrap(truth_of[rows], pooled[shown], pooled["knn"], groups_n, rng)
    lines.append(
        f"{shown} - knn, macro F1: {made['difference']:+.3f} (95 % interval over {made['unit']} {made['low']:+.3f} to {made['high']:+.3f})"
    )
    right = p_nc.argmax(1) == truth_of[rows]
    sets_nc = answers[shown].set_nc
    if sets_nc is not None:
        held = sets_nc[np.arange(len(rows)), truth_of[rows]].mean()
        lines.append(
            f"{shown}: the set of types holds the true one for {held:.1%} of the cells; {sets_nc.sum(1).mean():.2f} types on average"
        )
    if answers[shown].promise and right.any():
        lines.append(
            f"{shown}: {1 - rejected.mean():.1%} of the cells keep their label ({(~rejected)[right].mean():.1%} of the right ones); "
            f"{right[~rejected].mean():.1%} of these are right"
            if (~rejected).any()
            else f"{shown}: no cell keeps its label"
        )
    return lines
