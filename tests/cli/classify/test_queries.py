"""Queries, models and predictions that cannot be used: one line of what is wrong, one of what to do."""

import re
import shutil

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from tests.cli.classify.test_inputs import FAST, L, assert_told, made, obs
from tests.cli.test_inputs import (
    absent,
    duplicated_cells,
    no_obs,
    transposed,
    truncated,
    with_value,
    write,
)
from tests.conftest import run_in


@pytest.fixture
def lung(few):
    return few


@pytest.fixture(scope="module")
def home(few, tmp_path_factory):
    place = tmp_path_factory.mktemp("inputs")
    few.write_h5ad(place / "lung.h5ad")
    flags = ("--no-plots", "--cv", "none", "--set", "classify.markers=40", "--quiet", "--threads", "1")
    run_in(place, "train", "classify", *L, "lung.h5ad", "--models", "lr", "svm", *flags, "--name", "m")
    run_in(
        place,
        "train",
        "scvi",
        "lung.h5ad",
        "--epochs",
        "1",
        "--n-hidden",
        "8",
        "--n-latent",
        "2",
        "--n-top-genes",
        "50",
        "--quiet",
        "--name",
        "s",
    )
    return place


@pytest.fixture
def model(home, tmp_path):
    """A copy that a test may break."""
    shutil.copytree(home / "checkpoints", tmp_path / "checkpoints")
    return tmp_path / "checkpoints/classify/m"


def other_genes(share):
    def make(a, path):
        a = a.copy()
        names = np.array(a.var_names, object)
        names[int(share * len(names)) :] = [f"OTHER{i}" for i in range(len(names) - int(share * len(names)))]
        a.var_names = names
        return write(a, path)

    return make


def linear(a):
    a.X = sp.csr_matrix(a.X.multiply(1e4 / a.X.sum(1)), dtype=np.float32)


def scaled_to_a_million(a):
    a.X = sp.csr_matrix(a.X.multiply(1e6 / a.X.sum(1)), dtype=np.float32)
    a.X.data = np.log1p(a.X.data)


QUERIES = {
    "no such file": (absent, (), "no such file"),
    "truncated": (truncated, (), "cut short"),
    "no obs": (no_obs, (), "no obs"),
    "transposed": (transposed, (), "swapped"),
    "no gene": (other_genes(0), (), "genes of the model are in the query"),
    "few genes": (other_genes(0.2), (), "genes of the model are in given.h5ad"),
    "ensembl": (made(lambda a: setattr(a, "var_names", [f"ENSG{i:011d}.3" for i in range(a.n_vars)])), (), "Ensembl ids like ENSG"),
    "scaled": (made(lambda a: setattr(a, "X", a.X.toarray() - 0.5)), (), "negative"),
    "NaN": (made(lambda a: setattr(a, "X", with_value(a, np.nan))), (), "NaN"),
    "negative": (made(lambda a: setattr(a, "X", with_value(a, -3))), (), "negative"),
    "another scale": (made(scaled_to_a_million), (), "scaled to 10,000"),
    "duplicated cells": (duplicated_cells, (), "cell names occur more than once"),
    "no cluster column": (write, ("--vote", "leiden"), "no column 'leiden'"),
    "vote share": (write, ("--vote", "auto", "--min-prop", "2"), "classify.min_share"),
    "rule that needs cells": (write, ("--reject", "quantile:0.9"), "is set on held-out cells"),
    "unknown rule": (write, ("--reject", "foo"), "unknown rule of rejection 'foo'"),
    "no hierarchy": (write, ("--hierarchy", "none.tsv"), "none.tsv"),
    "back off": (write, ("--back-off", "0"), "classify.back_off"),
    "no such layer": (write, ("--counts-layer", "cuonts"), "no layer 'cuonts'"),
}


@pytest.mark.parametrize("name", QUERIES)
def test_broken_queries(name, sctool, home, lung, tmp_path):
    make, flags, what = QUERIES[name]
    path = make(lung, tmp_path / "given.h5ad")
    before = set(tmp_path.rglob("*"))
    assert_told(sctool("predict", "classify", home / "checkpoints/classify/m", path, *flags), what)
    assert set(tmp_path.rglob("*")) == before


