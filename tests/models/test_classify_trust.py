"""Calibration, rejection, votes and hierarchies of cell types: stored values, what is promised, and bad input."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import f1_score, log_loss

from sctool.errors import SctoolError
from sctool.models.classify.calibration import BOUNDS, Calibration, softmax
from sctool.models.classify.hierarchy import Hierarchy
from sctool.models.classify.reject import Rejector, coverage_table
from sctool.models.classify.vote import majority_vote, overcluster
from tests.conftest import VECTORS

STORED = json.loads((VECTORS / "classify_calibration_vote.json").read_text())


def overconfident(seed, n=300, k=4, sharper=3.0):
    """Logits whose softmax would be calibrated if they were ``sharper`` times as small."""
    rng = np.random.default_rng(seed)
    logits_nk = rng.normal(0, 1.5, (n, k))
    truth_n = np.array([rng.choice(k, p=p) for p in softmax(logits_nk)])
    return logits_nk * sharper, truth_n


def nll(p_nk, truth_n):
    return -np.log(p_nk[np.arange(len(truth_n)), truth_n]).mean()


class TestCalibration:
    def test_stored_values(self):
        """The loss is flat at its minimum, so that the temperature itself is stored to fewer digits."""
        case = STORED["temperature"]
        logits_nk, truth_n = np.array(case["logits"]), np.array(case["y"])
        made = Calibration.fit("temperature", logits_nk, truth_n)
        assert made.temperature == pytest.approx(case["T_star"], abs=1e-7)
        assert nll(Calibration().proba(logits_nk), truth_n) == pytest.approx(case["nll_T1"], abs=1e-12)
        assert nll(made.proba(logits_nk), truth_n) == pytest.approx(case["nll_T_star"], abs=1e-12)

    @given(st.integers(0, 10**6), st.integers(2, 6), st.floats(0.2, 8))
    @settings(max_examples=25, deadline=None)
    def test_temperature_never_changes_a_call_and_never_hurts(self, seed, k, sharper):
        logits_nk, truth_n = overconfident(seed, 40, k, sharper)
        p_nk = (made := Calibration.fit("temperature", logits_nk, truth_n)).proba(logits_nk)
        np.testing.assert_allclose(p_nk[np.arange(40), logits_nk.argmax(1)], p_nk.max(1), rtol=1e-12)
        np.testing.assert_allclose(p_nk.sum(1), 1)
        assert BOUNDS[0] <= made.temperature <= BOUNDS[1]
        if not (logits_nk.argmax(1) == truth_n).all():
            assert nll(p_nk, truth_n) <= nll(softmax(logits_nk), truth_n) + 1e-9

    def test_scikit_learn_and_scipy_agree(self):
        logits_nk, truth_n = overconfident(0)
        other = minimize_scalar(lambda b: log_loss(truth_n, softmax(logits_nk * b)), bounds=(0.05, 20), method="bounded")
        assert Calibration.fit("temperature", logits_nk, truth_n).temperature == pytest.approx(1 / other.x, rel=1e-4)
        p_nk = softmax(logits_nk)
        bent_nk = np.stack([IsotonicRegression(out_of_bounds="clip").fit(p, truth_n == k).predict(p) for k, p in enumerate(p_nk.T)], 1)
        made = Calibration.fit("isotonic", logits_nk, truth_n).proba(logits_nk)
        np.testing.assert_allclose(made, bent_nk / bent_nk.sum(1, keepdims=True), atol=1e-12)

    @pytest.mark.parametrize("kind", ["temperature", "isotonic"])
    def test_calibration_helps_on_other_cells(self, kind):
        logits_nk, truth_n = overconfident(1, 2000)
        made = Calibration.fit(kind, logits_nk[:1000], truth_n[:1000])

        def gap(p_nk):
            return abs(p_nk.max(1).mean() - (p_nk.argmax(1) == truth_n[1000:]).mean())

        assert gap(made.proba(logits_nk[1000:])) < 0.05 < gap(softmax(logits_nk[1000:]))

    def test_all_right_stays_bounded(self):
        logits_nk = overconfident(2, 20, sharper=4)[0]
        made = Calibration.fit("temperature", logits_nk, logits_nk.argmax(1))
        assert made.proba(logits_nk).max(1).mean() == pytest.approx(21 / 22)
        assert Calibration.fit("temperature", 1e-9 * logits_nk, logits_nk.argmax(1)).temperature == BOUNDS[0]
        assert Calibration.fit("temperature", 1e9 * logits_nk, logits_nk.argmax(1)).temperature == BOUNDS[1]
        assert Calibration.fit("temperature", 9 * logits_nk, logits_nk.argmin(1)).temperature == pytest.approx(BOUNDS[1])

    @pytest.mark.parametrize("kind", ["temperature", "isotonic", "none"])
    def test_infinite_logits(self, kind):
        logits_nk = np.array([[0, -np.inf, 1], [np.inf, 0, np.inf], [-np.inf] * 3, [0, 0, 3], [2, 0, 0]], float)
        for truth_n in ([2, 0, 1, 0, 0], [1, 1, 1, 1, 1]):
            p_nk = Calibration.fit(kind, logits_nk, np.array(truth_n)).proba(logits_nk)
            assert np.isfinite(p_nk).all()
            np.testing.assert_allclose(p_nk.sum(1), 1)
        np.testing.assert_array_equal(softmax(logits_nk)[1:3], [[0.5, 0, 0.5], [1 / 3] * 3])

    def test_isotonic_leaves_no_cell_without_a_probability(self):
        made = Calibration.fit("isotonic", np.log([[0.6, 0.4], [0.7, 0.3], [0.4, 0.6], [0.3, 0.7]]), np.array([1, 1, 0, 0]))
        p_nk = made.proba(np.log([[0.99, 0.01], [0.5, 0.5]]))
        np.testing.assert_allclose(p_nk.sum(1), 1)
        absent = Calibration.fit("isotonic", *overconfident(3, 50, 2))
        assert absent.proba(np.zeros((1, 2))).shape == (1, 2)
        assert Calibration.fit("isotonic", np.zeros((3, 2)), np.zeros(3, int)).knots == (((), ()), ((), ()))

    @pytest.mark.parametrize("kind", ["temperature", "isotonic", "none"])
    def test_stored_and_read_again(self, kind):
        logits_nk, truth_n = overconfident(4)
        made = Calibration.fit(kind, logits_nk, truth_n)
        again = Calibration.from_json(json.loads(json.dumps(made.to_json(), allow_nan=False)))
        assert again == made
        np.testing.assert_array_equal(again.proba(logits_nk), made.proba(logits_nk))
        assert made.proba(logits_nk.astype(np.float32)).dtype == np.float64

    def test_bad_input(self):
        logits_nk, truth_n = overconfident(5, 10)
        with pytest.raises(SctoolError, match="unknown calibration 'platt'"):
            Calibration.fit("platt", logits_nk, truth_n)
        with pytest.raises(SctoolError, match="no held-out cells"):
            Calibration.fit("temperature", logits_nk[:0], truth_n[:0])
        with pytest.raises(SctoolError, match="do not fit"):
            Calibration.fit("temperature", logits_nk, truth_n + 3)
        logits_nk[3, 0] = np.nan
        with pytest.raises(SctoolError, match="1 of 10 cells have NaN"):
            Calibration.fit("temperature", logits_nk, truth_n)
        with pytest.raises(SctoolError, match="2 classes, but 4"):
            Calibration.fit("isotonic", *overconfident(5, 10)).proba(np.zeros((1, 2)))


def held_out(seed, n, k=4):
    logits_nk, truth_n = overconfident(seed, n, k, sharper=1)
    return softmax(1.5 * logits_nk), truth_n


def donors(rng, groups, cells, apart):
    """Cells of donors whose own difficulty differs: probabilities of two types, the true one at 0."""
    level_g = rng.normal(1.5, apart, groups)
    logit_n = np.repeat(level_g, cells) + rng.normal(0, 1, groups * cells)
    own_n = 1 / (1 + np.exp(-logit_n))
    return np.stack([own_n, 1 - own_n], 1), np.zeros(groups * cells, int), np.repeat(np.arange(groups), cells)


class TestRejection:
    @pytest.mark.parametrize(
        "spec", ["max_prob", "max_prob:", "max_prob:2", "quantile:1", "conformal:x", "none:1", "", "svm:0.7", "quantile:nan"]
    )
    def test_bad_rules(self, spec):
        with pytest.raises(SctoolError, match="rule of rejection") as raised:
            Rejector.parse(spec)
        assert "conformal:0.9" in raised.value.hint

    @given(st.integers(0, 10**6), st.integers(5, 300), st.sampled_from([0.5, 0.9, 0.95]))
    @settings(max_examples=25, deadline=None)
    def test_quantile_keeps_its_share_of_right_calls(self, seed, n, share):
        p_nk, truth_n = held_out(seed, n)
        rule = Rejector.fit(f"quantile:{share}", p_nk, truth_n)
        kept_n, call_n = ~rule.rejects(p_nk), p_nk.argmax(1)
        right_n = call_n == truth_n
        for k in range(4):
            own = right_n & (call_n == k)
            if own.sum() >= 20:
                assert kept_n[own].mean() >= share
        order = np.random.default_rng(0).permutation(n)
        assert Rejector.fit(f"quantile:{share}", p_nk[order], truth_n[order]) == rule
        assert (rule.sets(p_nk).sum(1) == kept_n).all()

    def test_quantile_holds_for_new_cells(self):
        kept = []
        for seed in range(60):
            p_nk, truth_n = held_out(seed, 400, 2)
            rule = Rejector.fit("quantile:0.9", p_nk[:100], truth_n[:100])
            right_n = p_nk[100:].argmax(1) == truth_n[100:]
            kept.append((~rule.rejects(p_nk[100:]))[right_n].mean())
        assert 0.895 < np.mean(kept) < 0.94

    def test_types_with_few_calls_share_a_threshold(self):
        p_nk, truth_n = held_out(7, 200, 3)
        rare = np.flatnonzero(truth_n == 2)[10:]
        keep = np.setdiff1d(np.arange(200), rare)
        rule = Rejector.fit("quantile:0.8", p_nk[keep], truth_n[keep])
        right_n = p_nk[keep].argmax(1) == truth_n[keep]
        sure = np.sort(p_nk[keep].max(1)[right_n])
        assert rule.thresholds[2] == sure[int(0.2 * (len(sure) + 1)) - 1]
        assert rule.shared == 1
        assert "1 types" in rule.promise

    @given(st.integers(0, 10**6))
    @settings(max_examples=15, deadline=None)
    def test_a_set_of_one_type_is_the_call(self, seed):
        p_nk, truth_n = held_out(seed, 100)
        rule = Rejector.fit("conformal:0.8", p_nk, truth_n)
        sets_nk = rule.sets(p_nk)
        one_n = sets_nk.sum(1) == 1
        assert sets_nk[np.arange(100), truth_n].mean() >= 0.8
        np.testing.assert_array_equal(one_n, ~rule.rejects(p_nk))
        np.testing.assert_array_equal(sets_nk[one_n].argmax(1), p_nk[one_n].argmax(1))

    def test_conformal_covers_exchangeable_cells(self):
        covered = []
        for seed in range(60):
            p_nk, truth_n = held_out(seed, 300, 3)
            sets_nk = Rejector.fit("conformal:0.9", p_nk[:60], truth_n[:60]).sets(p_nk[60:])
            covered.append(sets_nk[np.arange(240), truth_n[60:]].mean())
        assert 0.89 < np.mean(covered) < 0.925

    @pytest.mark.parametrize(("groups", "promised"), [(12, 0.9), (4, 0.72)])
    def test_conformal_covers_new_donors_where_pooling_does_not(self, groups, promised):
        rng = np.random.default_rng(0)
        with_groups, pooled = [], []
        for _ in range(500):
            p_nk, truth_n, group_n = donors(rng, groups, 30, 2.0)
            new_nk, new_n, _ = donors(rng, 1, 30, 2.0)
            for kept, given_groups in ((with_groups, group_n), (pooled, None)):
                sets_nk = Rejector.fit("conformal:0.9", p_nk, truth_n, given_groups).sets(new_nk)
                kept.append(sets_nk[np.arange(30), new_n].mean())
        assert np.mean(with_groups) > promised - 0.015
        assert np.mean(pooled) < min(np.mean(with_groups), 0.9) - 0.01

    def test_groups_of_one_cell_are_split_conformal(self):
        p_nk, truth_n = held_out(8, 50)
        rule = Rejector.fit("conformal:0.9", p_nk, truth_n, np.arange(50))
        assert rule.cut == pytest.approx(Rejector.fit("conformal:0.9", p_nk, truth_n).cut, abs=1e-15)
        assert rule.groups == 50
        assert Rejector.fit("conformal:0.9", p_nk, truth_n, np.repeat("d1", 50)) == Rejector.fit("conformal:0.9", p_nk, truth_n)

    def test_promises(self):
        p_nk, truth_n = held_out(9, 120)
        assert Rejector.parse("none").promise == ""
        assert "below 0.5" in Rejector.parse("max_prob:0.5").promise
        assert "like the 120 held-out cells" in Rejector.fit("quantile:0.95", p_nk, truth_n).promise
        assert "72 % of those of new groups" in Rejector.fit("conformal:0.9", p_nk, truth_n, np.arange(120) % 4).promise
        assert "new groups like the 12" in Rejector.fit("conformal:0.9", p_nk, truth_n, np.arange(120) % 12).promise
        few = Rejector.fit("conformal:0.9", p_nk[:5], truth_n[:5])
        assert few.rejects(p_nk).all()
        assert "too few" in few.promise

    @pytest.mark.parametrize("spec", ["none", "max_prob:0.7", "quantile:0.95", "conformal:0.9"])
    def test_stored_and_read_again(self, spec):
        p_nk, truth_n = held_out(10, 100)
        rule = Rejector.fit(spec, p_nk, truth_n, np.arange(100) % 10)
        again = Rejector.from_json(json.loads(json.dumps(rule.to_json(), allow_nan=False)))
        assert again == rule
        np.testing.assert_array_equal(again.rejects(p_nk), rule.rejects(p_nk))
        assert rule.rejects(p_nk[:0]).shape == (0,)

    def test_cells_of_types_without_a_column_are_left_out(self):
        p_nk, truth_n = held_out(11, 60)
        more, unknown = np.concatenate([p_nk, p_nk[:5]]), np.append(truth_n, np.full(5, -1))
        for spec in ("quantile:0.9", "conformal:0.9"):
            groups = np.arange(65) % 3
            assert Rejector.fit(spec, more, unknown, groups) == Rejector.fit(spec, p_nk, truth_n, groups[:60])
            with pytest.raises(SctoolError, match="no held-out cells"):
                Rejector.fit(spec, p_nk, np.full(60, -1))
            with pytest.raises(SctoolError, match="do not fit"):
                Rejector.fit(spec, p_nk, truth_n + 4)
            with pytest.raises(SctoolError, match="set on held-out cells"):
                Rejector.parse(spec).rejects(p_nk)

    def test_table_of_what_was_kept(self):
        p_nk = np.array([[0.9, 0.1, 0], [0.6, 0.4, 0], [0.8, 0.2, 0], [0.3, 0.7, 0]])
        truth_n = np.array([0, 0, 1, 0])
        table = coverage_table(["a", "b", "c"], truth_n, p_nk, np.array([False, True, True, False]), p_nk >= 0.3)
        assert table["label"].tolist() == ["a", "b"]
        assert table["cells"].tolist() == [3, 1]
        assert table["kept"].tolist() == pytest.approx([2 / 3, 0])
        assert table["accuracy_kept"].tolist() == pytest.approx([0.5, np.nan], nan_ok=True)
        assert table["kept_of_right"].tolist() == pytest.approx([0.5, np.nan], nan_ok=True)
        assert table["set_coverage"].tolist() == [1, 0]
        assert "set_size" not in coverage_table(["a", "b", "c"], truth_n, p_nk, np.zeros(4, bool))


class TestVote:
    def test_stored_values(self):
        case = STORED["majority_vote"]
        table = majority_vote(np.array(case["cluster"]), np.array(case["pred"]), 0.5)
        for cluster, row in zip(case["cluster"], table.itertuples(), strict=True):
            wanted = case["result"][cluster]
            assert (row.winner, row.label) == (wanted["winner"], wanted["label@min_prop0.5"])
            assert row.share == pytest.approx(wanted["fraction"], abs=1e-12)

    @given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from("abc")), min_size=1, max_size=60))
    @settings(max_examples=25, deadline=None)
    def test_winner_is_the_first_of_the_commonest(self, cells):
        table = pd.DataFrame(cells, columns=["cluster", "label"])
        made = majority_vote(table["cluster"].to_numpy(), table["label"].to_numpy())
        votes = pd.crosstab(table["cluster"], table["label"])
        assert made["winner"].tolist() == votes.idxmax(axis=1)[table["cluster"]].tolist()
        assert made["share"].tolist() == pytest.approx((votes.max(axis=1) / votes.sum(axis=1))[table["cluster"]].tolist())
        assert (made["label"] == made["winner"]).all()

    def test_bad_input(self):
        with pytest.raises(SctoolError, match="2 clusters, but 3 labels"):
            majority_vote(np.zeros(2), np.zeros(3))
        assert len(majority_vote(np.zeros(0), np.zeros(0))) == 0

    def test_clusters_are_small_pure_and_repeatable(self):
        import torch

        rng = np.random.default_rng(0)
        type_n = rng.integers(0, 4, 400)
        z_nl = (10 * np.eye(4)[type_n] + rng.normal(size=(400, 4))).astype(np.float32)
        code_n = overcluster(z_nl, 0)
        assert torch.get_num_threads() == 1
        assert np.median(np.bincount(code_n)) >= 10
        assert code_n.max() > 3
        assert (majority_vote(code_n, type_n)["share"] == 1).all()
        np.testing.assert_array_equal(code_n, overcluster(z_nl, 0))
        np.testing.assert_array_equal(overcluster(z_nl[:12], 0), np.zeros(12))


TREE = "child\tparent\nT\timmune\nB\timmune\nCD4 T\tT\nCD8 T\tT\nimmune\tcell\nstroma\tcell\n"
TYPES = ["B", "CD4 T", "CD8 T", "stroma"]


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "tree.tsv").write_text(TREE)
    return Hierarchy.read(tmp_path / "tree.tsv")


class TestHierarchy:
    @pytest.mark.parametrize(
        "text",
        [
            TREE,
            TREE.replace("\t", ","),
            TREE.partition("\n")[2],
            TREE.replace("\n", "\r\n") + "cell\t\n",
            "\ufeff# types\n" + "\n".join("\t".join(line.split("\t")[::-1]) for line in TREE.splitlines()),
        ],
    )
    def test_forms_of_the_file(self, text, tree, tmp_path):
        (tmp_path / "other").write_text(text, encoding="utf-8")
        assert Hierarchy.read(tmp_path / "other") == tree

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("", "is empty"),
            ("a\tb\nb\tc\nc\ta", "in a circle: a > b > c > a"),
            ("x\ta\na\ta", "in a circle: a > a"),
            ("a\tb\na\tc", "several parents, e.g. 'a': b, c"),
            ("a\tb\nonly one", "1 lines are not a child and a parent, e.g. 'only one'"),
            ("\tb", "1 lines are not"),
        ],
    )
    def test_bad_files(self, text, says, tmp_path):
        (tmp_path / "bad").write_text(text)
        with pytest.raises(SctoolError, match=says):
            Hierarchy.read(tmp_path / "bad")

    def test_unreadable_files(self, tmp_path):
        with pytest.raises(SctoolError, match="No such file"):
            Hierarchy.read(tmp_path / "none")
        (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(SctoolError, match="not text"):
            Hierarchy.read(tmp_path / "bytes")

    def test_backs_off(self, tree):
        p_nc = np.array([[0, 0.9, 0.1, 0], [0, 0.5, 0.4, 0.1], [0.3, 0.4, 0.2, 0.1], [0.2, 0.2, 0.2, 0.4], [0.1, 0.1, 0, 0.8]])
        assert tree.back_off(p_nc, TYPES, 0.8).tolist() == ["CD4 T", "T", "immune", "Unassigned", "stroma"]
        assert tree.back_off(p_nc, TYPES, 0).tolist() == np.array(TYPES)[p_nc.argmax(1)].tolist()
        assert tree.back_off(p_nc, TYPES, 1).tolist() == ["T"] + ["Unassigned"] * 4
        # with immune types only, "immune" says nothing
        assert tree.back_off(p_nc[:, :3], TYPES[:3], 0.9).tolist()[2] == "Unassigned"
        assert tree.back_off(p_nc[:1, :2], ["T", "CD4 T"], 0.95).tolist() == ["Unassigned"]
        assert Hierarchy.of([("a", ""), ("b", "")]).back_off(np.array([[0.9, 0.1]]), ["a", "b"], 0.8).tolist() == ["a"]
        assert tree.back_off(np.ones((1, 1)), ["B"], 0.9).tolist() == ["B"]

    @given(st.integers(0, 10**6), st.floats(0.05, 1))
    @settings(max_examples=25, deadline=None)
    def test_an_answer_has_its_probability(self, seed, floor):
        tree = Hierarchy.of(tuple(line.split("\t")) for line in TREE.splitlines()[1:])
        p_nc = np.random.default_rng(seed).dirichlet(np.full(4, 0.5), 30)
        for p_c, name in zip(p_nc, tree.back_off(p_nc, TYPES, floor), strict=True):
            if name != "Unassigned":
                assert sum(p for p, leaf in zip(p_c, TYPES, strict=True) if name in tree.path(leaf)) >= floor - 1e-6
                assert name in tree.path(TYPES[p_c.argmax()])

    def test_names_that_are_missing(self, tree):
        with pytest.raises(SctoolError, match="2 types are not in the hierarchy: B cel, NK") as raised:
            tree.back_off(np.full((1, 3), 1 / 3), ["B", "NK", "B cel"], 0.5)
        assert "for each" in raised.value.hint

    def test_hierarchical_f1(self, tree):
        assert tree.hierarchical_f1(["CD4 T", "B"], ["CD4 T", "B"]) == 1
        assert tree.hierarchical_f1(["CD4 T"], ["CD8 T"]) == pytest.approx(2 / 3)  # immune and T of three
        assert tree.hierarchical_f1(["CD4 T"], ["T"]) == pytest.approx(0.8)
        assert tree.hierarchical_f1(["CD4 T"], ["stroma"]) == 0
        assert tree.hierarchical_f1(["B", "B"], ["B", "Unassigned"]) == pytest.approx(2 / 3)
        with pytest.raises(SctoolError, match="not in the hierarchy: NK"):
            tree.hierarchical_f1(["B"], ["NK"])
        rng = np.random.default_rng(0)
        truth, called = rng.choice(TYPES, 50), rng.choice(TYPES, 50)
        nodes = ["T", "B", "CD4 T", "CD8 T", "immune", "stroma"]
        flags = [[[node in tree.path(name) for node in nodes] for name in names] for names in (truth, called)]
        assert tree.hierarchical_f1(truth, called) == pytest.approx(f1_score(*flags, average="micro"))
