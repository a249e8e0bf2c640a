"""Scores of predicted perturbations from arrays; what the tables and figures hold."""

import json

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy import stats

from sctool.bench.perturbation import Contestant, compare
from sctool.bench.perturbation_tables import bootstrap_interval
from sctool.bench.perturbed import Truth, oracle_scores, score_changes, with_test_controls
from sctool.errors import SctoolError
from sctool.models.perturbation.predictors import PREDICTORS
from sctool.report.draw import draw_runs
from tests.perturbation_eval.conftest import DOUBLES, GENES, SINGLES

# the truth


def test_truth_is_of_held_out_cells_alone(made, truth):
    names, split, _, log = made
    dense = log.toarray()
    control = dense[(names == "control") & (split == "test")].mean(0)
    assert truth.perturbations == tuple(sorted(DOUBLES))
    for row, name in enumerate(truth.perturbations):
        np.testing.assert_allclose(truth.change_pg[row], dense[names == name].mean(0) - control, atol=1e-5)
    expected = stats.ttest_ind(dense[names == "A+B"], dense[(names == "control") & (split == "test")], equal_var=False)
    np.testing.assert_allclose(truth.t_pg[0], expected.statistic, rtol=1e-4)
    np.testing.assert_array_equal(truth.significant_pg[0], stats.false_discovery_control(expected.pvalue) < 0.05)


def test_size_of_an_effect_is_freed_of_noise():
    rng = np.random.default_rng(0)
    names = np.repeat(["control", "A", "few"], [400, 400, 4])
    log = sp.csr_matrix(rng.normal(3, 1, (804, 300)))
    table = Truth.of(log, names, np.full(804, "test"), [f"g{at}" for at in range(300)]).about.set_index("perturbation")
    assert (table["effect"] < 0.15).all()  # nothing changes; the plain size of `few` is .5
    assert table["few_cells"].to_dict() == {"A": False, "few": True}


def test_control_cells_to_score_against_are_made_where_there_are_none(made):
    names, split, _, _ = made
    kept, note = with_test_controls(names, split)
    assert kept is split
    assert note == ""
    changed, note = with_test_controls(names, np.where(names == "control", "train", split))
    assert (changed[names == "control"] == "test").sum() == 60
    assert "random half of the 120" in note
    with pytest.raises(SctoolError, match="too few held-out cells"):
        Truth.of(made[3], names, np.where(names == "control", "train", split), GENES)


def test_halves_share_no_cell(truth):
    first, second = truth.halves(0)
    assert first.means.cells_p.sum() + second.means.cells_p.sum() == 160
    np.testing.assert_allclose((first.means.mean_pg + second.means.mean_pg) / 2, truth.means.mean_pg, atol=1e-5)
    assert not np.allclose(truth.halves(1)[0].means.mean_pg, first.means.mean_pg)


# scores


def test_perfect_no_and_opposite_prediction(truth):
    names, true = truth.perturbations, truth.change_pg
    best = score_changes(truth, dict(zip(names, true, strict=True)))
    for column in ("change_r", "spearman", "cosine", "change_r2", "jaccard_top20", "discrimination_l1", "retrieval_top1", "de_direction"):
        np.testing.assert_allclose(best[column], 1, err_msg=column)
    np.testing.assert_allclose(best["change_error"], 0, atol=1e-12)
    none = score_changes(truth, dict.fromkeys(names, np.zeros(len(GENES))))
    assert none[["change_r", "spearman", "cosine", "change_r_top20"]].isna().all().all()
    np.testing.assert_allclose(none["change_error"], 1)
    np.testing.assert_allclose(none["discrimination_cosine"], 0.5)
    np.testing.assert_allclose(score_changes(truth, dict(zip(names, -true, strict=True)))["change_r"], -1)


def test_own_genes_can_be_left_out(truth):
    """A prediction that is right in the perturbed genes alone."""
    changes = {}
    for name, true in zip(truth.perturbations, truth.change_pg, strict=True):
        changes[name] = np.where(np.isin(GENES, name.split("+")), 9.0, np.random.default_rng(1).normal(size=len(GENES)))
        own = np.isin(GENES, name.split("+"))
        expected = stats.pearsonr(true[~own], changes[name][~own]).statistic
        table = score_changes(truth.only([name]), {name: changes[name]})
        assert table["change_r_other_genes"][0] == pytest.approx(expected)


