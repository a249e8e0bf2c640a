"""Training of classifiers: the reference cases, what folds keep apart, and that test cells leave no trace."""

import json
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import settings as checks
from hypothesis import strategies as st

from sctool.bench.answers import Answers
from sctool.config import Config
from sctool.data.demo import BATCHES
from sctool.data.folds import Fold, inner_folds, outer_folds, parse_cv
from sctool.data.labelled import prepare_labelled
from sctool.engine.classify import ENSEMBLE, NEVER, fewer, fit_classifiers, prepare, recommended, settings
from sctool.errors import SctoolError
from sctool.metrics.classify import classify_scores
from sctool.models.classify.features import choose_columns
from sctool.models.classify.registry import BASELINES, MODELS
from tests.conftest import VECTORS

CASES = ("same", "testonly", "trainonly", "both", "binary", "train2of3", "test1", "imbalanced")
TARGETS = json.loads((VECTORS / "classify_corrected_targets.json").read_text())
RECIPE = {
    "data.label_key": "label_ref",
    "data.group_key": "culture",
    "data.n_top_genes": 60,
    "classify.split_key": "harvest",
    "classify.split_train": ["H4"],
    "classify.split_test": ["H8"],
    "classify.markers": 0,
    "classify.unit_length": False,
    "classify.lr_c": 1.0,
    "threads": 1,
    "device": "cpu",
}
"""What comes nearest to the recipe of the corrected targets: no choice of markers, no unit length, C = 1, 60 variable genes."""
QUICK = {
    "classify.rf": {"n_estimators": 40, "max_features": "sqrt"},
    "classify.xgb": {"max_rounds": 120, "eta": 0.1, "max_depth": 6, "subsample": 0.9, "colsample_bytree": 0.8},
    "train.epochs": 12,
    "train.lr": 3e-3,
    "train.batch_size": 32,
}


def written(case, folder, dtype=np.int32, change=lambda x: x):
    d = np.load(VECTORS / f"classify_input_{case}.npz")
    obs = pd.DataFrame({key: d[key] for key in ("label_ref", "harvest", "culture")}, index=d["cell"])
    a = ad.AnnData(sp.csr_matrix(change(d["X"]).astype(dtype)), obs=obs, var=pd.DataFrame(index=d["gene"]), obsm={"X_pca": d["X_pca"]})
    path = folder / f"{case}.h5ad"
    a.write_h5ad(path)
    return path


def read(case, folder, settings=None, **kind):
    config = Config().replaced({**RECIPE, **(settings or {})})
    return prepare_labelled(written(case, folder, **kind), config), config


def answered(fitted, cells):
    """Scores on the test cells; and the accuracy on those of a type that was trained."""
    classes = np.unique(np.concatenate([cells.labels_n[cells.train], cells.labels_n[cells.test]]))
    answers = Answers()
    answers.add(Fold("test", cells.train, cells.test), fitted, cells, classes)
    _, p_nc, _ = answers.pooled
    truth_n, trained = np.searchsorted(classes, cells.labels_n[cells.test]), answers.trained[0]
    np.testing.assert_allclose(p_nc.sum(1), 1, atol=1e-9)
    assert (p_nc[:, ~trained] == 0).all()
    scores = classify_scores(truth_n, p_nc.argmax(1), p_nc, list(map(str, classes)), trained)
    seen = trained[truth_n]
    return scores, float((p_nc.argmax(1) == truth_n)[seen].mean())


@pytest.mark.parametrize("case", CASES)
def test_reference_cases(case, tmp_path):
    """Every model, classes that are in one side only included; linear ones as good as the corrected pipeline, trees no worse."""
    cells, config = read(case, tmp_path, QUICK)
    made = fit_classifiers(["lr", "rf", "xgb"], cells, cells.train, config)
    assert set(made) == {"lr", "rf", "xgb", ENSEMBLE, *BASELINES}
    for name, fitted in made.items():
        assert list(fitted.classes) == TARGETS[case]["train_classes"]
        scores, seen = answered(fitted, cells)
        if name not in TARGETS[case]:
            continue
        target = TARGETS[case][name]
        if name == "lr":
            assert seen == pytest.approx(target["accuracy_seen"], abs=0.03)
            assert scores["f1_macro_present"] == pytest.approx(target["f1_macro_present"], abs=0.03)
        else:  # theirs are not stopped by held-out cells: ours may be better
            assert seen > target["accuracy_seen"] - 0.05
            assert scores["f1_macro_present"] > target["f1_macro_present"] - 0.05


