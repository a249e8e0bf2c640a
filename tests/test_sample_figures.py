"""Figures of samples, from small tables made here."""

import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from sctool.data.check import describe_samples
from sctool.data.check_samples import CheckedSamples
from sctool.data.cohort import Cohort, Task
from sctool.data.representation import Given
from sctool.report import sample_maps
from sctool.report.draw import draw_runs
from sctool.report.figures import training_curves
from sctool.report.sample_calibration import wilson
from sctool.report.sample_curves import robustness_curves
from sctool.report.sample_importance import _target, by_donor, importance
from sctool.report.sample_look import Facts, Goal, facts_of, looks_of, natural, short
from sctool.report.sample_predictions import _coded, _goal, _shown
from sctool.report.sample_rows import by_sample
from sctool.report.samples import sample_figures

CLASSES, LEVELS = ["$a$ healthy_control", "NA"], ["mild", "moderate", "severe"]
METHODS = {"SampleCLR": "supervised", "mean": "baseline", "random": "baseline"}
TASKS = [
    {"column": "condition", "kind": "class", "order": []},
    {"column": "age", "kind": "regression"},
    {"column": "stage", "kind": "ordinal", "order": LEVELS},
]


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def cohort(n=12, donors=8):
    """The table of embeddings of some samples."""
    rng = np.random.default_rng(0)
    donor = np.arange(n) % donors
    table = {"sample": [f"sample {i}" for i in range(n)], "donor": [f"d{d}" for d in donor], "n_cells": rng.integers(100, 5000, n)}
    table |= {
        "condition": np.array(CLASSES, object)[donor % 2],
        "age": (30 + 5.5 * donor).round(1),
        "stage": np.array(LEVELS, object)[donor % 3],
    }
    table |= {"pool": [f"pool{i % 3}" for i in range(n)]} | {f"e{d + 1}": rng.normal(size=n).round(4) for d in range(4)}
    return pd.DataFrame(table)


def predicted(table):
    rng, rows = np.random.default_rng(1), []
    for skill, name in enumerate(reversed(METHODS)):
        for repeat in (0, 1):
            for one in table.itertuples():
                own = {"sample": one.sample, "donor": one.donor, "repeat": repeat, "fold": 0, "name": name}
                p = 1 / (1 + np.exp(-(skill * (1 if one.condition == CLASSES[1] else -1) + rng.normal())))
                given = {"task": "condition", "truth": one.condition, "prediction": CLASSES[int(p > 0.5)]}
                rows.append(own | given | {f"p_{CLASSES[0]}": 1 - p, f"p_{CLASSES[1]}": p})
                rows.append(own | {"task": "age", "truth": one.age, "prediction": one.age + rng.normal(0, 5)})
                rows.append(own | {"task": "stage", "truth": float(LEVELS.index(one.stage)), "prediction": float(rng.integers(3))})
    return pd.DataFrame(rows)


def compared():
    rows, scores = [], {"condition": ["auc", "balanced_accuracy"], "stage": ["kappa"]}
    for task, own in scores.items():
        for score in own:
            for at, name in enumerate(METHODS):
                value, other = 0.9 - 0.1 * at, np.nan if name == "mean" else 0.2 - 0.1 * at
                row = {"task": task, "name": name, "score": score, "value": value, "low": value - 0.1, "high": value + 0.05}
                row |= {"p": 0.0004 if at == 0 else np.nan, "n_donors": 8}
                rows.append(row | {"difference": other, "difference_low": other - 0.1, "difference_high": other + 0.1})
    return pd.DataFrame(rows)


