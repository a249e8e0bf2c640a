"""Broken and odd inputs: exit code 2, one line of what is wrong, one of what to do, no traceback, nothing half-written."""

import gzip
import os
import shutil

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from tests.conftest import QUICK


def write(a, path):
    a.write_h5ad(path)
    return path


def changed(small, path, *, x=None, obs=None, **layers):
    a = small.copy()
    if x is not None:
        a.X = x
    if obs is not None:
        obs(a)
    for name, value in layers.items():
        a.layers[name] = value
    return write(a, path)


def lognorm(small):
    x = small.X.multiply(1e4 / small.X.sum(1)).tocsr()
    x.data = np.log1p(x.data)
    return x.astype(np.float32)


def with_value(small, value):
    x = small.X.copy()
    x.data[7] = value
    return x


def absent(small, path):
    write(small, path.with_name("cells.h5ad"))
    return path.with_name("cell.h5ad")


def text(content):
    def make(small, path):
        path.write_bytes(content)
        return path

    return make


def truncated(small, path):
    write(small, path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    return path


def no_obs(small, path):
    with h5py.File(path, "w") as file:
        file["x"] = 1
    return path


def tenx(small, path):
    with h5py.File(path, "w") as file:
        file.create_group("matrix")
    return path


def loom(small, path):
    with h5py.File(path, "w") as file:
        file.create_group("row_attrs")
        file.create_group("col_attrs")
        file["matrix"] = np.zeros((3, 3))
    return path


def transposed(small, path):
    write(small, path)
    with h5py.File(path, "a") as file:
        del file["X"]
        file["X"] = small.X.toarray().T
        file["X"].attrs["encoding-type"], file["X"].attrs["encoding-version"] = "array", "0.2.0"
    return path


def folder(small, path):
    path.mkdir()
    return path


def empty_cells(small, path):
    x = small.X.tolil()
    x[:3] = 0
    return changed(small, path, x=sp.csr_matrix(x))


def duplicated_genes(small, path):
    a = small.copy()
    a.var_names = [a.var_names[1], *a.var_names[1:]]
    return write(a, path)


def duplicated_cells(small, path):
    a = small.copy()
    a.obs_names = [a.obs_names[1], *a.obs_names[1:]]
    return write(a, path)


def missing_batch(small, path):
    return changed(small, path, obs=lambda a: a.obs.__setitem__("batch", pd.Categorical([None] * 4 + list(a.obs["batch"])[4:])))


def one_cell_batch(small, path):
    return changed(small, path, obs=lambda a: a.obs.__setitem__("batch", ["lonely", *list(a.obs["batch"])[1:]]))


def batch_of_each_cell(small, path):
    return changed(small, path, obs=lambda a: a.obs.__setitem__("batch", a.obs_names))


def few_cells(small, path):
    return write(small[:5].copy(), path)


def few_genes(small, path):
    return write(small[:, np.argsort(-np.asarray(small.X.sum(0)).ravel())[:4]].copy(), path)


def no_genes(small, path):
    return write(small[:, :0].copy(), path)


def zeros(small, path):
    return changed(small, path, x=sp.csr_matrix(small.shape, dtype=np.float32))


B = ("--batch-key", "batch")
FILES = {
    "no such file": (absent, (), "no such file", "cells.h5ad"),
    "empty file": (text(b""), (), "is empty", "again"),
    "tiny file": (text(b"oops"), (), "not an .h5ad", "write_h5ad"),
    "gzip": (text(gzip.compress(b"x" * 99)), (), "gzip", "write_h5ad"),
    "web page": (text(b"<!DOCTYPE html><html>"), (), "web page", ""),
    "truncated": (truncated, (), "cut short", "again"),
    "HDF5 without obs": (no_obs, (), "no obs", "write_h5ad"),
    "10x file": (tenx, (), "10x", ""),
    "loom": (loom, (), "loom", ""),
    "transposed": (transposed, (), "swapped", "transpose"),
    "a folder": (folder, (), "is a folder", "file"),
    "no genes": (no_genes, (), "empty", ""),
    "log1p": (lambda s, p: changed(s, p, x=lognorm(s)), (), "log1p data (cells scaled to 10,000)", "counts"),
    "scaled": (lambda s, p: changed(s, p, x=s.X.toarray() - 0.5), (), "negative", "counts"),
    "normalised": (lambda s, p: changed(s, p, x=sp.csr_matrix(s.X / s.X.sum(1) * 1e4, dtype=np.float32)), (), "sums to 10,000", "counts"),
    "binarised": (lambda s, p: changed(s, p, x=(s.X > 0).astype(np.float32)), (), "binarised", "counts"),
    "all zeros": (zeros, (), "all zeros", "counts"),
    "NaN": (lambda s, p: changed(s, p, x=with_value(s, np.nan)), (), "NaN", "counts"),
    "infinity": (lambda s, p: changed(s, p, x=with_value(s, np.inf)), (), "infinite", "counts"),
    "negative": (lambda s, p: changed(s, p, x=with_value(s, -3)), (), "negative", "counts"),
    "empty cells": (empty_cells, (), "3 of", "skip_empty"),
    "duplicated genes": (duplicated_genes, (), "1 gene names", "var_names_make_unique"),
    "duplicated cells": (duplicated_cells, (), "1 cell names", "obs_names_make_unique"),
    "missing key": (write, ("--batch-key", "bacth"), "no column 'bacth'", "did you mean 'batch'"),
    "missing key by content": (write, ("--label-key", "celltype"), "no column 'celltype'", "did you mean 'cell_type'"),
    "missing categories": (missing_batch, B, "4 of", "fill"),
    "a batch of one cell": (one_cell_batch, B, "have one cell: lonely", "merge"),
    "a batch for each cell": (batch_of_each_cell, B, "name of each cell", "samples"),
    "few cells": (few_cells, (), "only 5 cells", "more cells"),
    "few genes": (few_genes, (), "only 4 genes", "more genes"),
    "no such layer": (write, ("--counts-layer", "cuonts"), "no layer 'cuonts'", ""),
    "a layer that is no counts": (
        lambda s, p: changed(s, p, lognorm=lognorm(s)),
        ("--counts-layer", "lognorm"),
        "lognorm is log1p",
        "another",
    ),
    "no such value": (write, ("--hold-out", "part=tset"), "no 'tset'", "did you mean 'test'"),
    "hold-out without a value": (write, ("--hold-out", "part"), "not COLUMN=VALUE", "part=test"),
    "all held out": (
        lambda s, p: changed(s, p, obs=lambda a: a.obs.__setitem__("part", "test")),
        ("--hold-out", "part=test"),
        "0 cells",
        "",
    ),
    "one donor to split by": (
        lambda s, p: changed(s, p, obs=lambda a: a.obs.__setitem__("donor", "d")),
        ("--group-key", "donor"),
        "one group",
        "",
    ),
    "no atlas": (write, ("--atlas-count", "5"), "needs an atlas", "--atlas"),
    "too many cells": (write, ("--total-cells", "9999"), "9,999 asked for", "at most"),
    "balanced without labels": (write, ("--sampler", "balanced"), "needs labels", "--label-key"),
    "no such embedding": (write, ("--ar", "--ar-embedding", "X_pca"), "no obsm 'X_pca'", ""),
}
SETTINGS = {
    "unknown key": (("--set", "train.learning_rate=1"), "unknown key train.learning_rate", ""),
    "near key": (("--set", "scvi.n_latnet=3"), "did you mean scvi.n_latent", ""),
    "bad value": (("--set", "train.patience=many"), "train.patience", "config.yaml"),
    "negative seed": (("--seed", "-1"), "seed", ""),
    "zero epochs": (("--epochs", "0"), "train.epochs", ""),
    "not KEY=VALUE": (("--set", "seed"), "not KEY=VALUE", ""),
    "absent device": (("--device", "cuda:77"), "cuda:77", "--device cpu"),
    "two samplers": (("--ar", "--sampler", "balanced"), "exclude", ""),
    "bad likelihood": (("--likelihood", "poisson"), "scvi.likelihood", ""),
    "a name with a slash": (("--name", "a/b"), "folder name", ""),
    "no such config": (("--config", "nowhere.yaml"), "no such file", ""),
}


def assert_told(ran, what, remedy):
    assert ran.code == 2, ran.err
    assert "Traceback" not in ran.err + ran.out
    said = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    fixes = [line for line in ran.err.splitlines() if line.startswith("  fix: ")]
    assert len(said) == len(fixes) >= 1
    assert any(what in line for line in said), ran.err
    assert any(remedy in line for line in fixes), ran.err


@pytest.mark.parametrize("name", FILES)
def test_broken_files(name, sctool, small, tmp_path):
    make, flags, what, remedy = FILES[name]
    path = make(small, tmp_path / "given.h5ad")
    before = set(tmp_path.rglob("*"))
    assert_told(sctool("train", "scvi", path, *flags, *QUICK), what, remedy)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", SETTINGS)
def test_wrong_settings(name, sctool, small_file, tmp_path):
    flags, what, remedy = SETTINGS[name]
    before = set(tmp_path.rglob("*"))
    assert_told(sctool("train", "scvi", small_file, *QUICK, *flags), what, remedy)
    assert set(tmp_path.rglob("*")) == before


def test_check_lists_every_problem_at_once(sctool, small, tmp_path):
    a = small.copy()
    a.var_names = [a.var_names[1], *a.var_names[1:]]
    a.obs["batch"] = ["lonely", *a.obs["batch"][1:]]
    x = a.X.tolil()
    x[5] = 0
    a.X = sp.csr_matrix(x)
    path = write(a, tmp_path / "bad.h5ad")
    ran = sctool("check", path, "--for", "scvi", "--batch-key", "batch", "--label-key", "nowhere")
    assert ran.code == 2
    for said in ("gene names", "lonely", "no counts", "'nowhere'"):
        assert f"{said}" in ran.out
    assert ran.out.count("fix:") == 4
    assert_told(sctool("train", "scvi", path, "--batch-key", "batch", *QUICK), "lonely", "merge")


def query(small, path, genes):
    a = small.copy()
    a.var_names = genes
    return write(a, path)


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_a_query_with_too_few_genes(share, trained, sctool, small, tmp_path):
    genes = np.array(small.var_names, dtype=object)
    genes[int(share * len(genes)) :] = [f"OTHER{i}" for i in range(len(genes) - int(share * len(genes)))]
    path = query(small, tmp_path / "query.h5ad", genes)
    before = set(tmp_path.rglob("*"))
    assert_told(sctool("predict", "scvi", trained, path), "of 100 genes of the model", "min_gene_coverage")
    assert set(tmp_path.rglob("*")) == before
    if share:
        assert sctool("predict", "scvi", trained, path, "--set", "data.min_gene_coverage=0.1", "--quiet").code == 0


def test_a_query_with_ensembl_ids_for_symbols(trained, sctool, small, tmp_path):
    path = query(small, tmp_path / "query.h5ad", [f"ENSG{i:011d}.3" for i in range(small.n_vars)])
    ran = sctool("predict", "scvi", trained, path)
    assert_told(ran, "the query Ensembl ids like ENSG00000000000.3", "var column")


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("predict", "scvi", "nowhere"), "not a model folder"),
        (("eval", "classification", "FILE"), "nothing to score"),
        (("eval", "classification", "FILE", "--model", "MODEL"), "are left to score"),
        (("eval", "classification", "FILE", "--embedding", "nowhere.npy", "--label-key", "cell_type"), "no such file"),
        (("eval", "classification", "FILE", "--embedding", "obsm:X_x", "--label-key", "cell_type"), "no obsm 'X_x'"),
        (("eval", "reconstruction", "FILE"), "nothing to score"),
        (("plot", "nowhere"), "no such folder"),
        (("plot", "."), "no table to draw"),
        (("plot", "MODEL", "--format", "gif"), "unknown format"),
    ],
)
def test_other_commands(words, what, trained, sctool, small_file, tmp_path):
    filled = [{"FILE": small_file, "MODEL": trained}.get(word, word) for word in words]
    if "--model" in words:
        filled += ["--label-key", "cell_type", "--hold-out", "part=train"]
    before = set(tmp_path.rglob("*"))
    assert_told(sctool(*filled), what, "")
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("shape", "what"), [((10, 3), "has shape (10, 3)"), ((300,), "has shape (300,)")])
def test_an_embedding_of_another_shape(shape, what, sctool, small_file, tmp_path):
    np.save(tmp_path / "z.npy", np.zeros(shape))
    assert_told(sctool("eval", "classification", small_file, "--embedding", "z.npy", "--label-key", "cell_type"), what, "one row per cell")


