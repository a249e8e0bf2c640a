"""Held-out responses: who is trained on, what is scored, against independent references."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.stats import mannwhitneyu, pearsonr

from sctool.bench.case import Case, baseline_changes, differential_genes, score_baselines, score_cells
from sctool.config import Config
from sctool.data.expression import log_normalise
from sctool.data.response import CONTROL, PERTURBED, design
from sctool.errors import SctoolError
from sctool.metrics import response as m
from sctool.report.response import response_figures
from sctool.sections import SCGenConfig
from tests.conftest import VECTORS


@pytest.fixture(scope="module")
def obs():
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "type": rng.choice(["A", "B", "C"], 600, p=[0.5, 0.3, 0.2]),
            "drug": rng.choice(["dmso", "drug", "other"], 600, p=[0.45, 0.45, 0.1]),
        }
    )


def config(seed=0, **scgen):
    return Config(seed=seed, data={"group_key": "type"}, scgen=SCGenConfig(condition_key="drug", control="dmso", perturbed="drug", **scgen))


def test_held_out_cells_are_never_trained_on(obs):
    chosen = design(obs, config(held_out="B"))
    perturbed_b = ((obs["type"] == "B") & (obs["drug"] == "drug")).to_numpy()
    assert set(chosen.split[perturbed_b]) == {"test"}
    assert set(chosen.split[(obs["drug"] == "other").to_numpy()]) == {"unused"}
    assert set(chosen.split[~perturbed_b & (obs["drug"] != "other").to_numpy()]) == {"train"}
    np.testing.assert_array_equal(chosen.truth("B"), np.flatnonzero(perturbed_b))


@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 1.0])
def test_control_share_draws_without_replacement(obs, share):
    """The reference draws with replacement, never the last cell, and forgets the share when it trains."""
    own = ((obs["type"] == "B") & (obs["drug"] == "dmso")).to_numpy()
    kept = [np.flatnonzero(own & (design(obs, config(seed, held_out="B", control_share=share)).split == "train")) for seed in range(30)]
    assert {len(rows) for rows in kept} == {int(share * own.sum())}
    if 0 < share < 1:
        assert np.flatnonzero(own)[-1] in np.concatenate(kept)
        assert len({tuple(rows) for rows in kept}) > 1
    assert len(design(obs, config(held_out="B", control_share=share)).controls("B")) == own.sum()  # all are predicted from


def test_in_distribution_keeps_cells_back(obs):
    """The reference scores cells it was trained on."""
    chosen = design(obs, config(in_distribution="A"))
    own = (obs["type"] == "A").to_numpy()
    for side in (CONTROL, PERTURBED):
        rows = np.flatnonzero(own & (chosen.condition == side))
        assert (chosen.split[rows] == "test").sum() == len(rows) // 2
    assert set(chosen.split[chosen.controls("A")]) == set(chosen.split[chosen.truth("A")]) == {"test"}


def test_random_group_is_a_share_of_all_cells(obs):
    chosen = design(obs, config(random_share=0.2))
    assert (chosen.group == "test-data").sum() == 120
    assert len(set(obs["type"][chosen.group == "test-data"])) == 3
    assert set(chosen.split[(chosen.group == "test-data") & (chosen.condition == PERTURBED)]) == {"test"}


def test_without_a_choice_groups_never_treated_are_predicted(obs):
    partly = obs[~((obs["type"] == "C") & (obs["drug"] == "drug"))].reset_index(drop=True)
    assert design(partly, config()).targets == ("C",)
    with pytest.raises(SctoolError, match="none is left to predict"):
        design(obs, config())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"held_out": "D"}, "no group 'D'"),
        ({"held_out": "A,B,C"}, "no group but"),
        ({"held_out": "A", "random_share": 0.2}, "exclude each other"),
        ({"held_out": "A", "control": "water"}, "no 'water'"),
        ({"held_out": "A", "perturbed": "dmso"}, "both 'dmso'"),
        ({"held_out": "A", "perturbed": None}, "--perturbed is missing"),
        ({"held_out": "A", "condition_key": "drugs"}, "no column 'drugs'"),
    ],
)
def test_wrong_designs_say_what_is_wrong(obs, changes, words):
    settings_ = SCGenConfig(**{"condition_key": "drug", "control": "dmso", "perturbed": "drug", **changes})
    with pytest.raises(SctoolError, match=words) as caught:
        design(obs, Config(data={"group_key": "type"}, scgen=settings_))
    assert caught.value.hint


def test_log_normalise_is_scanpys(small):
    import scanpy as sc

    reference = small.copy()
    sc.pp.normalize_total(reference, target_sum=1e4)
    sc.pp.log1p(reference)
    np.testing.assert_allclose(log_normalise(small.X, 1e4).toarray(), reference.X.toarray(), rtol=1e-5)


# metrics


def test_published_metrics():
    """Names and rounding of the study; DEG indices given."""
    case = np.load(VECTORS / "ar_scgen_eval.npz")
    p, u = case["stim"].mean(0, dtype=np.float64), case["ctrl"].mean(0, dtype=np.float64)
    checked = 0
    for ar, name, value in zip(case["metric_AR"], case["metric_name"], case["metric_value"], strict=True):
        q = case["pred_ar" if ar else "pred_naive"].mean(0, dtype=np.float64)
        k = name.split()[0]
        top = case[f"deg{k}"] if k.isdigit() else slice(None)
        kind = name.split(" DEG ")[-1]
        function, digits = {
            "R2": (m.mean_r2, 4 if k == "R2" else 6),
            "MSE": (m.mean_squared_error, 6),
            "Cosine Similarity": (m.cosine_similarity, 12),
            "Diff R": (m.change_r, 4),
            "Diff MSE": (m.mean_squared_error, 6),
        }[kind]
        got = function(p[top], q[top], u[top]) if function is m.change_r else function(p[top], q[top])
        assert round(got, digits) == pytest.approx(value, abs=1e-12 if digits < 12 else 1e-7), name
        checked += 1
    assert checked == 28


def test_differential_genes_are_those_of_the_study():
    case = np.load(VECTORS / "ar_scgen_eval.npz")
    up, changed = differential_genes(case["ctrl"], case["stim"])
    np.testing.assert_array_equal(up[:100], case["deg100"])
    z = [abs(mannwhitneyu(case["stim"][:, g], case["ctrl"][:, g]).statistic - 60 * 45 / 2) for g in range(150)]
    assert set(changed[:20]) <= set(np.argsort(z)[-25:])  # both directions


cells = st.integers(0, 10_000).map(lambda seed: np.random.default_rng(seed))


@settings(max_examples=25, deadline=None)
@given(cells, st.integers(2, 40), st.integers(2, 40), st.integers(1, 50))
def test_energy_distance(rng, n, k, block):
    a, b = rng.normal(size=(n, 3)), rng.normal(size=(k, 3)) + 1
    inside = [cdist(x, x)[~np.eye(len(x), dtype=bool)].mean() for x in (a, b)]
    expected = 2 * cdist(a, b).mean() - sum(inside)
    assert m.energy_distance(a, b, block) == pytest.approx(expected, abs=1e-9)
    assert m.energy_distance(b + 5, a + 5) == pytest.approx(expected, abs=1e-9)


def test_energy_distance_is_unbiased():
    values = [m.energy_distance(*np.random.default_rng(seed).normal(size=(2, 15, 4))) for seed in range(300)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(300)


def test_change_r_is_pearson_and_undefined_without_change():
    rng = np.random.default_rng(0)
    p, q, u = rng.normal(size=(3, 50))
    assert m.change_r(p, q, u) == pytest.approx(pearsonr(p - u, q - u).statistic)
    assert np.isnan(m.change_r(p, u, u))
    assert m.change_error(p, u, u) == 1.0
    assert m.change_error(p, p, u) == 0.0


# baselines


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(1)
    means = rng.gamma(1.0, 1.0, (4, 60))
    change = np.where(np.arange(60) < 20, 1.5, 0.0) + rng.normal(0, 0.02, 60)

    def cells_of(mean_g):
        return np.maximum(rng.normal(mean_g, 0.5, (80, 60)), 0).astype(np.float32)

    known = {str(k): (means[k], means[k] + change) for k in range(3)}
    return Case.of("3", tuple(f"g{at}" for at in range(60)), cells_of(means[3]), cells_of(means[3] + change), known)


def test_a_shared_change_is_found_by_every_baseline_that_uses_it(case):
    rows = {row["name"]: row for row in score_baselines(case)}
    assert rows["no change"]["change_error"] == pytest.approx(1, abs=1e-4)
    for name in ("mean change", "nearest group", "similar groups", "per-gene linear"):
        assert rows[name]["change_r"] > 0.95
        assert rows[name]["energy_distance"] < 0.2 * rows["no change"]["energy_distance"]
    assert rows["real half"]["energy_distance"] < rows["mean change"]["energy_distance"]


def test_baselines_by_hand():
    known = {"a": (np.array([1.0, 2.0]), np.array([2.0, 2.0])), "b": (np.array([3.0, 2.0]), np.array([6.0, 2.0]))}
    made = baseline_changes(np.array([1.0, 2.0]), known)
    np.testing.assert_allclose(made["mean change"], [2.0, 0.0])
    np.testing.assert_allclose(made["nearest group"], [1.0, 0.0])
    # two groups only, so both count alike: control mean (2, 2), perturbed (4, 2)
    np.testing.assert_allclose(made["similar groups, proportional"], [1.3 * (4.3 / 2.3 - 1), 0.0])
    # similar_delta of the field's comparison: weights exp(-d2 / (0.5 median d2)), d2 = 0 and 4
    w = np.exp([0.0, -4 / (0.5 * 2)])
    np.testing.assert_allclose(made["similar groups"], [(w @ [1.0, 3.0]) / w.sum(), 0.0])
    assert 1.0 <= made["per-gene linear"][0] < 2.0  # the change grows with the control mean, shrunk


def test_real_cells_score_best(case):
    perfect = score_cells(case, case.real_mg)
    assert perfect["change_r"] == pytest.approx(1)
    assert perfect["change_error"] == pytest.approx(0, abs=1e-12)
    assert perfect["variance_ratio"] == pytest.approx(1)
    flat = score_cells(case, np.repeat(case.real_mg.mean(0, keepdims=True), 80, 0))  # the right mean, and no spread
    assert flat["change_r"] == pytest.approx(1)
    assert flat["energy_distance"] > 0.5
    assert flat["variance_ratio"] == pytest.approx(0, abs=1e-6)


def test_pictures_and_tables_of_a_sweep_over_control_shares(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for group in ("A", "B"):
        for name, arm in (("scGen", "standard"), ("scGen ar", "ar"), ("mean_change", "baseline"), ("real half", "ceiling")):
            for seed, share in ((0, 0.0), (1, 0.5), (0, 1.0)):
                values = dict(zip(("change_r", "energy_distance", "mean_r2", "change_error"), rng.random(4), strict=True))
                run = f"{group}-{seed}" if arm in ("standard", "ar") else np.nan
                rows.append({"name": name, "arm": arm, "seed": seed, "group": group, "control_share": share, "run": run, **values})
    scores = pd.DataFrame(rows)
    scores.to_csv(tmp_path / "scores.csv", index=False)
    made = response_figures(tmp_path / "plots", ["png"], tmp_path)
    assert {path.name for path in made} == {"groups.png", "methods.png", "control-share.png", "summary.csv", "summary.tex"}
    assert all(path.stat().st_size > 0 for path in made)
    table = pd.read_csv(tmp_path / "plots" / "summary.csv").set_index("name")
    expected = scores[scores["name"] == "scGen"].groupby("group")["change_r"].mean()
    assert table.loc["scGen", "change_r_mean"] == pytest.approx(expected.mean())
    assert table.loc["scGen", "change_r_std"] == pytest.approx(expected.std())
    text = (tmp_path / "plots" / "summary.tex").read_text()
    assert r"mean\_change" in text
    assert text.count(r"\\") == 5