def test_few_genes_may_be_accepted(sctool, home, lung, tmp_path):
    path = other_genes(0.4)(lung, tmp_path / "query.h5ad")
    ran = sctool("predict", "classify", home / "checkpoints/classify/m", path, "--set", "data.min_gene_coverage=0.1", "--name", "p")
    assert ran.code == 0, ran.err
    assert "of what decides (by importance)" in ran.out


def test_a_hierarchy_without_a_type(sctool, home, tmp_path):
    (tmp_path / "tree.tsv").write_text("H1975\tadeno\nH2228\tadeno\n")
    ran = sctool("predict", "classify", home / "checkpoints/classify/m", home / "lung.h5ad", "--hierarchy", "tree.tsv")
    assert_told(ran, "A549")
    assert not (tmp_path / "results").exists()


def test_models_that_cannot_be_used(sctool, model, home, lung, tmp_path):
    def ask(what, remedy="", path=model):
        assert_told(sctool("predict", "classify", path, home / "lung.h5ad"), what, remedy)
        assert not (tmp_path / "results").exists()

    ask("not a model folder", path=tmp_path / "nowhere")
    ask("is a scvi model, not classify", "checkpoints/classify", path=tmp_path / "checkpoints/scvi/s")
    manifest = (model / "lr/manifest.json").read_text()
    (model / "lr/manifest.json").write_text(re.sub('"format": 1', '"format": 99', manifest))
    ask("format 99", "update", path=model / "lr")
    (model / "lr/manifest.json").write_text(manifest[:80])
    ask("cannot be read", "again", path=model / "lr")
    (model / "lr/manifest.json").write_text(manifest)
    weights = (model / "lr/model.safetensors").read_bytes()
    (model / "lr/model.safetensors").write_bytes(weights[:60])
    ask("cannot be read", "again", path=model / "lr")
    (model / "lr/model.safetensors").unlink()
    ask("no such file", "again", path=model / "lr")
    shutil.rmtree(model / "lr")
    ask("a mean of models", "whole run", path=model / "ensemble")
    (model / "recommended.json").write_text("{")
    ask("cannot be read", "again")


def test_an_embedding_of_another_width(sctool, lung, tmp_path):
    a = lung.copy()
    write(a, tmp_path / "a.h5ad")
    ran = sctool("train", "classify", "a.h5ad", *L, *FAST, "--features", "obsm:X_pca", "--name", "e")
    assert ran.code == 0
    a.obsm["X_pca"] = a.obsm["X_pca"][:, :3]
    write(a, tmp_path / "b.h5ad")
    assert_told(
        sctool("predict", "classify", "checkpoints/classify/e", "b.h5ad"), "has 3 dimensions; the model has 4", "as for the training"
    )
    del a.obsm["X_pca"]
    write(a, tmp_path / "c.h5ad")
    assert_told(sctool("predict", "classify", "checkpoints/classify/e", "c.h5ad"), "no obsm 'X_pca'")


def test_a_copy_into_a_folder(sctool, home, tmp_path):
    (tmp_path / "there").mkdir()
    ran = sctool("predict", "classify", home / "checkpoints/classify/m", home / "lung.h5ad", "--write-h5ad", "there")
    assert_told(ran, "there")
    assert not (tmp_path / "results").exists()


def test_a_copy_into_a_folder_by_force(sctool, home, tmp_path):
    (tmp_path / "there").mkdir()
    ran = sctool("predict", "classify", home / "checkpoints/classify/m", home / "lung.h5ad", "--write-h5ad", "there", "--force")
    assert_told(ran, "there")
    assert not (tmp_path / "results").exists()


# --- evaluation ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def called(lung, tmp_path):
    path = tmp_path / "called.csv"
    pd.DataFrame({"cell": lung.obs_names, "label": lung.obs["cell_type"]}).to_csv(path, index=False)
    return path


