"""Integration scores against the reference vectors and scib-metrics, and what must hold for any cells."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from sctool.bench.integration import PCA_NAME, score_embeddings
from sctool.bench.unintegrated import unintegrated_pca
from sctool.bench.zero_shot import Contestant
from sctool.data.expression import log_normalise
from sctool.errors import SctoolError
from sctool.metrics import integration as m
from sctool.metrics.kbet import kbet_by_label
from sctool.metrics.neighbours import Neighbours, exact_neighbours, fuzzy_graph
from sctool.metrics.type_audit import type_audit
from tests.conftest import VECTORS

TOY, SCIB = np.load(VECTORS / "integration_metrics.npz"), np.load(VECTORS / "integration_metrics_scib.npz")
Z, BATCH, LABEL = TOY["X"].astype(np.float32), TOY["batch"], TOY["label"]
CELLS, SIDE = 120, 40
"""One size for all: JAX compiles anew for each."""


@pytest.fixture(scope="module")
def near():
    return Neighbours(TOY["knn_idx"], TOY["knn_dist"])


@pytest.fixture(scope="module")
def lung(demo_batches):
    log_ng = log_normalise(sp.csr_matrix(demo_batches.X, dtype=np.float32), 1e4)
    return unintegrated_pca(log_ng), *(demo_batches.obs[key].astype(str).to_numpy() for key in ("batch", "cell_type"))


@pytest.fixture(scope="module")
def demo_batches():
    from sctool.data.demo import CELLS as demo

    return ad.read_h5ad(demo.path.with_name("batches.h5ad"))


def test_neighbours_are_exact(near):
    made = exact_neighbours(Z, 30)
    np.testing.assert_array_equal(made.indices_nk, near.indices_nk)
    np.testing.assert_allclose(made.distances_nk, near.distances_nk, atol=1e-5)
    same = exact_neighbours(np.zeros((5, 2)), 3)
    assert (same.indices_nk[:, 0] == np.arange(5)).all()


def test_vectors(near):
    np.testing.assert_allclose(m.lisi(near, BATCH), TOY["lisi_batch"], atol=1e-4)
    np.testing.assert_allclose(m.lisi(near, LABEL), TOY["lisi_label"], atol=1e-4)
    silhouette_n = m.silhouettes(Z, LABEL)
    within = m.batch_silhouettes(Z, BATCH, LABEL)
    made = {
        "ilisi_scaled": m.ilisi(near, BATCH),
        "clisi_scaled": m.clisi(near, LABEL),
        "asw_label": (silhouette_n.mean() + 1) / 2,
        "asw_batch": np.mean([1 - np.abs(s).mean() for s in within.values()]),
        "pcr_comparison": m.pcr_comparison(TOY["X_pre"].astype(np.float32), Z, BATCH),
    }
    for name, value in made.items():
        assert value == pytest.approx(float(TOY[name]), abs=1e-5), name
    theirs = {
        "bras": m.bras(Z, BATCH, LABEL),
        "isolated": m.isolated_labels(silhouette_n, BATCH, LABEL),
        "kbet_per_label": np.nanmean(list(kbet_by_label(fuzzy_graph(near), BATCH, LABEL).values())),
        "graph_connectivity_k15": m.graph_connectivity(near.nearest(15), LABEL),
        "ilisi": made["ilisi_scaled"],
        "clisi": made["clisi_scaled"],
        "silhouette_label": made["asw_label"],
        "silhouette_batch": made["asw_batch"],
        "pcr_comparison": made["pcr_comparison"],
    }
    for name, value in theirs.items():
        assert value == pytest.approx(float(SCIB[name]), abs=1e-5), name


@pytest.mark.slow
def test_fuzzy_graph_is_umaps(near):
    theirs = m._as_package(near).knn_graph_connectivities
    assert abs(fuzzy_graph(near) - theirs).max() < 1e-5


@pytest.mark.slow
def test_kbet_is_the_packages_on_real_cells(lung):
    import scib_metrics

    z_nl, batches, labels = lung
    near = exact_neighbours(z_nl, 50)
    rare = np.flatnonzero(labels == "A549")[12:]  # the first label, so small that the package takes fewer components for all others
    for kept in (np.arange(len(labels)), np.setdiff1d(np.arange(len(labels)), rare)):
        near = exact_neighbours(z_nl[kept], 50)
        _, table = scib_metrics.kbet_per_label(m._as_package(near), batches[kept], labels[kept], return_df=True)
        made = kbet_by_label(fuzzy_graph(near), batches[kept], labels[kept], as_package=True)
        np.testing.assert_allclose([made[label] for label in table["cluster"]], table["kBET"], atol=0.02)
        ours = kbet_by_label(fuzzy_graph(near), batches[kept], labels[kept])
        np.testing.assert_allclose([ours[label] for label in table["cluster"]], table["kBET"], atol=0.1)


def test_unintegrated_lung_cells(lung):
    """Computed with scib-metrics' own functions, exact neighbours, and scanpy's scale and pca."""
    made = m.integration_scores(*lung, lung[0])
    wanted = {"batch": 0.4177, "bio": 0.6440, "total": 0.5535, "kbet": 0.2572, "nmi": 0.5626, "ari": 0.4230, "pcr_comparison": 0.0}
    for name, value in wanted.items():
        assert made.values[name] == pytest.approx(value, abs=2e-3), name
    assert made.values["raw_blisi"] == pytest.approx(1 + 4 * made.values["ilisi"])
    assert made == m.integration_scores(*lung, lung[0])


def test_the_pca_is_scanpys(demo_batches):
    import scanpy as sc

    a = demo_batches[:, :300].copy()
    x_ng = sp.csr_matrix(a.X, dtype=np.float32)
    a.X = x_ng.toarray()
    sc.pp.normalize_total(a, target_sum=1e4)
    sc.pp.log1p(a)
    sc.pp.scale(a, max_value=10)
    sc.tl.pca(a, n_comps=30)
    made = unintegrated_pca(log_normalise(x_ng, 1e4))
    np.testing.assert_allclose(np.abs(made[:, :10]), np.abs(a.obsm["X_pca"][:, :10]), atol=1e-2)


def cloud(seed, mixed=True, apart=10.0):
    """Three types in two batches; not mixed: the batches are far apart."""
    rng = np.random.default_rng(seed)
    labels, batches = np.repeat(np.array(["t0", "t1", "t2"]), SIDE), np.tile(np.array(["a", "b"]), CELLS // 2)
    z_nl = rng.normal(size=(CELLS, 4)) + apart * np.eye(4)[np.repeat(np.arange(3), SIDE)]
    z_nl[batches == "b", 3] += 0.0 if mixed else 60.0
    return z_nl.astype(np.float32), batches, labels


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 10**6))
def test_order_of_cells_and_names_change_nothing(seed):
    z_nl, batches, labels = cloud(seed)
    made = m.integration_scores(z_nl, batches, labels, z_nl)
    order = np.random.default_rng(seed).permutation(CELLS)
    renamed = np.where(batches == "a", "z", "m")
    for other in (
        m.integration_scores(z_nl[order], batches[order], labels[order], z_nl[order]),
        m.integration_scores(z_nl, renamed, labels, z_nl),
        m.integration_scores(z_nl, batches, np.array([f"x{9 - int(label[1])}" for label in labels]), z_nl),
    ):
        assert other.values == pytest.approx(made.values, abs=1e-4)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 10**6))
def test_mixed_and_unmixed_batches(seed):
    mixed, apart = (m.integration_scores(*cloud(seed, mixed), cloud(seed, False)[0]).values for mixed in (True, False))
    assert all(mixed[name] > apart[name] for name in ("batch", "ilisi", "kbet", "bras", "batch_asw", "pcr_comparison"))
    assert mixed["ilisi"] > 0.85
    assert mixed["kbet"] > 0.85
    assert apart["ilisi"] == pytest.approx(0, abs=1e-3)
    assert apart["kbet"] == 0
    assert mixed["nmi"] == mixed["ari"] == 1
    assert mixed["graph_connectivity"] > 0.95
    assert all(0 <= mixed[name] <= 1 for name in (*m.BATCH_SCORES, *m.BIO_SCORES, *m.BESIDE))


def test_lisi_limits():
    """One label among the neighbours: 1. A uniform kernel over two equal groups: 2."""
    indices = np.array([[i, *np.delete(np.arange(CELLS), i)[:30]] for i in range(CELLS)])
    flat = Neighbours(indices, np.zeros((CELLS, 31)))
    np.testing.assert_allclose(m.lisi(flat, np.zeros(CELLS)), 1, atol=1e-5)
    groups = np.arange(CELLS) % 2
    assert m.lisi(flat, groups)[40:] == pytest.approx(2, abs=1e-5)


def test_degenerate_embeddings_have_scores():
    z_nl, batches, labels = cloud(0)
    for other in (np.zeros_like(z_nl), z_nl[:, :1], np.repeat(z_nl[:10], 12, axis=0), z_nl * 1e6, z_nl * 1e-6):
        made = m.integration_scores(other, batches, labels, z_nl)
        assert all(np.isfinite(value) for value in made.values.values())
    one_batch = np.where(labels == "t0", "a", batches)
    made = m.integration_scores(z_nl, one_batch, labels, z_nl)
    assert np.isnan(made.kbet["t0"])
    assert all(np.isfinite(value) for value in made.values.values())
    assert set(m.integration_scores(z_nl, batches, None, z_nl).values) == {"ilisi", "pcr_comparison", "raw_blisi"}


def test_type_audit():
    z_nl, batches, labels = cloud(0)
    labels = labels.astype(object)
    labels[:3] = "rare"  # three cells of t0's place
    table = type_audit(z_nl, batches, labels).set_index("label")
    assert table.loc["t1", ["knn_purity", "recall", "vote"]].tolist() == [1, 1, "t1"]
    assert table.loc["rare", ["cells", "nearest_other", "vote", "recall"]].tolist() == [3, "t0", "t0", 0]
    assert table["share"].sum() == pytest.approx(1)
    alone = z_nl.copy()
    alone[:3] += 100
    assert type_audit(alone, batches, labels).set_index("label").loc["rare", "knn_purity"] == 1  # of the two there can be


def test_merged_and_lost_types_are_named():
    z_nl, batches, labels = cloud(0)
    labels = labels.astype(object)
    labels[[30, 31, 32]], labels[33] = "few", None
    merged = z_nl.copy()
    merged[labels == "t1"] -= 10 * np.eye(4, dtype=np.float32)[1] - 10 * np.eye(4, dtype=np.float32)[2]
    said = []
    made = score_embeddings([Contestant("m", "ar", 3, merged)], z_nl, batches, labels, np.arange(CELLS).astype(str), say=said.append)
    assert {row["label"] for row in made.about["types_at_risk"]} == {"t1", "t2"}
    assert all(line.startswith("m: t") for line in made.notes)
    assert made.about["left_out"] == 4
    assert any("few (3)" in line for line in said)
    assert any("1 of 120 cells have no cell_type" in line for line in said)
    per_type = made.tables["per_type"]
    assert set(per_type["name"]) == {"m", PCA_NAME}
    assert "few" in set(per_type["label"])
    assert list(made.scores.loc[0, ["name", "arm", "seed"]]) == ["m", "ar", 3]
    assert len(made.tables["cells"]) == len(made.arrays["embedding-m"]) == CELLS - 4


@pytest.mark.parametrize(
    ("batches", "labels", "what"),
    [
        (np.full(CELLS, "a"), np.repeat(["x", "y"], 60), "one batch only"),
        (np.tile(["a", "b"], 60), np.full(CELLS, "x"), "one type only"),
        (np.repeat(["a", "b"], 60), np.repeat(["x", "y"], 60), "no type"),
        (np.tile(["a", "b"], 60), np.array([None] * CELLS), "only 0 cells"),
        (np.tile(["a", "b"], 60), np.arange(CELLS), "only 0 cells"),
        (np.tile(["a", "b"], 60), np.array(["x"] * 10 + ["y"] * 9 + [None] * 101, object), "only 10 cells"),
    ],
)
def test_what_cannot_be_scored_is_said(batches, labels, what):
    z_nl = np.zeros((CELLS, 2), np.float32)
    with pytest.raises(SctoolError, match=what):
        score_embeddings([], z_nl, batches, labels, pd.RangeIndex(CELLS).to_numpy())
