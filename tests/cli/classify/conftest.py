"""Cells, trained models and settings that the tests of classification share."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from sctool.data.demo import BATCHES
from tests.cli.test_commands import files
from tests.conftest import run_in

KEYS = ("--label-key", "cell_type", "--batch-key", "batch")
FAST = ("--no-plots", "--set", "classify.markers=50", "--threads", "1")
SMALL_TREES = (
    *("--set", "classify.rf={n_estimators: 20, max_features: sqrt}", "--set", "classify.xgb={max_rounds: 15, eta: 0.3, max_depth: 3}"),
    *("--epochs", "4"),
)
BETTER = (
    *("--set", "classify.rf={n_estimators: 60, max_features: sqrt}", "--set", "classify.xgb={max_rounds: 60, eta: 0.2, max_depth: 3}"),
    *("--epochs", "15", "--lr", "0.003", "--batch-size", "32"),
)
SPLIT = ("--split-key", "batch", "--split-test", "sc_dropseq", "sc_celseq2")
TESTED = ("sc_dropseq", "sc_celseq2")
TOP = {
    *(
        "classes.json",
        "classes.txt",
        "disagreement.csv",
        "dropped.csv",
        "features.txt",
        "metrics.json",
        "rejection_by_type.csv",
        "run.json",
    ),
    *("scores.csv", "splits.csv", "summary_metrics.csv", "summary_metrics.json", "top_confusions.csv"),
}
OF_A_MODEL = {
    *("classification_report.txt", "confusion_matrix.csv", "importance.csv", "metrics.json", "metrics_by_class.csv"),
    *("metrics_by_group.csv", "predictions.csv", "proba.csv", "rejection.csv", "reliability.csv"),
}
PREDICTIONS = [
    *("cell", "y_true", "y_pred", "y_true_idx", "y_pred_idx", "confidence", "margin", "entropy", "rejected", "label", "group", "fold"),
]


def no_run_json(folder):
    return {name: content for name, content in files(folder).items() if name != "run.json"}


@pytest.fixture(scope="session")
def lung():
    """200 cells of five types in five batches x 300 genes."""
    a = ad.read_h5ad(BATCHES.path)
    return a[np.sort(np.random.default_rng(0).permutation(500)[:200]), :300].copy()


@pytest.fixture(scope="session")
def few():
    """120 of these cells x 150 genes, with an embedding, and columns that are no types."""
    a = ad.read_h5ad(BATCHES.path)
    a = a[np.sort(np.random.default_rng(0).permutation(500)[:120]), :150].copy()
    a = a[np.asarray(a.X.sum(1)).ravel() > 0].copy()
    a.X = sp.csr_matrix(a.X, dtype=np.float32)
    a.obs["batch"], a.obs["cell_type"] = a.obs["batch"].astype(str), a.obs["cell_type"].astype(str)
    a.obs["one"], a.obs["number"] = "d", np.random.default_rng(0).normal(size=a.n_obs)
    a.obsm["X_pca"] = np.random.default_rng(0).normal(size=(a.n_obs, 4)).astype(np.float32)
    return a


@pytest.fixture(scope="session")
def home(lung, tmp_path_factory):
    """A folder with the file and a run ``m`` of every model, tested on two batches."""
    folder = tmp_path_factory.mktemp("classify")
    lung.write_h5ad(folder / "lung.h5ad")
    models = ("--models", "lr", "svm", "rf", "xgb", "mlp")
    run_in(folder, "train", "classify", *KEYS, *models, "lung.h5ad", *SPLIT, *FAST, *BETTER, "--name", "m", "--quiet")
    return folder


@pytest.fixture
def lung_file(home, tmp_path):
    (tmp_path / "lung.h5ad").write_bytes((home / "lung.h5ad").read_bytes())
    return tmp_path / "lung.h5ad"


@pytest.fixture
def train(sctool, lung_file):
    def run(*words, path=lung_file, keys=KEYS, name="r", fast=FAST):
        return sctool("train", "classify", path, *keys, *fast, "--name", name, *words)

    return run


@pytest.fixture
def predict(sctool, home, tmp_path):
    def run(*words, a=None, path=None, model="m", name="p"):
        if a is not None:
            path = tmp_path / "query.h5ad"
            a.write_h5ad(path)
        ran = sctool("predict", "classify", home / "checkpoints/classify" / model, path or home / "lung.h5ad", "--name", name, *words)
        table = tmp_path / "results/classify" / name / "predictions.csv"
        return ran, pd.read_csv(table, dtype={"cell": str}) if table.exists() else None

    return run


def results(tmp_path, name="r"):
    return tmp_path / "results" / "classify" / name


MODELS = ("lr", "svm", "rf", "xgb", "mlp", "knn", "majority", "ensemble")