def score(sctool, home, *words, truth=None):
    return sctool("eval", "classify", "--truth", truth or home / "lung.h5ad", *words)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ((*L,), "nothing to score"),
        ((*L, "--pred", "nowhere.csv"), "nowhere.csv: no such file"),
        (("--label-key", "celltype", "--pred", "called.csv"), "no column 'celltype'"),
        (("--pred", "called.csv"), "column of true labels is not known"),
        ((*L, "--pred", "called.csv", "--pred-column", "lable"), "no column 'lable'"),
        ((*L, "--pred", "called.csv", "--label-map", "map.tsv"), "map.tsv: no such file"),
        ((*L, "--pred", "called.csv", "--hierarchy", "tree.tsv"), "tree.tsv"),
        ((*L, "--pred", "called.csv", "--group-key", "donor"), "no column 'donor'"),
        ((*L, "--pred", "twice.csv"), "occurs more than once"),
        ((*L, "--pred", "others.csv"), "none of the labelled cells"),
        ((*L, "--pred", "bytes.csv"), "cannot be read"),
        ((*L, "--pred", "empty.csv"), "cannot be read"),
        ((*L, "--pred", "bare.csv"), "no column of labels that is known"),
        ((*L, "--pred", "called.csv", "--label-map", "one.tsv"), "is not a pair"),
        pytest.param((*L, "--pred", "called.csv", "--label-map", "bytes.csv"), ""),
        pytest.param((*L, "--pred", "."), ""),
    ],
)
def test_predictions_that_cannot_be_scored(words, what, sctool, home, lung, called, tmp_path):
    table = pd.read_csv(called)
    pd.concat([table, table[:3]]).to_csv(tmp_path / "twice.csv", index=False)
    table.assign(cell="x" + table["cell"]).to_csv(tmp_path / "others.csv", index=False)
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00\x89")
    (tmp_path / "empty.csv").write_bytes(b"")
    table[["cell"]].assign(x=1).to_csv(tmp_path / "bare.csv", index=False)
    (tmp_path / "one.tsv").write_text("a\n")
    if words[-1] == ".":
        table.to_csv(tmp_path / "predictions.csv", index=False)
        assert score(sctool, home, *words, "--name", "e").code == 0
        return
    before = set(tmp_path.rglob("*"))
    assert_told(score(sctool, home, *words), what)
    assert set(tmp_path.rglob("*")) == before


def test_a_truth_with_duplicated_cells(sctool, home, lung, called, tmp_path):
    path = duplicated_cells(lung, tmp_path / "dup.h5ad")
    assert_told(score(sctool, home, *L, "--pred", called, truth=path), "cell names", "unique")


def test_a_truth_without_labels(sctool, home, lung, called, tmp_path):
    path = obs("cell_type", lambda a: "Unknown")(lung, tmp_path / "none.h5ad")
    ran = score(sctool, home, *L, "--pred", called, truth=path)
    assert_told(ran, "label")
    assert "it names cells like" not in ran.err


def test_probabilities_of_other_cells(sctool, home, lung, tmp_path):
    table = pd.DataFrame({"cell": lung.obs_names, "label": lung.obs["cell_type"]})
    table.to_csv(tmp_path / "predictions.csv", index=False)
    pd.get_dummies(table.set_index("cell")["label"]).astype(float)[5:].to_csv(tmp_path / "proba.csv")
    assert_told(score(sctool, home, *L, "--pred", "predictions.csv", "--name", "e"), "proba.csv lacks 5 of the cells", "belongs to it")


def test_probabilities_of_a_missing_cell_are_not_asked_for(sctool, home, lung, tmp_path):
    """More cells in the files than are labelled."""
    table = pd.DataFrame({"cell": [*lung.obs_names, "extra"], "label": [*lung.obs["cell_type"], "A549"]})
    table.to_csv(tmp_path / "predictions.csv", index=False)
    pd.get_dummies(table.set_index("cell")["label"]).astype(float).to_csv(tmp_path / "proba.csv")
    ran = score(sctool, home, *L, "--pred", "predictions.csv", "--name", "e")
    assert ran.code == 0, ran.err
