"""Quality control: the published rules exactly, the mended rules by what they promise, and the cases that break the former."""

import json

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from sctool.data import quality as q
from sctool.errors import SctoolError
from tests.conftest import VECTORS


@pytest.fixture(scope="module")
def vector():
    return np.load(VECTORS / "perturb_qc.npz")


@pytest.fixture(scope="module")
def values(vector):
    columns = {"counts": "UMI_count", "genes": "ngenes", "mt": "pct_counts_mt", "ribo": "pct_counts_ribo", "hb": "pct_counts_hb"}
    return pd.DataFrame({name: vector[key] for name, key in columns.items()} | {"doublet": vector["predicted_doublet"].astype(float)})


def counts_of(names, n=60, seed=0):
    rng = np.random.default_rng(seed)
    return sp.csr_matrix(rng.poisson(3, (n, len(names))).astype(np.float32))


@pytest.mark.parametrize(("k", "fails"), [(3, 152), (4, 139), (5, 132)])
def test_published_rules(vector, values, k, fails):
    limits = q.fit_thresholds(values, k, published=True)
    failed = q.flags(values, limits)
    np.testing.assert_array_equal(failed.to_numpy(), vector[f"flags_{k}"])
    np.testing.assert_array_equal(failed.any(axis=1), vector[f"total_{k}"])
    assert failed.any(axis=1).sum() == fails
    for name, column in (("counts", "UMI_count"), ("genes", "ngenes")):
        assert limits.bounds[name][""][0] == pytest.approx(vector[f"thr_qc_{column}_{k}"], rel=1e-12)
    for name in ("mt", "ribo", "hb"):
        assert limits.bounds[name][""][1] == pytest.approx(vector[f"thr_qc_pct_counts_{name}_{k}"], rel=1e-12)


def test_published_genes_and_ours(vector):
    names = vector["genes"]
    for kind, mask in q.gene_kinds(names, published=True).items():
        np.testing.assert_array_equal(mask, vector[f"is_{kind}"])
    assert {kind: list(names[mask]) for kind, mask in q.gene_kinds(names).items()} == {
        "mt": ["MT-CO1", "mt-Co1"],
        "ribo": ["RPS6", "RPL3", "RPSA"],
        "hb": ["HBA1", "HBB", "HBG2"],  # not HBEGF, HBS1L
    }


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("RPS6KA1", None),
        ("RPS19BP1", None),
        ("RPL13P5", None),
        ("MTOR", None),
        ("Mt1", None),
        ("RPS4X", "ribo"),
        ("RPS4Y1", "ribo"),
        ("RPS27A", "ribo"),
        ("RPL36AL", "ribo"),
        ("RPL22L1", "ribo"),
        ("RPLP0", "ribo"),
        ("Rps27a", "ribo"),
        ("Rplp1", "ribo"),
        ("Hbb-bs", "hb"),
        ("HBZ", "hb"),
        ("mt-Nd1", "mt"),
    ],
)
def test_kind_of_a_gene(name, kind):
    assert [found for found, mask in q.gene_kinds([name]).items() if mask[0]] == ([kind] if kind else [])


def test_symbols_are_found_beside_ensembl_ids():
    ids = pd.Index([f"ENSG{i:011d}" for i in range(5)])
    symbols = ["MT-CO1", "HBA1", "ACTB", "RPL3", "CD3E"]
    assert q.gene_symbols(pd.DataFrame({"symbol": symbols}, index=ids)) == symbols
    assert q.gene_symbols(pd.DataFrame(index=pd.Index(symbols))) == symbols
    assert q.gene_symbols(pd.DataFrame(index=ids)) == list(ids)


def test_measure_from_counts():
    names = ["MT-CO1", "RPL3", "HBA1", "ACTB", "GAPDH"]
    counts = sp.csr_matrix(np.array([[1, 2, 1, 4, 0], [0, 0, 0, 0, 0], [0, 0, 0, 3, 1]], np.float32))
    found = q.measure(counts, names, pd.DataFrame(index=["a", "b", "c"]))
    expected = {"counts": [8, 0, 4], "genes": [4, 0, 2], "mt": [12.5, 0, 0], "ribo": [25, 0, 0], "hb": [12.5, 0, 0]}
    pd.testing.assert_frame_equal(found, pd.DataFrame(expected, index=["a", "b", "c"], dtype=float))


