"""Broken and odd inputs of classification: exit code 2, what is wrong, what to do, no traceback, nothing half-written."""

import gzip

import numpy as np
import pandas as pd
import pytest

from tests.cli.test_inputs import (
    absent,
    duplicated_cells,
    duplicated_genes,
    few_cells,
    folder,
    lognorm,
    loom,
    no_genes,
    no_obs,
    tenx,
    text,
    transposed,
    truncated,
    with_value,
    write,
    zeros,
)

FAST = ("--models", "lr", "--cv", "none", "--no-plots", "--set", "classify.markers=40")
L = ("--label-key", "cell_type")
G = (*L, "--group-key", "batch")
S = (*L, "--split-key", "batch")


@pytest.fixture
def lung(few):
    return few


def assert_told(ran, what, remedy=""):
    assert ran.code == 2, ran.err
    assert "Traceback" not in ran.err + ran.out
    said = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    fixes = [line for line in ran.err.splitlines() if line.startswith("  fix: ")]
    assert len(said) == len(fixes) >= 1
    assert any(what in line for line in said), ran.err
    assert any(remedy in line for line in fixes), ran.err


def obs(key, make):
    def change(a, path):
        a = a.copy()
        a.obs[key] = make(a)
        return write(a, path)

    return change


def made(change):
    def make(a, path):
        a = a.copy()
        change(a)
        return write(a, path)

    return make


def nan_embedding(a):
    a.obsm["X_pca"][3, 1] = np.nan


def half_labelled(a):
    return np.where(np.arange(a.n_obs) < 0.4 * a.n_obs, a.obs["cell_type"], "Unknown")


def one_sided(a):
    labels = a.obs["cell_type"].astype(str)
    return np.where(a.obs["batch"] == "sc_dropseq", "x" + labels, labels)


FILES = {
    # opening
    "no such file": (absent, L, "no such file", "cells.h5ad"),
    "empty file": (text(b""), L, "is empty", "again"),
    "gzip": (text(gzip.compress(b"x" * 99)), L, "gzip", "write_h5ad"),
    "an R file": (text(b"RDX3\nX\n" + b"x" * 99), L, "not an .h5ad", ""),
    "web page": (text(b"<!DOCTYPE html><html>"), L, "web page", ""),
    "truncated": (truncated, L, "cut short", "again"),
    "HDF5 without obs": (no_obs, L, "no obs", "JoinLayers"),
    "10x file": (tenx, L, "10x", ""),
    "loom": (loom, L, "loom", ""),
    "transposed": (transposed, L, "swapped", "transpose"),
    "a folder": (folder, L, "is a folder", "file"),
    "no genes": (no_genes, L, "empty", ""),
    # columns
    "no label key": (write, (), "needs labels", "--label-key"),
    "missing label key": (write, ("--label-key", "celltype"), "no column 'celltype'", "did you mean 'cell_type'"),
    "missing group key": (write, (*L, "--group-key", "donor"), "no column 'donor'", ""),
    "missing split key": (write, (*L, "--split-key", "bacth", "--split-test", "x"), "no column 'bacth'", "did you mean 'batch'"),
    "split value": (write, (*S, "--split-train", "sc_dropsec"), "no 'sc_dropsec'; it has: ", "did you mean 'sc_dropseq'"),
    "split values without key": (write, (*L, "--split-test", "sc_dropseq"), "need --split-key", "column"),
    "overlap": (write, (*S, "--split-train", "sc_dropseq", "sc_celseq2", "--split-test", "sc_dropseq"), "(sc_dropseq)", "leave them out"),
    "groups on both sides": (
        obs("half", lambda a: np.where(np.arange(a.n_obs) % 2, "a", "b")),
        (*G, "--split-key", "half", "--split-test", "a"),
        "on both sides of the split: sc_celseq2",
        "whole groups",
    ),
    "groups missing": (
        obs("batch", lambda a: pd.Series(a.obs["batch"]).where(np.arange(a.n_obs) > 3).astype("category")),
        G,
        "4 of",
        "fill",
    ),
    "a group for each cell": (obs("batch", lambda a: a.obs_names), G, "values for", "donors"),
    "no such condition": (write, (*L, "--set", "data.cells=batch=x"), "no 'x'", ""),
    # labels
    "no labels": (obs("cell_type", lambda a: "Unknown"), L, "cells have no label", ""),
    "few labels": (obs("cell_type", half_labelled), L, "have no label in obs['cell_type']", "data.cells"),
    "continuous": (write, ("--label-key", "number"), "looks continuous", "types"),
    "one type": (obs("cell_type", lambda a: "T"), L, "of one type only: T", "two types"),
    "one type in training": (
        obs("cell_type", lambda a: np.where(a.obs["batch"] == "sc_dropseq", "T", "B")),
        (*S, "--split-train", "sc_dropseq"),
        "of one type only: T",
        "two types",
    ),
    "one type is left": (
        obs("cell_type", lambda a: np.where(np.arange(a.n_obs) < 5, "rare", "T")),
        (*L, "--min-cells-per-class", "10"),
        "of one type only: T",
        "min_cells",
    ),
    "no type on both sides": (obs("cell_type", one_sided), (*S, "--split-test", "sc_dropseq"), "share no label (training: ", "names"),
    "no label in the test": (
        obs("cell_type", lambda a: np.where(a.obs["batch"] == "sc_dropseq", "Unknown", a.obs["cell_type"])),
        (*S, "--split-test", "sc_dropseq"),
        "no test cell has a label",
        "--split-test",
    ),
    # matrix
    "scaled": (made(lambda a: setattr(a, "X", a.X.toarray() - 0.5)), L, "negative", "counts"),
    "NaN": (made(lambda a: setattr(a, "X", with_value(a, np.nan))), L, "NaN", "counts"),
    "infinity": (made(lambda a: setattr(a, "X", with_value(a, np.inf))), L, "infinite", "counts"),
    "negative": (made(lambda a: setattr(a, "X", with_value(a, -3))), L, "negative", "counts"),
    "all zeros": (zeros, L, "all zeros", "counts"),
    "binarised": (made(lambda a: setattr(a, "X", (a.X > 0).astype(np.float32))), L, "binarised", "counts"),
    "a layer that is no counts": (
        made(lambda a: a.layers.__setitem__("lognorm", lognorm(a))),
        (*L, "--counts-layer", "lognorm"),
        "lognorm is log1p",
        "another",
    ),
    "no such layer": (write, (*L, "--counts-layer", "cuonts"), "no layer 'cuonts'", ""),
    "duplicated genes": (duplicated_genes, L, "1 gene names", "var_names_make_unique"),
    "duplicated cells": (duplicated_cells, L, "1 cell names", "obs_names_make_unique"),
    "few cells": (few_cells, L, "only 5 cells", "more cells"),
    # features
    "no such embedding": (write, (*L, "--features", "obsm:X_harmony"), "no obsm 'X_harmony'; it has: X_pca", ""),
    "NaN in an embedding": (made(nan_embedding), (*L, "--features", "obsm:X_pca"), "NaN or infinite values in 1 cells", "again"),
    "unknown features": (write, (*L, "--features", "pca"), "'pca' is neither", "one gene per line"),
}


