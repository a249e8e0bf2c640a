"""Counterfactual profiles come from the right cells."""

import numpy as np
import pytest
import scipy.sparse as sp

from sctool.data.perturbation import opposite_pools
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


def pool_of(row, pools, pool_n):
    return pools[pool_n[row]] if pool_n[row] < len(pools) else np.empty(0, np.int64)


def test_pools_of_the_vector():
    """The published pools are positions in a filtered table, taken for rows of the file, and always failing cells."""
    vector = np.load(VECTORS / "perturb_cfx.npz")
    names, name_n = np.unique(vector["treatment"], return_inverse=True)
    control = int(np.flatnonzero(names == "non-targeting")[0])
    name_n = np.where(name_n == control, 0, name_n + (name_n < control))  # control is code 0
    fail_n = vector["total_qc"].astype(bool)
    rows = np.flatnonzero(vector["split"] == "train")
    pools, pool_n = opposite_pools(name_n, np.zeros(40, int), fail_n, rows)
    for name in names:
        right = {False: vector[f"correct_pass_rows_{name}"], True: vector[f"correct_fail_rows_{name}"]}
        for row in rows[vector["treatment"][rows] == name]:
            np.testing.assert_array_equal(pool_of(row, pools, pool_n), right[not fail_n[row]])
        assert not set(vector[f"ref_rows_{name}"]) & set(right[True])


def test_every_pool_row_has_the_perturbation_the_split_and_the_opposite_result(screen):
    _, name_n, batch_n, fail_n, rows = screen
    pools, pool_n = opposite_pools(name_n, batch_n, fail_n, rows)
    for row in rows:
        pool = pool_of(row, pools, pool_n)
        assert set(pool) <= set(rows)
        assert (fail_n[pool] != fail_n[row]).all()
        own = rows[(name_n[rows] == name_n[row]) & (fail_n[rows] != fail_n[row])]
        here = own[batch_n[own] == batch_n[row]]
        controls = rows[(name_n[rows] == 0) & (fail_n[rows] != fail_n[row]) & (batch_n[rows] == batch_n[row])]
        np.testing.assert_array_equal(pool, here if len(here) else own if len(own) else controls)
    assert not len(pool_of(np.setdiff1d(np.arange(600), rows)[0], pools, pool_n))  # not of this part of the split
    fallback = rows[(name_n[rows] == 2) & (batch_n[rows] == 1)][0]
    assert set(batch_n[pool_of(fallback, pools, pool_n)]) == {0, 2}
    assert set(name_n[pool_of(rows[name_n[rows] == 3][0], pools, pool_n)]) == {0}


def test_without_failing_cells_there_is_no_pool(screen):
    _, name_n, batch_n, _, rows = screen
    pools, pool_n = opposite_pools(name_n, batch_n, np.zeros(600, bool), rows)
    assert not pools
    assert (pool_n == 0).all()
