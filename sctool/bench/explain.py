"""Which genes decide, for each type: SHAP values where they are exact, else what is lost when a gene is shuffled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from sctool.data.labelled import Labelled
from sctool.engine.classify import Fitted
from sctool.metrics.classify import f1_macro_present
from sctool.models.classify.base import Classifier, dense
from sctool.models.classify.boosting import BoostedTrees
from sctool.models.classify.linear import Linear

TOP = 100
CELLS_OF_A_TYPE = 500
SHUFFLED = 60
REPEATS = 5


def quick_importance(fitted: Fitted, names: list[str]) -> pd.DataFrame:
    """``model, class, gene, importance, sign, rank, method`` of the 100 features that matter most, from the model alone.

    Linear models: the weight for each class. Trees: the gain, the same for all classes.
    """
    classifier = fitted.classifier
    found = classifier.importance() if classifier else None
    if found is None or classifier is None or not isinstance(classifier, Linear):
        weights, labels = fitted.importance_f[None], ("all",)
        method = "gain" if found is not None else "mean of models" if fitted.members else "none"
        return _table(fitted, names, labels, weights, np.zeros_like(weights), method)
    return _table(fitted, names, fitted.classes, np.abs(found), np.sign(found), "weight")


def explained(fitted: Fitted, cells: Labelled, rows: NDArray[np.int64], rng: np.random.Generator) -> pd.DataFrame:
    """The same from cells: the mean size of each feature's SHAP value for each class, or permutation importance.

    Parameters
    ----------
    fitted
        A model. SHAP values are exact for boosted trees (TreeSHAP) and linear models; for the others the features that matter most by
        their own measure (or vary most) are shuffled five times each and the loss of macro F1 is taken.
    cells, rows
        Cells to explain; at most 500 of a type. For permutation they must not have been trained on.
    """
    names, classifier = cells.genes["name"], fitted.classifier
    if classifier is None:
        return quick_importance(fitted, names)
    labels_n = cells.labels_n[rows]
    known = np.isin(labels_n, fitted.classes)
    kept = [rng.permutation(rows[known & (labels_n == label)])[:CELLS_OF_A_TYPE] for label in fitted.classes]
    chosen = np.sort(np.concatenate(kept))
    if not len(chosen):  # of no type that was trained
        return quick_importance(fitted, names)
    x_nf = fitted.features.transform(cells.x_ng[chosen])
    code_n = np.searchsorted(np.array(fitted.classes), cells.labels_n[chosen])
    if isinstance(classifier, (Linear, BoostedTrees)):
        sizes, signs = _shap(classifier, x_nf)
        return _table(fitted, names, fitted.classes, sizes, signs, "shap")
    lost_f = _shuffled(fitted, classifier, x_nf, code_n, rng)
    return _table(fitted, names, ("all",), lost_f[None], np.sign(lost_f)[None], "permutation")


def _shap(classifier: Linear | BoostedTrees, x_nf: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean size of the contributions, and whether more of the gene speaks for the class; shape (classes, features)."""
    total = np.zeros((classifier.n_classes, x_nf.shape[1]))
    slope = np.zeros_like(total)
    mean_f = np.asarray(x_nf.mean(0)).ravel()
    for start in range(0, x_nf.shape[0], 256):
        part = dense(x_nf[start : start + 256]) - mean_f
        if isinstance(classifier, Linear):
            phi_ncf = part[:, None] * (classifier.weight_cf - classifier.weight_cf.mean(0))
        else:
            phi_ncf = classifier.contributions(x_nf[start : start + 256])
        total += np.abs(phi_ncf).sum(0)
        slope += (phi_ncf * part[:, None]).sum(0)
    return total / max(x_nf.shape[0], 1), np.sign(slope)


def _shuffled(
    fitted: Fitted, classifier: Classifier, x_nf: Any, code_n: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Loss of macro F1 when a feature is shuffled among cells, for those that seem to matter most; 0 for the others."""
    x_nf = dense(x_nf)
    spread_f = x_nf.std(0)
    own_f = fitted.importance_f if classifier.importance() is not None else spread_f / max(float(spread_f.sum()), 1e-12)
    before = f1_macro_present(code_n, classifier.logits(sp.csr_matrix(x_nf)).argmax(1))
    lost_f = np.zeros(x_nf.shape[1])
    for at in np.argsort(-own_f, kind="stable")[:SHUFFLED]:
        column = x_nf[:, at].copy()
        for _ in range(REPEATS):
            x_nf[:, at] = rng.permutation(column)
            lost_f[at] += (before - f1_macro_present(code_n, classifier.logits(sp.csr_matrix(x_nf)).argmax(1))) / REPEATS
        x_nf[:, at] = column
    return lost_f


def _table(
    fitted: Fitted, names: list[str], labels: tuple[str, ...], sizes: NDArray[np.float64], signs: NDArray[np.float64], method: str
) -> pd.DataFrame:
    rows = []
    for label, size_f, sign_f in zip(labels, sizes, signs, strict=True):
        for rank, at in enumerate(np.argsort(-size_f, kind="stable")[:TOP], 1):
            gene = names[fitted.features.columns[at]]
            rows.append((fitted.name, label, gene, float(size_f[at]), int(sign_f[at]), rank, method))
    return pd.DataFrame(rows, columns=["model", "class", "gene", "importance", "sign", "rank", "method"])
