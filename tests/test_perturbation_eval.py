"""Scores of predicted perturbations: from arrays, from files of any tool, from a run; and what the tables and figures hold."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from scipy import stats

from sctool.artifacts.model_folder import save_model
from sctool.bench.perturbation import Contestant, compare
from sctool.bench.perturbation_tables import bootstrap_interval
from sctool.bench.perturbed import Truth, oracle_scores, score_changes, with_test_controls
from sctool.config import Config
from sctool.errors import SctoolError
from sctool.models.perturbation.means import Means
from sctool.models.perturbation.predictors import PREDICTORS
from sctool.report.draw import draw_runs

SINGLES = ("A", "B", "C", "D", "E")
DOUBLES = ("A+B", "A+C", "B+D", "C+E")
GENES = tuple(f"g{at}" for at in range(60)) + SINGLES


def screen(seed=0, cells=40, controls=120):
    """Counts of single and double perturbations whose effects add up, and which cells are held out: doubles, and half of the control."""
    rng = np.random.default_rng(seed)
    base = rng.gamma(2.0, 2.0, len(GENES)) + 0.5
    effects = {name: np.where(rng.random(len(GENES)) < 0.3, rng.normal(0, 0.8, len(GENES)), 0) for name in SINGLES}
    names, counts = [], []
    for name in ("control", *SINGLES, *DOUBLES):
        n = controls if name == "control" else cells
        effect = sum((effects[target] for target in name.split("+") if target in effects), np.zeros(len(GENES)))
        counts.append(rng.poisson(base * np.exp(effect), (n, len(GENES))))
        names += [name] * n
    names = np.array(names)
    split = np.where(np.isin(names, DOUBLES), "test", "train").astype("<U10")
    split[np.flatnonzero(names == "control")[::2]] = "test"
    counts = np.vstack(counts).astype(np.float32)
    log = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
    return names, split, counts, sp.csr_matrix(log)


@pytest.fixture(scope="module")
def made():
    return screen()


@pytest.fixture(scope="module")
def truth(made):
    names, split, _, log = made
    return Truth.of(log, names, split, GENES)


@pytest.fixture(scope="module")
def means(made):
    names, split, _, log = made
    return Means.of(log, names, np.flatnonzero(split == "train"), GENES)


@pytest.fixture(scope="module")
def additive(means):
    return dict(zip((*SINGLES, *DOUBLES), PREDICTORS["additive"][0](means, (*SINGLES, *DOUBLES)), strict=True))


@pytest.fixture(scope="module")
def evaluation(made, truth, means, additive):
    names, split, _, log = made
    cells = {name: log[names == name] for name in DOUBLES}
    control = log[(names == "control") & (split == "train")]
    return compare(truth, means, [Contestant("sum", additive, "standard", 0, "run", cells)], control_ng=control)


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


# tables


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


# files, by the command


@pytest.fixture(scope="module")
def files(made, additive, means, tmp_path_factory):
    """The screen, and predictions of other tools in every format."""
    names, split, counts, log = made
    folder = tmp_path_factory.mktemp("perturbation")
    shown = np.where(names == "control", "ctrl", [name.replace("+", "_") for name in names])
    obs = pd.DataFrame({"guide": shown, "part": split}, index=[f"c{at}" for at in range(len(names))])
    data = ad.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=GENES))
    data.write_h5ad(folder / "screen.h5ad")
    change = pd.DataFrame(additive, index=GENES).T.rename_axis("perturbation")
    change.index = [name.replace("+", "_") for name in change.index]
    change.to_csv(folder / "change.tsv", sep="\t")
    mean = change + means.control_g
    mean.to_csv(folder / "mean.csv")
    shifted = mean + 0.5
    shifted.loc["ctrl"] = means.control_g + 0.5
    shifted.to_csv(folder / "own-control.csv")
    long = change.rename_axis("perturbation").reset_index().melt("perturbation", var_name="gene", value_name="change")
    long.to_csv(folder / "long.csv", index=False)
    rows = np.flatnonzero(np.isin(names, DOUBLES))
    ad.AnnData(log[rows], obs=obs.iloc[rows][["guide"]], var=pd.DataFrame(index=GENES)).write_h5ad(folder / "cells.h5ad")
    return folder


def keys(files, *more):
    given = ["--data", files / "screen.h5ad", "--perturbation-key", "guide", "--control", "ctrl", "--delimiter", "_"]
    return [*given, "--split-key", "part", *more]


def test_tables_and_cells_of_any_tool(files, sctool, evaluation):
    expected = evaluation.scores.set_index("name")
    ran = sctool(
        "eval",
        "perturbation",
        *(files / name for name in ("change.tsv", "mean.csv", "own-control.csv", "long.csv")),
        *keys(files, "--name", "all"),
    )
    assert ran.code == 0, ran.err
    scores = pd.read_csv("results/perturbation/all/scores.csv").set_index("name")
    for name in ("change", "mean", "own-control", "long", "additive"):
        for column in ("change_r", "change_error", "discrimination_l2"):
            assert scores.loc[name, column] == pytest.approx(expected.loc["additive", column], abs=1e-3), (name, column)
    assert "change.tsv: its values are taken as changes" in ran.err
    assert "mean.csv: its values are taken as mean log expression" in ran.err
    assert "perturbed_mean" in ran.out

    ran = sctool("eval", "perturbation", files / "cells.h5ad", *keys(files, "--json"))
    assert ran.code == 0, ran.err
    made = json.loads(ran.out)
    assert made["results"] == "results/perturbation/cells"
    assert made["scores"]["cells"]["energy_distance"]["mean"] < made["scores"]["additive"]["energy_distance"]["mean"]
    assert pd.read_csv("results/perturbation/cells/changes.csv").shape == (4 * len(GENES), 6)
    assert sctool("eval", "perturbation", files / "cells.h5ad", *keys(files)).code == 2  # is there already


def test_without_a_split_all_cells_are_scored_and_baselines_learn_from_the_others(files, sctool):
    ran = sctool("eval", "perturbation", files / "change.tsv", *keys(files)[:-2])
    assert ran.code == 0, ran.err
    for words in ("no --split-key, so all perturbed cells are scored", "random half of the 120", "in turn"):
        assert words in ran.err
    scores = pd.read_csv("results/perturbation/change/scores.csv").set_index("name")
    assert scores.loc["change", "perturbations"] == 9
    assert 0 < scores.loc["additive", "change_r"] < scores.loc["change", "change_r"]  # the single ones are not known to it


BAD = {
    "no file": (["nowhere.csv"], "no such folder or file", "sctool predict cradle"),
    "no data": (["mean.csv"], "the real cells are not known", "--data"),
    "no column": (["cells.h5ad", "--perturbation-key", "gide"], "no column 'gide'", "guide"),
    "no such split": (["mean.csv", "--split-key", "guide"], "no cell with the value 'test'", "train, validation and test"),
    "another format": (["screen.loom"], "neither an .h5ad nor a table", ".csv"),
    "not a number": (["text.csv"], "A_B, g3 is 'high', not a number", "every gene"),
    "twice": (["twice.csv"], "'A+B' more than once", "one row"),
    "other genes": (["genes.csv"], "0 of the 65 genes", "name its genes"),
    "other perturbations": (["others.csv"], "none of the 4 held-out perturbations", "parts joined"),
    "no value": (["novalue.csv"], "no column change, mean or value", "add one"),
    "no predictions": (["empty"], "holds no predictions of perturbations", "predict cradle"),
    "empty": (["nothing.csv"], "cannot be read", "header"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_input_says_what_is_wrong(case, files, sctool):
    mean = pd.read_csv(files / "mean.csv", index_col=0)
    (files / "empty").mkdir(exist_ok=True)
    (files / "screen.loom").touch()
    (files / "nothing.csv").touch()
    mean.astype(object).where(~((mean.index == "A_B")[:, None] & (mean.columns == "g3")), "high").to_csv(files / "text.csv")
    pd.concat([mean, mean.loc[["A_B"]].set_axis(["B_A"])]).to_csv(files / "twice.csv")
    mean.add_prefix("x").to_csv(files / "genes.csv")
    mean.loc[["A", "B"]].to_csv(files / "others.csv")
    pd.DataFrame({"perturbation": ["A"], "gene": ["g1"], "x": [1]}).to_csv(files / "novalue.csv", index=False)
    (name, *flags), words, remedy = BAD[case]
    given = keys(files) if case != "no data" else []
    ran = sctool("eval", "perturbation", files / name, *given, *flags)
    assert ran.code == 2
    assert words in ran.err
    assert remedy in ran.err
    assert "Traceback" not in ran.err


def write_run(out, name, data, table, names, split, fail=None, **more):
    """A model folder and its predictions, as training and prediction leave them."""
    trained = Config().replaced({"cradle.perturbation_key": "guide", "cradle.control": "ctrl", "cradle.delimiter": "_"})
    cells = pd.DataFrame({"cell": [f"c{at}" for at in range(len(names))], "split": split, "perturbation": names})
    if fail is not None:
        cells["fail"] = fail
    about = {"config": trained.model_dump(), "seed": 3, "sampler": "uniform", "data": {"file": str(data)}}
    folder = save_model(out / "checkpoints/cradle" / name, "cradle", {"x": torch.zeros(1)}, about, {"cells": cells}).path
    result = out / "results/cradle" / name
    result.mkdir(parents=True)
    table.rename_axis("perturbation").to_csv(result / "predictions.csv")
    note = {"task": "perturbation", "model": str(folder), "run": name, "seed": 3, "sampler": "uniform", "target_sum": 1e4}
    note |= {"kind": "cradle", "file": str(data), "perturbations": list(table.index), **more}
    (result / "prediction.json").write_text(json.dumps(note))
    return result


@pytest.fixture
def table(additive, means):
    """Predicted means, 1 too high for the control too."""
    own = pd.DataFrame([means.control_g], index=["control"], columns=GENES)
    return pd.concat([own, pd.DataFrame(additive, index=GENES).T + means.control_g]) + 1


def test_a_run_is_scored_on_the_cells_it_never_saw(files, made, table, sctool, tmp_path):
    names, split, _, _ = made
    fail = np.zeros(len(names), bool)
    fail[::7] = True
    result = write_run(tmp_path, "mine", files / "screen.h5ad", table, names, split, fail, quality="pass")
    ran = sctool("eval", "perturbation", result)
    assert ran.code == 0, ran.err
    assert "passing cells are scored" in ran.err
    scores = pd.read_csv(result / "scores.csv").set_index("name")
    assert scores.loc["cradle", ["seed", "arm", "run"]].tolist() == [3, "standard", "mine"]
    each = pd.read_csv(result / "per_perturbation.csv").query("name == 'cradle'").set_index("perturbation")
    expected = pd.Series(names[(split == "test") & ~fail]).value_counts()
    assert each["cells"].to_dict() == expected.drop("control").to_dict()
    assert each["control_cells"].iloc[0] == expected["control"]

    # beside a run, predictions of other tools are scored on its held-out cells; here on all of them
    ran = sctool("eval", "perturbation", files / "mean.csv", result, "--set", "cradle.qc_key=none", "--name", "both")
    assert ran.code == 0, ran.err
    assert "passing cells" not in ran.err
    both = pd.read_csv("results/perturbation/both/scores.csv").set_index("name")["change_r"]
    assert both["cradle"] == pytest.approx(both["additive"], abs=1e-4)
    assert both["mean"] == pytest.approx(both["additive"], abs=1e-4)


def test_runs_on_other_splits_have_their_own_truth_and_baselines(files, made, table, sctool, tmp_path):
    names, split, _, _ = made
    other = np.where(np.isin(names, DOUBLES[:2]), "train", split)
    runs = [
        write_run(tmp_path, name, files / "screen.h5ad", table, names, part, sampler=sampler)
        for name, part, sampler in (("a", split, "uniform"), ("a-ar", split, "adaptive"), ("b", other, "uniform"))
    ]
    ran = sctool("eval", "perturbation", *runs, "--name", "splits", "--json")
    assert ran.code == 0, ran.err
    scores = pd.read_csv("results/perturbation/splits/scores.csv").set_index(["name", "split", "seed"])["perturbations"]
    counted = scores.to_dict()
    assert counted["cradle", "a", 3] == counted["cradle ar", "a", 3] == 4
    assert counted["cradle", "b", 3] == counted["additive", "b", -1] == counted["split half", "b", 0] == 2
    assert ("cradle ar", "b", 3) not in counted
    assert json.loads(ran.out)["paired_with_standard"]["ar"]["change_r"]["pairs"] == 1
