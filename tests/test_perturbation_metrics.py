"""Scores of predicted perturbations against stored references, identities, and independent programs."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import average_precision_score, r2_score

from sctool.metrics import perturbation as m
from tests.conftest import VECTORS

generators = st.integers(0, 10_000).map(lambda seed: np.random.default_rng(seed))


def pair(rng, perturbations=6, genes=30):
    true_pg = rng.normal(size=(perturbations, genes))
    return true_pg, 0.6 * true_pg + rng.normal(size=true_pg.shape)


# average treatment effects


@pytest.mark.parametrize("method", ["mean", "perturbseq"])
def test_data_ate_is_the_references(method):
    case = np.load(VECTORS / "perturb_ate.npz")
    made = m.data_ate(sp.csr_matrix(case["X"]), case["labels"], "ctrl", method)
    for name, expected_g in zip(case["names"], case[f"ate_{method}"], strict=True):
        np.testing.assert_allclose(made[name], expected_g, atol=5e-6)


def test_ate_metrics_are_the_references():
    case = np.load(VECTORS / "perturb_ate.npz")
    true, model = case["metric_data"], case["metric_model"]
    made = {
        "ATE_pearsonr": m.ate_pearson(true, model),
        "ATE_r2": m.ate_r2(true, model),
        "ATE_pearsonr_top20": m.ate_pearson(true, model, 20),
        "ATE_r2_top20": m.ate_r2(true, model, 20),
        "jaccard_sim_top20": m.top_jaccard(true, model, 20).mean(),
        "jaccard_sim_top50": m.top_jaccard(true, model, 50).mean(),
    }
    for name, value in made.items():
        assert value == pytest.approx(float(case[f"metric.{name}"]), abs=1e-10), name
    zero = np.zeros_like(true)
    assert np.isnan(m.ate_pearson(true, zero))
    assert m.ate_r2(true, zero) == pytest.approx(float(case["nochange.ATE_r2"]), abs=1e-12)
    assert m.ate_r2(true, zero, 20) == pytest.approx(float(case["nochange.ATE_r2_top20"]), abs=1e-12)
    assert m.ate_r2(true, zero) == pytest.approx(-(true.mean() ** 2) / true.var(), abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(generators, st.integers(1, 9))
def test_ate_of_equal_cells_and_of_scaled_cells(rng, factor):
    x = rng.poisson(2.0, (24, 12)).astype(float)
    name = np.array(["control", "A", "B"] * 8)
    whole = m.data_ate(x, name)
    np.testing.assert_allclose(m.data_ate(np.vstack([x[:8], x[:8]]), np.repeat(["control", "A"], 8))["A"], 0, atol=1e-12)
    scaled = m.data_ate(x * rng.integers(1, factor + 1, 24)[:, None], name)
    order = rng.permutation(24)
    shuffled = m.data_ate(x[order], name[order])
    for other in ("A", "B"):
        np.testing.assert_allclose(scaled[other], whole[other], atol=1e-9)
        np.testing.assert_allclose(shuffled[other], whole[other], atol=1e-9)


def test_ate_of_an_additive_combination_is_the_sum():
    """Exactly additive on the log2 scale, so that the change of A+B is that of A and of B."""
    rng = np.random.default_rng(0)
    base, d_a, d_b = rng.uniform(5, 6, 8), rng.uniform(0, 0.4, 8), rng.uniform(0, 0.4, 8)
    counts = []
    for change in (0 * d_a, d_a, d_b, d_a + d_b):
        x_g = np.exp2(base + change) - 1
        assert x_g.sum() < 1e4
        counts.append(np.append(x_g, 1e4 - x_g.sum()))  # the rest of the cell, so that every cell sums to 10,000
    made = m.data_ate(np.array(counts), np.array(["control", "A", "B", "A+B"]))
    np.testing.assert_allclose(made["A+B"][:8], (made["A"] + made["B"])[:8], atol=1e-12)
    np.testing.assert_allclose(made["A"][:8], d_a, atol=1e-12)


def test_cells_without_counts_are_left_out_of_log_effects():
    x = np.array([[2.0, 2.0], [0.0, 0.0], [4.0, 4.0]])
    np.testing.assert_allclose(m.data_ate(x, np.array(["control", "A", "A"]))["A"], 0, atol=1e-12)


# profiles


@settings(max_examples=25, deadline=None)
@given(generators, st.integers(1, 8), st.integers(3, 40))
def test_rows_are_as_one_by_one(rng, perturbations, genes):
    true, predicted = pair(rng, perturbations, genes)
    for row, (a, b) in enumerate(zip(true, predicted, strict=True)):
        assert m.correlations(true, predicted)[row] == pytest.approx(stats.pearsonr(a, b).statistic)
        assert m.rank_correlations(true, predicted)[row] == pytest.approx(stats.spearmanr(a, b).statistic)
        assert m.determinations(true, predicted)[row] == pytest.approx(r2_score(a, b))
        assert m.cosines(true, predicted)[row] == pytest.approx(a @ b / np.sqrt(a @ a * (b @ b)))
        assert m.error_shares(true, predicted)[row] == pytest.approx(np.mean((a - b) ** 2) / np.mean(a**2))


def test_perfect_opposite_and_no_prediction():
    true, _ = pair(np.random.default_rng(0), 5, 80)
    zero = np.zeros_like(true)
    assert m.ate_pearson(true, true) == pytest.approx(1)
    assert m.ate_pearson(true, -true) == pytest.approx(-1)
    assert m.ate_r2(true, true) == 1
    assert m.ate_r2(true, 2 * true) != pytest.approx(m.ate_r2(2 * true, true))  # not symmetric
    np.testing.assert_array_equal(m.top_jaccard(true, true), 1)
    np.testing.assert_array_equal(m.error_shares(true, zero), 1)
    for function in (m.correlations, m.cosines, m.rank_correlations):
        assert np.isnan(function(true, zero)).all()
    everything = np.ones_like(true, bool)
    np.testing.assert_array_equal(m.de_direction(true, zero, everything), 0.5)
    np.testing.assert_array_equal(m.de_direction(true, -true, everything), 0)
    np.testing.assert_allclose(m.de_overlap(true, zero, 20), 20 / 80)  # what chance gives


def test_specific_r_takes_the_shared_profile_off():
    true, predicted = pair(np.random.default_rng(0))
    shared = 5 * np.random.default_rng(1).normal(size=30)
    np.testing.assert_allclose(m.specific_r(true + shared, predicted + shared, shared), m.correlations(true, predicted))
    assert np.isnan(m.specific_r(true + shared, np.tile(shared, (6, 1)), shared)).all()  # the mean predicts nothing that is specific
    assert m.correlations(true + shared, np.tile(shared, (6, 1))).min() > 0.9


def test_interaction_is_what_is_not_additive():
    a, b, more, noise = np.random.default_rng(0).normal(size=(4, 50))
    assert m.interaction_r(a + b + more, a + b + 2 * more, [a, b], [a, b]) == pytest.approx(1)
    assert np.isnan(m.interaction_r(a + b + more, a + b, [a, b], [a, b]))
    got = m.interaction_r(a + b + more, a + noise, [a, b], [a, 0 * b])
    assert got == pytest.approx(stats.pearsonr(more, noise).statistic)


# tests of genes


def test_welch_and_false_discoveries_are_scipys():
    rng = np.random.default_rng(0)
    control, groups = rng.normal(size=(30, 25)), [rng.normal(0.5, 2, (n, 25)) for n in (5, 12)]
    moments = [np.stack([f(x) for x in groups]) for f in (lambda x: x.mean(0), lambda x: x.var(0, ddof=1))]
    t, p = m.welch_test(*moments, np.array([5, 12]), control.mean(0), control.var(0, ddof=1), 30)
    for row, x in enumerate(groups):
        expected = stats.ttest_ind(x, control, equal_var=False)
        np.testing.assert_allclose(t[row], expected.statistic)
        np.testing.assert_allclose(p[row], expected.pvalue)
        np.testing.assert_allclose(m.benjamini_hochberg(p)[row], stats.false_discovery_control(p[row]))


def test_genes_that_never_vary_are_not_significant():
    zero = np.zeros((2, 3))
    t, p = m.welch_test(zero, zero, np.array([4, 9]), np.zeros(3), np.zeros(3), 7)
    np.testing.assert_array_equal(t, 0)
    np.testing.assert_array_equal(p, 1)


def test_average_precision_and_rank_correlation_of_significant_genes():
    rng = np.random.default_rng(0)
    true, predicted = pair(rng, 3, 40)
    significant = np.abs(true) > 1
    significant[2] = False
    made, ranks = m.de_precision(predicted, significant), m.de_spearman(true, predicted, significant)
    for row in range(2):
        yes = significant[row]
        assert made[row] == pytest.approx(average_precision_score(yes, np.abs(predicted[row])))
        assert ranks[row] == pytest.approx(stats.spearmanr(true[row, yes], predicted[row, yes]).statistic)
    assert np.isnan([made[2], ranks[2], m.de_direction(true, predicted, significant)[2]]).all()


# telling perturbations apart


def test_discrimination_is_the_references():
    case = np.load(VECTORS / "perturb_baselines.npz")
    rows = [list(case["names"]).index(name) for name in case["test"]]
    true, mean = case["means"][rows], np.tile(case["perturbed_mean"], (len(rows), 1))
    np.testing.assert_allclose(m.discrimination(case["additive"], true), case["disc_additive"])
    np.testing.assert_allclose(m.discrimination(mean, true), case["disc_perturbed_mean"])
    np.testing.assert_allclose(m.discrimination(true, true), case["disc_perfect"])
    np.testing.assert_allclose(m.correlations(true - case["ctrl"], case["additive"] - case["ctrl"]), case["pearson_delta_additive"])
    np.testing.assert_allclose(m.correlations(true - case["ctrl"], mean - case["ctrl"]), case["pearson_delta_pm"])


@settings(max_examples=30, deadline=None)
@given(generators, st.integers(2, 9), st.sampled_from(["l1", "l2", "cosine"]))
def test_perfect_and_constant_predictions(rng, perturbations, distance):
    true, predicted = pair(rng, perturbations)
    np.testing.assert_array_equal(m.discrimination(true, true, distance), 1)
    constant = np.tile(predicted[0], (perturbations, 1))
    assert m.discrimination(constant, true, distance).mean() == pytest.approx(0.5)
    np.testing.assert_array_equal(m.retrieval(true, true, 1, distance), 1)
    assert m.retrieval(constant, true, 1, distance).sum() == 1
    np.testing.assert_array_equal(m.discrimination(true, true, distance, "cell-eval"), 1)
    assert m.discrimination(constant, true, distance, "cell-eval").mean() == pytest.approx(0.5 + 0.5 / perturbations)


def test_ties_share_their_ranks():
    true = np.eye(4)
    np.testing.assert_allclose(m.discrimination(np.zeros((4, 4)), true, "cosine"), 0.5)
    np.testing.assert_allclose(m.discrimination(np.zeros((4, 4)), true, "l2"), 0.5)
    assert m.retrieval(np.zeros((4, 4)), true, 1).sum() == 0
    assert m.discrimination(np.zeros((4, 4)), true, "l2", "cell-eval").tolist() == [1, 0.75, 0.5, 0.25]
    assert np.isnan(m.discrimination(true[:1], true[:1])).all()


# cells


def test_mmd_is_its_definition_and_unbiased():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(9, 3)), rng.normal(1, 1, (7, 3))
    both = np.vstack([a, b])
    square = ((both[:, None] - both[None]) ** 2).sum(2)
    kernel = np.exp(-square / (2 * np.median(square[np.triu_indices(16, 1)])))
    within = [k[~np.eye(len(k), dtype=bool)].mean() for k in (kernel[:9, :9], kernel[9:, 9:])]
    assert m.mmd(a, b) == pytest.approx(sum(within) - 2 * kernel[:9, 9:].mean())
    null = [m.mmd(*np.random.default_rng(seed).normal(size=(2, 12, 3))) for seed in range(300)]
    assert abs(np.mean(null)) < 3 * np.std(null) / np.sqrt(300)
    assert m.mmd(a, a[:1].repeat(4, 0)) > 0


def test_zero_difference():
    a, b = np.array([[0.0, 1.0], [0.0, 1.0]]), np.array([[1.0, 1.0], [0.0, 1.0]])
    assert m.zero_difference(a, b) == 0.25
    assert m.zero_difference(sp.csr_matrix(a), sp.csr_matrix(b)) == 0.25
    assert m.zero_difference(a, a) == 0


# of the generative model


@settings(max_examples=25, deadline=None)
@given(generators, st.integers(1, 12))
def test_iwelbo(rng, cells):
    logw = rng.normal(-50, 3, (8, cells))
    value, error = m.iwelbo(logw)
    assert value == pytest.approx(np.log(np.exp(logw + 50).mean(0)).mean() - 50)
    assert m.iwelbo(logw[:1])[0] == pytest.approx(logw[0].mean())  # one particle: the ELBO
    assert np.isnan(m.iwelbo(logw[:1])[1])
    assert value >= logw.mean() - 1e-9
    assert error >= 0
    same, none = m.iwelbo(np.repeat(logw[:1], 5, 0))
    assert same == pytest.approx(logw[0].mean())
    assert none == pytest.approx(0, abs=1e-12)


def test_iwelbo_grows_with_particles_and_its_error_is_right():
    rng = np.random.default_rng(0)
    draws = rng.normal(0, 1, (400, 100, 20))  # repeats, particles, cells
    values = np.array([[m.iwelbo(one[:s])[0] for one in draws] for s in (1, 10, 100)])
    means = values.mean(1)
    assert means[0] < means[1] < means[2] < 0.5  # log of the mean weight is 1/2
    claimed = np.mean([m.iwelbo(one)[1] for one in draws])
    assert claimed == pytest.approx(values[2].std(), rel=0.15)


def test_masks_and_latents_are_the_references():
    case = np.load(VECTORS / "perturb_sim_metrics.npz")
    made = m.mask_recovery(case["mask_true"], case["mask_est"])
    for name in ("precision", "recall", "f1"):
        assert made[name] == pytest.approx(float(case[name]), rel=1e-10)
    np.testing.assert_array_equal(made["columns"], case["perm_idx"])
    value, each = m.mean_correlation_coefficient(case["z"], case["z_hat"])
    assert value == pytest.approx(float(case["mcc"]), rel=1e-10)
    np.testing.assert_allclose(each, case["mcc_each"], rtol=1e-8)


def test_masks_are_found_in_any_order_and_empty_ones_not():
    rng = np.random.default_rng(0)
    mask = rng.random((20, 6)) < 0.3
    assert m.mask_recovery(mask, mask[:, rng.permutation(6)])["f1"] == 1
    empty = m.mask_recovery(mask, np.zeros_like(mask))
    assert (empty["precision"], empty["recall"], empty["f1"]) == (0, 0, 0)
    z = rng.normal(size=(50, 3))
    assert m.mean_correlation_coefficient(z, -2 * z[:, [2, 0, 1]] + 3)[0] == pytest.approx(1)
