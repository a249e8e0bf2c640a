"""Counts carried to another negative binomial at the same quantile."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from sctool.data.quantile_map import quantile_map


def mapped(x, mean, theta, new_mean, new_theta):
    """With any of them a scalar."""
    x = np.atleast_2d(np.asarray(x, np.float32))
    mean, new_mean = (np.broadcast_to(np.float32(m), x.shape) for m in (mean, new_mean))
    theta, new_theta = (np.broadcast_to(np.float32(t), x.shape[1:]) for t in (theta, new_theta))
    return quantile_map(x, mean, theta, new_mean, new_theta)


def by_search(x, mean, theta, new_mean, new_theta):
    """The smallest count that reaches the middle of the step, counted up from zero."""
    old = scipy.stats.nbinom(theta, theta / (theta + mean))
    level = old.cdf(x - 1) + old.pmf(x) / 2
    k, total = 0, 0.0
    while True:
        total = scipy.stats.nbinom.cdf(k, new_theta, new_theta / (new_theta + new_mean))
        if total >= level:
            return k
        k += 1


@pytest.mark.parametrize("theta", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("mean", [0.01, 0.7, 25.0, 900.0])
def test_equal_laws_leave_a_count_as_it_is(mean, theta):
    x = np.arange(0, int(3 * mean) + 5, max(1, int(mean) // 10))
    np.testing.assert_array_equal(mapped(x, mean, theta, mean, theta)[0], x)


@pytest.mark.parametrize(("x", "mean", "theta"), [(30, 0.01, 1.0), (8, 1e-4, 1.0), (500, 5.0, 50.0), (3, 1e-9, 0.3), (2000, 20.0, 10.0)])
def test_equal_laws_leave_even_a_most_unlikely_count_as_it_is(x, mean, theta):
    assert mapped([x], mean, theta, mean, theta)[0, 0] == x


@pytest.mark.parametrize(("theta", "new_theta"), [(0.5, 0.5), (2.0, 0.3), (1.0, 50.0)])
def test_equals_a_search_from_zero(theta, new_theta):
    for mean in (0.05, 1.5, 12.0):
        for new_mean in (0.01, 2.0, 30.0):
            x = np.arange(25)
            x = x[scipy.stats.nbinom.sf(x, theta, theta / (theta + mean)) > 1e-9]  # beyond, a sum of floats is no judge
            wanted = [by_search(int(k), mean, theta, new_mean, new_theta) for k in x]
            np.testing.assert_array_equal(mapped(x, mean, theta, new_mean, new_theta)[0], wanted)


laws = st.tuples(st.floats(1e-3, 500), st.floats(0.05, 100), st.floats(1e-3, 500), st.floats(0.05, 100))


@settings(max_examples=80, deadline=None)
@given(laws)
def test_whole_numbers_that_keep_their_order(law):
    x = np.concatenate([np.arange(60), [100, 1000, 10_000, 1_000_000]])
    made = mapped(x, law[0], law[1], law[2], law[3])[0]
    assert np.isfinite(made).all()
    assert (made >= 0).all()
    assert (made == np.round(made)).all()
    assert (np.diff(made) >= 0).all()
    assert made.dtype == np.float32


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-3, 100), st.floats(0.05, 100), st.floats(0.05, 1.0))
def test_zero_stays_zero_where_less_is_expected(mean, theta, share):
    assert mapped([0], mean, theta, share * mean, theta)[0, 0] == 0


def test_zero_becomes_something_where_much_more_is_expected():
    made = mapped([0], 1.0, 5.0, 60.0, 5.0)[0, 0]
    assert made == by_search(0, 1.0, 5.0, 60.0, 5.0) > 5


def test_a_shift_of_the_law_is_taken_out():
    """Draws of one law, mapped to another, have the moments of the other."""
    rng = np.random.default_rng(0)
    theta, mean, new = 2.0, 10.0, 30.0
    x = rng.negative_binomial(theta, theta / (theta + mean), 20_000)
    made = mapped(x, mean, theta, new, theta)[0]
    assert made.mean() == pytest.approx(new, rel=0.03)
    assert made.var() == pytest.approx(new + new**2 / theta, rel=0.08)


def test_shapes_of_the_dispersion():
    rng = np.random.default_rng(0)
    x = rng.poisson(3.0, (6, 4)).astype(np.float32)
    mean, new = (np.full((6, 4), m, np.float32) for m in (3.0, 4.0))
    theta = np.array([0.5, 1, 2, 4], np.float32)
    a = quantile_map(x, mean, theta, new, theta)
    b = quantile_map(x, mean, np.tile(theta, (6, 1)), new, np.tile(theta, (6, 1)))
    np.testing.assert_array_equal(a, b)
    assert a.shape == (6, 4)


def test_nothing_expected_at_all_and_huge_counts():
    made = mapped([0, 1, 50, 10**6], 0.0, 1.0, 0.0, 1.0)
    assert np.isfinite(made).all()
    made = mapped([10**6, 10**5, 0], 5e5, 1e4, 7e5, 1e-2)
    assert np.isfinite(made).all()