@pytest.mark.parametrize("name", FILES)
def test_broken_files(name, sctool, lung, tmp_path):
    make, flags, what, remedy = FILES[name]
    path = make(lung, tmp_path / "given.h5ad")
    before = set(tmp_path.rglob("*"))
    assert_told(sctool("train", "classify", path, *flags, *FAST), what, remedy)
    assert set(tmp_path.rglob("*")) == before


FLAGS = {
    "unknown model": (("--models", "svc"), "unknown model 'svc'; there are: lr, svm, rf, xgb, mlp", "did you mean 'svm'"),
    "baselines only": (("--models", "knn", "majority"), "no model to train", "--models"),
    "cv": (("--cv", "groups:1"), "'groups:1' is not known", "groups:K"),
    "no groups": (("--cv", "groups:3"), "no column of groups", "--group-key"),
    "one group": (("--cv", "pairs", "--group-key", "one"), "only the group 'd'", "cells:5"),
    "more folds than cells": (("--cv", "cells:500"), "500 folds of", "fewer"),
    "rejection": (("--reject", "strict"), "unknown rule of rejection 'strict'", "max_prob:0.5"),
    "rejection without a number": (("--reject", "quantile"), "between 0 and 1", "quantile:0.95"),
    "rejection out of range": (("--reject", "conformal:1.5"), "between 0 and 1", ""),
    "calibration": (("--calibrate", "platt"), "classify.calibrate", ""),
    "imbalance": (("--imbalance", "adasyn"), "classify.imbalance", ""),
    "no cells of a class": (("--max-cells-per-class", "0"), "classify.max_cells", ""),
    "unknown key": (("--set", "classify.model=lr"), "did you mean classify.models", ""),
    "negative seed": (("--seed", "-1"), "seed", ""),
    "a device that is not there": (("--device", "cuda:77", "--models", "mlp"), "cuda:77", "cpu"),
    "a name with a slash": (("--name", "a/b"), "folder name", ""),
}


