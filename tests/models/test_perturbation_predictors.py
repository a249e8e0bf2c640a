import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from sctool.data.perturbation_names import design, targets_of
from sctool.errors import SctoolError
from sctool.metrics.response import pearson
from sctool.models.perturbation import baselines
from sctool.models.perturbation.means import Means
from sctool.models.perturbation.predictors import PREDICTORS, predictor
from sctool.models.perturbation.shrunken import Effects, posterior, shrunken
from tests.conftest import VECTORS


@pytest.fixture(scope="module")
def oracle():
    return dict(np.load(VECTORS / "perturb_baselines.npz"))


@pytest.fixture(scope="module")
def measured(oracle):
    names = list(map(str, oracle["names"]))
    return known_means(oracle["genes"], oracle["train"], oracle["means"][[names.index(name) for name in oracle["train"]]], oracle["ctrl"])


def known_means(genes, names, mean_pg, control_g, cells=50.0, variance=0.2):
    shape = np.shape(mean_pg)
    return Means(
        tuple(map(str, genes)),
        tuple(map(str, names)),
        np.asarray(mean_pg, float),
        np.full(shape, variance),
        np.full(shape[0], cells),
        np.asarray(control_g, float),
        np.full(shape[1], variance),
        cells,
    )


def screen(seed=0, n_targets=24, n_genes=300, cells=40, control=60, doubles=6, kind="sparse"):
    """Truth and sampled means: expression, and effects of six programmes or of few genes each."""
    rng = np.random.default_rng(seed)
    control_g, sd_g = rng.gamma(1.0, 1.0, n_genes), 0.3 + 0.4 * rng.random(n_genes)
    if kind == "programmes":
        effect_tg = rng.normal(size=(n_targets, 4)) @ (rng.normal(size=(4, n_genes)) * (rng.random((4, n_genes)) < 0.2)) * 0.4
    else:
        effect_tg = rng.normal(size=(n_targets, n_genes)) * (rng.random((n_targets, n_genes)) < 0.05)
    effect_tg[: n_targets // 3] = 0
    names = [f"t{at:02d}" for at in range(n_targets)]
    pairs = [(at, at + 1) for at in range(n_targets - 2 * doubles, n_targets, 2)]
    true_pg = np.vstack([effect_tg, *[effect_tg[[a]] + effect_tg[[b]] for a, b in pairs]])
    names += [f"{names[a]}+{names[b]}" for a, b in pairs]

    def sampled(shape, n):
        return rng.normal(size=shape) * sd_g / np.sqrt(n), sd_g**2 * rng.chisquare(n - 1, shape) / (n - 1)

    noise_pg, variance_pg = sampled(true_pg.shape, cells)
    noise_g, variance_g = sampled(n_genes, control)
    genes = tuple(f"g{at}" for at in range(n_genes))
    means = Means(
        genes,
        tuple(names),
        control_g + true_pg + noise_pg,
        variance_pg,
        np.full(len(names), float(cells)),
        control_g + noise_g,
        variance_g,
        float(control),
    )
    return means, true_pg, control_g


def chosen(means, rows):
    rows = np.asarray(rows)
    return Means(
        means.genes,
        tuple(means.perturbations[at] for at in rows),
        means.mean_pg[rows],
        means.variance_pg[rows],
        means.cells_p[rows],
        means.control_g,
        means.control_variance_g,
        means.control_cells,
    )


def error(predicted, true):
    return float(np.square(predicted - true).sum() / np.square(true).sum())


# ---- means


def test_means_are_those_of_the_chosen_cells():
    rng = np.random.default_rng(0)
    x_ng = rng.random((30, 5)) * (rng.random((30, 5)) < 0.5)
    name_n = np.array((["control"] * 10) + ["B"] * 8 + ["A+B"] * 11 + ["C"], dtype=object)
    rows = np.r_[0:9, 12:18, 20:30]
    means = Means.of(sp.csr_matrix(x_ng), name_n, rows, list("abcde"))
    assert means.perturbations == ("A+B", "B", "C")
    assert means.targets == ("A", "B", "C")
    assert design(means.perturbations, means.targets).tolist() == [[True, True, False], [False, True, False], [False, False, True]]
    np.testing.assert_allclose(means.mean_pg[1], x_ng[12:18].mean(0))
    np.testing.assert_allclose(means.variance_pg[1], x_ng[12:18].var(0, ddof=1), atol=1e-12)
    np.testing.assert_allclose(means.control_variance_g, x_ng[:9].var(0, ddof=1), atol=1e-12)
    assert means.cells_p.tolist() == [9, 6, 1]
    assert means.control_cells == 9
    assert np.all(means.variance_pg[2] > 0), "one cell borrows the variance of all"
    for same in (Means.of(x_ng, name_n, rows, list("abcde")), Means.of(sp.csr_matrix(x_ng)[rows], name_n, rows, list("abcde"))):
        np.testing.assert_allclose(same.mean_pg, means.mean_pg)
    mask = np.zeros(30, bool)
    mask[rows] = True
    np.testing.assert_allclose(Means.of(sp.csr_matrix(x_ng), name_n, mask, list("abcde")).mean_pg, means.mean_pg)


@pytest.mark.parametrize(("rows", "missing"), [(range(2, 4), "control"), (range(2), "perturbed")])
def test_means_need_both_kinds_of_cells(rows, missing):
    with pytest.raises(SctoolError, match=f"no {missing} cell"):
        Means.of(np.ones((4, 2)), np.array(["control", "control", "A", "A"]), list(rows), ["a", "b"])


def test_targets_of_a_name():
    assert targets_of("A+B") == ("A", "B")
    assert targets_of("A") == ("A",)
    assert targets_of("control") == ()


# ---- baselines


def test_baselines_match_the_oracle(oracle, measured):
    test = list(map(str, oracle["test"]))
    np.testing.assert_allclose(
        oracle["ctrl"] + baselines.perturbed_mean(measured, test), np.tile(oracle["perturbed_mean"], (6, 1)), atol=1e-12
    )
    for name in ("additive", "matching_mean"):
        np.testing.assert_allclose(oracle["ctrl"] + predictor(name)(measured, test), oracle[name], atol=1e-12)
    predicted = baselines.bilinear(measured, list(oracle["linear_names"]), int(oracle["K"]), float(oracle["ridge"]))
    np.testing.assert_allclose(oracle["ctrl"] + predicted, oracle["linear_pred"], atol=1e-9)


def test_linear_does_not_depend_on_the_signs_of_components(measured, monkeypatch):
    before = baselines.linear(measured, ["g9", "g10"])
    scores = baselines._scores
    flip = np.array([-1, 1, -1, 1, 1, -1, -1, 1, 1, -1])
    monkeypatch.setattr(baselines, "_scores", lambda means, n: scores(means, n) * flip[: scores(means, n).shape[1]])
    np.testing.assert_allclose(baselines.linear(measured, ["g9", "g10"]), before, atol=1e-10)


def test_additive_adds(measured):
    a, b, both = baselines.additive(measured, ["g2", "g3", "g2+g3"])
    np.testing.assert_allclose(both, a + b)
    np.testing.assert_allclose(baselines.matching_mean(measured, ["g2+g3"])[0], (a + b) / 2)
    np.testing.assert_allclose(baselines.train_mean(measured, ["g2"])[0], a)
    np.testing.assert_allclose(
        baselines.train_mean(measured, ["g0+g1"])[0], measured.mean_pg[measured.perturbations.index("g0+g1")] - measured.control_g
    )


def test_a_target_changes_itself_as_training_targets_do():
    control_g = np.array([2.0, 4.0, 1.0, 3.0])
    mean_pg = np.tile(control_g, (2, 1))
    mean_pg[0, 0], mean_pg[1, 1] = 1.0, 2.0
    means = known_means(["a", "b", "c", "d"], ["a", "b"], mean_pg, control_g, cells=1e6)
    for predict in (baselines.own_gene, shrunken):
        change_wg = predict(means, ["c", "nowhere"])
        assert change_wg[0, 2] == pytest.approx(-0.5, abs=1e-3)
        assert change_wg[1, 2] == pytest.approx(0.0, abs=1e-3)


def test_without_a_measured_target_an_own_change_is_as_any_other():
    mean_pg = np.tile([1.5, 2.5, 3.0], (2, 1))
    means = known_means(["a", "b", "c"], ["x", "y"], mean_pg, [1.0, 2.0, 3.0], cells=1e6)
    for predict in (baselines.own_gene, shrunken):
        assert predict(means, ["a"])[0, 0] > 0.04
    _, sd_wg = posterior(means, ["a", "x"])
    assert sd_wg[0, 0] > sd_wg[1, 0]


def test_nearest_targets_in_expression_decide_knn():
    rng = np.random.default_rng(1)
    control_g = np.r_[np.full(4, 5.0), np.full(4, 0.5), np.zeros(4)]
    mean_pg = np.tile(control_g, (6, 1)) + 0.01 * rng.normal(size=(6, 12))
    mean_pg[:3, 8] += 1.0
    mean_pg[3:, 9] += 1.0
    means = known_means([f"g{at}" for at in range(12)], ["g0", "g1", "g2", "g4", "g5", "g6"], mean_pg, control_g)
    high, low = baselines.knn(means, ["g3", "g7"])
    assert high[8] > 0.9 > 0.1 > high[9]
    assert low[9] > 0.9 > 0.1 > low[8]


def test_low_rank_keeps_what_stands_out_of_noise():
    means, true_pg, _ = screen(kind="programmes", cells=10, control=1000, doubles=0)
    names = means.perturbations
    assert error(baselines.lowrank(means, names), true_pg) < 0.6 * error(baselines.train_mean(means, names), true_pg)


# ---- all of them


@pytest.mark.parametrize("name", PREDICTORS)
def test_no_name_is_a_problem_and_control_does_not_change(name, measured):
    wanted = ["g0", "g0+g1", "g2+g3", "g11", "elsewhere", "g0+elsewhere", "g0+g1+g2", "control"]
    change_wg = predictor(name)(measured, wanted)
    assert change_wg.shape == (len(wanted), 40)
    assert np.isfinite(change_wg).all()
    assert not change_wg[-1].any()
    assert predictor(name)(measured, []).shape == (0, 40)
    only = known_means(["a", "b"], ["drug"], [[1.0, 2.0]], [0.5, 2.5])
    assert np.isfinite(predictor(name)(only, ["drug", "other", "a"])).all()


def test_unknown_predictor_names_the_nearest():
    with pytest.raises(SctoolError, match="did you mean additive"):
        predictor("aditive")
    assert all(line and not line.endswith(".") for _, line in PREDICTORS.values())


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 50), name=st.sampled_from(list(PREDICTORS)))
def test_order_of_perturbations_and_genes_does_not_matter(seed, name):
    means, _, _ = screen(seed % 3, n_targets=8, n_genes=60, doubles=2)
    rng = np.random.default_rng(seed)
    rows, columns = rng.permutation(len(means.perturbations)), rng.permutation(60)
    moved = chosen(means, rows)
    moved = Means(
        tuple(np.array(moved.genes)[columns]), moved.perturbations, moved.mean_pg[:, columns], moved.variance_pg[:, columns],
        moved.cells_p, moved.control_g[columns], moved.control_variance_g[columns], moved.control_cells,
    )  # fmt: skip
    wanted = ["t00", "t05+t06", "t01+t02", "new", means.perturbations[-1]]
    np.testing.assert_allclose(predictor(name)(moved, wanted), predictor(name)(means, wanted)[:, columns], atol=1e-6)