def test_columns_of_obs_are_used_only_if_they_can_be_true():
    names = ["MT-CO1", "ACTB", "GAPDH"]
    counts = counts_of(names)
    depth = np.asarray(counts.sum(1)).ravel()
    obs = pd.DataFrame({"n_counts_all_genes": depth * 10, "ngenes": np.ones(60), "pct_mito": np.full(60, 0.04), "predicted_doublet": True})
    found = q.measure(counts, names, obs)
    np.testing.assert_array_equal(found["counts"], depth * 10)
    np.testing.assert_array_equal(found["genes"], np.diff(counts.indptr))  # a cell has more genes than that column says
    np.testing.assert_allclose(found["mt"], 4.0)
    assert found["doublet"].all()
    assert found.attrs["sources"] == {
        "counts": "obs n_counts_all_genes",
        "genes": "all genes",
        "mt": "obs pct_mito",
        "doublet": "obs predicted_doublet",
    }
    mine = q.measure(counts, names, obs[["n_counts_all_genes"]])["mt"]
    np.testing.assert_allclose(mine, 100 * counts[:, [0]].toarray().ravel() / (depth * 10), rtol=1e-6)  # of all counts, not of the panel
    logged = q.measure(counts, names, pd.DataFrame({"total_counts": np.log1p(depth)}))["counts"]
    np.testing.assert_array_equal(logged, depth)


def test_measure_of_a_memory_mapped_matrix(monkeypatch):
    """Its ends are 64-bit and its columns 32-bit, which SciPy's products refuse."""
    names = ["MT-CO1", "RPL3", "HBA1", "ACTB", "GAPDH"]
    counts = counts_of(names)
    mapped = sp.csr_matrix(counts.shape, dtype=np.float32)
    mapped.indptr, mapped.indices, mapped.data = counts.indptr.astype(np.int64), counts.indices.astype(np.int32), counts.data
    monkeypatch.setattr(q, "_BLOCK", 7)
    obs = pd.DataFrame(index=range(60))
    pd.testing.assert_frame_equal(q.measure(mapped, names, obs), q.measure(counts, names, obs))
    x_ng = counts.toarray()
    np.testing.assert_allclose(q.measure(mapped, names, obs)["ribo"], 100 * x_ng[:, 1] / x_ng.sum(1))


def test_a_column_of_another_name_never_joins():
    names = ["MT-CO1", "ACTB", "GAPDH"]
    obs = pd.DataFrame({"my_qc_x": np.ones(60, bool), "qc_total": 1, "total_qc": 1})
    pd.testing.assert_frame_equal(q.measure(counts_of(names), names, obs), q.measure(counts_of(names), names, obs[[]]), check_dtype=False)


def test_limits_are_on_the_scale_they_promise(values):
    limits = q.fit_thresholds(values, 2.5)
    logged = np.log1p(values["counts"])
    mad = 1.4826 * np.median(np.abs(logged - np.median(logged)))
    assert limits.bounds["counts"][""] == (pytest.approx(np.expm1(np.median(logged) - 2.5 * mad)), None)
    median = np.median(values["ribo"])
    high = median + 2.5 * 1.4826 * np.median(np.abs(values["ribo"] - median))
    assert limits.bounds["ribo"][""] == (None, pytest.approx(high))
    assert limits.bounds["hb"][""] == (None, 1.0)  # the published limit is 0: half of the cells have none
    assert all(low is None or low > 0 for by_batch in limits.bounds.values() for low, _ in by_batch.values())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), k=st.floats(0.1, 6), more=st.floats(0, 4), published=st.booleans(), by_batch=st.booleans())
def test_more_deviations_never_fail_more_cells(seed, k, more, published, by_batch):
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "counts": rng.lognormal(8, rng.uniform(0, 1), 150),
            "genes": np.round(rng.normal(900, 200, 150)).clip(1),
            "mt": rng.gamma(2, 2, 150),
            "hb": rng.gamma(0.1, 1, 150) * (rng.random(150) < 0.4),
        }
    )
    batch = rng.choice(["a", "b", "c"], 150) if by_batch else None
    strict, loose = (q.flags(table, q.fit_thresholds(table, k, None, batch, published=published), batch) for k in (k, k + more))
    assert list(strict) == list(loose)
    assert not (loose & ~strict).to_numpy().any()


