"""Detectors: the sign of every score, thresholds, no leak, no dependence on other cells, exact storage."""

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from sctool.data.demo import BATCHES
from sctool.data.expression import log_normalise
from sctool.data.novelty import parts
from sctool.errors import SctoolError
from sctool.metrics import novelty as m
from sctool.models.novelty import classifier as logits_of
from sctool.models.novelty.cells import Cells, Expression
from sctool.models.novelty.model import NoveltyModel, Settings
from sctool.models.novelty.registry import COMBINED, DEFAULT, DETECTORS, LATENT, check_methods

METHODS = (COMBINED, *(name for name in DETECTORS if name != LATENT))
FITTED = Settings(METHODS, n_genes=300, n_components=15, threads=1)
NOVEL = "H838"


@pytest.fixture(scope="module")
def lung():
    """Types of 420 real cells of five cell lines, and their counts."""
    a = ad.read_h5ad(BATCHES.path)
    rows = np.sort(np.random.default_rng(0).permutation(a.n_obs)[:420])
    counts = sp.csr_matrix(a.X[rows], dtype=np.float32)
    return a.obs["cell_type"].astype(str).to_numpy()[rows], Expression(log_normalise(counts, 1e4), counts)


def fit(lung, train, settings=FITTED):
    types, cells = lung
    folds = parts(np.arange(len(train)), None, np.random.default_rng(0))
    return NoveltyModel.fit(cells.take(train), np.unique(types[train], return_inverse=True)[1], folds, settings)


@pytest.fixture(scope="module")
def split(lung):
    types, _ = lung
    known = np.flatnonzero(types != NOVEL)
    return known[::2], known[1::2], np.flatnonzero(types == NOVEL)


@pytest.fixture(scope="module")
def model(lung, split):
    return fit(lung, split[0])


@pytest.mark.parametrize("seed", range(3))
def test_metrics_agree_with_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    novel = rng.random(400) < 0.3
    score = np.round(rng.normal(size=400) + novel, seed)  # with ties for small seeds
    assert m.auroc(novel, score) == pytest.approx(sk.roc_auc_score(novel, score), abs=1e-12)
    assert m.aupr(novel, score) == pytest.approx(sk.average_precision_score(novel, score), abs=1e-12)
    fpr, tpr, _ = sk.roc_curve(novel, score, drop_intermediate=False)
    assert m.fpr_at_95tpr(novel, score) == pytest.approx(fpr[tpr >= 0.95 - 1e-9][0])
    assert m.tpr_at_5fpr(novel, score) == pytest.approx(tpr[fpr <= 0.05 + 1e-9][-1])
    ours = m.roc_curve(novel, score)
    np.testing.assert_allclose(ours, (fpr, tpr))
    precision, recall, _ = sk.precision_recall_curve(novel, score)
    np.testing.assert_allclose(m.precision_recall_curve(novel, score)[1], precision[:-1][::-1])
    np.testing.assert_allclose(m.precision_recall_curve(novel, score)[0], recall[:-1][::-1])
    assert m.prevalence(novel) == novel.mean()


def test_metrics_refuse_one_side_and_nan():
    with pytest.raises(SctoolError, match="0 novel cells"):
        m.auroc(np.zeros(3, bool), np.arange(3.0))
    with pytest.raises(SctoolError, match="NaN"):
        m.aupr(np.array([True, False]), np.array([np.nan, 0]))