# ---- shrunken


def test_with_endless_cells_nothing_is_shrunk():
    means, true_pg, _ = screen(cells=10**10, control=10**10)
    np.testing.assert_allclose(shrunken(means, means.perturbations), true_pg, atol=1e-3)
    pairs = [name for name in means.perturbations if "+" in name]
    singles = chosen(means, [at for at, name in enumerate(means.perturbations) if "+" not in name])
    np.testing.assert_allclose(shrunken(singles, pairs), baselines.additive(singles, pairs), atol=1e-3)


def test_without_effects_next_to_nothing_changes():
    means, true_pg, _ = screen(doubles=0)
    rng = np.random.default_rng(3)
    null = Means(
        means.genes, means.perturbations, means.control_g + rng.normal(size=true_pg.shape) * np.sqrt(means.variance_pg / 40),
        means.variance_pg, means.cells_p, means.control_g, means.control_variance_g, 1e9,
    )  # fmt: skip
    measured_change = baselines.train_mean(null, null.perturbations)
    assert np.square(shrunken(null, null.perturbations)).sum() < 0.02 * np.square(measured_change).sum()
    flat = known_means("abc", ["x", "y"], np.ones((2, 3)), np.ones(3))
    np.testing.assert_allclose(shrunken(flat, ["x", "y", "x+y", "new"]), 0.0, atol=1e-12)


