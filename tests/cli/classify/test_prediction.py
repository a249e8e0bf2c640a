"""`sctool predict classify`: the answers of training again, other genes, votes, hierarchies."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from tests.cli.classify.conftest import MODELS, results
from tests.cli.test_commands import files, strict_json


def same_answers(trained, predicted):
    """What predict says of the cells that training tested is what training wrote."""
    one, two = (pd.read_csv(folder / "predictions.csv", dtype={"cell": str}).set_index("cell") for folder in (trained, predicted))
    two = two.loc[one.index]
    assert list(one["y_pred"]) == list(two["label_raw"])
    assert list(one["label"]) == list(two["label"])
    assert list(one["rejected"]) == list(two["rejected"])
    for column in ("confidence", "margin", "entropy"):
        np.testing.assert_array_equal(one[column], two[column], err_msg=column)
    p, q = (pd.read_csv(folder / "proba.csv", dtype={"cell": str}).set_index("cell") for folder in (trained, predicted))
    assert list(p.columns) == list(q.columns)
    np.testing.assert_allclose(q.loc[p.index], p, atol=1.1e-6, rtol=0)


class TestPrediction:
    @pytest.mark.parametrize("name", MODELS)
    def test_of_the_training_file_is_what_training_wrote(self, name, predict, home, tmp_path):
        ran, _ = predict(model=f"m/{name}")
        assert ran.code == 0, ran.err
        assert set(files(results(tmp_path, "p"))) == {"predictions.csv", "proba.csv", "gene_report.tsv", "metrics.json"}
        same_answers(home / "results/classify/m" / name, results(tmp_path, "p"))

    def test_of_the_training_file_is_the_same_to_the_last_digit(self, predict, home, tmp_path):
        for name in MODELS:
            predict(model=f"m/{name}", name=name)
            p, q = (pd.read_csv(f / "proba.csv", index_col=0) for f in (home / "results/classify/m" / name, results(tmp_path, name)))
            np.testing.assert_array_equal(q.loc[p.index], p)

    def test_files(self, predict, lung, tmp_path):
        ran, table = predict("--json")
        assert ran.code == 0, ran.err
        assert json.loads(ran.out)["cells"] == 200
        columns = ["cell", "label", "label_raw", "confidence", "margin", "entropy", "rejected"]
        assert list(table.columns)[:7] == columns
        assert list(table["cell"]) == list(lung.obs_names)
        report = pd.read_csv(results(tmp_path, "p") / "gene_report.tsv", sep="\t")
        assert list(report.columns) == ["feature", "status", "query_name", "importance_rank"]
        assert set(report["status"]) == {"exact"}
        assert list(report["importance_rank"]) == list(range(1, 51))
        assert strict_json(results(tmp_path, "p") / "metrics.json")["features_covered"] == 1
        assert predict()[0].code == 2  # it is there already
        assert predict("--force")[0].code == 0

    @pytest.mark.parametrize("model", ["m", "m/lr", pytest.param("m/xgb"), "m/mlp"])
    def test_other_names_and_orders_of_genes(self, model, predict, lung, tmp_path):
        rng = np.random.default_rng(0)
        _, base = predict(model=model, name="base")
        order = rng.permutation(300)
        variants = {"shuffled": (lung[:, order].copy(), {"exact"}), "fewer": (lung[:, np.sort(order[:240])].copy(), {"exact", "missing"})}
        lower = lung.copy()
        lower.var_names = [name.lower() for name in lung.var_names]
        variants["case"] = lower, {"case"}
        ids = lung.copy()
        ids.var["symbol"] = list(lung.var_names)
        ids.var_names = [f"ENSG{i:011d}" for i in range(300)]
        variants["symbols"] = ids, {"symbol"}
        half = np.floor(lung.X[:, :40].toarray() / 2)
        twice = ad.AnnData(sp.csr_matrix(np.hstack([half, lung.X.toarray()])), obs=lung.obs)
        twice.X[:, 40:80] -= sp.csr_matrix(half)
        twice.var_names = [*lung.var_names[:40], *lung.var_names]
        variants["duplicate"] = twice, {"exact", "duplicate"}
        for name, (a, statuses) in variants.items():
            ran, table = predict(a=a, model=model, name=name)
            assert ran.code == 0, ran.err
            agree = (table["label_raw"] == base["label_raw"]).mean()
            few = 0.85 if model == "m/xgb" else 0.95  # trees lean on few genes, and a fifth is taken away
            assert agree >= few if name == "fewer" else agree == 1, name
            report = pd.read_csv(results(tmp_path, name) / "gene_report.tsv", sep="\t")
            assert set(report["status"]) == statuses, name
            if name != "fewer":
                np.testing.assert_allclose(table["confidence"], base["confidence"], atol=2e-5)

    def test_versions_of_ensembl_ids(self, train, predict, sctool, lung, tmp_path):
        a = lung.copy()
        a.var_names = [f"ENSG{i:011d}.{i % 7}" for i in range(300)]
        a.write_h5ad(tmp_path / "ids.h5ad")
        assert train("--models", "lr", "--cv", "none", path=tmp_path / "ids.h5ad").code == 0
        tables = {}
        for version in ("", ".12", ".3"):
            a.var_names = [name.split(".")[0] + version for name in a.var_names]
            ran, tables[version] = predict(a=a, model=tmp_path / "checkpoints/classify/r", name=f"v{version}")
            assert ran.code == 0, ran.err
        assert tables[""].equals(tables[".12"])
        assert tables[""].equals(tables[".3"])

    def test_reject(self, predict):
        _, none = predict("--reject", "none", name="none")
        assert (none["label"] == none["label_raw"]).all()
        _, strict = predict("--reject", "max_prob:0.99", name="strict")
        assert ((strict["confidence"] < 0.99) == (strict["label"] == "Unassigned")).all()
        assert strict["rejected"].any()

    def test_vote(self, predict, lung):
        _, own = predict(name="own")
        a = lung.copy()
        a.obs["cluster"] = lung.obs["cell_type"].astype(str).replace("H838", "H2228").to_numpy()
        ran, table = predict("--vote", "cluster", a=a, name="vote")
        assert ran.code == 0, ran.err
        assert list(table["label_cell"]) == list(own["label"])
        for cluster, part in table.groupby("cluster"):
            counts = part["label_cell"].value_counts()
            assert part["label"].nunique() == 1
            assert counts[part["label"].iloc[0]] == counts.max()
            np.testing.assert_allclose(part["vote_share"], counts.max() / len(part))
            assert len(part) == (a.obs["cluster"] == cluster).sum()
        _, mixed = predict("--vote", "cluster", "--min-prop", "1", a=a, name="mixed")
        unanimous = mixed["vote_share"] == 1
        assert (mixed["label"][~unanimous] == "Heterogeneous").all()
        assert (mixed["label"][unanimous] != "Heterogeneous").all()
        assert not unanimous.all()
        ran, auto = predict("--vote", "auto", name="auto")
        assert ran.code == 0, ran.err
        assert auto.groupby("cluster")["label"].nunique().max() == 1
        assert (auto["label"] == lung.obs["cell_type"].to_numpy()).mean() > 0.85

    @pytest.mark.parametrize("n", [pytest.param(1), 3, 25])
    def test_few_cells(self, predict, lung, n):
        _, whole = predict(name="whole")
        _, few = predict(a=lung[:n].copy(), name="few")
        assert list(few["label"]) == list(whole["label"][:n])
        np.testing.assert_allclose(few["confidence"], whole["confidence"][:n], atol=1e-5)
        ran, auto = predict("--vote", "auto", a=lung[:n].copy(), name="auto")
        assert ran.code == 0, ran.err
        assert len(auto) == n

    def test_cells_without_counts(self, predict, lung):
        a = lung.copy()
        x = a.X.tolil()
        x[:3] = 0
        a.X = x.tocsr()
        ran, table = predict(a=a)
        assert ran.code == 0, ran.err
        assert np.isfinite(table["confidence"]).all()
        _, whole = predict(name="whole")
        assert table[3:].equals(whole[3:])

    def test_hierarchy(self, predict, tmp_path):
        (tmp_path / "tree.tsv").write_text(
            "child\tparent\nH1975\tadeno\nH2228\tadeno\nA549\tadeno\nadeno\tlung\nH838\tlung\nHCC827\tlung\n"
        )
        ran, table = predict("--hierarchy", tmp_path / "tree.tsv", "--back-off", "0.999")
        assert ran.code == 0, ran.err
        sure = table["confidence"] >= 0.999
        assert (table["label"][sure] == table["label_raw"][sure]).all()
        assert set(table["label"][~sure]) == {"adeno", "Unassigned"}  # all are of lung: that says nothing
        p = pd.read_csv(results(tmp_path, "p") / "proba.csv", index_col=0)
        together = p[["H1975", "H2228", "A549"]].sum(axis=1).to_numpy()
        assert (together[table["label"] == "adeno"] >= 0.999 - 1e-5).all()

    def test_write_h5ad(self, predict, home, tmp_path):
        before = (home / "lung.h5ad").read_bytes()
        ran, table = predict("--write-h5ad", tmp_path / "new" / "labelled.h5ad")
        assert ran.code == 0, ran.err
        assert (home / "lung.h5ad").read_bytes() == before
        old, new = ad.read_h5ad(home / "lung.h5ad"), ad.read_h5ad(tmp_path / "new" / "labelled.h5ad")
        assert list(new.obs["sctool_label"]) == list(table["label"])
        np.testing.assert_allclose(new.obs["sctool_confidence"], table["confidence"])
        assert new.obs["sctool_rejected"].dtype == bool
        pd.testing.assert_frame_equal(new.obs[old.obs.columns], old.obs)
        assert (new.X != old.X).nnz == 0
        assert list(tmp_path.rglob("*.part")) == []
        ran, _ = predict("--write-h5ad", tmp_path / "new" / "labelled.h5ad", name="again")
        assert ran.code == 2
        assert not results(tmp_path, "again").exists()

    def test_the_source_is_never_overwritten(self, predict, lung_file):
        before = lung_file.read_bytes()
        ran, _ = predict("--write-h5ad", lung_file, "--force", path=lung_file)
        assert lung_file.read_bytes() == before
        assert ran.code == 2

    def test_an_ensemble_says_how_many_agree(self, predict):
        _, table = predict(model="m/ensemble")
        assert table["n_agree"].between(0, 5).all()
        assert (table["n_agree"] == 5).mean() > 0.5