@pytest.mark.parametrize("case", ["train2of3", "imbalanced"])
def test_the_other_models_on_reference_cases(case, tmp_path):
    cells, config = read(case, tmp_path, QUICK)
    made = fit_classifiers(["svm", "mlp"], cells, cells.train, config)
    for name in ("svm", "mlp", ENSEMBLE):
        assert answered(made[name], cells)[1] > 0.9


def test_the_default_features_lose_nothing(tmp_path):
    """Markers and unit length are for batches that differ; on cases where they do not, they do not harm."""
    cells, config = read("same", tmp_path, {"classify.markers": 30, "classify.unit_length": True, "classify.lr_c": 0.1})
    assert answered(fit_classifiers(["lr"], cells, cells.train, config)["lr"], cells)[1] > 0.95


def test_one_type_to_train_on_is_refused(tmp_path):
    with pytest.raises(SctoolError, match="of one type only: A"):
        read("train1", tmp_path)


def test_how_counts_are_stored_changes_nothing(tmp_path):
    """Integers, floats; and counts above 88, whose exp is infinite in float32."""

    def high(x):
        x = x.copy()
        x[:, ::7] *= 40
        return x

    for change in (np.asarray, high):
        made = [read("same", tmp_path, dtype=dtype, change=change)[0] for dtype in (np.int32, np.int64, np.float32, np.float64)]
        for cells in made:
            assert (cells.x_ng != made[0].x_ng).nnz == 0
            assert (cells.counts != made[0].counts).nnz == 0
    assert made[0].counts.max() > 88 * 4
    train = made[0].train
    columns = choose_columns("hvg", made[0].x_ng[train], made[0].counts[train], 60, made[0].genes["name"])
    assert len(columns) == 60
    assert np.isin(columns % 7, 0).any()


@pytest.fixture(scope="module")
def lung(tmp_path_factory):
    """200 real cells of five types in five batches x 300 genes."""
    a = ad.read_h5ad(BATCHES.path)
    a = a[np.sort(np.random.default_rng(0).permutation(500)[:200]), :300].copy()
    path = tmp_path_factory.mktemp("lung") / "lung.h5ad"
    a.write_h5ad(path)
    return path


LUNG = {
    "data.label_key": "cell_type",
    "data.batch_key": "batch",
    "classify.markers": 40,
    "data.n_top_genes": 0,
    "threads": 1,
    "device": "cpu",
    **QUICK,
    "classify.xgb": {"max_rounds": 15, "eta": 0.3, "max_depth": 3},
    "train.epochs": 4,
}


@pytest.fixture(scope="module")
def cells(lung):
    return prepare_labelled(lung, Config().replaced(LUNG))


def test_shuffled_labels_give_chance(cells):
    """Macro F1 within three standard deviations of what permuted labels give by chance."""
    rng = np.random.default_rng(0)
    scores = []
    for seed in range(3):
        shuffled = replace(cells, labels_n=rng.permutation(cells.labels_n), train=np.arange(0, 200, 2), test=np.arange(1, 200, 2))
        made = fit_classifiers(["lr", "svm"], shuffled, shuffled.train, Config().replaced({**LUNG, "seed": seed}))
        scores.append([answered(made[name], shuffled)[0]["f1_macro_present"] for name in ("lr", "svm", "knn")])
        assert made["lr"].held_out["macro_f1"] < 0.4
    assert np.mean(scores) == pytest.approx(0.2, abs=0.08)


