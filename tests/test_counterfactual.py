"""Counterfactual profiles come from the right cells, in the right amount, anew for each epoch."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from sctool.data.counterfactual import CounterfactualPool
from tests.conftest import VECTORS


@pytest.fixture(scope="module")
def screen():
    rng = np.random.default_rng(0)
    n = 600
    counts = sp.csr_matrix(rng.poisson(0.7, (n, 12)).astype(np.float32))
    name_n, batch_n, fail_n = rng.integers(0, 5, n), rng.integers(0, 3, n), rng.random(n) < 0.3
    fail_n[name_n == 3] = False  # a perturbation without failing cells
    fail_n[(name_n == 2) & (batch_n == 1)] = False  # one without failing cells in a batch
    return counts, name_n, batch_n, fail_n, np.sort(rng.permutation(n)[:400])


def test_pools_of_the_vector():
    """The published pools are positions in a filtered table, taken for rows of the file, and always failing cells."""
    vector = np.load(VECTORS / "perturb_cfx.npz")
    names, name_n = np.unique(vector["treatment"], return_inverse=True)
    fail_n = vector["total_qc"].astype(bool)
    control = int(np.flatnonzero(names == "non-targeting")[0])
    rows = np.flatnonzero(vector["split"] == "train")
    np.testing.assert_array_equal(rows, vector["train_rows"])
    pools = CounterfactualPool(sp.csr_matrix(vector["X"]), name_n, np.zeros(40, int), fail_n, rows, control=control)
    for code, name in enumerate(names):
        right = {False: vector[f"correct_pass_rows_{name}"], True: vector[f"correct_fail_rows_{name}"]}
        for row in rows[name_n[rows] == code]:
            np.testing.assert_array_equal(pools.pool(row), right[not fail_n[row]])
        assert not set(vector[f"ref_rows_{name}"]) & set(right[True])
    x_bg, valid_b = pools.profiles(rows)
    assert valid_b.all()
    np.testing.assert_allclose(x_bg, vector["X"][rows])  # both genes of a cell are equal, so half of its depth


def test_every_pool_row_has_the_perturbation_the_split_and_the_opposite_result(screen):
    counts, name_n, batch_n, fail_n, rows = screen
    pools = CounterfactualPool(counts, name_n, batch_n, fail_n, rows, control=0)
    for row in rows:
        pool = pools.pool(row)
        assert set(pool) <= set(rows)
        assert (fail_n[pool] != fail_n[row]).all()
        own = rows[(name_n[rows] == name_n[row]) & (fail_n[rows] != fail_n[row])]
        here = own[batch_n[own] == batch_n[row]]
        controls = rows[(name_n[rows] == 0) & (fail_n[rows] != fail_n[row]) & (batch_n[rows] == batch_n[row])]
        np.testing.assert_array_equal(pool, here if len(here) else own if len(own) else controls)
    assert not len(pools.pool(np.setdiff1d(np.arange(600), rows)[0]))  # not of this part of the split
    fallback = rows[(name_n[rows] == 2) & (batch_n[rows] == 1)][0]
    assert set(batch_n[pools.pool(fallback)]) == {0, 2}
    assert set(name_n[pools.pool(rows[name_n[rows] == 3][0])]) == {0}


def test_profile_is_the_mean_of_proportions_times_the_own_depth(screen):
    counts, name_n, batch_n, fail_n, rows = screen
    pools = CounterfactualPool(counts, name_n, batch_n, fail_n, rows, control=0, n=7)
    x_bg, valid_b = pools.profiles(rows)
    assert valid_b.all()
    assert x_bg.dtype == np.float32
    x_ng = counts.toarray()
    share_ng = x_ng / x_ng.sum(1, keepdims=True)
    for row, found_g in zip(rows, x_bg, strict=True):
        drawn = pools.drawn(row)
        assert len(drawn) == min(7, len(pools.pool(row)))
        np.testing.assert_allclose(found_g, share_ng[drawn].mean(0) * x_ng[row].sum(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(x_bg.sum(1), x_ng[rows].sum(1), rtol=1e-5)


def test_draws_depend_on_the_seed_and_the_epoch_only(screen):
    counts, name_n, batch_n, fail_n, rows = screen
    first, second = (CounterfactualPool(counts, name_n, batch_n, fail_n, rows, control=0, n=5, seed=3) for _ in range(2))
    start, _ = first.profiles(rows)
    for epoch in (1, 2, 5):
        first.refresh(epoch)
    second.refresh(5)
    np.testing.assert_array_equal(first.profiles(rows)[0], second.profiles(rows)[0])
    assert (first.profiles(rows)[0] != start).any()
    second.refresh(0)
    np.testing.assert_array_equal(second.profiles(rows)[0], start)
    other = CounterfactualPool(counts, name_n, batch_n, fail_n, rows, control=0, n=5, seed=4)
    assert (other.profiles(rows)[0] != start).any()


def test_genes_that_are_modelled(screen):
    counts, name_n, batch_n, fail_n, rows = screen
    genes = np.array([7, 2, 3, 11])
    some = CounterfactualPool(counts, name_n, batch_n, fail_n, rows, control=0, genes=genes, n=9)
    cut = CounterfactualPool(counts[:, genes], name_n, batch_n, fail_n, rows, control=0, n=9)
    for mine, theirs in zip(some.profiles(rows[::-1]), cut.profiles(rows[::-1]), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_cells_without_a_pool_are_left_out(screen):
    counts, name_n, batch_n, _, rows = screen
    none = CounterfactualPool(counts, name_n, batch_n, np.zeros(600, bool), rows, control=0)
    x_bg, valid_b = none.profiles(rows[:5])
    assert not valid_b.any()
    assert not x_bg.any()
    assert x_bg.shape == (5, 12)
    assert none.valid_share == 0
    none.refresh(1)
    fail_n = np.zeros(600, bool)
    fail_n[rows[name_n[rows] == 4][:3]] = True  # no control cell fails: only perturbation 4 has pools
    few = CounterfactualPool(counts, name_n, batch_n, fail_n, rows, control=0)
    x_bg, valid_b = few.profiles(rows)
    np.testing.assert_array_equal(valid_b, name_n[rows] == 4)
    assert not x_bg[~valid_b].any()
    assert few.valid_share == pytest.approx((name_n[rows] == 4).mean())
    empty = CounterfactualPool(counts, name_n, batch_n, fail_n, rows[:0], control=0)
    assert not empty.profiles(rows[:2])[1].any()


def test_empty_cells_do_not_count(screen):
    counts, name_n, batch_n, fail_n, rows = screen
    dense = counts.toarray()
    dense[rows[:50]] = 0
    pools = CounterfactualPool(sp.csr_matrix(dense), name_n, batch_n, fail_n, rows, control=0)
    x_bg, _ = pools.profiles(rows)
    np.testing.assert_allclose(x_bg.sum(1), dense[rows].sum(1), rtol=1e-5)
    assert np.isfinite(x_bg).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 500), block=st.integers(1, 40))
def test_blocks_do_not_matter(seed, block):
    from sctool.data import counterfactual as module

    rng = np.random.default_rng(seed)
    counts = sp.csr_matrix(rng.poisson(0.5, (80, 6)).astype(np.float32))
    arguments = (counts, rng.integers(0, 4, 80), rng.integers(0, 2, 80), rng.random(80) < 0.4, np.flatnonzero(rng.random(80) < 0.7))
    whole = CounterfactualPool(*arguments, control=0, n=4)
    before = module._BLOCK
    module._BLOCK = block
    try:
        pieces = CounterfactualPool(*arguments, control=0, n=4)
    finally:
        module._BLOCK = before
    rows = np.arange(80)
    np.testing.assert_allclose(pieces.profiles(rows)[0], whole.profiles(rows)[0], rtol=1e-6)
