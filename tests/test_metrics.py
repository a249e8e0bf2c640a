import numpy as np
import pytest
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier

from sctool.bench.paired import paired_difference
from sctool.metrics.base import METRICS
from sctool.metrics.classification import classification_scores, per_class_scores
from sctool.metrics.reconstruction import cell_correlation, cell_r2, log1p_cp10k
from tests.conftest import VECTORS

CLASSES = np.load(VECTORS / "ar_classification.npz")
DECODED = np.load(VECTORS / "ar_reconstruction.npz")
NAMES = {"accuracy": "accuracy", "precision": "macro_precision", "recall": "macro_recall", "micro_f1": "micro_f1", "macro_f1": "macro_f1"}


@pytest.mark.parametrize("case", ["multi", "rare_never_predicted", "predicted_class_not_in_truth", "single_class", "all_wrong"])
def test_classification_oracle(case):
    made = classification_scores(CLASSES[f"{case}__true"], CLASSES[f"{case}__pred"])
    for theirs, ours in NAMES.items():
        assert made[ours] == pytest.approx(float(CLASSES[f"{case}__{theirs}"]), abs=1e-12)


def test_knn_oracle():
    train, test = train_test_split(list(range(101)), train_size=0.5, test_size=0.5, random_state=42)
    np.testing.assert_array_equal(train, CLASSES["knn__train_idx"])
    z, labels = CLASSES["knn__emb"], CLASSES["knn__labels"]
    made = KNeighborsClassifier(5).fit(z[train], labels[train]).predict(z[test])
    np.testing.assert_array_equal(made, CLASSES["knn__pred"])
    assert classification_scores(labels[test], made)["macro_f1"] == pytest.approx(float(CLASSES["knn__macro_f1"]), abs=1e-12)


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_reconstruction_oracle(kind):
    """Rows 3 to 5 are degenerate (empty, constant, decoded constant) and undefined; the rest agrees.

    Not to 1e-12: the decoded profiles are float32 in both files, and the reference took their logarithm in float32.
    """
    observed, predicted = log1p_cp10k(DECODED[f"{kind}__counts"]), np.log1p(DECODED[f"{kind}__normalized_1e4"].astype(np.float64))
    made = cell_correlation(observed, predicted)
    good = np.setdiff1d(np.arange(25), [3, 4, 5])
    np.testing.assert_allclose(made[good], DECODED[f"{kind}__correlation"][good], atol=5e-8 if kind == "f64" else 1e-6)
    np.testing.assert_allclose(cell_r2(observed, predicted)[good], DECODED[f"{kind}__r2"][good], atol=5e-8 if kind == "f64" else 1e-6)
    assert np.isnan(made[[3, 4, 5]]).all()


def test_every_metric_reaches_its_best_value_on_itself():
    labels = np.array(["a", "b", "b", "c"])
    cells, control = np.random.default_rng(0).random((2, 4, 9))
    own = {"change_r": (cells[0], cells[0], control[0]), "change_error": (cells[0], cells[0], control[0])}
    own |= dict.fromkeys(("mean_r2", "mean_squared_error", "cosine_similarity"), (cells[0], cells[0]))
    own |= dict.fromkeys(("cell_correlation", "cell_r2", "variance_r2", "variance_ratio"), (cells, cells))
    novel = np.array([False, True, False, True])
    own |= dict.fromkeys(("auroc", "aupr", "fpr_at_95tpr", "tpr_at_5fpr"), (novel, novel.astype(float)))
    for metric in METRICS.values():
        if metric.name == "energy_distance":
            continue  # unbiased, so 0 on average over samples and not on itself: tests/test_response.py
        if metric.function.__module__.endswith("integration"):
            continue  # of embeddings: tests/test_integration_scores.py
        if metric.function.__module__.endswith("perturbation"):
            continue  # of rows of perturbations: tests/test_perturbation_metrics.py
        if metric.function.__module__.endswith(("samples", "sample_scores")):
            continue  # of samples: tests/test_sample_metrics.py
        assert np.allclose(metric.function(*own.get(metric.name, (labels, labels))), metric.best), metric.name


def test_per_class_table_is_sorted_by_frequency():
    table = per_class_scores(np.array(["b", "a", "b", "b"]), np.array(["b", "b", "b", "a"]))
    assert list(table["label"]) == ["b", "a"]
    assert table["recall"].tolist() == pytest.approx([2 / 3, 0])


def test_paired_difference_matches_scipy():
    from scipy import stats

    a, b = np.array([0.8, 0.7, 0.9, 0.75]), np.array([0.7, 0.72, 0.8, 0.7])
    made = paired_difference(a, b)
    wanted = stats.ttest_rel(a, b)
    interval = wanted.confidence_interval()
    assert made.p_value == pytest.approx(wanted.pvalue)
    assert (made.low, made.high) == pytest.approx((interval.low, interval.high))
    assert made.wins == 3
    assert "one pair" in str(paired_difference([1.0], [0.5]))
    assert paired_difference([1.0, np.nan], [0.5, 0.5]).pairs == 1