def test_test_cells_leave_no_trace(cells):
    """Other counts and labels of the test cells change no bit of any model."""
    rng = np.random.default_rng(1)
    config = Config().replaced({**LUNG, "classify.imbalance": "smote", "classify.thin": 1})
    order = np.arange(200)
    test = np.flatnonzero(cells.groups_n == "sc_dropseq")
    train = np.setdiff1d(order, test)
    order[test] = rng.permutation(train)[: len(test)]
    labels_n = cells.labels_n.copy()
    labels_n[test] = "never seen"
    turned = replace(cells, x_ng=cells.x_ng[order], counts=cells.counts[order], labels_n=labels_n)
    models = [fit_classifiers(MODELS, which, train, config) for which in (cells, turned)]
    for name, fitted in models[0].items():
        other = models[1][name]
        assert (fitted.calibration, fitted.rejector, fitted.held_out) == (other.calibration, other.rejector, other.held_out)
        np.testing.assert_array_equal(fitted.features.columns, other.features.columns)
        np.testing.assert_array_equal(fitted.features.scale_f, other.features.scale_f)
        if fitted.classifier is not None:
            for key, array in fitted.classifier.arrays().items():
                np.testing.assert_array_equal(array, other.classifier.arrays()[key], err_msg=f"{name} {key}")


def test_genes_are_chosen_on_the_cells_of_the_fold(cells):
    """Genes of a batch left out, which alone varies much, are not chosen."""
    x_ng, counts = cells.x_ng.tolil(), cells.counts.tolil()
    test = np.flatnonzero(cells.groups_n == "sc_dropseq")
    dull = np.flatnonzero(cells.counts.getnnz(axis=0) > 0)[:20]
    x_ng[:, dull] = counts[:, dull] = 0
    for column in dull:
        x_ng[test[::2], column], counts[test[::2], column] = 6.0, 50.0
    turned = replace(cells, x_ng=x_ng.tocsr(), counts=counts.tocsr())
    train = np.setdiff1d(np.arange(200), test)
    config = Config().replaced({**LUNG, "data.n_top_genes": 100, "classify.markers": 50})
    assert not np.isin(prepare(turned, train, config, np.random.default_rng(0)).features.columns, dull).any()


def test_the_ensemble_is_the_mean_of_its_members(cells):
    made = fit_classifiers(["lr", "svm", "rf"], cells, cells.train, Config().replaced(LUNG))
    fitted = made[ENSEMBLE]
    assert [member.name for member in fitted.members] == ["lr", "svm", "rf"]
    mean_nc = np.mean([made[name].proba(cells.x_ng) for name in ("lr", "svm", "rf")], axis=0)
    np.testing.assert_allclose(np.exp(fitted.logits(cells.x_ng)), np.maximum(mean_nc, 1e-12))
    np.testing.assert_allclose(fitted.importance_f, np.mean([made[n].importance_f for n in ("lr", "svm", "rf")], axis=0))
    assert fitted.importance_f.sum() == pytest.approx(1)
    best = recommended(made)
    assert best in made
    assert best not in BASELINES
    scores = {name: made[name].held_out["macro_f1"] for name in ("lr", "svm", "rf", ENSEMBLE)}
    assert scores[best] >= max(scores.values()) - 0.02


def test_settings_are_tuned_on_held_out_groups(cells):
    config = Config().replaced({**LUNG, "classify.tune": True})
    made = fit_classifiers(["lr"], cells, cells.train, config)["lr"]
    tried = made.held_out["tried"]
    assert len(tried) == len(settings("lr", config)) == 6
    assert tried[made.held_out["chosen"]] == max(tried) == round(made.held_out["macro_f1"], 4)
    assert made.classifier.c == settings("lr", config)[made.held_out["chosen"]].classify.lr_c


@pytest.mark.parametrize("how", ["none", "sqrt", "oversample", "smote"])
def test_ways_to_balance(cells, how):
    made = fit_classifiers(["lr"], cells, cells.train, Config().replaced({**LUNG, "classify.imbalance": how, "classify.lr_c": 1.0}))
    assert made["lr"].held_out["macro_f1"] > 0.8


def test_a_model_depends_on_no_other(cells):
    """What else is trained beside a model changes nothing in it, whatever draws random numbers."""
    config = Config().replaced({**LUNG, "classify.imbalance": "smote"})
    alone = fit_classifiers(["svm"], cells, cells.train, config)["svm"].classifier.arrays()
    beside = fit_classifiers(["lr", "svm"], cells, cells.train, config)["svm"].classifier.arrays()
    for key, array in alone.items():
        np.testing.assert_array_equal(array, beside[key])