@pytest.mark.parametrize("kind", ["sparse", "programmes"])
def test_recovers_changes_that_the_measured_means_miss(kind):
    means, true_pg, control_g = screen(kind=kind)
    names = means.perturbations
    strong = np.square(true_pg).sum(1) > 0
    predicted, measured_change = shrunken(means, names), baselines.train_mean(means, names)
    assert error(predicted, true_pg) < 0.5 * error(measured_change, true_pg)
    r = [[pearson(change_pg[at], true_pg[at]) for at in np.flatnonzero(strong)] for change_pg in (predicted, measured_change)]
    assert np.mean(r[0]) > np.mean(r[1]) + 0.05
    learned = Effects.fit(means).control_g
    assert np.square(learned - control_g).sum() < 0.5 * np.square(means.control_g - control_g).sum()


def test_combinations_teach_about_targets_never_seen_alone():
    means, true_pg, _ = screen(n_targets=12, doubles=0, kind="sparse", n_genes=200)
    rng = np.random.default_rng(5)
    pairs = [(10, at) for at in range(4, 9)]
    true_dg = np.array([true_pg[a] + true_pg[b] for a, b in pairs])
    rows = [at for at in range(12) if at != 10]
    names = [f"{min(f't{a:02d}', f't{b:02d}')}+{max(f't{a:02d}', f't{b:02d}')}" for a, b in pairs]
    kept = chosen(means, rows)
    more = Means(
        means.genes, (*kept.perturbations, *names[:4]),
        np.vstack([kept.mean_pg, means.control_g + true_dg[:4] + 0.05 * rng.normal(size=(4, 200))]),
        np.vstack([kept.variance_pg, np.full((4, 200), 0.1)]), np.r_[kept.cells_p, np.full(4, 40.0)],
        means.control_g, means.control_variance_g, means.control_cells,
    )  # fmt: skip
    alone, pair = shrunken(more, ["t10", names[4]])
    assert pearson(alone, true_pg[10]) > 0.8
    assert error(pair, true_dg[4]) < error(shrunken(kept, [names[4]])[0], true_dg[4])


