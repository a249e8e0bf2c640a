"""`sctool eval classify`: labels of any tool."""

import json

import numpy as np
import pandas as pd
import pytest

from tests.cli.classify.conftest import TESTED, results
from tests.cli.test_commands import strict_json


class TestEvaluation:
    def score(self, sctool, home, *words, name="e", truth=None):
        return sctool("eval", "classify", "--truth", truth or home / "lung.h5ad", "--label-key", "cell_type", "--name", name, *words)

    def test_the_same_scores_as_in_training(self, sctool, home, tmp_path):
        folder = home / "results/classify/m"
        for name in ("lr", "xgb", "majority"):
            assert self.score(sctool, home, "--pred", folder / name, "--pred-column", "y_pred", name=name).code == 0
            raw, trained = strict_json(results(tmp_path, name) / f"{name}/metrics.json"), strict_json(folder / f"{name}/metrics.json")
            for key in ("accuracy", "f1_macro_present", "f1_macro", "mcc", "log_loss", "brier", "roc_auc_macro_seen", "ece"):
                assert raw[key] == pytest.approx(trained[key], abs=1e-4), key

    def test_our_own(self, sctool, home, tmp_path):
        folder = home / "results/classify/m"
        ran = self.score(sctool, home, "--pred", folder / "lr", folder / "majority/predictions.csv", "--group-key", "batch", "--json")
        assert ran.code == 0, ran.err
        told = json.loads(ran.out)
        assert set(told["scores"]) == {"lr", "majority", "commonest label"}
        metrics = strict_json(results(tmp_path, "e") / "lr/metrics.json")
        table = pd.read_csv(folder / "lr/predictions.csv")
        assert metrics["accuracy"] == pytest.approx((table["y_true"] == table["label"]).mean())
        assert metrics["coverage"] == pytest.approx(1 - table["rejected"].mean())
        by_group = pd.read_csv(results(tmp_path, "e") / "lr/metrics_by_group.csv")
        assert set(by_group.iloc[:, 0]) == set(TESTED)
        for path in results(tmp_path, "e").rglob("*.json"):
            strict_json(path)
        assert self.score(sctool, home, "--pred", folder / "lr").code == 2

    def celltypist(self, lung, path, labels=None):
        labels = lung.obs["cell_type"].astype(str).to_numpy() if labels is None else labels
        pd.DataFrame({"predicted_labels": labels, "over_clustering": "3", "majority_voting": labels}, index=lung.obs_names).to_csv(path)
        return path

    def test_of_celltypist(self, sctool, home, lung, tmp_path):
        """An index column without a name, ``predicted_labels``; cells in another order, some missing, one right in six wrong."""
        labels = lung.obs["cell_type"].astype(str).to_numpy(object)
        labels[:30] = "other"
        table = pd.DataFrame({"predicted_labels": labels}, index=lung.obs_names)[:180].sample(frac=1, random_state=0)
        table.to_csv(tmp_path / "ct.csv")
        ran = self.score(sctool, home, "--pred", tmp_path / "ct.csv")
        assert ran.code == 0, ran.err
        assert "20 labelled cells of lung.h5ad are not in it" in ran.err
        metrics = strict_json(results(tmp_path, "e") / "ct/metrics.json")
        assert metrics["accuracy"] == pytest.approx(150 / 180)

    def test_label_map(self, sctool, home, lung, tmp_path):
        path = self.celltypist(lung, tmp_path / "ct.csv", ["the " + label for label in lung.obs["cell_type"]])
        (tmp_path / "map.tsv").write_text("".join(f"the {label}\t{label}\n" for label in lung.obs["cell_type"].unique()))
        assert self.score(sctool, home, "--pred", path, "--label-map", tmp_path / "map.tsv").code == 0
        assert strict_json(results(tmp_path, "e") / "ct/metrics.json")["accuracy"] == 1

    def test_no_label(self, sctool, home, lung, tmp_path):
        labels = np.where(np.arange(200) < 40, "Unassigned", lung.obs["cell_type"].astype(str))
        assert self.score(sctool, home, "--pred", self.celltypist(lung, tmp_path / "ct.csv", labels)).code == 0
        metrics = strict_json(results(tmp_path, "e") / "ct/metrics.json")
        assert metrics["coverage"] == pytest.approx(0.8)
        assert metrics["accuracy_assigned"] == 1
        assert metrics["accuracy"] == pytest.approx(0.8)

    def test_hierarchy(self, sctool, home, lung, tmp_path):
        (tmp_path / "tree.tsv").write_text("H1975\tadeno\nH2228\tadeno\nA549\tadeno\nadeno\tlung\nH838\tlung\nHCC827\tlung\n")
        exact = self.celltypist(lung, tmp_path / "exact.csv")
        broad = self.celltypist(lung, tmp_path / "broad.csv", ["adeno"] * 200)
        ran = self.score(sctool, home, "--pred", exact, broad, "--hierarchy", tmp_path / "tree.tsv")
        assert ran.code == 0, ran.err
        scores = [strict_json(results(tmp_path, "e") / name / "metrics.json")["hierarchical_f1"] for name in ("exact", "broad")]
        assert scores[0] == pytest.approx(1)
        assert 0.3 < scores[1] < 0.9

    def test_blanks_around_labels(self, sctool, home, lung, tmp_path):
        a = lung.copy()
        a.obs["cell_type"] = [f" {label} " for label in a.obs["cell_type"]]
        a.write_h5ad(tmp_path / "blanks.h5ad")
        assert self.score(sctool, home, "--pred", self.celltypist(lung, tmp_path / "ct.csv"), truth=tmp_path / "blanks.h5ad").code == 0
        assert strict_json(results(tmp_path, "e") / "ct/metrics.json")["accuracy"] == 1
