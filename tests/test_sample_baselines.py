"""Baselines and probes of samples, folds of donors, and their comparison: nothing of a held-out donor is seen, and noise is at chance."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cdist
from sklearn.linear_model import LogisticRegression, Ridge

from sctool.bench import samples as bench
from sctool.bench.sample_confounding import confounding
from sctool.bench.sample_folds import parse_sample_cv, plain_folds
from sctool.bench.sample_leakage import leakage, leaks
from sctool.bench.sample_retrieval import Parts, baseline_embeds, retrieval_tables
from sctool.bench.samples import Contestant, baseline_contestants, evaluate_samples, sample_folds
from sctool.config import Config
from sctool.data.cohort import Cohort, Task, sample_means
from sctool.data.representation import Given
from sctool.errors import SctoolError
from sctool.metrics.base import METRICS
from sctool.metrics.sample_scores import LOWER, SCORES
from sctool.models.samples import baselines
from sctool.models.samples import gloscope as glo
from sctool.models.samples import probe as probes
from sctool.models.samples.baselines import BASELINES, baseline
from sctool.models.samples.probe import Probe, Scaler, logistic, ridge

TASK = Task("group", "class", ("a", "b"))
QUICK = Config().replaced({"sampleclr.permutations": 19, "sampleclr.repeats": 2})


def cohort(rng, donors=14, each=1, cells=40, shift=0.0, typed=True, levels=2):
    """Samples of donors of groups whose cells differ by ``shift`` in the first feature."""
    donor_s = np.repeat([f"d{d:02d}" for d in range(donors)], each)
    samples = np.array([f"{d}_{i % each}" for i, d in enumerate(donor_s)], object)
    group_s = np.repeat(np.arange(donors) % levels, each)
    sample_n = np.append(np.repeat(np.arange(len(samples)), cells), -1)
    x = rng.normal(size=(len(sample_n), 4)).astype(np.float32)
    types = np.array(["T", "B"], object)[rng.integers(0, 2, len(sample_n))]
    x[:, 1] += 3 * (types == "T")
    x[:-1, 0] += shift * group_s[sample_n[:-1]]
    table = pd.DataFrame({"sample": samples, "donor": donor_s, "n_cells": cells, "group": np.array(["a", "b", "c", "d"])[group_s]})
    table["age"] = 10.0 * group_s + rng.normal(size=len(samples))
    table["site"] = np.where(group_s == 0, "x", "y")
    obs = pd.DataFrame({"total_counts": rng.poisson(500, len(sample_n))}, index=[f"c{i}" for i in range(len(sample_n))])
    everyone = np.ones(len(samples), bool)
    return Cohort(samples, donor_s.astype(object), sample_n, table, obs, types if typed else None, Given(x, {}), everyone)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# baselines


def test_baselines_are_their_definitions(rng):
    made = cohort(rng)
    x, train = made.features(made.usable_s), np.arange(14) < 10
    own = [np.flatnonzero(made.sample_n == s) for s in range(14)]
    got = {name: function(made, train, None) for name, (function, _) in BASELINES.items()}
    np.testing.assert_allclose(got["mean"], [x[rows].mean(0) for rows in own], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got["mean_sd"][:, 4:], [x[rows].std(0) for rows in own], rtol=1e-4)
    share = np.array([[(made.types_n[rows] == name).mean() for name in ("B", "T")] for rows in own])
    np.testing.assert_allclose(got["composition"], share)
    log = np.log(share * 40 + 1)
    np.testing.assert_allclose(got["composition_clr"], log - log.mean(1, keepdims=True))
    np.testing.assert_array_equal(got["mean_and_composition"], np.hstack([got["mean"], got["composition_clr"]]))
    assert got["types"].shape == (14, 8)
    cells = own[0][made.types_n[own[0]] == "B"]
    every = np.flatnonzero(np.isin(made.sample_n, np.flatnonzero(train)) & (made.types_n == "B"))
    np.testing.assert_allclose(got["types"][0, :4], (x[cells].sum(0) + x[every].mean(0)) / (len(cells) + 1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got["covariates"][0], [np.log(41), np.median(made.obs["total_counts"].to_numpy()[own[0]])])
    assert all(np.isfinite(f).all() and len(f) == 14 for f in got.values())


@pytest.mark.parametrize("name", list(BASELINES))
def test_what_is_fitted_sees_no_held_out_sample(rng, name):
    """Cells of a sample that is not trained on may change its own features only."""
    made, train = cohort(rng, typed=False), np.arange(14) < 10
    before = baseline(name)(made, train, None)
    x = made.source.x_nf.copy()
    x[made.sample_n == 12] += 50
    changed = replace(made, source=Given(x, {}))
    after = baseline(name)(changed, train, None)
    others = np.arange(14) != 12
    np.testing.assert_allclose(after[others], before[others], atol=1e-3)
    assert name in ("covariates", "random") or not np.allclose(after[12], before[12])


def test_directions_of_samples_are_those_of_a_contrast(rng):
    """Where samples differ in a feature that hardly varies within them, that is the first direction, however loud another is."""
    made = cohort(rng, donors=12, cells=200)
    x, quiet = made.source.x_nf, rng.normal(size=13)
    x *= np.array([1, 1, 20, 0.1])
    x[:, 3] += quiet[made.sample_n]
    train = np.arange(12) < 9
    got = baseline("lda")(made, train, None)
    assert got.shape == (12, 4)
    assert abs(np.corrcoef(got[:, 0], quiet[:12])[0, 1]) > 0.95  # of samples that are not trained on too
    part = made.sample_n % 2 == 0
    half = baseline("lda")(made, train, part)
    assert np.isnan(half[1]).all()
    np.testing.assert_allclose(half[0], got[0])
    # of 20 features there are 10 directions at most, and of few samples one fewer than these
    wide = replace(made, source=Given(rng.normal(size=(len(x), 20)).astype(np.float32), {}))
    assert baseline("lda")(wide, made.usable_s, None).shape == (12, 10)
    assert baseline("lda")(wide, np.arange(12) < 4, None).shape == (12, 3)


def test_cells_are_clustered_once_in_a_fold(rng, monkeypatch):
    made, calls = cohort(rng, typed=False), []
    centres = baselines.cluster_centres
    monkeypatch.setattr(baselines, "cluster_centres", lambda *given: calls.append(given) or centres(*given))
    one, other = np.arange(14) < 10, np.arange(14) >= 4
    for train in (one, other):
        for name in ("composition", "composition_clr", "mean_and_composition", "types"):
            baseline(name)(made, train, made.sample_n >= 0)
    assert len(calls) == 2
    first = baseline("composition")(made, one, None)
    assert len(calls) == 3  # only the last training samples are remembered
    fresh = replace(made)
    assert not fresh.memo
    np.testing.assert_array_equal(baseline("composition")(fresh, one, None), first)


def test_covariates_of_samples(rng):
    made = cohort(rng)
    made.table.loc[3, "age"] = np.nan
    got = baseline("covariates")(made, made.usable_s, None, columns=["age", "site"])
    assert got.shape == (14, 5)
    assert got[3, 2] == pytest.approx(np.nanmedian(made.table["age"]))
    assert set(got[:, 3]) == {0, 1}
    with pytest.raises(SctoolError, match="'sex' is not a column of samples"):
        baseline("covariates")(made, made.usable_s, None, columns=["sex"])
    with pytest.raises(SctoolError, match="no baseline of samples is called 'means'"):
        baseline("means")


def test_gloscope_is_its_formula(rng):
    code = np.repeat([0, 1, 2, -1], [40, 30, 50, 5])
    x = rng.normal(size=(125, 3)) + np.array([0, 0, 1.5, 9])[code][:, None]
    k, got = 5, glo.divergences(x, code, 3, 5)
    cells = [x[code == s] for s in range(3)]

    def one_way(i, j):
        own = np.sort(cdist(cells[i], cells[i]), 1)[:, k]
        other = np.sort(cdist(cells[i], cells[j]), 1)[:, k - 1]
        return 3 * np.mean(np.log(other / own)) + np.log(len(cells[j]) / (len(cells[i]) - 1))

    assert got[0, 2] == pytest.approx(one_way(0, 2) + one_way(2, 0), rel=1e-3)
    assert got[0, 1] == pytest.approx(max(0, one_way(0, 1) + one_way(1, 0)), abs=1e-3)
    np.testing.assert_array_equal(got, got.T)
    assert got[0, 2] > 3 * got[0, 1]


def test_large_samples_and_many_are_compared_by_some_of_their_cells(rng, monkeypatch):
    code = np.repeat([0, 1, 2], 400)
    x = rng.normal(size=(1200, 2)) + np.array([0, 1, 3])[code][:, None]
    whole = glo.divergences(x, code, 3)
    monkeypatch.setattr(glo, "MOST_REFERENCE", 200)
    monkeypatch.setattr(glo, "MOST_DISTANCES", 1)
    asked = []
    drawn = glo._drawn
    monkeypatch.setattr(glo, "_drawn", lambda own, most, rng: asked.append((len(own), most)) or drawn(own, most, rng))
    part = glo.divergences(x, code, 3)
    assert asked == [(400, 200)] * 3 + [(200, glo.FEWEST_CELLS)] * 3
    np.testing.assert_array_equal(part, glo.divergences(x, code, 3))
    np.testing.assert_allclose(part, whole, rtol=0.4, atol=0.4)
    assert 0 < part[0, 1] < part[0, 2]
    made, said = cohort(rng), []
    monkeypatch.setattr(bench, "MOST_SAMPLES", 13)
    names = {one.name for one in baseline_contestants(made, QUICK, said.append)}
    assert "mean" in names
    assert not any(name.startswith("gloscope") for name in names)
    assert said[0].startswith("note: the baseline gloscope is left out: it compares all 14 samples")


def test_means_are_summed_in_double_precision(rng):
    x = (10_000 + rng.normal(size=(5000, 2))).astype(np.float32)
    code = np.append(rng.integers(0, 2, 4999), -1)
    expected = [x[code == s].astype(np.float64).mean(0) for s in range(2)]
    np.testing.assert_allclose(sample_means(x, code, 3), [*expected, [0, 0]], rtol=1e-13)


def test_samples_are_placed_where_they_were(rng):
    z = rng.normal(size=(12, 3))
    train = np.arange(12) < 9
    placed = glo.place(cdist(z, z) ** 2, train)
    assert placed.shape == (12, 3)
    np.testing.assert_allclose(cdist(placed, placed), cdist(z, z), atol=1e-8)  # those not trained on too


# probes


def test_probes_are_scikit_learns(rng):
    x, y = rng.normal(size=(30, 5)), rng.integers(0, 2, (3, 30))
    made = logistic(x, y, 2.0)
    for row, labels in zip(made, y, strict=True):
        fitted = LogisticRegression(C=2.0, class_weight="balanced", tol=1e-10, max_iter=2000).fit(x, labels)
        np.testing.assert_allclose(row[:-1], fitted.coef_[0], atol=1e-4)
        assert row[-1] == pytest.approx(fitted.intercept_[0], abs=1e-4)
    value = rng.normal(size=(2, 30)) + x @ rng.normal(size=5)
    for row, target in zip(ridge(x, value), value, strict=True):
        fits = [Ridge(alpha=1 / ratio).fit(x, target) for ratio in (0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)]
        assert min(np.abs(row[:-1] - fit.coef_).max() + abs(row[-1] - fit.intercept_) for fit in fits) < 1e-8
    assert np.allclose(logistic(x, np.zeros((1, 30)))[0, :-1], 0)  # one class


def test_labellings_are_fitted_in_parts(rng, monkeypatch):
    x, y = rng.normal(size=(30, 5)), rng.integers(0, 2, (9, 30))
    y[4] = 1
    whole, sizes, solve = logistic(x, y), [], np.linalg.solve
    monkeypatch.setattr(probes, "MOST_BYTES", 4 * 8 * 6 * (30 + 2 * 6))
    monkeypatch.setattr(np.linalg, "solve", lambda a, b: sizes.append(len(a)) or solve(a, b))
    np.testing.assert_allclose(logistic(x, y), whole, atol=1e-6)
    assert max(sizes) == 4
    ranks, fit = [], logistic
    monkeypatch.setattr(probes, "logistic", lambda x_sr, *given, **more: ranks.append(x_sr.shape[1]) or fit(x_sr, *given, **more))
    Probe("class").answers(rng.normal(size=(8, 50)), y[:, :8], rng.normal(size=(3, 50)))
    assert ranks == [7]


def test_scaling_makes_dimensions_comparable(rng):
    x = np.hstack([100 + 7 * rng.normal(size=(20, 6)), np.ones((20, 2))])
    scaled = Scaler.fit(x)(x)
    assert np.square(scaled).sum(1).mean() == pytest.approx(1)
    assert (scaled[:, 6:] == 0).all()
    y = (x[:, 0] > 100).astype(float)[None]
    once, twice = (Probe("class").answers(f[:15], y[:, :15], f[15:]).values_bsc for f in (x, np.hstack([x, x])))
    np.testing.assert_allclose(once, twice, atol=1e-6)  # the same features twice say no more


@pytest.mark.parametrize("neighbours", [0, 3])
def test_probes_of_every_kind(rng, neighbours):
    x = rng.normal(size=(60, 3))
    level = np.digitize(x[:, 0], [-0.5, 0.5]).astype(float)
    for kind, classes, truth in (("class", 3, level), ("ordinal", 3, level), ("regression", 1, x[:, 0])):
        got = Probe(kind, classes, neighbours).answers(x[:40], np.stack([truth[:40], rng.permutation(truth[:40])]), x[40:])
        assert got.values_bsc.shape == (2, 20, classes)
        if kind != "regression":
            np.testing.assert_allclose(got.values_bsc.sum(2), 1)
            assert (got.values_bsc >= 0).all()
            assert np.mean(got.called_bs[0] == truth[40:]) > 0.6
        assert np.corrcoef(got.called_bs[0], truth[40:])[0, 1] > 0.6 > np.corrcoef(got.called_bs[1], truth[40:])[0, 1]
    with pytest.raises(SctoolError, match="1 of 3 features of the test samples"):
        Probe("class").answers(x[:40], level[:40] > 0, np.where(np.arange(3) == 1, np.nan, x[40:]))


@pytest.mark.parametrize("neighbours", [0, 5])
def test_probabilities_are_at_the_frequencies_asked_for(rng, neighbours):
    """Else a fold that holds out more of a class would rank it lower, and answers of folds ranked together fall below chance."""
    x, y = rng.normal(size=(40, 3)), np.append(np.ones(10), np.zeros(20))
    probe = Probe("class", 2, neighbours)
    own, even, rare = (probe.answers(x[:30], y, x[30:], prior) for prior in (None, np.array([0.5, 0.5]), np.array([0.9, 0.1])))
    odds = [each.values_bsc[0, :, 1] / each.values_bsc[0, :, 0] for each in (own, even, rare)]
    np.testing.assert_allclose(odds[0], odds[1] / 2)
    np.testing.assert_allclose(odds[2], odds[1] / 9)
    np.testing.assert_array_equal(own.called_bs, rare.called_bs)
    np.testing.assert_array_equal(own.called_bs[0], odds[1] > 1)


# folds


@pytest.mark.parametrize("cv", ["auto", "donors:3", "leave-one-donor-out", "leave-one-study-out"])
def test_no_donor_is_in_both_parts(rng, cv):
    made = cohort(rng, each=2)
    made.table["study"] = np.where(np.arange(28) < 14, "one", "two")
    config = QUICK.replaced({"sampleclr.cv": cv, "sampleclr.study_key": "study"})
    folds = sample_folds(made, TASK, config)
    tested = np.zeros((2, 28), int)
    for fold in folds:
        assert not set(made.donor_s[fold.train_s]) & set(made.donor_s[fold.test_s])
        assert set(made.table["group"][fold.train_s]) == {"a", "b"}
        tested[fold.repeat] += fold.test_s
    assert (tested[0] == 1).all()
    assert (tested[1] == (1 if cv in ("auto", "donors:3") else 0)).all()


def test_samples_without_truth_are_trained_on_and_never_tested(rng):
    made = cohort(rng)
    made.table.loc[2, "group"] = np.nan
    folds = sample_folds(made, TASK, QUICK)
    assert all(fold.train_s[2] and not fold.test_s[2] for fold in folds)


def test_folds_without_a_task_hold_out_what_is_asked_for(rng):
    made = cohort(rng, each=2)
    made.table["study"] = np.where(np.arange(28) < 14, "one", "two")
    for cv, expected in (("auto", 5), ("donors:3", 3), ("leave-one-donor-out", 14), ("leave-one-study-out", 2), ("none", 0)):
        folds = plain_folds(made, QUICK.replaced({"sampleclr.cv": cv, "sampleclr.study_key": "study"}))
        assert len(folds) == expected
        assert sum(fold.test_s.sum() for fold in folds) == (28 if folds else 0)
        assert not any(set(made.donor_s[fold.train_s]) & set(made.donor_s[fold.test_s]) for fold in folds)
    with pytest.raises(SctoolError, match="needs --study-key"):
        plain_folds(made, QUICK.replaced({"sampleclr.cv": "leave-one-study-out"}))


def test_few_donors_are_refused(rng):
    with pytest.raises(SctoolError, match="class 'b' has 2 donors"):
        sample_folds(cohort(rng, donors=5), TASK, QUICK)
    made = cohort(rng)
    made.table["study"] = "one"
    by_study = QUICK.replaced({"sampleclr.cv": "leave-one-study-out", "sampleclr.study_key": "study"})
    with pytest.raises(SctoolError, match="there is one study"):
        sample_folds(made, TASK, by_study)
    made.table["study"] = made.table["group"]
    with pytest.raises(SctoolError, match=r"with study a held out, class 'a' has 0 donors"):
        sample_folds(made, TASK, by_study)
    with pytest.raises(SctoolError, match="is not known"):
        parse_sample_cv("cells:5")


# the comparison


def test_a_difference_is_found_and_noise_is_not(rng):
    made = cohort(rng, donors=16, each=2, shift=0.8)
    folds = sample_folds(made, TASK, QUICK)
    contestants = [c for c in baseline_contestants(made, QUICK) if c.name in ("mean", "random", "mean, nearest")]
    oracle = np.eye(2)[(made.table["group"] == "b").to_numpy(int)] * 0.8 + 0.1
    contestants.append(Contestant("oracle", "supervised", predict=lambda train_s: oracle))
    contestants.append(Contestant("coin", "supervised", predict=lambda train_s: np.full((32, 2), 0.5)))
    told = evaluate_samples(made, TASK, contestants, folds, QUICK)
    table = told.tables["comparison"].set_index(["name", "score"])
    auc = table.xs("auc", level="score")
    assert auc.loc["mean", "value"] > 0.95
    assert auc.loc["mean", "p"] == 0.05
    assert auc.loc["random", "p"] > 0.1
    assert auc.loc["coin", "value"] == 0.5
    assert auc.loc["oracle", ["value", "low", "high"]].tolist() == [1, 1, 1]
    assert abs(auc.loc["mean", "null"] - 0.5) < 0.15
    for score in LOWER & set(told.columns):  # the lower the better
        own = table.xs(score, level="score")
        if score != "ece":  # shuffled labels are answered carefully too
            assert own.loc["mean", "p"] == 0.05 < own.loc["random", "p"]
        assert own.loc["coin", "against"] == own["value"][own["arm"] == "baseline"].idxmin()
    assert auc["permuted"].to_dict() == {
        "mean": "labels",
        "mean, nearest": "labels",
        "random": "labels",
        "oracle": "answers",
        "coin": "answers",
    }
    assert (auc["low"] <= auc["value"]).all()
    assert (auc["n_donors"] == 16).all()
    best = auc.loc["coin", "against"]
    assert auc.loc["coin", "difference"] == pytest.approx(0.5 - auc.loc[best, "value"])
    assert auc.loc["coin", "difference_high"] < 0
    assert np.isnan(auc.loc[best, "difference"])
    assert table.loc[("coin", "log_loss"), "value"] == pytest.approx(np.log(2))
    assert any(line.startswith(f"behind the baseline '{best}' in auc") and "coin" in line for line in told.verdict())
    assert any(note.startswith(f"coin - {best}, auc: -0.") and "over 16 donors" in note for note in told.notes)
    predictions = told.tables["predictions"]
    assert predictions.groupby(["name", "repeat", "sample"]).size().eq(1).all()
    assert (predictions["p_a"] + predictions["p_b"]).to_numpy() == pytest.approx(1)
    assert told.metrics["by_class"]["a"] == {"samples": 16, "donors": 8}


def test_every_score_has_its_direction():
    known = {score for scores in SCORES.values() for score in scores}
    assert LOWER == {"mae", "log_loss", "brier", "ece"} <= known
    assert all(METRICS[score].higher_is_better == (score not in LOWER) for score in known & set(METRICS))


def uneven(rng):
    """Two studies of 20 donors each: 15 of 20 of group a in one, 5 in two."""
    made = cohort(rng, donors=40, shift=0.3)
    made.table["group"] = np.where(np.arange(40) % 20 < np.where(np.arange(40) < 20, 15, 5), "a", "b")
    made.table["study"] = np.where(np.arange(40) < 20, "one", "two")
    made.table.loc[39, "group"] = "a"
    return made


def test_answers_of_its_own_are_called_as_a_probes_are(rng):
    made = uneven(rng)
    made.table.loc[20:29, "group"] = "a"
    z, truth_s = baseline("mean")(made, made.usable_s, None), (made.table["group"] == "b").to_numpy(float)
    share_c = np.array([1 - truth_s.mean(), truth_s.mean()])

    def as_probe(train_s):
        return Probe("class").answers(z[train_s], truth_s[None, train_s], z, share_c).values_bsc[0]

    both = [Contestant("probe", "embedding", features=lambda train_s: z), Contestant("own", "supervised", predict=as_probe)]
    told = evaluate_samples(made, TASK, both, sample_folds(made, TASK, QUICK), QUICK)
    said = told.tables["predictions"].set_index(["name", "repeat", "sample"])
    pd.testing.assert_frame_equal(said.loc["probe"].sort_index(), said.loc["own"].sort_index())
    assert (said["prediction"] != np.where(said["p_b"] > 0.5, "b", "a")).any()  # the commoner class is not preferred


def test_frequencies_are_those_in_training_where_a_study_is_held_out(rng):
    made = uneven(rng)
    same = [Contestant("nothing", "embedding", features=lambda train_s: np.ones((40, 1)))]
    same.append(Contestant("own", "supervised", predict=lambda train_s: np.tile([21 / 40, 19 / 40], (40, 1))))
    for cv, share in (("leave-one-study-out", {"one": 14 / 20, "two": 5 / 20}), ("donors:4", {"one": 19 / 40, "two": 19 / 40})):
        config = QUICK.replaced({"sampleclr.cv": cv, "sampleclr.study_key": "study"})
        told = evaluate_samples(made, TASK, same, sample_folds(made, TASK, config), config)
        said = told.tables["predictions"]
        study = made.table.set_index("sample")["study"].loc[said["sample"]].map(share)
        np.testing.assert_allclose(said["p_b"], study, rtol=1e-6)
        auc = told.tables["comparison"].set_index(["name", "score"])["value"].xs("auc", level="score")
        assert auc.to_dict() == {"nothing": 0.5, "own": 0.5}  # studies of other frequencies are not ranked by these
        assert {fold.shared for fold in sample_folds(made, TASK, config)} == {cv == "donors:4"}
    made.table["part"] = np.where(made.table["study"] == "one", "train", "test")
    assert not sample_folds(made, TASK, QUICK.replaced({"sampleclr.cv": "column:part"}))[0].shared


def test_classes_that_a_fold_of_another_task_lacks_are_told(rng):
    made, said = cohort(rng), []
    made.table["second"] = np.where(np.arange(14) == 3, "odd", np.where(np.arange(14) % 2, "x", "y"))
    made.table["seldom"] = np.where(np.arange(14) < 2, np.array(["x", "y"])[np.arange(14) % 2], None)
    folds = sample_folds(made, TASK, QUICK)
    contestants = [c for c in baseline_contestants(made, QUICK) if c.name in ("mean", "mean, nearest")]
    told = evaluate_samples(made, Task("second", "class", ("odd", "x", "y")), contestants, folds, QUICK, said.append)
    assert len(said) == 1
    assert said[0].startswith("note: second: not every fold trains on every class: fold ")
    assert said[0].count("lacks 'odd'") == 2  # once in each repeat
    assert np.isfinite(told.scores["balanced_accuracy"]).all()
    held = [replace(folds[0], train_s=np.arange(14) >= 2, test_s=np.arange(14) < 2), *folds]
    evaluate_samples(made, Task("seldom", "class", ("x", "y")), contestants, held, QUICK, said.append)
    assert said[1].startswith("note: seldom is not known of any sample to train on in ")


@pytest.mark.parametrize("task", [Task("age", "regression"), Task("group", "ordinal", ("a", "b", "c"))])
def test_numbers_and_levels(rng, task):
    made = cohort(rng, donors=18, shift=1.0, levels=3)
    contestants = [c for c in baseline_contestants(made, QUICK) if c.name in ("mean", "random")]
    told = evaluate_samples(made, task, contestants, sample_folds(made, task, QUICK), QUICK)
    value = told.tables["comparison"].set_index(["name", "score"])["value"]
    assert value["mean", told.columns[0]] > 0.6 > value["random", told.columns[0]]
    assert value["mean", "mae"] < value["random", "mae"]
    assert set(told.tables["predictions"]["truth"]) <= ({"a", "b", "c"} if task.order else set(made.table["age"]))


def test_answers_that_do_not_fit_are_refused(rng):
    made = cohort(rng)
    folds = sample_folds(made, TASK, QUICK)
    with pytest.raises(SctoolError, match=r"bad: answers of shape \(\d, 3\)"):
        evaluate_samples(made, TASK, [Contestant("bad", "supervised", predict=lambda train_s: np.ones((14, 3)))], folds, QUICK)
    with pytest.raises(SctoolError, match="no sample of group"):
        evaluate_samples(made, TASK, baseline_contestants(made, QUICK), [], QUICK)


# figures without a task


def test_parts_of_cells_are_disjoint_halves_and_few(rng):
    made = cohort(rng, donors=6, cells=41)
    cells = Parts(made, 0, repeats=2).cells
    for repeat in range(2):
        a, b = cells[f"half/{repeat}/a"], cells[f"half/{repeat}/b"]
        assert not (a & b).any()
        assert (np.bincount(made.sample_n[a], minlength=6) == 20).all()
        assert (np.bincount(made.sample_n[b], minlength=6) == 20).all()
    assert (cells["half/0/a"] != cells["half/1/a"]).any()
    assert (np.bincount(made.sample_n[cells["few/25"]], minlength=6) == 25).all()
    assert [key for key in cells if key.startswith("few/")] == ["few/25"]  # no sample has more than 41
    assert not any(mask[-1] for mask in cells.values())  # a cell of no sample


def test_distinct_samples_are_found_again_and_alike_ones_are_not(rng):
    made = cohort(rng, donors=10, each=2, cells=120)
    folds, parts = sample_folds(made, TASK, QUICK.replaced({"sampleclr.repeats": 1})), Parts(made, 0)
    none, _ = retrieval_tables(made, {"mean": baseline_embeds(made, parts)["mean"]}, folds, parts)
    assert none["top1"].iloc[0] < 0.15
    assert none["donor_top1"].iloc[0] < 0.3
    made.source.x_nf[:] += 8 * rng.normal(size=(10, 4))[np.unique(made.donor_s, return_inverse=True)[1]][made.sample_n]
    made.source.x_nf[:] += rng.normal(size=(20, 4))[made.sample_n]
    embeds = baseline_embeds(made, parts)
    constant = {"constant": lambda train_s, part: np.ones((20, 2))}
    found, few = retrieval_tables(made, {"mean": embeds["mean"], "lda": embeds["lda"], **constant}, folds, parts)
    found, few = found.set_index("name"), few[few["name"] == "mean"]
    assert (found.loc[["mean", "lda"], ["top1", "donor_top1"]] > [0.95, 0.8]).all(axis=None)
    assert found.loc["constant", "top1"] == pytest.approx(1 / 39) == found.loc["mean", "chance"]
    assert found.loc["mean", ["samples", "donors"]].tolist() == [20, 10]
    assert (found["low"] <= found["top1"]).all()
    assert few["cells"].tolist() == [25, 50, 100]
    assert few["drift"].is_monotonic_decreasing
    assert few["retrieval"].iloc[-1] == 1


def test_only_samples_held_out_count(rng):
    """A representation that knows the samples it was fitted on by heart, and no others."""
    made = cohort(rng, donors=10, cells=60)
    folds, parts = sample_folds(made, TASK, QUICK.replaced({"sampleclr.repeats": 1})), Parts(made, 0)
    by_heart = np.random.default_rng(1).normal(size=(10, 3))

    def learned(train_s, part):
        noise = np.random.default_rng(list(part.encode())).normal(size=(10, 3))
        return np.where(train_s[:, None], by_heart, noise)

    held, _ = retrieval_tables(made, {"learned": learned}, folds, parts)
    seen, _ = retrieval_tables(made, {"learned": learned}, [replace(fold, train_s=made.usable_s) for fold in folds], parts)
    assert seen["top1"].iloc[0] == 1
    assert held["top1"].iloc[0] < 0.3
    some, _ = retrieval_tables(made, {"learned": learned}, folds[:1], parts)
    assert some["samples"].iloc[0] == folds[0].test_s.sum()


def test_leaked_batches_are_found(rng):
    made = cohort(rng, donors=16, shift=1.0)
    made.table["pool"] = np.array(["p", "q", "r", "s"])[np.arange(16) // 4]
    made.table["rare"] = np.where(np.arange(16) < 2, "few", "many")
    z = baseline("mean")(made, made.usable_s, None)
    contestants = [Contestant("ours", "embedding", features=lambda train_s: z)]
    contestants += [one for one in baseline_contestants(made, QUICK) if one.name in ("mean", "random")]
    tasks = [Task("site", "class", ("x", "y")), Task("pool", "class", ("p", "q", "r", "s")), Task("rare", "class", ("few", "many"))]
    said = []
    by_study = QUICK.replaced({"sampleclr.cv": "leave-one-study-out"})  # of the targets; batches are tested on donors held out
    site, pool = leakage(made, tasks, contestants, by_study, said.append)
    value = site.tables["comparison"].set_index(["name", "score"])
    assert value.loc[("ours", "auc"), "value"] > 0.9
    assert value.loc[("ours", "auc"), "p"] == 0.05
    assert value.loc[("random", "auc"), "p"] > 0.05
    assert len(said) == 1
    assert said[0].startswith("note: traces of rare are not tested: rare: 1 of 2 batches have more than 2 donors")
    lines = list(leaks([site, pool]))
    assert lines[0].startswith("ours: site found (auc ")
    assert lines[1].startswith("ours: pool not found (auc ")


def test_batches_that_cannot_be_tested_are_left_out(rng):
    made, said, seen = cohort(rng, donors=16, each=2, shift=1.0), [], []
    donor = np.arange(32) // 2
    made.table["own"] = made.donor_s  # every batch is a donor
    made.table["pool"] = np.where(donor == 5, "single", np.where(donor % 2, "y", "x"))
    made.table["study"] = np.where(donor < 8, "one", "two")
    made.table["lab"] = np.where(donor < 8, "l1", np.where(donor < 12, "l2", "l3"))
    folds = sample_folds(made, TASK, QUICK)
    ours = [Contestant("ours", "embedding", features=lambda train_s: seen.append(train_s) or made.features(train_s)[:32])]
    tasks = [
        Task("own", "class", tuple(sorted(set(made.donor_s)))),
        Task("pool", "class", ("single", "x", "y")),
        Task("lab", "class", ("l1", "l2", "l3")),
    ]
    pool, _ = leakage(made, tasks, ours, QUICK, said.append, folds)
    assert all(any(train_s is fold.train_s for fold in folds) for train_s in seen)
    assert len(seen) == 2 * len(folds)
    assert said[0].startswith("note: traces of own are not tested: own: donors held out leave no two batches with 2 donors")
    assert said[1] == "note: traces of pool single of fewer than 2 donors to train on where held out: left out"
    assert pool.about["order"] == ["x", "y"]
    assert pool.about["samples"] == 30
    assert set(pool.tables["predictions"]["truth"]) == {"x", "y"}
    said.clear()
    by_study = sample_folds(made, TASK, QUICK.replaced({"sampleclr.cv": "leave-one-study-out", "sampleclr.study_key": "study"}))
    assert leakage(made, tasks[2:], ours, QUICK, said.append, by_study) == []  # labs are never on both sides
    assert said[0].startswith("note: traces of lab are not tested")
    # two of the three donors of a batch in one fold: its samples there are not tested, those of the other fold are
    made.table["lab"] = np.where(donor < 3, "l1", "l2")
    two = [replace(folds[0], name=str(k), train_s=donor % 2 != k, test_s=donor % 2 == k) for k in range(2)]
    said.clear()
    (lab,) = leakage(made, [Task("lab", "class", ("l1", "l2"))], ours, QUICK, said.append, two)
    assert said == ["note: lab: 4 of 32 tests of samples are left out, as too few donors of their batch are trained on"]
    assert lab.about["samples"] == 28
    (own,) = leakage(made, tasks[1:2], ours, QUICK, said.append)
    assert said[1] == "note: traces of pool single of no more than 2 donors: left out"
    assert own.about["order"] == ["x", "y"]


def test_confounding_is_told(rng):
    made = cohort(rng)
    table = confounding(made, TASK, ["site", "age", "nothing"]).set_index("covariate")
    assert table.loc["site", ["measure", "strong", "levels_of_one"]].tolist() == ["cramers_v", True, 2.0]
    assert table.loc["site", "value"] == pytest.approx(1)
    assert table.loc["age", "measure"] == "eta_squared"
    assert table.loc["age", "value"] > 0.9
    assert np.isnan(table.loc["n_cells", "value"])  # all samples have as many
    assert not table.loc["n_cells", "strong"]
