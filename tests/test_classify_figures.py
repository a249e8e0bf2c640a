"""Figures of classification, from small tables made here."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest

from sctool.report.classify import classify_figures, confusion_map, curve_figures

LONG = ["CD8+/CD45RA+ Naive Cytotoxic T lymphocyte of blood", "CD4+ T helper 17", "$a$ priced_type", "NA"]


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def answered(classes, n=160, seed=0, absent=(), skill=1.5):
    """True codes and probabilities of made-up cells."""
    rng = np.random.default_rng(seed)
    truth = rng.choice([c for c in range(len(classes)) if c not in absent], n)
    logits = rng.normal(size=(n, len(classes)))
    logits[np.arange(n), truth] += skill
    p = np.exp(logits)
    return truth, (p / p.sum(1, keepdims=True)).round(6)


def by_class(truth, predicted, classes, trained, *, proba):
    cells, called = (np.bincount(codes, minlength=len(classes)) for codes in (truth, predicted))
    right = np.bincount(truth[truth == predicted], minlength=len(classes))
    f1 = np.divide(2 * right, cells + called, out=np.full(len(classes), np.nan), where=cells + called > 0)
    area = np.where((cells > 0) & proba, 0.8, np.nan)
    table = {"label": list(classes), "cells": cells, "predicted": called, "f1": f1, "roc_auc": area, "auprc": area, "trained": trained}
    return pd.DataFrame(table).sort_values("cells", ascending=False, kind="stable")


def write_model(run, name, classes, truth, p, *, untrained=(), proba=True):
    """The tables of one model; returns its rows of scores."""
    folder = run / name
    folder.mkdir(parents=True)
    predicted, labels = p.argmax(1), np.array(classes, object)
    right, confidence = truth == predicted, p.max(1)
    confusion = pd.DataFrame(0, index=list(classes), columns=list(classes))
    np.add.at(confusion.values, (truth, predicted), 1)
    confusion.rename_axis("").reset_index().to_csv(folder / "confusion_matrix.csv", index=False)
    trained = ~np.isin(np.arange(len(classes)), untrained)
    by_class(truth, predicted, classes, trained, proba=proba).to_csv(folder / "metrics_by_class.csv", index=False)
    cells = [f"c{i}" for i in range(len(truth))]
    calls = {"cell": cells, "y_true": labels[truth], "y_pred": labels[predicted], "rejected": confidence < 0.4}
    pd.DataFrame(calls).to_csv(folder / "predictions.csv", index=False)
    if proba:
        bins = pd.DataFrame({"bin": np.minimum(confidence * 10, 9).astype(int), "confidence": confidence, "accuracy": right})
        table = bins.groupby("bin").mean().reindex(range(10))  # an empty bin has no accuracy
        table.insert(0, "cells", np.bincount(bins["bin"], minlength=10))
        table.assign(low=np.arange(10) / 10, high=np.arange(1, 11) / 10).to_csv(folder / "reliability.csv", index=False)
        order, kept = np.argsort(-confidence), np.arange(1, len(truth) + 1)
        share = {"coverage": kept / len(truth), "accuracy": np.cumsum(right[order]) / kept, "threshold": confidence[order]}
        pd.DataFrame(share).to_csv(folder / "rejection.csv", index=False)
        table = pd.DataFrame(p, columns=list(classes))
        table.insert(0, "cell", cells)
        table.to_csv(folder / "proba.csv", index=False)
    genes = [
        {"model": name, "class": label, "gene": f"GENE{g}", "importance": 1 / (g + 1), "sign": (-1) ** g, "rank": g + 1}
        for label in classes
        for g in range(10)
    ]
    pd.DataFrame(genes).to_csv(folder / "importance.csv", index=False)
    score = {
        "f1_macro_present": right.mean(),
        "accuracy": right.mean(),
        "ece": 0.1 if proba else np.nan,
        "coverage": 0.0 if not proba else 0.9,
    }
    score |= {"balanced_accuracy": right.mean(), "accuracy_assigned": np.nan if not proba else right.mean()}
    arm = "baseline" if name in ("knn", "majority") else "prediction"
    return [{"name": name, "arm": arm, "fold": fold, "cells": len(truth) // 2, **score} for fold in ("f0", "f1")]


def write_run(
    run,
    classes,
    *,
    n=160,
    models=("recommended", "lr", "svm", "rf", "knn"),
    absent=(),
    untrained=(),
    without_proba=(),
    chosen=("lr", "svm"),
):
    rows = []
    for seed, name in enumerate(models):
        truth, p = answered(classes, n, absent=absent, skill=2.5 - 0.4 * seed)
        rows += write_model(run, name, classes, truth, p, untrained=untrained, proba=name not in without_proba)
    (run / "recommended" / "importance.csv").unlink(missing_ok=True)  # it stands for another, which has it
    pd.DataFrame(rows).to_csv(run / "scores.csv", index=False)
    (run / "metrics.json").write_text(json.dumps({"task": "classify", "chosen_in_folds": list(chosen)}))
    (run / "run.json").write_text(json.dumps({"recommended": chosen[0]}))
    return run


def names(made):
    assert all(path.exists() and path.stat().st_size > 500 for path in made)
    return {path.stem for path in made}


def test_every_figure_of_a_run(tmp_path):
    run = write_run(tmp_path / "run", LONG, absent=[1], untrained=[2])
    made = names(classify_figures(run / "plots", ["svg"], run))
    scores = {"model-compare", "per-class-f1", "reliability", "rejection", "roc", "pr", "top-genes"}
    assert made == scores | {"confusion-recommended", "confusion-lr", "confusion-svm"}  # of the others the two best
    written = {path.stem: path.read_text() for path in (run / "plots").glob("*.svg")}
    assert "<!-- $a$ priced_type (" in written["confusion-lr"]  # a name, not a formula
    assert "never trained" in written["per-class-f1"]
    assert LONG[1] not in written["per-class-f1"]  # no test cells
    assert "<!-- NA (" in written["per-class-f1"]
    assert "without 1 type never trained" in written["roc"]


def test_the_recommended_model_is_drawn_once_where_all_folds_chose_it(tmp_path):
    run = write_run(tmp_path / "run", LONG[:3], chosen=("lr", "lr"))
    made = names(classify_figures(run / "plots", ["svg"], run))
    assert {"confusion-recommended", "confusion-svm", "confusion-rf"} <= made
    assert "confusion-lr" not in made
    assert "recommended (lr)" in (run / "plots" / "model-compare.svg").read_text()


def test_a_type_without_test_cells_is_hatched(tmp_path):
    table = pd.DataFrame([[3.0, 1.0], [0.0, 0.0]], index=["A", "B"], columns=["A", "B"])
    made = confusion_map(tmp_path / "one", ["svg"], table, "lr")
    text = made[0].read_text()
    assert text == confusion_map(tmp_path / "again", ["svg"], table, "lr")[0].read_text()
    assert "<!-- n=0 -->" in text
    assert "<!-- B (n=0) -->" in text
    assert "url(#h" in text
    assert "75%" in text
    full = confusion_map(tmp_path / "two", ["svg"], table + 1, "lr")[0].read_text()
    assert "n=0" not in full
    assert "url(#h" not in full


def test_unassigned_cells_have_a_column_of_their_own(tmp_path):
    table = pd.DataFrame([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]], index=["A", "B"], columns=["A", "B", "Unassigned"])
    assert "Unassigned" in confusion_map(tmp_path / "one", ["svg"], table, "lr")[0].read_text()


def test_many_types(tmp_path):
    run = write_run(tmp_path / "run", [f"type {i:02d}" for i in range(45)], n=600, models=("lr",), chosen=("lr",))
    assert "confusion-lr" in names(classify_figures(run / "plots", ["svg"], run))
    text = (run / "plots" / "confusion-lr.svg").read_text()
    assert "%" not in "".join(line for line in text.splitlines() if line.strip().startswith("<!--"))
    assert "type 44" in text
    roc = (run / "plots" / "roc.svg").read_text()
    assert "mean of 45 types" in roc
    assert roc.count("<!-- type ") <= 13  # twelve, and the title of the legend


def test_one_type_and_one_model_without_probabilities(tmp_path):
    run = write_run(tmp_path / "one", ["B cell"], models=("lr",), chosen=("lr",))
    made = classify_figures(run / "plots", ["svg"], run)
    assert not {"roc", "pr"} & names(made)
    again = classify_figures(tmp_path / "again", ["svg"], run)
    assert [path.read_bytes() for path in made] == [path.read_bytes() for path in again]
    run = write_run(tmp_path / "run", LONG[:2], models=("lr", "svm"), without_proba=("lr",), chosen=("lr",))
    made = names(classify_figures(run / "plots", ["svg"], run))
    assert {"confusion-lr", "confusion-svm", "reliability"} <= made
    assert not {"roc", "pr"} & made  # lr is ahead and gave none


def test_labels_of_new_cells(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.choice([*LONG, "Unassigned"], 300)
    calls = pd.DataFrame({"cell": range(300), "label": labels, "label_raw": labels, "confidence": rng.random(300)})
    calls.to_csv(tmp_path / "predictions.csv", index=False)
    assert names(classify_figures(tmp_path / "plots", ["svg"], tmp_path)) == {"labels"}
    text = (tmp_path / "plots" / "labels.svg").read_text()
    assert "<!-- NA -->" in text
    assert "<!-- Unassigned -->" in text
    assert classify_figures(tmp_path / "plots", ["svg"], tmp_path / "elsewhere") == []


@pytest.mark.parametrize(("by", "sizes"), [("groups", [1, 2, 3]), ("cells", [0.01, 0.1, 1.0]), ("groups", [1])])
def test_learning_curves(tmp_path, by, sizes):
    rng = np.random.default_rng(0)
    rows = [
        {"model": name, "repeat": repeat, "size": size, "outer_fold": fold, "n_groups": 3, "n_cells": 1000 * size}
        | {"f1_macro_present": rng.random(), "accuracy": rng.random()}
        for name in ("lr", "knn")
        for size in sizes
        for repeat in range(2 if size < sizes[-1] else 1)
        for fold in "ab"
    ]
    table = pd.DataFrame(rows)
    table.to_csv(tmp_path / "learning_curve.csv", index=False)
    frame = table.groupby(["model", "size"])[["f1_macro_present", "accuracy", "n_cells"]].agg(["mean", "std"])
    frame.columns = [f"{column}_{'sd' if what == 'std' else what}" for column, what in frame.columns]
    frame.reset_index().to_csv(tmp_path / "learning_curve_summary.csv", index=False)
    (tmp_path / "metrics.json").write_text(json.dumps({"task": "curve", "axis": by}))
    assert names(curve_figures(tmp_path / "plots", ["svg"], tmp_path)) == {"learning-curve"}
    text = (tmp_path / "plots" / "learning-curve.svg").read_text()
    assert ("cells trained on" in text) == (by == "cells")