@pytest.mark.filterwarnings("ignore:invalid value")
def test_groups_of_one_type_each(tmp_path):
    """Then no inner fold can learn; the models are trained, and nothing is said of them that was not seen."""
    d = np.load(VECTORS / "classify_input_binary.npz")
    obs = pd.DataFrame({"label": d["label_ref"], "donor": np.char.add("d", d["label_ref"])}, index=d["cell"])
    ad.AnnData(sp.csr_matrix(d["X"]), obs=obs, var=pd.DataFrame(index=d["gene"])).write_h5ad(tmp_path / "a.h5ad")
    config = Config().replaced({**LUNG, "data.label_key": "label", "data.batch_key": "donor"})
    cells = prepare_labelled(tmp_path / "a.h5ad", config)
    made = fit_classifiers(["lr", "xgb"], cells, cells.train, config)
    assert recommended(made) in made
    for fitted in made.values():
        assert np.isfinite(fitted.proba(cells.x_ng)).all()
        assert np.isfinite(fitted.held_out.get("macro_f1", 0.0))


def test_thinned_copies(cells):
    rows, columns = np.arange(0, 200, 5), np.arange(10, 60)
    made = cells.augmented(rows, np.arange(300), 3, np.random.default_rng(0))
    assert made.shape == (160, 300)
    original, whole = cells.counts[rows].toarray(), cells.x_ng[rows].toarray()
    np.testing.assert_array_equal(made[:40].toarray(), whole)
    for copy in range(1, 4):
        part = made[40 * copy : 40 * (copy + 1)].toarray()
        counts = np.expm1(part.astype(np.float64))
        least = np.where(counts > 0, counts, np.inf).min(1, keepdims=True)
        assert (part[whole == 0] == 0).all()
        assert (part != whole).any(1).all()
        thin = counts / np.where(np.isfinite(least), least, 1)  # the size factor cancels where one count is the least
        ok = np.isclose(thin, np.round(thin), atol=1e-3).all(1)
        assert ok.mean() > 0.5
        assert (np.round(thin[ok]) <= original[ok]).all()
    np.testing.assert_array_equal(cells.augmented(rows, columns, 0, np.random.default_rng(0)).toarray(), whole[:, columns])
    again = [cells.augmented(rows, columns, 2, np.random.default_rng(7)).toarray() for _ in range(2)]
    np.testing.assert_array_equal(*again)


@checks(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.one_of(st.none(), st.integers(1, 9)))
def test_at_most_so_many_of_a_type(seed, most):
    rng = np.random.default_rng(seed)
    labels_n = rng.choice(["a", "b", "c"], 30, p=[0.7, 0.2, 0.1])
    rows = np.sort(rng.permutation(100)[:30])
    kept = fewer(rows, labels_n, most, rng)
    assert set(kept) <= set(rows)
    assert (np.diff(kept) > 0).all()
    of = dict(zip(rows, labels_n, strict=True))
    for label, n in zip(*np.unique(labels_n, return_counts=True), strict=True):
        assert sum(of[row] == label for row in kept) == min(n, most or n)


# --- folds -----------------------------------------------------------------------------------------------------------------------


def drawn(seed, n=60, groups=6):
    rng = np.random.default_rng(seed)
    return (
        np.sort(rng.permutation(2 * n)[:n]),
        rng.choice(["a", "b", "c"], 2 * n, p=[0.6, 0.3, 0.1]),
        rng.choice(list("uvwxyz")[:groups], 2 * n),
    )


@checks(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 6), st.sampled_from(["leave-one-group-out", "groups:3", "groups", "auto", "sgkf:2", "logo"]))
def test_groups_stay_whole_and_every_cell_is_tested_once(seed, groups, cv):
    rows, labels_n, groups_n = drawn(seed, groups=groups)
    folds = outer_folds(rows, labels_n, groups_n, cv, 0)
    np.testing.assert_array_equal(np.sort(np.concatenate([fold.test for fold in folds])), rows)
    for fold in folds:
        np.testing.assert_array_equal(np.sort(np.concatenate([fold.train, fold.test])), rows)
        assert not set(groups_n[fold.train]) & set(groups_n[fold.test])
    assert len({fold.name for fold in folds}) == len(folds)