def test_models_that_cannot_be_used(trained, sctool, small_file, tmp_path):
    manifest = (trained / "manifest.json").read_text()
    (trained / "manifest.json").write_text(manifest.replace('"format": 1', '"format": 99'))
    assert_told(sctool("predict", "scvi", trained, small_file), "format 99", "update")
    (trained / "manifest.json").write_text(manifest.replace('"model": "scvi"', '"model": "other"'))
    assert_told(sctool("predict", "scvi", trained, small_file), "is a other model", "checkpoints/scvi")
    (trained / "manifest.json").write_text(manifest[:50])
    assert_told(sctool("predict", "scvi", trained, small_file), "cannot be read", "again")
    (trained / "manifest.json").write_text(manifest)
    weights = (trained / "model.safetensors").read_bytes()
    (trained / "model.safetensors").write_bytes(weights[:100])
    assert_told(sctool("predict", "scvi", trained, small_file), "cannot be read", "again")
    (trained / "model.safetensors").unlink()
    assert_told(sctool("predict", "scvi", trained, small_file), "no such file", "again")


def test_a_finished_run_is_not_overwritten(trained, sctool, small_file):
    flags = ("--hold-out", "part=test", "--batch-key", "batch", "--label-key", "cell_type", "--name", "m")
    before = (trained / "model.safetensors").stat().st_mtime_ns
    assert_told(sctool("train", "scvi", small_file, *flags, *QUICK), "is there already", "--force")
    assert sctool("train", "scvi", small_file, *flags, *QUICK, "--resume").code == 0
    assert (trained / "model.safetensors").stat().st_mtime_ns == before
    assert sctool("train", "scvi", small_file, *flags, *QUICK, "--force").code == 0
    assert (trained / "model.safetensors").stat().st_mtime_ns > before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(sctool, small_file, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert_told(sctool("train", "scvi", small_file, "--out", "locked", *QUICK), "no permission", "--out")


def test_an_out_that_is_a_file(sctool, small_file, tmp_path):
    (tmp_path / "taken").write_text("x")
    assert_told(sctool("train", "scvi", small_file, "--out", "taken", *QUICK), "not a folder", "--out")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_leaves_nothing(sctool, small_file, tmp_path, monkeypatch):
    import safetensors.torch

    from sctool.artifacts import tensors

    def full(*args, **kwargs):
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"x")

    monkeypatch.setattr(tensors, "save_file", full)
    assert safetensors.torch.save_file is not full
    ran = sctool("train", "scvi", small_file, "--name", "r", *QUICK)
    assert_told(ran, "disk is full", "--out")
    left = [path for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()]
    assert left == []


