"""What a run of training writes."""

import numpy as np
import pandas as pd
import pytest

from tests.cli.classify.conftest import MODELS, OF_A_MODEL, PREDICTIONS, TESTED, TOP
from tests.cli.test_commands import files, strict_json


class TestFiles:
    def test_names(self, home):
        found = set(files(home / "results/classify/m"))
        expected = TOP | {f"{name}/{file}" for name in (*MODELS, "recommended") for file in OF_A_MODEL}
        expected -= {"majority/importance.csv", "recommended/importance.csv"}
        assert found == expected
        checkpoints = set(files(home / "checkpoints/classify/m"))
        models = {f"{name}/{file}" for name in MODELS for file in ("manifest.json", "model.safetensors")}
        assert checkpoints == models | {"recommended.json", "cells.csv", "xgb/xgb.ubj"}
        assert not list(home.rglob("*.part"))

    def test_no_pickle(self, home):
        """Nothing in a checkpoint can run code when it is read."""
        for name, content in files(home / "checkpoints/classify/m").items():
            assert name.endswith((".json", ".csv", ".safetensors", ".ubj")), name
            assert not content.startswith(b"\x80\x04")
            assert b"sklearn" not in content or name.endswith("manifest.json")

    def test_strict_json(self, home):
        for path in home.rglob("*.json"):
            strict_json(path)

    def test_classes(self, home, lung):
        folder = home / "results/classify/m"
        names = sorted(lung.obs["cell_type"].unique())
        assert (folder / "classes.txt").read_text() == "\n".join(f"{i}\t{name}" for i, name in enumerate(names))
        classes = strict_json(folder / "classes.json")
        train = lung.obs["cell_type"][~lung.obs["batch"].isin(TESTED)].value_counts()
        assert classes == {name: {"index": i, "train_seen": True, "train_cells": int(train[name])} for i, name in enumerate(names)}

    def test_features_are_in_the_order_of_the_file(self, home, lung):
        names = (home / "results/classify/m/features.txt").read_text().splitlines()
        assert len(names) == 50
        at = [lung.var_names.get_loc(name) for name in names]
        assert at == sorted(at)
        manifest = strict_json(home / "checkpoints/classify/m/lr/manifest.json")
        assert manifest["genes"]["name"] == names
        assert manifest["target_sum"] == 1e4

    @pytest.mark.parametrize("name", [*MODELS, "recommended"])
    def test_predictions(self, name, home, lung):
        folder = home / "results/classify/m" / name
        table, proba = pd.read_csv(folder / "predictions.csv"), pd.read_csv(folder / "proba.csv")
        assert list(table.columns) == PREDICTIONS
        tested = lung.obs[lung.obs["batch"].isin(TESTED)]
        assert list(table["cell"]) == list(proba["cell"]) == list(tested.index)
        assert list(table["y_true"]) == list(tested["cell_type"])
        assert list(table["group"]) == list(tested["batch"])
        names = sorted(lung.obs["cell_type"].unique())
        assert list(proba.columns) == ["cell", *names]
        p_nc = proba[names].to_numpy()
        np.testing.assert_allclose(p_nc.sum(1), 1, atol=1e-5)
        assert list(table["y_pred_idx"]) == list(p_nc.argmax(1))
        assert [names[i] for i in table["y_true_idx"]] == list(table["y_true"])
        assert [names[i] for i in table["y_pred_idx"]] == list(table["y_pred"])
        np.testing.assert_allclose(table["confidence"], p_nc.max(1), atol=1e-6)
        np.testing.assert_allclose(table["margin"], np.diff(np.sort(p_nc)[:, -2:])[:, 0], atol=2e-6)
        assert (table["label"] == table["y_pred"].where(~table["rejected"], "Unassigned")).all()
        confusion = pd.read_csv(folder / "confusion_matrix.csv", index_col=0)
        assert (folder / "confusion_matrix.csv").read_text().startswith(("," + names[0], '"",' + names[0]))
        assert list(confusion.index) == list(confusion.columns) == names
        counted = pd.crosstab(table["y_true"], table["y_pred"]).reindex(index=names, columns=names, fill_value=0)
        np.testing.assert_array_equal(confusion.to_numpy(), counted.to_numpy())

    def test_scores_are_those_of_the_predictions(self, home):
        from sklearn.metrics import accuracy_score, f1_score

        folder = home / "results/classify/m"
        summary, wide = strict_json(folder / "summary_metrics.json"), pd.read_csv(folder / "summary_metrics.csv").set_index("model")
        assert set(summary) == set(wide.index) == {*MODELS, "recommended"}
        for name, scores in summary.items():
            table, metrics = pd.read_csv(folder / name / "predictions.csv"), strict_json(folder / name / "metrics.json")
            assert scores["accuracy"] == pytest.approx(accuracy_score(table["y_true"], table["y_pred"]))
            assert scores["f1_macro"] == pytest.approx(f1_score(table["y_true"], table["y_pred"], average="macro", zero_division=0))
            assert {"accuracy", "f1_macro", "roc_auc_macro_ovr", "f1_macro_present", "balanced_accuracy", "mcc", "ece"} <= set(scores)
            for key, value in scores.items():
                assert metrics[key] == value
            assert metrics["n_test"] == len(table)
            assert metrics["coverage"] == pytest.approx(1 - table["rejected"].mean())
            for key, value in metrics.items():
                if value is None and not isinstance(value, dict):
                    assert metrics["undefined"][key], key
            low, high = metrics["intervals_95"]["f1_macro_present"]
            assert low <= scores["f1_macro_present"] <= high
            assert "macro avg" in (folder / name / "classification_report.txt").read_text()

    def test_who_was_trained_on(self, home, lung):
        splits = pd.read_csv(home / "results/classify/m/splits.csv")
        assert list(splits.columns) == ["cell", "fold", "role"]
        tested = set(lung.obs_names[lung.obs["batch"].isin(TESTED)])
        assert set(splits["cell"][splits["role"] == "test"]) == tested
        assert set(splits["cell"][splits["role"] == "train"]) == set(lung.obs_names) - tested
        assert list(pd.read_csv(home / "checkpoints/classify/m/cells.csv")["cell"]) == [c for c in lung.obs_names if c not in tested]

    def test_importance(self, home):
        features = set((home / "results/classify/m/features.txt").read_text().splitlines())
        for name in ("lr", "svm", "rf", "xgb", "ensemble"):
            table = pd.read_csv(home / "results/classify/m" / name / "importance.csv")
            assert list(table.columns)[:6] == ["model", "class", "gene", "importance", "sign", "rank"]
            assert set(table["gene"]) <= features
            assert (table["importance"] >= 0).all()
            for _, part in table.groupby("class"):
                assert list(part["rank"]) == list(range(1, len(part) + 1))
                assert part["importance"].is_monotonic_decreasing

    def test_confusions_and_disagreement(self, home):
        folder = home / "results/classify/m"
        table = pd.read_csv(folder / "top_confusions.csv")
        assert list(table.columns) == ["model", "true", "predicted", "cells", "row_share"]
        wrong = pd.read_csv(folder / "lr/predictions.csv")
        assert table.loc[table["model"] == "lr", "cells"].sum() == (wrong["y_true"] != wrong["y_pred"]).sum()
        apart = pd.read_csv(folder / "disagreement.csv").set_index("model")
        assert (np.diag(apart) == 0).all()
        np.testing.assert_array_equal(apart, apart.T)
        other = pd.read_csv(folder / "rf/predictions.csv")
        assert apart.loc["lr", "rf"] == pytest.approx((wrong["y_pred"] != other["y_pred"]).mean())

    def test_recommended_is_one_of_the_models(self, home):
        best = strict_json(home / "checkpoints/classify/m/recommended.json")["recommended"]
        assert best in MODELS
        folder = home / "results/classify/m"
        assert (folder / best / "proba.csv").read_bytes() == (folder / "recommended/proba.csv").read_bytes()
        assert strict_json(folder / "run.json")["recommended"] == best
