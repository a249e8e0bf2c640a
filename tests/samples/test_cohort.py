"""Samples of a file: which cells, whose labels, what is wrong with it, and the views that are drawn."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sctool.config import load_config
from sctool.data.check_samples import check_samples_file
from sctool.data.cohort import Task, sample_table
from sctool.data.demo import COHORT
from sctool.data.read import H5ad
from sctool.data.sample_store import SampleStore, even_batches
from sctool.data.samples import prepare_samples


def config(**settings_):
    keys = {"sample_key": "sample", "donor_key": "donor", "min_cells": 3, **settings_}
    return load_config(model="sampleclr", flags={f"sampleclr.{key}": value for key, value in keys.items()})


@pytest.fixture
def cells():
    """Eight samples of four donors, five cells each."""
    sample = np.repeat([f"s{i}" for i in range(8)], 5)
    donor = np.repeat([f"d{i // 2}" for i in range(8)], 5)
    obs = pd.DataFrame({"sample": sample, "donor": donor}, index=[f"c{i}" for i in range(40)])
    obs["state"] = np.repeat(["ill", "well"] * 4, 5)
    obs["age"] = np.repeat(np.arange(8.0), 5)
    obs["stage"] = np.repeat(["late", "early", "mild", "late"] * 2, 5)
    obs["kind"] = np.tile(["a", "b", "a", "b", "b"], 8)
    a = ad.AnnData(sp.csr_matrix((40, 3), dtype=np.float32), obs=obs, var=pd.DataFrame(index=["g1", "g2", "g3"]))
    a.obsm["X_pca"] = np.arange(80, dtype=np.float32).reshape(40, 2)
    return a


@pytest.fixture
def check(cells, tmp_path):
    def of(**settings_):
        cells.write_h5ad(tmp_path / "cells.h5ad")
        return check_samples_file(H5ad(tmp_path / "cells.h5ad"), config(**settings_))

    return of


def test_the_bundled_cohort_has_48_samples_of_32_patients():
    checked = check_samples_file(H5ad(COHORT.path), config(tasks=["condition"]))
    cohort = checked.require_cohort()
    assert (len(cohort), len(set(cohort.donor_s))) == (48, 32)
    assert checked.tasks == [Task("condition", "class", ("Non-responder", "Responder"))]
    assert list(cohort.table.columns) == ["sample", "donor", "n_cells", "timepoint", "condition"]
    assert cohort.table["n_cells"].sum() == 16291


def test_cells_without_a_sample_are_left_out(cells, check):
    cells.obs.loc["c0", "sample"] = np.nan
    checked = check()
    cohort = checked.require_cohort()
    assert any("1 cells have no value" in note for note in checked.notes)
    assert cohort.sample_n[0] == -1
    assert cohort.table["n_cells"].tolist() == [4] + [5] * 7
    assert cohort.cells(np.ones(8, bool)).sum() == 39


def test_columns_that_vary_within_samples_are_no_columns_of_samples(check):
    cohort = check().require_cohort()
    assert "kind" not in cohort.table
    assert {"state", "age", "stage"} <= set(cohort.table)


def test_a_value_missing_in_part_of_a_sample_is_missing(cells):
    cells.obs.loc["c2", "age"] = np.nan
    code_n, samples = pd.factorize(cells.obs["sample"])
    table, _ = sample_table(cells.obs, code_n, np.array(samples, object))
    assert np.isnan(table["age"].iloc[0])
    assert table["age"].iloc[1:].tolist() == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sample_key": None}, "--sample-key is missing"),
        ({"sample_key": "smaple"}, "no column 'smaple'"),
        ({"donor_key": "kind"}, "is not one value for each sample"),
        ({"tasks": ["kind"]}, "is not one value for each sample (s0: a, b)"),
        ({"tasks": ["stat"]}, "no column 'stat' of samples"),
        ({"tasks": ["state:regression"]}, "'ill' is not a number"),
        ({"tasks": ["stage:ordinal"]}, "the order of early, late, mild is not known"),
        ({"tasks": ["stage:ordinal"], "orders": {"stage": ["early", "late"]}}, "'mild' is not in its order"),
        ({"tasks": ["state:sort"]}, "'sort' is not known"),
        ({"min_cells": 6}, "0 of 8 samples have 6 cells"),
        ({"rep": "obsm:X_pcs"}, "no obsm 'X_pcs'"),
        ({"rep": "layers:counts"}, "has no layers/counts"),
        ({"rep": "nonsense"}, "--rep 'nonsense' is not known"),
        ({"orders": {"stat": ["a", "b"]}, "tasks": ["state"]}, "'stat' is no task"),
    ],
)
def test_what_is_wrong_is_said_with_what_was_found(check, given, message):
    problems = [problem.message for problem in check(**given).problems]
    assert any(message in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("name", "values", "found"),
    [
        ("Donor_ID", [0, 0, 1, 1, 2, 2, 3, 3], True),
        ("origpatient", [0, 0, 1, 2, 3, 4, 5, 6], True),
        ("subject", range(8), False),  # each sample its own
        ("subject", [0] * 8, False),  # nothing to split by
        ("donor_sex", [0, 1] * 4, False),  # what a donor is like
        ("DonorAge", [30, 40] * 4, False),
        ("pool", [0, 0, 1, 1, 2, 2, 3, 3], False),
    ],
)
def test_columns_like_those_of_donors_are_asked_for(cells, tmp_path, name, values, found):
    cells.obs = cells.obs.drop(columns="donor").assign(**{name: np.repeat([f"v{value}" for value in values], 5)})
    cells.write_h5ad(tmp_path / "cells.h5ad")

    def of(donor_key, training):
        return check_samples_file(H5ad(tmp_path / "cells.h5ad"), config(donor_key=donor_key), training=training)

    said = f"8 samples of {len(set(values))} values of obs[{name!r}]"
    assert [said in problem.message for problem in of(None, True).problems] == [True] * found
    notes = of(None, False)
    assert not notes.problems
    assert sum(said in note and f"--donor-key {name}" in note for note in notes.notes) == found
    cohort = of("sample", True).require_cohort()
    assert cohort.donor_s.tolist() == cohort.samples.tolist()


def test_all_problems_at_once(check):
    assert len(check(tasks=["kind", "stat"], rep="obsm:no").problems) == 3


def test_kinds_are_guessed_and_levels_kept_in_their_order(check):
    tasks = check(tasks=["state", "stage:ordinal"], orders={"stage": ["mild", "early", "late"]}).tasks
    assert [task.kind for task in tasks] == ["class", "ordinal"]
    assert tasks[1].order == ("mild", "early", "late")
    cohort = check(tasks=["stage:ordinal"], orders={"stage": ["mild", "early", "late"]}).require_cohort()
    assert cohort.truth(tasks[1]).tolist() == [2, 1, 0, 2] * 2


def test_scales_are_of_the_training_samples_only(check):
    settings_ = config(tasks=["age:regression"], min_cells=3)
    cohort = check(tasks=["age:regression"]).require_cohort()
    train_s = np.arange(8) < 4
    prepared = prepare_samples(cohort, [Task("age", "regression")], settings_, train_s)
    assert prepared.about["scales"]["age"] == [1.5, pytest.approx(np.arange(4).std())]
    np.testing.assert_allclose(prepared.initial["centre_f"], np.arange(40).reshape(20, 2).mean(0))
    np.testing.assert_array_equal(prepared.split, ["train"] * 4 + ["unused"] * 4)


def test_validation_takes_whole_donors(check):
    cohort = check().require_cohort()
    settings_ = config().replaced({"data.validation": 0.3})
    split = prepare_samples(cohort, [], settings_, np.ones(8, bool)).split
    held = set(cohort.donor_s[split == "validation"])
    assert held
    assert not held & set(cohort.donor_s[split == "train"])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=2, max_size=5), st.integers(1, 20), st.integers(0, 20), st.booleans())
def test_views_hold_cells_of_their_sample_once_where_there_are_enough(n_cells, low, more, weighted):
    sample_n = np.random.default_rng(0).permutation(np.repeat(np.arange(len(n_cells)), n_cells))
    x_nf = np.stack([sample_n, np.arange(len(sample_n))], 1).astype(np.float32)
    weight_n = np.linspace(1, 2, len(sample_n)) if weighted else None
    store = SampleStore(x_nf, sample_n, [str(i) for i in range(len(n_cells))], (low, low + more), weight_n=weight_n)
    torch.manual_seed(0)
    batch = store.batch(np.arange(len(n_cells)))
    sizes = batch.views.mask_so.sum(1)
    assert ((sizes >= low) & (sizes <= low + more)).all()
    for v, s in enumerate([*range(len(n_cells))] * 2):
        own = batch.views.x_sof[v][batch.views.mask_so[v]]
        assert (own[:, 0] == s).all()
        if n_cells[s] >= sizes[v]:
            assert len(own[:, 1].unique()) == sizes[v]


def test_weights_decide_which_cells_are_drawn():
    x_nf = np.arange(10, dtype=np.float32)[:, None]
    weight_n = np.where(np.arange(10) < 5, 1e-9, 1.0)
    for size in (4, 20):  # without and with replacement
        store = SampleStore(x_nf, np.zeros(10, np.int64), ["s"], size, weight_n=weight_n)
        assert (store.batch(np.array([0])).views.x_sof >= 5).all()


def test_views_say_which_pairs_are_one_sample():
    store = SampleStore(np.ones((4, 1), np.float32), np.array([0, 0, 1, 1]), ["a", "b"], 2)
    assert store.batch(np.array([0, 1, 0])).same_ss.tolist() == [[True, False, True], [False, True, False], [True, False, True]]


@given(st.integers(1, 500), st.integers(2, 64))
def test_batches_are_even(n, most):
    size = even_batches(n, most)
    last = n % size or size
    assert size <= most
    assert last >= size - -(-n // size)
