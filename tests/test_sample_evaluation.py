"""Samples held out and scored: folds, contestants beside baselines, halves found, traces of batches."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from sctool.bench.sample_confounding import confounding
from sctool.bench.sample_folds import parse_sample_cv, plain_folds
from sctool.bench.sample_leakage import leakage, leaks
from sctool.bench.sample_retrieval import Parts, baseline_embeds, retrieval_tables
from sctool.bench.samples import Contestant, baseline_contestants, evaluate_samples, sample_folds
from sctool.config import Config
from sctool.data.cohort import Task
from sctool.errors import SctoolError
from sctool.metrics.base import METRICS
from sctool.metrics.sample_scores import LOWER, SCORES
from sctool.models.samples.baselines import baseline
from sctool.models.samples.probe import Probe
from tests.test_sample_baselines import cohort

TASK = Task("group", "class", ("a", "b"))
QUICK = Config().replaced({"sampleclr.permutations": 19, "sampleclr.repeats": 2})


@pytest.fixture
def rng():
    return np.random.default_rng(0)


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