@pytest.mark.parametrize("name", FLAGS)
def test_wrong_settings(name, sctool, lung, tmp_path):
    flags, what, remedy = FLAGS[name]
    path = write(lung, tmp_path / "given.h5ad")
    before = set(tmp_path.rglob("*"))
    first = [*(() if "--cv" in flags else ("--cv", "none")), *(() if "--models" in flags else ("--models", "lr"))]
    assert_told(sctool("train", "classify", path, *L, "--no-plots", *first, *flags), what, remedy)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "names no gene"),
        (b"\n \n", "names no gene"),
        (b"G1\nG2\n", "none of the 2 genes"),
        pytest.param(b"\x89HDF\r\n\x1a\n\xff\xfe", "text"),
    ],
)
def test_lists_of_genes(sctool, lung, tmp_path, content, what):
    (tmp_path / "genes.txt").write_bytes(content)
    ran = sctool("train", "classify", write(lung, tmp_path / "a.h5ad"), *L, *FAST, "--features", "genes.txt")
    assert_told(ran, what)
    assert not (tmp_path / "checkpoints").exists()


def test_one_gene_is_enough(sctool, lung, tmp_path):
    (tmp_path / "genes.txt").write_text(lung.var_names[np.argmax(np.asarray(lung.X.sum(0)).ravel())])
    ran = sctool("train", "classify", write(lung, tmp_path / "a.h5ad"), *L, *FAST, "--features", "genes.txt")
    assert ran.code == 0 or "gene" in ran.err


def test_a_side_without_labels_is_told(sctool, lung, tmp_path):
    """With --split-train alone, too: the rest was to be tested."""
    a = lung.copy()
    a.obs["cell_type"] = np.where(a.obs["batch"] == "sc_dropseq", "Unknown", a.obs["cell_type"])
    train = sorted(set(a.obs["batch"]) - {"sc_dropseq"})
    ran = sctool("train", "classify", write(a, tmp_path / "a.h5ad"), *S, "--split-train", *train, *FAST)
    assert_told(ran, "no test cell has a label")


@pytest.mark.filterwarnings("ignore:The number of unique")
def test_many_numbers_are_no_types(sctool, lung, tmp_path):
    a = lung.copy()
    a.obs["n_genes"] = np.arange(a.n_obs) * 3
    ran = sctool("train", "classify", write(a, tmp_path / "a.h5ad"), "--label-key", "n_genes", *FAST)
    assert_told(ran, "looks continuous")


@pytest.mark.filterwarnings("ignore:The number of unique")
def test_a_label_for_each_cell(sctool, lung, tmp_path):
    a = lung.copy()
    a.obs["name"] = list(a.obs_names)
    ran = sctool("train", "classify", write(a, tmp_path / "a.h5ad"), "--label-key", "name", *FAST)
    assert_told(ran, "name")


def test_check_lists_every_problem_at_once(sctool, lung, tmp_path):
    a = lung.copy()
    a.var_names = [a.var_names[1], *a.var_names[1:]]
    a.obs["cell_type"] = half_labelled(a)
    path = write(a, tmp_path / "bad.h5ad")
    flags = ("--label-key", "cell_type", "--group-key", "nowhere", "--split-key", "batch", "--split-test", "x")
    ran = sctool("check", path, "--for", "classify", *flags)
    assert ran.code == 2
    for said in ("gene names", "no label", "'nowhere'", "has no 'x'"):
        assert said in ran.out
    assert ran.out.count("fix:") == 4
    ran = sctool("check", write(lung, tmp_path / "good.h5ad"), "--for", "classify", *G)
    assert ran.code == 0
    assert "ready for classify" in ran.out


def test_check_agrees_with_train_on_features(sctool, lung, tmp_path):
    ran = sctool("check", write(lung, tmp_path / "a.h5ad"), "--for", "classify", *L, "--features", "pca")
    assert ran.code == 2


def test_notes(sctool, lung, tmp_path):
    """What is no error but worth a word: types never trained, rare types, empty cells, missing labels."""
    a = lung.copy()
    test = (a.obs["batch"] == "sc_dropseq").to_numpy()
    labels = a.obs["cell_type"].to_numpy(object)
    labels[np.flatnonzero(test)[:6]] = "new"
    labels[np.flatnonzero(~test)[:3]] = "rare"
    labels[np.flatnonzero(~test)[3:5]] = "Unknown"
    a.obs["cell_type"] = labels
    x = a.X.tolil()
    x[np.flatnonzero(~test)[5:9]] = 0
    a.X = x.tocsr()
    ran = sctool("train", "classify", write(a, tmp_path / "a.h5ad"), *S, "--split-test", "sc_dropseq", *FAST, "--name", "r")
    assert ran.code == 0, ran.err
    share = 6 / test.sum()
    for said in (
        f"{share:.1%} of the test cells are of types never trained (new)",
        "rare (3)",
        "2 cells (no label)",
        "4 cells (no counts)",
    ):
        assert said in ran.err, ran.err
    reasons = pd.read_csv(tmp_path / "results/classify/r/dropped.csv")["reason"].value_counts()
    assert reasons.to_dict() == {"no counts": 4, "no label": 2}


# --- prediction ------------------------------------------------------------------------------------------------------------------
