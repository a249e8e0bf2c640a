"""Scores of samples against the benchmark's library, scikit-learn and scipy, and what shuffling and drawing donors must keep."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from sctool.errors import SctoolError
from sctool.metrics import sample_scores as scores
from sctool.metrics import sample_uncertainty as unsure
from sctool.metrics import samples as m
from tests.conftest import VECTORS

generators = st.integers(0, 10_000).map(lambda seed: np.random.default_rng(seed))
CASE = np.load(VECTORS / "samples_evaluation.npz", allow_pickle=True)


# neighbours


@pytest.mark.parametrize("distance", ["euclid", "cosine"])
@pytest.mark.parametrize(("target", "kind"), [("label", "class"), ("batch", "class"), ("severity", "ranking"), ("reg", "regression")])
def test_neighbours_are_the_librarys(distance, target, kind):
    d, truth = CASE[f"dist_{distance}"], CASE[target]
    known = np.array([value == value for value in truth])
    made = m.knn_predict(d[np.ix_(known, known)], truth[known], kind)
    expected = CASE[f"knn_{distance}_{target}__pred"]
    if kind == "class":
        assert made.tolist() == expected.tolist()
    else:
        np.testing.assert_allclose(made, expected, atol=1e-10)
    assert m.spare_score(d, truth, kind) == pytest.approx(float(CASE[f"knn_{distance}_{target}__score"]), abs=1e-10)


def test_distances_are_the_librarys():
    np.testing.assert_allclose(m.sample_distances(CASE["latent"], "euclidean"), CASE["dist_euclid"], atol=1e-10)
    np.testing.assert_allclose(m.sample_distances(CASE["latent"]), CASE["dist_cosine"], atol=1e-10)


def test_neighbours_at_the_same_place_outvote_the_rest():
    x = np.array([0.0, 0.0, 1.0, 1.1, 5.0])[:, None]
    made = m.knn_predict(m.sample_distances(x, "euclidean"), np.arange(5.0), "regression")
    assert made[:2].tolist() == [1.0, 0.0]
    assert m.spare_score(m.sample_distances(x, "euclidean"), ["a", "a", "", "b", "b"], "class") <= 1
    assert np.isnan(m.spare_score(m.sample_distances(x, "euclidean"), ["a", "a", "a", "a", ""], "class"))


def test_replicates_are_counted_over_the_other_samples():
    x = np.array([0.0, 0.3, 1.0, 0.5, 9.0])[:, None]
    d = m.sample_distances(x, "euclidean")
    assert m.replicate_robustness(d, list("ababc")) == pytest.approx(1 - (2 + 0 + 2 + 0) / 4 / 4)
    assert m.replicate_robustness(d, list("ccdde")) == pytest.approx(1 - (0 + 1 + 0 + 1.5) / 4 / 4)  # one is as near as the replicate
    assert np.isnan(m.replicate_robustness(d, list("abcde")))
    assert m.replicate_robustness(np.zeros((5, 5)), list("ababc")) == pytest.approx(1 - 0.5 * 3 / 4)  # all are equally near


def test_replicates_are_the_librarys_over_the_other_samples():
    patient = [name.split("_")[0] for name in CASE["replicate_robustness_names"]]
    made = m.replicate_robustness(CASE["dist_euclid"][:12, :12], patient)
    assert 1 - 11 * (1 - made) == pytest.approx(float(CASE["replicate_robustness_value"]))


def test_the_total_weighs_targets_twice():
    assert m.spare_total(0.6, 0.3) == pytest.approx((0.6 + 0.15) / 1.5)
    assert np.isnan(m.spare_total(0.6, float("nan")))


@settings(max_examples=15, deadline=None)
@given(generators, st.integers(3, 20))
def test_halves_find_each_other_or_are_at_chance(rng, samples):
    z = rng.normal(size=(samples, 5))
    assert m.split_half_top1(z, z + 1e-6) == 1
    hits, none = m.half_hits(z, z * 3 + 1, distance="cosine")
    assert none is None
    assert ((hits >= 0) & (hits <= 1)).all()
    constant = np.ones((samples, 2))
    assert m.split_half_top1(constant, constant) == pytest.approx(1 / (2 * samples - 1))  # all halves are equally near


def test_halves_of_noise_are_at_chance_and_donors_are_found():
    rng = np.random.default_rng(0)
    made = [m.split_half_top1(*rng.normal(size=(2, 10, 4))) for _ in range(300)]
    assert np.mean(made) == pytest.approx(1 / 19, abs=3 * np.std(made) / np.sqrt(300))
    donor = np.repeat(np.arange(5), 2)
    z = rng.normal(size=(5, 6))[donor] + 0.01 * rng.normal(size=(10, 6))
    _, found = m.half_hits(z, z + 0.001, donor)
    assert (found == 1).all()
    _, found = m.half_hits(z, z + 0.001, np.append(donor[:8], [8, 9]))
    assert np.isnan(found[8:]).all()
    assert (found[:8] == 1).all()


# association


def test_associations():
    a, b = np.repeat(["x", "y"], 30), np.tile(["u", "v"], 30)
    assert m.cramers_v(a, a) == pytest.approx(1)
    assert m.cramers_v(a, b) == 0
    assert np.isnan(m.cramers_v(a, np.ones(60)))
    rng = np.random.default_rng(0)
    value, group = rng.normal(size=40), rng.integers(0, 3, 40)
    between = 1 - sum(((value[group == g] - value[group == g].mean()) ** 2).sum() for g in range(3)) / ((value - value.mean()) ** 2).sum()
    assert m.eta_squared(value, group) == pytest.approx(between)
    assert m.association(group, value, (False, True)) == ("eta_squared", pytest.approx(between))
    assert m.association(value, -value, (True, True)) == ("spearman", pytest.approx(1))
    assert m.association(a, b, (False, False)) == ("cramers_v", 0)


# scores


def copies(rng, n):
    return rng.integers(0, 3, n).astype(float)


@settings(max_examples=25, deadline=None)
@given(generators, st.integers(2, 4))
def test_weighted_scores_are_those_of_copies(rng, classes):
    n = 24
    truth, times = np.arange(n) % classes, copies(rng, n) + (np.arange(n) < classes)
    p = rng.dirichlet(np.ones(classes), n).round(2) + 1e-3
    p /= p.sum(1, keepdims=True)
    called, take = p.argmax(1), np.repeat(np.arange(n), times.astype(int))
    made = {name: float(v[0]) for name, v in scores.class_scores(truth, p, called, times[None]).items()}
    t, q, c = truth[take], p[take], called[take]
    auc = sk.roc_auc_score(t, q[:, 1]) if classes == 2 else np.mean([sk.roc_auc_score(t == k, q[:, k]) for k in range(classes)])
    assert made["auc"] == pytest.approx(auc)
    assert made["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(t, c))
    assert made["accuracy"] == pytest.approx(np.mean(t == c))
    assert made["f1_macro"] == pytest.approx(sk.f1_score(t, c, average="macro", labels=range(classes), zero_division=0))
    assert made["log_loss"] == pytest.approx(sk.log_loss(t, q, labels=range(classes)))
    assert made["brier"] == pytest.approx(np.square(q - np.eye(classes)[t]).sum(1).mean())


@settings(max_examples=25, deadline=None)
@given(generators)
def test_weighted_scores_of_numbers_and_levels_are_those_of_copies(rng):
    n, times = 20, copies(rng, 20) + 1
    take = np.repeat(np.arange(n), times.astype(int))
    truth, value = rng.normal(size=n).round(1), rng.normal(size=n).round(1)
    made = scores.regression_scores(truth, value, times[None])
    assert made["r2"][0] == pytest.approx(sk.r2_score(truth[take], value[take]))
    assert made["spearman"][0] == pytest.approx(stats.spearmanr(truth[take], value[take]).statistic)
    assert made["mae"][0] == pytest.approx(np.abs(truth - value)[take].mean())
    level, p = rng.integers(0, 4, n), rng.dirichlet(np.ones(4), n)
    made = scores.ordinal_scores(level, p, p.argmax(1), times[None])
    kappa = sk.cohen_kappa_score(level[take], p.argmax(1)[take], weights="quadratic", labels=range(4))
    assert made["quadratic_kappa"][0] == pytest.approx(kappa)
    assert made["spearman"][0] == pytest.approx(stats.spearmanr(level[take], (p @ np.arange(4))[take]).statistic)
    assert scores.quadratic_kappa(level, level) == 1


def test_what_is_undefined_is_nan():
    one = np.zeros(4, int)
    made = scores.class_scores(one, np.full((4, 2), 0.5), one, np.ones((1, 4)))
    assert np.isnan(made["auc"][0])
    assert np.isnan(made["balanced_accuracy"][0])
    made = scores.class_scores(np.array([0, 0, 1]), np.eye(2)[[0, 0, 1]], np.array([0, 0, 1]), np.array([[1.0, 1, 1], [1, 2, 0]]))
    assert made["auc"][0] == 1
    assert np.isnan(made["auc"][1])  # a draw without the second class
    assert np.isnan(scores.r2(np.ones(3), np.arange(3.0)))


# uncertainty


@settings(max_examples=20, deadline=None)
@given(generators, st.integers(2, 12))
def test_donors_are_drawn_as_a_whole(rng, donors):
    donor = rng.permutation(np.append(np.arange(donors), rng.integers(0, donors, 6)))
    drawn = unsure.donor_draws(donor, rng, 50)
    for d in range(donors):
        own = drawn[:, donor == d]
        assert (own == own[:, :1]).all()
    first = [int(np.flatnonzero(donor == d)[0]) for d in range(donors)]
    assert (drawn[:, first].sum(1) == donors).all()


def test_an_interval_covers_and_holds_the_value():
    rng = np.random.default_rng(0)
    inside, wide = 0, []
    for _ in range(200):
        by_donor = rng.normal(size=20)
        x = np.repeat(by_donor, 3)
        weight = unsure.donor_draws(np.repeat(np.arange(20), 3), rng, 200)
        _, low, high = unsure.interval(x.mean(), weight @ x / weight.sum(1), 20)
        inside, wide = inside + (low <= 0 <= high), [*wide, high - low]
    assert 0.85 < inside / 200 < 0.99
    assert np.mean(wide) == pytest.approx(2 * 1.96 / np.sqrt(20), rel=0.15)  # of 20 donors, not of 60 samples
    assert unsure.interval(0.9, np.array([0.1, 0.2, 0.3, 0.2]), 5).high == 0.9
    assert np.isnan(unsure.interval(0.9, np.array([0.1, 0.2]), 2).low)
    assert np.isnan(unsure.interval(0.9, np.array([np.nan, np.nan, 0.3]), 5).low)


@settings(max_examples=20, deadline=None)
@given(generators)
def test_shuffled_labels_keep_the_design(rng):
    donor = np.repeat(np.arange(8), rng.integers(1, 4, 8))
    constant = rng.integers(0, 2, 8)[donor]
    for row in unsure.shuffled(constant, donor, rng, 5):
        assert all(len(set(row[donor == d])) == 1 for d in range(8))
        by_donor = [row[donor == d][0] for d in range(8)]
        assert sum(by_donor) == sum(constant[donor == d][0] for d in range(8))
    paired = np.array(["control", "stimulated"] * 6)
    made = unsure.shuffled(paired, np.repeat(np.arange(6), 2), rng, 30)
    assert all(set(row[2 * d : 2 * d + 2]) == {"control", "stimulated"} for row in made for d in range(6))
    assert len({tuple(row) for row in made}) > 5
    mixed = np.array([0, 0, 1, 1, 0, 1])
    made = unsure.shuffled(mixed, np.array([0, 0, 1, 1, 2, 2]), rng, 20)
    assert (np.sort(made.reshape(20, 3, 2).sum(2), 1) == [0, 1, 2]).all()


def test_p_counts_the_value_itself():
    null = np.array([0.5, 0.6, 0.7, np.nan])
    assert unsure.permutation_p(0.65, null) == 0.5
    assert unsure.permutation_p(0.9, null) == 0.25
    assert unsure.permutation_p(0.4, null, higher_is_better=False) == 0.25
    assert np.isnan(unsure.permutation_p(np.nan, null))
    with pytest.raises(SctoolError, match="one donor"):
        unsure.shuffled(np.arange(3), np.zeros(3), np.random.default_rng(0), 2)