def test_interaction_is_scored_for_doubles_with_both_singles(truth, means, additive):
    singles = dict(zip(means.perturbations, means.mean_pg, strict=True))
    table = score_changes(truth, additive, singles=singles, base_g=means.control_g)
    np.testing.assert_array_equal(table["interaction_r"], 0)  # an additive prediction has none
    doubled = {name: 2 * change if "+" in name else change for name, change in additive.items()}
    row = score_changes(truth, doubled, singles=singles, base_g=means.control_g).set_index("perturbation").loc["A+B"]
    control = truth.means.control_g
    true = truth.change_pg[0] - (singles["A"] - control) - (singles["B"] - control)
    assert row["interaction_r"] == pytest.approx(stats.pearsonr(true, additive["A+B"]).statistic)
    assert score_changes(truth, additive)["interaction_r"].isna().all()  # singles are not known


def test_oracle_is_what_the_true_change_scores():
    """Cells drawn around known means: the known change scores what is claimed of these cells."""
    rng = np.random.default_rng(0)
    genes = [f"g{at}" for at in range(300)]
    changes = rng.normal(0, 0.15, (20, 300))
    names = np.repeat(["control", *(f"P{at:02d}" for at in range(20))], 50)
    log = rng.normal(4, 1, (len(names), 300))
    for at in range(20):
        log[names == f"P{at:02d}"] += changes[at]
    truth = Truth.of(sp.csr_matrix(log), names, np.full(len(names), "test"), genes)
    known = score_changes(truth, dict(zip(truth.perturbations, changes, strict=True)))
    claimed = oracle_scores(truth)
    for column in ("change_r", "change_error", "cosine"):
        assert claimed[column].mean() == pytest.approx(known[column].mean(), abs=0.03), column


def test_a_lacking_prediction_is_named(truth, additive):
    with pytest.raises(SctoolError, match=r"no prediction of A\+C"):
        score_changes(truth, {name: change for name, change in additive.items() if name != "A+C"})
    with pytest.raises(SctoolError, match="cannot be scored"):
        score_changes(truth, {name: change[:5] for name, change in additive.items()})


# tables and figures


def test_every_baseline_floor_and_ceiling_is_there(evaluation):
    scores = evaluation.scores.set_index("name")
    assert set(PREDICTORS) | {"sum", "split half", "oracle"} == set(scores.index)
    assert scores.loc["sum", "change_r"] == pytest.approx(scores.loc["additive", "change_r"])
    assert scores.loc["no_change", "change_r"] == 0  # undefined counts as 0, and is counted
    assert scores.loc["no_change", "undefined"] == 4
    assert scores.loc["no_change", "change_error"] == pytest.approx(1)
    assert scores.loc["sum", "undefined"] == 0
    assert scores.loc["additive", "change_r"] > scores.loc["perturbed_mean", "change_r"]
    assert (scores.loc["split half", "seed"].to_numpy() == np.arange(5)).all()
    assert scores.loc["oracle", "change_error"] < scores.loc["split half", "change_error"].min()
    assert scores.loc["sum", "ate_pearson"] == pytest.approx(scores.loc["additive", "ate_pearson"])


def test_cells_are_scored_where_there_are_some(evaluation):
    scores = evaluation.scores.groupby("name")[["energy_distance", "mmd", "variance_ratio"]].mean()
    assert scores.loc["sum", "energy_distance"] < 0  # the real cells themselves; without pairs of one cell
    assert scores.loc["sum", "variance_ratio"] == pytest.approx(1)
    assert abs(scores.loc["split half", "energy_distance"]) < 0.3
    assert scores.loc["additive", "energy_distance"] < scores.loc["no_change", "energy_distance"]
    assert scores.loc["additive", "mmd"] < scores.loc["no_change", "mmd"]
    assert scores.loc["oracle"].isna().all()
    assert (evaluation.tables["per_perturbation"].query("name == 'sum'")["predicted_cells"] == 40).all()


def test_aggregates_are_means_with_intervals_between_floor_and_ceiling(evaluation):
    each = evaluation.tables["per_perturbation"]
    rows = evaluation.tables["aggregates"].set_index(["name", "score"])
    own = each[each["name"] == "sum"]["change_r"]
    row = rows.loc[("sum", "change_r")]
    assert row["mean"] == pytest.approx(own.mean())
    assert row["median"] == pytest.approx(own.median())
    assert row["low"] <= row["mean"] <= row["high"]
    for score in ("change_r", "change_error"):
        floor, best = rows.loc[("no_change", score)], rows.loc[("split half", score)]
        assert (floor["normalised"], best["normalised"]) == pytest.approx((0, 1))
        expected = (rows.loc[("sum", score), "mean"] - floor["mean"]) / (best["mean"] - floor["mean"])
        assert rows.loc[("sum", score), "normalised"] == pytest.approx(expected)
    assert rows.loc[("oracle", "change_r"), "of_oracle"] == pytest.approx(1)