@pytest.mark.parametrize("kind", ["sparse", "programmes"])
def test_intervals_hold_the_true_change(kind):
    seen, unseen = [], []
    for seed in range(3):
        means, true_pg, _ = screen(seed, kind=kind)
        held = np.arange(24, 30)
        train = chosen(means, np.arange(24))
        change_pg, sd_pg = posterior(train, means.perturbations)
        inside_pg = np.abs(true_pg - change_pg) <= 1.96 * sd_pg + 1e-9
        seen.append(inside_pg[:24].mean())
        unseen.append(inside_pg[held].mean())
        measured_sd = np.sqrt(train.variance_pg / 40 + train.control_variance_g / 60)
        assert sd_pg[:24].mean() < 0.8 * measured_sd.mean(), "no wider than they need be"
    assert 0.92 < np.mean(seen) <= 0.995
    assert 0.90 < np.mean(unseen) <= 0.995


def test_what_was_not_seen_is_less_certain():
    means, _, _ = screen(kind="programmes")
    _, sd_wg = posterior(means, ["t20", "t00", "nowhere", "t20+nowhere", "control"])
    known, weak, new, half, control = np.median(sd_wg, 1)
    assert control == 0
    assert weak < known < new <= half


def test_shuffled_labels_teach_no_more_than_the_mean():
    rng = np.random.default_rng(0)
    effect_tg = np.zeros((10, 80))
    effect_tg[:, :10] = rng.normal(size=(10, 10))
    label_n = np.repeat(np.arange(11), 40)
    x_ng = 1.0 + 0.5 * rng.normal(size=(440, 80)) + np.vstack([effect_tg, np.zeros(80)])[label_n]
    name_n = np.array([f"t{at}" for at in range(10)] + ["control"], dtype=object)[label_n]
    half = rng.random(440) < 0.5
    genes = [f"g{at}" for at in range(80)]
    test = Means.of(x_ng, name_n, ~half, genes)

    def scores(means, predict):
        return np.array([np.nan_to_num(pearson(a, b)) for a, b in zip(predict(means, test.perturbations), test.change_pg, strict=True)])

    true = Means.of(x_ng, name_n, half, genes)
    shuffled_n = name_n.copy()
    shuffled_n[name_n != "control"] = rng.permutation(name_n[name_n != "control"])
    null = Means.of(x_ng, shuffled_n, half, genes)
    gain = scores(null, shrunken) - scores(null, baselines.perturbed_mean)
    assert gain.mean() < 2 * gain.std(ddof=1) / np.sqrt(10)
    assert scores(true, shrunken).mean() > scores(null, shrunken).mean() + 0.2