def weighed(table):
    rng = np.random.default_rng(2)
    types = [(row.sample, row.donor, t, int(n)) for row in table.itertuples() for t, n in (("B", 40), ("CD4+ T", 80), ("very rare", 3))]
    out = pd.DataFrame(types, columns=["sample", "donor", "cell_type", "n_cells"]).assign(share=0.1)
    out["enrichment"] = rng.lognormal(0, 0.3, len(out))
    out.loc[0, "enrichment"] = 0.0  # rounded away
    return out.assign(enrichment_h1=out["enrichment"], enrichment_h2=1.0, effect_age=rng.normal(size=len(out)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A complete run, and the text of its figures."""
    run, table = tmp_path_factory.mktemp("samples") / "run", cohort()
    run.mkdir()
    table.to_csv(run / "embeddings.csv", index=False)
    predicted(table).to_csv(run / "predictions.csv", index=False)
    compared().to_csv(run / "comparison.csv", index=False)
    pd.DataFrame({"name": list(METHODS), "arm": list(METHODS.values())}).to_csv(run / "scores.csv", index=False)
    weighed(table).to_csv(run / "importance_by_celltype.csv", index=False)
    tests = {"cell_type": ["B", "CD4+ T"], "mean_enrichment": [1.5, 1.0], "low": [1.2, 0.8], "high": [1.8, 1.2]}
    pd.DataFrame(tests | {"p": [0.0001, 0.4], "q": [0.0002, 0.4], "n_donors": [8, 8]}).to_csv(run / "importance_tests.csv", index=False)
    retrieved = {"name": list(METHODS)[1:], "top1": [0.8, 0.5], "low": [0.6, 0.3], "high": [0.9, 0.7]}
    pd.DataFrame(retrieved).to_csv(run / "retrieval.csv", index=False)
    sizes = [{"name": name, "cells": size, "retrieval": 0.5, "drift": 0.1} for name in METHODS for size in ("1000", "250", "all")]
    pd.DataFrame(sizes).to_csv(run / "robustness.csv", index=False)
    (run / "metrics.json").write_text(json.dumps({"task": "samples", "tasks": TASKS, "batch_key": "pool", "importance_stability": 0.31}))
    made = draw_runs([run], ["svg"])
    return run, {path.stem: path.read_text() for path in made}


def test_every_figure_of_a_run(run):
    _, text = run
    whole = {"donor-map", "likeness", "importance", "importance-heads", "importance-effects", "retrieval", "robustness"}
    whole |= {f"{stem}-{task['column']}" for stem in ("predictions", "by-sample") for task in TASKS}
    whole |= {"comparison-condition", "comparison-stage"}  # nothing compares the third
    assert set(text) == whole | {"calibration-condition"}  # the other tasks have no probabilities


def test_the_words_of_the_figures_are_those_of_the_tables(run):
    _, text = run
    assert "<!-- condition (class), 8 donors -->" in text["comparison-condition"]
    assert "AUC minus" in text["comparison-condition"]
    assert "&lt; 0.001" in text["comparison-condition"]
    assert f"<!-- {CLASSES[0]} (6) -->" in text["donor-map"]  # a name, not a formula
    assert "<!-- NA (6) -->" in text["donor-map"]  # a name, not missing
    assert "12 samples of 8 donors" in text["donor-map"]
    assert "PC 1 (" in text["donor-map"]
    assert "chance (0.083)" in text["retrieval"]
    assert text["robustness"].index("<!-- 250 -->") < text["robustness"].index("<!-- 1,000 -->") < text["robustness"].index("<!-- all -->")
    assert "<!-- kappa 0.90 (0.80 to 0.95) -->" in text["predictions-stage"]
    assert "lines: range over 2 repeats" in text["predictions-age"]
    assert all(f"<!-- sample {i} -->" in text["by-sample-condition"] for i in range(12))
    assert "n = 8" in text["importance"]
    assert "q &lt;" not in text["importance"]  # of attention alone: nothing about the target
    assert "rank correlation between networks 0.31: the networks disagree" in text["importance"]
    assert "what the type adds to the" in text["importance-effects"]
    assert "<!-- age (in its standard deviations) -->" in text["importance-effects"]
    assert "sample found from N of its cells" in text["robustness"]
    assert "fewer than 10 cells" in text["importance"]
    assert "<!-- random -->" not in text["calibration-condition"]  # of the baselines the best alone
    assert "<!-- mean -->" in text["calibration-condition"]


def test_a_figure_needs_its_table(tmp_path):
    assert sample_figures(tmp_path / "plots", ["svg"], tmp_path, {"task": "samples"}) == []
    compared().query("task == 'stage'").drop(columns=["task", "p", "difference"]).to_csv(tmp_path / "comparison.csv", index=False)
    made = sample_figures(tmp_path / "plots", ["svg"], tmp_path, {"task": "samples"})
    assert [path.name for path in made] == ["comparison.svg"]
    text = made[0].read_text()
    assert "minus" not in text
    assert "shuffled" not in text


def test_a_model_folder_of_samples_shows_its_map_and_monitors(tmp_path):
    cohort(6, 6).to_csv(tmp_path / "embeddings.csv", index=False)
    history = pd.DataFrame({"epoch": [1, 2, 3, 1, 2], "train_loss": 1.0, "stage": ["contrastive"] * 3 + ["joint"] * 2})
    history = history.assign(train_effective_rank=[1.1, 2, 3, 3, 3], validation_effective_rank=2.0, train_ess=300.0)
    history.to_csv(tmp_path / "history.csv", index=False)
    made = {path.stem: path for path in draw_runs([tmp_path], ["svg"])}
    assert set(made) == {"training", "monitors", "donor-map", "likeness"}  # not taken for embeddings of perturbations
    text = made["monitors"].read_text()
    assert "effective rank" in text
    assert "collapse" in text
    assert "uniformity" not in text


def test_answers_for_new_samples_carry_their_warnings(tmp_path):
    table = cohort(5, 5)[["sample", "donor"]].assign(enough_cells=[True] * 4 + [False], far=[True] + [False] * 4, sd=1.0)
    table.assign(task="age", prediction=[40.0, 50, 60, 70, 80]).to_csv(tmp_path / "predictions.csv", index=False)
    made = sample_figures(tmp_path / "plots", ["svg"], tmp_path, {"task": "samples"})
    assert [path.name for path in made] == ["answers.svg"]
    text = made[0].read_text()
    assert "sample 0 (far)" in text
    assert "sample 4 (few)" in text
    assert "<!-- sample 1 -->" in text


def test_a_umap_is_kept_until_the_samples_change(tmp_path, monkeypatch):
    asked = []
    assert sample_maps.FEW == 200
    monkeypatch.setattr(sample_maps, "FEW", 15)
    monkeypatch.setattr(sample_maps, "umap_xy", lambda e_sd: asked.append(len(e_sd)) or e_sd[:, :2])
    for n in (14, 15, 15, 16):
        table = cohort(n, n)
        sample_maps._coordinates(tmp_path, table, table[["e1", "e2", "e3"]].to_numpy())
    assert asked == [15, 16]


def test_components_are_of_standardised_columns(tmp_path):
    e_sd = np.random.default_rng(0).normal(size=(20, 4))
    e_sd[:, 3] = 7.0  # a column that says nothing
    xy, names = sample_maps._coordinates(tmp_path, cohort(20), e_sd)
    again, _ = sample_maps._coordinates(tmp_path, cohort(20), e_sd * [1, 100, 1, 1])
    assert names[0].startswith("PC 1 (")
    np.testing.assert_allclose(np.abs(again), np.abs(xy), atol=1e-8)
    assert np.isfinite(xy).all()


def test_donors_count_once():
    rows = [("s1", "d1", "B", 10, 1.0), ("s2", "d1", "B", 90, 3.0), ("s3", "d2", "B", 5, 0.5), ("s4", "d2", "B", 0, np.nan)]
    each = by_donor(pd.DataFrame(rows, columns=["sample", "donor", "cell_type", "n_cells", "enrichment"]))
    assert dict(zip(each["donor"], each["enrichment"], strict=True)) == {"d1": 2.0, "d2": 0.5}
    assert each["n_cells"].to_list() == [100, 5]


def test_a_donor_of_two_classes_has_a_point_in_each():
    rows = [("s1", "d1", "B", 10, 1.0), ("s2", "d1", "B", 90, 3.0), ("s3", "d2", "B", 5, 0.5)]
    table = pd.DataFrame(rows, columns=["sample", "donor", "cell_type", "n_cells", "enrichment"])
    each = by_donor(table, {"s1": "ctrl", "s2": "stim"})
    assert list(zip(each["donor"], each["group"], each["enrichment"], strict=True)) == [
        ("d1", "ctrl", 1.0),
        ("d1", "stim", 3.0),
        ("d2", "", 0.5),
    ]


def test_a_few_per_cent_look_like_a_few_per_cent(tmp_path):
    """The axis of enrichments spans at least 1/2 to 2, in powers of 2."""
    table = weighed(cohort()).assign(enrichment=1.04)
    tests = pd.DataFrame({"cell_type": ["B"], "mean_enrichment": 1.04, "low": 1.0, "high": 1.1, "p": 1e-6, "q": 1e-6, "n_donors": 8})
    class_of = {f"sample {i}": "ab"[i % 2] for i in range(12)}
    path = importance(tmp_path / "a", ["svg"], table, ["B"], tests.assign(effect_q=0.02), class_of, ["a", "b"])[0]
    text = path.read_text()
    assert all(f"<!-- {tick} -->" in text for tick in ("1/2", "1", "2"))
    assert "speaks for" in text
    assert "q = 0.020, n = 8" in text


@pytest.mark.parametrize(
    ("effect", "expected"),
    [
        ("effect_age", ("age", "")),
        ("effect_age_group_old", ("age_group", "old")),
        ("effect_new_b", ("", "new_b")),
    ],
)
def test_effects_find_their_task(effect, expected):
    goal, answer = _target(effect, Facts(goals={name: Goal(name, "class") for name in ("age", "age_group")}))
    assert (goal.column, answer) == expected


def test_few_samples_are_left_out_of_robustness(tmp_path):
    sizes = {"50": 12, "250": 10, "500": 5, "1000": 4}
    table = pd.DataFrame([{"name": "m", "cells": size, "samples": n, "retrieval": 0.5, "drift": 0.1} for size, n in sizes.items()])
    text = robustness_curves(tmp_path / "a", ["svg"], table, Facts(), 12)[0].read_text()
    assert "<!-- 250 -->" in text
    assert "<!-- 12 samples -->" in text
    assert "<!-- 10 samples -->" not in text
    assert "<!-- 5 samples -->" in text
    assert "1,000" not in text


def test_right_and_wrong_are_by_the_call_not_by_half(tmp_path):
    own = pd.DataFrame({"sample": ["s1", "s2"], "donor": ["d1", "d2"], "repeat": 0, "true": 0, "called": [0, 1], "p_a": [0.3, 0.7]})
    path = by_sample(tmp_path / "a", ["svg"], own.assign(p_b=1 - own["p_a"]), "m", Goal("x", "class", ("a", "b")))[0]
    text = path.read_text()
    assert "called right" in text
    assert "called wrong" in text


def test_a_late_validation_loss_stays_on_the_panel(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("matplotlib.axes.Axes.set_ylim", lambda self, *limits, **_: seen.append(limits))
    history = pd.DataFrame({"epoch": range(1, 7), "train_loss": 1.0, "validation_loss": [90, 9, 9, 5, 4, np.nan]})
    training_curves(tmp_path / "a", ["svg"], {"a": history})
    assert seen[0] == pytest.approx((0.8, 5.2))
    text = training_curves(tmp_path / "b", ["svg"], {"b": history.assign(train_pairwise_cosine=0.1)})[0].read_text()
    assert "nats" not in text
    assert "nats per cell" in (tmp_path / "a.svg").read_text()


@pytest.mark.parametrize(("share", "n"), [(0.0, 4), (0.5, 10), (1.0, 7), (0.25, 32)])
def test_wilson_interval(share, n):
    expected = binomtest(round(share * n), n).proportion_ci(method="wilson")
    assert wilson(share, n) == pytest.approx((expected.low, expected.high), abs=1e-6)


@pytest.mark.parametrize(
    ("order", "truth", "prediction", "expected"),
    [
        (LEVELS, ["mild", "severe"], ["moderate", "severe"], ([0, 2], [1, 2])),
        (LEVELS, ["0.0", "2.0"], ["0.6", "5"], ([0, 2], [1, 2])),  # places
        (["1", "2", "3"], ["1.0", "3.0"], ["1.7", "3"], ([0, 2], [1, 2])),  # names that are numbers
        (["1", "2", "3"], ["0", "2"], ["1", "2"], ([0, 2], [1, 2])),  # places, though names are numbers
    ],
)
def test_levels_by_name_or_place(order, truth, prediction, expected):
    coded = _coded(pd.DataFrame({"truth": truth, "prediction": prediction}), Goal("stage", "ordinal", tuple(order)))
    assert (coded["true"].to_list(), coded["called"].to_list()) == expected


def test_kinds_are_read_or_guessed():
    facts = facts_of(Path("nowhere"), {"tasks": ["x:y:class", TASKS[2]], "batch_key": "pool", "study_key": None})
    assert facts.goals["x:y"].kind == "class"
    assert facts.goals["stage"].order == tuple(LEVELS)
    assert facts.technical == ("pool",)
    numbers = pd.DataFrame({"truth": ["1", "2", "3.5"], "prediction": ["1", "2", "3"]})
    assert _goal(Goal("age"), numbers).kind == "regression"
    assert _goal(Goal("grade"), numbers.assign(p_1=0.5)).kind == "class"


def test_the_best_baseline_stands_beside_the_models():
    scored = pd.DataFrame({"name": ["a", "b", "m"], "score": "r2", "value": [0.1, 0.4, 0.2]})
    assert _shown(["a", "b", "m"], scored, "regression", Facts(arms={"a": "baseline", "b": "baseline", "m": "supervised"})) == ["m", "b"]


def test_looks_and_names():
    looks = looks_of([str(i) for i in range(8)])
    assert len(set(looks.values())) == 8
    assert sorted(["pool10", "pool2", "pool1"], key=natural) == ["pool1", "pool2", "pool10"]
    assert short("HCA_donor_001_lobe_rep1", 11) == "HCA_d…_rep1"
    assert len(short("x" * 50, 12)) == 12


def test_check_describes_samples_and_tasks():
    table, tasks = (
        cohort(),
        [Task("condition", "class", tuple(sorted(CLASSES))), Task("age", "regression"), Task("stage", "ordinal", tuple(LEVELS))],
    )
    table.loc[0, "condition"] = ""
    usable_s = np.arange(12) != 1
    source = Given(np.zeros((12, 2), np.float32), {"rep": "obsm:X_pca"})
    made = Cohort(table["sample"].to_numpy(), table["donor"].to_numpy(), np.arange(12), table, pd.DataFrame(), None, source, usable_s)
    rows = dict(describe_samples(CheckedSamples(None, cohort=made, tasks=tasks)))
    sizes = table["n_cells"]
    assert rows["read by the model"] == "obsm:X_pca"
    assert rows["samples"] == "12 of 8 donors; 1 with too few cells"
    assert rows["cells per sample"] == f"{sizes.min():,} to {sizes.max():,}, median {sizes.median():,.0f}"
    assert rows["task condition"] == f"class: {CLASSES[0]} 5, NA 5; 1 not known"
    assert rows["task age"].startswith("regression: 11 samples, 30 to 68.5, median ")
    assert rows["task stage"] == "ordinal: mild 5, moderate 3, severe 3"
    assert describe_samples(CheckedSamples(None)) == []
