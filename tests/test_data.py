"""Matrix kinds, genes, splits, minibatches, the disk cache."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from sctool.data.cache import cached_csr, take_rows
from sctool.data.genes import gene_names, id_type, match_genes, variable_genes
from sctool.data.matrix_kind import find_counts, matrix_kind
from sctool.data.minibatch import CellStore
from sctool.data.read import H5ad, as_csr
from sctool.data.splits import select, split_cells, split_groups
from sctool.data.vocabulary import Vocabulary
from sctool.errors import SctoolError
from sctool.sections import DataConfig


def kinds(x):
    total = np.asarray(x.sum(1))
    cp10k = sp.csr_matrix(x.multiply(1e4 / total), dtype=np.float32)
    log = cp10k.copy()
    log.data = np.log1p(log.data)
    log_counts = x.copy()
    log_counts.data = np.log1p(log_counts.data)
    log2 = x.copy()
    log2.data = np.log2(1 + log2.data * 1.37)
    return {
        "counts": x,
        "log1p": log,
        "log1p counts": log_counts,
        "normalised": cp10k,
        "log-like": log2,
        "non-integer": x.multiply(3.7).tocsr(),
        "scaled": sp.csr_matrix(x.toarray() - 1.0),
        "binary": (x > 0).astype(np.float32),
        "empty": x * 0,
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["counts", "log1p", "log1p counts", "normalised", "log-like", "non-integer", "scaled", "binary", "empty"])
def test_kind_is_judged_by_values(small, kind, dtype):
    x = as_csr(kinds(as_csr(small.X))[kind])
    made = matrix_kind(x.astype(dtype))
    assert made.kind == kind
    if kind in ("log1p", "normalised"):
        assert made.target == pytest.approx(1e4, rel=1e-3)


def test_counts_layer_then_raw_then_x(small, tmp_path):
    log = kinds(as_csr(small.X))["log1p"]
    a = ad.AnnData(log, obs=small.obs, var=small.var, layers={"counts": small.X, "other": small.X})
    a.write_h5ad(tmp_path / "a.h5ad")
    assert find_counts(H5ad(tmp_path / "a.h5ad")).source == "layers/counts"
    assert find_counts(H5ad(tmp_path / "a.h5ad"), "other").source == "layers/other"
    del a.layers["counts"]
    a.write_h5ad(tmp_path / "b.h5ad")
    with pytest.raises(SctoolError, match="log1p data") as caught:
        find_counts(H5ad(tmp_path / "b.h5ad"))
    assert caught.value.hint == "give --counts-layer other"


@given(st.integers(2, 40), st.integers(1, 20), st.integers(0, 10_000), st.booleans())
@settings(max_examples=40, deadline=None)
def test_minibatch_is_the_rows_in_their_order(cells, genes, seed, subset):
    rng = np.random.default_rng(seed)
    dense = rng.poisson(0.4, (cells, genes)).astype(np.float32)
    columns = np.append(rng.permutation(genes), -1) if subset else None
    store = CellStore(sp.csr_matrix(dense), {"batch": np.arange(cells)}, [str(i) for i in range(cells)], columns)
    rows = rng.integers(0, cells, 13)
    batch = store.batch(rows)
    wanted = dense[rows]
    if subset:
        wanted = np.where(columns >= 0, wanted[:, np.maximum(columns, 0)], 0)
    np.testing.assert_array_equal(batch.dense().numpy(), wanted)
    np.testing.assert_allclose(batch.depth_n1.numpy()[:, 0], wanted.sum(1))
    np.testing.assert_array_equal(batch.codes["batch"].numpy(), rows)


@pytest.mark.parametrize("stored", ["csr", "csc", "dense"])
def test_disk_cache_equals_the_file(small, tmp_path, stored):
    x = {"csr": small.X, "csc": small.X.tocsc(), "dense": small.X.toarray()}[stored]
    ad.AnnData(x, obs=small.obs, var=small.var).write_h5ad(tmp_path / "a.h5ad")
    file = H5ad(tmp_path / "a.h5ad")
    cached = cached_csr(file, "X", tmp_path / "cache")
    assert not cached.data.flags.writeable
    np.testing.assert_array_equal(cached.toarray(), small.X.toarray())
    rows = np.array([5, 5, 0, small.n_obs - 1])
    np.testing.assert_array_equal(take_rows(cached, rows).toarray(), small.X.toarray()[rows])
    (folder,) = (tmp_path / "cache").iterdir()
    changed = folder.stat().st_mtime_ns
    cached_csr(file, "X", tmp_path / "cache")
    assert folder.stat().st_mtime_ns == changed
    ad.AnnData(x * 2, obs=small.obs, var=small.var).write_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(cached_csr(H5ad(tmp_path / "a.h5ad"), "X", tmp_path / "cache").toarray(), 2 * small.X.toarray())


def test_mixed_index_types_are_read(small, tmp_path):
    import h5py

    small.write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "a") as file:
        ends = file["X/indptr"][:].astype(np.int64)
        del file["X/indptr"]
        file["X/indptr"] = ends
    np.testing.assert_array_equal(H5ad(tmp_path / "a.h5ad").matrix().toarray(), small.X.toarray())


def table(names, **columns):
    return pd.DataFrame(columns, index=names)


@pytest.mark.parametrize(
    ("stored", "var", "coverage", "how"),
    [
        ({"name": ["A", "B", "C"]}, table(["C", "X", "A", "B"]), 1.0, "name"),
        ({"name": ["A", "B", "C"]}, table(["C", "X", "A"]), 2 / 3, "name"),
        ({"name": ["ENSG00000000001.3", "ENSG00000000002"]}, table(["ENSG00000000002.9", "ENSG00000000001"]), 1.0, "name"),
        ({"name": ["A", "B", "C"]}, table(["E1", "E2", "E3"], symbol=["B", "C", "A"]), 1.0, "'symbol'"),
        ({"name": ["E1", "E2"], "symbol": ["A", "B"]}, table(["B", "A"]), 1.0, "'symbol'"),
        ({"name": ["A.1", "B.2"]}, table(["A", "B", "A.1", "B.2"]), 1.0, "name"),
    ],
)
def test_gene_matching(stored, var, coverage, how):
    match = match_genes(stored, var)
    assert match.coverage == pytest.approx(coverage)
    assert how in match.how
    names = gene_names(var)
    for gene, column in zip(stored["name"], match.columns, strict=True):
        if column >= 0 and match.how == "name":
            assert names["name"][column].split(".")[0] == gene.split(".")[0]


def test_genes_that_do_not_match_are_named_by_type():
    assert id_type(["ENSMUSG00000000001.3"] * 3) == "Ensembl ids"
    with pytest.raises(SctoolError, match="the model has symbols like A, the query Ensembl ids like ENSG00000000001"):
        match_genes({"name": ["A", "B"]}, table(["ENSG00000000001", "ENSG00000000002"]))


def test_variable_genes_match_scanpy(small):
    import scanpy as sc

    wanted = sc.pp.highly_variable_genes(small, flavor="seurat_v3", n_top_genes=80, inplace=False)["highly_variable"].to_numpy()
    np.testing.assert_array_equal(variable_genes(as_csr(small.X), 80), np.flatnonzero(wanted))
    assert len(variable_genes(as_csr(small.X), 0)) == (np.asarray(small.X.sum(0)).ravel() > 0).sum()


@given(st.integers(2, 200), st.floats(0, 0.9), st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_splits_are_disjoint_and_whole(n, fraction, seed):
    rows = np.arange(5, 5 + n)
    first, second = split_cells(rows, fraction, np.random.default_rng(seed))
    assert sorted([*first, *second]) == list(rows)
    assert len(second) == int(fraction * n)
    groups = np.array([f"d{i % 7}" for i in range(5 + n)])
    if n >= 14:
        first, second = split_groups(rows, groups, fraction, np.random.default_rng(seed))
        assert not set(groups[first]) & set(groups[second])
        assert len(first) > 0
        assert sorted([*first, *second]) == list(rows)


def test_select():
    obs = pd.DataFrame({"part": ["a", "b", "a,b", "c"]})
    assert select(obs, "part=a,b").tolist() == [False, False, True, False]
    assert select(obs, "part=a,c").tolist() == [True, False, False, True]
    with pytest.raises(SctoolError, match=r"has no 'z'; it has: a \(1\)"):
        select(obs, "part=z")


def test_vocabulary_never_grows():
    known = Vocabulary.of(pd.Series(["y", "x", "y"]))
    assert known.categories == ("x", "y")
    assert known.codes(pd.Series(["y", "new", "x"])).tolist() == [1, 2, 0]
    assert known.codes(pd.Series(pd.Categorical(["x", "z"]))).tolist() == [0, 2]


def test_defaults_of_data_name_no_file():
    assert DataConfig().path is None


def test_a_large_donor_does_not_swallow_the_training_cells():
    groups = np.array(["small"] * 20 + ["big"] * 380)
    for seed in range(5):
        first, second = split_groups(np.arange(400), groups, 0.1, np.random.default_rng(seed))
        assert len(second) == 20
        assert len(first) == 380


def test_missing_symbols_match_nothing_and_a_column_serves_one_gene():
    var = table([f"E{i}" for i in range(10)], symbol=["A", np.nan, np.nan, *"BCDEFGH"])
    match = match_genes({"name": ["A", "nan", "B", "A"]}, var)
    assert match.columns.tolist() == [0, -1, 3, -1]
