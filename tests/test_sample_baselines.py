"""Baselines and probes of samples, folds of donors, and their comparison: nothing of a held-out donor is seen, and noise is at chance."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cdist
from sklearn.linear_model import LogisticRegression, Ridge

from sctool.bench import samples as bench
from sctool.bench.samples import baseline_contestants
from sctool.config import Config
from sctool.data.cohort import Cohort, Task, sample_means
from sctool.data.representation import Given
from sctool.errors import SctoolError
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
