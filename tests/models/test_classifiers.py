"""Classifiers, their features and their balance: one contract for all, checked on real cells."""

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import settings as checks
from hypothesis import strategies as st
from scipy.special import softmax

from sctool.config import Config
from sctool.data.demo import BATCHES
from sctool.data.expression import log_normalise
from sctool.engine.classifiers import new_classifier
from sctool.models.classify.balance import balanced
from sctool.models.classify.base import dense
from sctool.models.classify.features import CLIP, Features, choose_columns, markers
from sctool.models.classify.registry import BASELINES, MODELS
from tests.conftest import VECTORS

ALL = (*MODELS, *BASELINES)
TYPES = ("A549", "H1975", "H2228")
CONFIG = Config().replaced(
    {
        "threads": 1,
        "device": "cpu",
        "train.epochs": 6,
        "classify.rf": {"n_estimators": 25, "max_features": "sqrt", "min_samples_leaf": 1},
        "classify.xgb": {"max_rounds": 12, "eta": 0.3, "max_depth": 3},
    }
)


@pytest.fixture(scope="module")
def lung():
    """Counts of 150 real cells of three types x 300 genes, and their batches."""
    a = ad.read_h5ad(BATCHES.path)
    a = a[a.obs["cell_type"].isin(TYPES)][:, :300]
    return a[np.random.default_rng(0).permutation(a.n_obs)[:150]].copy()


@pytest.fixture(scope="module")
def logged(lung):
    return log_normalise(sp.csr_matrix(lung.X, dtype=np.float32), 1e4)


@pytest.fixture(scope="module")
def code_n(lung):
    return np.searchsorted(TYPES, lung.obs["cell_type"].to_numpy(str))


@pytest.fixture(scope="module")
def x_nf(logged, code_n):
    columns = markers(logged, np.arange(300), code_n, None, 40)
    return Features.fit(logged, columns).transform(logged)


@pytest.fixture(scope="module")
def fitted(x_nf, code_n):
    """Each classifier, trained on the first 120 cells."""
    made = {}
    for name in ALL:
        made[name] = new_classifier(name, CONFIG)
        made[name].fit(x_nf[:120], code_n[:120], np.ones(120))
    return made