def test_a_corrupt_state_is_told(sctool, small_file, tmp_path):
    flags = ("train", "scvi", small_file, "--name", "r", *QUICK)
    part = tmp_path / "checkpoints" / "scvi" / "r.part"
    assert sctool(*flags).code == 0
    shutil.rmtree(tmp_path / "checkpoints" / "scvi" / "r")
    part.mkdir(parents=True)
    (part / "state.safetensors").write_bytes(b"junk")
    assert_told(sctool(*flags, "--resume"), "cannot be read", "again")


def test_odd_but_fine_inputs_work(sctool, small, tmp_path):
    """Counts in a layer, raw, float64, dense, column-compressed, integers; logs in X."""
    log = lognorm(small)
    makers = {
        "layer": lambda: ad.AnnData(log, obs=small.obs, var=small.var, layers={"counts": small.X}),
        "dense": lambda: ad.AnnData(small.X.toarray(), obs=small.obs, var=small.var),
        "csc": lambda: ad.AnnData(small.X.tocsc(), obs=small.obs, var=small.var),
        "int": lambda: ad.AnnData(small.X.astype(np.int64), obs=small.obs, var=small.var),
        "double": lambda: ad.AnnData(small.X.astype(np.float64), obs=small.obs, var=small.var),
    }
    losses = {}
    for name, make in makers.items():
        path = write(make(), tmp_path / f"{name}.h5ad")
        assert sctool("train", "scvi", path, *QUICK, "--name", name).code == 0
        losses[name] = pd.read_csv(tmp_path / "checkpoints" / "scvi" / name / "history.csv")["train_loss"].iloc[-1]
    raw = ad.AnnData(small.X, obs=small.obs, var=small.var)
    raw.raw = raw
    raw.X = log
    assert sctool("train", "scvi", write(raw, tmp_path / "raw.h5ad"), *QUICK, "--name", "raw").code == 0
    losses["raw"] = pd.read_csv(tmp_path / "checkpoints" / "scvi" / "raw" / "history.csv")["train_loss"].iloc[-1]
    assert len(set(losses.values())) == 1
