"""``sctool predict sampleclr``: the file of training, new files, and what cannot be trusted."""

import gzip

import numpy as np
import pandas as pd
import pytest

from tests.cli.cradle.conftest import refused
from tests.samples.conftest import dims, model, read, results, written

BARE = ("--cv", "none")  # where the test of the model is not what is asked about


@pytest.mark.parametrize("name", ["plain", "told", "genes"])
@pytest.mark.parametrize("order", ["file", "permuted"])
def test_the_file_of_training_gives_the_embedding_of_training(tiny, home, predict, tmp_path, name, order):
    rows = np.random.default_rng(0).permutation(tiny.n_obs) if order == "permuted" else np.arange(tiny.n_obs)
    folder = predict(name, written(tiny, tmp_path, lambda a: a[rows].copy()))
    a, b = read(folder, "embeddings"), read(model(home, name), "embeddings")
    assert a["sample"].tolist() == b["sample"].tolist()
    np.testing.assert_allclose(dims(a), dims(b), atol=1e-5)
    assert not a["far"].any()
    cells = pd.read_csv(folder / "cell_importance.csv.gz").set_index("cell")["enrichment"]
    trained = pd.read_csv(results(home, name) / "cell_importance.csv.gz").set_index("cell")["enrichment"]
    np.testing.assert_allclose(cells[trained.index], trained, rtol=1e-4)


def test_predictions_have_a_kind_each(home, predict):
    table = read(predict("told", home / "tiny.h5ad", "--draws", "3"), "predictions")
    assert table["task"].value_counts().to_dict() == {"condition": 14, "age": 14, "stage": 14}
    assert (table["sd"] > 0).all()
    one = table[table["task"] == "condition"]
    assert ((one["p_well"] > 0.5) == (one["prediction"] == "well")).all()
    assert set(table.loc[table["task"] == "stage", "prediction"]) <= {"mild", "severe", "worst"}
    assert pd.to_numeric(table.loc[table["task"] == "age", "prediction"]).between(0, 80).all()
    assert "sd" not in read(predict("told", home / "tiny.h5ad", "--force"), "predictions")


def test_genes_are_found_by_name(tiny, home, predict, tmp_path):
    want = dims(read(model(home, "genes"), "embeddings"))
    columns = np.random.default_rng(0).permutation(60)
    folder = predict("genes", written(tiny, tmp_path, lambda a: a[:, columns].copy()))
    np.testing.assert_allclose(dims(read(folder, "embeddings")), want, atol=1e-5)


def test_genes_that_are_missing_stand_at_their_mean(tiny, home, predict, sctool, tmp_path):
    path = written(tiny, tmp_path, lambda a: a[:, :57].copy())
    got, want = dims(read(predict("genes", path), "embeddings")), dims(read(model(home, "genes"), "embeddings"))
    assert 1e-4 < np.abs(got - want).max() < np.abs(want[:, None] - want).max()
    path = written(tiny, tmp_path, lambda a: a[:, 50:].copy())
    refused(sctool("predict", "sampleclr", model(home, "genes"), path, "--name", "q", "--quiet"), "genes")
    assert not (tmp_path / "results/sampleclr/q").exists()


def test_samples_not_to_be_trusted_are_flagged(tiny, predict, tmp_path):
    def change(a):
        a.obsm["X_pca"][(a.obs["sample"] == "s01").to_numpy()] += 30
        return a[(a.obs["sample"] != "s02") | (np.arange(a.n_obs) % 5 == 0)].copy()

    table = read(predict("told", written(tiny, tmp_path, change)), "embeddings").set_index("sample")
    assert table.index[table["far"]].tolist()[:1] == ["s01"]
    assert not table.loc["s00", "far"]
    assert table.index[~table["enough_cells"]].tolist() == ["s02"]


def test_donors_of_the_new_file_are_told_where_it_has_them(tiny, home, predict, tmp_path):
    """A type is tested over donors: with samples in their place, those of one donor would count as many."""
    folder = predict("told", home / "tiny.h5ad")
    assert set(read(folder, "importance_tests")["n_donors"]) == {10}
    folder = predict("told", written(tiny, tmp_path, lambda a: a.obs.drop(columns="donor", inplace=True)), "--force")
    assert set(read(folder, "importance_tests")["n_donors"]) == {14}


def test_any_words_are_names_of_classes(tiny, train, sctool, tmp_path):
    said = {}
    for run, own in (("usual", ("ill", "well")), ("numbers", ("1.0", "2.0")), ("nothing", ("NA", "None"))):

        def change(a, own=own):
            a.obs["condition"] = np.where(a.obs["condition"] == "ill", *own)

        path = written(tiny, tmp_path, change)
        assert train("--task", "condition:class", "--cv", "none", "--name", run, path=path).code == 0
        ran = sctool("predict", "sampleclr", f"checkpoints/sampleclr/{run}", path, "--quiet", "--name", f"by-{run}")
        assert ran.code == 0, ran.err
        said[run] = read(tmp_path / "results/sampleclr" / f"by-{run}", "predictions")[[f"p_{name}" for name in own]].to_numpy()
    np.testing.assert_array_equal(said["numbers"], said["usual"])
    np.testing.assert_array_equal(said["nothing"], said["usual"])


def test_importance_can_be_left_out(home, predict):
    folder = predict("plain", home / "tiny.h5ad", "--no-importance")
    assert sorted(path.name for path in folder.iterdir()) == ["distances.csv", "embeddings.csv", "metrics.json"]


def test_importance_is_the_same_bytes_whenever_it_is_written(home, predict):
    first = (predict("plain", home / "tiny.h5ad") / "cell_importance.csv.gz").read_bytes()
    assert (predict("plain", home / "tiny.h5ad", "--force") / "cell_importance.csv.gz").read_bytes() == first
    assert gzip.decompress(first).startswith(b"cell,sample,")