def test_stored_limits_give_the_same_flags(values):
    batch = np.where(np.arange(len(values)) % 3 == 0, "x", "y")
    limits = q.fit_thresholds(values, 2.0, batch_n=batch, limits={"max_pct_mt": 6})
    again = q.Thresholds.from_json(json.loads(json.dumps(limits.to_json())))
    assert again == limits
    pd.testing.assert_frame_equal(q.flags(values, again, batch), q.flags(values, limits, batch))
    one = values.iloc[[5]]
    pd.testing.assert_frame_equal(q.flags(one, again, batch[[5]]), q.flags(values, limits, batch).iloc[[5]])


def test_limits_are_fitted_on_training_cells_and_by_batch(values):
    deep = values.assign(counts=np.where(np.arange(400) < 200, values["counts"], values["counts"] * 100))
    batch = np.where(np.arange(400) < 200, "a", "b")
    train = np.arange(200)
    assert q.fit_thresholds(deep, rows_train=train) == q.fit_thresholds(deep.iloc[:200])
    by_batch = q.fit_thresholds(deep, batch_n=batch).bounds["counts"]
    assert by_batch["b"][0] > 20 * by_batch["a"][0]
    few = np.where(np.arange(400) < 390, "a", "b")
    limits = q.fit_thresholds(deep, batch_n=few)
    assert set(limits.bounds["counts"]) == {"", "a"}
    failed = q.flags(deep, limits, np.full(400, "new"))  # a batch without limits of its own
    pd.testing.assert_frame_equal(failed, q.flags(deep, limits))


def test_given_limits_and_criteria(values):
    limits = q.fit_thresholds(
        values, limits={"max_pct_mt": 5.0, "min_genes": 2000, "max_counts": 20_000}, criteria=["counts", "genes", "mt"]
    )
    failed = q.flags(values, limits)
    assert list(failed) == ["counts", "genes", "mt"]
    np.testing.assert_array_equal(failed["mt"], values["mt"] > 5)
    np.testing.assert_array_equal(failed["genes"], values["genes"] < 2000)
    assert failed["counts"][values["counts"] > 20_000].all()
    assert limits.skipped["hb"] == "switched off"
    with pytest.raises(SctoolError, match="no limit 'max_mt'"):
        q.fit_thresholds(values, limits={"max_mt": 5})
    with pytest.raises(SctoolError, match=r"no criterion 'doublets'.*\n.*did you mean 'doublet'"):
        q.fit_thresholds(values, criteria=["doublets"])


def test_what_cannot_be_judged_is_skipped_and_said(values):
    table = values.drop(columns=["doublet", "ribo"]).assign(genes=500.0)
    limits = q.fit_thresholds(table)
    assert set(limits.bounds) == {"counts", "mt", "hb"}
    rows = {row[0]: row[1] for row in q.quality_table(table, limits, q.flags(table, limits))}
    assert "half of the cells have the same value" in rows["genes detected"]
    assert rows["% ribosomal"] == "not used: no such genes in the file"
    assert "predicted_doublet" in rows["doublet"]
    erythroid = q.fit_thresholds(values.assign(hb=values["hb"] + 0.5))
    assert "these cells make it" in erythroid.skipped["hb"]
    assert q.fit_thresholds(values.assign(hb=values["hb"] + 0.5), limits={"max_pct_hb": 2}).bounds["hb"][""] == (None, 2)


def test_table_shows_limits_and_fails(values):
    batch = np.where(np.arange(400) < 200, "a", "b")
    limits = q.fit_thresholds(values, 3, batch_n=batch)
    failed = q.flags(values, limits, batch)
    rows = q.quality_table(values, limits, failed)
    assert [row[0] for row in rows] == [*q.CRITERIA.values(), "any"]
    values = values.copy()
    values.attrs["sources"] = {"counts": "obs UMI_count"}
    assert q.quality_table(values, limits, failed)[0][0] == "counts (obs UMI_count)"
    assert "by batch" in rows[1][1]
    assert rows[5][1:] == ["flagged", "17", "4.2%"]
    assert rows[-1][2] == str(failed.any(axis=1).sum())