@checks(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 12))
def test_folds_of_cells(seed, k):
    rows, labels_n, _ = drawn(seed)
    folds = outer_folds(rows, labels_n, None, f"cells:{k}", 0)
    assert len(folds) == k
    np.testing.assert_array_equal(np.sort(np.concatenate([fold.test for fold in folds])), rows)
    for fold in folds:
        np.testing.assert_array_equal(np.sort(np.concatenate([fold.train, fold.test])), rows)
        share = (labels_n[fold.test] == "a").mean()
        assert share == pytest.approx((labels_n[rows] == "a").mean(), abs=2 / len(fold.test) + 1e-9)


def test_pairs_and_their_names():
    rows, labels_n, groups_n = drawn(0, groups=3)
    folds = outer_folds(rows, labels_n, groups_n, "pairs", 0)
    assert {fold.name for fold in folds} == {f"{a} to {b}" for a in "uvw" for b in "uvw" if a != b}
    for fold in folds:
        a, b = fold.name.split(" to ")
        np.testing.assert_array_equal(fold.train, rows[groups_n[rows] == a])
        np.testing.assert_array_equal(fold.test, rows[groups_n[rows] == b])


def test_auto_by_the_number_of_groups():
    rows, labels_n = np.arange(130), np.tile(["a", "b"], 65)
    for n, expected in ((1, 5), (2, 2), (12, 12), (13, 5)):
        groups_n = np.array([f"g{i % n}" for i in range(130)])
        assert len(outer_folds(rows, labels_n, groups_n, "auto", 0)) == expected
    assert len(outer_folds(rows, labels_n, None, "auto", 0)) == 5


@checks(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 6), st.integers(2, 5))
def test_inner_folds_leave_out_whole_groups(seed, groups, k):
    rows, labels_n, groups_n = drawn(seed, groups=groups)
    labels_n, groups_n = labels_n[rows], groups_n[rows]
    for learn, trial in inner_folds(labels_n, groups_n, k, 0):
        assert not set(groups_n[learn]) & set(groups_n[trial])
        assert len(np.unique(labels_n[learn])) > 1
        np.testing.assert_array_equal(np.sort(np.concatenate([learn, trial])), np.arange(60))


def test_groups_stay_whole_when_every_type_is_rare():
    labels_n, groups_n = np.repeat(list("abcdef"), 2), np.tile(list("uvwxyz"), 2)
    for fold in outer_folds(np.arange(12), labels_n, groups_n, "groups:3", 0):
        assert not set(groups_n[fold.train]) & set(groups_n[fold.test])


def test_a_type_its_fold_has_not_seen(cells):
    """One type in one batch only: it is held out with it, and the other cells' calibration does not suffer from that."""
    labels_n = np.where((cells.labels_n == "A549") & (cells.groups_n != "sc_celseq2_5cl_p1"), "H838", cells.labels_n).astype(object)
    made = fit_classifiers(["lr"], replace(cells, labels_n=labels_n), cells.train, Config().replaced(LUNG))["lr"]
    assert "A549" in made.classes
    assert 0.05 < made.calibration.temperature < 20
    own = np.flatnonzero(labels_n == "A549")
    assert (np.array(made.classes)[made.proba(cells.x_ng[own]).argmax(1)] == "A549").mean() > 0.8
    assert NEVER < -30  # exp(-30) of a probability is none


@pytest.mark.parametrize("text", ["foo", "groups:1", "cells:x", "pairs:2", "none:3", "auto:3", "groups:-1", ""])
def test_unknown_folds(text):
    with pytest.raises(SctoolError, match="is not known"):
        parse_cv(text)


@pytest.mark.parametrize("cv", ["leave-one-group-out", "groups:3", "pairs"])
def test_folds_of_groups_need_groups(cv):
    for groups_n in (None, np.full(20, "one")):
        with pytest.raises(SctoolError, match="only the group 'one'" if groups_n is not None else "no column of groups"):
            outer_folds(np.arange(20), np.tile(["a", "b"], 10), groups_n, cv, 0)
