"""Wrong settings and wrong files of samples: one line of what, one of what to do, nothing written."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from tests.cli.cradle.conftest import refused
from tests.samples.conftest import KEYS, QUICK, dims, files, model, read, written

BARE = ("--cv", "none")  # where the test of the model is not what is asked about


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--sample-key is missing"),
        (("--sample-key", "smple"), "no column 'smple'"),
        (("--sample-key", "condition"), "at least 4 are needed"),
        (("--sample-key", "sample", "--donor-key", "cell_type"), "is not one value for each sample"),
        ((*KEYS, "--task", "cell_type"), "is not one value for each sample"),
        ((*KEYS, "--task", "cond"), "condition"),
        ((*KEYS, "--task", "condition:regression"), "is not a number"),
        ((*KEYS, "--task", "stage:ordinal"), "sampleclr.orders"),
        ((*KEYS, "--task", "condition:klass"), "'klass' is not known"),
        ((*KEYS, "--batch-key", "btch"), "no column 'btch'"),
        ((*KEYS, "--label-key", "typ"), "no column 'typ'"),
        ((*KEYS, "--study-key", "stdy"), "no column 'stdy'"),
        ((*KEYS, "--covariate", "sex"), "no column 'sex'"),
        ((*KEYS, "--rep", "obsm:X_umap"), "obsm"),
        ((*KEYS, "--rep", "X_pca"), "obsm:X_pca"),
        ((*KEYS, "--rep", "layers:raw"), "layers/raw"),
        ((*KEYS, "--min-cells", "41"), "at least 4 are needed"),
        ((*KEYS, "--cells-per-view", "many"), "is not a number or two"),
        ((*KEYS, "--cells-per-view", "10-5"), "the least is above the most"),
        ((*KEYS, "--cv", "donors:1"), "is not known"),
        ((*KEYS, "--cv", "leave-one-study-out", "--task", "condition"), "--study-key"),
        ((*KEYS, "--prior", "nowhere.csv"), "no such file"),
        ((*KEYS, "--prior", "nowhere.csv", "--dry-run"), "no such file"),
        ((*KEYS, "--prior", "gloscope", "--set", "sampleclr.loss=infonce_cosine"), "--prior needs sampleclr.loss xsample"),
        ((*KEYS, "--preset", "huge"), "preset"),
        ((*KEYS, "--set", "sampleclr.n_headz=2"), "n_heads"),
        ((*KEYS, "--set", "sampleclr.cell_weights=w"), "no column 'w'"),
        ((*KEYS, "--name", "a/b"), "is not a folder name"),
        ((*KEYS, "--epochs", "0"), "epochs"),
    ],
)
def test_wrong_settings_write_nothing(train, tmp_path, words, said):
    refused(train(*words, keys=()), said)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.h5ad"]


def _nan(a):
    a.obsm["X_pca"][7, 2] = np.nan


def _negative(a):
    a.X = a.X.toarray() - 0.5 * (np.arange(a.n_obs) == 3)[:, None]


def _no_donor(a):
    a.obs["donor"] = a.obs["donor"].where(a.obs["donor"] != "d0")


@pytest.mark.parametrize(
    ("change", "words", "said"),
    [
        (_nan, (), "NaN"),
        (_negative, ("--rep", "X"), "negative"),
        (lambda a: a[:, :0].copy(), ("--rep", "X"), ""),
        (lambda a: a[a.obs["condition"] == "ill"].copy(), ("--task", "condition"), "all samples have the value 'ill'"),
        (lambda a: a[a.obs["donor"].isin(["d1", "d3", "d0", "d2", "d4"])].copy(), ("--task", "condition"), "'ill' has 2 donors"),
        (_no_donor, (), "have no donor"),
    ],
)
def test_wrong_files_write_nothing(tiny, train, tmp_path, change, words, said):
    refused(train(*words, path=written(tiny, tmp_path, change)), said)
    assert not (tmp_path / "results").exists()
    assert not (tmp_path / "checkpoints").exists()


def test_no_file(train, tmp_path):
    refused(train(path=tmp_path / "none.h5ad"), "none.h5ad")


@pytest.mark.parametrize(
    ("change", "words", "said"),
    [
        (lambda a: a.obsm.__setitem__("X_pca", a.obsm["X_pca"][:, :4]), (), "4 dimensions, the model was trained on 5"),
        (lambda a: a.obsm.__delitem__("X_pca"), (), "say where it is with --rep"),
        (lambda a: a.obs.drop(columns="sample", inplace=True), (), "no column 'sample'"),
        (lambda a: None, ("--label-key", "typ"), "no column 'typ'"),
        (lambda a: None, ("--rep", "obsm:X_umap"), "X_umap"),
        (_nan, (), "NaN"),
    ],
)
def test_wrong_files_are_not_predicted(tiny, sctool, home, tmp_path, change, words, said):
    path = written(tiny, tmp_path, change)
    refused(sctool("predict", "sampleclr", model(home, "told"), path, "--quiet", *words), said)
    assert not (tmp_path / "results").exists()


def test_models_of_another_kind_are_refused(sctool, home, tiny_file, tmp_path):
    refused(sctool("predict", "sampleclr", home / "results", tiny_file), "is not a model folder")
    refused(sctool("predict", "scvi", model(home, "plain"), tiny_file), "is a sampleclr model")
    refused(sctool("train", "sampleclr", tiny_file, *KEYS, *QUICK, "--rep", model(home, "plain")), "sampleclr")
    assert not (tmp_path / "results").exists()


def test_results_are_not_overwritten(sctool, home, tiny_file, predict, tmp_path):
    before = files(predict("plain", tiny_file))
    refused(sctool("predict", "sampleclr", model(home, "plain"), tiny_file, "--name", "p"), "--force")
    assert files(tmp_path / "results/sampleclr/p") == before


def test_a_file_with_another_name_for_the_representation(tiny, home, predict, tmp_path):
    def change(a):
        a.obsm["X_mine"] = a.obsm["X_pca"]
        del a.obsm["X_pca"]

    folder = predict("plain", written(tiny, tmp_path, change), "--rep", "obsm:X_mine")
    np.testing.assert_allclose(dims(read(folder, "embeddings")), dims(read(model(home, "plain"), "embeddings")), atol=1e-5)


def test_a_finer_check_before_training(sctool, tiny_file):
    ran = sctool("check", tiny_file, "--for", "sampleclr", *KEYS, "--set", "sampleclr.min_cells=40")
    assert ran.code == 0, ran.err
    ran = sctool("check", tiny_file, "--for", "sampleclr", "--sample-key", "smple")
    assert ran.code == 2
    assert "smple" in ran.out + ran.err


def test_a_file_backed_by_a_view_of_the_demo_needs_no_flags(sctool):
    ran = sctool("train", "sampleclr", "--dry-run", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["samples"] == "48 of 48, of 32 donors"


def test_cells_without_a_sample_are_left_out_of_the_tables(tiny, train, tmp_path):
    def change(a):
        a.obs["sample"] = a.obs["sample"].astype(object).where(np.arange(a.n_obs) % 4 > 0)

    assert train("--name", "m", *BARE, path=written(tiny, tmp_path, change)).code == 0
    cells = pd.read_csv(tmp_path / "results/sampleclr/m/cell_importance.csv.gz")
    names = ad.read_h5ad(tmp_path / "new.h5ad").obs_names
    assert cells["cell"].tolist() == [name for number, name in enumerate(names) if number % 4]
