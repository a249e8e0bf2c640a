"""Scores of classifiers and their tables: stored values, scikit-learn, and what must hold of any cells."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from sctool.errors import SctoolError
from sctool.metrics import classify as m
from sctool.metrics import confusions as calls
from tests.conftest import VECTORS

UNIT = json.loads((VECTORS / "classify_metrics_unit.json").read_text())
THEIRS = {
    "ref_auc": "roc_auc_macro_ovr",
    "accuracy": "accuracy",
    "f1_macro_ref(true∪pred)": "f1_macro",
    "f1_macro_all_K": "f1_macro_all",
    "f1_macro_present_in_true": "f1_macro_present",
    "f1_weighted": "f1_weighted",
    "balanced_accuracy(recall mean over present)": "balanced_accuracy",
    "mcc": "mcc",
    "kappa": "kappa",
    "log_loss(clip1e-15)": "log_loss",
    "brier_multiclass(sum over classes)": "brier",
    "ece_10bins_rightclosed": "ece",
    "auprc_macro_present": "auprc_macro",
}


def made(seed, n=60, k=4, unassigned=0.1):
    """Truth, calls, probabilities and groups of cells of which about half are called rightly."""
    rng = np.random.default_rng(seed)
    truth_n = rng.integers(0, k, n)
    p_nc = rng.dirichlet(np.ones(k), n) + 0.5 * np.eye(k)[truth_n]
    p_nc /= p_nc.sum(1, keepdims=True)
    predicted_n = np.where(rng.random(n) < unassigned, -1, p_nc.argmax(1))
    return truth_n, predicted_n, p_nc, rng.choice(["d1", "d2", "d3", "d4", "d5"], n)


@pytest.mark.parametrize("case", UNIT, ids=lambda case: case["name"])
def test_stored_values(case):
    """Log loss was stored over all cells, so every class counts as trained here."""
    k, p_nc = case["K"], np.array(case["proba"]) if "proba" in case else None
    classes = [str(c) for c in range(k)]
    scores = m.classify_scores(case["y_true"], case["pred"], p_nc, classes, np.ones(k, bool))
    assert list(scores) == list(m.DEFINITIONS)
    compared = THEIRS.keys() & case.keys()
    assert len(compared) in (3, 13)
    for theirs in compared:
        assert scores[THEIRS[theirs]] == pytest.approx(case[theirs], abs=1e-12, nan_ok=True), theirs
    if p_nc is not None:
        table = m.per_class_table(case["y_true"], case["pred"], p_nc, classes, np.ones(k, bool)).set_index("label")
        for c, auc in case["per_class_ovr_auc"].items():
            assert table.loc[c, "roc_auc"] == pytest.approx(np.nan if auc is None else auc, abs=1e-12, nan_ok=True)
        np.testing.assert_array_equal(calls.confusion_table(case["y_true"], case["pred"], classes), case["confusion"])


@pytest.mark.parametrize("seed", range(3))
def test_scikit_learn_agrees(seed):
    truth_n, predicted_n, p_nc, _ = made(seed)
    scores = m.classify_scores(truth_n, predicted_n, p_nc, list("abcd"), np.ones(4, bool))
    present = np.unique(truth_n)
    f1_c = sk.f1_score(truth_n, predicted_n, labels=present, average=None, zero_division=0)
    wanted = {
        "f1_macro_present": f1_c.mean(),
        "f1_median": np.median(f1_c),
        "f1_weighted": sk.f1_score(truth_n, predicted_n, labels=present, average="weighted", zero_division=0),
        "balanced_accuracy": sk.recall_score(truth_n, predicted_n, labels=present, average="macro", zero_division=0),
        "roc_auc_macro_ref": sk.roc_auc_score(truth_n, p_nc, multi_class="ovr"),
        "log_loss": sk.log_loss(truth_n, p_nc),
        "top2_accuracy": sk.top_k_accuracy_score(truth_n, p_nc, k=2),
        "brier": np.square(np.eye(4)[truth_n] - p_nc).sum(1).mean(),
        "coverage": (predicted_n >= 0).mean(),
        "accuracy_assigned": (truth_n == predicted_n)[predicted_n >= 0].mean(),
    }
    for name, value in wanted.items():
        assert scores[name] == pytest.approx(value, abs=1e-12), name
    table = m.per_class_table(truth_n, predicted_n, p_nc, list("abcd"), np.ones(4, bool)).sort_values("label")
    np.testing.assert_allclose(table["f1"], f1_c, atol=1e-12)
    np.testing.assert_allclose(table["precision"], sk.precision_score(truth_n, predicted_n, labels=present, average=None, zero_division=0))


@given(st.integers(0, 10**6), st.integers(2, 40))
@settings(max_examples=25, deadline=None)
def test_auc_with_ties(seed, n):
    rng = np.random.default_rng(seed)
    positive_n, score_n = np.append(rng.random(n) < 0.5, [True, False]), rng.integers(0, 4, n + 2)
    assert m.binary_auc(positive_n, score_n) == pytest.approx(sk.roc_auc_score(positive_n, score_n), abs=1e-12)
    assert m.binary_auc(positive_n, score_n) + m.binary_auc(positive_n, -score_n) == pytest.approx(1)


def test_a_class_never_trained_is_reported_apart():
    truth_n, _, p_nc, _ = made(1, unassigned=0)
    p_nc[:, 3] = 0
    trained_c = np.array([True, True, True, False])
    scores = m.classify_scores(truth_n, p_nc.argmax(1), p_nc, list("abcd"), trained_c)
    auc = [m.binary_auc(truth_n == c, p_nc[:, c]) for c in range(4)]
    assert auc[3] == 0.5
    assert scores["roc_auc_macro_seen"] == pytest.approx(np.mean(auc[:3]))
    assert scores["roc_auc_macro_ref"] == pytest.approx(np.mean(auc))
    assert scores["frac_test_cells_of_unseen_class"] == pytest.approx((truth_n == 3).mean())
    known = truth_n < 3
    assert scores["log_loss"] == pytest.approx(-np.log(p_nc[np.arange(len(truth_n)), truth_n][known]).mean())
    one_hot = np.eye(4)[np.zeros(len(truth_n), int)]
    everyone = m.classify_scores(np.full(len(truth_n), 3), one_hot.argmax(1), one_hot, list("abcd"), trained_c)
    assert everyone["top2_accuracy"] == 0
    reasons = m.undefined_reasons(everyone, np.full(len(truth_n), 3), one_hot, trained_c)
    assert reasons.keys() == {name for name, value in everyone.items() if np.isnan(value)} == {"log_loss", *AUCS}
    assert "never trained" in m.DEFINITIONS["frac_test_cells_of_unseen_class"]


AUCS = ("roc_auc_macro_seen", "roc_auc_macro_ref", "roc_auc_macro_ovr")


def test_every_undefined_score_has_a_reason():
    for truth_n, predicted_n, p_nc in (([0, 0], [0, 0], None), ([0, 1], [-1, -1], None), ([0, 0], [0, 1], np.full((2, 2), 0.5))):
        scores = m.classify_scores(truth_n, predicted_n, p_nc, ["a", "b"], np.ones(2, bool))
        reasons = m.undefined_reasons(scores, truth_n, p_nc, np.ones(2, bool))
        assert reasons.keys() == {name for name, value in scores.items() if np.isnan(value)}
        assert "not defined for these cells" not in reasons.values()
    assert m.classify_scores([0, 1], [-1, -1], None, ["a", "b"], np.ones(2, bool))["accuracy"] == 0


def test_majority_baseline_is_what_a_constant_call_gets():
    truth_n = made(2)[0]
    constant = np.full(len(truth_n), np.bincount(truth_n).argmax())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = m.classify_scores(truth_n, constant, None, list("abcd"), np.ones(4, bool))
    assert scores["majority_baseline_accuracy"] == pytest.approx(scores["accuracy"])
    assert scores["majority_baseline_f1"] == pytest.approx(scores["f1_macro_present"])


@given(st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_order_of_cells_changes_nothing(seed):
    truth_n, predicted_n, p_nc, groups_n = made(seed)
    order = np.random.default_rng(seed + 1).permutation(len(truth_n))
    turned = truth_n[order], predicted_n[order], p_nc[order], groups_n[order]
    a = m.classify_scores(truth_n, predicted_n, p_nc, list("abcd"), np.ones(4, bool))
    assert m.classify_scores(*turned[:3], list("abcd"), np.ones(4, bool)) == pytest.approx(a, abs=1e-12)
    for groups, groups_turned in ((groups_n, turned[3]), (None, None)):
        b = m.bootstrap_intervals(truth_n, predicted_n, groups, np.random.default_rng(0), 50)
        assert m.bootstrap_intervals(*turned[:2], groups_turned, np.random.default_rng(0), 50) == b
    right_n, sure_n = truth_n == p_nc.argmax(1), p_nc.max(1).round(1)
    pd.testing.assert_frame_equal(calls.risk_coverage_table(right_n, sure_n), calls.risk_coverage_table(right_n[order], sure_n[order]))
    pd.testing.assert_frame_equal(m.per_group_table(groups_n, truth_n, predicted_n), m.per_group_table(turned[3], *turned[:2]))


@given(st.integers(0, 10**6), st.integers(1, 30))
@settings(max_examples=25, deadline=None)
def test_an_interval_holds_its_score(seed, n):
    truth_n, predicted_n, _, groups_n = made(seed, n)
    made_of = m.bootstrap_intervals(truth_n, predicted_n, groups_n, np.random.default_rng(seed), 50)
    assert made_of["unit"] == ("groups" if len(set(groups_n)) >= 3 else "cells")
    scores = m.classify_scores(truth_n, predicted_n, None, list("abcd"), np.ones(4, bool))
    for name in m.BOOTSTRAPPED:
        low, high = made_of[name]
        assert -1e-12 <= low <= scores[name] + 1e-12
        assert scores[name] - 1e-12 <= high <= 1 + 1e-12


def test_a_bootstrap_is_scikit_learn_on_drawn_groups():
    truth_n, predicted_n, _, groups_n = made(3, 80)
    names = np.unique(groups_n)
    drawn = np.random.default_rng(5).multinomial(5, np.full(5, 0.2), size=40)
    values = []
    for times in drawn:
        rows = np.concatenate([np.tile(np.flatnonzero(groups_n == name), t) for name, t in zip(names, times, strict=True)])
        values.append(sk.f1_score(truth_n[rows], predicted_n[rows], labels=np.unique(truth_n[rows]), average="macro", zero_division=0))
    low, high = m.bootstrap_intervals(truth_n, predicted_n, groups_n, np.random.default_rng(5), 40)["f1_macro_present"]
    assert (low, high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))


def test_groups_that_differ_widen_the_interval():
    """Cells of a donor are right or wrong together: 30 cells each of 10 donors are not 300 independent ones."""
    groups_n = np.repeat(np.arange(10), 30)
    truth_n = np.tile([0, 1], 150)
    predicted_n = np.where(groups_n % 2, truth_n, 1 - truth_n)
    by_group = m.bootstrap_intervals(truth_n, predicted_n, groups_n, np.random.default_rng(0))["accuracy"]
    by_cell = m.bootstrap_intervals(truth_n, predicted_n, None, np.random.default_rng(0))
    assert by_cell["unit"] == "cells"
    assert np.ptp(by_group) > 3 * np.ptp(by_cell["accuracy"])
    assert np.ptp(by_cell["accuracy"]) == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 300), rel=0.15)


def test_paired_bootstrap():
    truth_n, b_n, _, groups_n = made(4, 300)
    a_n = np.where(np.random.default_rng(0).random(300) < 0.5, truth_n, b_n)
    made_of = m.paired_group_bootstrap(truth_n, a_n, b_n, groups_n, np.random.default_rng(0))
    assert 0 < made_of["low"] <= made_of["difference"] <= made_of["high"]
    assert made_of["share_better"] == 1
    assert made_of["unit"] == "groups"
    turned = m.paired_group_bootstrap(truth_n, b_n, a_n, groups_n, np.random.default_rng(0))
    assert (turned["low"], turned["high"]) == pytest.approx((-made_of["high"], -made_of["low"]))
    same = m.paired_group_bootstrap(truth_n, a_n, a_n, None, np.random.default_rng(0))
    assert same == {"difference": 0, "low": 0, "high": 0, "share_better": 0.5, "unit": "cells"}


def test_table_of_groups():
    truth_n, predicted_n, _, groups_n = made(5)
    table = m.per_group_table(groups_n, truth_n, predicted_n).set_index("group")
    for group, row in table.iterrows():
        own = groups_n == group
        assert row["cells"] == own.sum()
        assert row["f1_macro_present"] == pytest.approx(m.f1_macro_present(truth_n[own], predicted_n[own]))
        assert row["balanced_accuracy"] == pytest.approx(m.balanced_accuracy(truth_n[own], predicted_n[own]))


def test_confusions_in_words():
    truth_n = np.repeat([0, 1], [120, 50])
    predicted_n = np.concatenate([np.repeat([0, 1, -1], [80, 34, 6]), np.repeat([1, 0], [49, 1])])
    table = calls.confusion_table(truth_n, predicted_n, ["CD8 T", "CD4 T"])
    assert table.to_numpy().tolist() == [[80, 34, 6], [1, 49, 0]]
    assert calls.confusion_table(truth_n, np.abs(predicted_n), ["CD8 T", "CD4 T"]).shape == (2, 2)
    assert calls.confusions_in_words(table) == [
        "34 of 120 CD8 T (28 %) were called CD4 T",
        "6 of 120 CD8 T (5 %) were left unassigned",
        "1 of 50 CD4 T (2 %) was called CD8 T",
    ]
    top = calls.top_confusions(table)
    assert list(top) == ["true", "predicted", "cells", "row_share"]
    assert top["row_share"].tolist() == pytest.approx([34 / 120, 6 / 120, 1 / 50])
    assert calls.confusions_in_words(calls.confusion_table([0, 1], [0, 1], ["a", "b"])) == []


def test_reliability_bins_are_right_closed():
    p_nc = np.array([[0.5, 0.5], [0.6, 0.4], [0.61, 0.39], [1.0, 0.0]])
    table = m.reliability_table(p_nc, np.array([0, 0, 1, 0]))
    assert table["cells"].tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 0, 1]
    assert table["accuracy"].dropna().tolist() == [1, 1, 0, 1]
    assert table["confidence"].dropna().tolist() == pytest.approx([0.5, 0.6, 0.61, 1])


def test_risk_and_coverage():
    table = calls.risk_coverage_table([True, False, True, True], [0.9, 0.5, 0.9, 0.7])
    assert table["coverage"].tolist() == [0.5, 0.75, 1]
    assert table["accuracy"].tolist() == [1, 1, 0.75]
    many = calls.risk_coverage_table(np.ones(5000, bool), np.random.default_rng(0).random(5000))
    assert len(many) == 200
    assert many["coverage"].iloc[-1] == 1


@pytest.mark.parametrize(
    ("truth", "predicted", "p", "says"),
    [
        ([], [], None, "no cells to score"),
        ([0, 1], [0], None, "do not fit"),
        ([0, 1], [0, 1], np.full((2, 3), 1 / 3), "do not fit"),
        ([0, 2], [0, 1], None, "0 to 1"),
        ([-1, 0], [0, 1], None, "0 to 1"),
        ([0, 1], [0, 1], np.array([[0.5, 0.5], [np.nan, 0]]), "1 of 2 cells have probabilities that are not finite"),
    ],
)
def test_bad_input(truth, predicted, p, says):
    with pytest.raises(SctoolError, match=says):
        m.classify_scores(truth, predicted, p, ["a", "b"], np.ones(2, bool))
