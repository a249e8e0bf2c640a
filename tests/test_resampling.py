import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sctool import SctoolError, resampling_weights
from sctool.data.resampling import knn_weights, temper, weight_summary
from tests.conftest import VECTORS

ORACLE = np.load(VECTORS / "ar_weights.npz")
CASES = [str(name) for name in ORACLE["case_names"]]


def case(name):
    bins = ORACLE[f"{name}__bins"].item()
    bins = int(bins) if str(bins).isdigit() else str(bins)
    return ORACLE[f"{name}__z"], bins, float(ORACLE[f"{name}__smoothing"]), ORACLE[f"{name}__w"], str(ORACLE[f"{name}__error"])


def tolerance(name, z):
    return 1e-6 if name == "shift_1e8" else 1e-4 if z.dtype == np.float32 else 1e-9


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.filterwarnings("ignore:latent codes with no dimension")
def test_published_rule(name, kind):
    z, bins, smoothing, expected, error = case(name)
    given_z = torch.from_numpy(z) if kind == "torch" else z
    if error:
        with pytest.raises(SctoolError) as caught:
            resampling_weights(given_z, bins, smoothing)
        assert isinstance(caught.value, ValueError)
        assert caught.value.hint
        assert "\n" not in caught.value.message
        return
    made = resampling_weights(given_z, bins, smoothing)
    if kind == "torch":
        assert made.dtype == torch.float64
        made = made.numpy()
    assert made.dtype == np.float64
    np.testing.assert_allclose(made, expected, rtol=tolerance(name, z), atol=0)


def test_index_stream_of_the_reference():
    """The weights reproduce the reference's draws when drawn as it does."""
    import random

    stream = np.load(VECTORS / "ar_resample.npz")
    w = resampling_weights(stream["z"], 100, 1e-4)
    random.seed(int(stream["seed"]))
    assert random.choices(range(len(w)), weights=w, k=50) == list(stream["idx_batch50"])
    random.seed(int(stream["seed_full"]))
    assert random.choices(range(len(w)), weights=w, k=len(w)) == list(stream["idx_full"])


@pytest.mark.parametrize(
    ("z", "bins", "smoothing", "word"),
    [
        (np.zeros((5, 2, 2)), 10, 1e-3, "shape"),
        (np.array([["a"], ["b"]]), 10, 1e-3, "real numbers"),
        (np.zeros((5, 2)), 0, 1e-3, "bins=0"),
        (np.zeros((5, 2)), 2.5, 1e-3, "bins=2.5"),
        (np.zeros((5, 2)), 10, -1.0, "smoothing=-1.0"),
        (np.zeros((5, 2)), 10, np.nan, "smoothing=nan"),
        (np.array([[0.0, 1.0], [np.nan, 1.0]]), 10, 1e-3, "1 of 2 cells"),
    ],
)
def test_wrong_input_is_named(z, bins, smoothing, word):
    with pytest.raises(SctoolError, match=word):
        resampling_weights(z, bins, smoothing)


latents = hnp.arrays(np.float64, st.tuples(st.integers(1, 60), st.integers(1, 5)), elements=st.floats(-50, 50, width=32))


@given(latents, st.integers(1, 40), st.floats(0, 1), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_invariants(z, bins, smoothing, random):
    w = resampling_weights(z, bins, smoothing)
    assert np.isclose(w.sum(), 1)
    assert (w > 0).all()
    order = np.array(random.sample(range(len(z)), len(z)))
    np.testing.assert_allclose(resampling_weights(z[order], bins, smoothing), w[order], rtol=1e-9)
    np.testing.assert_allclose(resampling_weights(z[:, ::-1], bins, smoothing), w, rtol=1e-9)
    same = (z[:, None] == z[None]).all(2)
    assert np.allclose(np.where(same, w[None] - w[:, None], 0), 0)


@pytest.mark.parametrize("weigh", [lambda z: resampling_weights(z, 100, 1e-4), knn_weights])
def test_a_far_out_group_is_drawn_more_often(weigh):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2000, 8))
    z[:20] += 6
    w = weigh(z)
    assert w.shape == (2000,)
    assert np.isclose(w.sum(), 1)
    assert w[:20].mean() / w[20:].mean() > 1.2


def test_lift_of_a_rare_group_at_eight_dimensions():
    rng = np.random.default_rng(1)
    z = rng.normal(size=(5000, 8))
    z[:50] = rng.normal(size=(50, 8)) * 0.3 + 4
    assert resampling_weights(z, 100, 1e-4)[:50].mean() * 5000 > 5


@given(st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=50), st.floats(0, 1), st.floats(1, 20))
@settings(max_examples=80, deadline=None)
def test_temper_keeps_order_and_cap(values, power, cap):
    w = np.array(values) / np.sum(values)
    made = temper(w, power, cap)
    assert np.isclose(made.sum(), 1)
    assert made.max() <= cap / len(w) * (1 + 1e-6)
    order = np.argsort(w, kind="stable")
    assert (np.diff(made[order]) >= -1e-12).all()


def test_summary_of_uniform_weights():
    assert weight_summary(np.full(200, 1 / 200)) == pytest.approx({"ess": 1.0, "entropy": 1.0, "top1": 0.01})