@pytest.mark.parametrize("name", ALL)
class TestEveryClassifier:
    def test_stored_and_read_again(self, name, fitted, x_nf):
        arrays = fitted[name].arrays()
        assert all(isinstance(array, np.ndarray) and array.dtype != object for array in arrays.values())
        again = new_classifier(name, CONFIG)
        again.restore({key: array.copy() for key, array in arrays.items()})
        assert again.n_classes == 3
        np.testing.assert_array_equal(again.logits(x_nf), fitted[name].logits(x_nf))
        importance = fitted[name].importance()
        if importance is not None:
            np.testing.assert_array_equal(again.importance(), importance)

    def test_new_cells_are_called(self, name, fitted, x_nf, code_n):
        right = (fitted[name].logits(x_nf[120:]).argmax(1) == code_n[120:]).mean()
        assert right > (0.2 if name == "majority" else 0.8)

    def test_shape_and_finite_logits(self, name, fitted, x_nf):
        for cells in (x_nf[:1], sp.csr_matrix((2, 40), dtype=np.float32), x_nf[3:9]):
            logits = fitted[name].logits(cells)
            assert logits.shape == (cells.shape[0], 3)
            assert logits.dtype == np.float64
            assert np.isfinite(logits).all()

    def test_a_cell_is_called_by_itself(self, name, fitted, x_nf):
        """Neither their order nor who else is asked about changes an answer."""
        whole = fitted[name].logits(x_nf)
        order = np.random.default_rng(1).permutation(x_nf.shape[0])
        np.testing.assert_allclose(fitted[name].logits(x_nf[order]), whole[order], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(np.concatenate([fitted[name].logits(x_nf[i]) for i in range(5)]), whole[:5], rtol=1e-5, atol=1e-5)

    def test_weights_decide(self, name, x_nf, code_n):
        """A type with nearly no weight is called less; baselines leave weights out on purpose."""
        light = np.where(code_n == 1, 1e-3, 1.0)
        models = {}
        for key, weight_n in {"even": np.ones(len(code_n)), "light": light / light.mean()}.items():
            models[key] = new_classifier(name, CONFIG)
            models[key].fit(x_nf, code_n, weight_n)
        even, less = (softmax(models[key].logits(x_nf), axis=1)[:, 1].mean() for key in ("even", "light"))
        assert (less == even) if name in BASELINES else (less < even - 0.02)

    def test_same_seed_same_arrays(self, name, fitted, x_nf, code_n):
        again = new_classifier(name, CONFIG)
        again.fit(x_nf[:120], code_n[:120], np.ones(120))
        for key, array in fitted[name].arrays().items():
            np.testing.assert_array_equal(again.arrays()[key], array, err_msg=key)

    def test_two_classes(self, name, x_nf, code_n):
        two = np.flatnonzero(code_n < 2)
        model = new_classifier(name, CONFIG)
        model.fit(x_nf[two], code_n[two], np.ones(len(two)))
        logits = model.logits(x_nf[two])
        assert logits.shape == (len(two), 2)
        if name != "majority":
            assert (logits.argmax(1) == code_n[two]).mean() > 0.85

    def test_an_embedding(self, name, code_n):
        """Dense features around zero."""
        rng = np.random.default_rng(2)
        z_nl = (rng.normal(size=(150, 5)) + 3 * np.eye(5)[code_n]).astype(np.float32)
        model = new_classifier(name, CONFIG)
        model.fit(z_nl, code_n, np.ones(150))
        if name != "majority":
            assert (model.logits(z_nl).argmax(1) == code_n).mean() > 0.8
        again = new_classifier(name, CONFIG)
        again.restore(model.arrays())
        np.testing.assert_array_equal(again.logits(z_nl), model.logits(z_nl))

    @pytest.mark.parametrize("n", [33, 65])
    def test_any_number_of_cells(self, name, x_nf, code_n, n):
        """33 cells make four minibatches of 8 and one of 1, of which a batch norm learns nothing."""
        model = new_classifier(name, CONFIG)
        model.fit(x_nf[:n], code_n[:n], np.ones(n))
        assert np.isfinite(model.logits(x_nf)).all()

    def test_one_feature(self, name, x_nf, code_n):
        model = new_classifier(name, CONFIG)
        model.fit(x_nf[:, :1], code_n, np.ones(150))
        assert np.isfinite(model.logits(x_nf[:, :1])).all()


def test_forest_is_scikit_learns(x_nf, code_n, fitted):
    from sklearn.ensemble import RandomForestClassifier

    theirs = RandomForestClassifier(**CONFIG.classify.rf, random_state=CONFIG.seed).fit(
        x_nf[:120], code_n[:120], sample_weight=np.ones(120)
    )
    p_nc = theirs.predict_proba(x_nf)
    np.testing.assert_allclose(np.exp(fitted["rf"].logits(x_nf)), (p_nc + 1e-3) / (1 + 3e-3), atol=1e-6)
    np.testing.assert_allclose(fitted["rf"].importance()[0], theirs.feature_importances_, atol=1e-12)


def test_linear_models_are_scikit_learns(x_nf, code_n, fitted):
    from sklearn.linear_model import LogisticRegression

    theirs = LogisticRegression(C=CONFIG.classify.lr_c, max_iter=500).fit(x_nf[:120], code_n[:120])
    np.testing.assert_allclose(softmax(fitted["lr"].logits(x_nf), axis=1), theirs.predict_proba(x_nf), atol=1e-3)
    two = np.flatnonzero(code_n[:120] < 2)
    mine = new_classifier("lr", CONFIG)
    mine.fit(x_nf[two], code_n[two], np.ones(len(two)))
    theirs = LogisticRegression(C=CONFIG.classify.lr_c, max_iter=500).fit(x_nf[two], code_n[two])
    np.testing.assert_allclose(softmax(mine.logits(x_nf), axis=1), theirs.predict_proba(x_nf), atol=1e-3)


def test_the_booster_opens_in_xgboost_alone(x_nf, fitted, tmp_path):
    import xgboost

    ((name, content),) = fitted["xgb"].files().items()
    assert name == "xgb.ubj"
    (tmp_path / name).write_bytes(content)
    booster = xgboost.Booster(model_file=tmp_path / name)
    p_nc = booster.predict(xgboost.DMatrix(x_nf))
    np.testing.assert_allclose(p_nc, softmax(fitted["xgb"].logits(x_nf), axis=1), atol=1e-5)


def test_shap_values_add_up(x_nf, fitted):
    phi_ncf = fitted["xgb"].contributions(x_nf[:20])
    assert phi_ncf.shape == (20, 3, 40)
    rest_nc = fitted["xgb"].logits(x_nf[:20]) - phi_ncf.sum(2)  # what is left is the same for all cells: the mean logit
    np.testing.assert_allclose(rest_nc, np.tile(rest_nc[0], (20, 1)), atol=1e-4)


@pytest.mark.parametrize("name", ["xgb", "mlp"])
def test_rounds_are_stopped_by_watched_cells(name, x_nf, code_n):
    config = CONFIG.replaced({"classify.xgb": {**CONFIG.classify.xgb, "max_rounds": 100}, "train.epochs": 40, "train.patience": 3})
    model = new_classifier(name, config)
    watched = np.random.default_rng(0).permutation(code_n[120:])  # of shuffled labels nothing can be learned
    model.fit(x_nf[:120], code_n[:120], np.ones(120), (x_nf[120:], watched))
    assert 0 < model.rounds < 30
    if name == "xgb":
        assert model.booster.num_boosted_rounds() == model.rounds
        again = new_classifier(name, config)
        again.rounds = model.rounds
        again.fit(x_nf[:120], code_n[:120], np.ones(120))
        np.testing.assert_array_equal(again.logits(x_nf), model.logits(x_nf))


class TestBalance:
    @pytest.fixture
    def cells(self, x_nf, code_n):
        """60, 20 and 4 cells."""
        rows = np.concatenate([np.flatnonzero(code_n == code)[:size] for code, size in ((0, 40), (1, 20), (2, 4))])
        return x_nf[rows], code_n[rows]

    @pytest.mark.parametrize(("how", "power"), [("none", 1.0), ("sqrt", 0.5), ("balanced", 0.0)])
    def test_weights(self, cells, how, power):
        x, codes, weight_n = balanced(*cells, how, np.random.default_rng(0))
        assert x is cells[0]
        assert weight_n.mean() == pytest.approx(1)
        total_c = np.bincount(codes, weight_n)
        expected_c = np.bincount(codes) ** power
        np.testing.assert_allclose(total_c / total_c[0], expected_c / expected_c[0])

    @pytest.mark.parametrize("form", ["sparse", "dense"])
    @pytest.mark.parametrize("how", ["oversample", "smote"])
    def test_sizes(self, cells, how, form):
        x_nf, code_n = cells if form == "sparse" else (cells[0].toarray(), cells[1])
        made, codes, weight_n = balanced(x_nf, code_n, how, np.random.default_rng(0))
        assert made.shape[0] == len(codes) == len(weight_n)
        assert list(np.bincount(codes)) == [40, 40, 40]
        assert (weight_n == 1).all()
        assert sp.issparse(made) == (form == "sparse")
        assert made.dtype == np.float32
        np.testing.assert_array_equal(dense(made)[: len(code_n)], dense(x_nf))
        real, new = dense(x_nf), dense(made)[len(code_n) :]
        copies = (new[:, None] == real[None]).all(2).any(1)
        few = codes[len(code_n) :] == 2  # four cells are too few neighbours: repeated
        assert copies[few].all()
        assert copies[~few].all() == (how == "oversample")

    def test_new_cells_lie_between_two_of_their_class(self, cells):
        x_nf, code_n = cells
        made, codes, _ = balanced(x_nf, code_n, "smote", np.random.default_rng(0))
        own, new = dense(x_nf)[code_n == 1].astype(np.float64), dense(made)[len(code_n) :][codes[len(code_n) :] == 1].astype(np.float64)
        assert (new >= own.min(0) - 1e-5).all()
        assert (new <= own.max(0) + 1e-5).all()
        to_own = np.linalg.norm(new[:, None] - own[None], axis=2)
        apart = np.linalg.norm(own[:, None] - own[None], axis=2)
        detour = (to_own[:, :, None] + to_own[:, None] - apart).reshape(len(new), -1).min(1)
        np.testing.assert_allclose(detour, 0, atol=1e-4)

    def test_classes_that_are_even_already(self, x_nf, code_n):
        rows = np.concatenate([np.flatnonzero(code_n == code)[:20] for code in range(3)])
        for how in ("oversample", "smote"):
            made, codes, _ = balanced(x_nf[rows], code_n[rows], how, np.random.default_rng(0))
            assert made.shape[0] == len(codes) == 60


class TestFeatures:
    def test_scale(self, logged):
        columns = np.arange(0, 300, 3)
        made = Features.fit(logged, columns, unit=False)
        part = logged[:, columns].toarray().astype(np.float64)
        spread = part.std(0, ddof=1)
        np.testing.assert_allclose(made.scale_f[spread > 1e-6], spread[spread > 1e-6], rtol=1e-4)
        got = made.transform(logged)
        np.testing.assert_allclose(got.toarray(), np.minimum(part / made.scale_f, CLIP), rtol=1e-5)
        np.testing.assert_allclose(made.mean_f, got.toarray().mean(0), atol=1e-5)

    def test_depth_is_taken_out(self, logged):
        """With unit length a cell of twice the logarithms is the same cell."""
        made = Features.fit(logged, np.arange(100))
        faint = logged * 0.01  # so that nothing is clipped
        np.testing.assert_allclose(made.transform(faint).toarray(), made.transform(faint * 2).toarray(), rtol=1e-5)
        length = np.sqrt(made.transform(logged).multiply(made.transform(logged)).sum(1))
        np.testing.assert_allclose(length[length > 0], np.sqrt(100 / 3), rtol=1e-5)

    @pytest.mark.parametrize("unit", [True, False])
    def test_a_query_with_its_genes_in_another_order(self, logged, unit):
        made = Features.fit(logged, np.arange(50), unit=unit)
        order = np.random.default_rng(3).permutation(300)
        where = np.argsort(order)[:50]
        np.testing.assert_array_equal(made.transform(logged[:, order], where).toarray(), made.transform(logged).toarray())

    def test_missing_columns_get_the_training_mean(self, logged):
        made = Features.fit(logged, np.arange(50), unit=False)
        where = np.where(np.arange(50) % 5 == 0, -1, np.arange(50))
        got, whole = made.transform(logged, where).toarray(), made.transform(logged).toarray()
        np.testing.assert_array_equal(got[:, where >= 0], whole[:, where >= 0])
        np.testing.assert_array_equal(got[:, where < 0], np.tile(made.mean_f[where < 0], (150, 1)))
        assert np.isfinite(Features.fit(logged, np.arange(50)).transform(logged, np.full(50, -1)).toarray()).all()

    def test_cells_without_counts_stay_zero(self, logged):
        made = Features.fit(logged, np.arange(50))
        assert made.transform(sp.csr_matrix((2, 300), dtype=np.float32)).nnz == 0

    def test_a_gene_that_never_varies(self, logged):
        flat = sp.csr_matrix(sp.hstack([logged, sp.csr_matrix(np.ones((150, 1), np.float32)), sp.csr_matrix((150, 1), dtype=np.float32)]))
        made = Features.fit(flat, np.array([300, 301]), unit=False)
        np.testing.assert_array_equal(made.transform(flat).toarray(), np.tile([1.0, 0.0], (150, 1)))

    def test_an_embedding_keeps_its_length_and_sign(self):
        z_nl = np.random.default_rng(4).normal(size=(50, 4)).astype(np.float32)
        made = Features.fit(z_nl, np.arange(4))
        np.testing.assert_allclose(made.transform(z_nl), z_nl / z_nl.std(0, ddof=1), rtol=1e-4)


class TestGenes:
    def test_reference_list(self):
        """Seurat v3 on the training cells of the case "same", as scanpy gives it."""
        cells, d = np.load(VECTORS / "classify_input_same.npz"), np.load(VECTORS / "classify_hvg_same_train.npz")
        counts = sp.csr_matrix(cells["X"][cells["harvest"] == "H4"].astype(np.float32))
        columns = choose_columns("hvg", log_normalise(counts, 1e4), counts, 60, list(d["gene"]))
        assert list(d["gene"][columns]) == list(d["gene"][d["hv"]])

    def test_all_and_lists(self, logged):
        names = [f"g{i}" for i in range(300)]
        seen = np.flatnonzero(logged.getnnz(axis=0) >= 3)
        np.testing.assert_array_equal(choose_columns("all", logged, None, 10, names), seen)
        np.testing.assert_array_equal(choose_columns("hvg", logged, None, 0, names), seen)
        np.testing.assert_array_equal(choose_columns("list", logged, None, 10, names, ["g7", "none", "g2", "g7"]), [2, 7])
        assert len(choose_columns("hvg", logged, None, 25, names)) == 25

    def test_genes_of_batches_fall_behind_genes_of_types(self):
        """Gene 0 tells types apart in each batch; gene 1 batches only; gene 2 marks a type in one of four batches; gene 3 is noise.

        All types of a batch are as many as in another, but for one: there gene 1 alone, without batches, tells types apart.
        """
        rng = np.random.default_rng(0)
        batch = np.repeat(np.arange(4), 60)
        code = np.where(batch == 0, rng.random(240) < 0.9, rng.random(240) < 0.4).astype(int)
        x = rng.gamma(2.0, 0.3, (240, 4))
        x[:, 0] += 1.0 * code
        x[:, 1] += 9.0 * (batch == 0)
        x[:, 2] += 6.0 * code * (batch == 1)
        ranked = [list(markers(sp.csr_matrix(x), np.arange(4), code, batch, n)) for n in (1, 2)]
        assert ranked[0] == [0]
        assert 1 not in ranked[1]
        assert 1 in markers(sp.csr_matrix(x), np.arange(4), code, None, 2)

    def test_markers_are_the_largest_t_statistics(self, logged, code_n):
        """Of scipy, a type against the others; the types name theirs in turn."""
        from scipy.stats import ttest_ind

        x = logged.toarray().astype(np.float64)
        t_kf = np.array([np.nan_to_num(np.abs(ttest_ind(x[code_n == k], x[code_n != k]).statistic)) for k in range(3)])
        order_kf = np.argsort(-t_kf, axis=1, kind="stable")
        named = list(dict.fromkeys(order_kf.T.ravel()))[:30]
        np.testing.assert_array_equal(markers(logged, np.arange(300), code_n, None, 30), sorted(named))
        np.testing.assert_array_equal(markers(logged, np.arange(10, 20), code_n, None, 0), np.arange(10, 20))

    def test_a_rare_type_has_its_markers(self, code_n):
        """Genes 0 to 4 mark a type of six cells; ten others mark common ones a bit better."""
        rng = np.random.default_rng(0)
        x = rng.gamma(2.0, 0.3, (200, 40))
        code = np.where(np.arange(200) < 6, 2, np.arange(200) % 2)
        x[:, :5] += 1.5 * (code == 2)[:, None]
        x[:, 5:15] += 2.0 * (code == 1)[:, None]
        assert set(range(5)) <= set(markers(sp.csr_matrix(x), np.arange(40), code, None, 15))

    def test_the_order_of_genes_in_the_file_chooses_none(self, lung, logged, code_n):
        batch = lung.obs["batch"].to_numpy(str)
        order = np.random.default_rng(0).permutation(300)
        for n in (20, 60):
            straight = set(markers(logged, np.arange(300), code_n, batch, n))
            assert {int(order[c]) for c in markers(logged[:, order], np.arange(300), code_n, batch, n)} == straight

    @checks(max_examples=25, deadline=None)
    @given(st.integers(0, 2**31), st.integers(1, 12))
    def test_markers_give_as_many_as_asked(self, seed, n):
        """Also with groups of one type or one cell, and genes that are all zero."""
        rng = np.random.default_rng(seed)
        x = sp.csr_matrix(rng.poisson(rng.choice([0.0, 0.5, 3.0], 12), (20, 12)).astype(np.float32))
        groups = rng.choice(["a", "b", "c"], 20, p=[0.6, 0.35, 0.05])
        columns = np.sort(rng.permutation(12)[: rng.integers(1, 13)])
        got = markers(x, columns, rng.integers(0, 3, 20), groups, n)
        assert len(got) == min(n, len(columns))
        assert set(got) <= set(columns)
        assert (np.diff(got) > 0).all()