def test_odd_flags_are_said_aloud(values):
    limits = q.fit_thresholds(values, 5, published=True)
    assert q.quality_notes(values, limits, q.flags(values, limits)) == ["no cell can fail by counts: its limit is < -3,319"]
    none = q.fit_thresholds(values, 7, criteria=["counts"])
    assert q.quality_notes(values, none, q.flags(values, none)) == ["every cell passes quality control: there is no artifact to learn from"]
    most = q.fit_thresholds(values, limits={"max_pct_mt": 2})
    notes = q.quality_notes(values, most, q.flags(values, most))
    assert "of cells fail by % mitochondrial" in notes[0]
    assert "of cells fail quality control" in notes[1]
    every = q.fit_thresholds(values, limits={"min_counts": 1e9})
    with pytest.raises(SctoolError, match="all 400 cells fail"):
        q.quality_notes(values, every, q.flags(values, every))
    unreachable = q.fit_thresholds(values, limits={"max_pct_mt": 100})
    assert q.quality_notes(values, unreachable, q.flags(values, unreachable)) == ["no cell can fail by % mitochondrial: its limit is > 100"]


def test_a_perturbation_that_fails_as_such_is_named(values):
    name = np.where(np.arange(400) < 30, "KILLER", "A")
    table = values.assign(mt=np.where(name == "KILLER", 40.0, values["mt"]))
    limits = q.fit_thresholds(table)
    notes = q.quality_notes(table, limits, q.flags(table, limits), name)
    assert notes == ["cells of 1 perturbation mostly fail, which may be what it does and no artifact: KILLER 100% (by % mitochondrial)"]


@pytest.mark.parametrize(
    ("column", "key", "expected"),
    [
        ([True, False], "failed_qc", [1, 0]),
        ([1, 0], "total_qc", [1, 0]),
        ([1.0, 0.0], "flag", [1, 0]),
        (["fail", "pass"], "quality", [1, 0]),
        (["Pass", "FAIL"], "qc_pass", [0, 1]),
        (["True", "False"], "flag", [1, 0]),
        ([True, False], "passed_filter", [0, 1]),
        ([1, 0], "qc.pass", [0, 1]),
        ([True, False], "bypass", [1, 0]),
        (["doublet", "singlet"], "scrublet", [1, 0]),
    ],
)
@pytest.mark.parametrize("as_category", [False, True])
def test_given_flags(column, key, expected, as_category):
    obs = pd.DataFrame({key: pd.Categorical(column) if as_category else column})
    np.testing.assert_array_equal(q.given_flags(obs, key), np.array(expected, bool))


def test_given_flags_that_are_none():
    obs = pd.DataFrame({"qc": ["ok", "maybe", "maybe"], "gap": [True, None, False]})
    with pytest.raises(SctoolError, match=r"not a column of flags; it has: maybe \(2\), ok \(1\)"):
        q.given_flags(obs, "qc")
    with pytest.raises(SctoolError, match="1 of 3 cells have no value"):
        q.given_flags(obs, "gap")
    mixed = pd.DataFrame({"qc": [True, True, 1, "maybe", 0.123456]}, dtype=object)
    with pytest.raises(SctoolError, match=r"has: True \(3\), maybe \(1\), 0\.1235 \(1\)\n"):
        q.given_flags(mixed, "qc")
    for dtype in (np.float64, np.float32):
        scores = pd.DataFrame({"score": np.repeat(np.arange(7) / 7 + 0.1, [9, 2, 3, 4, 5, 6, 1]).astype(dtype)})
        for column in (scores, scores.astype("category")):
            with pytest.raises(SctoolError, match=r"has: 0\.1 \(9\), 0\.8143 \(6\), .* 0\.5286 \(4\), \.\.\.; 7 values in all\n"):
                q.given_flags(column, "score")
    with pytest.raises(SctoolError, match=r"no column 'qcc'.*\n.*did you mean 'qc'"):
        q.given_flags(obs, "qcc")
    assert q.share_notes(np.array([True, True, False])) == [
        "67% of cells fail quality control; a model of artifacts expects them to be fewer than half"
    ]