def test_bootstrap_interval_is_that_of_the_mean():
    value = np.random.default_rng(0).normal(size=200)
    low, high = bootstrap_interval(value)
    assert (high - low) / 2 == pytest.approx(1.96 * value.std() / np.sqrt(200), rel=0.12)
    assert np.isnan(bootstrap_interval(value[:1])).all()


def test_differences_to_baselines_are_paired(evaluation):
    table = evaluation.tables["against_baselines"].set_index(["baseline", "score"])
    assert table.loc[("additive", "change_r"), "difference"] == pytest.approx(0)
    each = evaluation.tables["per_perturbation"].set_index(["name", "perturbation"])["change_r"]
    expected = stats.ttest_rel(each["sum"], each["perturbed_mean"])
    assert table.loc[("perturbed_mean", "change_r"), "p_value"] == pytest.approx(expected.pvalue)
    assert any("(best baseline), change_r" in note for note in evaluation.notes)


def test_perturbations_with_few_cells_are_flagged_and_left_out(made, means, additive):
    names, split, _, log = made
    split = split.copy()
    split[np.flatnonzero(names == "C+E")[6:]] = "unused"
    few = compare(Truth.of(log, names, split, GENES), means, {"sum": additive})
    assert few.about["few_cells"] == ["C+E"]
    assert any("fewer than 10 held-out cells: C+E" in note for note in few.notes)
    each = few.tables["per_perturbation"].query("name == 'sum'").set_index("perturbation")
    assert each.loc["C+E", "few_cells"]
    mean = few.scores.set_index("name").loc["sum", "change_r"]
    assert mean == pytest.approx(each.loc[["A+B", "A+C", "B+D"], "change_r"].mean())


def test_effect_sizes_are_thirds(evaluation):
    table = evaluation.tables["by_effect"].query("name == 'sum'")
    assert list(table["effect"]) == ["weak", "medium", "strong"]
    each = evaluation.tables["per_perturbation"].query("name == 'sum'").sort_values("effect")["change_r"].to_numpy()
    groups = np.split(each, np.cumsum(table["perturbations"])[:-1])
    np.testing.assert_allclose(table["change_r"], [group.mean() for group in groups])


def test_arms_are_paired_over_seeds_of_the_same_split(truth, means, additive):
    rng = np.random.default_rng(0)

    def noisy(by):
        return {name: change + rng.normal(0, by, len(GENES)) for name, change in additive.items()}

    kinds = (("cradle", "standard", 0.8), ("cradle ar", "ar", 0.1))
    runs = [Contestant(name, noisy(by), arm, seed, f"{arm}{seed}") for seed in range(3) for name, arm, by in kinds]
    made = compare(truth, means, runs)
    difference = made.paired["ar"]["change_r"]
    assert difference.pairs == difference.wins == 3
    assert difference.low > 0
    assert "changes" not in made.tables  # of one run only
    assert made.tables["aggregates"].set_index(["name", "score"]).loc[("cradle", "change_r"), "perturbations"] == 4


def test_without_means_only_the_floor_is_a_baseline(truth, additive):
    made = compare(truth, None, {"sum": additive})
    assert set(made.scores.query("arm == 'baseline'")["name"]) == {"no_change"}


def test_one_perturbation_alone(made, means, additive):
    """Nothing to tell it from, and no thirds; a prediction called as a baseline keeps apart from it."""
    names, split, _, log = made
    alone = Truth.of(log, names, np.where(np.isin(names, DOUBLES[1:]), "unused", split), GENES)
    table = compare(alone, means, {"additive": additive}).scores.set_index("name")
    assert table.loc["additive (given)", "change_r"] == pytest.approx(table.loc["additive", "change_r"])
    assert np.isnan(table.loc["additive", "discrimination_l2"])


def test_figures(evaluation, tmp_path):
    run = tmp_path / "run"
    evaluation.write(run, force=False)
    rng = np.random.default_rng(0)
    for name in ("masks", "embeddings"):
        pd.DataFrame(rng.random((5, 8)), index=pd.Index(SINGLES, name="perturbation")).to_csv(run / f"{name}.csv")
    made = draw_runs([run], ["png"])
    assert {path.stem for path in made} == {"ladder", "effect-size", "changes", "effects", "masks", "embeddings"}
    assert all(path.stat().st_size > 5000 for path in made)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["perturbations"] == 4
    assert metrics["control_cells"] == [60]
    assert metrics["cells"] == 160
    assert metrics["aggregates"]["additive"]["change_r"]["low"] is not None
