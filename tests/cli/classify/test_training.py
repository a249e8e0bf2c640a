"""`sctool train classify` and its options."""

import json

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from tests.cli.classify.conftest import FAST, MODELS, SMALL_TREES, SPLIT, TESTED, no_run_json, results
from tests.cli.classify.test_prediction import same_answers
from tests.cli.test_commands import files, strict_json


class TestTraining:
    def test_json_and_quiet(self, train, tmp_path):
        ran = train("--models", "lr", "--cv", "groups:2", "--json")
        assert ran.code == 0, ran.err
        assert not ran.err
        told = json.loads(ran.out)
        assert told["recommended"] == "lr"
        assert set(told["scores"]) == {"lr", "knn", "majority"}
        assert strict_json(results(tmp_path) / "metrics.json")["scores"] == told["scores"]
        ran = train("--models", "lr", "--cv", "none", "--quiet", name="q")
        assert ran.code == 0
        assert not ran.err
        assert ran.out.strip().splitlines()[-1].endswith("checkpoints/classify/q")

    def test_plots_by_default(self, train, tmp_path):
        ran = train("--models", "lr", "--split-key", "batch", "--split-test", "sc_dropseq", fast=FAST[1:])
        assert ran.code == 0, ran.err
        assert list((results(tmp_path) / "plots").glob("*.png"))

    @pytest.mark.parametrize(
        ("cv", "folds"),
        [("auto", 5), ("leave-one-group-out", 5), ("groups:3", 3), ("cells:2", 2), ("pairs", 20), ("logo", 5), ("sgkf:2", 2)],
    )
    def test_cross_validation(self, train, lung, tmp_path, cv, folds):
        ran = train("--models", "lr", "--cv", cv, "--calibrate", "none", "--reject", "none")
        assert ran.code == 0, ran.err
        splits = pd.read_csv(results(tmp_path) / "splits.csv")
        assert splits["fold"].nunique() == folds
        assert set(splits["role"]) == {"test"}
        assert set(splits["cell"]) == set(lung.obs_names)
        assert (splits.groupby("cell").size() == (4 if cv == "pairs" else 1)).all()
        table = pd.read_csv(results(tmp_path) / "lr/predictions.csv")
        assert len(table) == len(splits)
        if not cv.startswith("cells"):
            batch = lung.obs["batch"].astype(str).to_dict()
            for fold, part in table.groupby("fold"):
                inside = {batch[cell] for cell in part["cell"]}
                assert inside == {fold.split(" to ")[-1]} or cv in ("groups:3", "sgkf:2")
        assert (pd.read_csv(results(tmp_path) / "scores.csv")["name"] == "lr").sum() == folds
        assert len(pd.read_csv(tmp_path / "checkpoints/classify/r/cells.csv")) == 200  # the models kept are those of all cells

    def test_no_cross_validation(self, train, tmp_path):
        assert train("--models", "lr", "--cv", "none").code == 0
        assert not results(tmp_path).exists()
        assert (tmp_path / "checkpoints/classify/r/lr/manifest.json").exists()

    def test_split_by_values(self, train, tmp_path):
        """Several after one flag, the rest where one side is left out; and DATA may follow them."""
        cases = {
            "a": ("--split-train", "sc_celseq2_5cl_p1", "sc_celseq2_5cl_p2", "--split-test", "sc_dropseq"),
            "b": ("--split-train", "sc_celseq2_5cl_p1", "--split-train", "sc_celseq2_5cl_p2", "--split-test", "sc_dropseq"),
            "c": ("--split-test", "sc_dropseq"),
            "d": ("--split-train", "sc_celseq2", "sc_celseq2_5cl_p1", "sc_celseq2_5cl_p2", "sc_celseq2_5cl_p3"),
        }
        for name, words in cases.items():
            assert train("--models", "lr", "--split-key", "batch", *words, name=name).code == 0
        tables = {name: no_run_json(results(tmp_path, name)) for name in cases}
        assert tables["a"] == tables["b"]
        assert tables["c"] == tables["d"]
        assert tables["a"]["splits.csv"] != tables["c"]["splits.csv"]

    @pytest.mark.parametrize(
        "values",
        [
            pytest.param([1.0, 2.0], id="float"),
            pytest.param([1, 2], id="int"),
            pytest.param(["1", "2"], id="text"),
            pytest.param(pd.Categorical([1.0, 2.0]), id="categories"),
        ],
    )
    def test_split_by_numbers(self, train, lung, tmp_path, values):
        a = lung.copy()
        at = np.arange(200) % 2
        a.obs["day"] = values.take(at) if isinstance(values, pd.Categorical) else np.array(values)[at]
        a.write_h5ad(tmp_path / "days.h5ad")
        ran = train("--models", "lr", "--split-key", "day", "--split-train", "1", "--split-test", "2", path=tmp_path / "days.h5ad")
        assert ran.code == 0, ran.err
        assert len(pd.read_csv(results(tmp_path) / "lr/predictions.csv")) == 100
        if not isinstance(values[0], str):
            ran = train("--models", "lr", "--split-key", "day", "--split-train", "1.0", path=tmp_path / "days.h5ad", name="f")
            assert ran.code == 0, ran.err

    def test_split_by_dates(self, train, lung, tmp_path):
        a = lung.copy()
        a.obs["day"] = np.where(np.arange(200) % 2, 20240101, 20240102)
        a.write_h5ad(tmp_path / "days.h5ad")
        split = ("--split-key", "day", "--split-train", "20240101", "--split-test", "20240102")
        ran = train("--models", "lr", *split, path=tmp_path / "days.h5ad")
        assert ran.code == 0, ran.err

    def test_features(self, train, lung, tmp_path):
        wanted = [*lung.var_names[np.argsort(-np.asarray(lung.X.sum(0)).ravel())[:30]], "NOT-THERE"]
        (tmp_path / "genes.txt").write_text("\n".join(wanted) + "\n\n")
        ran = train("--models", "lr", *SPLIT, "--features", tmp_path / "genes.txt")
        assert ran.code == 0, ran.err
        assert "1 genes of" in ran.err
        got = (results(tmp_path) / "features.txt").read_text().split()
        assert set(got) == set(wanted[:-1])
        ran = train("--models", "lr", *SPLIT, "--features", "all", "--set", "classify.markers=0", name="all")
        assert ran.code == 0, ran.err
        train_cells = lung[~lung.obs["batch"].isin(TESTED)]
        seen = lung.var_names[np.asarray((train_cells.X > 0).sum(0)).ravel() >= 3]
        assert (results(tmp_path, "all") / "features.txt").read_text().split() == list(seen)

    def test_an_embedding(self, train, sctool, lung, tmp_path):
        rng = np.random.default_rng(0)
        a = lung.copy()
        codes = a.obs["cell_type"].cat.codes.to_numpy()
        a.obsm["X_pca"] = (rng.normal(size=(200, 6)) + 4 * np.eye(6)[codes]).astype(np.float32)
        a.write_h5ad(tmp_path / "e.h5ad")
        models = ("--models", "lr", "svm", "rf", "xgb", "mlp")
        ran = train(*models, *SPLIT, "--features", "obsm:X_pca", *SMALL_TREES, path=tmp_path / "e.h5ad")
        assert ran.code == 0, ran.err
        assert "X_pca was made from all cells" in ran.err
        assert (results(tmp_path) / "features.txt").read_text().split() == [f"X_pca_{i}" for i in range(6)]
        assert strict_json(results(tmp_path) / "run.json")["transductive"] == "unknown"
        for name in MODELS:
            ran = sctool("predict", "classify", f"checkpoints/classify/r/{name}", tmp_path / "e.h5ad", "--name", name)
            assert ran.code == 0, ran.err
            same_answers(results(tmp_path) / name, results(tmp_path, name))

    @pytest.mark.parametrize("how", ["none", "sqrt", "oversample", "smote"])
    def test_imbalance(self, train, tmp_path, how):
        ran = train("--models", "lr", "--split-key", "batch", "--split-test", "sc_dropseq", "--imbalance", how, "--set", "classify.lr_c=1")
        assert ran.code == 0, ran.err
        assert strict_json(results(tmp_path) / "lr/metrics.json")["f1_macro_present"] > 0.8

    def test_isotonic_and_conformal(self, train, tmp_path):
        ran = train("--models", "lr", "svm", *SPLIT, "--calibrate", "isotonic", "--reject", "conformal:0.9")
        assert ran.code == 0, ran.err
        assert "set of types holds the true one for" in ran.out
        manifest = strict_json(tmp_path / "checkpoints/classify/r/lr/manifest.json")
        assert manifest["calibration"]["kind"] == "isotonic"
        table = pd.read_csv(results(tmp_path) / "rejection_by_type.csv")
        assert {"label", "cells", "kept", "accuracy_kept", "set_coverage", "set_size", "model"} <= set(table.columns)
        assert table.groupby("model")["cells"].sum().nunique() == 1

    def test_tune_and_explain(self, train, tmp_path):
        ran = train("--models", "svm", *SPLIT, "--tune", "--explain")
        assert ran.code == 0, ran.err
        held = strict_json(tmp_path / "checkpoints/classify/r/recommended.json")["held_out"]["svm"]
        assert len(held["tried"]) == 5
        table = pd.read_csv(results(tmp_path) / "svm/importance.csv")
        assert set(table["method"]) == {"shap"}
        assert set(table["class"]) == set(strict_json(results(tmp_path) / "classes.json"))
        assert set(pd.read_csv(results(tmp_path) / "knn/importance.csv")["method"]) == {"permutation"}

    @pytest.mark.slow
    def test_tuning_every_model(self, train):
        ran = train("--models", "lr", "svm", "rf", "xgb", "mlp", *SPLIT, "--tune", "--explain", *SMALL_TREES)
        assert ran.code == 0, ran.err

    def test_explain_a_fold_of_new_types(self, train, lung, tmp_path):
        a = lung.copy()
        a.obs["g"] = np.where(a.obs["cell_type"] == "A549", "z", np.where(np.arange(200) % 2, "x", "y"))
        a.write_h5ad(tmp_path / "g.h5ad")
        ran = train("--models", "lr", "--explain", keys=("--label-key", "cell_type", "--batch-key", "g"), path=tmp_path / "g.h5ad")
        assert ran.code == 0, ran.err

    def test_cells_of_a_class(self, train, lung, tmp_path):
        ran = train("--models", "lr", *SPLIT, "--max-cells-per-class", "10", "--min-cells-per-class", "15")
        assert ran.code == 0, ran.err
        train_cells = lung.obs["cell_type"][~lung.obs["batch"].isin(TESTED)].value_counts()
        rare = set(train_cells.index[train_cells < 15])
        assert rare
        manifest = strict_json(tmp_path / "checkpoints/classify/r/lr/manifest.json")
        assert set(manifest["classes"]) == set(train_cells.index) - rare
        dropped = pd.read_csv(results(tmp_path) / "dropped.csv")
        assert list(dropped.columns) == ["cell", "label", "reason"]
        assert set(dropped["label"]) == rare
        assert len(dropped) == train_cells[list(rare)].sum()
        assert "fewer than 15" in ran.err

    def test_missing_labels_are_left_out(self, train, lung, tmp_path):
        a = lung.copy()
        labels = a.obs["cell_type"].astype(object)
        labels.iloc[:8] = ["Unknown", "nan", "NA", "", "None", "unassigned", " ", None]
        labels.iloc[8:] = [f" {label}  " for label in labels.iloc[8:]]  # blanks at the ends are no part of a name
        a.obs["cell_type"] = pd.Categorical(labels)
        a.write_h5ad(tmp_path / "m.h5ad")
        assert train("--models", "lr", *SPLIT, path=tmp_path / "m.h5ad").code == 0
        assert set(strict_json(results(tmp_path) / "classes.json")) == set(lung.obs["cell_type"])
        dropped = pd.read_csv(results(tmp_path) / "dropped.csv")
        assert list(dropped["cell"]) == list(lung.obs_names[:8])
        assert set(dropped["reason"]) == {"no label"}

    def test_some_cells_only(self, train, lung, tmp_path):
        a = lung.copy()
        a.obs["ok"] = np.where(np.arange(200) % 5 < 2, "yes", "no")
        a.obs["cell_type"] = a.obs["cell_type"].astype(object).where(a.obs["ok"] == "yes", "Unknown")
        a.write_h5ad(tmp_path / "some.h5ad")
        ran = train("--models", "lr", "--cv", "none", "--set", "data.cells=ok=yes", path=tmp_path / "some.h5ad")
        assert ran.code == 0, ran.err

    def test_logarithms_are_read_too(self, train, sctool, lung, tmp_path):
        a = lung.copy()
        a.X = sp.csr_matrix(a.X.multiply(1e4 / a.X.sum(1)), dtype=np.float32)
        a.X.data = np.log1p(a.X.data)
        a.write_h5ad(tmp_path / "log.h5ad")
        ran = train("--models", "lr", *SPLIT, path=tmp_path / "log.h5ad")
        assert ran.code == 0, ran.err
        assert strict_json(results(tmp_path) / "lr/metrics.json")["f1_macro_present"] > 0.8
        # counts of the same cells are then normalised to the same scale
        for name in ("log", "lung"):
            assert sctool("predict", "classify", "checkpoints/classify/r", tmp_path / f"{name}.h5ad", "--name", name).code == 0
        one, two = (pd.read_csv(results(tmp_path, name) / "predictions.csv") for name in ("log", "lung"))
        assert list(one["label"]) == list(two["label"])

    def test_same_seed_same_bytes(self, train, tmp_path):
        words = ("--models", "lr", "svm", "rf", "xgb", "mlp", *SPLIT, *SMALL_TREES, "--imbalance", "smote", "--set", "classify.thin=1")
        made = []
        for _ in range(2):
            assert train(*words, "--force").code == 0
            made.append((no_run_json(results(tmp_path)), files(tmp_path / "checkpoints/classify/r")))
        assert made[0] == made[1]
        assert train(*words, "--seed", "1", name="other").code == 0
        weights = [(tmp_path / "checkpoints/classify" / name / "mlp/model.safetensors").read_bytes() for name in ("r", "other")]
        assert weights[0] != weights[1]

    def test_adaptive_resampling(self, train, tmp_path):
        assert train("--models", "mlp", "--cv", "none", *SMALL_TREES, "--ar").code == 0
        assert strict_json(tmp_path / "checkpoints/classify/r/mlp/manifest.json")["config"]["train"]["sampler"] == "adaptive"

    def test_test_cells_leave_no_trace(self, train, lung, tmp_path):
        """Other counts of the test cells: the same genes, the same bytes of every model."""
        words = ("--models", "lr", "svm", "xgb", *SPLIT, *SMALL_TREES)
        assert train(*words).code == 0
        a = lung.copy()
        test = np.flatnonzero(a.obs["batch"].isin(TESTED))
        x = a.X.tolil()
        x[test] = a.X[np.random.default_rng(0).permutation(np.setdiff1d(np.arange(200), test))[: len(test)]]
        a.X = x.tocsr()
        a.write_h5ad(tmp_path / "other.h5ad")
        assert train(*words, path=tmp_path / "other.h5ad", name="other").code == 0
        assert (results(tmp_path) / "features.txt").read_bytes() == (results(tmp_path, "other") / "features.txt").read_bytes()
        mine, theirs = (files(tmp_path / "checkpoints/classify" / name) for name in ("r", "other"))
        for name in mine:
            if name.endswith(("safetensors", "ubj", "cells.csv")):
                assert mine[name] == theirs[name], name
        one, two = (json.loads(part["lr/manifest.json"]) for part in (mine, theirs))
        for key in ("calibration", "rejection", "held_out", "genes", "classes"):
            assert one[key] == two[key]

    def test_a_finished_run_is_not_overwritten(self, train, tmp_path):
        assert train("--models", "lr", *SPLIT).code == 0
        before = files(tmp_path / "results"), files(tmp_path / "checkpoints")
        ran = train("--models", "lr", *SPLIT)
        assert ran.code == 2
        assert "is there already" in ran.err
        assert train("--models", "lr", *SPLIT, "--resume").code == 0
        assert (files(tmp_path / "results"), files(tmp_path / "checkpoints")) == before

    def test_force_leaves_no_old_results(self, train, tmp_path):
        assert train("--models", "lr", *SPLIT).code == 0
        assert train("--models", "lr", "--cv", "none", "--force").code == 0
        assert not results(tmp_path).exists()

    def test_the_demo(self, sctool, tmp_path):
        ran = sctool("train", "classify", "--models", "lr", "--cv", "none", "--quiet")
        assert ran.code == 0, ran.err
        assert (tmp_path / "checkpoints/classify/batches-seed0/lr/manifest.json").exists()

    def test_an_interrupted_run_goes_on_with_the_same_result(self, train, tmp_path, monkeypatch):
        from sctool.bench import classify

        assert train("--models", "lr", "--name", "whole").code == 0
        fits, fit = [], classify.fit_classifiers

        def breaks_off(*args, **kwargs):
            fits.append(1)
            if len(fits) == 3:
                raise KeyboardInterrupt
            return fit(*args, **kwargs)

        monkeypatch.setattr(classify, "fit_classifiers", breaks_off)
        ran = train("--models", "lr", "--name", "broken")
        assert ran.code == 130
        assert "--resume" in ran.err
        assert sorted(path.name for path in (tmp_path / "checkpoints/classify/broken.part").glob("stage*")) == [
            "stage0.safetensors",
            "stage1.safetensors",
        ]
        fits.extend([1] * 10)
        ran = train("--models", "lr", "--name", "broken", "--resume")
        assert ran.code == 0, ran.err
        assert len(fits) == 3 + 10 + (5 - 2) + 1  # three folds of five, and all cells
        same = [files(tmp_path / part / "classify" / "whole") for part in ("checkpoints", "results")]
        assert same
        for name in ("lr/predictions.csv", "lr/proba.csv", "scores.csv"):
            a, b = ((tmp_path / "results/classify" / run / name).read_bytes() for run in ("whole", "broken"))
            assert a == b, name
        assert not (tmp_path / "checkpoints/classify/broken.part").exists()