@given(st.integers(20, 300), st.floats(0.01, 0.3), st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_threshold_keeps_its_rate_on_the_cells_it_is_set_by(n, alpha, seed):
    known = np.random.default_rng(seed).normal(size=n)
    assert (known > m.threshold(known, alpha)).mean() <= alpha


def test_threshold_keeps_its_rate_on_exchangeable_cells():
    rng = np.random.default_rng(0)
    rates = [(rng.normal(size=500) > m.threshold(rng.normal(size=99), 0.05)).mean() for _ in range(400)]
    assert np.mean(rates) == pytest.approx(0.05, abs=0.005)
    assert m.threshold(np.arange(10.0), 0.05) == np.inf, "ten cells cannot promise one in twenty"


def test_sign_of_every_method(lung, split, model):
    """Novel cells far outside: their counts, with genes permuted, look like no cell line at all."""
    _, known, _ = split
    _, cells = lung
    own = cells.take(known)
    order = np.random.default_rng(1).permutation(own.counts_ng.shape[1])
    counts = own.counts_ng[:, order]
    strange = model.score_all(Expression(log_normalise(counts, 1e4), counts))
    usual = model.score_all(own)
    truth = np.repeat([False, True], len(known))
    for method in METHODS:
        assert m.auroc(truth, np.concatenate([usual[method], strange[method]])) > 0.75, method


def test_latent_neighbours_sign():
    rng = np.random.default_rng(0)
    model = NoveltyModel.on_latent(rng.normal(size=(200, 5)), rng.normal(size=(100, 5)), 0.05)
    near, far = (model.score(Cells(model.space, None, latent_nl=rng.normal(size=(50, 5)) + shift))[LATENT] for shift in (0, 5))
    assert far.min() > model.thresholds[LATENT] > np.median(near)


def test_a_type_kept_away_is_found(lung, split, model):
    _, cells = lung
    truth = np.repeat([False, True], [len(split[1]), len(split[2])])
    scores = model.score_all(cells.take(np.concatenate(split[1:])))
    assert m.auroc(truth, scores[COMBINED]) > 0.97
    false_alarms = (scores[COMBINED][~truth] > model.thresholds[COMBINED]).mean()
    assert false_alarms < 0.12


def test_novel_cells_leave_no_trace(lung, split, model):
    """The same known cells among other novel ones give the same model, bit by bit."""
    types, cells = lung
    train, test, novel = split
    rows = np.arange(len(types))
    rows[novel] = np.resize(test, len(novel))
    others = Expression(cells.log_ng[rows], cells.counts_ng[rows])
    again = fit((types[rows], others), train)
    ours, theirs = model.arrays(), again.arrays()
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert np.array_equal(array, theirs[name]), name
    assert model.thresholds == again.thresholds


def test_a_score_is_the_cells_own(lung, split, model):
    _, cells = lung
    query = cells.take(split[1][:60])
    whole, chunks = model.score_all(query), model.score_all(query, chunk=7)
    alone = model.score_all(query.take(np.array([3])))
    for method in METHODS:
        np.testing.assert_allclose(chunks[method], whole[method], rtol=1e-9, atol=1e-10, err_msg=method)
        np.testing.assert_allclose(alone[method], whole[method][3:4], rtol=1e-9, atol=1e-10, err_msg=method)


def test_stored_and_read_exactly(lung, split, model):
    _, cells = lung
    query = cells.take(split[1][:40])
    again = NoveltyModel.from_arrays(model.arrays(), model.methods, model.thresholds, 1)
    # The stored list of genes has its own order: the file's columns of those genes.
    columns = model.space.features.columns
    ours, theirs = model.score_all(query), again.score_all(query, columns)
    for method in METHODS:
        assert np.array_equal(ours[method], theirs[method]), method


def test_a_query_without_some_genes(lung, split, model):
    _, cells = lung
    columns = model.space.features.columns.copy()
    columns[::10] = -1
    scores = model.score_all(cells.take(split[1]), columns)
    flagged = (scores[COMBINED] > model.thresholds[COMBINED]).mean()
    assert np.isfinite(scores[COMBINED]).all()
    assert flagged < 0.3


def test_logarithms_without_counts(lung, split):
    types, cells = lung
    logs = Expression(cells.log_ng, None)
    model = fit((types, logs), split[0], Settings(("misfit", "mahalanobis-class"), n_genes=300, n_components=15))
    truth = np.repeat([False, True], [len(split[1]), len(split[2])])
    scores = model.score_all(logs.take(np.concatenate(split[1:])))
    assert m.auroc(truth, scores["mahalanobis-class"]) > 0.9
    assert np.isfinite(scores["misfit"]).all()


def test_saturated_logits_still_rank():
    top = np.linspace(20, 600, 50)
    logits = np.stack([top, np.zeros(50), np.full(50, -1.0)], 1)
    for name, measure in logits_of.UNSURE.items():
        score = measure(logits)
        assert np.isfinite(score).all(), name
        assert (np.diff(score) < 0).all(), f"{name}: surer cells are less strange, also where 1 - p is 0"


def test_measures_are_what_they_are_called():
    logits = np.random.default_rng(0).normal(size=(30, 4)) * 3
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(np.exp(logits_of.max_prob(logits)), 1 - p.max(1), rtol=1e-9)
    np.testing.assert_allclose(np.exp(logits_of.entropy(logits)), -(p * np.log(p)).sum(1), rtol=1e-9)
    np.testing.assert_allclose(logits_of.energy(logits), -np.log(np.exp(logits).sum(1)), rtol=1e-9)


def test_methods_by_name():
    assert check_methods([]) == [COMBINED, *DEFAULT]
    with pytest.raises(SctoolError, match="no detector 'iforrest'") as error:
        check_methods(["iforrest"])
    assert "iforest" in error.value.hint
    with pytest.raises(SctoolError, match="latent space"):
        check_methods([LATENT])
